//! Blocks taken and given back while fast commits are replayed: then bitmaps do not yet say what
//! is in use, so marking takes what it finds, and allocation keeps off the blocks that the fast
//! commits name.

use std::io;
use std::ops::Range;

use pagefence_ext4_format::group_desc::{GroupDesc, GroupFlags};
use pagefence_ext4_format::{BlockNo, GroupNo, InodeNo, bitmap};
use pagefence_vfs::{Error, Result};

use crate::change::free_blocks::{Piece, pieces, verified_bitmap};
use crate::change::transaction::Transaction;
use crate::error::At;
use crate::instance::Instance;
use crate::system_zones::SystemZones;

/// The blocks of the file system, as the replay sees them.
#[derive(Debug)]
pub(crate) struct Space {
    /// What no file may own.
    zones: SystemZones,
    /// Blocks that are not handed out: ascending, not overlapping.
    excluded: Vec<Range<u64>>,
}

impl Space {
    /// `excluded` are runs that are not handed out, in any order.
    pub(crate) fn new(zones: SystemZones, mut excluded: Vec<Range<u64>>) -> Self {
        excluded.sort_unstable_by_key(|run| run.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(excluded.len());
        for run in excluded {
            match merged.last_mut() {
                Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
                _ => merged.push(run),
            }
        }
        Self {
            zones,
            excluded: merged,
        }
    }

    /// Makes sure that `inode` may own `count` blocks from `start` on.
    pub(crate) fn check(
        &self,
        instance: &Instance,
        inode: InodeNo,
        start: BlockNo,
        count: u32,
    ) -> Result<()> {
        if !instance.limits.contains(start, count) || self.zones.overlap(start, count) {
            let what = "it owns blocks that are not for files";
            return Err(instance.damaged(inode, Some(start), what));
        }
        Ok(())
    }

    /// Marks blocks of `inode` as in use or as free, whatever they were.
    pub(crate) fn mark(
        &self,
        transaction: &mut Transaction<'_>,
        inode: InodeNo,
        start: BlockNo,
        count: u32,
        in_use: bool,
    ) -> Result<()> {
        self.check(transaction.instance, inode, start, count)?;
        for piece in pieces(transaction.instance, inode, start, count)? {
            mark_piece(transaction, &piece, in_use)?;
        }
        Ok(())
    }

    /// Takes a free block, near the group of `goal`.
    ///
    /// # Errors
    /// `Io` of the kind `StorageFull` if there is none.
    pub(crate) fn allocate(
        &self,
        transaction: &mut Transaction<'_>,
        inode: InodeNo,
        goal: BlockNo,
    ) -> Result<BlockNo> {
        let instance = transaction.instance;
        let superblock = &instance.superblock;
        let first = superblock
            .group_of_block(goal)
            .map_or(GroupNo(0), |(group, _)| group);
        let count = superblock.group_count();
        for step in 0..count {
            let group = GroupNo((first.0 + step) % count);
            let desc = instance.group_desc(group)?;
            if desc.free_clusters() == 0 {
                continue;
            }
            let bits = group_bitmap(instance, &desc)?;
            let start = superblock.first_block_of_group(group);
            let end = superblock.blocks_in_group(group);
            let mut from = 0;
            while let Some(bit) = bitmap::next_zero(&bits, from..end) {
                let block = BlockNo(start.0 + u64::from(bit));
                let Some(after) = self.exclusion_after(block) else {
                    self.mark(transaction, inode, block, 1, true)?;
                    return Ok(block);
                };
                from = u32::try_from(after - start.0).unwrap_or(end).max(bit + 1);
            }
        }
        Err(Error::Io(io::Error::new(
            io::ErrorKind::StorageFull,
            "no free block is left to replay the fast commits",
        )))
    }

    /// The end of the excluded run, or one past the block that is not for files, that `block` is
    /// in.
    fn exclusion_after(&self, block: BlockNo) -> Option<u64> {
        let at = self.excluded.partition_point(|run| run.end <= block.0);
        match self.excluded.get(at) {
            Some(run) if run.start <= block.0 => Some(run.end),
            _ if self.zones.overlap(block, 1) => Some(block.0 + 1),
            _ => None,
        }
    }
}

/// The block bitmap of a group: what it would be if it was never written.
fn group_bitmap(instance: &Instance, desc: &GroupDesc) -> Result<Vec<u8>> {
    let superblock = &instance.superblock;
    if !desc.flags(superblock).contains(GroupFlags::BLOCK_UNINIT) {
        return Ok(verified_bitmap(instance, desc)?.to_vec());
    }
    // The groups of a flex group hold each other's metadata.
    let per_flex = superblock.groups_per_flex();
    let first = desc.group().0 / per_flex * per_flex;
    let descs = (first..first.saturating_add(per_flex).min(superblock.group_count()))
        .map(|group| instance.group_desc(GroupNo(group)))
        .collect::<Result<Vec<_>>>()?;
    Ok(bitmap::uninit_block_bitmap(
        desc.group(),
        &descs,
        superblock,
    ))
}

fn mark_piece(transaction: &mut Transaction<'_>, piece: &Piece, in_use: bool) -> Result<()> {
    let instance = transaction.instance;
    let superblock = &instance.superblock;
    let desc = instance.group_desc(piece.group)?;
    let mut bits = group_bitmap(instance, &desc)?;
    let run = piece.first..piece.end;
    let changed = if in_use {
        bitmap::set_range(&mut bits, run)
    } else {
        bitmap::clear_range(&mut bits, run)
    };
    if changed == 0 {
        return Ok(());
    }
    let block = desc.block_bitmap();
    transaction.change_allocation(block, |bytes| {
        bytes.copy_from_slice(&bits);
        Ok(())
    })?;
    verified_mark(instance, block);
    let checksum = bitmap::block_bitmap_checksum(&bits, superblock);
    transaction.change_group(piece.group, |desc| {
        let free = if in_use {
            desc.free_clusters().saturating_sub(changed)
        } else {
            desc.free_clusters().saturating_add(changed)
        };
        desc.set_free_clusters(free);
        desc.set_flags(desc.flags(superblock).difference(GroupFlags::BLOCK_UNINIT));
        if superblock.has_metadata_csum() {
            desc.set_block_bitmap_checksum(checksum);
        }
    })?;
    let changed = i64::from(changed);
    transaction.count_free_blocks(if in_use { -changed } else { changed });
    Ok(())
}

/// What was checked before it was changed need not be checked again.
fn verified_mark(instance: &Instance, block: BlockNo) {
    if let Some(bits) = instance.buffers.peek(block.0) {
        bits.set_verified(crate::change::free_blocks::BLOCK_BITMAP);
    }
}

impl Transaction<'_> {
    /// Marks an inode as in use; does nothing if it is.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn use_inode(&mut self, inode: InodeNo, is_directory: bool) -> Result<()> {
        let instance = self.instance;
        if instance.is_inode_in_use(inode)? {
            return Ok(());
        }
        let superblock = &instance.superblock;
        let place = superblock
            .locate_inode(inode)
            .at(&instance.damage, Some(inode), None)?;
        let desc = instance.group_desc(place.group)?;
        let block = desc.inode_bitmap();
        let never_written = desc.flags(superblock).contains(GroupFlags::INODE_UNINIT);
        let checksum = self.change_allocation(block, |bits| {
            if never_written {
                bits.copy_from_slice(&bitmap::uninit_inode_bitmap(superblock));
            }
            bitmap::set_range(bits, place.index..place.index + 1);
            Ok(bitmap::inode_bitmap_checksum(bits, superblock))
        })?;
        let per_group = superblock.inodes_per_group();
        self.change_group(place.group, |desc| {
            desc.set_free_inodes(desc.free_inodes().saturating_sub(1));
            if is_directory {
                desc.set_used_dirs(desc.used_dirs().saturating_add(1));
            }
            if superblock.has_group_desc_csum() {
                desc.set_flags(desc.flags(superblock).difference(GroupFlags::INODE_UNINIT));
                let unused = per_group.saturating_sub(place.index + 1);
                desc.set_itable_unused(desc.itable_unused().min(unused));
            }
            if superblock.has_metadata_csum() {
                desc.set_inode_bitmap_checksum(checksum);
            }
        })?;
        self.count_free_inodes(-1);
        Ok(())
    }
}
