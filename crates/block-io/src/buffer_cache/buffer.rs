//! One block in memory.

use std::ops::Deref;

use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicU32, AtomicU64, Ordering};

use super::spares::Spares;
use crate::aligned::AlignedBytes;

/// One block in memory. Its contents never change; a changed block is another buffer.
pub struct Buffer {
    pub(super) block: u64,
    /// Bit per kind of check that the contents have passed.
    pub(super) verified: AtomicU32,
    /// Whose block it was found to be; 0: nobody's so far.
    pub(super) owner: AtomicU64,
    pub(super) bytes: AlignedBytes,
    /// Where the memory goes in the end.
    pub(super) spares: Arc<Spares>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::replace(&mut self.bytes, AlignedBytes::zeroed(0, 1));
        self.spares.give(bytes);
    }
}

impl Buffer {
    /// Number of the block, in blocks of the cache's block size.
    #[must_use]
    pub fn block(&self) -> u64 {
        self.block
    }

    /// Whether every check in the bit mask `kinds` has been passed before
    /// ([`Buffer::set_verified`]). The meaning of each bit is the caller's.
    #[must_use]
    pub fn verified(&self, kinds: u32) -> bool {
        self.verified.load(Ordering::Acquire) & kinds == kinds
    }

    /// Records that the contents pass the checks in the bit mask `kinds`. Sound because the
    /// contents never change.
    pub fn set_verified(&self, kinds: u32) {
        self.verified.fetch_or(kinds, Ordering::AcqRel);
    }

    /// Whose block it was found to be ([`Buffer::set_owner`]); 0: nobody's so far.
    #[must_use]
    pub fn owner(&self) -> u64 {
        self.owner.load(Ordering::Relaxed)
    }

    /// Records whose block it is, by a number that means something to the caller.
    pub fn set_owner(&self, owner: u64) {
        self.owner.store(owner, Ordering::Relaxed);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer")
            .field("block", &self.block)
            .field("length", &self.bytes.len())
            .field("verified", &self.verified)
            .finish_non_exhaustive()
    }
}
