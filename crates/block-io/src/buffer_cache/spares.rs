//! Memory of buffers that are gone, kept for those that come.
//!
//! A journal makes a new buffer of each block that it changes, and lets go of thousands of old ones
//! at once, on another thread: an allocator gives such memory back to the system and asks for it
//! anew, and both threads wait for each other in it.

use std::cell::Cell;

use pagefence_lock_order::primitives::{Mutex, thread_local};

use crate::aligned::AlignedBytes;

thread_local! {
    /// Where this thread looks next.
    static NEXT: Cell<usize> = const { Cell::new(0) };
}

/// The spares of one shard. Its lock is a leaf: nothing is taken under it.
#[derive(Debug)]
pub(super) struct Spares {
    blocks: Mutex<Vec<AlignedBytes>>,
    blocks_max: usize,
    block_size: usize,
    alignment: usize,
}

impl Spares {
    /// Keeps up to `blocks_max` blocks of `block_size` bytes.
    pub(super) fn new(blocks_max: usize, block_size: usize, alignment: usize) -> Self {
        Self {
            blocks: Mutex::new(Vec::new()),
            blocks_max,
            block_size,
            alignment,
        }
    }

    /// One of them, if there is one; what it holds is of no meaning.
    pub(super) fn take(&self) -> Option<AlignedBytes> {
        self.blocks.lock().pop()
    }

    /// Keeps the memory, if it is fit for another block and there is room.
    pub(super) fn give(&self, bytes: AlignedBytes) {
        let fits =
            bytes.len() == self.block_size && bytes.as_ptr().addr().is_multiple_of(self.alignment);
        if !fits {
            return;
        }
        let mut blocks = self.blocks.lock();
        if blocks.len() < self.blocks_max {
            blocks.push(bytes);
        }
    }
}

/// Which of `count` to ask next (a power of two): each thread goes round by itself.
pub(super) fn next(count: usize) -> usize {
    NEXT.with(|next| {
        let at = next.get();
        next.set(at.wrapping_add(1));
        at & (count - 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_kept_than_may_be_and_only_what_fits() {
        let spares = Spares::new(2, 512, 256);
        spares.give(AlignedBytes::zeroed(1024, 256));
        assert!(spares.take().is_none());
        // No address is so aligned.
        let choosy = Spares::new(2, 512, 1 << 62);
        choosy.give(AlignedBytes::zeroed(512, 256));
        assert!(choosy.take().is_none());
        for _ in 0..3 {
            spares.give(AlignedBytes::zeroed(512, 256));
        }
        assert!(spares.take().is_some() && spares.take().is_some());
        assert!(spares.take().is_none());
    }

    #[test]
    fn each_is_asked_in_turn() {
        let asked: Vec<usize> = (0..8).map(|_| next(4)).collect();
        for pair in asked.windows(2) {
            assert_eq!(pair[1], (pair[0] + 1) % 4);
        }
    }
}
