//! Inodes that hold the values of extended attributes: made, counted, and deleted with their last
//! user. Source: the kernel's `Documentation/filesystems/ext4/attributes.rst`.
//!
//! Users are counted within the inode's block, in one step, since inodes that share an attribute
//! block or a value change at the same time. Whoever finds itself to be the last user is alone.

use pagefence_ext4_format::extent::ExtentNodeMut;
use pagefence_ext4_format::features::Incompat;
use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord, InodeFlags, Timestamp};
use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::xattr::ea_inode_hash;
use pagefence_ext4_format::{BlockNo, FileBlock, InodeNo};
use pagefence_vfs::{Error, Result};

use crate::alloc::{NewInode, NewNumber};
use crate::change::append_block::append_block;
use crate::change::cut::Cut;
use crate::change::extent_tree::ExtentTree;
use crate::change::free_inode::free_inode;
use crate::change::remove_blocks::{Progress, remove_blocks};
use crate::change::transaction::Transaction;
use crate::clock;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::Instance;
use crate::map_blocks::Target;
use crate::xattr::VALUE_MAX;

/// Extents that the 60 bytes of an inode hold.
const ROOT_EXTENTS: u64 = 4;
/// Blocks that the 60 bytes of an inode point to.
const ROOT_POINTERS: u64 = 12;

/// Blocks that a value of `len` bytes takes, and those that map them at most.
pub(crate) fn blocks_of(superblock: &Superblock, len: u64) -> (u64, u64) {
    let block_size = u64::from(superblock.block_size());
    let data = len.div_ceil(block_size);
    let map = if superblock.has_incompat(Incompat::EXTENTS) {
        // Nodes of 12-byte entries, at least half full, each block an extent of its own.
        let per_node = (block_size / 12).saturating_sub(2) / 2;
        if data <= ROOT_EXTENTS {
            0
        } else {
            data.div_ceil(per_node.max(1)) + 1
        }
    } else if data <= ROOT_POINTERS {
        0
    } else {
        // One block of pointers, or a second below a block of theirs.
        let per_block = block_size / 4;
        (data - ROOT_POINTERS).div_ceil(per_block) + 1
    };
    (data, map)
}

/// Takes a free inode near `owner`, for [`fill`].
///
/// # Errors
/// `NoSpace` if there is none; `Unsupported` while the file system is being mounted; `Io`. Nothing
/// was changed then.
pub(crate) fn take(transaction: &mut Transaction<'_>, owner: InodeNo) -> Result<NewNumber> {
    let instance = transaction.instance;
    let Some((allocator, handle)) = transaction.allocation() else {
        return Err(Error::Unsupported("new attribute inodes while mounting"));
    };
    let request = NewInode {
        parent: owner,
        is_directory: false,
        is_top_level: false,
        name: &[],
    };
    allocator.new_inode(instance, handle, request)
}

/// Gives back what [`take`] took. The table then says that it was deleted, as of any inode that is
/// free and was in use: nobody looks at what was there before.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(crate) fn give_back(transaction: &mut Transaction<'_>, new: NewNumber) -> Result<()> {
    let superblock = &transaction.instance.superblock;
    let (kind, generation) = (FileKind::Regular, new.generation);
    let mut record = InodeRecord::create(new.number, superblock, kind, 0o600, generation);
    free_inode(transaction, &mut record, clock::seconds())
}

/// Makes a new inode hold `value`, for one user: an attribute of `owner`.
///
/// # Errors
/// `Corrupt`, `Io`; the transaction must then be dropped.
pub(crate) fn fill(
    transaction: &mut Transaction<'_>,
    new: NewNumber,
    owner: &InodeRecord,
    value: &[u8],
) -> Result<()> {
    let instance = transaction.instance;
    let superblock = &instance.superblock;
    let (inode, kind) = (new.number, FileKind::Regular);
    let mut record = InodeRecord::create(inode, superblock, kind, 0o600, new.generation);
    record.set_uid(owner.uid());
    record.set_gid(owner.gid());
    record.set_links(1);
    let mut flags = InodeFlags::EA_INODE;
    let has_extents = superblock.has_incompat(Incompat::EXTENTS);
    if has_extents {
        flags |= InodeFlags::EXTENTS;
    }
    record.set_flags(flags);
    if has_extents && ExtentNodeMut::init(record.block_area_mut(), 0).is_none() {
        return Err(instance.damaged(inode, None, "60 bytes hold no extent tree"));
    }
    let now = clock::now();
    record.set_mtime(now);
    record.set_crtime(now);
    let block_size = superblock.block_size() as usize;
    let mut blocks = 0_u64;
    for piece in value.chunks(block_size) {
        let (_, block) = append_block(transaction, &mut record)?;
        let mut bytes = piece.to_vec();
        bytes.resize(block_size, 0);
        transaction.set(block, &bytes);
        blocks += 1;
    }
    if has_extents {
        let tree = ExtentTree {
            transaction,
            record: &mut record,
        };
        blocks += tree.read()?.1.len() as u64;
    } else {
        blocks += blocks_of(superblock, value.len() as u64).1.min(1);
    }
    record.set_size(value.len() as u64);
    record
        .set_sectors(blocks * u64::from(superblock.block_size() / 512))
        .at(&instance.damage, Some(inode), None)?;
    let hash = ea_inode_hash(value, instance.seed);
    record.set_ea_refcount(1);
    if record.extra_isize() == 0 {
        // There are 32 bits for it, which are not to be taken for a time out of range.
        record.set_atime(Timestamp {
            seconds: i64::from(hash.cast_signed()),
            nanoseconds: 0,
        });
    } else {
        record.set_ea_hash(hash);
    }
    transaction.write_inode(&mut record)
}

/// Adds users to an inode that holds a value.
///
/// # Errors
/// `Corrupt` if it holds none; `Io`.
pub(crate) fn add_users(
    transaction: &mut Transaction<'_>,
    inode: InodeNo,
    more: u64,
) -> Result<()> {
    let instance = transaction.instance;
    change_record(transaction, inode, |record| {
        if !holds_value(record) {
            return Err(instance.damaged(inode, None, NO_VALUE));
        }
        record.set_ea_refcount(record.ea_refcount().saturating_add(more));
        Ok(())
    })
}

/// Makes sure that an inode, which an attribute names, holds a value, all of it mapped: that it
/// can be counted and deleted.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(crate) fn check(instance: &Instance, inode: InodeNo) -> Result<()> {
    let record = instance.read_inode(inode)?;
    if !holds_value(&record) || record.size() > VALUE_MAX as u64 {
        return Err(instance.damaged(inode, None, NO_VALUE));
    }
    runs(instance, &record, |_, _| ())
}

/// Takes one user from the inode that holds a value, and deletes it with the last one. An inode
/// that holds no value is left alone: Linux, too, deletes the attribute then all the same.
///
/// `More`: nothing was counted; the transaction has to end, and the call to be made again.
///
/// # Errors
/// `Corrupt`, `Io`; the transaction must then be dropped.
pub(crate) fn release(
    transaction: &mut Transaction<'_>,
    inode: InodeNo,
    deleted_at: u32,
) -> Result<Progress> {
    let instance = transaction.instance;
    let record = match instance.read_inode(inode) {
        Ok(record) => record,
        Err(Error::Corrupt { .. }) => return Ok(Progress::Done),
        Err(error) => return Err(error),
    };
    if transaction.is_large() {
        return Ok(Progress::More);
    }
    if !holds_value(&record) {
        let _ = instance.damaged(inode, None, NO_VALUE);
        return Ok(Progress::Done);
    }
    let others = record.ea_refcount() > 1
        && change_record(transaction, inode, |record| {
            let others = record.ea_refcount() > 1;
            if others {
                record.set_ea_refcount(record.ea_refcount() - 1);
            }
            Ok(others)
        })?;
    if others {
        return Ok(Progress::Done);
    }
    forget_value(transaction, &record)?;
    let mut cut = Cut::of_value(instance, record)?;
    let progress = remove_blocks(transaction, &mut cut, FileBlock(0))?;
    let mut record = cut.into_record();
    if progress == Progress::More {
        transaction.write_inode(&mut record)?;
        return Ok(Progress::More);
    }
    record.set_ea_refcount(0);
    free_inode(transaction, &mut record, deleted_at)?;
    Ok(Progress::Done)
}

/// What is said of an inode that an attribute names and that is none of its kind.
const NO_VALUE: &str = "an attribute names it, and it holds no value";

fn holds_value(record: &InodeRecord) -> bool {
    record.flags().contains(InodeFlags::EA_INODE)
        && record.kind() == Some(FileKind::Regular)
        && record.links() > 0
        && record.ea_refcount() > 0
}

/// The blocks of a value are metadata: no older copy of them may come back once they are free.
fn forget_value(transaction: &mut Transaction<'_>, record: &InodeRecord) -> Result<()> {
    runs(transaction.instance, record, |start, count| {
        for block in (start.0..).take(count as usize) {
            transaction.forget(BlockNo(block));
        }
    })
}

/// Hands the runs of blocks that a value lies in to `each`.
fn runs(
    instance: &Instance,
    record: &InodeRecord,
    mut each: impl FnMut(BlockNo, u32),
) -> Result<()> {
    let inode = DiskInode {
        number: record.ino(),
        kind: pagefence_vfs::FileKind::Regular,
        seed: record.checksum_seed(),
        record: record.clone(),
    };
    let block_size = u64::from(instance.superblock.block_size());
    let end = u32::try_from(record.size().div_ceil(block_size)).unwrap_or(u32::MAX);
    let mut at = 0;
    while at < end {
        let run = instance.map_blocks(&inode, FileBlock(at))?;
        let len = run.len.clamp(1, end - at);
        if let Target::Written(start) = run.target {
            each(start, len);
        }
        at += len;
    }
    Ok(())
}

/// Changes the record of an inode within its block, in one step.
fn change_record<T>(
    transaction: &mut Transaction<'_>,
    inode: InodeNo,
    edit: impl FnOnce(&mut InodeRecord) -> Result<T>,
) -> Result<T> {
    let instance = transaction.instance;
    let (block, offset) = instance.inode_block(inode)?;
    transaction.change(block, |bytes| {
        let place = bytes.get_mut(offset..).unwrap_or_default();
        let log = &instance.damage;
        let mut record = InodeRecord::parse(place, inode, &instance.superblock).at(
            log,
            Some(inode),
            Some(block),
        )?;
        let result = edit(&mut record)?;
        record.update_checksum();
        record
            .write_to(place)
            .at(log, Some(inode), Some(block))
            .map(|()| result)
    })
}
