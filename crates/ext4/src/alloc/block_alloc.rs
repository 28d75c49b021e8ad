//! Runs of blocks that are found for somebody (busy), or lent.

use std::ops::Range;

use pagefence_ext4_format::inode::InodeFlags;
use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::{BlockNo, GroupNo, InodeNo};
use pagefence_lock_order::primitives::{Arc, MutexGuard};
use pagefence_vfs::{Error, Result};

use crate::alloc::Allocator;
use crate::alloc::free_runs::FreeRuns;
use crate::alloc::group_state::GroupGuard;
use crate::alloc::low_blocks::LowBlocks;
use crate::alloc::reservation::Reservation;
use crate::instance::Instance;

/// Bitmaps that are read in search of a run that is long enough, at most, before a shorter one
/// does.
const READS_MAX: u32 = 8;

/// One past the last block that a block map can name.
pub(crate) const POINTERS_END: u64 = 1 << 32;

/// Flex groups of so many groups and more keep their first group for directories (Linux:
/// `EXT4_FLEX_SIZE_DIR_ALLOC_SCHEME`).
const FLEX_WITH_DIRECTORIES: u32 = 4;

/// Where blocks may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Wherever there are any.
    Everywhere,
    /// Where 32 bits lead to, which is all that a block map has for a block.
    Pointers,
}

impl Reach {
    /// Where the blocks of an inode with such flags may lie, and those of its map.
    pub(crate) fn of(flags: InodeFlags) -> Self {
        if flags.contains(InodeFlags::EXTENTS) {
            Self::Everywhere
        } else {
            Self::Pointers
        }
    }
}

/// Free blocks in a row, in one group, that nobody else gets meanwhile. Known in memory only;
/// dropped, they are free again.
#[derive(Debug)]
pub(crate) struct BusyRun {
    allocator: Arc<Allocator>,
    start: BlockNo,
    len: u32,
}

impl BusyRun {
    /// First block.
    pub(crate) fn start(&self) -> BlockNo {
        self.start
    }

    /// Blocks, at least one.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Cuts off all but the first `len` blocks; nothing if there are no more.
    pub(crate) fn split_off(&mut self, len: u32) -> Option<Self> {
        let rest = self.len.checked_sub(len).filter(|rest| *rest > 0)?;
        self.len = len;
        Some(Self {
            allocator: Arc::clone(&self.allocator),
            start: BlockNo(self.start.0 + u64::from(len)),
            len: rest,
        })
    }

    /// Makes the blocks free again, and promises as many to the holder of `reservation`.
    ///
    /// Takes the group's lock.
    pub(crate) fn give_back(mut self, reservation: &mut Reservation) {
        let allocator = Arc::clone(&self.allocator);
        let is_low = allocator.low_blocks_at(self.start).is_some();
        reservation.refund(&allocator, self.release(), is_low);
    }

    /// Its blocks, of which `allocator` keeps the bitmap: they are busy until that says so.
    pub(super) fn used_in(mut self, allocator: &Allocator) -> (BlockNo, u32) {
        debug_assert!(std::ptr::eq(allocator, &*self.allocator), "one file system");
        (self.start, std::mem::take(&mut self.len))
    }

    fn release(&mut self) -> u32 {
        let len = std::mem::take(&mut self.len);
        if len > 0 {
            self.allocator.unbusy(self.start, len);
            self.allocator.note_returns();
        }
        len
    }
}

impl Drop for BusyRun {
    fn drop(&mut self) {
        let len = self.release();
        if len > 0
            && let Some(low) = self.allocator.low_blocks_at(self.start)
        {
            low.give(len.into());
        }
        self.allocator.counts.give(len.into());
    }
}

/// Free blocks in a row that nobody gets while the device is told of them. They are not taken off
/// what can be promised.
#[derive(Debug)]
pub(crate) struct LentRun<'a> {
    run: BusyRun,
    /// Given up when the blocks are back: who waits for it finds them.
    _alone: MutexGuard<'a, ()>,
}

impl LentRun<'_> {
    /// First block.
    pub(crate) fn start(&self) -> BlockNo {
        self.run.start
    }

    /// Blocks, at least one.
    pub(crate) fn len(&self) -> u32 {
        self.run.len
    }
}

impl Drop for LentRun<'_> {
    fn drop(&mut self) {
        self.run.release();
    }
}

/// How many groups have blocks that 32 bits can name, and no others.
pub(super) fn low_groups(superblock: &Superblock) -> u32 {
    match superblock.group_of_block(BlockNo(POINTERS_END)) {
        Ok((group, _)) => group.0,
        Err(_) => superblock.group_count(),
    }
}

impl Allocator {
    /// Finds 1 to `want` blocks in a row, near `goal`, for the holder of `from`, which has as
    /// many fewer then: what begins at the goal; else the first run of `want` blocks behind it or
    /// before it in its group; else in another group; else the longest run there is.
    ///
    /// Takes locks of groups, one at a time, and reads bitmaps with none held.
    ///
    /// # Errors
    /// `NoSpace` if the reservation is empty, or damage took what it stood for; `Io` if there is
    /// no free block but where a bitmap can't be read.
    pub(crate) fn allocate(
        self: &Arc<Self>,
        instance: &Instance,
        goal: BlockNo,
        want: u32,
        from: &mut Reservation,
    ) -> Result<BusyRun> {
        self.allocate_within(instance, goal, Reach::Everywhere, want, from)
    }

    /// As [`Self::allocate`], but for blocks within `reach` only.
    ///
    /// # Errors
    /// As [`Self::allocate`]; `NoSpace`, too, if all that is free lies elsewhere.
    pub(crate) fn allocate_within(
        self: &Arc<Self>,
        instance: &Instance,
        goal: BlockNo,
        reach: Reach,
        want: u32,
        from: &mut Reservation,
    ) -> Result<BusyRun> {
        let want = want.min(u32::try_from(from.blocks()).unwrap_or(u32::MAX));
        if want == 0 {
            return Err(Error::NoSpace);
        }
        let groups = self.groups_within(reach);
        let (home, bit) = self
            .superblock
            .group_of_block(goal)
            .ok()
            .filter(|(home, _)| home.0 < groups)
            .unwrap_or((GroupNo(0), 0));
        loop {
            let returns = self.returns();
            let mut search = Search {
                allocator: self,
                instance,
                groups,
                want,
                promised: from,
                reach,
                low: 0,
                failure: None,
            };
            let found = search
                .near(home, bit)
                .or_else(|| search.elsewhere(home))
                .or_else(|| search.anywhere(home));
            if let Some(run) = found {
                let low = search.low;
                from.spend(run.len, low, self.low_blocks_at(run.start).is_some());
                return Ok(run);
            }
            // What came back to a group that was passed already is missed; whatever is promised
            // is somewhere.
            let failure = search.failure;
            if returns == self.returns() {
                // Unless it is lent, which comes back before the lock does.
                drop(self.lending.lock());
            }
            if returns == self.returns() {
                return Err(failure.unwrap_or(Error::NoSpace));
            }
        }
    }

    /// How many groups lie within `reach` as a whole.
    fn groups_within(&self, reach: Reach) -> u32 {
        match reach {
            Reach::Everywhere => self.superblock.group_count(),
            Reach::Pointers => self.low_groups,
        }
    }

    /// The count of those blocks that a block map can name, if the group has such ones, and others
    /// have not.
    pub(super) fn low_blocks(&self, group: GroupNo) -> Option<&LowBlocks> {
        self.counts
            .low
            .as_ref()
            .filter(|_| group.0 < self.low_groups)
    }

    fn low_blocks_at(&self, block: BlockNo) -> Option<&LowBlocks> {
        let (group, _) = self.superblock.group_of_block(block).ok()?;
        self.low_blocks(group)
    }

    /// The goal of a file's first block: the start of its inode's group, or with flex groups of
    /// its flex group, in which what is in directories is kept apart from what is in files.
    pub(crate) fn data_goal(&self, inode: InodeNo, is_directory: bool) -> BlockNo {
        let superblock = &self.superblock;
        let Ok(place) = superblock.locate_inode(inode) else {
            return superblock.first_data_block();
        };
        let mut group = place.group.0;
        let per_flex = superblock.groups_per_flex();
        if per_flex >= FLEX_WITH_DIRECTORIES {
            group -= group % per_flex;
            if !is_directory && group + 1 < superblock.group_count() {
                group += 1;
            }
        }
        superblock.first_block_of_group(GroupNo(group))
    }

    /// The first run of free blocks at `from` or behind it in its group, of at least `least`
    /// blocks, for the device to be told that it is free: nobody's until it is dropped. Nothing if
    /// there is no more in the group.
    ///
    /// The blocks stay promised to whoever they are promised to: an allocation that finds no others
    /// waits for them. One run is lent at a time; no group may be locked.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn next_free_run<'a>(
        self: &'a Arc<Self>,
        instance: &Instance,
        from: BlockNo,
        least: u32,
    ) -> Result<Option<LentRun<'a>>> {
        let Ok((number, bit)) = self.superblock.group_of_block(from) else {
            return Ok(None);
        };
        let least = least.max(1);
        if self.summary(number).longest() < least {
            return Ok(None);
        }
        let alone = self.lending.lock();
        let mut guard = self.lock_with_blocks(instance, number)?;
        let Some(blocks) = guard.blocks_mut() else {
            return Ok(None);
        };
        let run = blocks
            .index
            .first_fit(bit, least)
            .and_then(|found| blocks.index.next_run(found.start));
        Ok(run.map(|run| LentRun {
            run: self.make_busy(&mut guard, number, run),
            _alone: alone,
        }))
    }

    /// Marks a run of a group as busy. It is in the index.
    fn make_busy(
        self: &Arc<Self>,
        guard: &mut GroupGuard<'_>,
        number: GroupNo,
        run: Range<u32>,
    ) -> BusyRun {
        let len = run.end - run.start;
        let first = self.superblock.first_block_of_group(number);
        let start = BlockNo(first.0 + u64::from(run.start));
        if let Some(blocks) = guard.blocks_mut() {
            blocks.index.take(run);
            blocks.busy += len;
        }
        BusyRun {
            allocator: Arc::clone(self),
            start,
            len,
        }
    }

    /// Puts busy blocks back into the index.
    fn unbusy(&self, start: BlockNo, len: u32) {
        let Ok((number, first)) = self.superblock.group_of_block(start) else {
            return;
        };
        if let Some(blocks) = self.lock(number).blocks_mut() {
            blocks.busy -= len;
            blocks.index.give(first..first + len);
        }
    }

    pub(super) fn mark_dirty(&self, guard: &mut GroupGuard<'_>, number: GroupNo) {
        if !std::mem::replace(&mut guard.is_dirty, true) {
            self.note_dirty(number);
        }
    }
}

/// A search for a run.
struct Search<'a> {
    allocator: &'a Arc<Allocator>,
    instance: &'a Instance,
    /// How many groups are searched, from the first on.
    groups: u32,
    want: u32,
    /// What the run comes out of, and where it may lie.
    promised: &'a Reservation,
    reach: Reach,
    /// Of the run that was found: for how many blocks a promise within the reach of block maps went.
    low: u64,
    /// Why a group could not be looked at.
    failure: Option<Error>,
}

impl Search<'_> {
    /// In the goal's group: at the goal, behind it, before it.
    fn near(&mut self, home: GroupNo, bit: u32) -> Option<BusyRun> {
        let want = self.want;
        self.take(home, |runs| match runs.free_at(bit, want) {
            0 => runs
                .first_fit(bit, want)
                .or_else(|| runs.first_fit(0, want)),
            here => Some(bit..bit + here),
        })
    }

    /// In the first group behind the goal's that has a run of the length wanted; else the longest
    /// run of all groups whose runs are known.
    fn elsewhere(&mut self, home: GroupNo) -> Option<BusyRun> {
        let want = self.want;
        let mut reads = 0;
        let mut best = (0, home);
        for number in self.groups_from(home) {
            let summary = self.allocator.summary(number);
            let mut longest = summary.longest();
            if longest >= want && number != home {
                if self.allocator.lock(number).blocks.is_absent() {
                    if reads == READS_MAX {
                        continue;
                    }
                    reads += 1;
                }
                let found = self.take(number, |runs| runs.first_fit(0, want));
                if found.is_some() {
                    return found;
                }
                longest = summary.longest();
            }
            if longest > best.0 {
                best = (longest, number);
            }
        }
        self.take_longest(best.1)
    }

    /// Wherever there is anything, reading all bitmaps if need be.
    fn anywhere(&mut self, home: GroupNo) -> Option<BusyRun> {
        self.groups_from(home)
            .find_map(|number| self.take_longest(number))
    }

    fn take_longest(&mut self, number: GroupNo) -> Option<BusyRun> {
        let want = self.want;
        self.take(number, |runs| runs.first_fit(0, runs.longest().min(want)))
    }

    fn groups_from(&self, home: GroupNo) -> impl Iterator<Item = GroupNo> + use<> {
        (home.0..self.groups).chain(0..home.0).map(GroupNo)
    }

    /// Takes what `choose` finds in a group.
    fn take(
        &mut self,
        number: GroupNo,
        choose: impl FnOnce(&FreeRuns) -> Option<Range<u32>>,
    ) -> Option<BusyRun> {
        if self.allocator.summary(number).free() == 0 {
            return None;
        }
        let mut guard = match self.allocator.lock_with_blocks(self.instance, number) {
            Ok(guard) => guard,
            Err(error) => {
                self.failure = Some(error);
                return None;
            }
        };
        let mut run = choose(&guard.blocks_mut()?.index)?;
        let len = u64::from(run.end - run.start);
        self.low = self.promised.low_of(len, self.reach);
        if let Some(low) = self.allocator.low_blocks(number) {
            // What others are promised stays.
            let had = self.low + low.take_some(len - self.low);
            if had == 0 {
                return None;
            }
            run.end = run.start + had as u32;
        }
        Some(self.allocator.make_busy(&mut guard, number, run))
    }
}
