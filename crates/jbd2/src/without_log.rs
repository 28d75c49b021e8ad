//! The commit of a file system that has no log: blocks go home at once, in an order that e2fsck
//! can mend.
//!
//! First goes, once file data is durable, what refers to blocks: inodes, extents, directories. What
//! says which blocks are
//! free, the deferred ones, follows when that is durable. A crash between leaves blocks that are
//! in use but not marked so, or freed ones that are still marked; e2fsck finds both. Nothing that
//! a transaction freed is used again before all of it is durable, so a freed block never belongs
//! to two files.

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
        if !first.is_empty() {
            // Nothing refers to file data that is not there yet: a file would show what its new
            // blocks held before.
            shared.flush()?;
        }
        home::write(&shared.buffers, first)?;
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
