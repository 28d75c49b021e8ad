//! A file on a device that the test is in command of: it holds completions, fails, and notices
//! I/O to blocks that were taken away meanwhile (oracle O9).
#![cfg_attr(
    shuttle,
    expect(dead_code, reason = "there the scheduler decides, not the test")
)]

use std::ops::Range;

use pagefence_host_memory::FrameMut;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Invalidate, PageLock};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, MutexGuard};

use crate::backing::{Backing, PAGE_SIZE, Segment};
use crate::{Evicted, Mapping, PageCache};

pub(super) type TestMapping = Mapping<Device>;

/// What the device says when told to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed;

/// Where a fill stops for the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// K3: the mapping was looked up, the I/O not submitted.
    BeforeIo,
    /// K4: the I/O is done, the pages are not up to date.
    AfterIo,
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
    reads: Vec<Range<u64>>,
    /// I/O that hit a block which was no data at submission, or another one at completion.
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
            bytes,
            ..State::default()
        };
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
        for at in state.blocks_in(evicted.range()) {
            state.blocks[at] = None;
            let block = state.block_size;
            state.bytes[at * block..][..block].fill(0xBD);
        }
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

    /// Sets the size; the fence reaches from there on.
    pub(super) fn truncate(evicted: &Evicted<'_, Self>, size: u64) {
        let mut state = evicted.mapping().backing().state();
        let (old, block) = (state.size, state.block_size as u64);
        // As a file system does: what is cut off reads as zeros when the file grows again.
        let edge = size.min(old)..size.min(old).next_multiple_of(block);
        for at in edge {
            if let Some(byte) = state.bytes.get_mut(usize::try_from(at).expect("small")) {
                *byte = 0;
            }
        }
        for at in state.blocks_in(size.min(old)..u64::MAX) {
            state.blocks[at] = None;
        }
        state.size = size.min(state.bytes.len() as u64);
    }
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Stops fills at `stop` from now on.
    pub(super) fn stop_at(&self, stop: Stop) {
        self.state().stop = Some(stop);
    }

    /// Waits until `count` fills have stopped.
    pub(super) fn wait_stopped(&self, count: usize) {
        let mut state = self.state();
        while state.stopped < count {
            self.changed.wait(&mut state);
        }
    }

    pub(super) fn stopped(&self) -> usize {
        self.state().stopped
    }

    /// Lets every stopped fill go on, and stops no more.
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

    /// The file as it should read.
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
            if state.block_size == PAGE_SIZE && generations.contains(&None) {
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
