//! Giving back what the extended attributes of a deleted inode hold: its attribute block, which
//! others may share, and the inodes that hold large values.
//!
//! An entry whose value's inode was released says so at once (it gets an empty value), so that a
//! release that was cut off goes on where it was and counts no user twice.

use std::mem::{offset_of, size_of};

use pagefence_block_io::Buffer;
use pagefence_ext4_format::inode::Inode as InodeRecord;
use pagefence_ext4_format::xattr::{
    self, RawXattrEntry, RawXattrHeader, RawXattrInodeHeader, Value, XattrLimits, Xattrs,
};
use pagefence_ext4_format::{BlockNo, InodeNo};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::Result;

use crate::alloc::BlockOwner;
use crate::change::ea_inode;
use crate::change::free_blocks::free_blocks;
use crate::change::remove_blocks::Progress;
use crate::change::transaction::Transaction;
use crate::error::At;

/// Bytes before the entries of an attribute block.
const BLOCK_START: usize = size_of::<RawXattrHeader>();
/// Bytes before the entries in an inode.
const INODE_START: usize = size_of::<RawXattrInodeHeader>();

/// Releases the attributes of a deleted inode. `record` changes along; the caller writes it.
///
/// # Errors
/// `Corrupt`, `Io`; the transaction must then be dropped.
pub(crate) fn release_xattrs(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    deleted_at: u32,
) -> Result<Progress> {
    let instance = transaction.instance;
    let inode = record.ino();
    let limits = XattrLimits::from(&instance.superblock);
    // Those in the inode come first.
    while let Some((place, value)) = match record.xattr_region() {
        Some(region) => Xattrs::in_inode(region, &limits)
            .at(&instance.damage, Some(inode), None)?
            .and_then(|xattrs| first_in_inode(region, &xattrs, INODE_START)),
        None => None,
    } {
        match ea_inode::release(transaction, value, deleted_at)? {
            Progress::Done => {
                if let Some(region) = record.xattr_region_mut() {
                    empty_value(region, place);
                }
            }
            Progress::More => return Ok(Progress::More),
        }
    }
    let Some(block) = record.file_acl() else {
        return Ok(Progress::Done);
    };
    let mut buffer = checked_block(transaction, inode, block)?;
    let users = xattr::refcount(&buffer).at(&instance.damage, Some(inode), Some(block))?;
    if users <= 1 || !give_up_share(transaction, inode, block)? {
        while let Some((place, value)) = {
            let xattrs = Xattrs::in_block(&buffer, &limits).at(
                &instance.damage,
                Some(inode),
                Some(block),
            )?;
            first_in_inode(&buffer, &xattrs, BLOCK_START)
        } {
            match ea_inode::release(transaction, value, deleted_at)? {
                Progress::Done => change_block(transaction, inode, block, |bytes| {
                    empty_value(bytes, place);
                })?,
                Progress::More => return Ok(Progress::More),
            }
            buffer = instance.read_block(block)?;
        }
        free_attributes(transaction, inode, block)?;
    }
    record.set_file_acl(None);
    let sectors = u64::from(instance.superblock.block_size() / 512);
    record
        .set_sectors(record.sectors().saturating_sub(sectors))
        .at(&instance.damage, Some(inode), None)?;
    Ok(Progress::Done)
}

fn checked_block(
    transaction: &Transaction<'_>,
    inode: InodeNo,
    block: BlockNo,
) -> Result<Arc<Buffer>> {
    let instance = transaction.instance;
    let buffer = instance.read_owned(BlockOwner::Attributes(inode), block)?;
    if instance.checksums {
        xattr::verify_checksum(&buffer, block, instance.seed).at(
            &instance.damage,
            Some(inode),
            Some(block),
        )?;
    }
    Ok(buffer)
}

/// Takes one user from an attribute block; false, and nothing changed, if it was the only one.
/// Users of one block come and go at the same time: this counts in one step.
pub(crate) fn give_up_share(
    transaction: &mut Transaction<'_>,
    inode: InodeNo,
    block: BlockNo,
) -> Result<bool> {
    let instance = transaction.instance;
    transaction.change(block, |bytes| {
        let place = (Some(inode), Some(block));
        let users = xattr::refcount(bytes).at(&instance.damage, place.0, place.1)?;
        if users <= 1 {
            return Ok(false);
        }
        put(bytes, offset_of!(RawXattrHeader, h_refcount), users - 1);
        if instance.checksums {
            xattr::update_checksum(bytes, block, instance.seed).at(
                &instance.damage,
                place.0,
                place.1,
            )?;
        }
        Ok(true)
    })
}

/// Frees a block of attributes whose only user is `inode`.
///
/// # Errors
/// As [`free_blocks`].
pub(crate) fn free_attributes(
    transaction: &mut Transaction<'_>,
    inode: InodeNo,
    block: BlockNo,
) -> Result<()> {
    free_blocks(transaction, BlockOwner::Attributes(inode), block, 1)?;
    transaction.forget(block);
    Ok(())
}

fn change_block(
    transaction: &mut Transaction<'_>,
    inode: InodeNo,
    block: BlockNo,
    edit: impl FnOnce(&mut [u8]),
) -> Result<()> {
    let instance = transaction.instance;
    transaction.change(block, |bytes| {
        edit(bytes);
        if instance.checksums {
            xattr::update_checksum(bytes, block, instance.seed).at(
                &instance.damage,
                Some(inode),
                Some(block),
            )?;
        }
        Ok(())
    })
}

/// The first entry whose value is in an inode of its own: where the entry is, and the inode.
/// `xattrs` are the entries of `bytes`, which begin at `start`.
fn first_in_inode(bytes: &[u8], xattrs: &Xattrs<'_>, start: usize) -> Option<(usize, InodeNo)> {
    let mut place = start;
    for entry in xattrs.entries() {
        if let Value::Inode { inode, .. } = entry.value {
            debug_assert!(place + size_of::<RawXattrEntry>() <= bytes.len());
            return Some((place, inode));
        }
        place += xattr::entry_len(entry.name.len());
    }
    None
}

/// Makes the value of the entry at `place` an empty one.
fn empty_value(bytes: &mut [u8], place: usize) {
    put(bytes, place + offset_of!(RawXattrEntry, e_value_inum), 0);
    put(bytes, place + offset_of!(RawXattrEntry, e_value_size), 0);
}

fn put(bytes: &mut [u8], at: usize, word: u32) {
    if let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *field = word.to_le_bytes();
    }
}
