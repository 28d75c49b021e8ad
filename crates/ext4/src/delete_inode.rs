//! The end of an inode without names: its pages, attributes and blocks go, then the inode, in as
//! many transactions as it takes. It is an orphan until the last of them.

use pagefence_ext4_format::FileBlock;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels;
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::Evict;
use pagefence_vfs::{InodeId, Result};

use crate::change::cut::Cut;
use crate::change::free_inode::free_inode;
use crate::change::release_xattrs::release_xattrs;
use crate::change::remove_blocks::{Progress, remove_blocks};
use crate::clock;
use crate::filesystem::FileSystem;
use crate::inode::{Inode, InodeCore};
use crate::live::Need;
use crate::orphans;

/// Who has an inode that can be deleted, besides the cache: the list of orphans, and the caller.
const OWNERS: usize = 2;

/// What one step takes: [`crate::change::Transaction::is_large`] ends it while there is room for
/// what comes last.
const STEP: Need = Need {
    // A run of blocks freed changes a bitmap, a descriptor and a block of the map; the list of
    // orphans, and freeing the inode (bitmap, descriptor, superblock, its own block) come last.
    credits: 128 + orphans::CREDITS + 4,
    blocks: 0,
    privileged: true,
};

/// Shows that nobody has an inode: it has no names, is in no cache, and its pages are gone.
#[derive(Debug)]
pub(crate) struct Unused<'a>(&'a Inode);

impl Unused<'_> {
    pub(crate) fn core(&self) -> &InodeCore {
        &self.0.core
    }
}

impl FileSystem {
    /// Nobody knows the inode by its number any more. Without names it is deleted: now, or when
    /// nobody has it open any more and the next inode is forgotten, or at the end.
    pub(crate) fn forget_inode(&self, id: InodeId) {
        let (Ok(number), Ok(live)) = (self.user_inode(id), self.instance.live()) else {
            return;
        };
        live.orphans.forget(number);
        self.delete_due();
    }

    /// Deletes all inodes without names, when nobody has anything open any more.
    pub(crate) fn delete_orphans(&self) {
        if let Ok(live) = self.instance.live() {
            live.orphans.forget_all();
            self.delete_due();
        }
    }

    /// Deletes the inodes without names that nobody knows and nobody has. Takes locks from the
    /// inode lock on. What fails stays on the list of orphans, for the next mount.
    pub(crate) fn delete_due(&self) {
        let Ok(live) = self.instance.live() else {
            return;
        };
        if !live.orphans.has_due() {
            return;
        }
        for inode in live.orphans.take_due() {
            let number = inode.core.number;
            if !self.inodes.remove_unused(number, &inode, OWNERS) {
                live.orphans.put_back(number);
            } else if let Err(error) = self.delete_inode(&inode) {
                tracing::error!(%error, %number, "an inode without names could not be deleted");
            }
        }
    }

    /// Deletes an inode that nobody else has.
    fn delete_inode(&self, inode: &Arc<Inode>) -> Result<()> {
        let instance = &self.instance;
        let live = instance.live()?;
        let mut entry = Held::at_entry();
        let (_alone, mut held) = inode.lock.write(&mut entry);
        let unused = self.drop_pages(inode, &mut held)?;
        // What could fail is looked at before anything changes: a transaction that fails half way
        // ends all writing.
        live.allocator.check_inode(instance, inode.core.number)?;
        loop {
            let (mut transaction, mut held) = instance.begin(&mut held, STEP)?;
            let (_map, _held) = inode.core.block_map.write(&mut held);
            let mut cut = Cut::of_unused(&unused);
            let deleted_at = clock::seconds();
            // Attributes go first: nothing is changed yet if they are damaged. Blocks end the
            // transaction where they are.
            let progress = match release_xattrs(&mut transaction, cut.record_mut(), deleted_at)? {
                Progress::Done => remove_blocks(&mut transaction, &mut cut, FileBlock(0))?,
                Progress::More => Progress::More,
            };
            if progress == Progress::Done && !transaction.is_large() {
                live.orphans.take_off(&mut transaction, inode)?;
                let mut record = cut.into_record();
                free_inode(&mut transaction, &mut record, deleted_at)?;
                // Its neighbour in the list may have changed whom it points to just before, and
                // writes it after this: that must be the deleted inode then.
                inode.core.update(|known| *known = record);
                inode.core.write(&mut transaction, true)?;
                transaction.end();
                return Ok(());
            }
            cut.adopt();
            inode.core.write(&mut transaction, true)?;
            transaction.end();
        }
    }

    /// Drops the pages of a file that is deleted, dirty or not, waits for those being written, and
    /// gives up the space of those that had no place yet.
    fn drop_pages<'a>(
        &self,
        inode: &'a Inode,
        held: &mut Held<'_, levels::Inode>,
    ) -> Result<Unused<'a>> {
        inode.core.set_size(0);
        if let Some(mapping) = inode.existing_mapping() {
            let (mut fence, mut held) = mapping.fence(held, 0..u64::MAX);
            let evicted = fence.evict(&mut held, Evict::Discard)?;
            let (mut delayed, _held) = inode.core.block_map.write(&mut held);
            delayed.forget(0..u32::MAX);
            evicted.mapping().backing().note_delayed(&delayed);
        }
        Ok(Unused(inode))
    }
}

#[cfg(test)]
mod tests;
