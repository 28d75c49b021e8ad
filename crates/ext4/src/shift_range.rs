//! What collapsing and inserting a range have in common: all behind some block of a file moves.
//!
//! Protocol (RACES S0.6, S0.11, B3): the inode lock is held exclusively; the fence covers all
//! from the page that the range begins in; inside it all that is dirty is written, and the pages go.
//! From then on nothing of the file is delayed, and nobody can make it so: a page would have to be
//! filled first, or to be cached below the fence's start, where nobody writes who has not the inode
//! lock. So no block of the file but those that move changes its place, and what a map may take
//! is counted once. The blocks move in as many transactions as it takes, all inside one fence.
//!
//! After each transaction the file is sound (docs/CRASH.md, "Collapse and insert"). Without a log the
//! blocks of a commit get home in no order, so whatever moves must be there before the place
//! that it came from holds anything else: each transaction is then committed before the next
//! begins.

use std::ops::Range;

use pagefence_ext4_format::FileBlock;
use pagefence_lock_order::levels::{self, BlockMap, Invalidate, Level};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::{After, Held};
use pagefence_page_cache::{Evict, Evicted, PAGE_SIZE, WaitFor};
use pagefence_vfs::{Error, FallocateMode, Result};

use crate::alloc::{Claim, Reach, Reservation};
use crate::backing::FileData;
use crate::change::Transaction;
use crate::change::cut::Cut;
use crate::change::remove_blocks::Progress;
use crate::change::shift_block_map::{PointerShift, Way};
use crate::change::shift_extents::{ShiftDown, ShiftUp};
use crate::delalloc::MapShapeNow;
use crate::filesystem::FileSystem;
use crate::inode::Inode;
use crate::instance::Instance;
use crate::live::Need;

/// What one step changes: a leaf and the nodes above it, or a few indirect blocks; what that takes
/// and gives back; and the inode.
const STEP: Need = Need {
    credits: 48,
    blocks: 0,
    privileged: true,
};

/// Leaves that one handle moves at most, so that no commit waits long for it.
const LEAVES_MAX: usize = 4;

/// How large the file is, in bytes, while its blocks move, and when all have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) meanwhile: u64,
    pub(crate) after: u64,
}

/// A range that is taken out or put in, in file blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) first: u32,
    pub(crate) len: u32,
}

impl Gap {
    /// One past its last block.
    pub(crate) fn end(&self) -> u32 {
        self.first + self.len
    }
}

/// What moves, and how far it has come.
#[derive(Debug)]
pub(crate) enum Shift {
    Down(ShiftDown),
    Up(ShiftUp),
    Pointers(PointerShift),
}

impl Shift {
    /// Moves as much as the transaction takes, and as may get home in any order.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, and then the transaction has changed nothing; but the journal is aborted if
    /// the file can't be left as it is.
    pub(crate) fn step(
        &mut self,
        transaction: &mut Transaction<'_>,
        cut: &mut Cut<'_>,
    ) -> Result<Progress> {
        let instance = transaction.instance;
        let most = if instance.has_log() { LEAVES_MAX } else { 1 };
        match self {
            Self::Down(shift) => shift.step(transaction, cut, most),
            Self::Up(shift) => shift.step(transaction, cut, most),
            Self::Pointers(shift) => {
                let outcome = shift.step(transaction, cut, LEAVES_MAX);
                if outcome.is_err() && shift.is_doubled() {
                    instance.live()?.abort_half_done();
                }
                outcome
            }
        }
    }
}

impl Instance {
    /// Whether what is committed is replayed as a whole. Without a log blocks get home one by one.
    pub(crate) fn has_log(&self) -> bool {
        use pagefence_ext4_format::features::Compat;
        self.superblock.has_compat(Compat::HAS_JOURNAL)
    }

    /// The blocks of `bytes`, which begin and end with one.
    pub(crate) fn gap_of(&self, bytes: &Range<u64>) -> Result<Gap> {
        let bits = self.superblock.block_size_bits();
        let first = u32::try_from(bytes.start >> bits);
        let end = u32::try_from(bytes.end >> bits);
        match (first, end) {
            (Ok(first), Ok(end)) if first < end => Ok(Gap {
                first,
                len: end - first,
            }),
            _ => Err(Error::FileTooLarge),
        }
    }

    /// Whether a range of this file can be collapsed or inserted, if `mode` asks for it. Rules:
    /// Linux's `ext4_collapse_range` and `ext4_insert_range`.
    ///
    /// # Errors
    /// `InvalidArgument` for what does not begin and end with a block (a cluster), for a collapse
    /// that reaches the file's end, and for an insertion there or behind; `FileTooLarge`.
    pub(crate) fn check_shift(
        &self,
        inode: &Inode,
        bytes: &Range<u64>,
        mode: FallocateMode,
    ) -> Result<()> {
        let collapses = mode.contains(FallocateMode::COLLAPSE_RANGE);
        let inserts = mode.contains(FallocateMode::INSERT_RANGE);
        if !collapses && !inserts {
            return Ok(());
        }
        let superblock = &self.superblock;
        let unit = u64::from(superblock.block_size()) * u64::from(superblock.blocks_per_cluster());
        if !bytes.start.is_multiple_of(unit) || !bytes.end.is_multiple_of(unit) {
            return Err(Error::InvalidArgument);
        }
        let size = inode.core.size();
        let reaches_end = if collapses {
            bytes.end >= size
        } else {
            bytes.start >= size
        };
        if reaches_end {
            return Err(Error::InvalidArgument);
        }
        let room = self.max_file_size(&inode.disk()).saturating_sub(size);
        if inserts && bytes.end - bytes.start > room {
            return Err(Error::FileTooLarge);
        }
        Ok(())
    }
}

impl FileSystem {
    /// Moves what lies behind a range `way`: provides space, fences and evicts, and goes through all
    /// transactions, `step` doing as much as each of them takes. The caller holds the inode lock
    /// exclusively, and has finished a cut ([`FileSystem::finish_cut`]).
    ///
    /// # Errors
    /// `NoSpace`, and nothing changed; those of [`Self::plan_shift`] and [`Self::in_steps`].
    pub(crate) fn shift(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        (gap, way): (Gap, Way),
        sizes: Sizes,
        mut step: impl FnMut(&mut Shift, &mut Transaction<'_>, &mut Cut<'_>) -> Result<Progress>,
    ) -> Result<()> {
        let (_, blocks) = self.plan_shift(held, inode, gap, way)?;
        let mut space = self.reserve_for_shift(held, inode, blocks)?;
        let mapping = inode.mapping(&self.instance, &self.cache);
        let bits = self.instance.superblock.block_size_bits();
        let from = (u64::from(gap.first) << bits) / PAGE_SIZE as u64 * PAGE_SIZE as u64;
        let (mut fence, mut held) = mapping.fence(held, from..u64::MAX);
        let evicted = fence.evict(&mut held, Evict::WriteFirst)?;
        self.end_delay(&mut held, inode, &evicted)?;
        // What was written just now may have made the map another one.
        let (mut shift, blocks) = self.plan_shift(&mut held, inode, gap, way)?;
        self.top_up(inode, &mut space, blocks)?;
        let step = |transaction: &mut Transaction<'_>, cut: &mut Cut<'_>| {
            step(&mut shift, transaction, cut)
        };
        self.in_steps(&mut held, inode, &evicted, space, sizes, step)
    }

    /// Space for `blocks` of the map; looks for some if there is none. The caller holds the inode
    /// lock exclusively and no other.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn reserve_for_shift(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Inode,
        blocks: u64,
    ) -> Result<Reservation> {
        let reach = Reach::of(inode.disk().record.flags());
        self.reserve_all_within(held, inode, blocks, Claim::Map, reach)
    }

    /// How what lies behind a range is to move, and how many blocks the map takes for that.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; `InvalidArgument` if something would come to lie too far.
    fn plan_shift<P: Level>(
        &self,
        held: &mut Held<'_, P>,
        inode: &Inode,
        gap: Gap,
        way: Way,
    ) -> Result<(Shift, u64)>
    where
        BlockMap: After<P>,
    {
        let (_map, _held) = inode.core.block_map.read(held);
        let disk = inode.disk();
        let instance = &self.instance;
        if disk.has_inline_data() {
            let what = "data in an inode that has left it";
            return Err(instance.damaged(disk.number, None, what));
        }
        if !disk.has_extents() {
            let shift = PointerShift::plan(instance, &disk, way, gap.first, gap.len)?;
            let blocks = shift.blocks();
            return Ok((Shift::Pointers(shift), blocks));
        }
        let shape = MapShapeNow::to_change(instance, &disk, FileBlock(gap.first))?;
        let shift = match way {
            Way::Down => {
                MapShapeNow::to_change(instance, &disk, FileBlock(gap.end() - 1))?;
                Shift::Down(ShiftDown::new(FileBlock(gap.end()), gap.len))
            }
            Way::Up => {
                let from = FileBlock(gap.first);
                Shift::Up(ShiftUp::plan(instance, &disk, from, gap.len)?)
            }
        };
        Ok((shift, shape.worst_case_of_punch()))
    }

    /// Makes `space` at least `blocks`: what was written inside the fence may have made the map
    /// larger than it was when space was looked for.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn top_up(&self, inode: &Inode, space: &mut Reservation, blocks: u64) -> Result<()> {
        let more = blocks.saturating_sub(space.blocks());
        if more > 0 {
            let reach = Reach::of(inode.disk().record.flags());
            let allocator = &self.instance.live()?.allocator;
            space.join(allocator.reserve_within(more, Claim::Map, reach)?);
        }
        Ok(())
    }

    /// Has nothing delayed in the file any more, the pages behind the fence's start being gone: what
    /// is dirty before it is written. What still is delayed could not be written some time, which
    /// was told, and no page is dirty over it: that is forgotten.
    ///
    /// # Errors
    /// `Corrupt`, `Io`: nothing was changed.
    pub(crate) fn end_delay(
        &self,
        held: &mut Held<'_, Invalidate>,
        inode: &Inode,
        evicted: &Evicted<'_, FileData>,
    ) -> Result<()> {
        let mapping = evicted.mapping();
        mapping.write_back(held, 0..u64::MAX, WaitFor::All)?;
        self.forget_delayed(held, inode, evicted)
    }

    /// Forgets what is delayed in a file, all of which was written, or failed to be, since the fence
    /// was taken.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn forget_delayed(
        &self,
        held: &mut Held<'_, Invalidate>,
        inode: &Inode,
        evicted: &Evicted<'_, FileData>,
    ) -> Result<()> {
        let mapping = evicted.mapping();
        debug_assert_eq!(mapping.next_dirty(0), None, "nobody can dirty a page now");
        let (mut delayed, _held) = inode.core.block_map.write(held);
        delayed.forget(0..u32::MAX);
        mapping.backing().settle(&mut delayed, None)?;
        delayed.assert_settled();
        Ok(())
    }

    /// Goes through all transactions of a shift: `step` does as much as each of them takes, which
    /// has what is left of `space`. `evicted` says that no page can be in the way.
    ///
    /// # Errors
    /// Those of `step`, and of the journal. The file is then in one of the states between, `sizes`
    /// its size before or while blocks move.
    fn in_steps(
        &self,
        held: &mut Held<'_, Invalidate>,
        inode: &Inode,
        evicted: &Evicted<'_, FileData>,
        mut space: Reservation,
        sizes: Sizes,
        mut step: impl FnMut(&mut Transaction<'_>, &mut Cut<'_>) -> Result<Progress>,
    ) -> Result<()> {
        let live = self.instance.live()?;
        loop {
            let tid;
            let progress;
            {
                let (mut transaction, mut held) = self.instance.begin(held, STEP)?;
                let (_map, _held) = inode.core.block_map.write(&mut held);
                transaction.lend(space);
                let mut cut = Cut::of(evicted);
                progress = step(&mut transaction, &mut cut)?;
                let size = match progress {
                    Progress::More => sizes.meanwhile,
                    Progress::Done => sizes.after,
                };
                cut.record_mut().set_size(size);
                cut.adopt();
                inode.core.write(&mut transaction, true)?;
                inode.core.set_size(size);
                space = transaction.take_rest().ok_or(Error::ReadOnly)?;
                tid = transaction.tid();
                live.note_move(tid);
                transaction.end();
            }
            if progress == Progress::Done {
                return Ok(());
            }
            if !self.instance.has_log() {
                live.commit(tid)?;
            }
        }
    }
}
