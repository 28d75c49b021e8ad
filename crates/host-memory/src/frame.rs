//! Page frames: private ones, which are plain memory to their one owner, and published ones,
//! which many threads copy from and to.
//!
//! The bytes of a published frame lie in its arena, or in the memory of a mapped file: then the
//! arena's frame has no memory of its own, and being owned is all that it is for: it stands for its
//! share of the budget.
#![expect(
    unsafe_code,
    reason = "turns frames into references, and copies shared ones"
)]

use std::cell::UnsafeCell;
use std::io::IoSlice;
use std::ops::{Deref, DerefMut};

use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicU8, Ordering};

use crate::arena::{self, Pool};
use crate::memory::FileMemory;
use crate::{FRAME_SIZE, copy};

/// One frame of a pool, owned: given back when dropped.
#[derive(Debug)]
pub(crate) struct Owned {
    pool: Arc<Pool>,
    index: u32,
}

impl Owned {
    /// `index` was just taken from the pool's free map.
    pub(crate) fn new(pool: Arc<Pool>, index: u32) -> Self {
        Self { pool, index }
    }

    fn address(&self) -> *mut u8 {
        self.pool.address(self.index)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.pool.give(self.index);
    }
}

/// A frame that only its owner sees: plain memory. Dropping it gives it back to its arena.
///
/// Its bytes are defined (zeros, or what the last owner left) but mean nothing until written:
/// they may be another file's, so whoever publishes it has written every one of them.
#[derive(Debug)]
pub struct FrameMut(Owned);

impl FrameMut {
    pub(crate) fn of(owned: Owned) -> Self {
        Self(owned)
    }

    /// Gives up the sole view, so that many can copy from and to the frame.
    #[must_use]
    pub fn publish(self) -> Frame {
        Frame {
            owned: self.0,
            home: None,
        }
    }

    /// Gives up the sole view and moves the bytes into page `page` of `memory`; the frame's own memory
    /// is given back. The page is whole from the first moment on in which others can find it.
    ///
    /// # Panics
    /// As [`FileMemory::write`].
    #[must_use]
    pub fn publish_in(mut self, memory: &Arc<FileMemory>, page: u64) -> Frame {
        memory.write(page, 0, self.as_slice());
        // SAFETY: it is one frame of an arena.
        unsafe { give_back(self.as_mut_slice()) };
        self.moved_to(memory, page)
    }

    /// [`Self::publish_in`] for `frames` in order, the first of them in page `first`: one write for
    /// all, and one call for each run of neighbours to give their memory back.
    ///
    /// # Panics
    /// As [`FileMemory::write`].
    #[must_use]
    pub fn publish_run_in(
        mut frames: Vec<FrameMut>,
        memory: &Arc<FileMemory>,
        first: u64,
    ) -> Vec<Frame> {
        let mut runs = Self::runs(&mut frames);
        let mut slices: Vec<IoSlice<'_>> = runs.iter().map(|run| IoSlice::new(run)).collect();
        memory.write_pages(first, &mut slices);
        for run in &mut runs {
            // SAFETY: `runs` gives whole frames.
            unsafe { give_back(run) };
        }
        (first..)
            .zip(frames)
            .map(|(page, frame)| frame.moved_to(memory, page))
            .collect()
    }

    /// A published frame whose bytes have been written to `page` of `memory`.
    fn moved_to(self, memory: &Arc<FileMemory>, page: u64) -> Frame {
        Frame {
            owned: self.0,
            home: Some(Home {
                memory: Arc::clone(memory),
                page,
            }),
        }
    }

    /// Position in the arena.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.0.index
    }

    /// The memory of `frames` in order, neighbours joined: a batch becomes few long slices for
    /// one vectored read.
    #[must_use]
    pub fn runs(frames: &mut [FrameMut]) -> Vec<&mut [u8]> {
        frames
            .chunk_by_mut(|a, b| {
                Arc::ptr_eq(&a.0.pool, &b.0.pool) && a.0.index.checked_add(1) == Some(b.0.index)
            })
            .map(|run| {
                let len = run.len() * FRAME_SIZE;
                let start = run[0].0.address();
                // SAFETY: the frames of `run` lie one after the other in one mapping, `start` is
                // derived from the pointer to the whole mapping, all bytes are initialised
                // (by the kernel, if by nobody else), and `run` is borrowed mutably for as long
                // as the slice lives: nobody else sees these frames.
                unsafe { std::slice::from_raw_parts_mut(start, len) }
            })
            .collect()
    }
}

/// Gives the memory of `run`, whole frames of an arena as [`FrameMut::runs`] gives them, back to the
/// operating system. A memory of a mapped file exists, so that system pages are as large as frames.
///
/// # Safety
///
/// `run` is whole frames of an arena.
unsafe fn give_back(run: &mut [u8]) {
    debug_assert_eq!(run.len() % FRAME_SIZE, 0, "whole frames");
    // SAFETY: the caller's contract, and the borrow is exclusive.
    unsafe { arena::give_memory_back(run.as_mut_ptr(), run.len()) };
}

impl Deref for FrameMut {
    type Target = [u8; FRAME_SIZE];

    fn deref(&self) -> &Self::Target {
        // SAFETY: the frame is FRAME_SIZE initialised bytes, aligned, and in nobody else's hands;
        // `&self` keeps everyone from a `&mut` to it.
        unsafe { &*self.0.address().cast::<[u8; FRAME_SIZE]>() }
    }
}

impl DerefMut for FrameMut {
    fn deref_mut(&mut self) -> &mut Self::Target {
        // SAFETY: as in `deref`, and `&mut self` is the only way to the frame.
        unsafe { &mut *self.0.address().cast::<[u8; FRAME_SIZE]>() }
    }
}

/// A frame that many threads may copy from and to at once. Dropping it gives it back to its
/// arena.
///
/// If its bytes are in the memory of a mapped file, they stay there when it is dropped: to punch that
/// page is the page cache's business, under the page lock.
///
/// Copies that race give a mixture of old and new bytes and order nothing; see [`crate::copy`].
#[derive(Debug)]
pub struct Frame {
    owned: Owned,
    /// Where the bytes are, if not in the arena.
    home: Option<Home>,
}

/// A page in the memory of a mapped file.
#[derive(Debug)]
struct Home {
    memory: Arc<FileMemory>,
    page: u64,
}

impl Frame {
    /// Copies from byte `offset` of the frame into `target`. A page of a mapped file that was punched
    /// reads as zeros: who copies without the page lock looks afterwards whether it has gone.
    ///
    /// # Panics
    ///
    /// If the range is not inside the frame.
    pub fn copy_out(&self, offset: usize, target: &mut [u8]) {
        assert_inside(offset, target.len());
        if let Some(home) = &self.home {
            return home.memory.read(home.page, offset, target);
        }
        let source = self.at(offset);
        // SAFETY: the range was checked. `target` is a private slice, so it is not of a
        // published frame (there are no references to those) and does not overlap. Writers of a
        // published frame go through `copy_in` and `zero`.
        unsafe { copy::from_shared(source, target.as_mut_ptr(), target.len()) };
        self.owned.pool.end_copy();
    }

    /// Copies `source` to byte `offset` of the frame. The caller holds the page lock of a page of a
    /// mapped file: one that was punched would come back.
    ///
    /// # Panics
    ///
    /// If the range is not inside the frame; of a mapped file, as [`FileMemory::write`].
    pub fn copy_in(&self, offset: usize, source: &[u8]) {
        assert_inside(offset, source.len());
        if let Some(home) = &self.home {
            return home.memory.write(home.page, offset, source);
        }
        let target = self.at(offset);
        // SAFETY: as in `copy_out`, with the roles changed.
        unsafe { copy::to_shared(source.as_ptr(), target, source.len()) };
        self.owned.pool.end_copy();
    }

    /// Sets `len` bytes from `offset` on to zero, under the lock that [`Self::copy_in`] asks for.
    ///
    /// # Panics
    ///
    /// As [`Self::copy_in`].
    pub fn zero(&self, offset: usize, len: usize) {
        assert_inside(offset, len);
        if let Some(home) = &self.home {
            return home
                .memory
                .write(home.page, offset, &[0; FRAME_SIZE][..len]);
        }
        let target = self.at(offset);
        // SAFETY: the range was checked; everyone else who touches the frame does so through
        // this type.
        unsafe { copy::zero_shared(target, len) };
        self.owned.pool.end_copy();
    }

    /// Position in the arena.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.owned.index
    }

    /// Whether the bytes are in the memory of a mapped file.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.home.is_some()
    }

    /// Byte `offset` of the arena's frame.
    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= FRAME_SIZE, "byte {offset} of a frame");
        // SAFETY: offset is at most FRAME_SIZE, inside or one past the frame.
        unsafe { self.owned.address().add(offset) }
    }
}

fn assert_inside(offset: usize, len: usize) {
    let inside = offset.checked_add(len).is_some_and(|end| end <= FRAME_SIZE);
    assert!(inside, "{len} bytes at {offset} of a frame");
}

const EMPTY: u8 = 0;
const FILLING: u8 = 1;
const FULL: u8 = 2;

/// A place for one published frame: empty at first, filled once, then read without a lock.
///
/// Filling it releases what the frame's owner wrote; finding it full acquires that. So "there is
/// a frame" can mean "it is up to date", and nothing else need be asked.
#[derive(Debug)]
pub struct FrameCell {
    state: AtomicU8,
    frame: UnsafeCell<Option<Frame>>,
}

// SAFETY: `frame` is written only by the one thread that moved `state` from EMPTY to FILLING, and
// read only after FULL was seen, which that thread stores afterwards; never written again through
// a shared reference. `Frame` itself is Send and Sync.
unsafe impl Sync for FrameCell {}

impl FrameCell {
    /// An empty place.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: AtomicU8::new(EMPTY),
            frame: UnsafeCell::new(None),
        }
    }

    /// Publishes `frame` here.
    ///
    /// # Errors
    ///
    /// Gives `frame` back if there is one already.
    pub fn publish(&self, frame: Frame) -> Result<(), Frame> {
        let claimed =
            self.state
                .compare_exchange(EMPTY, FILLING, Ordering::Relaxed, Ordering::Relaxed);
        if claimed.is_err() {
            return Err(frame);
        }
        // SAFETY: this thread alone moved EMPTY to FILLING, and nobody reads before FULL.
        unsafe { *self.frame.get() = Some(frame) };
        self.state.store(FULL, Ordering::Release);
        Ok(())
    }

    /// The frame, if one was published.
    #[must_use]
    pub fn get(&self) -> Option<&Frame> {
        if self.state.load(Ordering::Acquire) != FULL {
            return None;
        }
        // SAFETY: FULL was stored after the frame was, and it is not written again while a
        // shared reference to this cell lives.
        unsafe { (*self.frame.get()).as_ref() }
    }

    /// Empties the place.
    pub fn take(&mut self) -> Option<Frame> {
        self.state = AtomicU8::new(EMPTY);
        self.frame.get_mut().take()
    }
}

impl Default for FrameCell {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
