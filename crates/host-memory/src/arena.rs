//! One reservation of page frames: the hard budget of a page cache.
//!
//! Address space is reserved at once, memory comes with the first touch of each frame. A frame
//! keeps its memory when it is given back, for the next owner, until [`Arena::release_free`]
//! hands what is free to the operating system.
#![expect(unsafe_code, reason = "maps, advises and unmaps the reservation")]

use std::ptr::NonNull;

use pagefence_lock_order::primitives::Arc;
#[cfg(sanitized = "thread")]
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::FRAME_SIZE;
use crate::frame::{FrameMut, Owned};
use crate::free_map::FreeMap;

/// Page frames of [`FRAME_SIZE`] bytes, aligned to it, as many as were asked for and never more.
///
/// Owns the reservation. Frames hold a reference, so it is unmapped when the arena and every
/// frame of it are gone.
#[derive(Debug)]
pub struct Arena {
    pool: Arc<Pool>,
}

/// The reservation and what of it is free.
#[derive(Debug)]
pub(crate) struct Pool {
    base: NonNull<u8>,
    bytes: usize,
    frames: usize,
    free: FreeMap,
    /// Copies that have ended, see [`Pool::end_copy`].
    #[cfg(sanitized = "thread")]
    copies: AtomicU64,
}

// SAFETY: the pointer is to a mapping that belongs to no thread; who may touch which frame of it
// is settled by `FreeMap`, which gives a frame to one owner at a time.
unsafe impl Send for Pool {}
// SAFETY: as above; a shared `Pool` gives out frames by atomics only.
unsafe impl Sync for Pool {}

impl Arena {
    /// Reserves `frames` page frames.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if that is none, or 2^32 or more; else the operating system's refusal.
    pub fn new(frames: usize) -> std::io::Result<Self> {
        let bytes = frames
            .checked_mul(FRAME_SIZE)
            .filter(|_| frames != 0 && u32::try_from(frames).is_ok())
            .ok_or(std::io::ErrorKind::InvalidInput)?;
        // SAFETY: a new private mapping at an address of the kernel's choosing touches nothing
        // that exists. NORESERVE: the budget is a limit, not a promise of memory.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            pool: Arc::new(Pool {
                base,
                bytes,
                frames,
                free: FreeMap::new(frames),
                #[cfg(sanitized = "thread")]
                copies: AtomicU64::new(0),
            }),
        })
    }

    /// Frames in all.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.pool.frames
    }

    /// Frames that nobody owns; exact when nothing moves.
    #[must_use]
    pub fn free_frames(&self) -> usize {
        self.pool.free.count()
    }

    /// Takes one frame; `None` if none is free. Its bytes are whatever its last owner left.
    #[must_use]
    pub fn allocate(&self) -> Option<FrameMut> {
        self.allocate_batch(1).pop()
    }

    /// Takes up to `count` frames, ascending, in few runs of neighbours; fewer if fewer are
    /// free. Their bytes are whatever their last owners left.
    ///
    /// Takes no lock. In a race with another call it can come back short although a frame is
    /// free: who must have one waits to be told of the next one given back.
    #[must_use]
    pub fn allocate_batch(&self, count: usize) -> Vec<FrameMut> {
        let mut taken = Vec::with_capacity(count.min(self.pool.frames));
        self.pool.free.take(count, &mut taken);
        #[cfg(sanitized = "thread")]
        self.pool.copies.load(Ordering::Acquire);
        taken.sort_unstable();
        taken
            .into_iter()
            .map(|index| FrameMut::of(Owned::new(Arc::clone(&self.pool), index)))
            .collect()
    }

    /// Gives the memory of every free frame back to the operating system; says how many frames.
    ///
    /// Meanwhile up to 64 free frames at a time are out of reach of allocations.
    pub fn release_free(&self) -> usize {
        let pool = &self.pool;
        let system_page = rustix::param::page_size();
        let (mut released, mut from) = (0, 0);
        while let Some((word, bits)) = pool.free.take_word(from) {
            let mut rest = bits;
            while rest != 0 {
                let first = rest.trailing_zeros();
                let count = (rest >> first).trailing_ones();
                released += pool.advise_unused(word * 64, first, count, system_page);
                rest &= !(u64::MAX >> (64 - count) << first);
            }
            pool.free.give_word(word, bits);
            from = word + 1;
        }
        released
    }
}

impl Pool {
    /// Where frame `index` begins.
    pub(crate) fn address(&self, index: u32) -> *mut u8 {
        let index = usize::try_from(index).expect("usize has 32 bits or more");
        assert!(index < self.frames, "a frame of another arena");
        // SAFETY: `index * FRAME_SIZE` lies inside the mapping of `frames * FRAME_SIZE` bytes.
        unsafe { self.base.as_ptr().add(index * FRAME_SIZE) }
    }

    /// A copy from or to a frame has ended. The next owner of the frame comes after it: who copies holds
    /// a reference, mostly by an `Arc`. That one says so by a fence, which the thread sanitizer does not
    /// see, so it is told.
    pub(crate) fn end_copy(&self) {
        #[cfg(sanitized = "thread")]
        self.copies.fetch_add(1, Ordering::Release);
    }

    /// Gives a frame back.
    pub(crate) fn give(&self, index: u32) {
        self.free.give(index);
    }

    /// Drops the memory of `count` frames from `word_first + first` on, which the caller has
    /// taken from the free map; says of how many (system pages may be larger than frames).
    fn advise_unused(
        &self,
        word_first: usize,
        first: u32,
        count: u32,
        system_page: usize,
    ) -> usize {
        let usize_of = |value: u32| usize::try_from(value).expect("usize has 32 bits or more");
        let start = ((word_first + usize_of(first)) * FRAME_SIZE).next_multiple_of(system_page);
        let end = (word_first + usize_of(first) + usize_of(count)) * FRAME_SIZE;
        let end = end - end % system_page;
        if start >= end {
            return 0;
        }
        // SAFETY: start..end lies inside the mapping, and the frames in it are in nobody's
        // hands: they were free, and the caller took them off the free map.
        if unsafe { give_memory_back(self.base.as_ptr().add(start), end - start) } {
            (end - start) / FRAME_SIZE
        } else {
            0
        }
    }
}

/// Gives memory that its owner has no use for back to the operating system: it reads as zeros
/// afterwards. Advice: says whether it was taken; refused, the memory is kept as it is.
///
/// # Safety
///
/// The range is of an arena's mapping, of whole system pages, and nobody else has a reference to it.
pub(crate) unsafe fn give_memory_back(start: *mut u8, len: usize) -> bool {
    // SAFETY: the caller's contract; private anonymous memory that is given back reads as zeros.
    unsafe { madvise(start.cast(), len, Advice::LinuxDontNeed) }.is_ok()
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and no frame of it is left: each holds a
        // reference to this pool.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping");
    }
}
