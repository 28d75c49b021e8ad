//! The commit of a file system that has no log: blocks go home at once, in an order that e2fsck
//! can mend.
//!
//! First goes, like the data of files, what was free before: new nodes of maps, new blocks of
//! directories. When that is durable, what refers to blocks: inodes, extents, directories. What
//! says which blocks are free, the deferred ones, follows when that is durable. A crash between
//! leaves blocks that are in use but not marked so, or freed ones that are still marked; e2fsck
//! finds both. Nothing that a transaction freed is used again before all of it is durable, so a
//! freed block never belongs to two files.

use crate::error::Result;
use crate::home;
use crate::mutant::Mutant;
use crate::shared::Shared;
use crate::transaction::Frozen;

#[derive(Debug)]
pub(crate) struct WithoutLog;

impl WithoutLog {
    /// Makes the transaction durable.
    pub(crate) fn commit(&self, shared: &Shared, frozen: &Frozen) -> Result<()> {
        let (first, second) = if shared.is_mutant(Mutant::FreeFirst) {
            (&frozen.deferred, &frozen.blocks)
        } else {
            (&frozen.blocks, &frozen.deferred)
        };
        // Nothing refers to a block, of a file or of its map, that is not there yet: a file would
        // show what its new blocks held before, and e2fsck takes a file for broken whose map is.
        let (new, old): (Vec<_>, Vec<_>) = first
            .iter()
            .cloned()
            .partition(|buffer| frozen.new.binary_search(&buffer.block()).is_ok());
        home::write(&shared.buffers, &new)?;
        if !first.is_empty() {
            shared.flush()?;
        }
        home::write(&shared.buffers, &old)?;
        // Also if there are none: what the transaction freed must be off the medium, and file
        // data be durable, before anybody is told.
        shared.flush()?;
        if !second.is_empty() {
            home::write(&shared.buffers, second)?;
            shared.flush()?;
        }
        Ok(())
    }
}
