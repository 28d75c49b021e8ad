//! Which groups new inodes go to: Orlov's rules for directories (top-level ones far apart, others
//! near their parent unless it is crowded there), the parent's group for all else.
//!
//! The rules look at flex groups: their groups share what holds their bitmaps and tables. Limits
//! are drawn around the averages, as Linux draws them; averages are those of the last commit, or of
//! a few directories ago.

use std::ops::Range;

use pagefence_ext4_format::{GroupNo, InodeNo};
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};

use crate::alloc::Allocator;

/// Directories that are made before averages are taken anew.
const AVERAGES_HOLD: u64 = 64;

/// Averages over all flex groups.
#[derive(Debug, Default)]
pub(super) struct Averages {
    free_inodes: AtomicU64,
    free_blocks: AtomicU64,
    directories: AtomicU64,
    /// Directories made.
    made: AtomicU64,
}

/// Numbers of a flex group.
#[derive(Clone, Copy, Debug, Default)]
struct Flex {
    free_inodes: u64,
    free_blocks: u64,
    directories: u64,
}

impl Flex {
    fn plus(self, other: Self) -> Self {
        Self {
            free_inodes: self.free_inodes + other.free_inodes,
            free_blocks: self.free_blocks + other.free_blocks,
            directories: self.directories + other.directories,
        }
    }
}

impl Allocator {
    /// Averages as of now.
    pub(super) fn renew_averages(&self) {
        let count = self.flex_count();
        let sums = (0..count)
            .map(|flex| self.flex(flex))
            .fold(Flex::default(), Flex::plus);
        let count = u64::from(count.max(1));
        let averages = &self.averages;
        let store = |to: &AtomicU64, sum: u64| to.store(sum / count, Ordering::Relaxed);
        store(&averages.free_inodes, sums.free_inodes);
        store(&averages.free_blocks, sums.free_blocks);
        store(&averages.directories, sums.directories);
    }

    /// Groups for a directory below `parent`, best first; each group there is comes at least once.
    pub(super) fn groups_of_directory(
        &self,
        parent: InodeNo,
        is_top_level: bool,
        hash: u32,
    ) -> impl Iterator<Item = GroupNo> + '_ {
        let made = self.averages.made.fetch_add(1, Ordering::Relaxed);
        if made % AVERAGES_HOLD == AVERAGES_HOLD - 1 {
            self.renew_averages();
        }
        let preferred = if is_top_level {
            self.flex_far_apart(hash)
        } else {
            None
        };
        preferred
            .or_else(|| self.flex_near(parent))
            .or_else(|| self.flex_with_average(parent))
            .into_iter()
            .flat_map(|flex| self.groups_of_flex(flex))
            .map(GroupNo)
            .chain(self.groups_from(self.group_of_parent(parent)))
    }

    /// Groups for a file below `parent`, best first; each group there is comes at least once.
    pub(super) fn groups_of_file(&self, parent: InodeNo) -> impl Iterator<Item = GroupNo> + '_ {
        let home = self.group_of_parent(parent);
        let flex = self
            .groups_of_flex(home / self.superblock.groups_per_flex())
            .filter(move |group| *group != home);
        // Files of one directory follow each other, those of directories in one group do not.
        let count = u64::from(self.superblock.group_count());
        let first = (u64::from(home) + u64::from(parent.0)) % count;
        let jumps = (0..u32::BITS)
            .map_while(move |jump| {
                let step = 1_u64 << jump;
                (step < count).then_some((first + 2 * step - 1) % count)
            })
            .map(|group| group as u32)
            .filter(|group| self.summary(GroupNo(*group)).free() > 0);
        std::iter::once(home)
            .chain(flex)
            .chain(jumps)
            .map(GroupNo)
            .chain(self.groups_from(home))
    }

    /// All groups, from one on.
    fn groups_from(&self, first: u32) -> impl Iterator<Item = GroupNo> + use<> {
        let count = self.superblock.group_count();
        (first..count).chain(0..first).map(GroupNo)
    }

    /// Of the flex groups with at least the average of free inodes and blocks, one with the
    /// fewest directories; where the search begins is by chance.
    fn flex_far_apart(&self, hash: u32) -> Option<u32> {
        let count = self.flex_count();
        let start = hash % count.max(1);
        (start..count)
            .chain(0..start)
            .map(|number| (number, self.flex(number)))
            .filter(|(_, flex)| {
                flex.free_inodes > 0
                    && flex.free_inodes >= self.averages.free_inodes.load(Ordering::Relaxed)
                    && flex.free_blocks >= self.averages.free_blocks.load(Ordering::Relaxed)
            })
            // The first of those that have the fewest.
            .min_by_key(|(_, flex)| flex.directories)
            .map(|(number, _)| number)
    }

    /// The first flex group from the parent's on that is not crowded.
    fn flex_near(&self, parent: InodeNo) -> Option<u32> {
        let per_flex = u64::from(self.superblock.groups_per_flex());
        let inodes = u64::from(self.superblock.inodes_per_group()) * per_flex;
        let blocks = u64::from(self.superblock.blocks_per_group()) * per_flex;
        let averages = &self.averages;
        let directories_max = averages.directories.load(Ordering::Relaxed) + inodes / 16;
        let inodes_min = averages.free_inodes.load(Ordering::Relaxed);
        let inodes_min = inodes_min.saturating_sub(inodes / 4).max(1);
        let blocks_min = averages.free_blocks.load(Ordering::Relaxed);
        let blocks_min = blocks_min.saturating_sub(blocks / 4);
        self.first_flex(parent, |flex| {
            flex.directories < directories_max
                && flex.free_inodes >= inodes_min
                && flex.free_blocks >= blocks_min
        })
    }

    fn flex_with_average(&self, parent: InodeNo) -> Option<u32> {
        let average = self.averages.free_inodes.load(Ordering::Relaxed).max(1);
        self.first_flex(parent, |flex| flex.free_inodes >= average)
    }

    fn first_flex(&self, parent: InodeNo, fits: impl Fn(Flex) -> bool) -> Option<u32> {
        let first = self.group_of_parent(parent) / self.superblock.groups_per_flex();
        (first..self.flex_count())
            .chain(0..first)
            .find(|flex| fits(self.flex(*flex)))
    }

    fn group_of_parent(&self, parent: InodeNo) -> u32 {
        self.superblock
            .locate_inode(parent)
            .map_or(0, |place| place.group.0)
    }

    fn flex_count(&self) -> u32 {
        self.superblock
            .group_count()
            .div_ceil(self.superblock.groups_per_flex())
    }

    fn groups_of_flex(&self, flex: u32) -> Range<u32> {
        let per_flex = self.superblock.groups_per_flex();
        let first = flex.saturating_mul(per_flex);
        let count = self.superblock.group_count();
        first.min(count)..first.saturating_add(per_flex).min(count)
    }

    fn flex(&self, flex: u32) -> Flex {
        self.groups_of_flex(flex)
            .map(|group| {
                let summary = self.summary(GroupNo(group));
                Flex {
                    free_inodes: summary.inodes().into(),
                    free_blocks: summary.free().into(),
                    directories: summary.directories().into(),
                }
            })
            .fold(Flex::default(), Flex::plus)
    }
}
