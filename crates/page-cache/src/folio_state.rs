//! The state word of a folio: its lock, and what reclaim and readahead remember of it.
//!
//! "Up to date" is not here: a folio is up to date if and only if it has a frame (see
//! [`crate::folio`]).

use pagefence_lock_order::primitives::atomic::{AtomicU32, Ordering};

/// Somebody holds the page lock.
const LOCKED: u32 = 1;
/// Somebody may sleep until the page lock is given up.
const WAITERS: u32 = 1 << 1;
/// No longer in its mapping's index. Set under the page lock, never cleared.
const DETACHED: u32 = 1 << 2;
/// Reading this page asks for the next readahead.
const MARKER: u32 = 1 << 3;
/// Read ahead, and not asked for yet.
const UNREAD: u32 = 1 << 4;
/// Uses since reclaim last looked, up to [`USES_MAX`].
const USE: u32 = 1 << 8;
const USES: u32 = USES_MAX * USE;
const USES_MAX: u32 = 3;

/// The state word.
#[derive(Debug)]
pub(crate) struct FolioState(AtomicU32);

impl FolioState {
    /// Locked, as every folio is that enters an index; `unread` if nobody asked for it yet.
    pub(crate) fn locked(unread: bool) -> Self {
        Self(AtomicU32::new(LOCKED | if unread { UNREAD } else { 0 }))
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.has(LOCKED)
    }

    /// Takes the lock if it is free.
    pub(crate) fn try_lock(&self) -> bool {
        // Look first: a failing write would take the line from the holder.
        !self.has(LOCKED) && self.0.fetch_or(LOCKED, Ordering::Acquire) & LOCKED == 0
    }

    /// Announces a sleeper; false if the lock is free, and then there is nothing to wait for.
    pub(crate) fn announce_waiter(&self) -> bool {
        self.0.fetch_or(WAITERS, Ordering::Acquire) & LOCKED != 0
    }

    /// Gives the lock up; true if sleepers are to be woken.
    #[must_use]
    pub(crate) fn unlock(&self) -> bool {
        let before = self.0.fetch_and(!(LOCKED | WAITERS), Ordering::Release);
        debug_assert_ne!(before & LOCKED, 0, "a page lock given up twice");
        before & WAITERS != 0
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.has(DETACHED)
    }

    pub(crate) fn set_detached(&self) {
        self.0.fetch_or(DETACHED, Ordering::Release);
    }

    pub(crate) fn set_marker(&self) {
        self.0.fetch_or(MARKER, Ordering::Relaxed);
    }

    /// Takes the readahead marker off; true for the one caller that found it.
    pub(crate) fn take_marker(&self) -> bool {
        self.0.load(Ordering::Relaxed) & MARKER != 0
            && self.0.fetch_and(!MARKER, Ordering::Relaxed) & MARKER != 0
    }

    /// Notes a cached read. The first one of a page that was read ahead is its first use, not a
    /// re-use; a page that is read all the time is not written to.
    pub(crate) fn note_use(&self) {
        let state = self.0.load(Ordering::Relaxed);
        if state & UNREAD != 0 {
            self.0.fetch_and(!UNREAD, Ordering::Relaxed);
        } else if state & USES != USES {
            // Lost to a racing change: one use more or less does not matter.
            let _ =
                self.0
                    .compare_exchange(state, state + USE, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Takes one use off; false if there was none left, and the page may go.
    pub(crate) fn take_use(&self) -> bool {
        let state = self.0.load(Ordering::Relaxed);
        if state & USES == 0 {
            return false;
        }
        let _ = self
            .0
            .compare_exchange(state, state - USE, Ordering::Relaxed, Ordering::Relaxed);
        true
    }

    fn has(&self, bit: u32) -> bool {
        self.0.load(Ordering::Acquire) & bit != 0
    }
}
