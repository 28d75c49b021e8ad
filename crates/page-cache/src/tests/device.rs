//! A file on a device that the test is in command of: it holds completions, fails, runs out of
//! space, and notices I/O to blocks that were taken away meanwhile (oracle O9), and dirty blocks
//! that have neither a block nor a reservation (O3).
#![cfg_attr(
    shuttle,
    expect(dead_code, reason = "there the scheduler decides, not the test")
)]

use std::collections::BTreeSet;
use std::ops::Range;

use pagefence_host_memory::FrameMut;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Entry, Inode, Invalidate, PageLock, Writepages};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, MutexGuard};

use crate::backing::{Backing, PAGE_SIZE, Segment, WriteBacking};
use crate::{Evicted, Mapping, PageCache, WriteBatch};

mod write;

pub(super) type TestMapping = Mapping<Device>;

/// What the device says when told to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed;

/// Where a fill or a write stops for the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// K3: the mapping was looked up, the I/O not submitted.
    BeforeIo,
    /// K4: the I/O is done, the pages are not up to date.
    AfterIo,
    /// K10: writeback is to write.
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
    /// Per block: `Some(generation)` if it has data.
    blocks: Vec<Option<u64>>,
    stop: Option<Stop>,
    stopped: usize,
    failing_reads: usize,
    failing_segments: usize,
    panicking_reads: usize,
    segment_hook: Option<Hook>,
    grow_hook: Option<Hook>,
    reserve_hook: Option<Hook>,
    size_hook: Option<Hook>,
    reads: Vec<Range<u64>>,
    /// Blocks that have no data yet, and space set aside.
    reserved: BTreeSet<usize>,
    /// Blocks that may still be reserved; `None` for as many as anyone likes.
    free: Option<usize>,
    /// Blocks that each call for room will find.
    room: Vec<usize>,
    failing_writes: usize,
    panicking_writes: usize,
    /// Direct writes fail when they have mapped the blocks before this byte.
    failing_direct_at: Option<u64>,
    /// Direct writes that are being written now, and the most there were.
    direct: usize,
    direct_most: usize,
    /// Bytes written, in pieces.
    writes: Vec<Range<u64>>,
    /// A write may read what a page keeps that is a hole.
    holes_are_read: bool,
    /// Calls of `write_pages`.
    batches: usize,
    generation: u64,
    /// What a crash would leave of the size.
    disk_size: u64,
    /// I/O that hit a block which was no data at submission, or another one at completion; dirty
    /// blocks that nobody had reserved.
    violations: usize,
}

/// One file on it.
pub(super) struct Device {
    control: Arc<Control>,
    /// A file system that owns its cache keeps it as long as its files live.
    _owned: Option<Arc<PageCache>>,
}

/// The test's hand on a device, which may outlive it.
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

impl std::ops::Deref for Device {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

impl Device {
    /// A file of `pages` pages, each stamped with version 1; blocks of `block_size`.
    pub(super) fn stamped(pages: usize, block_size: usize) -> Self {
        let bytes: Vec<u8> = (0..pages)
            .flat_map(|page| super::stamped(page, 1))
            .collect();
        let state = State {
            block_size,
            size: bytes.len() as u64,
            blocks: vec![Some(0); bytes.len() / block_size],
            disk_size: bytes.len() as u64,
            bytes,
            ..State::default()
        };
        Self::of(state)
    }

    /// A file of `size` bytes without a block.
    pub(super) fn hole(size: u64, block_size: usize) -> Self {
        let mut state = State {
            block_size,
            size,
            disk_size: size,
            holes_are_read: true,
            ..State::default()
        };
        state.reach(size);
        Self::of(state)
    }

    fn of(state: State) -> Self {
        Self {
            control: Arc::new(Control {
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
            _owned: None,
        }
    }

    /// The same, keeping `cache`.
    pub(super) fn owning(self, cache: Arc<PageCache>) -> Self {
        Self {
            _owned: Some(cache),
            ..self
        }
    }

    /// The test's hand on it.
    pub(super) fn remote(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// A mapping of it.
    pub(super) fn mapped(self, cache: &PageCache) -> Arc<TestMapping> {
        Mapping::new(cache, 7, self)
    }

    /// Makes holes of the blocks that lie in the fence's range; their bytes are another file's
    /// from now on.
    pub(super) fn punch(evicted: &Evicted<'_, Self>) {
        let mut state = evicted.mapping().backing().state();
        let blocks = state.blocks_in(evicted.range());
        state.take_away(blocks);
    }

    /// Gives the fence's range, which is whole blocks, other blocks with these bytes.
    pub(super) fn replace(evicted: &Evicted<'_, Self>, bytes: &[u8]) {
        let mut state = evicted.mapping().backing().state();
        let start = usize::try_from(evicted.range().start).expect("small");
        state.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        for at in state.blocks_in(evicted.range()) {
            state.blocks[at] = Some(state.blocks[at].map_or(0, |generation| generation + 1));
        }
    }

    /// Frees what lies past the size, which was set before; the fence reaches from there on.
    pub(super) fn truncate(evicted: &Evicted<'_, Self>) {
        let mut state = evicted.mapping().backing().state();
        let blocks = state.blocks_in(state.size..u64::MAX);
        state.take_away(blocks);
        state.disk_size = state.size;
    }
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Sets the size: the first step of a truncate, inside the fence.
    pub(super) fn set_size(&self, size: u64) {
        let mut state = self.state();
        state.reach(size);
        state.size = size;
    }

    /// What a crash would leave of the size.
    pub(super) fn disk_size(&self) -> u64 {
        self.state().disk_size
    }

    /// Stops fills and writes at `stop` from now on.
    pub(super) fn stop_at(&self, stop: Stop) {
        self.state().stop = Some(stop);
    }

    /// Waits until `count` have stopped.
    pub(super) fn wait_stopped(&self, count: usize) {
        let mut state = self.state();
        while state.stopped < count {
            self.changed.wait(&mut state);
        }
    }

    pub(super) fn stopped(&self) -> usize {
        self.state().stopped
    }

    /// Lets everything that stopped go on, and stops no more.
    pub(super) fn go_on(&self) {
        self.state().stop = None;
        self.changed.notify_all();
    }

    pub(super) fn fail_reads(&self, count: usize) {
        self.state().failing_reads = count;
    }

    pub(super) fn fail_segments(&self, count: usize) {
        self.state().failing_segments = count;
    }

    pub(super) fn panic_in_read(&self) {
        self.state().panicking_reads = 1;
    }

    pub(super) fn fail_writes(&self, count: usize) {
        self.state().failing_writes = count;
    }

    /// Direct writes fail from now on when they have mapped what lies before byte `end`.
    pub(super) fn fail_direct_at(&self, end: Option<u64>) {
        self.state().failing_direct_at = end;
    }

    /// How many direct writes were being written at once, at most.
    pub(super) fn direct_at_once(&self) -> usize {
        self.state().direct_most
    }

    pub(super) fn panic_in_write(&self) {
        self.state().panicking_writes = 1;
    }

    /// Lets reads meet holes: those of pages written in part do.
    pub(super) fn let_holes_be_read(&self) {
        self.state().holes_are_read = true;
    }

    /// Leaves `free` blocks to reserve; each call for room finds one of `room` more, from the
    /// last on.
    pub(super) fn limit_space(&self, free: usize, room: &[usize]) {
        let mut state = self.state();
        state.free = Some(free);
        state.room = room.to_vec();
    }

    /// Blocks that are reserved.
    pub(super) fn reserved(&self) -> usize {
        self.state().reserved.len()
    }

    /// Runs `hook` when the size is raised next, or could be.
    pub(super) fn on_grow(&self, hook: impl FnOnce() + Send + 'static) {
        self.state().grow_hook = Some(Box::new(hook));
    }

    /// Runs `hook` when something was reserved next (K7).
    pub(super) fn on_reserve(&self, hook: impl FnOnce() + Send + 'static) {
        self.state().reserve_hook = Some(Box::new(hook));
    }

    /// Runs `hook` when the size is asked for next.
    pub(super) fn on_size(&self, hook: impl FnOnce() + Send + 'static) {
        self.state().size_hook = Some(Box::new(hook));
    }

    /// The byte ranges written so far; forgets them.
    pub(super) fn take_writes(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.state().writes)
    }

    /// How often pages were written; forgets it.
    pub(super) fn take_batches(&self) -> usize {
        std::mem::take(&mut self.state().batches)
    }

    /// Runs `hook` in the next query of the block map.
    pub(super) fn on_segment(&self, hook: impl FnOnce() + Send + 'static) {
        self.state().segment_hook = Some(Box::new(hook));
    }

    /// The page ranges read so far; forgets them.
    pub(super) fn take_reads(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.state().reads)
    }

    pub(super) fn violations(&self) -> usize {
        self.state().violations
    }

    /// The file as the device has it.
    pub(super) fn contents(&self) -> Vec<u8> {
        let state = self.state();
        let mut bytes: Vec<u8> = state.bytes.clone();
        for (at, block) in state.blocks.iter().enumerate() {
            if block.is_none() {
                bytes[at * state.block_size..][..state.block_size].fill(0);
            }
        }
        bytes.truncate(state.size.try_into().expect("small"));
        bytes
    }

    fn find_room(&self) -> bool {
        let mut state = self.state();
        let found = state.room.pop();
        if let (Some(found), Some(free)) = (found, &mut state.free) {
            *free += found;
        }
        found.is_some()
    }

    fn pause(&self, at: Stop) {
        let mut state = self.state();
        if state.stop == Some(at) {
            state.stopped += 1;
            self.changed.notify_all();
            while state.stop == Some(at) {
                self.changed.wait(&mut state);
            }
            state.stopped -= 1;
        }
    }
}

impl State {
    /// Blocks that lie wholly in a byte range.
    fn blocks_in(&self, range: Range<u64>) -> Range<usize> {
        let block = self.block_size as u64;
        let all = self.blocks.len();
        let index = |at: u64| usize::try_from(at).unwrap_or(all).min(all);
        let (start, end) = (index(range.start.div_ceil(block)), index(range.end / block));
        start..end.max(start)
    }

    /// Makes room for a file of `size` bytes.
    fn reach(&mut self, size: u64) {
        let blocks = usize::try_from(size)
            .expect("small")
            .div_ceil(self.block_size);
        if blocks > self.blocks.len() {
            self.blocks.resize(blocks, None);
            self.bytes.resize(blocks * self.block_size, 0xBD);
        }
    }

    fn take_away(&mut self, blocks: Range<usize>) {
        for at in blocks {
            if self.blocks[at].take().is_some() | self.reserved.remove(&at)
                && let Some(free) = &mut self.free
            {
                *free += 1;
            }
            let block = self.block_size;
            self.bytes[at * block..][..block].fill(0xBD);
        }
    }

    fn blocks_of(&self, run: &Range<u64>) -> Range<usize> {
        let index = |at: u64| usize::try_from(at).expect("small") / self.block_size;
        index(run.start)..index(run.end)
    }

    fn generations(&self, pages: Range<u64>) -> Vec<Option<u64>> {
        let per_page = PAGE_SIZE / self.block_size;
        let start = usize::try_from(pages.start).expect("small") * per_page;
        let end = usize::try_from(pages.end).expect("small") * per_page;
        self.blocks[start.min(self.blocks.len())..end.min(self.blocks.len())].to_vec()
    }
}

impl Backing for Device {
    type Error = Failed;

    fn size(&self) -> u64 {
        let hook = self.state().size_hook.take();
        if let Some(hook) = hook {
            hook();
        }
        self.state().size
    }

    fn segment(
        &self,
        _held: &mut Held<'_, Invalidate>,
        offset: u64,
    ) -> Result<(Segment, u64), Failed> {
        let hook = self.state().segment_hook.take();
        if let Some(hook) = hook {
            hook();
        }
        let mut state = self.state();
        if state.failing_segments > 0 {
            state.failing_segments -= 1;
            return Err(Failed);
        }
        let at = usize::try_from(offset).expect("small");
        let block = at / state.block_size;
        let data = |at: usize| state.blocks.get(at).copied().flatten().is_some();
        let alike = (block..state.blocks.len())
            .take_while(|&at| data(at) == data(block))
            .count()
            .max(1);
        let kind = if data(block) {
            Segment::Data
        } else {
            Segment::Hole
        };
        Ok((kind, ((block + alike) * state.block_size - at) as u64))
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
            let generations = state.generations(range.clone());
            if state.block_size == PAGE_SIZE && generations.contains(&None) && !state.holes_are_read
            {
                state.violations += 1;
            }
            generations
        };
        self.pause(Stop::BeforeIo);
        {
            let mut state = self.state();
            if state.panicking_reads > 0 {
                state.panicking_reads -= 1;
                drop(state);
                panic!("the device was told to panic");
            }
            if state.failing_reads > 0 {
                state.failing_reads -= 1;
                return Err(Failed);
            }
            if state.generations(range) != submitted {
                state.violations += 1;
            }
            let start = usize::try_from(first).expect("small") * PAGE_SIZE;
            let size = usize::try_from(state.size).expect("small");
            for (at, frame) in pages.iter_mut().enumerate() {
                frame.fill(0);
                let blocks = frame.chunks_mut(state.block_size).enumerate();
                for (block, part) in blocks {
                    let from = start + at * PAGE_SIZE + block * state.block_size;
                    let len = part.len().min(size.saturating_sub(from));
                    if len > 0 && state.blocks[from / state.block_size].is_some() {
                        part[..len].copy_from_slice(&state.bytes[from..from + len]);
                    }
                }
            }
        }
        self.pause(Stop::AfterIo);
        Ok(())
    }
}

impl WriteBacking for Device {
    fn block_size(&self) -> u32 {
        self.state().block_size.try_into().expect("small")
    }

    fn reserve(&self, _held: &mut Held<'_, PageLock>, range: Range<u64>) -> Result<(), Failed> {
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
        let hook = state.reserve_hook.take();
        drop(state);
        if let Some(hook) = hook {
            hook();
        }
        Ok(())
    }

    fn make_room_for_fault(&self, _held: &mut Held<'_, Entry>, _error: &Failed) -> bool {
        self.find_room()
    }

    fn release(&self, _held: &mut Held<'_, PageLock>, range: Range<u64>) {
        let mut state = self.state();
        let end = (state.blocks.len() * state.block_size) as u64;
        let released = state.blocks_of(&(range.start.min(end)..range.end.min(end)));
        let count = state.reserved.len();
        state.reserved.retain(|at| !released.contains(at));
        let count = count - state.reserved.len();
        if let Some(free) = &mut state.free {
            *free += count;
        }
    }

    fn make_room(&self, _held: &mut Held<'_, Inode>, _error: &Failed) -> bool {
        self.find_room()
    }

    fn grow(&self, _held: &mut Held<'_, PageLock>, end: u64) {
        let hook = self.state().grow_hook.take();
        if let Some(hook) = hook {
            hook();
        }
        let mut state = self.state();
        state.size = state.size.max(end);
    }

    fn write_pages(
        &self,
        _held: &mut Held<'_, Writepages>,
        batch: &WriteBatch<'_>,
    ) -> Result<(), Failed> {
        self.write_batch(batch, u64::MAX)
    }
}
