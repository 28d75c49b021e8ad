//! The exclusive section of a file: nobody fills pages, so blocks can be taken away.
//!
//! ```
//! # use pagefence_lock_order::{Held, levels::{Invalidate, PageLock}};
//! # use pagefence_page_cache::{Backing, Config, Evict, Evicted, FrameMut, Mapping, PageCache, Segment};
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
//! fn free_blocks(evicted: &Evicted<'_, Zeros>) { /* … of evicted.mapping(), in evicted.range() */ }
//!
//! # fn main() -> std::io::Result<()> {
//! let cache = PageCache::new(Config::new(1 << 20))?;
//! let mapping = Mapping::new(&cache, 1, Zeros);
//! let mut entry = Held::at_entry();
//! let (mut fence, mut held) = mapping.fence(&mut entry, 0..4096);
//! let evicted = fence.evict(&mut held, Evict::Discard);
//! free_blocks(&evicted);
//! drop(fence);
//! # Ok(())
//! # }
//! ```
//! Blocks can't be changed once the lock is given up:
//! ```compile_fail,E0505
//! # use pagefence_lock_order::Held;
//! # use pagefence_page_cache::{Backing, Evict, Evicted, Mapping};
//! # fn free_blocks<B: Backing>(evicted: &Evicted<'_, B>) {}
//! # fn example<B: Backing>(mapping: &Mapping<B>) {
//! let mut entry = Held::at_entry();
//! let (mut fence, mut held) = mapping.fence(&mut entry, 0..4096);
//! let evicted = fence.evict(&mut held, Evict::Discard);
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

use pagefence_lock_order::levels::{Invalidate, Level};
use pagefence_lock_order::{After, Held, OrderedWriteGuard};

use crate::backing::Backing;
use crate::mapping::{Mapping, PAGE_BYTES};

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
    _guard: OrderedWriteGuard<'a, ()>,
}

/// How pages are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Evict {
    /// Their contents are no longer wanted (truncate, punch, zero range).
    Discard,
}

/// Proof that no page of the fence's range is in the cache, nor can come back while it lives.
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
    pub fn fence<'a, P: Level>(
        &'a self,
        held: &'a mut Held<'_, P>,
        range: Range<u64>,
    ) -> (Fence<'a, B>, Held<'a, Invalidate>)
    where
        Invalidate: After<P>,
    {
        let (guard, held) = self.invalidate_lock().write(held);
        self.pages().set_fenced(true);
        let fence = Fence {
            mapping: self,
            range,
            _guard: guard,
        };
        (fence, held)
    }
}

impl<B: Backing> Fence<'_, B> {
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

    /// Drops every page that the range touches. Those in part as well: what is left of them is
    /// read anew, once the blocks are changed.
    ///
    /// Takes page locks, ascending, waiting for them in a second pass only (S4.16).
    pub fn evict(&mut self, held: &mut Held<'_, Invalidate>, how: Evict) -> Evicted<'_, B> {
        let Evict::Discard = how;
        let touched = self.range.start / PAGE_BYTES..self.range.end.div_ceil(PAGE_BYTES);
        if self.range.start < self.range.end {
            self.mapping.pages().drop_range(held, touched);
        }
        Evicted {
            mapping: self.mapping,
            range: self.range.clone(),
        }
    }
}

impl<B: Backing> Drop for Fence<'_, B> {
    fn drop(&mut self) {
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
