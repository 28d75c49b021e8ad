//! Who may take blocks away from an inode, or say that they are unwritten: who shows that no page of
//! them is in the cache, nor can come back meanwhile. Sources: RACES S0.14, S1.11.
//!
//! Whatever does that asks for a [`Cut`], and changes the record that the cut has, so that it is the
//! inode of the proof and no other's. There are four proofs, each made in one place only:
//! - [`Evicted`]: the fence of that file is held, and the pages of the range are gone;
//! - [`Unused`]: nobody has the inode any more, nor will: it is being deleted;
//! - [`Recovering`]: nothing is mounted yet;
//! - the record of an attribute's value, which no page cache knows.

use std::ops::Range;

use pagefence_ext4_format::inode::{Inode as InodeRecord, InodeFlags};
use pagefence_page_cache::Evicted;
use pagefence_vfs::{Error, Result};

use crate::backing::FileData;
use crate::change::transaction::Recovering;
use crate::delete_inode::Unused;
use crate::inode::InodeCore;
use crate::instance::Instance;

/// An inode whose blocks may be taken away, or be marked as unwritten, and its record, which changes
/// along. Taken with the block map's lock held, and adopted before that is given up.
#[derive(Debug)]
#[must_use]
pub(crate) struct Cut<'a> {
    record: InodeRecord,
    /// The file blocks whose pages are gone.
    blocks: Range<u64>,
    /// Where the record came from, if it is in core; and what it was.
    core: Option<(&'a InodeCore, InodeRecord)>,
}

impl<'a> Cut<'a> {
    /// Of a file whose pages were evicted: of the blocks that lie wholly in that range.
    pub(crate) fn of(evicted: &'a Evicted<'_, FileData>) -> Self {
        let data = evicted.mapping().backing();
        let bits = data.instance.superblock.block_size_bits();
        let bytes = evicted.range();
        let end = match bytes.end {
            // There are as many as there can be.
            u64::MAX => u64::MAX,
            end => end >> bits,
        };
        Self::in_core(&data.inode, bytes.start.div_ceil(1 << bits)..end)
    }

    /// Of an inode that nobody has.
    pub(crate) fn of_unused(unused: &'a Unused<'_>) -> Self {
        Self::in_core(unused.core(), 0..u64::MAX)
    }

    fn in_core(core: &'a InodeCore, blocks: Range<u64>) -> Self {
        let before = core.disk().record.clone();
        Self {
            record: before.clone(),
            blocks,
            core: Some((core, before)),
        }
    }

    /// Of any inode, before the file system is mounted.
    pub(crate) fn while_recovering(_proof: Recovering<'a>, record: InodeRecord) -> Self {
        Self {
            record,
            blocks: 0..u64::MAX,
            core: None,
        }
    }

    /// Of an inode that holds the value of an attribute.
    ///
    /// # Errors
    /// `Corrupt` if it is another kind of inode: that one may have pages.
    pub(crate) fn of_value(instance: &Instance, record: InodeRecord) -> Result<Self> {
        if !record.flags().contains(InodeFlags::EA_INODE) {
            let what = "an attribute names it, and it holds no value";
            return Err(instance.damaged(record.ino(), None, what));
        }
        Ok(Self {
            record,
            blocks: 0..u64::MAX,
            core: None,
        })
    }

    /// The record, as changed so far.
    pub(crate) fn record(&self) -> &InodeRecord {
        &self.record
    }

    /// The record, for changes that go along.
    pub(crate) fn record_mut(&mut self) -> &mut InodeRecord {
        &mut self.record
    }

    /// Makes sure that the pages of blocks are gone.
    ///
    /// # Errors
    /// `Io`: a defect of ours.
    pub(crate) fn check(&self, blocks: Range<u64>) -> Result<()> {
        let is_inside = blocks.start >= blocks.end
            || (self.blocks.start <= blocks.start && blocks.end <= self.blocks.end);
        debug_assert!(
            is_inside,
            "{blocks:?} of {:?} whose pages are gone",
            self.blocks
        );
        if is_inside {
            return Ok(());
        }
        let what = "blocks to be taken away may have pages";
        Err(Error::Io(std::io::Error::other(what)))
    }

    /// Takes the record over into the inode in core, if it came from there.
    pub(crate) fn adopt(self) {
        if let Some((core, before)) = &self.core {
            core.adopt(before, &self.record);
        }
    }

    /// The record, of an inode that is not in core, or is to be as this says, whatever else changed.
    pub(crate) fn into_record(self) -> InodeRecord {
        self.record
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
