//! Where things lie: groups, descriptor blocks, backups, inodes.

use std::ops::Range;

use super::{SUPERBLOCK_OFFSET, Superblock};
use crate::error::Corruption;
use crate::features::{Compat, Incompat, RoCompat};
use crate::ids::{BlockNo, GroupNo, InodeNo};
use crate::num::to_usize;

/// Where an inode record lies, before the group's descriptor is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeLocation {
    /// The group.
    pub group: GroupNo,
    /// Which inode of the group, from 0 (also its bit in the inode bitmap).
    pub index: u32,
    /// Block of the record, counted from the start of the group's inode table.
    pub table_block: u32,
    /// Bytes from the start of that block.
    pub offset: usize,
}

/// Byte offsets at which a backup superblock is most likely to lie, if blocks have
/// `block_size` bytes: groups 1, 3, 5, 7, 9, 25, 27 and 49, with groups as large as one bitmap
/// block allows.
#[must_use]
pub fn backup_superblocks(block_size: u32) -> [u64; 8] {
    let block_size = u64::from(block_size);
    let first_data_block = u64::from(block_size == 1024);
    let blocks_per_group = block_size.saturating_mul(8);
    [1_u64, 3, 5, 7, 9, 25, 27, 49].map(|group| {
        let block = group
            .saturating_mul(blocks_per_group)
            .saturating_add(first_data_block);
        block.saturating_mul(block_size)
    })
}

// Sums and products of block and group numbers below can't wrap: both are checked against the
// file system's size, which is below 2^48 blocks and 2^32 groups; where they are written
// `saturating` it only says so without a panic.
impl Superblock {
    /// Bytes of a block: a power of two from 1024 to 65536.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.geometry.block_size.get()
    }

    /// The exponent of the block size, 10 to 16.
    #[must_use]
    pub fn block_size_bits(&self) -> u32 {
        self.geometry.block_size.trailing_zeros()
    }

    /// Blocks of a cluster: a power of two, 1 without `bigalloc`.
    #[must_use]
    pub fn blocks_per_cluster(&self) -> u32 {
        self.geometry.blocks_per_cluster.get()
    }

    /// Bytes of a cluster, up to 1 GiB.
    #[must_use]
    pub fn cluster_size(&self) -> u32 {
        self.block_size().saturating_mul(self.blocks_per_cluster())
    }

    /// Blocks of the file system.
    #[must_use]
    pub fn blocks_count(&self) -> u64 {
        self.geometry.blocks_count
    }

    /// First block of group 0.
    #[must_use]
    pub fn first_data_block(&self) -> BlockNo {
        BlockNo(u64::from(self.geometry.first_data_block))
    }

    /// Blocks of a group; the last one may have fewer.
    #[must_use]
    pub fn blocks_per_group(&self) -> u32 {
        self.geometry.blocks_per_group.get()
    }

    /// Clusters of a group, which are the bits of its block bitmap.
    #[must_use]
    pub fn clusters_per_group(&self) -> u32 {
        self.geometry.clusters_per_group.get()
    }

    /// Inodes of a group, which are the bits of its inode bitmap.
    #[must_use]
    pub fn inodes_per_group(&self) -> u32 {
        self.geometry.inodes_per_group.get()
    }

    /// Inodes of the file system.
    #[must_use]
    pub fn inodes_count(&self) -> u32 {
        self.raw.s_inodes_count.get()
    }

    /// First inode for files.
    #[must_use]
    pub fn first_inode(&self) -> InodeNo {
        InodeNo(self.geometry.first_inode)
    }

    /// Bytes of an inode record: a power of two from 128 to the block size.
    #[must_use]
    pub fn inode_size(&self) -> usize {
        usize::from(self.geometry.inode_size)
    }

    /// Blocks of a group's inode table.
    #[must_use]
    pub fn inode_table_blocks(&self) -> u32 {
        self.geometry
            .inodes_per_group
            .get()
            .div_ceil(self.geometry.inodes_per_block.get())
    }

    /// Bytes of a group descriptor: 32, or with `64bit` a power of two from 64 to 1024.
    #[must_use]
    pub fn desc_size(&self) -> usize {
        usize::from(self.geometry.desc_size)
    }

    /// Group descriptors in a block.
    #[must_use]
    pub fn descriptors_per_block(&self) -> u32 {
        self.geometry.descs_per_block.get()
    }

    /// Blocks of group descriptors.
    #[must_use]
    pub fn descriptor_blocks(&self) -> u32 {
        self.geometry.gdt_blocks
    }

    /// Groups, at least one.
    #[must_use]
    pub fn group_count(&self) -> u32 {
        self.geometry.group_count
    }

    /// All groups.
    pub fn groups(&self) -> impl DoubleEndedIterator<Item = GroupNo> + use<> {
        (0..self.group_count()).map(GroupNo)
    }

    /// Groups of a flex group: a power of two, 1 without `flex_bg`.
    #[must_use]
    pub fn groups_per_flex(&self) -> u32 {
        let log = u32::from(self.raw.s_log_groups_per_flex);
        if self.has_incompat(Incompat::FLEX_BG) {
            1_u32.checked_shl(log).unwrap_or(1)
        } else {
            1
        }
    }

    /// Whether there is such a block in a group (the boot block of 1 KiB file systems is in
    /// none).
    #[must_use]
    pub fn contains_block(&self, block: BlockNo) -> bool {
        (self.first_data_block().0..self.blocks_count()).contains(&block.0)
    }

    /// First block of a group.
    #[must_use]
    pub fn first_block_of_group(&self, group: GroupNo) -> BlockNo {
        let offset = u64::from(group.0).saturating_mul(u64::from(self.blocks_per_group()));
        BlockNo(self.first_data_block().0.saturating_add(offset))
    }

    /// Blocks of this group; 0 past the last group.
    #[must_use]
    pub fn blocks_in_group(&self, group: GroupNo) -> u32 {
        let left = self
            .blocks_count()
            .saturating_sub(self.first_block_of_group(group).0);
        u32::try_from(left)
            .unwrap_or(u32::MAX)
            .min(self.blocks_per_group())
    }

    /// Clusters of this group, the last one perhaps not whole.
    #[must_use]
    pub fn clusters_in_group(&self, group: GroupNo) -> u32 {
        self.blocks_in_group(group)
            .div_ceil(self.blocks_per_cluster())
    }

    /// The group of a block, and which block of the group it is.
    ///
    /// # Errors
    /// [`Corruption::NumberRange`] if it is in no group.
    pub fn group_of_block(&self, block: BlockNo) -> Result<(GroupNo, u32), Corruption> {
        if !self.contains_block(block) {
            return Err(Corruption::NumberRange {
                what: "block",
                number: block.0,
                count: self.blocks_count(),
            });
        }
        let per_group = u64::from(self.blocks_per_group());
        let offset = block.0.saturating_sub(self.first_data_block().0);
        let split = offset
            .checked_div(per_group)
            .zip(offset.checked_rem(per_group));
        let group = split.and_then(|(group, index)| {
            Some((
                GroupNo(u32::try_from(group).ok()?),
                u32::try_from(index).ok()?,
            ))
        });
        group.ok_or(Corruption::NumberRange {
            what: "block",
            number: block.0,
            count: self.blocks_count(),
        })
    }

    /// Where an inode's record lies.
    ///
    /// # Errors
    /// [`Corruption::NumberRange`] if there is no such inode.
    pub fn locate_inode(&self, ino: InodeNo) -> Result<InodeLocation, Corruption> {
        let out_of_range = Corruption::NumberRange {
            what: "inode",
            number: u64::from(ino.0),
            count: u64::from(self.inodes_count()),
        };
        let from_zero = match ino.0.checked_sub(1) {
            Some(from_zero) if ino.0 <= self.inodes_count() => from_zero,
            _ => return Err(out_of_range),
        };
        let geometry = &self.geometry;
        let index = from_zero % geometry.inodes_per_group;
        let in_block = to_usize(index % geometry.inodes_per_block);
        Ok(InodeLocation {
            group: GroupNo(from_zero / geometry.inodes_per_group),
            index,
            table_block: index / geometry.inodes_per_block,
            offset: in_block.saturating_mul(self.inode_size()),
        })
    }

    /// The inode of this index in a group; nothing if there is none.
    #[must_use]
    pub fn inode_of_group(&self, group: GroupNo, index: u32) -> Option<InodeNo> {
        if group.0 >= self.group_count() || index >= self.inodes_per_group() {
            return None;
        }
        group
            .0
            .checked_mul(self.inodes_per_group())?
            .checked_add(index)?
            .checked_add(1)
            .map(InodeNo)
    }

    /// Whether this group holds the superblock or a backup of it.
    #[must_use]
    pub fn has_super(&self, group: GroupNo) -> bool {
        if group.0 == 0 {
            return true;
        }
        if self.has_compat(Compat::SPARSE_SUPER2) {
            return self
                .raw
                .s_backup_bgs
                .iter()
                .any(|backup| backup.get() == group.0);
        }
        if group.0 == 1 || !self.has_ro_compat(RoCompat::SPARSE_SUPER) {
            return true;
        }
        [3, 5, 7].into_iter().any(|base| is_power_of(group.0, base))
    }

    /// The superblock's copies other than the first one, each in bytes from the start of the
    /// device.
    pub fn backup_superblock_offsets(&self) -> impl Iterator<Item = (GroupNo, u64)> + '_ {
        self.groups()
            .skip(1)
            .filter(|group| self.has_super(*group))
            .map(|group| {
                (
                    group,
                    self.first_block_of_group(group)
                        .0
                        .saturating_mul(u64::from(self.block_size())),
                )
            })
    }

    /// The block of the superblock itself: 1 with blocks of 1 KiB, else 0.
    #[must_use]
    pub fn superblock_block(&self) -> BlockNo {
        BlockNo(
            SUPERBLOCK_OFFSET
                .checked_div(u64::from(self.block_size()))
                .unwrap_or(0),
        )
    }

    /// Where the block `index` of the group descriptors lies.
    ///
    /// # Errors
    /// [`Corruption::NumberRange`] if there is no such block, or its place is past the end.
    pub fn descriptor_block(&self, index: u32) -> Result<BlockNo, Corruption> {
        let block = if self.is_spread(self.checked_descriptor_index(index)?) {
            let group = GroupNo(index.saturating_mul(self.descriptors_per_block()));
            self.spread_descriptor_block(group)
        } else {
            let offset = u64::from(index).saturating_add(1);
            BlockNo(self.superblock_block().0.saturating_add(offset))
        };
        if self.contains_block(block) {
            return Ok(block);
        }
        let (number, count) = (block.0, self.blocks_count());
        Err(Corruption::NumberRange {
            what: "block of group descriptors",
            number,
            count,
        })
    }

    /// Where the copies of block `index` of the group descriptors lie.
    ///
    /// # Errors
    /// [`Corruption::NumberRange`] if there is no such block.
    pub fn backup_descriptor_blocks(&self, index: u32) -> Result<Vec<BlockNo>, Corruption> {
        if !self.is_spread(self.checked_descriptor_index(index)?) {
            let offset = u64::from(index).saturating_add(1);
            let backups = self.groups().skip(1).filter(|group| self.has_super(*group));
            let blocks =
                backups.map(|group| self.first_block_of_group(group).0.saturating_add(offset));
            return Ok(blocks
                .map(BlockNo)
                .filter(|block| self.contains_block(*block))
                .collect());
        }
        // The second and the last group of a meta group repeat what the first one holds.
        let per_block = self.descriptors_per_block();
        let first = index.saturating_mul(per_block);
        let (second, last) = (
            first.saturating_add(1),
            first.saturating_add(per_block.saturating_sub(1)),
        );
        let groups = [second, last]
            .into_iter()
            .filter(|group| *group < self.group_count());
        let blocks = groups.map(|group| self.spread_descriptor_block(GroupNo(group)));
        Ok(blocks.filter(|block| self.contains_block(*block)).collect())
    }

    /// Which descriptor block a group's descriptor is in, and its offset there in bytes.
    ///
    /// # Errors
    /// [`Corruption::NumberRange`] if there is no such group.
    pub fn locate_descriptor(&self, group: GroupNo) -> Result<(u32, usize), Corruption> {
        if group.0 >= self.group_count() {
            let (number, count) = (u64::from(group.0), u64::from(self.group_count()));
            return Err(Corruption::NumberRange {
                what: "group",
                number,
                count,
            });
        }
        let per_block = self.geometry.descs_per_block;
        let slot = to_usize(group.0 % per_block);
        Ok((group.0 / per_block, slot.saturating_mul(self.desc_size())))
    }

    /// The blocks at the start of a group that hold the superblock, its descriptors and the
    /// room in which they can grow; empty in most groups.
    #[must_use]
    pub fn base_metadata(&self, group: GroupNo) -> Range<BlockNo> {
        let first = self.first_block_of_group(group);
        let has_super = self.has_super(group);
        let spread = self.is_spread(group.0 / self.geometry.descs_per_block);
        let descriptors = match (spread, has_super) {
            (true, _) => u32::from(self.repeats_descriptors(group)),
            (false, true) => self
                .contiguous_descriptor_blocks()
                .saturating_add(u32::from(self.raw.s_reserved_gdt_blocks.get())),
            (false, false) => 0,
        };
        // With blocks of 1 KiB in larger clusters, group 0 starts with the boot block.
        let boot = u32::from(group.0 == 0 && self.superblock_block() > first);
        let blocks = u32::from(has_super)
            .saturating_add(descriptors)
            .saturating_add(boot);
        let blocks = u64::from(blocks.min(self.blocks_in_group(group)));
        first..BlockNo(first.0.saturating_add(blocks))
    }

    /// The end of [`Self::base_metadata`] that is kept free for descriptors to come; empty in
    /// most groups.
    #[must_use]
    pub fn reserved_descriptor_blocks(&self, group: GroupNo) -> Range<BlockNo> {
        let base = self.base_metadata(group);
        let spread = self.is_spread(group.0 / self.geometry.descs_per_block);
        let here = !spread && self.has_super(group);
        let reserved = if here {
            u64::from(self.raw.s_reserved_gdt_blocks.get())
        } else {
            0
        };
        BlockNo(base.end.0.saturating_sub(reserved).max(base.start.0))..base.end
    }

    /// Descriptor blocks that follow the superblock one after the other.
    #[must_use]
    pub fn contiguous_descriptor_blocks(&self) -> u32 {
        if self.has_incompat(Incompat::META_BG) {
            self.raw.s_first_meta_bg.get().min(self.descriptor_blocks())
        } else {
            self.descriptor_blocks()
        }
    }

    fn checked_descriptor_index(&self, index: u32) -> Result<u32, Corruption> {
        if index < self.descriptor_blocks() {
            return Ok(index);
        }
        let (number, count) = (u64::from(index), u64::from(self.descriptor_blocks()));
        Err(Corruption::NumberRange {
            what: "group descriptor block",
            number,
            count,
        })
    }

    /// Whether this descriptor block lies in its own meta group.
    fn is_spread(&self, index: u32) -> bool {
        self.has_incompat(Incompat::META_BG) && index >= self.raw.s_first_meta_bg.get()
    }

    /// Whether this group of a meta group holds its descriptors: the first, second and last do.
    fn repeats_descriptors(&self, group: GroupNo) -> bool {
        let per_block = self.geometry.descs_per_block;
        let slot = group.0 % per_block;
        slot <= 1 || slot == per_block.get().saturating_sub(1)
    }

    fn spread_descriptor_block(&self, group: GroupNo) -> BlockNo {
        let first = self.first_block_of_group(group);
        let start = if group.0 == 0 {
            first.max(self.superblock_block())
        } else {
            first
        };
        BlockNo(start.0.saturating_add(u64::from(self.has_super(group))))
    }
}

fn is_power_of(number: u32, base: u32) -> bool {
    let mut power = base;
    while power < number {
        match power.checked_mul(base) {
            Some(next) => power = next,
            None => return false,
        }
    }
    power == number
}
