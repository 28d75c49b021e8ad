//! The exclusive section of a file: nobody fills pages, so blocks can be taken away.
//!
//! ```
//! # use std::ops::Range;
//! # use pagefence_lock_order::{Held, levels::{Invalidate, PageLock, Writepages}};
//! # use pagefence_page_cache::{
//! #     Backing, Config, Evict, Evicted, FrameMut, Mapping, PageCache, Segment, WriteBacking, WriteBatch,
//! # };
//! # struct Zeros;
//! # impl Backing for Zeros {
//! #     type Error = ();
//! #     fn size(&self) -> u64 { 8192 }
//! #     fn segment(&self, _: &mut Held<'_, Invalidate>, _: u64) -> Result<(Segment, u64), ()> {
//! #         Ok((Segment::Hole, 1 << 20))
//! #     }
//! #     fn read_pages(&self, _: &mut Held<'_, PageLock>, _: u64, pages: &mut [FrameMut]) -> Result<(), ()> {
//! #         pages.iter_mut().for_each(|page| page.fill(0));
//! #         Ok(())
//! #     }
//! # }
//! # impl WriteBacking for Zeros {
//! #     fn block_size(&self) -> u32 { 4096 }
//! #     fn reserve(&self, _: &mut Held<'_, PageLock>, _: Range<u64>) -> Result<(), ()> { Err(()) }
//! #     fn grow(&self, _: &mut Held<'_, PageLock>, _: u64) {}
//! #     fn write_pages(&self, _: &mut Held<'_, Writepages>, _: &WriteBatch<'_>) -> Result<(), ()> { Err(()) }
//! # }
//! fn free_blocks(evicted: &Evicted<'_, Zeros>) { /* … of evicted.mapping(), in evicted.range() */ }
//!
//! # fn main() -> std::io::Result<()> {
//! let cache = PageCache::new(Config::new(1 << 20))?;
//! let mapping = Mapping::new(&cache, 1, Zeros);
//! let mut entry = Held::at_entry();
//! let (mut fence, mut held) = mapping.fence(&mut entry, 0..4096);
//! let evicted = fence.evict(&mut held, Evict::Discard).expect("no edge to write");
//! free_blocks(&evicted);
//! drop(fence);
//! # Ok(())
//! # }
//! ```
//! Blocks can't be changed once the lock is given up:
//! ```compile_fail,E0505
//! # use pagefence_lock_order::Held;
//! # use pagefence_page_cache::{Evict, Evicted, Mapping, WriteBacking};
//! # fn free_blocks<B: WriteBacking>(evicted: &Evicted<'_, B>) {}
//! # fn example<B: WriteBacking>(mapping: &Mapping<B>) {
//! let mut entry = Held::at_entry();
//! let (mut fence, mut held) = mapping.fence(&mut entry, 0..4096);
//! let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
//! drop(fence);
//! free_blocks(&evicted);
//! # }
//! ```
//! Nor can the file be read, which fills pages, by the thread that holds the lock:
//! ```compile_fail,E0308
//! # use pagefence_lock_order::Held;
//! # use pagefence_page_cache::{Backing, Mapping, Readahead};
//! # fn example<B: Backing>(mapping: &Mapping<B>) {
//! let mut entry = Held::at_entry();
//! let (fence, mut held) = mapping.fence(&mut entry, 0..4096);
//! mapping.read(&mut held, &Readahead::new(), 0, &mut [0; 10]);
//! # }
//! ```
//! Nor is there another way to the proof:
//! ```compile_fail,E0451
//! # use pagefence_page_cache::{Backing, Evicted, Mapping};
//! # fn example<B: Backing>(mapping: &Mapping<B>) {
//! let evicted = Evicted { mapping, range: 0..4096 };
//! # }
//! ```

use std::ops::Range;
#[cfg(any(test, feature = "mutants"))]
use std::panic::Location;

use pagefence_lock_order::levels::{Invalidate, Level};
#[cfg(any(test, feature = "mutants"))]
use pagefence_lock_order::rank::{self, RankGuard};
use pagefence_lock_order::{After, Held, OrderedWriteGuard, pair};

use crate::backing::{Backing, WriteBacking};
use crate::mapping::{LARGEST, Mapping, PAGE_BYTES, pages_in};
#[cfg(any(test, feature = "mutants"))]
use crate::probe::Stop;
use crate::rmap::Unmap;
use crate::writeback::WaitFor;

/// The invalidate lock of one file, held exclusively; released when dropped.
///
/// It is taken before pages are dropped and kept until the change of the blocks is finished
/// (S0.14). Whatever removes, shifts or converts blocks asks for [`Evicted`], which only
/// [`Fence::evict`] gives.
#[derive(Debug)]
#[must_use]
pub struct Fence<'a, B: Backing> {
    mapping: &'a Mapping<B>,
    range: Range<u64>,
    /// Pages of the file when this was made.
    pages_before: u64,
    _lock: Lock<'a>,
}

/// The invalidate lock; handed over when dropped, so that between two fences of one operation, too,
/// who waits for the first goes before the second.
#[derive(Debug)]
enum Lock<'a> {
    Held {
        guard: Option<OrderedWriteGuard<'a, ()>>,
    },
    /// Its place in the order of locks, and no lock.
    #[cfg(any(test, feature = "mutants"))]
    LeftOut { _rank: RankGuard },
}

/// How pages are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Evict {
    /// The range is to read as zeros (truncate, punch, zero range). Pages wholly inside are
    /// dropped, dirty or not. Those at its ends stay, with zeros in the part that lies in the
    /// range; blocks in part in the range that hold data are written so, before blocks are changed
    /// (RACES B20 to B22). An edge in a hole or in unwritten blocks costs nothing.
    Discard,
    /// What the range holds is wanted (collapse, insert, exchange): all that it touches is written
    /// first and then dropped, the pages at its ends as well.
    WriteFirst,
}

/// Proof that no page that lies in the fence's range is in the cache, nor can come back while it
/// lives; nor, after [`Evict::WriteFirst`], one that the range touches.
#[derive(Debug)]
#[must_use]
pub struct Evicted<'f, B: Backing> {
    mapping: &'f Mapping<B>,
    range: Range<u64>,
}

impl<B: Backing> Mapping<B> {
    /// Takes the invalidate lock exclusively, for a change of the blocks under bytes `range`.
    /// Waits for fillers to finish their I/O; new ones wait until the fence is dropped. An empty
    /// range fences without covering a page.
    #[cfg_attr(any(test, feature = "mutants"), track_caller)]
    pub fn fence<'a, P: Level>(
        &'a self,
        held: &'a mut Held<'_, P>,
        range: Range<u64>,
    ) -> (Fence<'a, B>, Held<'a, Invalidate>)
    where
        Invalidate: After<P>,
    {
        #[cfg(any(test, feature = "mutants"))]
        self.shared().probe.stop(Stop::BeforeLock);
        #[cfg(any(test, feature = "mutants"))]
        if self.shared().probe.is_unlocked(Location::caller()) {
            let (_rank, held) = held.descend(self.number());
            return (Fence::taken(self, range, Lock::LeftOut { _rank }), held);
        }
        let (guard, held) = self.invalidate_lock().write(held);
        (Fence::taken(self, range, Lock::held(guard)), held)
    }
}

/// Takes the invalidate locks of two files exclusively, the lower number first, for a change that
/// moves blocks between bytes of the one and bytes of the other. If both are the same file, takes its
/// lock once: there is one fence then, over all from the first of these bytes to the last.
///
/// As [`Mapping::fence`]; the fences come in the order of the arguments.
///
/// # Panics
///
/// If two different files of the cache carry the same number.
#[cfg_attr(any(test, feature = "mutants"), track_caller)]
pub fn fence_both<'a, B: Backing, P: Level>(
    first: (&'a Mapping<B>, Range<u64>),
    second: (&'a Mapping<B>, Range<u64>),
    held: &'a mut Held<'_, P>,
) -> (Fence<'a, B>, Option<Fence<'a, B>>, Held<'a, Invalidate>)
where
    Invalidate: After<P>,
{
    let ((first, range), (second, other)) = (first, second);
    let (lock, other_lock) = (first.invalidate_lock(), second.invalidate_lock());
    #[cfg(any(test, feature = "mutants"))]
    first.shared().probe.stop(Stop::BeforeLock);
    #[cfg(any(test, feature = "mutants"))]
    if first.shared().probe.is_unlocked(Location::caller()) {
        return unlocked_both((first, range), (second, other), held);
    }
    let (guard, other_guard, held) = pair::write_both(lock, other_lock, held);
    let range = match other_guard {
        Some(_) => range,
        None => range.start.min(other.start)..range.end.max(other.end),
    };
    let fence = Fence::taken(first, range, Lock::held(guard));
    let other = other_guard.map(|guard| Fence::taken(second, other, Lock::held(guard)));
    (fence, other, held)
}

/// The mutant: as [`fence_both`], without the locks.
#[cfg(any(test, feature = "mutants"))]
fn unlocked_both<'a, B: Backing, P: Level>(
    (first, range): (&'a Mapping<B>, Range<u64>),
    (second, other): (&'a Mapping<B>, Range<u64>),
    held: &'a mut Held<'_, P>,
) -> (Fence<'a, B>, Option<Fence<'a, B>>, Held<'a, Invalidate>)
where
    Invalidate: After<P>,
{
    let (low, high) = (
        first.number().min(second.number()),
        first.number().max(second.number()),
    );
    let (_rank, held) = held.descend(low);
    let lock = Lock::LeftOut { _rank };
    if std::ptr::eq(first, second) {
        let range = range.start.min(other.start)..range.end.max(other.end);
        return (Fence::taken(first, range, lock), None, held);
    }
    let _rank = rank::enter::<Invalidate>(high);
    let other = Fence::taken(second, other, Lock::LeftOut { _rank });
    (Fence::taken(first, range, lock), Some(other), held)
}

impl<'a, B: Backing> Fence<'a, B> {
    fn taken(mapping: &'a Mapping<B>, range: Range<u64>, lock: Lock<'a>) -> Self {
        mapping.pages().set_fenced(true);
        Self {
            mapping,
            range,
            pages_before: pages_in(mapping.size()),
            _lock: lock,
        }
    }
}

impl<B: Backing> Fence<'_, B> {
    /// The mutant: private copies that were made after the first pass stay.
    fn unmaps_once(&self) -> bool {
        #[cfg(test)]
        return self.mapping.shared().mutants.unmap_once;
        #[cfg(not(test))]
        false
    }

    /// The mutant: what is to be written first was written before the lock was taken.
    fn has_flushed(&self) -> bool {
        #[cfg(any(test, feature = "mutants"))]
        return self.mapping.shared().probe.flushes_early();
        #[cfg(not(any(test, feature = "mutants")))]
        false
    }

    /// The file.
    #[must_use]
    pub fn mapping(&self) -> &Mapping<B> {
        self.mapping
    }

    /// The bytes given to [`Mapping::fence`].
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }
}

impl<B: WriteBacking> Fence<'_, B> {
    /// Takes the pages of the range out of the cache, and out of the mappings of who maps them, as
    /// `how` says. Waits for those being written (under each page's lock, S4.16), so that no write
    /// is in flight to blocks that are taken away. Private copies go if they lie past the end of the
    /// file then, and stay otherwise.
    ///
    /// Takes page locks, ascending, waiting for them in a second pass only.
    ///
    /// # Errors
    ///
    /// An edge can't be read or written, or pages can't be written first. No page was dropped
    /// then, and no block may be changed. Nothing else has happened, unless it was writing that
    /// failed: then the parts at the edges may be zeros in the cache that the device has not got.
    pub fn evict(
        &mut self,
        held: &mut Held<'_, Invalidate>,
        how: Evict,
    ) -> Result<Evicted<'_, B>, B::Error> {
        self.evict_with(held, how, || ())
    }

    /// As [`Self::evict`], with `shorten` called when nothing can fail any more and before the
    /// first page goes. A truncate sets the new size there: as soon as pages lie past the end of
    /// the file, writeback takes them for clean without writing a byte of them, so that must not
    /// happen while the old size may come back.
    ///
    /// # Errors
    ///
    /// As [`Self::evict`]; `shorten` was not called.
    pub fn evict_with(
        &mut self,
        held: &mut Held<'_, Invalidate>,
        how: Evict,
        shorten: impl FnOnce(),
    ) -> Result<Evicted<'_, B>, B::Error> {
        let (start, end) = (self.range.start, self.range.end);
        let mut pages = 0..0;
        if start < end {
            pages = match how {
                Evict::Discard => {
                    let edges: Vec<_> = edges(&self.range).collect();
                    self.mapping.zero_edges(held, &edges)?;
                    start.div_ceil(PAGE_BYTES)..end / PAGE_BYTES
                }
                Evict::WriteFirst => {
                    debug_assert!(!B::IS_STORAGE, "there is nowhere to write it first");
                    if !self.has_flushed() {
                        let range = self.range.clone();
                        self.mapping.write_back(held, range, WaitFor::All)?;
                    }
                    start / PAGE_BYTES..end.div_ceil(PAGE_BYTES)
                }
            };
        }
        shorten();
        self.unmap_and_drop(held, pages);
        #[cfg(any(test, feature = "mutants"))]
        self.mapping.shared().probe.stop(Stop::PagesGone);
        Ok(Evicted {
            mapping: self.mapping,
            range: self.range.clone(),
        })
    }
}

impl<B: WriteBacking> Fence<'_, B> {
    /// Takes `pages` out of the cache and out of everybody's mappings. Those past the end of the
    /// file are unmapped twice with private copies included: at first, so that most go at once;
    /// and when the pages are gone, because a fault that had its page locked meanwhile may have
    /// mapped a copy of it (S4.14). From then on faults find no page, and are past the end.
    ///
    /// Elsewhere private copies stay, and each page is unmapped under its lock (S4.15).
    fn unmap_and_drop(&self, held: &mut Held<'_, Invalidate>, pages: Range<u64>) {
        if pages.is_empty() {
            return;
        }
        let all = self.mapping.pages();
        let beyond = pages.start.max(pages_in(self.mapping.size()))..pages.end;
        if !beyond.is_empty() {
            all.rmap().unmap(&beyond, Unmap::EvenPrivate);
        }
        all.drop_range(held, pages);
        if !beyond.is_empty() && !self.unmaps_once() {
            all.rmap().unmap(&beyond, Unmap::EvenPrivate);
        }
    }
}

/// The parts of `range` that are less than a page, at its ends; those past where files end are
/// nobody's.
fn edges(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let (start, end) = (range.start, range.end);
    let first = start..end.min(start.checked_next_multiple_of(PAGE_BYTES).unwrap_or(end));
    let last = (end / PAGE_BYTES * PAGE_BYTES).max(first.end)..end;
    [first, last]
        .into_iter()
        .filter(|edge| !edge.is_empty() && edge.start < LARGEST)
}

impl<'a> Lock<'a> {
    fn held(guard: OrderedWriteGuard<'a, ()>) -> Self {
        Self::Held { guard: Some(guard) }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        match self {
            Self::Held { guard } => {
                if let Some(guard) = guard.take() {
                    guard.hand_over();
                }
            }
            #[cfg(any(test, feature = "mutants"))]
            Self::LeftOut { .. } => {}
        }
    }
}

impl<B: Backing> Drop for Fence<'_, B> {
    /// Private copies of what the file has lost go, should it have become shorter after the
    /// eviction (a collapse). Nobody can have made one past the new end since it did. Who maps what
    /// it has gained is told.
    fn drop(&mut self) {
        #[cfg(any(test, feature = "mutants"))]
        self.mapping.shared().probe.stop(Stop::BlocksGone);
        let end = pages_in(self.mapping.size());
        let rmap = self.mapping.pages().rmap();
        if end < self.pages_before && !self.unmaps_once() {
            rmap.unmap(&(end..u64::MAX), Unmap::EvenPrivate);
        }
        // Shorter and then longer is longer than it was for a moment.
        rmap.grown(0, end);
        self.mapping.pages().set_fenced(false);
    }
}

impl<B: Backing> Evicted<'_, B> {
    /// The file whose blocks may be changed, and no other's.
    #[must_use]
    pub fn mapping(&self) -> &Mapping<B> {
        self.mapping
    }

    /// The bytes whose blocks may be changed.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }
}
