//! Delayed allocation: file blocks that have space, but no place yet.
//!
//! A page may be dirty only over blocks that are written on disk, or that are in here. What is in
//! here has its space reserved: a block for each that has none, and the blocks that the file's map
//! may take at worst until all of them are mapped ([`MapShapeNow::worst_case`]). So what a write
//! was promised can be mapped, whatever else fills the disk meanwhile.
//!
//! Invariants:
//! - `space` has a block for each of `holes` that writeback has not chosen one for, and `map_space`
//!   as many as the map needs at worst: that of the moment when it was last counted, less what
//!   the map took since. Counting again after a mapping only lowers it.
//! - A mapping never takes blocks away from the map, but what it takes for the map may be taken away
//!   again by a cut, while others count on it: whatever cuts counts all that may be missing anew
//!   ([`Delayed::refill`]). A punch of extents also splits nodes, and reserves on top
//!   ([`Delayed::begin_cut`]).
//! - Nothing delayed: nothing reserved.

use std::ops::Range;

use pagefence_ext4_format::extent::{ExtentNode, Place, entries_that_fit};
use pagefence_ext4_format::indirect::DIRECT_SLOTS;
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::Result;

use crate::alloc::{Allocator, Claim, Reach, Reservation};
use crate::block_ranges::BlockRanges;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::Instance;

/// Extents that fit into an inode.
const ROOT_EXTENTS: u64 = 4;

/// The delayed blocks of one file. Guarded by the block map's lock.
#[derive(Debug, Default)]
pub(crate) struct Delayed {
    /// Blocks that have no place: their data is in dirty pages, or under writeback.
    holes: BlockRanges,
    /// Blocks of unwritten extents that pages are dirty over: to be marked as written.
    unwritten: BlockRanges,
    /// How many of `holes` writeback has chosen blocks for.
    chosen: u64,
    /// For the data.
    space: Option<Reservation>,
    /// For the map.
    map_space: Option<Reservation>,
    /// Of that, what a cut that is being made may cost.
    for_cut: u64,
    flush_on_close: bool,
    /// Whether data may take what is kept back for root: as the last writer may.
    uses_reserve: bool,
    has_failed: bool,
    /// A block of the file, and where it would best lie: behind what was given a place last.
    goal: Option<(u32, BlockNo)>,
}

/// What of a file's map bounds how many blocks it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapShapeNow {
    Extents {
        /// Levels of nodes below the root.
        depth: u16,
        /// Entries in the root.
        in_root: u64,
        /// Entries that fit into a node.
        per_node: u64,
    },
    Pointers {
        /// Pointers that fit into an indirect block.
        per_block: u64,
    },
}

/// What is delayed, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Blocks without a place, and the ranges that they form.
    pub(crate) holes: u64,
    pub(crate) hole_ranges: u64,
    /// Unwritten blocks to be written, and their ranges.
    pub(crate) unwritten: u64,
    pub(crate) unwritten_ranges: u64,
    /// The highest block.
    pub(crate) last: u64,
}

impl MapShapeNow {
    /// What the map of an inode looks like.
    ///
    /// # Errors
    /// `Corrupt` if its root makes no sense.
    pub(crate) fn of(instance: &Instance, disk: &DiskInode) -> Result<Self> {
        let block_size = instance.superblock.block_size() as usize;
        if !disk.has_extents() {
            return Ok(Self::Pointers {
                per_block: instance.map_shape.per_block().into(),
            });
        }
        let root = ExtentNode::parse(disk.i_block(), &Place::Root, &instance.limits).at(
            &instance.damage,
            Some(disk.number),
            None,
        )?;
        Ok(Self::Extents {
            depth: root.depth(),
            in_root: root.len() as u64,
            per_node: entries_that_fit(block_size).into(),
        })
    }

    /// Where the blocks of such a file may lie, and those of its map.
    pub(crate) fn reach(&self) -> Reach {
        match self {
            Self::Extents { .. } => Reach::Everywhere,
            Self::Pointers { .. } => Reach::Pointers,
        }
    }

    /// What the map of an inode looks like that is about to be changed around `block`: every node
    /// on the way there has all the room that it can have, which is what its worst cases stand on.
    /// Linux never makes other ones.
    ///
    /// # Errors
    /// `Corrupt` if one has not, or makes no sense; `Io`.
    pub(crate) fn to_change(
        instance: &Instance,
        disk: &DiskInode,
        block: FileBlock,
    ) -> Result<Self> {
        if disk.has_extents() {
            instance.check_extent_room(disk, block)?;
        }
        Self::of(instance, disk)
    }

    /// Blocks that the map takes at most until all of `amount` is mapped, in whatever order and
    /// pieces, each block apart from every other.
    ///
    /// Extents: each delayed block may become an entry of a leaf, and a run of unwritten ones
    /// leaves one more. All entries of one range go to one place between two that are there, so
    /// to one node of each level: that one may be full, and splits. From then on a node is split
    /// only after half a node of entries was put there (or, at the end of the file, almost a
    /// whole one, which leaves a node that is almost full: hence twice, and one more for the first
    /// of them). What splits is an entry for the level above, and the root may have to grow.
    ///
    /// Pointers: every indirect block that leads to a delayed block may be missing; a range of n
    /// blocks lies below at most n/p + 2 of the lowest.
    pub(crate) fn worst_case(&self, amount: &Amount) -> u64 {
        match *self {
            Self::Extents {
                depth,
                in_root,
                per_node,
            } => {
                // A truncation may leave nothing but a root.
                let from_root = nodes(amount, 0, ROOT_EXTENTS, per_node);
                if depth == 0 {
                    nodes(amount, 0, in_root, per_node)
                } else {
                    nodes(amount, depth, in_root, per_node).max(from_root)
                }
            }
            Self::Pointers { per_block } => indirect_blocks(amount, per_block),
        }
    }

    /// Blocks that the map takes at most when one piece is taken out of its middle, and what it
    /// loses in free entries by that.
    pub(crate) fn worst_case_of_punch(&self) -> u64 {
        match *self {
            // Two ways down, each of which may have to split all the way, and a root that grows.
            Self::Extents { depth, .. } => 2 * (u64::from(depth) + 2),
            Self::Pointers { .. } => 0,
        }
    }
}

fn nodes(amount: &Amount, depth: u16, in_root: u64, per_node: u64) -> u64 {
    let half = (per_node / 2).saturating_sub(1).max(2);
    let mut entries = amount.holes;
    if amount.unwritten > 0 {
        entries += amount.unwritten + amount.unwritten_ranges;
    }
    // A range of unwritten blocks may lead over the border of nodes at both ends, and over full
    // nodes in between.
    let places = amount.hole_ranges + 2 * amount.unwritten_ranges + amount.unwritten / half;
    let mut taken = 0;
    for level in 0..depth {
        let is_below_root = level + 1 == depth;
        let there = if is_below_root { in_root } else { u64::MAX };
        let splits = entries.min(places.min(there) + 1 + 2 * (entries / half));
        taken += splits;
        entries = splits;
    }
    let mut in_root = in_root;
    while entries + in_root > ROOT_EXTENTS && entries > 0 {
        let splits = 2 * (entries / half);
        taken += 1 + splits;
        entries = splits;
        in_root = 1;
    }
    taken
}

fn indirect_blocks(amount: &Amount, per_block: u64) -> u64 {
    let blocks = amount.holes;
    let (mut base, mut span) = (u64::from(DIRECT_SLOTS), per_block);
    if blocks == 0 || amount.last < base {
        return 0;
    }
    let mut taken = 0;
    let mut most = blocks.min(blocks / per_block + 2 * amount.hole_ranges);
    // Lowest level first; there are no more of each than lie between the inode and the last.
    for _ in 0..3 {
        most = most.min((amount.last - base) / span + 1);
        taken += most;
        base += span;
        if amount.last < base {
            break;
        }
        span = span.saturating_mul(per_block);
    }
    taken
}

impl Delayed {
    /// How many blocks have no place, those included that are being given one.
    pub(crate) fn blocks(&self) -> u64 {
        self.holes.len()
    }

    /// Where block `first` would best lie, going by what was given a place last; what was may be
    /// on its way to the map.
    pub(crate) fn goal(&self, first: u32) -> Option<BlockNo> {
        let (block, goal) = self.goal?;
        let gap = first.checked_sub(block)?;
        Some(BlockNo(goal.0.saturating_add(gap.into())))
    }

    /// What follows block `next` would best lie at `goal`.
    pub(crate) fn set_goal(&mut self, next: u32, goal: BlockNo) {
        self.goal = Some((next, goal));
    }

    /// Whether what is added may come out of what is kept back for root.
    pub(crate) fn uses_reserve(&self) -> bool {
        self.uses_reserve
    }

    /// Sets [`Self::uses_reserve`], for the writer that holds the inode lock.
    pub(crate) fn use_reserve(&mut self, may: bool) {
        self.uses_reserve = may;
    }

    /// Has the file written back when it is closed ([`Self::take_flush_on_close`]).
    pub(crate) fn set_flush_on_close(&mut self) {
        self.flush_on_close = true;
    }

    /// Whether the file was cut to nothing since it was last written back for that: what was then
    /// written to it is not left to chance (Linux: `auto_da_alloc`).
    pub(crate) fn take_flush_on_close(&mut self) -> bool {
        std::mem::take(&mut self.flush_on_close)
    }

    /// Whether dirty data over `block` has space, and for how many blocks from there that stays
    /// so.
    pub(crate) fn hole_at(&self, block: FileBlock) -> (bool, u32) {
        self.holes.run_at(block)
    }

    /// Whether unwritten `block` is counted in, and for how many blocks from there that stays so.
    pub(crate) fn unwritten_at(&self, block: FileBlock) -> (bool, u32) {
        self.unwritten.run_at(block)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.holes.is_empty() && self.unwritten.is_empty()
    }

    /// Writing back failed: blocks may stay delayed though no page is dirty over them.
    pub(crate) fn note_failure(&mut self) {
        self.has_failed = true;
    }

    /// Asserts that nothing is reserved, all pages having been written back.
    pub(crate) fn assert_settled(&self) {
        let reserved = blocks_of(self.space.as_ref()) + blocks_of(self.map_space.as_ref());
        debug_assert!(
            self.has_failed || (self.is_empty() && reserved == 0),
            "{reserved} blocks are reserved for {} delayed ones of a file that is written",
            self.holes.len() + self.unwritten.len()
        );
    }

    fn amount(&self) -> Amount {
        Amount {
            holes: self.holes.len(),
            hole_ranges: self.holes.count(),
            unwritten: self.unwritten.len(),
            unwritten_ranges: self.unwritten.count(),
            last: self.holes.last().map_or(0, |block| block.0.into()),
        }
    }

    /// Adds blocks that pages are about to be dirty over, with space for them: `holes`, which have
    /// no place, and `unwritten` ones. None of them may be in here already.
    ///
    /// # Errors
    /// `NoSpace`, and then nothing changed.
    pub(crate) fn add(
        &mut self,
        allocator: &Allocator,
        shape: &MapShapeNow,
        holes: &[Range<u32>],
        unwritten: &[Range<u32>],
    ) -> Result<()> {
        let new: u64 = holes
            .iter()
            .map(|range| self.holes.insert(range.clone()))
            .sum();
        for range in unwritten {
            self.unwritten.insert(range.clone());
        }
        let for_map = shape
            .worst_case(&self.amount())
            .saturating_sub(blocks_of(self.map_space.as_ref()));
        let (claim, reach) = (Claim::of(self.uses_reserve), shape.reach());
        let space = allocator.reserve_within(new, claim, reach);
        let for_map = || allocator.reserve_within(for_map, Claim::Map, reach);
        match space.and_then(|space| Ok((space, for_map()?))) {
            Ok((space, for_map)) => {
                join(&mut self.space, space);
                join(&mut self.map_space, for_map);
                Ok(())
            }
            Err(error) => {
                for range in holes {
                    self.holes.remove(range.clone());
                }
                for range in unwritten {
                    self.unwritten.remove(range.clone());
                }
                Err(error)
            }
        }
    }

    /// Reserves what a punch may cost the delayed blocks that stay, nodes that split and nodes that go
    /// though entries were to be put there, until [`Self::end_cut`].
    ///
    /// # Errors
    /// `NoSpace`, and nothing changed.
    pub(crate) fn begin_cut(&mut self, allocator: &Allocator, shape: &MapShapeNow) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let more = shape.worst_case_of_punch();
        let space = allocator.reserve_within(more, Claim::Map, shape.reach())?;
        join(&mut self.map_space, space);
        self.for_cut = more;
        Ok(())
    }

    /// Has space again for all that the map may take at worst. What was spent on nodes and indirect
    /// blocks is missed once those go because nothing else is mapped below them.
    ///
    /// Called when the range that will be cut is neither dirty nor being mapped any more: what is
    /// spent from then on leads to blocks that stay.
    ///
    /// # Errors
    /// `NoSpace`, and nothing changed.
    pub(crate) fn refill(&mut self, allocator: &Allocator, shape: &MapShapeNow) -> Result<()> {
        let needed = shape.worst_case(&self.amount()) + self.for_cut;
        let more = needed.saturating_sub(blocks_of(self.map_space.as_ref()));
        if more > 0 {
            let space = allocator.reserve_within(more, Claim::Map, shape.reach())?;
            join(&mut self.map_space, space);
        }
        Ok(())
    }

    /// The blocks are gone: what the others need is what it was, and counted again next.
    pub(crate) fn end_cut(&mut self) {
        self.for_cut = 0;
    }

    /// Reserves what a map of another shape may take more than the one there is, until all that is
    /// delayed is mapped ([`Self::settle`] gives back what it takes less), and has what was promised
    /// lie where that map can name it.
    ///
    /// # Errors
    /// `NoSpace`, and then no less is promised than before.
    pub(crate) fn reserve_for_shape(
        &mut self,
        allocator: &Allocator,
        shape: &MapShapeNow,
    ) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let needed = shape.worst_case(&self.amount());
        let more = needed.saturating_sub(blocks_of(self.map_space.as_ref()));
        let more = allocator.reserve_within(more, Claim::Map, shape.reach())?;
        for space in [&mut self.space, &mut self.map_space].into_iter().flatten() {
            space.confine(shape.reach())?;
        }
        join(&mut self.map_space, more);
        Ok(())
    }

    /// The space of `count` blocks, for which writeback is about to choose a place.
    pub(crate) fn choose(&mut self, count: u64) -> Option<Reservation> {
        let space = self.space.as_mut()?.take(count)?;
        self.chosen += count;
        debug_assert!(
            self.chosen <= self.holes.len(),
            "chosen for what is delayed"
        );
        Some(space)
    }

    /// The space of blocks that were not mapped after all.
    pub(crate) fn put_back(&mut self, count: u64, space: Reservation) {
        debug_assert_eq!(space.blocks(), count, "a block for each");
        self.chosen -= count;
        join(&mut self.space, space);
    }

    /// Blocks have their place.
    pub(crate) fn mapped(&mut self, blocks: Range<u32>) {
        let count = u64::from(blocks.end - blocks.start);
        let gone = self.holes.remove(blocks);
        debug_assert_eq!(gone, count, "what is mapped was delayed");
        self.chosen -= count;
    }

    /// Unwritten blocks are written.
    pub(crate) fn written(&mut self, blocks: Range<u32>) {
        self.unwritten.remove(blocks);
    }

    /// The space for the map, to be used by a transaction while the block map is locked;
    /// [`Self::settle`] takes back what is left.
    pub(crate) fn lend_map_space(&mut self) -> Option<Reservation> {
        self.map_space.take()
    }

    /// Takes space for the map back, and gives up what is no longer needed.
    pub(crate) fn settle(&mut self, shape: &MapShapeNow, rest: Option<Reservation>) {
        if let Some(rest) = rest {
            join(&mut self.map_space, rest);
        }
        let needed = shape.worst_case(&self.amount()) + self.for_cut;
        if let Some(space) = &mut self.map_space {
            space.shrink_to(needed);
        }
        if self.is_empty() {
            debug_assert_eq!(self.chosen, 0, "chosen for what is delayed");
            self.space = None;
            self.map_space = None;
        }
    }

    /// As [`Self::forget`], for blocks that failed to be written back. With none of them left,
    /// nothing may be reserved again ([`Self::assert_settled`]).
    pub(crate) fn release(&mut self, blocks: Range<u32>) {
        self.forget(blocks);
        self.has_failed &= !self.is_empty();
    }

    /// The blocks have no dirty data any more: their space is given up. None of them is under
    /// writeback. [`Self::settle`] follows, when the blocks are taken away.
    pub(crate) fn forget(&mut self, blocks: Range<u32>) {
        let gone = self.holes.remove(blocks.clone());
        self.unwritten.remove(blocks);
        if let Some(space) = &mut self.space {
            debug_assert!(space.blocks() >= gone, "none of them is under writeback");
            space.shrink_to(space.blocks().saturating_sub(gone));
        }
    }
}

fn blocks_of(reservation: Option<&Reservation>) -> u64 {
    reservation.map_or(0, Reservation::blocks)
}

fn join(to: &mut Option<Reservation>, from: Reservation) {
    match to {
        Some(to) => to.join(from),
        None => *to = Some(from),
    }
}

#[cfg(test)]
mod tests;
