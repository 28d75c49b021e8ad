//! Taking blocks away from a file, whatever maps them: those past a file block, or a range.
//!
//! At the end, blocks go from the last to the first, so that each state in between is a sound file
//! that is shorter; a caller commits there and goes on ([`Progress::More`]).

use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord, InodeFlags};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::Result;

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

/// Takes away the file's blocks from `from` on. `record` changes along; the caller writes it.
///
/// # Errors
/// `Corrupt`, `Io`; the transaction must then be dropped.
pub(crate) fn remove_blocks(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    from: FileBlock,
) -> Result<Progress> {
    if !maps_blocks(record) {
        return Ok(Progress::Done);
    }
    let mut owner = Owner {
        transaction,
        record,
    };
    if owner.record.flags().contains(InodeFlags::EXTENTS) {
        remove_extents::remove(&mut owner, from)
    } else {
        remove_block_map::remove(&mut owner, from, u64::MAX)
    }
}

/// Makes the file blocks from `from` up to (not including) `end` a hole. What an extent tree takes
/// for two pieces of one extent, the transaction has ([`crate::delalloc`]). `record` changes
/// along; the caller writes it.
///
/// # Errors
/// As [`remove_blocks`]. What goes wrong after blocks were freed is the end of this transaction, and
/// the next one's error, before that changed anything.
pub(crate) fn remove_range(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    from: FileBlock,
    end: FileBlock,
) -> Result<Progress> {
    if !maps_blocks(record) || from >= end {
        return Ok(Progress::Done);
    }
    let mut owner = Owner {
        transaction,
        record,
    };
    if !owner.record.flags().contains(InodeFlags::EXTENTS) {
        return remove_block_map::remove(&mut owner, from, end.0.into());
    }
    let mut at = from;
    let mut has_removed = false;
    while at < end {
        if owner.transaction.is_large() {
            return Ok(Progress::More);
        }
        let run = match owner.free_run(at, end) {
            Err(_) if has_removed && owner.transaction.is_live() => return Ok(Progress::More),
            freed => freed?,
        };
        let next = FileBlock(at.0.saturating_add(run.len));
        if run.target != Target::Hole {
            has_removed = true;
            let mut tree = ExtentTree {
                transaction: &mut *owner.transaction,
                record: &mut *owner.record,
            };
            tree.punch(at, next)?;
        }
        at = next;
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
}

impl Owner<'_, '_> {
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
    /// `end`; a hole has none. The run, cut so, is to be taken out of the tree.
    fn free_run(&mut self, at: FileBlock, end: FileBlock) -> Result<Run> {
        let left = end.0.saturating_sub(at.0);
        let Some(disk) = self.disk() else {
            return Ok(Run::hole(left));
        };
        let run = self.transaction.instance.map_blocks(&disk, at)?;
        let len = run.len.min(left);
        if let Target::Written(start) | Target::Unwritten(start) = run.target {
            self.free(start, len)?;
        }
        Ok(Run { len, ..run })
    }

    /// Frees blocks of the file, and counts them off.
    pub(crate) fn free(&mut self, start: BlockNo, count: u32) -> Result<()> {
        let inode = self.record.ino();
        free_blocks(self.transaction, inode, start, count)?;
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
        let instance = self.transaction.instance;
        let sectors = u64::from(count) * u64::from(instance.superblock.block_size() / 512);
        let left = self.record.sectors().saturating_sub(sectors);
        self.record
            .set_sectors(left)
            .at(&instance.damage, Some(inode), None)
    }

    /// Frees a block of the file's map.
    pub(crate) fn free_map_block(&mut self, block: BlockNo) -> Result<()> {
        self.free(block, 1)?;
        self.transaction.forget(block);
        Ok(())
    }
}
