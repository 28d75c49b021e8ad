//! Blocks promised to somebody: so many can be allocated one by one, whatever others do.

use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Error, Result};

use crate::alloc::counts::{Claim, Counts};
use crate::alloc::{Allocator, Reach};

/// Blocks promised, nowhere in particular, or within the reach of block maps. What is left of them
/// is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    counts: Arc<Counts>,
    blocks: u64,
    /// Those of `blocks` that a block map can name; 0 where it can name any.
    low: u64,
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
        self.reserve_within(blocks, claim, Reach::Everywhere)
    }

    /// As [`Self::reserve`], for blocks within `reach`.
    ///
    /// # Errors
    /// As [`Self::reserve`]; also if all that is free and not promised lies elsewhere.
    pub(crate) fn reserve_within(
        &self,
        blocks: u64,
        claim: Claim,
        reach: Reach,
    ) -> Result<Reservation> {
        if !self.counts.take(blocks, claim) {
            return Err(Error::NoSpace);
        }
        let mut reservation = Reservation {
            counts: Arc::clone(&self.counts),
            blocks,
            low: 0,
        };
        if let (Reach::Pointers, Some(low)) = (reach, &self.counts.low) {
            if !low.take(blocks) {
                return Err(Error::NoSpace);
            }
            reservation.low = blocks;
        }
        Ok(reservation)
    }

    /// A reservation of nothing, to [`join`](Reservation::join) others to.
    pub(crate) fn empty_reservation(&self) -> Reservation {
        Reservation {
            counts: Arc::clone(&self.counts),
            blocks: 0,
            low: 0,
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
        let low = self.low.min(blocks);
        self.low -= low;
        Some(Self {
            counts: Arc::clone(&self.counts),
            blocks,
            low,
        })
    }

    /// Adds all of `other`, which is of the same file system.
    pub(crate) fn join(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.counts, &other.counts), "one file system");
        self.blocks += std::mem::take(&mut other.blocks);
        self.low += std::mem::take(&mut other.low);
    }

    /// Has all of it promised within `reach` from now on.
    ///
    /// # Errors
    /// `NoSpace` if all that is free and not promised lies elsewhere; then nothing changed.
    pub(crate) fn confine(&mut self, reach: Reach) -> Result<()> {
        if let (Reach::Pointers, Some(low)) = (reach, &self.counts.low) {
            if !low.take(self.blocks.saturating_sub(self.low)) {
                return Err(Error::NoSpace);
            }
            self.low = self.blocks;
        }
        Ok(())
    }

    /// Gives back all but `blocks`.
    pub(crate) fn shrink_to(&mut self, blocks: u64) {
        let surplus = self.blocks.saturating_sub(blocks);
        self.blocks -= surplus;
        self.give_low(self.low.saturating_sub(self.blocks));
        self.counts.give(surplus);
    }

    /// How many of `blocks` that are taken for somebody with this `reach` were promised within the
    /// reach of block maps.
    pub(super) fn low_of(&self, blocks: u64, reach: Reach) -> u64 {
        match reach {
            Reach::Pointers => blocks.min(self.low),
            // What may lie anywhere goes first.
            Reach::Everywhere => blocks.saturating_sub(self.blocks - self.low),
        }
    }

    /// Blocks of it were found a place: they are a busy run from now on. `low` of them had been
    /// promised within the reach of block maps; `is_low` says whether the run lies there.
    pub(super) fn spend(&mut self, blocks: u32, low: u64, is_low: bool) {
        debug_assert!(u64::from(blocks) <= self.blocks, "spent once");
        self.blocks = self.blocks.saturating_sub(blocks.into());
        if is_low {
            self.low = self.low.saturating_sub(low);
        } else {
            self.give_low(low);
        }
    }

    /// Blocks that a busy run no longer has are promised again: those that it had.
    pub(super) fn refund(&mut self, allocator: &Allocator, blocks: u32, is_low: bool) {
        debug_assert!(
            Arc::ptr_eq(&self.counts, &allocator.counts),
            "one file system"
        );
        self.blocks += u64::from(blocks);
        if is_low {
            self.low += u64::from(blocks);
        }
    }

    fn give_low(&mut self, blocks: u64) {
        self.low = self.low.saturating_sub(blocks);
        if let Some(low) = &self.counts.low {
            low.give(blocks);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        #[cfg(feature = "mutants")]
        if is_leaked() {
            return;
        }
        self.give_low(self.low);
        self.counts.give(self.blocks);
    }
}

/// The mutant: what is left of a promise is never given back. A process is told so by its environment.
#[cfg(feature = "mutants")]
fn is_leaked() -> bool {
    std::env::var("PAGEFENCE_LEAVE_OUT").is_ok_and(|name| name == "leaked-reservation")
}
