//! Where threads sleep: hashed queues for page locks and writeback, and [`Events`] that tell of
//! page frames and of progress in writing.

use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering, fence};
use pagefence_lock_order::primitives::{Condvar, Mutex};

use crate::folio::Folio;

/// A power of two. Under shuttle few, so that collisions are met.
const QUEUES: usize = if cfg!(shuttle) { 2 } else { 64 };

/// The queues of those who wait for a page lock or for a page to be written: few, shared by all
/// pages, as only a handful of pages is ever waited for.
#[derive(Debug)]
pub(crate) struct PageQueues {
    queues: Box<[Queue]>,
}

#[derive(Debug, Default)]
struct Queue {
    lock: Mutex<()>,
    changed: Condvar,
}

impl PageQueues {
    pub(crate) fn new() -> Self {
        Self {
            queues: (0..QUEUES).map(|_| Queue::default()).collect(),
        }
    }

    /// Waits until the page lock of `folio` was free for a moment. The caller holds no lock that
    /// the holder may want; a filler holds the invalidate lock shared, so not that one (U7).
    pub(crate) fn wait_unlocked(&self, folio: &Folio) {
        if !folio.state.is_locked() {
            return;
        }
        let queue = self.queue(folio);
        let mut guard = queue.lock.lock();
        // Announcing under the queue's lock, and waking under it, leaves no moment in between
        // in which a wake-up could get lost.
        while folio.state.announce_waiter() {
            queue.changed.wait(&mut guard);
        }
    }

    /// Takes the page lock of `folio`, waiting for it.
    pub(crate) fn lock(&self, folio: &Folio) {
        while !folio.state.try_lock() {
            self.wait_unlocked(folio);
        }
    }

    /// Gives the page lock of `folio` up and wakes who waits for it.
    pub(crate) fn unlock(&self, folio: &Folio) {
        if folio.state.unlock() {
            let queue = self.queue(folio);
            let _guard = queue.lock.lock();
            queue.changed.notify_all();
        }
    }

    /// Waits until `folio` is not under writeback. The caller may hold the page lock, and then the
    /// page stays as it is; but no journal handle, and no page that it has gathered to write.
    pub(crate) fn wait_writeback(&self, folio: &Folio) {
        if !folio.state.is_writeback() {
            return;
        }
        let queue = self.queue(folio);
        let mut guard = queue.lock.lock();
        while folio.state.announce_writeback_waiter() {
            queue.changed.wait(&mut guard);
        }
    }

    /// `folio` is written: wakes who waits for that. Takes no page lock.
    pub(crate) fn end_writeback(&self, folio: &Folio) {
        if folio.state.end_writeback() {
            let queue = self.queue(folio);
            let _guard = queue.lock.lock();
            queue.changed.notify_all();
        }
    }

    fn queue(&self, folio: &Folio) -> &Queue {
        // Neighbouring pages of one file, and equal pages of neighbouring files, spread.
        let mixed = (folio.index ^ folio.pages.number().rotate_left(32))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let at = usize::try_from(mixed >> 32).expect("32 bits");
        &self.queues[at % QUEUES]
    }
}

/// Tells those who found nothing (no page frame, too many dirty pages) to look again.
///
/// A waiter registers, looks once more, then sleeps; a giver gives, then looks for waiters.
/// Sequentially consistent fences on both sides: one of the two sees the other.
#[derive(Debug, Default)]
pub(crate) struct Events {
    waiters: AtomicUsize,
    count: Mutex<u64>,
    happened: Condvar,
}

impl Events {
    /// Something changed: a frame came free, the lock of a page that reclaim could take, or pages
    /// are written.
    pub(crate) fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.waiters.load(Ordering::Relaxed) != 0 {
            *self.count.lock() += 1;
            self.happened.notify_all();
        }
    }

    /// Sleeps until the next event, unless `look` finds what is wanted.
    pub(crate) fn wait_unless(&self, look: impl FnOnce() -> bool) {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let seen = *self.count.lock();
        if !look() {
            let mut count = self.count.lock();
            while *count == seen {
                self.happened.wait(&mut count);
            }
        }
        self.waiters.fetch_sub(1, Ordering::SeqCst);
    }
}
