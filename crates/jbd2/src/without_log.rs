//! The commit of a file system that has no log: blocks go home at once, in an order that e2fsck
//! can mend.
//!
//! First goes, like the data of files, what was free before: new nodes of maps, new blocks of
//! directories. When that is durable, what refers to blocks: inodes, extents, directories; and
//! last of these what has lost something that new blocks have now ([`Turn`] has the steps). What
//! says which blocks are free, the deferred ones, follows when all that is durable.
//!
//! Invariant: what moves from one block into others is at every moment in the old one, or in new
//! ones that are referred to; or in both. A crash leaves blocks that are in use but not marked so,
//! or freed ones that are still marked; e2fsck finds both. Nothing that a transaction freed is used
//! again before all of it is durable, so a freed block never belongs to two files.

use crate::error::Result;
use crate::home;
use crate::mutant::Mutant;
use crate::shared::Shared;
use crate::transaction::{Frozen, Turn};

#[derive(Debug)]
pub(crate) struct WithoutLog;

impl WithoutLog {
    /// Makes the transaction durable.
    pub(crate) fn commit(&self, shared: &Shared, frozen: &Frozen) -> Result<()> {
        let (first, last) = if shared.is_mutant(Mutant::FreeFirst) {
            (&frozen.deferred, &frozen.blocks)
        } else {
            (&frozen.blocks, &frozen.deferred)
        };
        let turn_of = |block| match frozen.turn(block) {
            Turn::New => Turn::New,
            _ if shared.is_mutant(Mutant::NoTurns) => Turn::Refers,
            turn => turn,
        };
        // Each flush begins when what was written before it is complete, the data of files too.
        for turn in [
            Turn::New,
            Turn::Shrinks,
            Turn::Refers,
            Turn::Grows,
            Turn::Yields,
        ] {
            let is_now = |block: u64| turn_of(block) == turn;
            let now = first.iter().filter(|buffer| is_now(buffer.block()));
            let now: Vec<_> = now.cloned().collect();
            home::write(shared, &now)?;
            let must_be_durable = match turn {
                // Nothing refers to a block, of a file or of its map, that is not there yet: a
                // file would show what its new blocks held before, and e2fsck takes a file for
                // broken whose map is.
                Turn::New => !first.is_empty(),
                // Also if there are none: what the transaction freed must be off the medium, and
                // file data be durable, before anybody is told.
                Turn::Refers => true,
                Turn::Shrinks | Turn::Grows | Turn::Yields => !now.is_empty(),
            };
            if must_be_durable {
                shared.flush()?;
            }
        }
        if !last.is_empty() {
            home::write(shared, last)?;
            shared.flush()?;
        }
        Ok(())
    }
}
