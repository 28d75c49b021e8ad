//! Holes punched into a file, and ranges of it made zero.
//!
//! A range is taken in steps, each of them fence, evict, one transaction: inside the fence its pages
//! go and its edges are zeroed on the device, before the handle that takes blocks away or marks them
//! as unwritten. Between two steps the fence is given up, so that whoever fills pages elsewhere in the
//! file waits no longer than for one step, however long the range is; unless the disk is so full that
//! what stays delayed can't be covered, and is written inside the fence. The inode lock is held all
//! along. A crash, or an error, between two steps leaves the first ones done.
//!
//! What the map may take by a step is reserved before the step's first page goes: until then it can
//! still be refused.

use std::ops::Range;

use pagefence_ext4_format::FileBlock;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{self, Invalidate};
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{Evict, Evicted, Fence, PAGE_SIZE, WaitFor};
use pagefence_vfs::Result;

use crate::alloc::{Claim, Reservation};
use crate::backing::FileData;
use crate::change::Transaction;
use crate::change::cut::Cut;
use crate::change::insert_blocks::mark_unwritten;
use crate::change::remove_blocks::{Progress, remove_range};
use crate::delalloc::MapShapeNow;
use crate::disk_inode::DiskInode;
use crate::filesystem::FileSystem;
use crate::inode::Inode;
use crate::live::Need;
use crate::map_blocks::Target;

/// Bytes of a step, at most: as many pages are dropped inside one fence. Steps end at multiples.
const STEP_BYTES: u64 = if cfg!(test) { 1 << 20 } else { 32 << 20 };

/// What one step changes: a run of blocks put in or taken away, and the inode.
pub(crate) const STEP: Need = Need {
    credits: 96,
    blocks: 0,
    privileged: true,
};

/// What happens to the blocks of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clearing {
    /// They are given up.
    Punch,
    /// They stay, unwritten.
    Unwrite,
}

/// A step, and what was reserved for it.
struct Step {
    how: Clearing,
    /// Blocks wholly in the step's range: those that are left to be taken.
    blocks: Range<u32>,
    /// The map around them, and space for what it may take.
    shape: MapShapeNow,
    space: Reservation,
}

impl FileSystem {
    /// Makes the range a hole, as far as whole blocks go; the rest reads as zeros.
    pub(crate) fn punch(
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

    /// Drops the pages of the range, zeroes its edges, and gives up its blocks or marks them as
    /// unwritten. The caller holds the inode lock exclusively.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, `Io`, `ReadOnly`: each block is what it was, or is cleared.
    pub(crate) fn clear(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        bytes: Range<u64>,
        how: Clearing,
    ) -> Result<()> {
        let mut at = bytes.start;
        while at < bytes.end {
            let clear = self.clear_from(held, inode, at, how)?.min(bytes.end);
            if clear > at {
                at = clear;
                continue;
            }
            let next = (at / STEP_BYTES + 1).saturating_mul(STEP_BYTES);
            let mut rest = Some(at..next.min(bytes.end));
            at = next;
            while let Some(step) = rest {
                rest = self.clear_step(held, inode, step, how)?;
            }
        }
        Ok(())
    }

    /// Up to which byte there is nothing to clear from `at` on: no block, and no page. One over a hole
    /// may say something else than zeros, and be clean: what it says could not be written back.
    fn clear_from(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Inode,
        at: u64,
        how: Clearing,
    ) -> Result<u64> {
        let bits = self.instance.superblock.block_size_bits();
        let Ok(block) = u32::try_from(at >> bits) else {
            return Ok(u64::MAX);
        };
        let block = FileBlock(block);
        let (delayed, _held) = inode.core.block_map.read(held);
        let run = self.instance.map_blocks(&inode.disk(), block)?;
        let (is_dirty, len) = match run.target {
            Target::Hole => delayed.hole_at(block),
            Target::Unwritten(_) if how == Clearing::Unwrite => delayed.unwritten_at(block),
            Target::Written(_) | Target::Unwritten(_) => (true, 0),
        };
        if is_dirty {
            return Ok(at);
        }
        let end = (u64::from(block.0) + u64::from(run.len.min(len))) << bits;
        let mapping = inode.mapping(&self.instance, &self.cache);
        let page = mapping.next_cached(at).unwrap_or(u64::MAX);
        Ok(end.min(page).max(at))
    }

    /// Clears as much of the range as one transaction takes; what is left of it.
    fn clear_step(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        bytes: Range<u64>,
        how: Clearing,
    ) -> Result<Option<Range<u64>>> {
        let blocks = self.blocks_inside(&bytes)?;
        let shape = self.shape_to_change(held, inode, blocks.start)?;
        self.shape_to_change(held, inode, blocks.end.saturating_sub(1))?;
        let for_map = shape.worst_case_of_punch();
        let space = self.reserve_all_within(held, inode, for_map, Claim::Map, shape.reach())?;
        let mut step = Step {
            how,
            blocks,
            shape,
            space,
        };
        let mapping = inode.mapping(&self.instance, &self.cache);
        let (mut fence, mut held) = mapping.fence(held, bytes);
        let outcome = self.clear_fenced(&mut held, inode, &mut fence, &mut step);
        // What delayed blocks need is what it was, however far this came.
        let (mut delayed, _held) = inode.core.block_map.write(&mut held);
        delayed.end_cut();
        let settled = mapping.backing().settle(&mut delayed, None);
        let progress = outcome?;
        settled?;
        let bits = self.instance.superblock.block_size_bits();
        let left = u64::from(step.blocks.start) << bits..u64::from(step.blocks.end) << bits;
        Ok((progress == Progress::More).then_some(left))
    }

    fn clear_fenced(
        &self,
        held: &mut Held<'_, Invalidate>,
        inode: &Arc<Inode>,
        fence: &mut Fence<'_, FileData>,
        step: &mut Step,
    ) -> Result<Progress> {
        let live = self.instance.live()?;
        {
            let (mut delayed, _held) = inode.core.block_map.write(held);
            delayed.begin_cut(&live.allocator, &step.shape)?;
        }
        let evicted = fence.evict(held, Evict::Discard)?;
        {
            let (mut delayed, _held) = inode.core.block_map.write(held);
            delayed.forget(step.blocks.clone());
            evicted.mapping().backing().note_delayed(&delayed);
        }
        self.cover_delayed(held, inode, &evicted)?;
        let (mut transaction, mut held) = self.instance.begin(held, STEP)?;
        let (_map, _held) = inode.core.block_map.write(&mut held);
        if let Some(space) = step.space.take(step.space.blocks()) {
            transaction.lend(space);
        }
        let mut cut = Cut::of(&evicted);
        // What was dropped will not raise the size on disk any more.
        let covered = evicted.range().end.min(inode.core.size());
        let size = cut.record().size().max(covered);
        cut.record_mut().set_size(size);
        let progress = match step.how {
            Clearing::Punch => remove_range(&mut transaction, &mut cut, &mut step.blocks)?,
            Clearing::Unwrite => {
                self.unwrite(&mut transaction, &mut cut, inode, &mut step.blocks)?
            }
        };
        cut.adopt();
        inode.core.write(&mut transaction, true)?;
        transaction.end();
        Ok(progress)
    }

    /// Sees to it that what stays delayed can be mapped when blocks are taken away from the map, the
    /// pages of which are gone: where there is no space to promise, it is mapped now, and nothing is
    /// delayed any more. What can't be written is told to who asks, as ever.
    ///
    /// # Errors
    /// `Corrupt` if something is delayed and the map makes no sense; `ReadOnly`.
    pub(crate) fn cover_delayed(
        &self,
        held: &mut Held<'_, Invalidate>,
        inode: &Inode,
        evicted: &Evicted<'_, FileData>,
    ) -> Result<()> {
        let live = self.instance.live()?;
        let is_covered = {
            let (mut delayed, _held) = inode.core.block_map.write(held);
            if delayed.is_empty() {
                return Ok(());
            }
            let shape = MapShapeNow::of(&self.instance, &inode.disk())?;
            delayed.refill(&live.allocator, &shape).is_ok()
        };
        if is_covered {
            return Ok(());
        }
        let all = 0..u64::MAX;
        let _ = evicted.mapping().write_back(held, all, WaitFor::All);
        self.forget_delayed(held, inode, evicted)
    }

    /// Marks the written blocks among `blocks` as unwritten, as many as the transaction takes, and
    /// leaves the others in `blocks`. An extent of the greatest length becomes two: many of them
    /// may split many nodes, each as many as a punch does at worst.
    fn unwrite(
        &self,
        transaction: &mut Transaction<'_>,
        cut: &mut Cut<'_>,
        inode: &Inode,
        blocks: &mut Range<u32>,
    ) -> Result<Progress> {
        let mut has_marked = false;
        while blocks.start < blocks.end {
            let at = blocks.start;
            let mut disk = DiskInode::clone(&inode.disk());
            disk.record = cut.record().clone();
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
                mark_unwritten(transaction, cut, at..at + len)?;
                has_marked = true;
            }
            blocks.start += len;
        }
        Ok(Progress::Done)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
