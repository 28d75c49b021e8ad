//! Dropping a range of pages (Linux: `truncate_inode_pages_range`).

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Invalidate, PageLock};
use pagefence_lock_order::primitives::Arc;

use crate::folio::{Folio, PageLockGuard};
use crate::pages::Pages;

/// Pages looked up at a time.
const BATCH: usize = 64;

impl Pages {
    /// Takes every page of `range` out of the cache, in two passes (S4.16): the first takes what
    /// it can lock at once, the second waits for the rest. The invalidate lock is held
    /// exclusively, so nobody brings a page back, and only those hold page locks who never wait
    /// for this thread.
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
            let locked: Vec<_> = found.iter().filter_map(PageLockGuard::try_lock).collect();
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
                // Reclaim may have been faster.
                self.remove_locked(&guard);
            }
        }
    }
}
