//! Giving back space that was reserved for blocks that are not dirty (S3: punching delayed
//! allocations).
//!
//! A write reserves no block that it does not make dirty in the same hold of the page locks
//! ([`crate::Mapping::write`] says why), so a write that ends early leaves nothing behind. What does
//! leave something behind is *writing back* that fails: blocks that could not be mapped are clean
//! then and keep their reservation, on which a page that became dirty anew meanwhile relies.
//!
//! Nobody may make such a page dirty between the look at it and the end of its reservation: the
//! invalidate lock is held exclusively (S3.1, S3.2), which keeps out faults as well as writes. The
//! page is locked, too, so that its writeback does not begin (S3.12). Pages are neither dropped nor
//! cleaned on the way (S3.9), but past the end of the file, where nothing is written back (S3.11).

use std::iter::once;
use std::ops::Range;

use pagefence_lock_order::levels::{Invalidate, Level, PageLock};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_lock_order::{After, Held};

use crate::backing::WriteBacking;
use crate::fence::Fence;
use crate::folio::{Folio, PageLockGuard};
use crate::mapping::{LARGEST, Mapping, PAGE_BYTES};
use crate::write_batch::{WHOLE, blocks_inside, first_run};

/// Pages looked up at a time.
const BATCH: usize = 64;

impl<B: WriteBacking> Fence<'_, B> {
    /// Gives back what is reserved for blocks that the fence's range touches and that are neither
    /// dirty nor under writeback ([`WriteBacking::release`]). Blocks past the end of the file lose
    /// theirs in any case, and are not dirty any more.
    ///
    /// Takes page locks, ascending, waiting for them. Cannot fail.
    pub fn punch_delalloc(&mut self, held: &mut Held<'_, Invalidate>) {
        let mapping = self.mapping();
        let block_size = u64::from(mapping.backing().block_size());
        // A block is dirty or not as a whole, so that rounding outwards takes nothing from anybody.
        let range = self.range();
        let end = range.end.min(LARGEST).next_multiple_of(block_size);
        let range = range.start.min(end) / block_size * block_size..end;
        if range.is_empty() {
            return;
        }
        let end_of_file = mapping.size().next_multiple_of(block_size);
        let walk = Walk {
            mapping,
            end_of_file,
            block_size,
        };
        walk.run(held, range);
    }
}

/// A walk over the cached pages of a range and what lies between them.
struct Walk<'a, B: WriteBacking> {
    mapping: &'a Mapping<B>,
    /// In whole blocks.
    end_of_file: u64,
    block_size: u64,
}

impl<B: WriteBacking> Walk<'_, B> {
    fn run(&self, held: &mut Held<'_, Invalidate>, range: Range<u64>) {
        let mut at = range.start;
        let mut found: Vec<Arc<Folio>> = Vec::with_capacity(BATCH);
        while at < range.end {
            found.clear();
            let pages = at / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES);
            self.mapping.pages().gather(pages, BATCH, &mut found);
            for folio in &found {
                let page = folio.index * PAGE_BYTES;
                // Nobody brings a page in, so none comes to lie between these.
                self.release(held, at..page.min(range.end));
                let part = page.max(at)..(page + PAGE_BYTES).min(range.end);
                self.release_page(held, folio, part.clone());
                at = part.end;
            }
            if found.len() < BATCH {
                self.release(held, at..range.end);
                return;
            }
        }
    }

    /// Gives back what blocks without a page have.
    fn release(&self, held: &mut Held<'_, Invalidate>, bytes: Range<u64>) {
        if !bytes.is_empty() {
            // Below no page lock: there is no page, nor will there be.
            let (_rank, mut held) = held.descend::<PageLock>((bytes.end - 1) / PAGE_BYTES);
            #[cfg(any(test, feature = "mutants"))]
            self.mapping
                .shared()
                .probe
                .stop(crate::probe::Stop::GivingBack);
            self.mapping.backing().release(&mut held, bytes);
        }
    }

    /// Gives back what blocks of `folio` in `bytes` have and do not need.
    fn release_page(&self, held: &mut Held<'_, Invalidate>, folio: &Arc<Folio>, bytes: Range<u64>) {
        let (_rank, mut held) = held.descend::<PageLock>(folio.index);
        let guard = PageLockGuard::lock(folio, &held);
        let page = folio.index * PAGE_BYTES;
        let inside = bytes.start - page..bytes.end - page;
        if bytes.end > self.end_of_file {
            let past = self.end_of_file.max(bytes.start).min(bytes.end) - page..inside.end;
            self.mapping.shared().page_queues.wait_writeback(folio);
            let pages = self.mapping.pages();
            pages.write_protect_locked(once(folio));
            pages.clear_dirty(&guard, blocks_inside(past, self.block_size));
        }
        // Reclaim may have been faster (S3.14): what is not in the cache is clean.
        let needed = if self.takes_dirty() {
            0
        } else {
            folio.state.unclean()
        };
        let unneeded = WHOLE & !needed & blocks_inside(inside, self.block_size);
        let mut from = 0;
        while let Some(run) = first_run(unneeded, from) {
            from = run.end;
            let run = page + run.start..page + run.end;
            self.mapping.backing().release(&mut held, run);
        }
    }

    /// The mutant: what is dirty has no say.
    fn takes_dirty(&self) -> bool {
        #[cfg(test)]
        return self.mapping.shared().mutants.punch_takes_dirty;
        #[cfg(not(test))]
        false
    }
}

impl<B: WriteBacking> Mapping<B> {
    /// Gives back what is reserved for blocks that could not be written back and that nobody wrote
    /// to again, if there may be such; true if so.
    ///
    /// Takes the invalidate lock exclusively, and page locks. A write or a store that finds no space
    /// does this first; a file system may do it when it has told of the failure. Not for who writes
    /// pages back for others: a fence may wait for a frame, that is, for them.
    pub fn give_back_unwritten<P: Level>(&self, held: &mut Held<'_, P>) -> bool
    where
        Invalidate: After<P>,
    {
        // Taken off first: what fails from now on is for the next time.
        let may_have = self.unwritten.swap(false, Ordering::AcqRel);
        if may_have {
            let (mut fence, mut held) = self.fence(held, 0..u64::MAX);
            fence.punch_delalloc(&mut held);
        }
        may_have
    }
}
