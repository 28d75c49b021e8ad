//! Giving an inode back: bitmap, descriptor and counts.

use pagefence_ext4_format::group_desc::GroupFlags;
use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord};
use pagefence_ext4_format::{InodeNo, bitmap};
use pagefence_vfs::Result;

use crate::change::transaction::Transaction;
use crate::error::At;
use crate::instance::Instance;

/// Buffers that passed the check of inode bitmaps remember it so.
const INODE_BITMAP: u32 = 1 << 9;

impl Instance {
    /// Whether an inode is marked as in use.
    ///
    /// # Errors
    /// `Corrupt` if there is no such inode, or the bitmap is damaged; `Io`.
    pub(crate) fn is_inode_in_use(&self, inode: InodeNo) -> Result<bool> {
        let place = self
            .superblock
            .locate_inode(inode)
            .at(&self.damage, Some(inode), None)?;
        let desc = self.group_desc(place.group)?;
        if desc
            .flags(&self.superblock)
            .contains(GroupFlags::INODE_UNINIT)
        {
            return Ok(false);
        }
        let block = desc.inode_bitmap();
        let bits = self.read_block(block)?;
        if !bits.verified(INODE_BITMAP) {
            bitmap::verify_inode_bitmap(&bits, &desc, &self.superblock).at(
                &self.damage,
                None,
                Some(block),
            )?;
            bits.set_verified(INODE_BITMAP);
        }
        Ok(bitmap::test(&bits, place.index))
    }
}

/// Frees the inode of `record`, which owns no blocks any more and has no links: from now on it
/// can be used again. The record says when it was deleted (`deleted_at`, seconds since the epoch),
/// and is written.
///
/// # Errors
/// `Corrupt`, and then nothing was freed, if it is free already; `Io`.
pub(crate) fn free_inode(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    deleted_at: u32,
) -> Result<()> {
    let instance = transaction.instance;
    let superblock = &instance.superblock;
    let inode = record.ino();
    let is_directory = record.kind() == Some(FileKind::Directory);
    if let Some((allocator, handle)) = transaction.allocation() {
        allocator.free_inode(instance, handle, inode, is_directory)?;
        return write_deleted(transaction, record, deleted_at);
    }
    if !instance.is_inode_in_use(inode)? {
        return Err(instance.damaged(inode, None, "it is to be freed, and is free"));
    }
    let place = superblock
        .locate_inode(inode)
        .at(&instance.damage, Some(inode), None)?;
    let block = instance.group_desc(place.group)?.inode_bitmap();
    let checksum = transaction.change_allocation(block, |bits| {
        bitmap::clear_range(bits, place.index..place.index + 1);
        Ok(bitmap::inode_bitmap_checksum(bits, superblock))
    })?;
    if let Some(bits) = instance.buffers.peek(block.0) {
        bits.set_verified(INODE_BITMAP);
    }
    transaction.change_group(place.group, |desc| {
        desc.set_free_inodes(desc.free_inodes().saturating_add(1));
        if is_directory {
            desc.set_used_dirs(desc.used_dirs().saturating_sub(1));
        }
        if superblock.has_metadata_csum() {
            desc.set_inode_bitmap_checksum(checksum);
        }
    })?;
    transaction.count_free_inodes(1);
    write_deleted(transaction, record, deleted_at)
}

fn write_deleted(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    deleted_at: u32,
) -> Result<()> {
    record.set_size(0);
    record.set_links(0);
    record.set_dtime(deleted_at);
    transaction.write_inode(record)
}
