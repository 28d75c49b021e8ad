//! Blocks that a block map can name, where there are others as well: how many are left to be
//! promised to block maps.
//!
//! The number is the free blocks of the groups that lie below, less those that reservations for block
//! maps hold. Whoever takes a block there takes it off first, unless it was promised so; who gives
//! one back adds it after the block is in the index again. So a promise of n is good for n blocks,
//! and since no more than all free blocks are promised, there is a place for what is promised to
//! anybody else, too.

use pagefence_lock_order::primitives::atomic::{AtomicI64, Ordering};

/// How many blocks that a block map can name are left.
#[derive(Debug)]
pub(super) struct LowBlocks {
    /// Below zero only while damage took away what had been promised.
    left: AtomicI64,
}

impl LowBlocks {
    pub(super) fn new(free: u64) -> Self {
        Self {
            left: AtomicI64::new(signed(free)),
        }
    }

    /// Takes off `blocks`, or nothing if there are fewer.
    pub(super) fn take(&self, blocks: u64) -> bool {
        let less = |left: i64| Some(left.saturating_sub(signed(blocks))).filter(|left| *left >= 0);
        blocks == 0
            || self
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
                .is_ok()
    }

    /// Takes off up to `blocks`; says how many.
    pub(super) fn take_some(&self, blocks: u64) -> u64 {
        let some = |left: i64| left.clamp(0, signed(blocks));
        let before = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                Some(left - some(left))
            });
        some(before.unwrap_or(0)).unsigned_abs()
    }

    /// Adds blocks that nobody is promised any more, or that became free.
    pub(super) fn give(&self, blocks: u64) {
        self.left.fetch_add(signed(blocks), Ordering::SeqCst);
    }

    /// Takes off blocks that turned out not to be there.
    pub(super) fn lose(&self, blocks: u64) {
        self.left.fetch_sub(signed(blocks), Ordering::SeqCst);
    }

    /// As many as are left; exact while nobody changes them.
    #[cfg(test)]
    pub(super) fn left(&self) -> i64 {
        self.left.load(Ordering::SeqCst)
    }
}

fn signed(blocks: u64) -> i64 {
    i64::try_from(blocks).unwrap_or(i64::MAX)
}
