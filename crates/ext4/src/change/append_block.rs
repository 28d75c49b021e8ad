//! Adding a block at the end of a directory.

use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::Result;

use crate::alloc::Reach;
use crate::change::insert_blocks::{NewRun, insert_blocks};
use crate::change::transaction::Transaction;
use crate::disk_inode::{DiskInode, kind_of};

/// Takes a block, maps it behind the last one of the directory, and makes the directory that much
/// longer. The block's contents are the caller's to set. `record` changes along; the caller writes
/// it.
///
/// # Errors
/// `Corrupt`, `Io` (also of the kind `StorageFull`).
pub(crate) fn append_block(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
) -> Result<(FileBlock, BlockNo)> {
    let instance = transaction.instance;
    let block_size = u64::from(instance.superblock.block_size());
    let Ok(last) = u32::try_from(record.size() / block_size) else {
        return Err(instance.damaged(record.ino(), None, "a directory can't be that large"));
    };
    let at = FileBlock(last);
    let goal = goal(transaction, record, at)?;
    let block = transaction.allocate(record.ino(), goal, Reach::of(record.flags()))?;
    let run = NewRun {
        first: at,
        start: block,
        len: 1,
        unwritten: false,
    };
    insert_blocks(transaction, record, &run)?;
    record.set_size(record.size() + block_size);
    Ok((at, block))
}

/// Where the block `at` of a directory should lie: behind the one before it, else where what belongs
/// to its inode begins.
fn goal(transaction: &mut Transaction<'_>, record: &InodeRecord, at: FileBlock) -> Result<BlockNo> {
    let instance = transaction.instance;
    let number = record.ino();
    if let (Some(before), Some(kind)) = (at.0.checked_sub(1), record.kind()) {
        let disk = DiskInode {
            number,
            kind: kind_of(kind),
            seed: record.checksum_seed(),
            record: record.clone(),
        };
        let before = instance.metadata_block(&disk, FileBlock(before))?;
        return Ok(before.checked_add(1).unwrap_or(before));
    }
    match transaction.allocation() {
        Some((allocator, _)) => {
            let is_directory = record.kind() == Some(FileKind::Directory);
            Ok(allocator.data_goal(number, is_directory))
        }
        None => Ok(instance.inode_block(number)?.0),
    }
}
