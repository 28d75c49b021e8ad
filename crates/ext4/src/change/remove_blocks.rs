//! Taking blocks away from a file, whatever maps them: those past a file block, or a range.
//!
//! At the end, blocks go from the last to the first, so that each state in between is a sound file
//! that is shorter; a caller commits there and goes on ([`Progress::More`]).

use std::ops::Range;

use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord, InodeFlags};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::{Error, Result};

use crate::alloc::BlockOwner;
use crate::change::cut::Cut;
use crate::change::extent_tree::ExtentTree;
use crate::change::free_blocks::free_blocks;
use crate::change::transaction::Transaction;
use crate::change::{remove_block_map, remove_extents};
use crate::disk_inode::{DiskInode, kind_of};
use crate::error::At;
use crate::map_blocks::{Run, Target};

/// How far a removal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// All the way.
    Done,
    /// The transaction is large: commit it, and call again with another one.
    More,
}

/// Takes away the file's blocks from `from` on. The record of `cut` changes along; the caller writes
/// it.
///
/// # Errors
/// `Corrupt`, `Io`. What goes wrong after blocks were freed is the end of this transaction, and the
/// next one's error, before that changed anything.
pub(crate) fn remove_blocks(
    transaction: &mut Transaction<'_>,
    cut: &mut Cut<'_>,
    from: FileBlock,
) -> Result<Progress> {
    cut.check(from.0.into()..u64::MAX)?;
    let record = cut.record_mut();
    if !maps_blocks(record) {
        return Ok(Progress::Done);
    }
    let mut owner = Owner::new(transaction, record);
    if owner.record.flags().contains(InodeFlags::EXTENTS) {
        remove_extents::remove(&mut owner, from)
    } else {
        remove_block_map::remove(&mut owner, from, u64::MAX)
    }
}

/// Makes the file blocks `range` a hole, and leaves in `range` those that another transaction has to
/// take. What an extent tree takes for two pieces of one extent, the transaction has
/// ([`crate::delalloc`]). The record of `cut` changes along; the caller writes it.
///
/// # Errors
/// As [`remove_blocks`]; `NoSpace` if the transaction has no block for the tree.
pub(crate) fn remove_range(
    transaction: &mut Transaction<'_>,
    cut: &mut Cut<'_>,
    range: &mut Range<u32>,
) -> Result<Progress> {
    cut.check(range.start.into()..range.end.into())?;
    let record = cut.record_mut();
    if !maps_blocks(record) || range.start >= range.end {
        return Ok(Progress::Done);
    }
    let mut owner = Owner::new(transaction, record);
    if owner.record.flags().contains(InodeFlags::EXTENTS) {
        return punch(&mut owner, range);
    }
    let progress = remove_block_map::remove(&mut owner, FileBlock(range.start), range.end.into())?;
    // From the last one to the first.
    range.end = owner
        .lowest
        .map_or(range.end, |lowest| range.end.min(lowest));
    Ok(progress)
}

/// Takes a range out of an extent tree, from the first block to the last.
fn punch(owner: &mut Owner<'_, '_>, range: &mut Range<u32>) -> Result<Progress> {
    while range.start < range.end {
        if owner.transaction.is_large() {
            return Ok(Progress::More);
        }
        let at = FileBlock(range.start);
        let run = match owner.free_run(at, FileBlock(range.end)) {
            Ok(run) => run,
            Err(error) => return owner.stop(error),
        };
        let next = at.0.saturating_add(run.len);
        if run.target != Target::Hole {
            owner.tree().punch(at, FileBlock(next))?;
        }
        range.start = next;
    }
    Ok(Progress::Done)
}

/// Whether the inode's 60 bytes map blocks.
fn maps_blocks(record: &InodeRecord) -> bool {
    match record.kind() {
        Some(FileKind::Regular | FileKind::Directory) => {
            !record.flags().contains(InodeFlags::INLINE_DATA)
        }
        Some(FileKind::Symlink) => {
            !record.is_fast_symlink() && !record.flags().contains(InodeFlags::INLINE_DATA)
        }
        _ => false,
    }
}

/// Zeroes what the file's last block holds past the file's end, so that it does not show when the
/// file grows. Does nothing to holes, unwritten blocks, and what is encrypted (which zeros would
/// garble).
///
/// # Errors
/// `Corrupt`, `Io`.
pub(crate) fn zero_tail(transaction: &mut Transaction<'_>, record: &InodeRecord) -> Result<()> {
    let instance = transaction.instance;
    let block_size = u64::from(instance.superblock.block_size());
    let within = record.size() % block_size;
    let skips = within == 0 || !maps_blocks(record) || record.flags().contains(InodeFlags::ENCRYPT);
    let (Some(kind), Ok(last)) = (record.kind(), u32::try_from(record.size() / block_size)) else {
        return Ok(());
    };
    if skips {
        return Ok(());
    }
    let inode = DiskInode {
        number: record.ino(),
        kind: kind_of(kind),
        seed: record.checksum_seed(),
        record: record.clone(),
    };
    let Target::Written(block) = instance.map_blocks(&inode, FileBlock(last))?.target else {
        return Ok(());
    };
    transaction.check_owned(record.ino(), block, 1)?;
    let from = usize::try_from(within).unwrap_or(0);
    let is_zero = instance
        .read_block(block)?
        .iter()
        .skip(from)
        .all(|byte| *byte == 0);
    if is_zero {
        return Ok(());
    }
    transaction.change(block, |bytes| {
        if let Some(tail) = bytes.get_mut(from..) {
            tail.fill(0);
        }
        Ok(())
    })
}

/// The inode whose blocks are taken away.
pub(crate) struct Owner<'a, 'b> {
    pub(crate) transaction: &'a mut Transaction<'b>,
    pub(crate) record: &'a mut InodeRecord,
    /// The lowest file block that was taken out of a block map.
    pub(crate) lowest: Option<u32>,
    /// What the transaction had changed before.
    changes_before: u64,
}

impl<'a, 'b> Owner<'a, 'b> {
    pub(crate) fn new(transaction: &'a mut Transaction<'b>, record: &'a mut InodeRecord) -> Self {
        Self {
            lowest: None,
            changes_before: transaction.changes(),
            transaction,
            record,
        }
    }

    /// What an error means where the file is sound as it is: if something was freed, the end of this
    /// transaction. The next one meets it again, before it changes anything.
    pub(crate) fn stop(&self, error: Error) -> Result<Progress> {
        let is_live = self.transaction.is_live();
        if is_live && self.transaction.changes() != self.changes_before {
            Ok(Progress::More)
        } else {
            Err(error)
        }
    }

    fn tree(&mut self) -> ExtentTree<'_, 'b> {
        ExtentTree {
            transaction: &mut *self.transaction,
            record: &mut *self.record,
        }
    }

    /// What reads the file as it is now.
    fn disk(&self) -> Option<DiskInode> {
        Some(DiskInode {
            number: self.record.ino(),
            kind: kind_of(self.record.kind()?),
            seed: self.record.checksum_seed(),
            record: self.record.clone(),
        })
    }

    /// Frees the blocks of the run of an extent tree that begins at `at`, as far as it lies before
    /// `end`; a hole has none. The run, cut so, is to be taken out of the tree, which can be done.
    /// After an error nothing was freed.
    fn free_run(&mut self, at: FileBlock, end: FileBlock) -> Result<Run> {
        let left = end.0.saturating_sub(at.0);
        let Some(disk) = self.disk() else {
            return Ok(Run::hole(left));
        };
        let run = self.transaction.instance.map_blocks(&disk, at)?;
        let len = run.len.min(left);
        if let Target::Written(start) | Target::Unwritten(start) = run.target {
            let end = FileBlock(at.0.saturating_add(len));
            self.tree().check_punch(at, end)?;
            self.free(start, len)?;
        }
        Ok(Run { len, ..run })
    }

    /// Frees blocks of what the file holds, and counts them off; after an error nothing changed.
    pub(crate) fn free(&mut self, start: BlockNo, count: u32) -> Result<()> {
        let contents = BlockOwner::Contents(self.record.ino());
        self.free_owned(contents, start, count)
    }

    fn free_owned(&mut self, owner: BlockOwner, start: BlockNo, count: u32) -> Result<()> {
        let inode = self.record.ino();
        let instance = self.transaction.instance;
        let before = self.record.sectors();
        let sectors = u64::from(count) * u64::from(instance.superblock.block_size() / 512);
        let left = before.saturating_sub(sectors);
        self.record
            .set_sectors(left)
            .at(&instance.damage, Some(inode), None)?;
        if let Err(error) = free_blocks(self.transaction, owner, start, count) {
            let restored = self.record.set_sectors(before);
            debug_assert!(restored.is_ok(), "as many as it had");
            return Err(error);
        }
        // What a directory or a symbolic link holds went through the journal, and what is marked so:
        // a replay must not bring it back over whatever the blocks hold by then.
        let is_metadata = matches!(
            self.record.kind(),
            Some(FileKind::Directory | FileKind::Symlink)
        );
        if is_metadata || self.record.flags().contains(InodeFlags::JOURNAL_DATA) {
            for block in start.0..start.0.saturating_add(u64::from(count)) {
                self.transaction.forget(BlockNo(block));
            }
        }
        Ok(())
    }

    /// Who has the blocks of the file's map.
    pub(crate) fn map_owner(&self) -> BlockOwner {
        BlockOwner::Map(self.record.ino())
    }

    /// Makes sure that [`Self::free_map_block`] won't fail.
    pub(crate) fn check_map_block(&self, block: BlockNo) -> Result<()> {
        let inode = self.record.ino();
        self.transaction.check_owned(inode, block, 1)?;
        self.transaction.check_release(inode, block)
    }

    /// Frees a block of the file's map.
    pub(crate) fn free_map_block(&mut self, block: BlockNo) -> Result<()> {
        self.free_owned(self.map_owner(), block, 1)?;
        self.transaction.forget(block);
        Ok(())
    }
}
