//! One page of a file in the cache.

use pagefence_host_memory::{Frame, FrameCell, FrameMut};
use pagefence_lock_order::primitives::Arc;

use crate::cache::Shared;
use crate::folio_state::FolioState;
use crate::pages::Pages;

/// One page of a file.
///
/// Lifecycle: it enters its mapping's index locked and *without a frame*. Whoever fills it reads
/// into a private frame and publishes that here; having a frame is what "up to date" means, so a
/// page that can be seen before it is up to date cannot be expressed (RACES 4.3.4). If filling
/// fails, the filler takes it out of the index before it unlocks. Hence:
///
/// Invariant: a folio that is in an index and not locked is up to date.
///
/// It keeps its frame until the last reference is gone: a reader that found it may go on copying
/// after it was evicted.
#[derive(Debug)]
pub(crate) struct Folio {
    pub(crate) state: FolioState,
    /// Position in the file, in pages.
    pub(crate) index: u64,
    pub(crate) pages: Arc<Pages>,
    frame: FrameCell,
}

impl Folio {
    /// A locked folio without a frame; `unread` if nobody asked for it yet.
    pub(crate) fn locked(pages: &Arc<Pages>, index: u64, unread: bool) -> Self {
        Self {
            state: FolioState::locked(unread),
            index,
            pages: Arc::clone(pages),
            frame: FrameCell::new(),
        }
    }

    /// The frame, if the folio is up to date.
    pub(crate) fn frame(&self) -> Option<&Frame> {
        self.frame.get()
    }

    pub(crate) fn is_uptodate(&self) -> bool {
        self.frame.get().is_some()
    }

    /// Makes the folio up to date with `frame`, every byte of which the filler has written. The
    /// caller holds the page lock.
    pub(crate) fn publish(self: &Arc<Self>, frame: FrameMut) {
        self.set_frame(match self.pages.memory() {
            Some(memory) => frame.publish_in(&memory, self.index),
            None => frame.publish(),
        });
    }

    /// As [`Self::publish`], for `folios` that follow each other, and their `frames`.
    pub(crate) fn publish_run(folios: &[Arc<Self>], frames: Vec<FrameMut>) {
        let Some(first) = folios.first() else { return };
        match first.pages.memory() {
            Some(memory) => {
                let frames = FrameMut::publish_run_in(frames, &memory, first.index);
                for (folio, frame) in folios.iter().zip(frames) {
                    folio.set_frame(frame);
                }
            }
            None => {
                for (folio, frame) in folios.iter().zip(frames) {
                    folio.set_frame(frame.publish());
                }
            }
        }
    }

    fn set_frame(self: &Arc<Self>, frame: Frame) {
        debug_assert!(self.state.is_locked(), "published without the page lock");
        let number = frame.number();
        let published = self.frame.publish(frame);
        debug_assert!(published.is_ok(), "a folio is filled once");
        self.shared().clock.enter(number, self);
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.pages.shared()
    }
}

impl Drop for Folio {
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            // Off the clock first: once given back, the frame may be somebody else's.
            self.shared().clock.leave(frame.number());
            drop(frame);
        }
        self.shared().frame_events.notify();
    }
}

/// The page lock of one folio; given up when dropped.
#[derive(Debug)]
pub(crate) struct PageLockGuard<'a> {
    folio: &'a Arc<Folio>,
    /// The mutant: the lock has been given up already.
    #[cfg(test)]
    is_free: bool,
}

impl<'a> PageLockGuard<'a> {
    /// Takes the lock if it is free. Needs no token: what does not wait cannot deadlock.
    pub(crate) fn try_lock(folio: &'a Arc<Folio>) -> Option<Self> {
        // Not `then_some`: a guard that was made and not handed out would unlock.
        folio.state.try_lock().then(|| Self::of(folio))
    }

    /// Takes the lock, waiting for it.
    pub(crate) fn lock(
        folio: &'a Arc<Folio>,
        _held: &pagefence_lock_order::Held<'_, pagefence_lock_order::levels::PageLock>,
    ) -> Self {
        folio.shared().page_queues.lock(folio);
        Self::of(folio)
    }

    fn of(folio: &'a Arc<Folio>) -> Self {
        Self {
            folio,
            #[cfg(test)]
            is_free: false,
        }
    }

    /// The mutant: what looks like the lock, and is none any more.
    #[cfg(test)]
    pub(crate) fn unlock_early(mut self) -> Self {
        self.folio.shared().page_queues.unlock(self.folio);
        self.is_free = true;
        self
    }

    /// Gives the lock up, having found that reclaim can't have the page: nobody who waits for a
    /// frame is woken, who may be the caller, and would look in vain.
    pub(crate) fn give_up_quietly(self) {
        let folio = self.folio;
        // What it owns is the lock alone.
        std::mem::forget(self);
        folio.shared().page_queues.unlock(folio);
    }

    pub(crate) fn folio(&self) -> &'a Arc<Folio> {
        self.folio
    }
}

impl Drop for PageLockGuard<'_> {
    fn drop(&mut self) {
        #[cfg(test)]
        if self.is_free {
            return;
        }
        let shared = self.folio.shared();
        shared.page_queues.unlock(self.folio);
        shared.frame_events.notify();
    }
}
