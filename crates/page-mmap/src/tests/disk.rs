//! A file on a disk that the test is in command of: it stops I/O, fails, runs out of space, and counts
//! what must not happen: I/O of blocks that were taken away meanwhile (oracle O9), and dirty blocks
//! that have neither a block nor a reservation (O3).

use std::collections::BTreeSet;
use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Entry, Inode, Invalidate, PageLock, Writepages};
use pagefence_lock_order::primitives::{Condvar, Mutex, MutexGuard};
use pagefence_page_cache::{
    Backing, DirectBacking, Evicted, FrameMut, PAGE_SIZE, Segment, WriteBacking, WriteBatch,
};

/// What the disk says when it fails, or has no space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed;

/// Where I/O stops for the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// K3: a fill knows its blocks, and has not read them.
    BeforeRead,
    /// K4: it has read them, and its pages are not up to date.
    AfterRead,
    /// K10: writeback is about to write.
    BeforeWrite,
    /// K12: the blocks are written, and not mapped.
    BeforeMapping,
}

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    block_size: usize,
    size: u64,
    bytes: Vec<u8>,
    /// Of each block that has data: how often it was given away before.
    blocks: Vec<Option<u64>>,
    given_away: u64,
    reserved: BTreeSet<usize>,
    /// Blocks that can still be reserved; any number, if `None`.
    free: Option<usize>,
    failing_reads: usize,
    failing_writes: usize,
    stop: Option<Stop>,
    stopped: usize,
    reads: Vec<Range<u64>>,
    reserve_hook: Option<Hook>,
    violations: usize,
}

/// One file.
#[derive(Default)]
pub(super) struct Disk {
    state: Mutex<State>,
    changed: Condvar,
}

/// What blocks hold that are another file's by now.
const FOREIGN: u8 = 0xBD;

impl Disk {
    /// A file of `bytes`, whole blocks of `block_size`, all of them data.
    pub(super) fn of_bytes(bytes: Vec<u8>, block_size: usize) -> Self {
        Self::of(State {
            block_size,
            size: bytes.len() as u64,
            blocks: vec![Some(0); bytes.len() / block_size],
            bytes,
            ..State::default()
        })
    }

    /// A file of `size` bytes without a block.
    pub(super) fn hole(size: u64, block_size: usize) -> Self {
        let mut state = State {
            block_size,
            size,
            ..State::default()
        };
        state.reach(size);
        Self::of(state)
    }

    fn of(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Makes holes of the blocks in the range of a fence; their bytes are another file's from now on.
    pub(super) fn punch(evicted: &Evicted<'_, Self>) {
        let mut state = evicted.mapping().backing().state();
        let blocks = state.blocks_inside(evicted.range());
        state.give_away(blocks);
    }

    /// Frees what lies past the size, which was set before.
    pub(super) fn cut(evicted: &Evicted<'_, Self>) {
        let mut state = evicted.mapping().backing().state();
        let blocks = state.blocks_inside(state.size..u64::MAX);
        state.give_away(blocks);
    }

    /// Swaps the blocks of two pages of a file, both in the range of a fence.
    pub(super) fn swap_pages(evicted: &Evicted<'_, Self>, one: u64, other: u64) {
        let range = evicted.range();
        for page in [one, other] {
            assert!(range.start <= page * PAGE && (page + 1) * PAGE <= range.end);
        }
        let mut state = evicted.mapping().backing().state();
        let per_page = PAGE_SIZE / state.block_size;
        let at = |page: u64| usize::try_from(page).expect("small") * per_page;
        let (one, other) = (at(one), at(other));
        for block in 0..per_page {
            state.swap(one + block, other + block);
        }
    }

    /// Sets the size, in the section of a fence.
    pub(super) fn set_size(&self, size: u64) {
        let mut state = self.state();
        state.reach(size);
        state.size = size;
    }

    pub(super) fn fail_reads(&self, count: usize) {
        self.state().failing_reads = count;
    }

    pub(super) fn fail_writes(&self, count: usize) {
        self.state().failing_writes = count;
    }

    /// Leaves `blocks` that can be reserved.
    pub(super) fn limit_space(&self, blocks: usize) {
        self.state().free = Some(blocks);
    }

    pub(super) fn reserved(&self) -> usize {
        self.state().reserved.len()
    }

    pub(super) fn violations(&self) -> usize {
        self.state().violations
    }

    /// The runs of pages read since the last call.
    pub(super) fn take_reads(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.state().reads)
    }

    /// The file as the disk has it.
    pub(super) fn contents(&self) -> Vec<u8> {
        let state = self.state();
        let mut bytes = state.bytes.clone();
        let blocks = bytes.chunks_mut(state.block_size).zip(&state.blocks);
        blocks
            .filter(|(_, kind)| kind.is_none())
            .for_each(|(block, _)| block.fill(0));
        bytes.truncate(usize::try_from(state.size).expect("small"));
        bytes
    }

    /// Runs `hook` when something was reserved next (K7).
    pub(super) fn on_reserve(&self, hook: impl FnOnce() + Send + 'static) {
        self.state().reserve_hook = Some(Box::new(hook));
    }

    /// I/O stops at `stop` from now on.
    pub(super) fn stop_at(&self, stop: Stop) {
        self.state().stop = Some(stop);
    }

    /// Waits until `count` threads have stopped.
    pub(super) fn wait_stopped(&self, count: usize) {
        let mut state = self.state();
        while state.stopped < count {
            self.changed.wait(&mut state);
        }
    }

    /// What stopped goes on, and nothing stops any more.
    pub(super) fn go_on(&self) {
        self.state().stop = None;
        self.changed.notify_all();
    }

    fn pause(&self, at: Stop) {
        let mut state = self.state();
        if state.stop != Some(at) {
            return;
        }
        state.stopped += 1;
        self.changed.notify_all();
        while state.stop == Some(at) {
            self.changed.wait(&mut state);
        }
        state.stopped -= 1;
    }

    fn write(&self, batch: &WriteBatch<'_>) -> Result<(), Failed> {
        let runs: Vec<Range<u64>> = batch.runs().collect();
        assert!(!runs.is_empty(), "a batch without a block");
        let submitted: Vec<(usize, Option<u64>)> = {
            let mut state = self.state();
            let blocks: Vec<usize> = runs.iter().flat_map(|run| state.blocks_of(run)).collect();
            let has_place = |at: &&usize| {
                let has_block = state.blocks.get(**at).is_some_and(Option::is_some);
                has_block || state.reserved.contains(*at)
            };
            let homeless = blocks.len() - blocks.iter().filter(has_place).count();
            state.violations += homeless;
            blocks
                .into_iter()
                .map(|at| (at, state.blocks[at]))
                .collect()
        };
        self.pause(Stop::BeforeWrite);
        self.pause(Stop::BeforeMapping);
        let mut state = self.state();
        if state.failing_writes > 0 {
            state.failing_writes -= 1;
            return Err(Failed);
        }
        for (at, before) in submitted {
            if state.blocks[at] != before {
                state.violations += 1;
            }
            let size = state.block_size;
            let start = (at * size) as u64;
            let bytes = batch.bytes(start..start + size as u64);
            state.bytes[at * size..][..size].copy_from_slice(bytes);
            if before.is_none() {
                state.blocks[at] = Some(state.given_away);
                state.reserved.remove(&at);
            }
        }
        Ok(())
    }
}

const PAGE: u64 = PAGE_SIZE as u64;

impl State {
    /// Makes room for a file of `size` bytes.
    fn reach(&mut self, size: u64) {
        let size = usize::try_from(size).expect("small");
        let blocks = size.div_ceil(self.block_size);
        if blocks > self.blocks.len() {
            self.blocks.resize(blocks, None);
            self.bytes.resize(blocks * self.block_size, FOREIGN);
        }
    }

    /// The blocks wholly in `range`.
    fn blocks_inside(&self, range: Range<u64>) -> Range<usize> {
        let (size, all) = (self.block_size as u64, self.blocks.len());
        let index = |at: u64| usize::try_from(at).unwrap_or(all).min(all);
        let start = index(range.start.div_ceil(size));
        start..index(range.end / size).max(start)
    }

    /// The blocks of `range`, which is whole ones.
    fn blocks_of(&self, range: &Range<u64>) -> Range<usize> {
        let index = |at: u64| usize::try_from(at).expect("small") / self.block_size;
        index(range.start)..index(range.end)
    }

    fn give_away(&mut self, blocks: Range<usize>) {
        self.given_away += 1;
        for at in blocks {
            let had_space = self.blocks[at].take().is_some() | self.reserved.remove(&at);
            if had_space && let Some(free) = &mut self.free {
                *free += 1;
            }
            let size = self.block_size;
            self.bytes[at * size..][..size].fill(FOREIGN);
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.given_away += 1;
        let now = self.given_away;
        self.blocks.swap(one, other);
        for at in [one, other] {
            self.blocks[at] = self.blocks[at].map(|_| now);
        }
        for at in 0..self.block_size {
            let size = self.block_size;
            self.bytes.swap(one * size + at, other * size + at);
        }
    }

    fn generations(&self, pages: &Range<u64>) -> Vec<Option<u64>> {
        let per_page = PAGE_SIZE / self.block_size;
        let place = |page: u64| {
            let at = usize::try_from(page).expect("small") * per_page;
            at.min(self.blocks.len())
        };
        self.blocks[place(pages.start)..place(pages.end)].to_vec()
    }

    /// Fills `page` with what the file has from byte `start` on.
    fn read(&self, start: u64, page: &mut [u8]) {
        page.fill(0);
        let start = usize::try_from(start).expect("small");
        let size = usize::try_from(self.size).expect("small");
        for (nr, part) in page.chunks_mut(self.block_size).enumerate() {
            let at = start + nr * self.block_size;
            let len = part.len().min(size.saturating_sub(at));
            let block = self.blocks.get(at / self.block_size);
            if len > 0 && block.is_some_and(Option::is_some) {
                part[..len].copy_from_slice(&self.bytes[at..at + len]);
            }
        }
    }
}

impl Backing for Disk {
    type Error = Failed;

    fn size(&self) -> u64 {
        self.state().size
    }

    fn segment(
        &self,
        _held: &mut Held<'_, Invalidate>,
        offset: u64,
    ) -> Result<(Segment, u64), Failed> {
        let state = self.state();
        let at = usize::try_from(offset).expect("small");
        let first = at / state.block_size;
        let is_data = |at: usize| state.blocks.get(at).copied().flatten().is_some();
        let alike = (first..state.blocks.len()).take_while(|&at| is_data(at) == is_data(first));
        let end = (first + alike.count().max(1)) * state.block_size;
        let kind = if is_data(first) {
            Segment::Data
        } else {
            Segment::Hole
        };
        Ok((kind, (end - at) as u64))
    }

    fn read_pages(
        &self,
        _held: &mut Held<'_, PageLock>,
        first: u64,
        pages: &mut [FrameMut],
    ) -> Result<(), Failed> {
        let range = first..first + pages.len() as u64;
        let submitted = {
            let mut state = self.state();
            state.reads.push(range.clone());
            state.generations(&range)
        };
        self.pause(Stop::BeforeRead);
        {
            let mut state = self.state();
            if state.failing_reads > 0 {
                state.failing_reads -= 1;
                return Err(Failed);
            }
            if state.generations(&range) != submitted {
                state.violations += 1;
            }
            for (index, frame) in range.zip(pages) {
                state.read(index * PAGE, &mut frame[..]);
            }
        }
        self.pause(Stop::AfterRead);
        Ok(())
    }
}

impl WriteBacking for Disk {
    fn block_size(&self) -> u32 {
        self.state().block_size.try_into().expect("small")
    }

    fn reserve(&self, _held: &mut Held<'_, PageLock>, range: Range<u64>) -> Result<(), Failed> {
        let hook = {
            let mut state = self.state();
            state.reach(range.end);
            let new: Vec<usize> = state
                .blocks_of(&range)
                .filter(|at| state.blocks[*at].is_none() && !state.reserved.contains(at))
                .collect();
            if let Some(free) = &mut state.free {
                *free = free.checked_sub(new.len()).ok_or(Failed)?;
            }
            state.reserved.extend(new);
            state.reserve_hook.take()
        };
        if let Some(hook) = hook {
            hook();
        }
        Ok(())
    }

    fn make_room(&self, _held: &mut Held<'_, Inode>, _error: &Failed) -> bool {
        false
    }

    fn make_room_for_fault(&self, _held: &mut Held<'_, Entry>, _error: &Failed) -> bool {
        false
    }

    fn release(&self, _held: &mut Held<'_, PageLock>, range: Range<u64>) {
        let mut state = self.state();
        let end = (state.blocks.len() * state.block_size) as u64;
        let released = state.blocks_of(&(range.start.min(end)..range.end.min(end)));
        let before = state.reserved.len();
        state.reserved.retain(|at| !released.contains(at));
        let count = before - state.reserved.len();
        if let Some(free) = &mut state.free {
            *free += count;
        }
    }

    fn grow(&self, _held: &mut Held<'_, PageLock>, end: u64) {
        let mut state = self.state();
        state.size = state.size.max(end);
    }

    fn write_pages(
        &self,
        _held: &mut Held<'_, Writepages>,
        batch: &WriteBatch<'_>,
    ) -> Result<(), Failed> {
        self.write(batch)
    }
}

impl DirectBacking for Disk {
    fn write_direct(
        &self,
        _held: &mut Held<'_, PageLock>,
        batch: &WriteBatch<'_>,
    ) -> Result<u64, Failed> {
        self.write(batch)?;
        Ok(batch.runs().last().map_or(0, |run| run.end))
    }
}
