//! Adding a block at the end of a directory.

use pagefence_ext4_format::extent::Extent;
use pagefence_ext4_format::indirect::{Pointers, set_pointer};
use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord, InodeFlags};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::Result;

use crate::change::extent_tree::ExtentTree;
use crate::change::transaction::Transaction;
use crate::disk_inode::{DiskInode, kind_of};
use crate::error::At;

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
    let block = transaction.allocate(record.ino(), goal)?;
    if record.flags().contains(InodeFlags::EXTENTS) {
        let extent = Extent {
            first: at,
            len: 1,
            start: block,
            unwritten: false,
        };
        let mut tree = ExtentTree {
            transaction,
            record,
        };
        tree.insert(extent)?;
    } else {
        map(transaction, record, at, block)?;
    }
    record.set_size(record.size() + block_size);
    count_block(transaction, record)?;
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

/// Counts a block that the inode owns more.
pub(crate) fn count_block(transaction: &Transaction<'_>, record: &mut InodeRecord) -> Result<()> {
    let instance = transaction.instance;
    let sectors = record.sectors() + u64::from(instance.superblock.block_size() / 512);
    record
        .set_sectors(sectors)
        .at(&instance.damage, Some(record.ino()), None)
}

/// Points the block map at `block`, by way of indirect blocks that are made where they are missing.
fn map(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    at: FileBlock,
    block: BlockNo,
) -> Result<()> {
    let instance = transaction.instance;
    let inode = record.ino();
    let too_large = |what: &str| Err(instance.damaged(inode, None, what));
    let Some(path) = instance.map_shape.path(at) else {
        return too_large("its block map is full");
    };
    // The block whose slot is next; the root first.
    let mut holder: Option<BlockNo> = None;
    for (level, slot) in path.slots().iter().enumerate() {
        let is_last = level == usize::from(path.depth());
        let found = match holder {
            None => Pointers::root(record.block_area(), &instance.limits)
                .and_then(|pointers| pointers.get(*slot)),
            Some(holder) => {
                let bytes = instance.read_block(holder)?;
                Pointers::block(&bytes, &instance.limits).get(*slot)
            }
        }
        .at(&instance.damage, Some(inode), holder)?;
        let next = match found {
            Some(_) if is_last => return too_large("its block map reaches past its size"),
            Some(found) => found,
            None if is_last => block,
            None => {
                let new = transaction.allocate(inode, block)?;
                transaction.set(new, &vec![0; instance.superblock.block_size() as usize]);
                count_block(transaction, record)?;
                new
            }
        };
        if found.is_none() {
            let set = match holder {
                None => set_pointer(record.block_area_mut(), *slot, Some(next)),
                Some(holder) => {
                    transaction.change(holder, |bytes| Ok(set_pointer(bytes, *slot, Some(next))))?
                }
            };
            if !set {
                return too_large("its block map can't hold a block of that number");
            }
        }
        holder = Some(next);
    }
    Ok(())
}
