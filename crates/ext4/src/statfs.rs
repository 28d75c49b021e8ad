//! Size and free space of the file system, as Linux's ext4 counts them.

use pagefence_ext4_format::GroupNo;
use pagefence_ext4_format::dir_entry::MAX_NAME_LEN;
use pagefence_ext4_format::features::{Compat, Incompat, RoCompat};
use pagefence_ext4_format::superblock::Superblock;
use pagefence_vfs::{FileSystemStat, Result};

use crate::disk_inode::DiskInode;
use crate::instance::Instance;

/// Clusters that ext4 keeps back for metadata of delayed allocation, at most.
const RESERVED_CLUSTERS_MAX: u64 = 4096;

/// Longest name.
const NAME_LENGTH: u32 = MAX_NAME_LEN as u32;

/// Groups that are gone through, at most (128 TiB of 4 KiB blocks): past that the superblock's own
/// counts have to do. No superblock may keep a request busy for minutes.
const GROUPS_MAX: u32 = 1 << 20;

/// Free space, summed over the groups: the superblock's own counts are brought up to date only
/// when a file system is unmounted.
#[derive(Clone, Copy, Debug, Default)]
struct Free {
    clusters: u64,
    inodes: u64,
}

impl Instance {
    /// Size and free space.
    pub(crate) fn stat_fs(&self) -> Result<FileSystemStat> {
        let superblock = &self.superblock;
        let per_cluster = u64::from(superblock.blocks_per_cluster());
        let free = self.free()?;
        let blocks = superblock.blocks_count();
        let blocks_free = free.clusters.saturating_mul(per_cluster).min(blocks);
        Ok(FileSystemStat {
            block_size: superblock.block_size(),
            blocks: blocks.saturating_sub(self.overhead_blocks()),
            blocks_free,
            blocks_available: blocks_free.saturating_sub(self.kept_back()),
            inodes: u64::from(superblock.inodes_count()),
            inodes_free: free.inodes.min(u64::from(superblock.inodes_count())),
            name_length: NAME_LENGTH,
        })
    }

    /// Blocks that are free and not for everybody: root's, and [`Self::kept_for_trees`].
    pub(crate) fn kept_back(&self) -> u64 {
        let for_root = self.superblock.reserved_blocks_count();
        for_root.saturating_add(self.kept_for_trees())
    }

    /// Blocks that are kept, as many as Linux keeps, so that extent trees can always be split.
    pub(crate) fn kept_for_trees(&self) -> u64 {
        let superblock = &self.superblock;
        if !superblock.has_incompat(Incompat::EXTENTS) {
            return 0;
        }
        let per_cluster = u64::from(superblock.blocks_per_cluster());
        let clusters = superblock.blocks_count() / per_cluster;
        (clusters / 50).min(RESERVED_CLUSTERS_MAX) * per_cluster
    }

    fn free(&self) -> Result<Free> {
        let superblock = &self.superblock;
        if superblock.group_count() > GROUPS_MAX {
            return Ok(Free {
                clusters: superblock.free_blocks_count()
                    / u64::from(superblock.blocks_per_cluster()),
                inodes: superblock.free_inodes_count().into(),
            });
        }
        let mut free = Free::default();
        for group in superblock.groups() {
            let desc = self.group_desc(group)?;
            free.clusters += u64::from(desc.free_clusters());
            free.inodes += u64::from(desc.free_inodes());
        }
        Ok(free)
    }

    /// Blocks that can never hold data: superblocks, descriptors and the room in which they can
    /// grow, bitmaps, inode tables and the journal.
    fn overhead_blocks(&self) -> u64 {
        let superblock = &self.superblock;
        let stored = u64::from(superblock.raw().s_overhead_clusters.get())
            .saturating_mul(u64::from(superblock.blocks_per_cluster()));
        let recount =
            !superblock.has_ro_compat(RoCompat::BIGALLOC) && superblock.group_count() <= GROUPS_MAX;
        if !recount && stored != 0 && stored <= superblock.blocks_count() {
            return stored;
        }
        let per_group = u64::from(superblock.inode_table_blocks()) + 2;
        let bases: u64 = if superblock.group_count() > GROUPS_MAX {
            0
        } else {
            superblock
                .groups()
                .map(|group| base_blocks(superblock, group))
                .sum()
        };
        let groups = per_group * u64::from(superblock.group_count()) + bases;
        u64::from(superblock.raw().s_first_data_block.get()) + groups + self.journal_blocks()
    }

    fn journal_blocks(&self) -> u64 {
        let superblock = &self.superblock;
        if !superblock.has_compat(Compat::HAS_JOURNAL) {
            return 0;
        }
        superblock
            .journal_inode()
            .and_then(|number| DiskInode::read(self, number).ok())
            .map_or(0, |inode| inode.size() / u64::from(superblock.block_size()))
    }
}

/// Blocks of the superblock, the descriptors and the room in which they can grow in a group.
fn base_blocks(superblock: &Superblock, group: GroupNo) -> u64 {
    let base = superblock.base_metadata(group);
    base.end.0.saturating_sub(base.start.0)
}
