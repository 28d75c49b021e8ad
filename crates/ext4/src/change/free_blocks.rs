//! Giving blocks back: bitmap, descriptor and counts change together, or not at all.

use pagefence_block_io::Buffer;
use pagefence_ext4_format::group_desc::{GroupDesc, GroupFlags};
use pagefence_ext4_format::{BlockNo, GroupNo, InodeNo, bitmap};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::Result;

use crate::alloc::BlockOwner;
use crate::change::transaction::Transaction;
use crate::error::At;
use crate::instance::Instance;

/// Buffers that passed the check of block bitmaps remember it so.
pub(crate) const BLOCK_BITMAP: u32 = 1 << 8;

/// Frees `count` blocks from `start` on, which `owner` has.
///
/// # Errors
/// `Corrupt`, and then nothing was freed, if the blocks are not all there, one belongs to the file
/// system itself, or one is free already; `Io`.
pub(crate) fn free_blocks(
    transaction: &mut Transaction<'_>,
    owner: BlockOwner,
    start: BlockNo,
    count: u32,
) -> Result<()> {
    let instance = transaction.instance;
    if let Some((allocator, handle)) = transaction.allocation() {
        return allocator.free(instance, handle, owner, start, count);
    }
    let inode = owner.inode();
    let refuse = |what: &str| Err(instance.damaged(inode, Some(start), what));
    if !instance.limits.contains(start, count) {
        return refuse("it owns blocks outside the file system");
    }
    transaction.check_owned(inode, start, count)?;
    if instance.superblock.blocks_per_cluster() != 1 {
        return refuse("its blocks are freed by clusters only");
    }
    let pieces = pieces(instance, inode, start, count)?;
    for piece in &pieces {
        check(transaction, inode, piece)?;
    }
    for piece in &pieces {
        free(transaction, piece)?;
    }
    transaction.count_free_blocks(i64::from(count));
    Ok(())
}

/// The part of a run that lies in one group.
pub(crate) struct Piece {
    pub(crate) group: GroupNo,
    /// Blocks of the group.
    pub(crate) first: u32,
    pub(crate) end: u32,
}

/// A run, cut where groups begin.
pub(crate) fn pieces(
    instance: &Instance,
    inode: InodeNo,
    start: BlockNo,
    count: u32,
) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut at = start;
    let mut left = count;
    while left > 0 {
        let (group, first) =
            instance
                .superblock
                .group_of_block(at)
                .at(&instance.damage, Some(inode), Some(at))?;
        let room = instance.superblock.blocks_in_group(group) - first;
        let here = left.min(room);
        pieces.push(Piece {
            group,
            first,
            end: first + here,
        });
        left -= here;
        at = BlockNo(at.0 + u64::from(here));
    }
    Ok(pieces)
}

/// The block bitmap that `desc` names, checked once while it is in memory.
pub(crate) fn verified_bitmap(instance: &Instance, desc: &GroupDesc) -> Result<Arc<Buffer>> {
    let block = desc.block_bitmap();
    let bits = instance.read_block(block)?;
    if !bits.verified(BLOCK_BITMAP) {
        bitmap::verify_block_bitmap(&bits, desc, &instance.superblock).at(
            &instance.damage,
            None,
            Some(block),
        )?;
        bits.set_verified(BLOCK_BITMAP);
    }
    Ok(bits)
}

/// Makes sure that the whole piece is in use.
fn check(transaction: &Transaction<'_>, inode: InodeNo, piece: &Piece) -> Result<()> {
    let instance = transaction.instance;
    let superblock = &instance.superblock;
    let desc = instance.group_desc(piece.group)?;
    let free_already = |bit: u32| {
        let first = superblock.first_block_of_group(piece.group);
        let at = first.checked_add(u64::from(bit));
        Err(instance.damaged(inode, at, "it owns a block that is free"))
    };
    if desc.flags(superblock).contains(GroupFlags::BLOCK_UNINIT) {
        return free_already(piece.first);
    }
    let bits = verified_bitmap(instance, &desc)?;
    match bitmap::next_zero(&bits, piece.first..piece.end) {
        Some(bit) => free_already(bit),
        None => Ok(()),
    }
}

fn free(transaction: &mut Transaction<'_>, piece: &Piece) -> Result<()> {
    let instance = transaction.instance;
    let superblock = &instance.superblock;
    let block = instance.group_desc(piece.group)?.block_bitmap();
    let (freed, checksum) = transaction.change_allocation(block, |bits| {
        let freed = bitmap::clear_range(bits, piece.first..piece.end);
        Ok((freed, bitmap::block_bitmap_checksum(bits, superblock)))
    })?;
    // It was checked before the change, and the change keeps it sound.
    if let Some(bits) = instance.buffers.peek(block.0) {
        bits.set_verified(BLOCK_BITMAP);
    }
    transaction.change_group(piece.group, |desc| {
        desc.set_free_clusters(desc.free_clusters().saturating_add(freed));
        if superblock.has_metadata_csum() {
            desc.set_block_bitmap_checksum(checksum);
        }
    })
}
