//! Page frames: private ones, which are plain memory to their one owner, and published ones,
//! which many threads copy from and to.
#![expect(
    unsafe_code,
    reason = "turns frames into references, and copies shared ones"
)]

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};

use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicU8, Ordering};

use crate::arena::Pool;
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
        Frame(self.0)
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
/// Copies that race give a mixture of old and new bytes and order nothing; see [`crate::copy`].
#[derive(Debug)]
pub struct Frame(Owned);

impl Frame {
    /// Copies from byte `offset` of the frame into `target`.
    ///
    /// # Panics
    ///
    /// If the range is not inside the frame.
    pub fn copy_out(&self, offset: usize, target: &mut [u8]) {
        let source = self.at(offset, target.len());
        // SAFETY: `at` checked the range. `target` is a private slice, so it is not of a
        // published frame (there are no references to those) and does not overlap. Writers of a
        // published frame go through `copy_in` and `zero`.
        unsafe { copy::from_shared(source, target.as_mut_ptr(), target.len()) }
    }

    /// Copies `source` to byte `offset` of the frame.
    ///
    /// # Panics
    ///
    /// If the range is not inside the frame.
    pub fn copy_in(&self, offset: usize, source: &[u8]) {
        let target = self.at(offset, source.len());
        // SAFETY: as in `copy_out`, with the roles changed.
        unsafe { copy::to_shared(source.as_ptr(), target, source.len()) }
    }

    /// Sets `len` bytes from `offset` on to zero.
    ///
    /// # Panics
    ///
    /// If the range is not inside the frame.
    pub fn zero(&self, offset: usize, len: usize) {
        let target = self.at(offset, len);
        // SAFETY: `at` checked the range; everyone else who touches the frame does so through
        // this type.
        unsafe { copy::zero_shared(target, len) }
    }

    /// Position in the arena.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.0.index
    }

    /// Takes the frame back as plain memory. Being asked by value, nobody else has a view.
    #[must_use]
    pub fn unpublish(self) -> FrameMut {
        FrameMut(self.0)
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let inside = offset.checked_add(len).is_some_and(|end| end <= FRAME_SIZE);
        assert!(inside, "{len} bytes at {offset} of a frame");
        // SAFETY: offset is at most FRAME_SIZE, inside or one past the frame.
        unsafe { self.0.address().add(offset) }
    }
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
    pub fn publish(&self, frame: FrameMut) -> Result<(), FrameMut> {
        let claim =
            self.state
                .compare_exchange(EMPTY, FILLING, Ordering::Relaxed, Ordering::Relaxed);
        if claim.is_err() {
            return Err(frame);
        }
        // SAFETY: this thread alone moved EMPTY to FILLING, and nobody reads before FULL.
        unsafe { *self.frame.get() = Some(frame.publish()) };
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
