//! Where the bitmaps and inode tables of each group lie: in their own group, or with `flex_bg`
//! all of a flexible group's together, at its start.

use std::ops::Range;

use pagefence_ext4_format::features::Incompat;
use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::{BlockNo, GroupNo};

use super::error::MkfsError;
use super::space::UsedBlocks;

/// log2 of the groups in a flexible group, as mke2fs chooses it.
pub(super) const LOG_GROUPS_PER_FLEX: u8 = 4;

/// Where a group's metadata lies, and what of the group is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) block_bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: u64,
    /// Inodes in use; they are the first ones.
    pub(super) used_inodes: u32,
    pub(super) directories: u32,
}

/// Blocks of a group.
pub(super) fn group_range(sb: &Superblock, group: GroupNo) -> Range<u64> {
    let first = sb.first_block_of_group(group).0;
    first..first + u64::from(sb.blocks_in_group(group))
}

/// All blocks that belong to a group.
pub(super) fn all_blocks(sb: &Superblock) -> Range<u64> {
    sb.first_data_block().0..sb.blocks_count()
}

/// Takes the blocks of superblocks and descriptors, then those of bitmaps and tables.
pub(super) fn place(sb: &Superblock, used: &mut UsedBlocks) -> Result<Vec<Group>, MkfsError> {
    for group in sb.groups() {
        let Range { start, end } = sb.base_metadata(group);
        used.mark(start.0..end.0);
    }
    let mut groups = Vec::with_capacity(sb.group_count() as usize);
    let together = sb.groups_per_flex();
    for first in (0..sb.group_count()).step_by(together as usize) {
        let last = sb.group_count().min(first + together) - 1;
        let start = group_range(sb, GroupNo(first)).start;
        let end = group_range(sb, GroupNo(last)).end;
        let mut placer = Placer {
            sb,
            used,
            range: start..end,
        };
        let count = last - first + 1;
        let block_bitmaps = placer.take_each(count, 1)?;
        let inode_bitmaps = placer.take_each(count, 1)?;
        let tables = placer.take_each(count, sb.inode_table_blocks().into())?;
        let locations = block_bitmaps.into_iter().zip(inode_bitmaps).zip(tables);
        groups.extend(
            locations.map(|((block_bitmap, inode_bitmap), inode_table)| Group {
                block_bitmap,
                inode_bitmap,
                inode_table,
                used_inodes: 0,
                directories: 0,
            }),
        );
    }
    Ok(groups)
}

/// Takes blocks within one flexible group.
struct Placer<'a> {
    sb: &'a Superblock,
    used: &'a mut UsedBlocks,
    range: Range<u64>,
}

impl Placer<'_> {
    /// Takes `count` runs of `blocks` each, one behind the other where that is possible.
    fn take_each(&mut self, count: u32, blocks: u64) -> Result<Vec<u64>, MkfsError> {
        let whole = u64::from(count) * blocks;
        let mut from = self
            .used
            .find(&self.range, whole)
            .unwrap_or(self.range.start);
        let mut places = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let rest = from..self.range.end;
            let place = self
                .used
                .find(&rest, blocks)
                .or_else(|| self.used.find(&self.range, blocks))
                .or_else(|| self.find_anywhere(blocks))
                .ok_or_else(|| self.no_room(blocks))?;
            self.used.mark(place..place + blocks);
            from = place + blocks;
            places.push(place);
        }
        Ok(places)
    }

    /// With `flex_bg` metadata may lie in any group.
    fn find_anywhere(&self, blocks: u64) -> Option<u64> {
        if !self.sb.has_incompat(Incompat::FLEX_BG) {
            return None;
        }
        self.used.find(&all_blocks(self.sb), blocks)
    }

    fn no_room(&self, blocks: u64) -> MkfsError {
        let all = all_blocks(self.sb);
        MkfsError::NoSpace {
            needed: blocks,
            free: (all.end - all.start).saturating_sub(self.used.count()),
        }
    }
}

/// The blocks of a group that are in use in a group whose bitmap was never written, as Linux
/// works them out: its superblock and descriptors, and those of its own bitmaps and its own table
/// that lie in it.
pub(super) fn uninitialized_count(sb: &Superblock, group: GroupNo, place: &Group) -> u64 {
    let range = group_range(sb, group);
    let base = sb.base_metadata(group);
    let within = |start: u64, blocks: u64| {
        let end = (start + blocks).min(range.end);
        end.saturating_sub(start.max(range.start))
    };
    let BlockNo(base_start) = base.start;
    (base.end.0 - base_start)
        + within(place.block_bitmap, 1)
        + within(place.inode_bitmap, 1)
        + within(place.inode_table, sb.inode_table_blocks().into())
}
