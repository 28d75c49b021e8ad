//! Dropping a range of pages (Linux: `truncate_inode_pages_range`), and zeroing its edges.

use std::iter::once;
use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Invalidate, PageLock};
use pagefence_lock_order::primitives::Arc;

use crate::backing::{Segment, WriteBacking};
use crate::fill::Filled;
use crate::folio::{Folio, PageLockGuard};
use crate::mapping::{Mapping, PAGE_BYTES, pages_in};
use crate::pages::Pages;
use crate::write_batch::{Mask, WHOLE, blocks_inside, blocks_touched};
use crate::writeback::WaitFor;

/// Pages looked up at a time.
const BATCH: usize = 64;

impl Pages {
    /// Takes every page of `range` out of the cache, in two passes (S4.16): the first takes what
    /// it can lock at once, the second waits for the rest. The invalidate lock is held
    /// exclusively, so nobody brings a page back, and only those hold page locks who never wait
    /// for this thread. What is dirty is forgotten; what is being written is waited for.
    pub(crate) fn drop_range(&self, held: &mut Held<'_, Invalidate>, range: Range<u64>) {
        self.assert_fenced();
        self.drop_unlocked(range.clone());
        self.drop_waiting(held, range);
    }

    fn drop_unlocked(&self, range: Range<u64>) {
        let mut found: Vec<Arc<Folio>> = Vec::with_capacity(BATCH);
        let mut at = range.start;
        loop {
            found.clear();
            self.gather(at..range.end, BATCH, &mut found);
            let Some(last) = found.last() else { return };
            at = last.index + 1;
            let locked: Vec<_> = found
                .iter()
                .filter_map(PageLockGuard::try_lock)
                .filter(|guard| self.may_drop(guard.folio()))
                .collect();
            for guard in &locked {
                self.clear_dirty(guard, WHOLE);
            }
            self.remove(locked.iter().map(PageLockGuard::folio));
        }
    }

    fn drop_waiting(&self, held: &mut Held<'_, Invalidate>, range: Range<u64>) {
        let mut found: Vec<Arc<Folio>> = Vec::with_capacity(BATCH);
        loop {
            found.clear();
            self.gather(range.clone(), BATCH, &mut found);
            if found.is_empty() {
                return;
            }
            for folio in &found {
                let (_rank, held) = held.descend::<PageLock>(folio.index);
                let guard = PageLockGuard::lock(folio, &held);
                if !self.may_drop(folio) {
                    self.shared().page_queues.wait_writeback(folio);
                }
                // Reclaim may have been faster.
                self.clear_dirty(&guard, WHOLE);
                self.remove_locked(&guard);
            }
        }
    }

    /// Whether nobody writes `folio`, which is locked, so that nobody will.
    fn may_drop(&self, folio: &Folio) -> bool {
        #[cfg(test)]
        if self.shared().mutants.evict_unwaited {
            return true;
        }
        !folio.state.is_writeback()
    }
}

impl<B: WriteBacking> Mapping<B> {
    /// Makes bytes `part` of one page read as zeros, from the cache and, where they share a block
    /// with bytes that stay, from the device. Blocks wholly in `part` are no longer dirty: they
    /// are about to be taken away. Nothing is allocated: what is a hole or unwritten has zeros.
    ///
    /// Inside the fence: nobody fills or dirties pages, or takes blocks away; writeback goes on.
    pub(crate) fn zero_edge(
        &self,
        held: &mut Held<'_, Invalidate>,
        part: Range<u64>,
    ) -> Result<(), B::Error> {
        self.pages().assert_fenced();
        let index = part.start / PAGE_BYTES;
        loop {
            let cached = self.zero_cached(held, &part);
            // After the zeroing: a block that writeback maps from here on gets zeros, and those
            // it mapped before are seen.
            let blocks = self.written_blocks_cut_by(held, &part)?;
            if blocks == 0 {
                return Ok(());
            }
            if cached && self.dirty_cached(held, index, blocks) {
                let bytes = index * PAGE_BYTES..(index + 1) * PAGE_BYTES;
                return self.write_back(held, bytes, WaitFor::All);
            }
            if index >= pages_in(self.size()) {
                // Past the end nobody keeps a byte.
                return Ok(());
            }
            // Not in the cache, or not any more.
            let pages = index..index + 1;
            if let Filled::NoFrame = self.fill_data(held, pages, index + 1, None)? {
                self.shared().wait_for_frame();
            }
        }
    }

    /// Zeroes `part` in the cached page that it lies in; false if there is none.
    fn zero_cached(&self, held: &mut Held<'_, Invalidate>, part: &Range<u64>) -> bool {
        let (index, inside) = inside_page(part);
        let Some(folio) = self.pages().get(index) else {
            return false;
        };
        let (_rank, held) = held.descend::<PageLock>(index);
        let guard = PageLockGuard::lock(&folio, &held);
        self.shared().page_queues.wait_writeback(&folio);
        let Some(frame) = folio.frame().filter(|_| !folio.state.is_detached()) else {
            return false;
        };
        let at = |offset: u64| usize::try_from(offset).expect("inside a page");
        frame.zero(at(inside.start), at(inside.end - inside.start));
        let taken_away = blocks_inside(inside, u64::from(self.backing().block_size()));
        self.pages().clear_dirty(&guard, taken_away);
        true
    }

    /// The blocks that lie in `part` in part and hold data.
    fn written_blocks_cut_by(
        &self,
        held: &mut Held<'_, Invalidate>,
        part: &Range<u64>,
    ) -> Result<Mask, B::Error> {
        let block_size = u64::from(self.backing().block_size());
        let (index, inside) = inside_page(part);
        let ends = [inside.start, inside.end]
            .into_iter()
            .filter(|end| !end.is_multiple_of(block_size));
        let mut blocks = 0;
        for end in ends {
            let start = end / block_size * block_size;
            let (segment, _) = self.backing().segment(held, index * PAGE_BYTES + start)?;
            if segment == Segment::Data {
                blocks |= blocks_touched(start..start + 1, block_size);
            }
        }
        Ok(blocks)
    }

    /// Makes `blocks` of the cached page `index` dirty; false if it is not cached any more. They
    /// have blocks on the device, and need no reservation.
    fn dirty_cached(&self, held: &mut Held<'_, Invalidate>, index: u64, blocks: Mask) -> bool {
        let Some(folio) = self.pages().get(index) else {
            return false;
        };
        let (_rank, held) = held.descend::<PageLock>(index);
        let guard = PageLockGuard::lock(&folio, &held);
        if folio.state.is_detached() {
            return false;
        }
        self.pages().set_dirty(once((guard.folio(), blocks)));
        drop(guard);
        self.tell_flusher();
        true
    }
}

/// The page that `part` lies in, and which of its bytes that is.
fn inside_page(part: &Range<u64>) -> (u64, Range<u64>) {
    let index = part.start / PAGE_BYTES;
    let base = index * PAGE_BYTES;
    debug_assert!(part.end - base <= PAGE_BYTES, "an edge is less than a page");
    (index, part.start - base..part.end - base)
}
