//! The state word of a folio: its lock, what is dirty and what is being written, and what reclaim
//! and readahead remember of it.
//!
//! "Up to date" is not here: a folio is up to date if and only if it has a frame (see
//! [`crate::folio`]).

use pagefence_lock_order::primitives::atomic::{AtomicU32, Ordering};

use crate::write_batch::{Mask, WHOLE};

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
/// Somebody may sleep until the page is written.
const WRITEBACK_WAITERS: u32 = 1 << 5;
/// Somebody may map this page. Changed under the page lock only, as the next one.
const MAPPED: u32 = 1 << 6;
/// Somebody may map this page for stores; only one that is mapped.
const WRITABLE: u32 = 1 << 7;
/// Uses since reclaim last looked, up to [`USES_MAX`].
const USE: u32 = 1 << 8;
const USES: u32 = USES_MAX * USE;
const USES_MAX: u32 = 3;
/// Blocks that are dirty, a [`Mask`]. Changed under the page lock only.
const DIRTY_SHIFT: u32 = 16;
const DIRTY: u32 = mask_bits(WHOLE, DIRTY_SHIFT);
/// Blocks that are under writeback, a [`Mask`]. Set under the page lock, cleared without it.
const WRITEBACK_SHIFT: u32 = 20;
const WRITEBACK: u32 = mask_bits(WHOLE, WRITEBACK_SHIFT);

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

    /// The dirty blocks. Exact for who holds the page lock.
    pub(crate) fn dirty(&self) -> Mask {
        mask_at(self.0.load(Ordering::Acquire), DIRTY_SHIFT)
    }

    /// The blocks that are dirty or under writeback: those of which the device does not have the
    /// bytes yet.
    pub(crate) fn unclean(&self) -> Mask {
        let state = self.0.load(Ordering::Acquire);
        mask_at(state, DIRTY_SHIFT) | mask_at(state, WRITEBACK_SHIFT)
    }

    /// Makes `blocks` dirty; true if none was. Under the page lock.
    pub(crate) fn set_dirty(&self, blocks: Mask) -> bool {
        debug_assert_ne!(blocks, 0, "dirty, and nothing is");
        self.0
            .fetch_or(mask_bits(blocks, DIRTY_SHIFT), Ordering::AcqRel)
            & DIRTY
            == 0
    }

    /// Forgets that `blocks` are dirty; true if some were, and none is left. Under the page lock.
    pub(crate) fn clear_dirty(&self, blocks: Mask) -> bool {
        let bits = mask_bits(blocks, DIRTY_SHIFT);
        let before = self.0.fetch_and(!bits, Ordering::AcqRel);
        before & DIRTY != 0 && before & DIRTY & !bits == 0
    }

    pub(crate) fn is_writeback(&self) -> bool {
        self.has(WRITEBACK)
    }

    /// What is dirty is under writeback from now on, and no longer dirty; says which blocks. Under
    /// the page lock, and none is under writeback.
    pub(crate) fn begin_writeback(&self) -> Mask {
        let state = self.0.load(Ordering::Acquire);
        debug_assert_eq!(state & WRITEBACK, 0, "written twice at once");
        debug_assert_ne!(state & LOCKED, 0, "writeback begins under the page lock");
        debug_assert_eq!(state & WRITABLE, 0, "written while it is stored to");
        let blocks = mask_at(state, DIRTY_SHIFT);
        // Both masks change under the page lock only, but for the end of writeback, of which
        // there is none: so flipping moves the bits.
        self.0.fetch_xor(
            mask_bits(blocks, DIRTY_SHIFT) | mask_bits(blocks, WRITEBACK_SHIFT),
            Ordering::AcqRel,
        );
        blocks
    }

    /// The page is written; true if sleepers are to be woken.
    #[must_use]
    pub(crate) fn end_writeback(&self) -> bool {
        let before = self
            .0
            .fetch_and(!(WRITEBACK | WRITEBACK_WAITERS), Ordering::Release);
        before & WRITEBACK_WAITERS != 0
    }

    /// Announces a sleeper; false if the page is not under writeback.
    pub(crate) fn announce_writeback_waiter(&self) -> bool {
        self.0.fetch_or(WRITEBACK_WAITERS, Ordering::Acquire) & WRITEBACK != 0
    }

    /// Whether somebody may map the page.
    pub(crate) fn is_mapped(&self) -> bool {
        self.has(MAPPED)
    }

    /// Whether somebody may map the page for stores.
    pub(crate) fn is_writable(&self) -> bool {
        self.has(WRITABLE)
    }

    /// Somebody is about to map the page, for stores if `writable`.
    pub(crate) fn set_mapped(&self, writable: bool) {
        let bits = if writable { MAPPED | WRITABLE } else { MAPPED };
        if !self.has_all(bits) {
            self.0.fetch_or(bits, Ordering::AcqRel);
        }
    }

    /// Forgets that somebody maps the page; true if somebody may.
    pub(crate) fn take_mapped(&self) -> bool {
        self.has(MAPPED) && self.0.fetch_and(!(MAPPED | WRITABLE), Ordering::AcqRel) & MAPPED != 0
    }

    /// Forgets that somebody maps the page for stores; true if somebody may.
    pub(crate) fn take_writable(&self) -> bool {
        self.has(WRITABLE) && self.0.fetch_and(!WRITABLE, Ordering::AcqRel) & WRITABLE != 0
    }

    fn has_all(&self, bits: u32) -> bool {
        self.0.load(Ordering::Acquire) & bits == bits
    }

    fn has(&self, bit: u32) -> bool {
        self.0.load(Ordering::Acquire) & bit != 0
    }
}

const fn mask_bits(mask: Mask, shift: u32) -> u32 {
    (mask as u32) << shift
}

fn mask_at(state: u32, shift: u32) -> Mask {
    Mask::try_from(state >> shift & mask_bits(WHOLE, 0)).expect("four bits")
}
