//! Which clusters are in use, as metadata and inodes claim them, and which are claimed twice.

use std::collections::BTreeMap;
use std::ops::Range;

use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::{BlockNo, GroupNo, bitmap};

use super::{Memory, Step};

/// A bit for each cluster, by group; a group without any takes no room.
#[derive(Debug, Default)]
struct Bits {
    groups: BTreeMap<u32, Box<[u8]>>,
}

impl Bits {
    fn of_group(&mut self, group: u32, bytes: usize, memory: &mut Memory) -> Step<&mut [u8]> {
        let bits = match self.groups.entry(group) {
            std::collections::btree_map::Entry::Occupied(bits) => bits.into_mut(),
            std::collections::btree_map::Entry::Vacant(room) => {
                memory.take(bytes as u64 + 64)?;
                room.insert(vec![0; bytes].into())
            }
        };
        Ok(bits)
    }
}

/// Which clusters are in use.
#[derive(Debug)]
pub(super) struct BlockUsage {
    first_block: u64,
    blocks_per_cluster: u64,
    clusters_per_group: u32,
    owned: Bits,
    twice: Bits,
    /// Groups in which inodes own clusters.
    groups_of_inodes: BTreeMap<u32, ()>,
}

impl BlockUsage {
    pub(super) fn new(superblock: &Superblock) -> Self {
        Self {
            first_block: superblock.first_data_block().0,
            blocks_per_cluster: u64::from(superblock.blocks_per_cluster().max(1)),
            clusters_per_group: superblock.clusters_per_group().max(1),
            owned: Bits::default(),
            twice: Bits::default(),
            groups_of_inodes: BTreeMap::new(),
        }
    }

    /// The cluster of a block, counted from the first group's start.
    pub(super) fn cluster_of(&self, block: BlockNo) -> u64 {
        block.0.saturating_sub(self.first_block) / self.blocks_per_cluster
    }

    /// The first block of a cluster.
    pub(super) fn block_of(&self, cluster: u64) -> BlockNo {
        BlockNo(
            cluster
                .saturating_mul(self.blocks_per_cluster)
                .saturating_add(self.first_block),
        )
    }

    /// The clusters that blocks lie in.
    pub(super) fn clusters_of(&self, blocks: &Range<BlockNo>) -> Range<u64> {
        if blocks.start >= blocks.end {
            return 0..0;
        }
        let last = BlockNo(blocks.end.0.saturating_sub(1));
        self.cluster_of(blocks.start)..self.cluster_of(last).saturating_add(1)
    }

    fn bytes(&self) -> usize {
        self.clusters_per_group.div_ceil(8) as usize
    }

    /// The parts of a range that lie in one group each: the group, and bits of it.
    fn parts(&self, clusters: Range<u64>) -> impl Iterator<Item = (u32, Range<u32>)> + use<> {
        let per_group = u64::from(self.clusters_per_group);
        let mut at = clusters.start;
        std::iter::from_fn(move || {
            if at >= clusters.end {
                return None;
            }
            let group = at / per_group;
            let start = group * per_group;
            let end = clusters.end.min(start + per_group);
            // Below the clusters of a group, and group numbers have 32 bits.
            let part = ((at - start) as u32)..((end - start) as u32);
            at = end;
            Some((u32::try_from(group).ok()?, part))
        })
    }

    /// Marks clusters as owned, by an inode or else by metadata. Says whether some were owned
    /// before.
    pub(super) fn claim(
        &mut self,
        clusters: Range<u64>,
        by_inode: bool,
        memory: &mut Memory,
    ) -> Step<bool> {
        let bytes = self.bytes();
        let mut is_shared = false;
        for (group, part) in self.parts(clusters) {
            if by_inode {
                self.groups_of_inodes.insert(group, ());
            }
            let owned = self.owned.of_group(group, bytes, memory)?;
            let mut at = part.start;
            while let Some(start) = bitmap::next_one(owned, at..part.end) {
                let end = bitmap::next_zero(owned, start..part.end).unwrap_or(part.end);
                let twice = self.twice.of_group(group, bytes, memory)?;
                bitmap::set_range(twice, start..end);
                is_shared = true;
                at = end;
            }
            bitmap::set_range(owned, part);
        }
        Ok(is_shared)
    }

    /// Marks blocks as owned by metadata. Metadata of several kinds may share a cluster.
    pub(super) fn claim_metadata(&mut self, blocks: Range<BlockNo>, memory: &mut Memory) -> Step {
        let clusters = self.clusters_of(&blocks);
        if self.blocks_per_cluster == 1 {
            return self.claim(clusters, false, memory).map(drop);
        }
        let bytes = self.bytes();
        for (group, part) in self.parts(clusters) {
            bitmap::set_range(self.owned.of_group(group, bytes, memory)?, part);
        }
        Ok(())
    }

    /// The clusters of a group that are owned, a bit each; nothing if none is.
    pub(super) fn of_group(&self, group: GroupNo) -> Option<&[u8]> {
        self.owned.groups.get(&group.0).map(|bits| &**bits)
    }

    /// Whether inodes own clusters in a group.
    pub(super) fn is_used_by_inodes(&self, group: GroupNo) -> bool {
        self.groups_of_inodes.contains_key(&group.0)
    }

    /// Whether any cluster is owned twice.
    pub(super) fn has_shared(&self) -> bool {
        !self.twice.groups.is_empty()
    }

    /// Runs of clusters owned twice, within a range.
    pub(super) fn shared_in(&self, clusters: Range<u64>) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        for (group, part) in self.parts(clusters) {
            let Some(bits) = self.twice.groups.get(&group) else {
                continue;
            };
            let first = u64::from(group) * u64::from(self.clusters_per_group);
            let mut at = part.start;
            while let Some(start) = bitmap::next_one(bits, at..part.end) {
                let end = bitmap::next_zero(bits, start..part.end).unwrap_or(part.end);
                runs.push(first + u64::from(start)..first + u64::from(end));
                at = end;
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(per_group: u32, blocks_per_cluster: u64) -> BlockUsage {
        BlockUsage {
            first_block: 1,
            blocks_per_cluster,
            clusters_per_group: per_group,
            owned: Bits::default(),
            twice: Bits::default(),
            groups_of_inodes: BTreeMap::new(),
        }
    }

    #[test]
    fn what_is_claimed_again_is_shared() {
        let mut usage = usage(16, 1);
        let memory = &mut Memory(1 << 20);
        assert!(!usage.claim(10..40, true, memory).expect("room"));
        assert!(!usage.claim(40..41, true, memory).expect("room"));
        assert!(!usage.has_shared());
        assert!(usage.claim(8..12, true, memory).expect("room"));
        assert!(usage.claim(31..33, true, memory).expect("room"));
        assert_eq!(usage.shared_in(0..64), [10..12, 31..32, 32..33]);
        assert_eq!(usage.shared_in(11..32), [11..12, 31..32]);
        let bits = usage.of_group(GroupNo(0)).expect("in use");
        assert_eq!(bitmap::count_zeros(bits, 0..16), 8);
    }

    #[test]
    fn blocks_of_one_cluster_are_one() {
        let usage = usage(16, 4);
        assert_eq!(usage.clusters_of(&(BlockNo(4)..BlockNo(6))), 0..2);
        assert_eq!(usage.clusters_of(&(BlockNo(5)..BlockNo(5))), 0..0);
        assert_eq!(usage.block_of(1), BlockNo(5));
    }

    #[test]
    fn memory_is_bounded() {
        let mut usage = usage(16, 1);
        let memory = &mut Memory(200);
        assert!(usage.claim(0..1, true, memory).is_ok());
        assert!(usage.claim(0..1600, true, memory).is_err());
    }
}
