//! Writing a file's dirty blocks: first the data, then what maps it (docs/adr/0008).
//!
//! Blocks that are written already are written in place, unwritten ones where they are, and blocks
//! without a place to blocks that are busy in memory only. When all of that is with the device, a
//! handle makes it part of the file: the map, the bitmaps, the size on disk. A crash before that
//! leaves free blocks, or unwritten ones.
//!
//! The caller has marked the pages as under writeback and keeps the mark until this returns, or has
//! locked the pages of the range (a direct write), so nobody takes the blocks away, and nobody else
//! writes them. No page is waited for from here.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use pagefence_ext4_format::inode::Inode as Record;
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_lock_order::levels::{BlockMap, Handle, Level, Writepages};
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_lock_order::{After, Held};
use pagefence_page_cache::WriteBatch;
use pagefence_vfs::{Error, Result};

use crate::alloc::{BlockOwner, BusyRun, Reach, Reservation};
use crate::backing::FileData;
use crate::change::Transaction;
use crate::change::insert_blocks::{NewRun, insert_blocks, mark_written};
use crate::delalloc::{Delayed, MapShapeNow};
use crate::error::device;
use crate::inode_data;
use crate::live::Need;
use crate::map_blocks::Target;

/// Pieces that one vectored write takes (Linux: `IOV_MAX`).
const PIECES_MAX: usize = 1024;

/// Credits for what maps one run at worst: two nodes on each level of the map, bitmap and
/// descriptor of each block that the map takes, bitmap, descriptor and superblock of the run.
const CREDITS_PER_RUN: u32 = 32;

/// Runs that a transaction gets credits for from the start; it asks for more.
const RUNS_AT_FIRST: u32 = 4;

/// What has to be made part of the file when the data is with the device.
#[derive(Debug)]
enum Unmapped {
    /// Blocks that had no place.
    New { first: FileBlock, run: BusyRun },
    /// Blocks of unwritten extents.
    Unwritten(Range<u32>),
}

impl Unmapped {
    /// The first file block.
    fn start(&self) -> u64 {
        match self {
            Self::New { first, .. } => first.0.into(),
            Self::Unwritten(blocks) => blocks.start.into(),
        }
    }

    /// One past the last file block.
    fn end(&self) -> u64 {
        match self {
            Self::New { first, run } => u64::from(first.0) + u64::from(run.len()),
            Self::Unwritten(blocks) => blocks.end.into(),
        }
    }
}

/// What becomes of the times of an inode of which nothing else has to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Times {
    /// They go to the inode table.
    Written,
    /// They stay in core, for whoever writes the inode next.
    Kept,
}

/// What a failure left of the file's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// What it was before.
    Whole,
    /// Something in between.
    HalfDone,
}

/// A run of a file that goes to a run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Io {
    first: FileBlock,
    start: BlockNo,
    len: u32,
}

/// What a batch maps, the data of which is with the device: its own token, since neither the inode
/// lock nor a fence is held when writeback gets here. Blocks are put in the file, or said to be
/// written, with one only.
#[derive(Debug)]
#[must_use]
pub(crate) struct Completed<'p> {
    unmapped: &'p mut VecDeque<Unmapped>,
}

/// What a batch takes.
#[derive(Debug, Default)]
struct Plan {
    io: Vec<Io>,
    unmapped: VecDeque<Unmapped>,
}

/// A run of dirty blocks, by what is behind them.
#[derive(Clone, Copy, Debug)]
struct Piece {
    first: u32,
    len: u32,
    target: Target,
}

impl FileData {
    /// See [`pagefence_page_cache::WriteBacking::write_pages`].
    pub(crate) fn write_batch(
        &self,
        held: &mut Held<'_, Writepages>,
        batch: &WriteBatch<'_>,
    ) -> Result<()> {
        self.instance.live()?;
        if self.inode.disk().has_inline_data() {
            return inode_data::write_inline(&self.instance, &self.inode, held, batch);
        }
        self.write_blocks(held, batch, Times::Written).1
    }

    /// Writes the blocks of `batch` to places that they have or get, and makes those part of the file;
    /// returns up to which byte transactions that have ended did so, 0 if there is none, and what came
    /// of it.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, `ReadOnly`: the space of what is not mapped is kept.
    pub(crate) fn write_blocks<P: Level>(
        &self,
        held: &mut Held<'_, P>,
        batch: &WriteBatch<'_>,
        times: Times,
    ) -> (u64, Result<()>)
    where
        Handle: After<P>,
        BlockMap: After<P>,
    {
        let mut reached = 0;
        let mut plan = Plan::default();
        let outcome = self.plan(held, batch, &mut plan).and_then(|()| {
            let completed = self.submit(batch, &mut plan)?;
            self.map(held, batch, times, completed, &mut reached)
        });
        if outcome.is_err() {
            self.give_back(held, plan.unmapped);
        }
        (reached, outcome)
    }

    /// The dirty blocks of a batch that lie inside the file, by what is behind them.
    fn pieces<P: Level>(&self, held: &mut Held<'_, P>, batch: &WriteBatch<'_>) -> Result<Vec<Piece>>
    where
        BlockMap: After<P>,
    {
        let bits = self.instance.superblock.block_size_bits();
        let end_of_file = batch.size().div_ceil(1 << bits);
        let (_map, _held) = self.inode.block_map.read(held);
        let disk = self.inode.disk();
        let mut pieces = Vec::new();
        for run in batch.runs() {
            let mut at = run.start >> bits;
            let end = (run.end >> bits).min(end_of_file);
            while at < end {
                let first = file_block(at)?;
                let found = self.instance.map_blocks(&disk, first)?;
                let len = u64::from(found.len).min(end - at) as u32;
                pieces.push(Piece {
                    first: first.0,
                    len,
                    target: found.target,
                });
                at += u64::from(len);
            }
        }
        Ok(pieces)
    }

    /// Finds out where everything goes, choosing places for what has none.
    fn plan<P: Level>(
        &self,
        held: &mut Held<'_, P>,
        batch: &WriteBatch<'_>,
        plan: &mut Plan,
    ) -> Result<()>
    where
        BlockMap: After<P>,
    {
        let live = self.instance.live()?;
        let pieces = self.pieces(held, batch)?;
        let has_data = |piece: &Piece| matches!(piece.target, Target::Written(_));
        if pieces.iter().any(has_data) {
            live.commit_moves()?;
        }
        for piece in pieces {
            let first = FileBlock(piece.first);
            let len = piece.len;
            if let Target::Written(start) | Target::Unwritten(start) = piece.target {
                // Blocks that are free by the bitmap are somebody else's soon.
                let number = self.inode.number;
                live.allocator
                    .claim_in_use(&self.instance, number, start, len)?;
            }
            match piece.target {
                Target::Written(start) => plan.io.push(Io { first, start, len }),
                Target::Unwritten(start) => {
                    plan.io.push(Io { first, start, len });
                    let blocks = piece.first..piece.first + len;
                    plan.unmapped.push_back(Unmapped::Unwritten(blocks));
                }
                Target::Hole => self.choose(held, &piece, plan)?,
            }
        }
        Ok(())
    }

    /// Chooses blocks for a hole, as few runs of them as there can be.
    fn choose<P: Level>(&self, held: &mut Held<'_, P>, piece: &Piece, plan: &mut Plan) -> Result<()>
    where
        BlockMap: After<P>,
    {
        let live = self.instance.live()?;
        let reach = Reach::of(self.inode.disk().record.flags());
        let mut goal = self.goal(held, piece.first, plan)?;
        let mut space = {
            let (mut delayed, _held) = self.inode.block_map.write(held);
            let (is_delayed, run) = delayed.hole_at(FileBlock(piece.first));
            let space = (is_delayed && run >= piece.len)
                .then(|| delayed.choose(piece.len.into()))
                .flatten();
            debug_assert!(space.is_some(), "a dirty page without space");
            space.ok_or_else(|| Error::Io(std::io::Error::other("a dirty page without space")))?
        };
        let mut done = 0;
        while done < piece.len {
            let want = piece.len - done;
            let run =
                match live
                    .allocator
                    .allocate_within(&self.instance, goal, reach, want, &mut space)
                {
                    Ok(run) => run,
                    Err(error) => {
                        let (mut delayed, _held) = self.inode.block_map.write(held);
                        delayed.put_back(want.into(), space);
                        return Err(error);
                    }
                };
            let first = FileBlock(piece.first + done);
            let (start, len) = (run.start(), run.len());
            goal = BlockNo(start.0 + u64::from(len));
            done += len;
            plan.io.push(Io { first, start, len });
            self.push_new(plan, first, run);
        }
        let (mut delayed, _held) = self.inode.block_map.write(held);
        delayed.set_goal(piece.first + piece.len, goal);
        Ok(())
    }

    /// Adds a run to what is to be mapped; cut so that each piece of a block map lies below two of
    /// the lowest indirect blocks at most, which bounds what mapping it changes.
    fn push_new(&self, plan: &mut Plan, mut first: FileBlock, mut run: BusyRun) {
        let most = if self.inode.disk().has_extents() {
            u32::MAX
        } else {
            self.instance.map_shape.per_block()
        };
        loop {
            let rest = run.split_off(most);
            let len = run.len();
            plan.unmapped.push_back(Unmapped::New { first, run });
            let Some(rest) = rest else { return };
            first = FileBlock(first.0.saturating_add(len));
            run = rest;
        }
    }

    /// Where the block of a file would best lie: behind the one before it.
    fn goal<P: Level>(&self, held: &mut Held<'_, P>, first: u32, plan: &Plan) -> Result<BlockNo>
    where
        BlockMap: After<P>,
    {
        let live = self.instance.live()?;
        if let Some(before) = plan.io.last() {
            let gap = first.saturating_sub(before.first.0);
            return Ok(BlockNo(before.start.0 + u64::from(gap)));
        }
        let (delayed, _held) = self.inode.block_map.read(held);
        if let Some(before) = first.checked_sub(1) {
            let found = self
                .instance
                .map_blocks(&self.inode.disk(), FileBlock(before))?;
            if let Target::Written(block) | Target::Unwritten(block) = found.target {
                return Ok(BlockNo(block.0 + 1));
            }
        }
        if let Some(goal) = delayed.goal(first) {
            return Ok(goal);
        }
        Ok(live.allocator.data_goal(self.inode.number, false))
    }

    /// Writes the data, what follows each other on the device in one piece.
    fn submit<'p>(&self, batch: &WriteBatch<'_>, plan: &'p mut Plan) -> Result<Completed<'p>> {
        let bits = self.instance.superblock.block_size_bits();
        let follows = |a: &Io, b: &Io| a.start.0 + u64::from(a.len) == b.start.0;
        for run in plan.io.chunk_by(follows) {
            for part in run.chunks(PIECES_MAX) {
                let Some(first) = part.first() else { continue };
                let slices: Vec<_> = part
                    .iter()
                    .map(|io| {
                        let from = u64::from(io.first.0) << bits;
                        let to = from + (u64::from(io.len) << bits);
                        IoSlice::new(batch.bytes(from..to))
                    })
                    .collect();
                self.instance
                    .device()
                    .write_vectored(first.start.0 << bits, &slices)
                    .map_err(device)?;
            }
        }
        Ok(Completed {
            unmapped: &mut plan.unmapped,
        })
    }

    /// Makes what was written part of the file, in one transaction or several: each leaves a file
    /// whose size on disk covers nothing that is yet to be mapped behind what is.
    fn map<P: Level>(
        &self,
        held: &mut Held<'_, P>,
        batch: &WriteBatch<'_>,
        times: Times,
        mut completed: Completed<'_>,
        reached: &mut u64,
    ) -> Result<()>
    where
        Handle: After<P>,
    {
        let bits = self.instance.superblock.block_size_bits();
        let end = batch.runs().last().map_or(0, |run| run.end);
        let size = batch.size().min(end);
        let mut is_written = false;
        loop {
            let needed = !completed.unmapped.is_empty() || self.inode.disk().size() < size;
            // Times, which wait for whoever writes the inode next.
            let has_times = times == Times::Written && self.inode.is_dirty();
            if !needed && (is_written || !has_times) {
                return Ok(());
            }
            let runs = u32::try_from(completed.unmapped.len()).unwrap_or(u32::MAX);
            let need = Need {
                credits: 8 + CREDITS_PER_RUN * runs.min(RUNS_AT_FIRST),
                blocks: 0,
                privileged: true,
            };
            let (mut transaction, mut held) = self.instance.begin(held, need)?;
            let (mut delayed, _held) = self.inode.block_map.write(&mut held);
            let before = self.inode.disk();
            let mut record = before.record.clone();
            if let Some(space) = delayed.lend_map_space() {
                transaction.lend(space);
            }
            let (mapped_to, failure) = self.map_some(
                &mut transaction,
                &mut delayed,
                &mut record,
                bits,
                &mut completed,
            );
            let outcome = match failure {
                // Blocks of the map were changed: what is left of that must not be written.
                Some((error, Left::HalfDone)) => Err(error),
                failure => {
                    let failure = failure.map(|(error, _)| error);
                    let mapped_to = if completed.unmapped.is_empty() {
                        size
                    } else {
                        mapped_to
                    };
                    record.set_size(record.size().max(mapped_to.min(size)));
                    self.inode.adopt(&before.record, &record);
                    let written = self.inode.write(&mut transaction, needed);
                    written.map(|()| failure)
                }
            };
            let rest = transaction.take_rest();
            let settled = self.settle(&mut delayed, rest);
            // One that is dropped after it changed something aborts the journal.
            let failure = outcome?;
            settled?;
            transaction.end();
            let next = completed.unmapped.front();
            *reached = next.map_or(size, |next| next.start() << bits);
            if let Some(error) = failure {
                return Err(error);
            }
            is_written = true;
        }
    }

    /// Maps as much as the transaction takes, in `record` and the blocks of the map; says up to
    /// which byte, 0 for nothing, and why it stopped if something failed. What is not mapped is
    /// left in `unmapped`, and `record` without it.
    ///
    /// Where the failure left nothing half done, the transaction can end with what is mapped.
    fn map_some(
        &self,
        transaction: &mut Transaction<'_>,
        delayed: &mut Delayed,
        record: &mut Record,
        bits: u32,
        completed: &mut Completed<'_>,
    ) -> (u64, Option<(Error, Left)>) {
        let mut mapped_to = 0;
        while let Some(next) = completed.unmapped.front() {
            let mut changed = record.clone();
            let before = transaction.changes();
            if let Err(error) = insert(transaction, &mut changed, next, completed) {
                let left = if transaction.changes() == before {
                    Left::Whole
                } else {
                    Left::HalfDone
                };
                return (mapped_to, Some((error, left)));
            }
            *record = changed;
            self.inode.note_map_change();
            mapped_to = next.end() << bits;
            match completed.unmapped.pop_front() {
                Some(Unmapped::New { first, run }) => {
                    let blocks = first.0..first.0 + run.len();
                    if let Some((allocator, handle)) = transaction.allocation() {
                        allocator.use_run(handle, BlockOwner::Contents(self.inode.number), run);
                    }
                    delayed.mapped(blocks);
                }
                Some(Unmapped::Unwritten(blocks)) => delayed.written(blocks),
                None => {}
            }
            if transaction.is_large() {
                break;
            }
        }
        (mapped_to, None)
    }

    /// Takes back what space for the map is left, and tells others how much is delayed.
    pub(crate) fn settle(&self, delayed: &mut Delayed, rest: Option<Reservation>) -> Result<()> {
        let shape = MapShapeNow::of(&self.instance, &self.inode.disk())?;
        delayed.settle(&shape, rest);
        self.note_delayed(delayed);
        Ok(())
    }

    /// Tells those who hold no lock how much is delayed.
    pub(crate) fn note_delayed(&self, delayed: &Delayed) {
        self.inode
            .delayed_blocks
            .store(delayed.blocks(), Ordering::Relaxed);
    }

    /// Gives chosen blocks back, which keep their space: their pages may be dirty anew.
    fn give_back<P: Level>(&self, held: &mut Held<'_, P>, unmapped: VecDeque<Unmapped>)
    where
        BlockMap: After<P>,
    {
        {
            let (mut delayed, _held) = self.inode.block_map.write(held);
            delayed.note_failure();
        }
        let Some(live) = &self.instance.live else {
            return;
        };
        for left in unmapped {
            if let Unmapped::New { run, .. } = left {
                let len = u64::from(run.len());
                let mut space = live.allocator.empty_reservation();
                run.give_back(&mut space);
                let (mut delayed, _held) = self.inode.block_map.write(held);
                delayed.put_back(len, space);
            }
        }
    }
}

/// Puts into the map what has its data on the device.
fn insert(
    transaction: &mut Transaction<'_>,
    record: &mut Record,
    next: &Unmapped,
    completed: &Completed<'_>,
) -> Result<()> {
    match next {
        Unmapped::New { first, run } => {
            let new = NewRun {
                first: *first,
                start: run.start(),
                len: run.len(),
                unwritten: false,
            };
            insert_blocks(transaction, record, &new)
        }
        Unmapped::Unwritten(blocks) => mark_written(transaction, record, blocks.clone(), completed),
    }
}

fn file_block(block: u64) -> Result<FileBlock> {
    u32::try_from(block)
        .map(FileBlock)
        .map_err(|_| Error::FileTooLarge)
}
