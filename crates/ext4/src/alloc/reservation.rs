//! Blocks promised to somebody: so many can be allocated one by one, whatever others do.

use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Error, Result};

use crate::alloc::Allocator;
use crate::alloc::counts::{Claim, Counts};

/// Blocks promised, nowhere in particular. What is left of them is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    counts: Arc<Counts>,
    blocks: u64,
}

impl Allocator {
    /// Promises `blocks` blocks, if `claim` may have so many.
    ///
    /// Takes locks of the level Counters, and those only when space is short.
    ///
    /// # Errors
    /// `NoSpace`. If [`Self::pending_tid`] gave a transaction *before* this call, space may be
    /// there once that is committed.
    pub(crate) fn reserve(&self, blocks: u64, claim: Claim) -> Result<Reservation> {
        if !self.counts.take(blocks, claim) {
            return Err(Error::NoSpace);
        }
        Ok(Reservation {
            counts: Arc::clone(&self.counts),
            blocks,
        })
    }

    /// A reservation of nothing, to [`join`](Reservation::join) others to.
    pub(crate) fn empty_reservation(&self) -> Reservation {
        Reservation {
            counts: Arc::clone(&self.counts),
            blocks: 0,
        }
    }
}

impl Reservation {
    /// Blocks that are left of it.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Splits off `blocks` of it; nothing if it has fewer.
    pub(crate) fn take(&mut self, blocks: u64) -> Option<Self> {
        self.blocks = self.blocks.checked_sub(blocks)?;
        Some(Self {
            counts: Arc::clone(&self.counts),
            blocks,
        })
    }

    /// Adds all of `other`, which is of the same file system.
    pub(crate) fn join(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.counts, &other.counts), "one file system");
        self.blocks += std::mem::take(&mut other.blocks);
    }

    /// Gives back all but `blocks`.
    pub(crate) fn shrink_to(&mut self, blocks: u64) {
        let surplus = self.blocks.saturating_sub(blocks);
        self.blocks -= surplus;
        self.counts.give(surplus);
    }

    /// Blocks of it were found a place: they are a busy run from now on.
    pub(super) fn spend(&mut self, blocks: u32) {
        debug_assert!(u64::from(blocks) <= self.blocks, "spent once");
        self.blocks = self.blocks.saturating_sub(blocks.into());
    }

    /// Blocks that a busy run no longer has are promised again.
    pub(super) fn refund(&mut self, allocator: &Allocator, blocks: u32) {
        debug_assert!(
            Arc::ptr_eq(&self.counts, &allocator.counts),
            "one file system"
        );
        self.blocks += u64::from(blocks);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.counts.give(self.blocks);
    }
}
