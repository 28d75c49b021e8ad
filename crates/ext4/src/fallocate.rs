//! Space for a range of a file, holes punched into it, ranges made zero (fallocate(2)).
//!
//! Whatever takes blocks away or makes them read as zeros does so inside the fence, once the pages
//! are gone and the edges are zeroed on the device. What the map may take by that is reserved
//! before the first page goes: until then it can still be refused.

use std::ops::Range;

use pagefence_ext4_format::inode::InodeFlags;
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_lock_order::Held;
use pagefence_lock_order::levels;
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{Evict, PAGE_SIZE, WaitFor};
use pagefence_vfs::{Error, FallocateMode, Result};

use crate::alloc::{Claim, Reservation};
use crate::change::Transaction;
use crate::change::insert_blocks::{NewRun, insert_blocks, mark};
use crate::change::remove_blocks::{Progress, remove_range};
use crate::delalloc::MapShapeNow;
use crate::file_write::note_change;
use crate::filesystem::{File, FileSystem};
use crate::inode::Inode;
use crate::live::Need;
use crate::map_blocks::{Run, Target};

/// Blocks allocated at a time, at most: the longest unwritten extent.
const RUN_MAX: u32 = 32767;

/// Bytes of zeros written at a time to a file with a block map.
const ZEROS: usize = 1 << 20;

/// Credits of one step: a run of blocks put in or taken away, and the inode.
const CREDITS: u32 = 96;

/// What happens to the blocks of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clearing {
    /// They are given up.
    Punch,
    /// They stay, unwritten.
    Unwrite,
}

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
            let flags = inode.disk().record.flags();
            let end = check(inode, flags, offset, length, mode)?;
            if end > self.instance.max_file_size(&inode.disk()) {
                return Err(Error::FileTooLarge);
            }
            self.instance.check_shift(inode, &(offset..end), mode)?;
            if inode.disk().has_inline_data() {
                self.make_inline_fit(&mut held, inode, PAGE_SIZE as u64 + 1)?;
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
            flags.contains(InodeFlags::SYNC)
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

    fn blocks_inside(&self, bytes: &Range<u64>) -> Result<Range<u32>> {
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
            if bytes.end > inode.core.size() {
                return Err(Error::Unsupported("space past the end of such a file"));
            }
            return self.fill_with_zeros(held, inode, &bytes);
        }
        // What is delayed gets its place, so that what is left are holes.
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

    fn run_at(&self, held: &mut Held<'_, levels::Inode>, inode: &Inode, block: u32) -> Result<Run> {
        let (_map, _held) = inode.core.block_map.read(held);
        self.instance.map_blocks(&inode.disk(), FileBlock(block))
    }

    /// What the map is like around `block` ([`MapShapeNow::to_change`]).
    fn shape_to_change(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Inode,
        block: u32,
    ) -> Result<MapShapeNow> {
        let (_map, _held) = inode.core.block_map.read(held);
        MapShapeNow::to_change(&self.instance, &inode.disk(), FileBlock(block))
    }

    /// Puts up to `want` unwritten blocks in a hole; says how many.
    fn put_unwritten(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        at: u32,
        want: u32,
    ) -> Result<u32> {
        let live = self.instance.live()?;
        let shape = self.shape_to_change(held, inode, at)?;
        let for_map = shape.worst_case_of_punch();
        let mut space = self.reserve(held, inode, u64::from(want))?;
        let for_map = self.reserve_all(held, inode, for_map, Claim::Map)?;
        let goal = match at.checked_sub(1) {
            Some(before) => match self.run_at(held, inode, before)?.target {
                Target::Written(block) | Target::Unwritten(block) => Some(BlockNo(block.0 + 1)),
                Target::Hole => None,
            },
            None => None,
        };
        let goal = goal.unwrap_or_else(|| live.allocator.data_goal(inode.core.number, false));
        let run = live
            .allocator
            .allocate(&self.instance, goal, want, &mut space)?;
        let (mut transaction, mut held) = self.instance.begin(held, need())?;
        let (mut delayed, _held) = inode.core.block_map.write(&mut held);
        // The entry that comes may take the room that delayed blocks count on.
        delayed.reserve_for_punch(&live.allocator, &shape)?;
        transaction.lend(for_map);
        let before = inode.disk();
        let mut record = before.record.clone();
        let new = NewRun {
            first: FileBlock(at),
            start: run.start(),
            len: run.len(),
            unwritten: true,
        };
        insert_blocks(&mut transaction, &mut record, &new)?;
        if let Some((allocator, handle)) = transaction.allocation() {
            allocator.use_run(handle, run);
        }
        inode.core.adopt(&before.record, &record);
        inode.core.write(&mut transaction, true)?;
        // Nothing is dirty here: what is still delayed could not be written back some time.
        delayed.forget(at..at + new.len);
        transaction.end();
        let mapping = inode.mapping(&self.instance, &self.cache);
        mapping.backing().settle(&mut delayed, None)?;
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

    /// Space for `blocks`; looks for some if there is none.
    fn reserve_all(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Inode,
        blocks: u64,
        claim: Claim,
    ) -> Result<Reservation> {
        let live = self.instance.live()?;
        match live.allocator.reserve(blocks, claim) {
            Err(Error::NoSpace) => {
                let mapping = inode.mapping(&self.instance, &self.cache);
                mapping.backing().find_space(held);
                live.allocator.reserve(blocks, claim)
            }
            other => other,
        }
    }

    /// Writes zeros where a file with a block map has a hole.
    fn fill_with_zeros(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        bytes: &Range<u64>,
    ) -> Result<()> {
        let bits = self.instance.superblock.block_size_bits();
        let mapping = inode.mapping(&self.instance, &self.cache);
        let size = inode.core.size();
        let blocks = self.blocks_touched(bytes)?;
        let zeros = vec![0; ZEROS];
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
                let to = (u64::from(at) << bits).min(size);
                let mut offset = from;
                while offset < to {
                    let most = usize::try_from(to - offset).unwrap_or(ZEROS).min(ZEROS);
                    offset += mapping.write(held, offset, &zeros[..most])? as u64;
                }
            }
        }
        Ok(())
    }

    /// Makes the range a hole, as far as whole blocks go; the rest reads as zeros.
    fn punch(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        bytes: Range<u64>,
    ) -> Result<()> {
        let size = inode.core.size();
        if bytes.start >= size {
            return Ok(());
        }
        // As Linux, past the end only what its last page reaches.
        let end = bytes.end.min(size.next_multiple_of(PAGE_SIZE as u64));
        self.clear(held, inode, bytes.start..end, Clearing::Punch)
    }

    /// Makes the range read as zeros, of blocks that stay or are put there.
    fn zero_range(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        bytes: Range<u64>,
        mode: FallocateMode,
    ) -> Result<()> {
        if !inode.disk().has_extents() {
            return Err(Error::Unsupported("zeroing a range of such a file"));
        }
        self.clear(held, inode, bytes.clone(), Clearing::Unwrite)?;
        self.preallocate(held, inode, bytes, mode)
    }

    /// Drops the pages of the range, zeroes its edges, and gives up its blocks or marks them as
    /// unwritten.
    fn clear(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        bytes: Range<u64>,
        how: Clearing,
    ) -> Result<()> {
        let live = self.instance.live()?;
        let blocks = self.blocks_inside(&bytes)?;
        let shape = self.shape_to_change(held, inode, blocks.start)?;
        self.shape_to_change(held, inode, blocks.end.saturating_sub(1))?;
        let mut space = self.reserve_all(held, inode, shape.worst_case_of_punch(), Claim::Map)?;
        let mapping = inode.mapping(&self.instance, &self.cache);
        let (mut fence, mut held) = mapping.fence(held, bytes.clone());
        {
            let (mut delayed, _held) = inode.core.block_map.write(&mut held);
            delayed.reserve_for_punch(&live.allocator, &shape)?;
        }
        let evicted = fence.evict(&mut held, Evict::Discard)?;
        {
            let (mut delayed, _held) = inode.core.block_map.write(&mut held);
            delayed.forget(blocks.clone());
            evicted.mapping().backing().note_delayed(&delayed);
        }
        let mut left = blocks;
        // What was dropped will not raise the size on disk any more.
        let covered = bytes.end.min(inode.core.size());
        loop {
            let (mut transaction, mut held) = self.instance.begin(&mut held, need())?;
            let (mut delayed, _held) = inode.core.block_map.write(&mut held);
            transaction.lend(space);
            let before = inode.disk();
            let mut record = before.record.clone();
            record.set_size(record.size().max(covered));
            let progress = match how {
                Clearing::Punch => {
                    let (from, end) = (FileBlock(left.start), FileBlock(left.end));
                    remove_range(&mut transaction, &mut record, from, end)?
                }
                Clearing::Unwrite => {
                    self.unwrite(&mut transaction, &mut record, inode, &mut left)?
                }
            };
            inode.core.adopt(&before.record, &record);
            inode.core.write(&mut transaction, true)?;
            let rest = transaction.take_rest();
            transaction.end();
            mapping.backing().settle(&mut delayed, None)?;
            if progress == Progress::Done {
                return Ok(());
            }
            // As much again for the next transaction, and for what its splits cost others.
            let shape = MapShapeNow::of(&self.instance, &inode.disk())?;
            space = rest.ok_or(Error::ReadOnly)?;
            let more = shape.worst_case_of_punch().saturating_sub(space.blocks());
            space.join(live.allocator.reserve(more, Claim::Map)?);
            delayed.reserve_for_punch(&live.allocator, &shape)?;
        }
    }

    /// Marks the written blocks among `blocks` as unwritten, as many as the transaction takes, and
    /// leaves the others in `blocks`. An extent of the greatest length becomes two: many of them
    /// may split many nodes, each as many as a punch does at worst.
    fn unwrite(
        &self,
        transaction: &mut Transaction<'_>,
        record: &mut pagefence_ext4_format::inode::Inode,
        inode: &Inode,
        blocks: &mut Range<u32>,
    ) -> Result<Progress> {
        let mut has_marked = false;
        while blocks.start < blocks.end {
            let at = blocks.start;
            let mut disk = crate::disk_inode::DiskInode::clone(&inode.disk());
            disk.record = record.clone();
            let shape = MapShapeNow::to_change(&self.instance, &disk, FileBlock(at));
            let found = shape.and_then(|shape| {
                let run = self.instance.map_blocks(&disk, FileBlock(at))?;
                Ok((shape.worst_case_of_punch(), run))
            });
            let (worst_case, run) = match found {
                // The next transaction's error, before that changes anything.
                Err(_) if has_marked => return Ok(Progress::More),
                found => found?,
            };
            let len = run.len.min(blocks.end - at);
            if matches!(run.target, Target::Written(_)) {
                if transaction.is_large() || transaction.blocks_left() < worst_case {
                    return Ok(Progress::More);
                }
                mark(transaction, record, FileBlock(at), len, true)?;
                has_marked = true;
            }
            blocks.start += len;
        }
        Ok(Progress::Done)
    }
}

fn need() -> Need {
    Need {
        credits: CREDITS,
        blocks: 0,
        privileged: true,
    }
}

/// Whether this can be done to the file; where the range ends.
fn check(
    inode: &Inode,
    flags: InodeFlags,
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
    if (punches && (zeroes || !keeps)) || (is_shift && !is_shift_alone) {
        return Err(Error::Unsupported("that mode of fallocate"));
    }
    let end = offset
        .checked_add(length)
        .filter(|end| i64::try_from(*end).is_ok())
        .ok_or(Error::FileTooLarge)?;
    if length == 0 {
        return Err(Error::InvalidArgument);
    }
    if flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::VERITY) {
        return Err(Error::NotPermitted);
    }
    let grows = !keeps && end > inode.core.size();
    if flags.contains(InodeFlags::APPEND) && (punches || zeroes || is_shift || !grows) {
        return Err(Error::NotPermitted);
    }
    Ok(end)
}
