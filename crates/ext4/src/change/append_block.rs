//! Adding a block at the end of a directory.

use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::Result;

use crate::alloc::{BlockOwner, Reach};
use crate::change::insert_blocks::{NewRun, check_hole, check_insert, insert_blocks};
use crate::change::transaction::Transaction;
use crate::disk_inode::{DiskInode, kind_of};
use crate::instance::Instance;

impl Instance {
    /// Makes sure that `blocks` blocks can be added at the end of a directory, before a change that
    /// may need that begins: that what is to come lies behind a block that is there; that each node
    /// on the way there has all the room that it can have, which is what is reserved stands on
    /// ([`crate::name_credits`]); that nothing is there yet; and that all can be counted.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn check_append(&self, disk: &DiskInode, blocks: u32) -> Result<()> {
        let at = self.end_of_directory(&disk.record)?;
        if let Some(before) = at.0.checked_sub(1) {
            self.metadata_block(disk, FileBlock(before))?;
        }
        if disk.has_extents() {
            self.check_extent_room(disk, at)?;
        }
        check_hole(self, disk, at, blocks)
    }

    /// The file block behind the last one of a directory.
    fn end_of_directory(&self, record: &InodeRecord) -> Result<FileBlock> {
        u32::try_from(record.size() / u64::from(self.superblock.block_size()))
            .map(FileBlock)
            .map_err(|_| self.damaged(record.ino(), None, "a directory can't be that large"))
    }
}

/// Takes a block, maps it behind the last one of the directory, and makes the directory that much
/// longer. The block's contents are the caller's to set. `record` changes along; the caller writes
/// it.
///
/// # Errors
/// `Corrupt`, `NoSpace`, `Io` (also of the kind `StorageFull`), before anything was changed;
/// `record` is to be dropped then.
pub(crate) fn append_block(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
) -> Result<(FileBlock, BlockNo)> {
    let instance = transaction.instance;
    let block_size = u64::from(instance.superblock.block_size());
    let at = instance.end_of_directory(record)?;
    let goal = goal(transaction, record, at)?;
    let reach = Reach::of(record.flags());
    if let Some(disk) = disk_of(record) {
        instance.check_append(&disk, 1)?;
    }
    // The block, and what maps it, are there before either is taken.
    let nodes = check_insert(transaction, record, at)?;
    transaction.prepare(goal, reach, nodes + 1)?;
    let block = transaction.allocate(BlockOwner::Contents(record.ino()), goal, reach)?;
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
    if let (Some(before), Some(disk)) = (at.0.checked_sub(1), disk_of(record)) {
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

fn disk_of(record: &InodeRecord) -> Option<DiskInode> {
    Some(DiskInode {
        number: record.ino(),
        kind: kind_of(record.kind()?),
        seed: record.checksum_seed(),
        record: record.clone(),
    })
}
