//! The blocks that hold the file system's own metadata, which no file may own: the superblock and
//! its copies, group descriptors, bitmaps and inode tables (Linux: block_validity).

use std::ops::Range;

use pagefence_ext4_format::{BlockNo, GroupNo};
use pagefence_vfs::{Error, Result};

use crate::instance::Instance;

/// Ranges that are kept, at most: 1 MiB of them. With flex_bg that is some 500 TiB of 4 KiB
/// blocks. Past it, files are checked against the range that comes first in each group alone.
const ZONES_MAX: usize = 1 << 16;

/// Ranges of blocks that are not for files.
#[derive(Debug, Default)]
pub(crate) struct SystemZones {
    /// Ascending; neither overlapping nor adjacent.
    zones: Vec<Range<u64>>,
}

impl SystemZones {
    /// Reads every descriptor. A group whose descriptor is damaged has no zones: what uses it
    /// reports that, and no other group suffers. Nothing is logged.
    pub(crate) fn of(instance: &Instance) -> Self {
        let superblock = &instance.superblock;
        // Three ranges a group, before they are merged: only so many groups can stay below the
        // limit, and only they are worth the walk.
        if superblock.group_count() as usize > 16 * ZONES_MAX {
            return Self::default();
        }
        let mut zones = Builder::default();
        for group in superblock.groups() {
            zones.add(own_range(instance, group));
            if let Some(desc) = instance.sound_group_desc(group) {
                for zone in desc.metadata_zones(superblock) {
                    zones.add(zone);
                }
            }
            if zones.is_full() {
                return Self::default();
            }
        }
        Self {
            zones: zones.merged(),
        }
    }

    /// All zones, and `more` ranges, with the room in which descriptors can grow: for those who
    /// free blocks, and must be sure.
    ///
    /// # Errors
    /// `Corrupt` if a descriptor is damaged; `OutOfMemory` if there are more ranges than are kept;
    /// `Io`.
    pub(crate) fn strict(
        instance: &Instance,
        more: impl IntoIterator<Item = Range<BlockNo>>,
    ) -> Result<Self> {
        let superblock = &instance.superblock;
        let mut zones = Builder::default();
        for zone in more {
            zones.add(zone);
        }
        for group in superblock.groups() {
            zones.add(superblock.base_metadata(group));
            for zone in instance.group_desc(group)?.metadata_zones(superblock) {
                zones.add(zone);
            }
            if zones.is_full() {
                return Err(Error::OutOfMemory);
            }
        }
        Ok(Self {
            zones: zones.merged(),
        })
    }

    /// Whether any of `len` blocks from `start` on is the file system's own.
    pub(crate) fn overlap(&self, start: BlockNo, len: u32) -> bool {
        let end = start.0.saturating_add(u64::from(len));
        let after = self.zones.partition_point(|zone| zone.start < end);
        after
            .checked_sub(1)
            .and_then(|last| self.zones.get(last))
            .is_some_and(|zone| zone.end > start.0)
    }
}

/// The superblock and the descriptors at the start of a group, without the room in which they can
/// grow: the resize inode owns that.
fn own_range(instance: &Instance, group: GroupNo) -> Range<BlockNo> {
    let superblock = &instance.superblock;
    superblock.base_metadata(group).start..superblock.reserved_descriptor_blocks(group).start
}

/// Ranges as they come, merged from time to time.
#[derive(Debug, Default)]
struct Builder {
    zones: Vec<Range<u64>>,
}

impl Builder {
    fn add(&mut self, zone: Range<BlockNo>) {
        let zone = zone.start.0..zone.end.0;
        if zone.is_empty() {
            return;
        }
        // Bitmaps and tables mostly follow each other.
        match self.zones.last_mut() {
            Some(last) if last.end == zone.start => last.end = zone.end,
            _ => self.zones.push(zone),
        }
    }

    /// Whether there are more ranges than are kept, even merged.
    fn is_full(&mut self) -> bool {
        if self.zones.len() < 2 * ZONES_MAX {
            return false;
        }
        self.zones = std::mem::take(self).merged();
        self.zones.len() > ZONES_MAX
    }

    fn merged(mut self) -> Vec<Range<u64>> {
        self.zones.sort_unstable_by_key(|zone| zone.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for zone in self.zones {
            match merged.last_mut() {
                Some(last) if zone.start <= last.end => last.end = last.end.max(zone.end),
                _ => merged.push(zone),
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn overlaps_are_those_of_the_ranges(
            ranges in proptest::collection::vec((0u64..200, 0u64..12), 0..20),
            start in 0u64..220,
            len in 1u32..40,
        ) {
            let mut builder = Builder::default();
            let mut owned = [false; 300];
            for (first, count) in ranges {
                builder.add(BlockNo(first)..BlockNo(first + count));
                for block in first..first + count {
                    owned[block as usize] = true;
                }
            }
            let zones = SystemZones { zones: builder.merged() };
            let due = (start..start + u64::from(len)).any(|block| owned[block as usize]);
            prop_assert_eq!(zones.overlap(BlockNo(start), len), due);
            prop_assert!(zones.zones.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }

    #[test]
    fn too_many_ranges_are_noticed() {
        let mut builder = Builder::default();
        for number in 0..2 * ZONES_MAX as u64 - 1 {
            builder.add(BlockNo(2 * number)..BlockNo(2 * number + 1));
            assert!(!builder.is_full());
        }
        builder.add(BlockNo(u64::MAX - 1)..BlockNo(u64::MAX));
        assert!(builder.is_full());
    }
}
