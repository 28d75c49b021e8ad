//! Space for a range of a file (fallocate(2)), and what else is asked for in that way: what may be
//! done, and by whom it is done ([`crate::punch`] for what takes blocks away).
//!
//! Who stores through a map takes no inode lock (RACES S2.2), so a hole may be dirty, or be given
//! blocks by writeback, a moment after it was found. Invariant: nobody but writeback gives blocks to
//! what is dirty or under writeback, since its space is reserved, and counted down, for exactly that
//! ([`crate::delalloc`]). So
//! - unwritten blocks are put in inside the fence, a run of them at a time: what of its range is
//!   dirty is written first, and nobody can make more so until the run is in the map. What is still
//!   delayed then has no dirty page (its writing failed some time), and is delayed no more;
//! - zeros, in a block map, are not written: pages are made dirty as they are
//!   ([`pagefence_page_cache::Mapping::rewrite`]), which a store meanwhile does as well.

use std::ops::Range;

use pagefence_ext4_format::inode::InodeFlags;
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_lock_order::levels::{self, BlockMap, Level};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::{After, Held};
use pagefence_page_cache::{PAGE_SIZE, WaitFor};
use pagefence_vfs::{Error, FallocateMode, Result};

use crate::alloc::{BlockOwner, BusyRun, Claim, Reach, Reservation};
use crate::change::Transaction;
use crate::change::insert_blocks::{NewRun, insert_blocks};
use crate::delalloc::MapShapeNow;
use crate::disk_inode::DiskInode;
use crate::file_write::note_change;
use crate::filesystem::{File, FileSystem};
use crate::inode::Inode;
use crate::instance::Instance;
use crate::map_blocks::{Run, Target};
use crate::punch::{Clearing, STEP};

/// Blocks allocated at a time, at most: the longest unwritten extent.
const RUN_MAX: u32 = 32767;

impl FileSystem {
    /// See [`pagefence_vfs::FileSystem::allocate`].
    pub(crate) fn fallocate(
        &self,
        file: &File,
        offset: u64,
        length: u64,
        mode: FallocateMode,
    ) -> Result<()> {
        self.instance.live()?;
        let inode = &file.inode;
        let is_sync = {
            let mut entry = Held::at_entry();
            let (_alone, mut held) = inode.lock.write(&mut entry);
            let end = check(&self.instance, inode, offset, length, mode)?;
            self.instance.check_shift(inode, &(offset..end), mode)?;
            if inode.disk().has_inline_data() {
                self.make_inline_fit(&mut held, inode, PAGE_SIZE as u64 + 1)?;
            }
            if !mode.contains(FallocateMode::PUNCH_HOLE) {
                // Before there is anything new behind the end.
                self.finish_cut(&mut held, inode)?;
            }
            note_change(inode);
            {
                let (mut delayed, _held) = inode.core.block_map.write(&mut held);
                delayed.use_reserve(mode.contains(FallocateMode::USE_RESERVE));
            }
            if mode.contains(FallocateMode::PUNCH_HOLE) {
                self.punch(&mut held, inode, offset..end)?;
            } else if mode.contains(FallocateMode::ZERO_RANGE) {
                self.zero_range(&mut held, inode, offset..end, mode)?;
            } else if mode.contains(FallocateMode::COLLAPSE_RANGE) {
                self.collapse_range(&mut held, inode, offset..end)?;
            } else if mode.contains(FallocateMode::INSERT_RANGE) {
                self.insert_range(&mut held, inode, offset..end)?;
            } else {
                self.preallocate(&mut held, inode, offset..end, mode)?;
            }
            inode.disk().record.flags().contains(InodeFlags::SYNC)
        };
        if is_sync {
            self.fsync(file, false)?;
        }
        Ok(())
    }

    fn blocks_touched(&self, bytes: &Range<u64>) -> Result<Range<u32>> {
        let bits = self.instance.superblock.block_size_bits();
        let end = bytes.end.div_ceil(1 << bits);
        let (first, end) = (u32::try_from(bytes.start >> bits), u32::try_from(end));
        match (first, end) {
            (Ok(first), Ok(end)) => Ok(first..end),
            _ => Err(Error::FileTooLarge),
        }
    }

    /// The blocks that lie wholly in a range.
    pub(crate) fn blocks_inside(&self, bytes: &Range<u64>) -> Result<Range<u32>> {
        let bits = self.instance.superblock.block_size_bits();
        let first = u32::try_from(bytes.start.div_ceil(1 << bits));
        let end = u32::try_from(bytes.end >> bits);
        match (first, end) {
            (Ok(first), Ok(end)) => Ok(first..end.max(first)),
            _ => Err(Error::FileTooLarge),
        }
    }

    /// Gives the range blocks where it has none. What was done before an error stays, the size
    /// that covers it as well, as in Linux.
    fn preallocate(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        bytes: Range<u64>,
        mode: FallocateMode,
    ) -> Result<()> {
        let keeps_size = mode.contains(FallocateMode::KEEP_SIZE);
        if !inode.disk().has_extents() {
            check_zeros(inode, &bytes)?;
            return self.fill_with_zeros(held, inode, &bytes);
        }
        // Most of what is delayed gets its place while faults can still be served.
        let mapping = inode.mapping(&self.instance, &self.cache);
        mapping.write_back(held, bytes.clone(), WaitFor::All)?;
        let blocks = self.blocks_touched(&bytes)?;
        let (reached, outcome) = self.fill_with_unwritten(held, inode, &blocks);
        let bits = self.instance.superblock.block_size_bits();
        let size = (u64::from(reached) << bits).min(bytes.end);
        let has_reached = outcome.is_ok() || reached > blocks.start;
        if !keeps_size && has_reached && size > inode.core.size() {
            self.set_size(held, inode, size)?;
        }
        outcome
    }

    /// Puts unwritten blocks where there is a hole; says how far it came.
    fn fill_with_unwritten(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        blocks: &Range<u32>,
    ) -> (u32, Result<()>) {
        let mut at = blocks.start;
        while at < blocks.end {
            let run = match self.run_at(held, inode, at) {
                Ok(run) => run,
                Err(error) => return (at, Err(error)),
            };
            let len = run.len.min(blocks.end - at);
            if run.target != Target::Hole {
                at += len;
                continue;
            }
            match self.put_unwritten(held, inode, at, len.min(RUN_MAX)) {
                Ok(done) => at += done,
                Err(error) => return (at, Err(error)),
            }
        }
        (at, Ok(()))
    }

    pub(crate) fn run_at<P: Level>(
        &self,
        held: &mut Held<'_, P>,
        inode: &Inode,
        block: u32,
    ) -> Result<Run>
    where
        BlockMap: After<P>,
    {
        let (_map, _held) = inode.core.block_map.read(held);
        self.instance.map_blocks(&inode.disk(), FileBlock(block))
    }

    /// What the map is like around `block` ([`MapShapeNow::to_change`]).
    pub(crate) fn shape_to_change(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Inode,
        block: u32,
    ) -> Result<MapShapeNow> {
        let (_map, _held) = inode.core.block_map.read(held);
        MapShapeNow::to_change(&self.instance, &inode.disk(), FileBlock(block))
    }

    /// Puts up to `want` unwritten blocks where a hole was seen; says how many blocks from there
    /// have a place now.
    fn put_unwritten(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        at: u32,
        want: u32,
    ) -> Result<u32> {
        let live = self.instance.live()?;
        let shape = self.shape_to_change(held, inode, at)?;
        let mut space = self.reserve(held, inode, u64::from(want))?;
        let mut for_map = self.reserve_all_within(
            held,
            inode,
            shape.worst_case_of_punch(),
            Claim::Map,
            shape.reach(),
        )?;
        let mapping = inode.mapping(&self.instance, &self.cache);
        let bits = self.instance.superblock.block_size_bits();
        let bytes = u64::from(at) << bits..(u64::from(at) + u64::from(want)) << bits;
        let (_fence, mut held) = mapping.fence(held, bytes.clone());
        mapping.write_back(&mut held, bytes, WaitFor::All)?;
        // That may have given it a place.
        let found = self.run_at(&mut held, inode, at)?;
        let want = found.len.min(want);
        if found.target != Target::Hole {
            return Ok(want);
        }
        let goal = match at.checked_sub(1) {
            Some(before) => match self.run_at(&mut held, inode, before)?.target {
                Target::Written(block) | Target::Unwritten(block) => Some(BlockNo(block.0 + 1)),
                Target::Hole => None,
            },
            None => None,
        };
        let goal = goal.unwrap_or_else(|| live.allocator.data_goal(inode.core.number, false));
        let run = live
            .allocator
            .allocate(&self.instance, goal, want, &mut space)?;
        let (mut transaction, mut held) = self.instance.begin(&mut held, STEP)?;
        let (mut delayed, _held) = inode.core.block_map.write(&mut held);
        // Writeback elsewhere in the file may have made the map another one.
        let shape = MapShapeNow::to_change(&self.instance, &inode.disk(), FileBlock(at))?;
        self.top_up(inode, &mut for_map, shape.worst_case_of_punch())?;
        let new = NewRun {
            first: FileBlock(at),
            start: run.start(),
            len: run.len(),
            unwritten: true,
        };
        transaction.lend(for_map);
        // The entry that comes may take the room that delayed blocks count on.
        let outcome = delayed
            .begin_cut(&live.allocator, &shape)
            .and_then(|()| map_unwritten(&mut transaction, inode, &new, run));
        if outcome.is_ok() {
            // Nothing is dirty here: what is still delayed could not be written back some time.
            delayed.forget(at..at + new.len);
        }
        delayed.end_cut();
        let settled = mapping.backing().settle(&mut delayed, None);
        outcome.and(settled)?;
        transaction.end();
        Ok(new.len)
    }

    /// Space for `blocks` of data, or for as many as there can be.
    fn reserve(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Inode,
        mut blocks: u64,
    ) -> Result<Reservation> {
        let claim = {
            let (delayed, _held) = inode.core.block_map.read(held);
            Claim::of(delayed.uses_reserve())
        };
        let mut space = self.reserve_all(held, inode, blocks, claim);
        while matches!(space, Err(Error::NoSpace)) && blocks > 1 {
            blocks /= 2;
            space = self.instance.live()?.allocator.reserve(blocks, claim);
        }
        space
    }

    /// Space for `blocks`; looks for some if there is none. The caller holds the inode lock
    /// exclusively and no other.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn reserve_all(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Inode,
        blocks: u64,
        claim: Claim,
    ) -> Result<Reservation> {
        self.reserve_all_within(held, inode, blocks, claim, Reach::Everywhere)
    }

    /// As [`Self::reserve_all`], within `reach`.
    ///
    /// # Errors
    /// As [`Self::reserve_all`].
    pub(crate) fn reserve_all_within(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Inode,
        blocks: u64,
        claim: Claim,
        reach: Reach,
    ) -> Result<Reservation> {
        let live = self.instance.live()?;
        let reserve = || live.allocator.reserve_within(blocks, claim, reach);
        match reserve() {
            Err(Error::NoSpace) => {
                let mapping = inode.mapping(&self.instance, &self.cache);
                mapping.backing().find_space(held);
                reserve()
            }
            other => other,
        }
    }

    /// Gives the holes of a file with a block map the zeros that they read as, or what is stored
    /// there meanwhile: to be written, with space for it.
    fn fill_with_zeros(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        bytes: &Range<u64>,
    ) -> Result<()> {
        let bits = self.instance.superblock.block_size_bits();
        let mapping = inode.mapping(&self.instance, &self.cache);
        // What is delayed from here on is dirty.
        mapping.give_back_unwritten(held);
        let blocks = self.blocks_touched(bytes)?;
        let mut at = blocks.start;
        while at < blocks.end {
            let (is_hole, len) = {
                let (delayed, _held) = inode.core.block_map.read(held);
                let run = self.instance.map_blocks(&inode.disk(), FileBlock(at))?;
                let (is_delayed, delayed_run) = delayed.hole_at(FileBlock(at));
                let is_hole = run.target == Target::Hole && !is_delayed;
                let len = if run.target == Target::Hole {
                    run.len.min(delayed_run)
                } else {
                    run.len
                };
                (is_hole, len.min(blocks.end - at))
            };
            let from = u64::from(at) << bits;
            at += len;
            if is_hole {
                let to = (u64::from(at) << bits).min(inode.core.size());
                let mut offset = from;
                while offset < to {
                    offset += mapping.rewrite(held, offset..to)?;
                }
            }
        }
        Ok(())
    }

    /// Makes the range read as zeros, of blocks that stay or are put there: unwritten ones, or, in a
    /// block map, which has none, such that hold zeros.
    fn zero_range(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        bytes: Range<u64>,
        mode: FallocateMode,
    ) -> Result<()> {
        let how = if inode.disk().has_extents() {
            Clearing::Unwrite
        } else {
            check_zeros(inode, &bytes)?;
            Clearing::Punch
        };
        self.clear(held, inode, bytes.clone(), how)?;
        self.preallocate(held, inode, bytes, mode)
    }
}

/// Puts a run of unwritten blocks, which are busy, into the map.
fn map_unwritten(
    transaction: &mut Transaction<'_>,
    inode: &Inode,
    new: &NewRun,
    run: BusyRun,
) -> Result<()> {
    let before = inode.disk();
    let mut record = before.record.clone();
    insert_blocks(transaction, &mut record, new)?;
    if let Some((allocator, handle)) = transaction.allocation() {
        allocator.use_run(handle, BlockOwner::Contents(inode.core.number), run);
    }
    inode.core.adopt(&before.record, &record);
    inode.core.write(transaction, true)
}

/// Whether the file's blocks are mapped by pointers, for which there is nothing unwritten.
fn is_block_map(disk: &DiskInode) -> bool {
    !disk.has_extents() && !disk.has_inline_data()
}

/// Whether zeros can stand for space, in a file whose map knows no unwritten blocks: not past its
/// end, where they would be seen when it grows by other means.
fn check_zeros(inode: &Inode, bytes: &Range<u64>) -> Result<()> {
    if bytes.end > inode.core.size() {
        return Err(Error::Unsupported("space past the end of such a file"));
    }
    Ok(())
}

/// Whether this can be done to the file; where the range ends. Order and rules are those of Linux's
/// `vfs_fallocate`; that a file may be in use for swapping (`ETXTBSY`) nobody tells us.
///
/// # Errors
/// `InvalidArgument`, `Unsupported`, `NotPermitted`, `FileTooLarge`.
fn check(
    instance: &Instance,
    inode: &Inode,
    offset: u64,
    length: u64,
    mode: FallocateMode,
) -> Result<u64> {
    let punches = mode.contains(FallocateMode::PUNCH_HOLE);
    let zeroes = mode.contains(FallocateMode::ZERO_RANGE);
    let keeps = mode.contains(FallocateMode::KEEP_SIZE);
    let shifts = FallocateMode::COLLAPSE_RANGE | FallocateMode::INSERT_RANGE;
    let is_shift = mode.intersects(shifts);
    let is_shift_alone = (mode & !FallocateMode::USE_RESERVE)
        .bits()
        .is_power_of_two();
    if i64::try_from(offset).is_err() || i64::try_from(length).is_err() || length == 0 {
        return Err(Error::InvalidArgument);
    }
    if (punches && (zeroes || !keeps)) || (is_shift && !is_shift_alone) {
        return Err(Error::Unsupported("that mode of fallocate"));
    }
    let disk = inode.disk();
    let flags = disk.record.flags();
    let only_grows = flags.contains(InodeFlags::APPEND) && (punches || zeroes || is_shift);
    if only_grows || flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::VERITY) {
        return Err(Error::NotPermitted);
    }
    let end = offset.saturating_add(length);
    // A block map is asked for nothing past the end of its file, which has its own limit.
    let is_put = !punches && !is_shift && !is_block_map(&disk);
    if end > instance.max_offset() || (is_put && end > instance.max_file_size(&disk)) {
        return Err(Error::FileTooLarge);
    }
    Ok(end)
}
