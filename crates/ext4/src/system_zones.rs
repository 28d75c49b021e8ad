//! The blocks that hold the file system's own metadata, which no file may own: the superblock and
//! its copies, group descriptors, bitmaps, inode tables and the journal (Linux: block_validity).

use std::ops::Range;

use pagefence_ext4_format::features::Compat;
use pagefence_ext4_format::{BlockNo, GroupNo, InodeNo};
use pagefence_vfs::{Error, Result};

use crate::instance::Instance;
use crate::journal_location::locate;
use crate::recovery::blocks_of;

/// Ranges that are kept, at most: 1 MiB of them. With flex_bg that is some 500 TiB of 4 KiB
/// blocks. Past it, files are checked against the range that comes first in each group alone.
const ZONES_MAX: usize = 1 << 16;

/// Ranges of blocks that are not for files.
#[derive(Debug, Default)]
pub(crate) struct SystemZones {
    /// Ascending; neither overlapping nor adjacent.
    zones: Vec<Range<u64>>,
    /// The journal's inode, and its blocks, as `zones`: they are its own and nobody else's.
    journal: Option<(InodeNo, Vec<Range<u64>>)>,
}

impl SystemZones {
    /// Reads every descriptor, and finds the journal. A group whose descriptor is damaged has no
    /// zones: what uses it reports that, and no other group suffers; so with the journal. Nothing
    /// is logged.
    pub(crate) fn of(instance: &Instance) -> Self {
        Self {
            zones: Self::of_groups(instance),
            journal: journal_zones(instance),
        }
    }

    fn of_groups(instance: &Instance) -> Vec<Range<u64>> {
        let superblock = &instance.superblock;
        // Three ranges a group, before they are merged: only so many groups can stay below the
        // limit, and only they are worth the walk.
        if superblock.group_count() as usize > 16 * ZONES_MAX {
            return Vec::new();
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
                return Vec::new();
            }
        }
        zones.merged()
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
            journal: None,
        })
    }

    /// Whether any of `len` blocks from `start` on is the file system's own.
    pub(crate) fn overlap(&self, start: BlockNo, len: u32) -> bool {
        let journal = self.journal.as_ref();
        overlap(&self.zones, start, len)
            || journal.is_some_and(|(_, blocks)| overlap(blocks, start, len))
    }

    /// As [`Self::overlap`], for blocks that `inode` claims: the journal's are the journal's.
    pub(crate) fn overlap_of(&self, inode: InodeNo, start: BlockNo, len: u32) -> bool {
        match &self.journal {
            Some((owner, _)) if *owner == inode => overlap(&self.zones, start, len),
            _ => self.overlap(start, len),
        }
    }
}

fn overlap(zones: &[Range<u64>], start: BlockNo, len: u32) -> bool {
    #[cfg(feature = "mutants")]
    if mutant::is_left_out() {
        return false;
    }
    let end = start.0.saturating_add(u64::from(len));
    let after = zones.partition_point(|zone| zone.start < end);
    after
        .checked_sub(1)
        .and_then(|last| zones.get(last))
        .is_some_and(|zone| zone.end > start.0)
}

/// The journal that is a file, if there is one that can be found, and its blocks.
fn journal_zones(instance: &Instance) -> Option<(InodeNo, Vec<Range<u64>>)> {
    let superblock = &instance.superblock;
    if !superblock.has_compat(Compat::HAS_JOURNAL) {
        return None;
    }
    let inode = superblock.journal_inode()?;
    let location = locate(&**instance.device(), superblock, inode).ok()?;
    let mut zones = Builder::default();
    for run in blocks_of(&location) {
        zones.add(run);
    }
    Some((inode, zones.merged()))
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

/// The check that a proof leaves out, to show that it would be noticed.
#[cfg(feature = "mutants")]
mod mutant {
    use pagefence_lock_order::primitives::atomic::{AtomicU8, Ordering};

    /// Says by name what is left out, from the first look on.
    const VARIABLE: &str = "PAGEFENCE_LEAVE_OUT";
    const NAME: &str = "unchecked-field";

    static LEFT_OUT: AtomicU8 = AtomicU8::new(UNKNOWN);
    const UNKNOWN: u8 = 2;

    pub(super) fn is_left_out() -> bool {
        if LEFT_OUT.load(Ordering::Relaxed) == UNKNOWN {
            let is_named = std::env::var(VARIABLE).is_ok_and(|name| name == NAME);
            LEFT_OUT.store(is_named.into(), Ordering::Relaxed);
        }
        LEFT_OUT.load(Ordering::Relaxed) == 1
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
            let zones = SystemZones { zones: builder.merged(), journal: None };
            let due = (start..start + u64::from(len)).any(|block| owned[block as usize]);
            prop_assert_eq!(zones.overlap(BlockNo(start), len), due);
            prop_assert!(zones.zones.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }

    #[test]
    fn the_journal_owns_its_blocks() {
        let zones = SystemZones {
            zones: vec![10..20, 40..50],
            journal: Some((InodeNo(8), vec![20..24, 26..30])),
        };
        assert!(zones.overlap_of(InodeNo(12), BlockNo(29), 1));
        assert!(zones.overlap(BlockNo(20), 1));
        assert!(!zones.overlap_of(InodeNo(8), BlockNo(20), 20));
        assert!(zones.overlap_of(InodeNo(8), BlockNo(20), 21));
        assert!(!zones.overlap_of(InodeNo(12), BlockNo(30), 10));
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
