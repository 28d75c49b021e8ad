//! How a device is cut into groups, blocks and inodes. The rules and roundings are those of
//! mke2fs, so that both make file systems of the same size with the same number of inodes.

use std::ops::Range;

use pagefence_ext4_format::features::{Compat, Features, Incompat, RoCompat};
use pagefence_ext4_format::superblock::{GOOD_OLD_FIRST_INO, GOOD_OLD_INODE_SIZE};

use super::Parameters;
use super::error::MkfsError;

const MIB: u64 = 1 << 20;
/// Block numbers have 48 bits with `64bit`.
const MOST_BLOCKS_64BIT: u64 = 1 << 48;
/// The sizes of file systems, and of blocks and bytes per inode in them; the last has no end.
const USAGES: [(Range<u64>, u32, u64); 5] = [
    (0..3 * MIB, 1024, 8192),
    (3 * MIB..512 * MIB, 1024, 4096),
    (512 * MIB..4 * MIB * MIB, 4096, 16384),
    (4 * MIB * MIB..16 * MIB * MIB, 4096, 32768),
    (16 * MIB * MIB..u64::MAX, 4096, 65536),
];
/// The reserved inodes, `lost+found`, and one more.
const FEWEST_INODES: u64 = GOOD_OLD_FIRST_INO as u64 + 1;
/// Free blocks that the last group must have beyond its own metadata to be worth making.
const LAST_GROUP_SPARE_BLOCKS: u64 = 50;
/// Blocks a group must keep for mke2fs to make it smaller when inodes do not fit.
const SMALLEST_GROUP_BLOCKS: u32 = 256;

/// Sizes and counts of a file system to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// As asked for, but `meta_bg` in place of `resize_inode` where the descriptors are too many.
    pub(super) features: Features,
    pub(super) block_size: u32,
    pub(super) inode_size: u16,
    pub(super) blocks_count: u64,
    pub(super) reserved_blocks: u64,
    pub(super) first_data_block: u32,
    pub(super) blocks_per_group: u32,
    pub(super) group_count: u32,
    pub(super) inodes_per_group: u32,
    pub(super) inode_table_blocks: u32,
    pub(super) desc_size: u16,
    pub(super) reserved_gdt_blocks: u16,
    /// Groups with a backup, with `sparse_super2`.
    pub(super) backup_groups: [u32; 2],
}

impl Geometry {
    /// Cuts a device of `size_bytes`.
    pub(super) fn plan(
        parameters: &Parameters,
        features: Features,
        size_bytes: u64,
    ) -> Result<Self, MkfsError> {
        let usage = USAGES
            .iter()
            .find(|(range, ..)| range.contains(&size_bytes));
        let (_, usual_block_size, usual_ratio) = usage.unwrap_or(&USAGES[4]);
        let block_size = parameters.block_size.unwrap_or(*usual_block_size);
        if ![1024, 2048, 4096].contains(&block_size) {
            return Err(MkfsError::BlockSize { block_size });
        }
        let inode_size = checked_inode_size(parameters.inode_size, block_size, features)?;
        let ratio = u64::from(block_size).max(*usual_ratio);
        // Whole pages of 4 KiB, so that the last page of the device is either all in or out.
        let asked_blocks = size_bytes / 4096 * 4096 / u64::from(block_size);
        let most = if features.incompat.contains(Incompat::SIXTY_FOUR_BIT) {
            MOST_BLOCKS_64BIT
        } else {
            u64::from(u32::MAX)
        };
        if asked_blocks > most {
            return Err(MkfsError::TooLarge {
                blocks: asked_blocks,
                block_size,
                most,
            });
        }
        let asked_inodes = asked_blocks * u64::from(block_size) / ratio;
        let asked = Asked {
            features,
            block_size,
            inode_size,
            blocks: asked_blocks,
            inodes: parameters.inodes.map_or(asked_inodes, u64::from),
            size_bytes,
        };
        asked.check_inodes()?;
        let mut geometry = asked.fit()?;
        if parameters.reserved_percent > 50 {
            return Err(MkfsError::Reserved {
                percent: parameters.reserved_percent,
            });
        }
        let share = u128::from(geometry.blocks_count) * u128::from(parameters.reserved_percent);
        geometry.reserved_blocks = (share / 100) as u64;
        geometry.backup_groups = geometry.sparse_super2_backups();
        Ok(geometry)
    }

    fn sparse_super2_backups(&self) -> [u32; 2] {
        let last = self.group_count - 1;
        match (self.features.compat.contains(Compat::SPARSE_SUPER2), last) {
            (false, _) | (true, 0) => [0, 0],
            // One backup; mke2fs keeps the numbers in order.
            (true, 1) => [0, 1],
            (true, _) => [1, last],
        }
    }
}

/// Inodes of at least 256 bytes unless asked otherwise, as large as the features need.
fn checked_inode_size(
    asked: Option<u16>,
    block_size: u32,
    features: Features,
) -> Result<u16, MkfsError> {
    let inode_size = asked.unwrap_or(256);
    if !inode_size.is_power_of_two()
        || inode_size < GOOD_OLD_INODE_SIZE
        || u32::from(inode_size) > block_size
    {
        return Err(MkfsError::InodeSize {
            inode_size,
            block_size,
        });
    }
    let needs_room = [
        (features.ro_compat.contains(RoCompat::PROJECT), "project"),
        (
            features.incompat.contains(Incompat::INLINE_DATA),
            "inline_data",
        ),
    ];
    for (is_there, name) in needs_room {
        if is_there && inode_size == GOOD_OLD_INODE_SIZE {
            let needs = "inodes of 256 bytes or more";
            return Err(MkfsError::FeatureNeeds { name, needs });
        }
    }
    Ok(inode_size)
}

/// What the geometry starts from.
struct Asked {
    features: Features,
    block_size: u32,
    inode_size: u16,
    blocks: u64,
    inodes: u64,
    size_bytes: u64,
}

impl Asked {
    fn check_inodes(&self) -> Result<(), MkfsError> {
        let tables = self.inodes.saturating_mul(self.inode_size.into());
        if self.inodes > 0 && tables >= self.blocks * u64::from(self.block_size) {
            return Err(self.too_many_inodes());
        }
        Ok(())
    }

    fn too_many_inodes(&self) -> MkfsError {
        MkfsError::TooManyInodes {
            inodes: self.inodes,
            blocks: self.blocks,
            block_size: self.block_size,
        }
    }

    fn too_small(&self, needed_blocks: u64) -> MkfsError {
        MkfsError::TooSmall {
            size_bytes: self.size_bytes,
            needed_bytes: needed_blocks.saturating_mul(self.block_size.into()),
        }
    }

    /// Makes groups smaller until the inodes fit, and drops a last group that is too small to be
    /// of use.
    fn fit(&self) -> Result<Geometry, MkfsError> {
        let first_data_block = u32::from(self.block_size == 1024);
        let mut blocks_count = self.blocks;
        let mut blocks_per_group = self.block_size * 8;
        loop {
            let in_groups = blocks_count.saturating_sub(first_data_block.into());
            let groups = in_groups.div_ceil(blocks_per_group.into());
            let group_count = u32::try_from(groups).map_err(|_| MkfsError::TooLarge {
                blocks: blocks_count,
                block_size: self.block_size,
                most: u64::from(u32::MAX) * u64::from(blocks_per_group),
            })?;
            if group_count == 0 {
                return Err(self.too_small(LAST_GROUP_SPARE_BLOCKS));
            }
            let Some(inodes_per_group) = self.inodes_per_group(group_count) else {
                if blocks_per_group < SMALLEST_GROUP_BLOCKS {
                    return Err(self.too_many_inodes());
                }
                blocks_per_group -= 8;
                blocks_count = self.blocks;
                continue;
            };
            let mut geometry = Geometry {
                features: self.features,
                block_size: self.block_size,
                inode_size: self.inode_size,
                blocks_count,
                reserved_blocks: 0,
                first_data_block,
                blocks_per_group,
                group_count,
                inodes_per_group,
                inode_table_blocks: (inodes_per_group * u32::from(self.inode_size))
                    .div_ceil(self.block_size),
                desc_size: if self.features.incompat.contains(Incompat::SIXTY_FOUR_BIT) {
                    64
                } else {
                    32
                },
                reserved_gdt_blocks: 0,
                backup_groups: [0, 0],
            };
            geometry.plan_descriptors();
            if geometry.first_group_overhead() > blocks_per_group {
                return Err(self.too_many_inodes());
            }
            let overhead = geometry.last_group_overhead();
            let last_blocks = in_groups % u64::from(blocks_per_group);
            if group_count == 1 && last_blocks != 0 && last_blocks < overhead {
                return Err(self.too_small(overhead + u64::from(first_data_block)));
            }
            if last_blocks == 0 || last_blocks >= overhead + LAST_GROUP_SPARE_BLOCKS {
                return Ok(geometry);
            }
            if group_count == 1 {
                let needed = overhead + LAST_GROUP_SPARE_BLOCKS + u64::from(first_data_block);
                return Err(self.too_small(needed));
            }
            blocks_count -= last_blocks;
        }
    }

    /// As many inodes as fill whole blocks of the inode table; nothing if their bitmap would not
    /// fit into a block.
    fn inodes_per_group(&self, group_count: u32) -> Option<u32> {
        let (block_size, inode_size) = (self.block_size, u32::from(self.inode_size));
        let wanted = self.inodes.clamp(FEWEST_INODES, u64::from(u32::MAX));
        let mut per_group = u32::try_from(wanted.div_ceil(group_count.into())).ok()?;
        if per_group > block_size * 8 {
            return None;
        }
        // The last block of the table is used whole, the last byte of the bitmap, too.
        let per_block = block_size / inode_size;
        loop {
            let filled = per_group.div_ceil(per_block) * per_block;
            let mut rounded = filled.max(8) & !7;
            // The reserved inodes and lost+found must not be rounded away.
            if u64::from(rounded) * u64::from(group_count) < FEWEST_INODES {
                rounded += 8;
            }
            if u64::from(rounded) * u64::from(group_count) <= u64::from(u32::MAX) {
                return Some(rounded);
            }
            per_group -= 1;
        }
    }
}

impl Geometry {
    fn descriptors_per_block(&self) -> u32 {
        self.block_size / u32::from(self.desc_size)
    }

    fn descriptor_blocks(&self) -> u32 {
        self.group_count.div_ceil(self.descriptors_per_block())
    }

    /// Reserves descriptor blocks for growing to 1024 times the size, and spreads the descriptors
    /// where they would take most of a group.
    fn plan_descriptors(&mut self) {
        let descriptor_blocks = self.descriptor_blocks();
        let mut reserved = 0;
        // Its block map has 32 bits for the blocks that it keeps.
        if self.blocks_count > u64::from(u32::MAX) {
            self.features.compat.remove(Compat::RESIZE_INODE);
        }
        if self.features.compat.contains(Compat::RESIZE_INODE) {
            let most = u64::from(u32::MAX);
            let grown = if self.blocks_count < most / 1024 {
                self.blocks_count * 1024
            } else {
                most
            };
            let groups =
                (grown - u64::from(self.first_data_block)).div_ceil(self.blocks_per_group.into());
            let blocks = groups.div_ceil(self.descriptors_per_block().into());
            // The map of the resize inode has one indirect block's worth of slots.
            reserved = blocks
                .saturating_sub(descriptor_blocks.into())
                .min(u64::from(self.block_size / 4)) as u32;
        }
        if reserved + descriptor_blocks > self.blocks_per_group / 4 * 3 {
            self.features.incompat.insert(Incompat::META_BG);
            self.features.compat.remove(Compat::RESIZE_INODE);
            reserved = 0;
        }
        self.reserved_gdt_blocks = reserved as u16;
    }

    fn first_group_overhead(&self) -> u32 {
        let descriptors = if self.features.incompat.contains(Incompat::META_BG) {
            1
        } else {
            self.descriptor_blocks()
        };
        3 + self.inode_table_blocks + u32::from(self.reserved_gdt_blocks) + descriptors
    }

    fn last_group_overhead(&self) -> u64 {
        let own = 2 + u64::from(self.inode_table_blocks);
        let has_backup = if self.features.compat.contains(Compat::SPARSE_SUPER2) {
            true
        } else {
            !self.features.ro_compat.contains(RoCompat::SPARSE_SUPER)
                || is_sparse_group(self.group_count - 1)
        };
        if has_backup {
            own + 1 + u64::from(self.descriptor_blocks()) + u64::from(self.reserved_gdt_blocks)
        } else {
            own
        }
    }
}

/// Groups 0, 1 and the powers of 3, 5 and 7.
fn is_sparse_group(group: u32) -> bool {
    group <= 1
        || [3_u32, 5, 7].into_iter().any(|base| {
            let mut rest = group;
            while rest.is_multiple_of(base) {
                rest /= base;
            }
            rest == 1
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mkfs::Kind;

    fn plan(kind: Kind, size_bytes: u64) -> Result<Geometry, MkfsError> {
        Geometry::plan(&Parameters::new(kind), kind.default_features(), size_bytes)
    }

    #[test]
    fn sizes_are_those_of_mke2fs() {
        // Blocks, inodes, reserved descriptor blocks, as mke2fs 1.47 makes them.
        for (size, block_size, blocks, inodes, reserved_gdt) in [
            (256 << 10, 1024, 256, 32, 1),
            (1 << 20, 1024, 1024, 128, 7),
            (64 << 20, 1024, 65536, 16384, 256),
            (600 << 20, 4096, 153_600, 38_400, 74),
            (1 << 30, 4096, 262_144, 65_536, 127),
            (2 << 40, 4096, 536_870_912, 134_217_728, 1024),
            (15 << 40, 4096, 4_026_531_840, 503_316_480, 128),
        ] {
            let geometry = plan(Kind::Ext4, size).expect("these sizes fit");
            assert_eq!(geometry.block_size, block_size, "{size}");
            assert_eq!(geometry.blocks_count, blocks, "{size}");
            assert_eq!(
                geometry.group_count * geometry.inodes_per_group,
                inodes,
                "{size}"
            );
            assert_eq!(geometry.reserved_gdt_blocks, reserved_gdt, "{size}");
        }
    }

    #[test]
    fn descriptors_are_spread_where_they_are_too_many() {
        let mut parameters = Parameters::new(Kind::Ext4);
        parameters.block_size = Some(1024);
        let geometry = Geometry::plan(&parameters, Kind::Ext4.default_features(), 5 << 40)
            .expect("5 TiB of small blocks can be made");
        assert!(geometry.features.incompat.contains(Incompat::META_BG));
        assert!(!geometry.features.compat.contains(Compat::RESIZE_INODE));
        assert_eq!(geometry.blocks_count, 5_368_709_120);
    }

    #[test]
    fn a_last_group_too_small_to_use_is_left_out() {
        let geometry = plan(Kind::Ext4, (128 << 20) * 8 + (1 << 20)).expect("it fits");
        assert_eq!(geometry.blocks_count, 8 * 32768);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(matches!(
            plan(Kind::Ext2, 0),
            Err(MkfsError::TooSmall { .. })
        ));
        assert!(matches!(
            plan(Kind::Ext2, 20 << 10),
            Err(MkfsError::TooSmall { .. })
        ));
        assert!(matches!(
            plan(Kind::Ext3, 17 << 40),
            Err(MkfsError::TooLarge { .. })
        ));
        assert!(matches!(
            plan(Kind::Ext4, u64::MAX),
            Err(MkfsError::TooLarge { .. })
        ));
        let mut parameters = Parameters::new(Kind::Ext4);
        let features = Kind::Ext4.default_features();
        parameters.block_size = Some(8192);
        assert!(matches!(
            Geometry::plan(&parameters, features, 1 << 30),
            Err(MkfsError::BlockSize { block_size: 8192 })
        ));
        parameters.block_size = None;
        parameters.inodes = Some(1 << 30);
        assert!(matches!(
            Geometry::plan(&parameters, features, 1 << 30),
            Err(MkfsError::TooManyInodes { .. })
        ));
        parameters.inodes = None;
        parameters.reserved_percent = 51;
        assert!(matches!(
            Geometry::plan(&parameters, features, 1 << 30),
            Err(MkfsError::Reserved { percent: 51 })
        ));
        parameters.reserved_percent = 5;
        parameters.inode_size = Some(192);
        assert!(matches!(
            Geometry::plan(&parameters, features, 1 << 30),
            Err(MkfsError::InodeSize { .. })
        ));
    }

    #[test]
    fn sparse_groups_are_powers() {
        let groups: Vec<u32> = (0..100).filter(|group| is_sparse_group(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81]);
    }
}
