//! The checks that a superblock must pass, and the geometry that they yield.

use std::num::NonZeroU32;

use super::{GOOD_OLD_FIRST_INO, GOOD_OLD_INODE_SIZE, RawSuperblock};
use crate::error::Corruption;
use crate::features::{Incompat, RoCompat};
use crate::num::join32;

/// `s_log_block_size` of the largest block, 64 KiB.
const MAX_LOG_BLOCK_SIZE: u32 = 6;
/// `s_log_cluster_size` of the largest cluster, 1 GiB.
const MAX_LOG_CLUSTER_SIZE: u32 = 20;
/// Bytes of a group descriptor without `64bit`.
const MIN_DESC_SIZE: u16 = 32;
/// Least bytes of a group descriptor with `64bit`.
const MIN_DESC_SIZE_64BIT: u16 = 64;
/// Most bytes of a group descriptor: one fits the smallest block.
const MAX_DESC_SIZE: u16 = 1024;
/// Block numbers have 48 bits.
const MAX_BLOCKS: u64 = 1 << 48;

/// Sizes and counts that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) block_size: NonZeroU32,
    pub(super) blocks_per_cluster: NonZeroU32,
    pub(super) blocks_per_group: NonZeroU32,
    pub(super) clusters_per_group: NonZeroU32,
    pub(super) inodes_per_group: NonZeroU32,
    pub(super) inodes_per_block: NonZeroU32,
    pub(super) inode_size: u16,
    pub(super) first_inode: u32,
    pub(super) desc_size: u16,
    pub(super) descs_per_block: NonZeroU32,
    pub(super) blocks_count: u64,
    pub(super) first_data_block: u32,
    pub(super) group_count: u32,
    pub(super) gdt_blocks: u32,
}

impl Geometry {
    /// Every check in the order in which one needs the result of another.
    pub(super) fn validate(
        raw: &RawSuperblock,
        device_len_bytes: Option<u64>,
    ) -> Result<Self, Corruption> {
        check_checksum(raw)?;
        let block_size = block_size(raw)?;
        let blocks_per_cluster = blocks_per_cluster(raw)?;
        let (blocks_per_group, clusters_per_group) =
            group_size(raw, block_size, blocks_per_cluster)?;
        let (inode_size, first_inode) = inode_size(raw, block_size)?;
        let (inodes_per_group, inodes_per_block) = inodes_per_group(raw, block_size, inode_size)?;
        let (desc_size, descs_per_block) = desc_size(raw, block_size)?;
        let blocks_count = blocks_count(raw, block_size, device_len_bytes)?;
        let first_data_block = first_data_block(raw, blocks_count)?;
        let group_count = group_count(
            raw,
            blocks_count,
            first_data_block,
            blocks_per_group,
            inodes_per_group,
        )?;
        let gdt_blocks = group_count.div_ceil(descs_per_block.get());
        let geometry = Self {
            block_size,
            blocks_per_cluster,
            blocks_per_group,
            clusters_per_group,
            inodes_per_group,
            inodes_per_block,
            inode_size,
            first_inode,
            desc_size,
            descs_per_block,
            blocks_count,
            first_data_block,
            group_count,
            gdt_blocks,
        };
        geometry.check_inodes(raw)?;
        geometry.check_descriptor_table(raw)?;
        geometry.check_overhead()?;
        Ok(geometry)
    }

    fn check_inodes(&self, raw: &RawSuperblock) -> Result<(), Corruption> {
        let inodes_count = raw.s_inodes_count.get();
        if self.first_inode < GOOD_OLD_FIRST_INO || self.first_inode > inodes_count {
            return Err(Corruption::FirstInode {
                first_ino: self.first_inode,
                inodes_count,
            });
        }
        Ok(())
    }

    /// Bitmaps and inode tables of all groups must fit into the file system. This also bounds
    /// the number of groups, and so what a mount keeps in memory, by the size of the device.
    fn check_overhead(&self) -> Result<(), Corruption> {
        let table = self
            .inodes_per_group
            .get()
            .div_ceil(self.inodes_per_block.get());
        let per_group = u64::from(table).saturating_add(2);
        let needed = per_group.saturating_mul(u64::from(self.group_count));
        if needed >= self.blocks_count {
            return Err(Corruption::Overhead {
                needed,
                blocks_count: self.blocks_count,
            });
        }
        Ok(())
    }

    fn check_descriptor_table(&self, raw: &RawSuperblock) -> Result<(), Corruption> {
        let gdt_blocks = self.gdt_blocks;
        let reserved_gdt_blocks = raw.s_reserved_gdt_blocks.get();
        // The resize inode maps them through one indirect block.
        if u32::from(reserved_gdt_blocks) > self.block_size.get() / 4 {
            return Err(Corruption::ReservedGdtBlocks {
                reserved_gdt_blocks,
            });
        }
        let meta_bg = raw.features().incompat.contains(Incompat::META_BG);
        let first_meta_bg = raw.s_first_meta_bg.get();
        if meta_bg && first_meta_bg > gdt_blocks {
            return Err(Corruption::FirstMetaBg {
                first_meta_bg,
                gdt_blocks,
            });
        }
        let contiguous = if meta_bg { first_meta_bg } else { gdt_blocks };
        // The superblock's own block, or two with blocks of 1 KiB that start at 0, come first.
        let end = u64::from(contiguous).saturating_add(2);
        if end > self.blocks_count {
            return Err(Corruption::DescriptorTable {
                gdt_blocks,
                blocks_count: self.blocks_count,
            });
        }
        Ok(())
    }
}

fn check_checksum(raw: &RawSuperblock) -> Result<(), Corruption> {
    if !raw.features().ro_compat.contains(RoCompat::METADATA_CSUM) {
        return Ok(());
    }
    if raw.s_checksum_type != 1 {
        return Err(Corruption::ChecksumType {
            checksum_type: raw.s_checksum_type,
        });
    }
    let (stored, computed) = (raw.s_checksum.get(), raw.compute_checksum());
    if stored != computed {
        return Err(Corruption::Checksum {
            what: "superblock",
            stored,
            computed,
        });
    }
    Ok(())
}

fn block_size(raw: &RawSuperblock) -> Result<NonZeroU32, Corruption> {
    let log_block_size = raw.s_log_block_size.get();
    if log_block_size > MAX_LOG_BLOCK_SIZE {
        return Err(Corruption::BlockSize { log_block_size });
    }
    let block_size = 1024_u32
        .checked_shl(log_block_size)
        .and_then(NonZeroU32::new);
    block_size.ok_or(Corruption::BlockSize { log_block_size })
}

fn blocks_per_cluster(raw: &RawSuperblock) -> Result<NonZeroU32, Corruption> {
    let (log_block_size, log_cluster_size) =
        (raw.s_log_block_size.get(), raw.s_log_cluster_size.get());
    let wrong = Corruption::ClusterSize {
        log_cluster_size,
        log_block_size,
    };
    let bigalloc = raw.features().ro_compat.contains(RoCompat::BIGALLOC);
    if log_cluster_size > MAX_LOG_CLUSTER_SIZE || (!bigalloc && log_cluster_size != log_block_size)
    {
        return Err(wrong);
    }
    let bits = log_cluster_size.checked_sub(log_block_size);
    bits.and_then(|bits| 1_u32.checked_shl(bits))
        .and_then(NonZeroU32::new)
        .ok_or(wrong)
}

/// Blocks and clusters per group. The bitmap of a group fills at most one block, in whole bytes.
fn group_size(
    raw: &RawSuperblock,
    block_size: NonZeroU32,
    blocks_per_cluster: NonZeroU32,
) -> Result<(NonZeroU32, NonZeroU32), Corruption> {
    let blocks_per_group = raw.s_blocks_per_group.get();
    let bigalloc = raw.features().ro_compat.contains(RoCompat::BIGALLOC);
    // Without bigalloc the field held fragments once, so blocks are what counts.
    let clusters_per_group = if bigalloc {
        raw.s_clusters_per_group.get()
    } else {
        blocks_per_group
    };
    let wrong = Corruption::BlocksPerGroup {
        blocks_per_group,
        clusters_per_group,
    };
    let fits = clusters_per_group <= block_size.get().saturating_mul(8)
        && clusters_per_group.is_multiple_of(8)
        && clusters_per_group.checked_mul(blocks_per_cluster.get()) == Some(blocks_per_group);
    match (
        NonZeroU32::new(blocks_per_group),
        NonZeroU32::new(clusters_per_group),
    ) {
        (Some(blocks), Some(clusters)) if fits => Ok((blocks, clusters)),
        _ => Err(wrong),
    }
}

fn inode_size(raw: &RawSuperblock, block_size: NonZeroU32) -> Result<(u16, u32), Corruption> {
    if raw.s_rev_level == 0 {
        return Ok((GOOD_OLD_INODE_SIZE, GOOD_OLD_FIRST_INO));
    }
    let inode_size = raw.s_inode_size.get();
    if !inode_size.is_power_of_two()
        || inode_size < GOOD_OLD_INODE_SIZE
        || u32::from(inode_size) > block_size.get()
    {
        return Err(Corruption::InodeRecordSize {
            inode_size,
            block_size: block_size.get(),
        });
    }
    Ok((inode_size, raw.s_first_ino.get()))
}

fn inodes_per_group(
    raw: &RawSuperblock,
    block_size: NonZeroU32,
    inode_size: u16,
) -> Result<(NonZeroU32, NonZeroU32), Corruption> {
    let inodes_per_group = raw.s_inodes_per_group.get();
    let wrong = Corruption::InodesPerGroup { inodes_per_group };
    let per_block = block_size
        .get()
        .checked_div(u32::from(inode_size))
        .and_then(NonZeroU32::new);
    let (Some(per_group), Some(per_block)) = (NonZeroU32::new(inodes_per_group), per_block) else {
        return Err(wrong);
    };
    let fits = per_group >= per_block
        && inodes_per_group.is_multiple_of(8)
        && inodes_per_group <= block_size.get().saturating_mul(8);
    if fits {
        Ok((per_group, per_block))
    } else {
        Err(wrong)
    }
}

fn desc_size(raw: &RawSuperblock, block_size: NonZeroU32) -> Result<(u16, NonZeroU32), Corruption> {
    let wide = raw.features().incompat.contains(Incompat::SIXTY_FOUR_BIT);
    let desc_size = if wide {
        raw.s_desc_size.get()
    } else {
        MIN_DESC_SIZE
    };
    let sizes = MIN_DESC_SIZE_64BIT..=MAX_DESC_SIZE;
    if wide && !(desc_size.is_power_of_two() && sizes.contains(&desc_size)) {
        return Err(Corruption::DescriptorSize { desc_size });
    }
    let per_block = block_size
        .get()
        .checked_div(u32::from(desc_size))
        .and_then(NonZeroU32::new);
    per_block
        .map(|per_block| (desc_size, per_block))
        .ok_or(Corruption::DescriptorSize { desc_size })
}

fn blocks_count(
    raw: &RawSuperblock,
    block_size: NonZeroU32,
    device_len_bytes: Option<u64>,
) -> Result<u64, Corruption> {
    let blocks_count = join32(raw.s_blocks_count_lo.get(), raw.s_blocks_count_hi.get());
    let wide = raw.features().incompat.contains(Incompat::SIXTY_FOUR_BIT);
    let max = if wide {
        MAX_BLOCKS
    } else {
        u64::from(u32::MAX)
    };
    if blocks_count == 0 || blocks_count > max {
        return Err(Corruption::BlocksCount { blocks_count });
    }
    // 2^48 blocks of 2^16 bytes are 2^64 bytes, one too many for the type.
    let needed_bytes = blocks_count
        .checked_mul(u64::from(block_size.get()))
        .ok_or(Corruption::BlocksCount { blocks_count })?;
    match device_len_bytes {
        Some(device_bytes) if device_bytes < needed_bytes => Err(Corruption::ImageTruncated {
            needed_bytes,
            device_bytes,
        }),
        _ => Ok(blocks_count),
    }
}

fn first_data_block(raw: &RawSuperblock, blocks_count: u64) -> Result<u32, Corruption> {
    let first_data_block = raw.s_first_data_block.get();
    // The boot sector's block is outside all groups only where a cluster is 1 KiB.
    let expected = u32::from(raw.s_log_cluster_size == 0);
    if first_data_block != expected {
        return Err(Corruption::FirstDataBlock {
            first_data_block,
            expected,
        });
    }
    if u64::from(first_data_block) >= blocks_count {
        return Err(Corruption::BlocksCount { blocks_count });
    }
    Ok(first_data_block)
}

fn group_count(
    raw: &RawSuperblock,
    blocks_count: u64,
    first_data_block: u32,
    blocks_per_group: NonZeroU32,
    inodes_per_group: NonZeroU32,
) -> Result<u32, Corruption> {
    let in_groups = blocks_count.saturating_sub(u64::from(first_data_block));
    let groups = in_groups.div_ceil(u64::from(blocks_per_group.get()));
    let group_count = u32::try_from(groups).map_err(|_| Corruption::GroupCount { groups })?;
    let inodes_count = raw.s_inodes_count.get();
    if group_count.checked_mul(inodes_per_group.get()) != Some(inodes_count) {
        return Err(Corruption::InodesCount {
            inodes_count,
            groups: group_count,
            inodes_per_group: inodes_per_group.get(),
        });
    }
    Ok(group_count)
}
