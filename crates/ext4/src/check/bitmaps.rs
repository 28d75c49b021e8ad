//! Bitmaps and counts against what is in use.

use std::ops::Range;

use pagefence_ext4_format::bitmap::{self, verify_block_bitmap, verify_inode_bitmap};
use pagefence_ext4_format::features::Incompat;
use pagefence_ext4_format::group_desc::{GroupDesc, GroupFlags};
use pagefence_ext4_format::inode::FileKind;
use pagefence_ext4_format::{Corruption, GroupNo};

use super::{Checker, Stage, Step};

/// What is free in all groups.
#[derive(Clone, Copy, Debug, Default)]
struct Free {
    clusters: u64,
    inodes: u64,
}

impl Checker<'_> {
    pub(super) fn check_bitmaps(&mut self) -> Step {
        let mut free = Free::default();
        let total = u64::from(self.instance.superblock.group_count());
        for group in self.instance.superblock.groups() {
            self.report
                .progress(Stage::Bitmaps, u64::from(group.0), total)?;
            if self.lost_groups.contains(&group) {
                continue;
            }
            let Ok(desc) = self.descriptor(group)? else {
                continue;
            };
            self.check_block_bitmap(&desc, &mut free)?;
            self.check_inode_bitmap(&desc, &mut free)?;
        }
        self.check_totals(free)
    }

    fn check_block_bitmap(&mut self, desc: &GroupDesc, free: &mut Free) -> Step {
        let group = desc.group();
        let superblock = &self.instance.superblock;
        let clusters = superblock.clusters_in_group(group);
        let mut due = vec![0; superblock.block_size() as usize];
        if let Some(owned) = self.usage.of_group(group) {
            for (to, from) in due.iter_mut().zip(owned) {
                *to = *from;
            }
        }
        let counted = bitmap::count_zeros(&due, 0..clusters);
        free.clusters += u64::from(counted);
        let per_cluster = u64::from(superblock.blocks_per_cluster());
        self.summary.blocks += u64::from(clusters - counted) * per_cluster;
        if desc.flags(superblock).contains(GroupFlags::BLOCK_UNINIT) {
            if self.usage.is_used_by_inodes(group) {
                self.report.group(
                    group,
                    "its block bitmap is said to be unused, and inodes own blocks there",
                )?;
            }
        } else {
            let buffer = self.instance.buffers.read(desc.block_bitmap().0)?;
            match verify_block_bitmap(&buffer, desc, &self.instance.superblock) {
                // That is among the differences.
                Ok(()) | Err(Corruption::MetadataMarkedFree { .. }) => {}
                Err(what) => self.report.group(group, what)?,
            }
            for (run, is_marked) in differences(&buffer, &due, clusters) {
                let blocks = self.blocks_of(group, &run);
                let what = if is_marked {
                    "marked in use, but nobody's"
                } else {
                    "in use, but marked free"
                };
                self.report.group(group, format_args!("{blocks} {what}"))?;
            }
        }
        self.check_count(group, "free clusters", desc.free_clusters(), counted)
    }

    /// The blocks of a run of clusters of a group, as text.
    fn blocks_of(&self, group: GroupNo, run: &Range<u32>) -> String {
        let superblock = &self.instance.superblock;
        let first = superblock.first_block_of_group(group).0;
        let per_cluster = u64::from(superblock.blocks_per_cluster());
        let start = first + u64::from(run.start) * per_cluster;
        let last = (first + u64::from(run.end) * per_cluster)
            .min(superblock.blocks_count())
            .saturating_sub(1);
        span("block", start, last)
    }

    fn check_inode_bitmap(&mut self, desc: &GroupDesc, free: &mut Free) -> Step {
        let group = desc.group();
        let superblock = &self.instance.superblock;
        let inodes = superblock.inodes_per_group();
        let first = group.0.saturating_mul(inodes).saturating_add(1);
        let mut due = vec![0; superblock.block_size() as usize];
        let reserved = superblock.first_inode().0.saturating_sub(first).min(inodes);
        bitmap::set_range(&mut due, 0..reserved);
        let mut directories = 0;
        for (number, state) in self.inodes.of_group(group) {
            let bit = number.0.saturating_sub(first);
            bitmap::set_range(&mut due, bit..bit.saturating_add(1));
            directories += u32::from(state.kind() == Some(FileKind::Directory));
        }
        let counted = bitmap::count_zeros(&due, 0..inodes);
        free.inodes += u64::from(counted);
        if !desc.flags(superblock).contains(GroupFlags::INODE_UNINIT) {
            let buffer = self.instance.buffers.read(desc.inode_bitmap().0)?;
            if let Err(what) = verify_inode_bitmap(&buffer, desc, &self.instance.superblock) {
                self.report.group(group, what)?;
            }
            for (run, is_marked) in differences(&buffer, &due, inodes) {
                let number = |bit: u32| u64::from(first).saturating_add(u64::from(bit));
                let inodes = span("inode", number(run.start), number(run.end) - 1);
                let what = if is_marked {
                    "marked in use, but free"
                } else {
                    "in use, but marked free"
                };
                self.report.group(group, format_args!("{inodes} {what}"))?;
            }
            let end = u32::try_from(buffer.len().saturating_mul(8)).unwrap_or(u32::MAX);
            if let Some(bit) = bitmap::next_zero(&buffer, inodes..end) {
                self.report.group(
                    group,
                    format_args!("bit {bit} of the inode bitmap is past its end and clear"),
                )?;
            }
        }
        self.check_count(group, "free inodes", desc.free_inodes(), counted)?;
        self.check_count(group, "directories", desc.used_dirs(), directories)
    }

    fn check_count(&mut self, group: GroupNo, what: &str, stored: u32, counted: u32) -> Step {
        if stored == counted {
            return Ok(());
        }
        self.report
            .group(group, format_args!("{what} {stored}, counted {counted}"))
    }

    /// The counts of the superblock. Linux brings them up to date when it unmounts: after a crash
    /// they may be old.
    fn check_totals(&mut self, free: Free) -> Step {
        if !self.lost_groups.is_empty() || self.summary.was_replayed {
            return Ok(());
        }
        let superblock = &self.instance.superblock;
        let blocks = free
            .clusters
            .saturating_mul(u64::from(superblock.blocks_per_cluster()));
        let is_wide = superblock.has_incompat(Incompat::SIXTY_FOUR_BIT);
        let mask = if is_wide {
            u64::MAX
        } else {
            u64::from(u32::MAX)
        };
        let (stored_blocks, stored_inodes) = (
            superblock.free_blocks_count() & mask,
            u64::from(superblock.free_inodes_count()),
        );
        if stored_blocks != blocks {
            self.report.superblock(format_args!(
                "free blocks {stored_blocks}, counted {blocks}"
            ))?;
        }
        if stored_inodes != free.inodes {
            self.report.superblock(format_args!(
                "free inodes {stored_inodes}, counted {}",
                free.inodes
            ))?;
        }
        Ok(())
    }
}

/// A run of numbers as text, both ends counted.
fn span(what: &str, start: u64, last: u64) -> String {
    if start == last {
        format!("{what} {start}")
    } else {
        format!("{what}s {start} to {last}")
    }
}

/// Runs of bits below `end` in which two bitmaps differ, and whether `stored` has them set.
fn differences(stored: &[u8], due: &[u8], end: u32) -> Vec<(Range<u32>, bool)> {
    let mut runs: Vec<(Range<u32>, bool)> = Vec::new();
    for (at, (stored, due)) in (0_u32..).zip(stored.iter().zip(due)) {
        if stored == due {
            continue;
        }
        for bit in 0..8 {
            let number = at.saturating_mul(8).saturating_add(bit);
            let is_marked = stored >> bit & 1 == 1;
            if number >= end || is_marked == (due >> bit & 1 == 1) {
                continue;
            }
            match runs.last_mut() {
                Some((run, marked)) if run.end == number && *marked == is_marked => {
                    run.end = number + 1;
                }
                _ => runs.push((number..number + 1, is_marked)),
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::differences;

    #[test]
    fn differences_are_runs() {
        let stored = [0b1100_0011, 0b0000_0001, 0xFF];
        let due = [0b0000_1111, 0b0000_0000, 0xFF];
        assert_eq!(
            differences(&stored, &due, 24),
            [(2..4, false), (6..9, true)]
        );
        assert_eq!(differences(&stored, &due, 7), [(2..4, false), (6..7, true)]);
        assert!(differences(&due, &due, 24).is_empty());
    }
}
