//! Pages of a mapped file whose memory somebody else has taken (ADR 17).
//!
//! A program of the server's own user has the file's memory open for writing, and may punch holes into it by
//! hand. A page that the cache has then has no memory, and can't be mapped: whoever would ends up here. What it
//! held is lost, as if that program had stored to it:
//!
//! - a clean page is dropped, and comes back as the storage has it;
//! - a dirty page is zeros, and stays dirty: these are written. Where some of its blocks are dirty, the
//!   others are zeros as well until it leaves the cache, and then as the storage has them. A store's fault
//!   makes its page dirty before it finds that out;
//! - a page under writeback is written first, of which some may be zeros by then.
//!
//! Elsewhere the cache knows which pages have memory, and asks nobody. Here it can't know, and must not
//! believe who says that there is a hole: he could have any page dropped, or its stores undone. So the
//! memory is asked, under the page lock: the cache itself fills a page, freezes it and takes its memory away
//! under that lock alone, so what looks like a hole there is none of its own. One who punches on meanwhile
//! comes here again.

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Entry, PageLock};

use crate::backing::{PAGE_SIZE, WriteBacking};
use crate::folio::PageLockGuard;
use crate::rmap::MappedRange;

impl<B: WriteBacking> MappedRange<B> {
    /// If the memory of page `index`, which the cache has, is a hole: drops the page, or makes it zeros if it
    /// is dirty. Whether it was one: then a fault there may be served that could not be before.
    ///
    /// Takes a page lock, and waits for writeback of that page.
    pub fn mend_hole(&self, held: &mut Held<'_, Entry>, index: u64) -> bool {
        let pages = self.mapping.pages();
        let Some(memory) = pages.memory() else {
            return false;
        };
        // Ends: each turn waits for one writeback.
        loop {
            let Some(folio) = pages.get(index).filter(|folio| folio.is_uptodate()) else {
                return false;
            };
            {
                let (_rank, held) = held.descend::<PageLock>(index);
                let guard = PageLockGuard::lock(&folio, &held);
                let state = &folio.state;
                if state.is_detached() || memory.has_page(index) {
                    return false;
                }
                if state.dirty() != 0 {
                    if let Some(frame) = folio.frame() {
                        frame.zero(0, PAGE_SIZE);
                    }
                    return true;
                }
                if !state.is_writeback() {
                    pages.unmap_locked(std::iter::once(&folio));
                    return pages.remove_locked(&guard);
                }
            }
            self.mapping.shared().page_queues.wait_writeback(&folio);
        }
    }
}
