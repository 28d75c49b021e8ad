//! The blocks that no file may own: superblocks, descriptors, bitmaps, inode tables, the journal.

use std::ops::Range;

use pagefence_ext4_format::BlockNo;
use pagefence_jbd2::JournalRun;
use pagefence_vfs::Result;

use crate::instance::Instance;

/// The blocks that no file may own, as ranges that neither meet nor overlap.
#[derive(Debug)]
pub(crate) struct SystemZones(Vec<Range<u64>>);

impl SystemZones {
    /// Those of the file system, and of its journal.
    ///
    /// # Errors
    /// `Corrupt` or `Io` if a descriptor can't be read.
    pub(crate) fn read(instance: &Instance, journal: &[JournalRun]) -> Result<Self> {
        let superblock = &instance.superblock;
        let mut zones: Vec<Range<u64>> = journal
            .iter()
            .map(|run| run.physical.0..run.physical.0.saturating_add(u64::from(run.count)))
            .collect();
        for group in superblock.groups() {
            let desc = instance.group_desc(group)?;
            let own = desc.metadata_zones(superblock);
            let base = superblock.base_metadata(group);
            zones.extend(
                own.into_iter()
                    .chain([base])
                    .map(|zone| zone.start.0..zone.end.0)
                    .filter(|zone| !zone.is_empty()),
            );
        }
        Ok(Self::merged(zones))
    }

    fn merged(mut zones: Vec<Range<u64>>) -> Self {
        zones.sort_by_key(|zone| zone.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(zones.len());
        for zone in zones {
            match merged.last_mut() {
                Some(last) if zone.start <= last.end => last.end = last.end.max(zone.end),
                _ => merged.push(zone),
            }
        }
        Self(merged)
    }

    /// Whether one of `count` blocks from `start` on is in a zone.
    pub(crate) fn touches(&self, start: BlockNo, count: u32) -> bool {
        let end = start.0.saturating_add(u64::from(count));
        let after = self.0.partition_point(|zone| zone.end <= start.0);
        self.0.get(after).is_some_and(|zone| zone.start < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_merge_and_are_found() {
        let zones = SystemZones::merged(vec![20..30, 5..8, 8..10, 25..26, 40..41]);
        assert_eq!(zones.0, [5..10, 20..30, 40..41]);
        for (start, count, touches) in [
            (0, 5, false),
            (0, 6, true),
            (9, 1, true),
            (10, 10, false),
            (10, 11, true),
            (29, 1, true),
            (30, 10, false),
            (30, 11, true),
            (41, 100, false),
        ] {
            assert_eq!(
                zones.touches(BlockNo(start), count),
                touches,
                "{start}+{count}"
            );
        }
    }
}
