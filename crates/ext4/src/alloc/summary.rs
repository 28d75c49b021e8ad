//! Numbers of a group that are read without its lock: what a search through the groups looks at.
//! They lie close together, so that going through thousands of groups takes microseconds.

use pagefence_lock_order::primitives::atomic::{AtomicU32, Ordering};

use crate::alloc::group_state::{Bits, GroupState};

/// Numbers of a group, as they were when its lock was last given up.
#[derive(Debug, Default)]
pub(super) struct Summary {
    free: AtomicU32,
    longest: AtomicU32,
    free_blocks: AtomicU32,
    free_inodes: AtomicU32,
    inodes: AtomicU32,
    directories: AtomicU32,
}

impl Summary {
    /// Blocks in the index; those that are free by the descriptor while the bitmap is not in
    /// memory.
    pub(super) fn free(&self) -> u32 {
        self.free.load(Ordering::Acquire)
    }

    /// The longest run in the index; as many as can be if that is not known.
    pub(super) fn longest(&self) -> u32 {
        self.longest.load(Ordering::Acquire)
    }

    /// Blocks not in use in the running transaction.
    pub(super) fn free_blocks(&self) -> u32 {
        self.free_blocks.load(Ordering::Relaxed)
    }

    /// Inodes not in use in the running transaction.
    pub(super) fn free_inodes(&self) -> u32 {
        self.free_inodes.load(Ordering::Relaxed)
    }

    /// Inodes that can be had, as far as is known.
    pub(super) fn inodes(&self) -> u32 {
        self.inodes.load(Ordering::Relaxed)
    }

    /// Directories.
    pub(super) fn directories(&self) -> u32 {
        self.directories.load(Ordering::Relaxed)
    }

    /// Publishes the numbers of a group whose lock is held.
    pub(super) fn publish(&self, state: &GroupState) {
        let desc = &state.desc;
        let (free, longest) = match &state.blocks {
            Bits::Absent => {
                let free = desc.free_clusters().saturating_sub(state.excluded());
                (free, state.longest_known().unwrap_or(free))
            }
            Bits::Damaged => (0, 0),
            Bits::Loaded(blocks) => (blocks.index.free(), blocks.index.longest()),
        };
        let inodes = match &state.inodes {
            Bits::Absent => desc.free_inodes(),
            Bits::Damaged => 0,
            Bits::Loaded(inodes) => inodes.available,
        };
        self.free.store(free, Ordering::Release);
        self.longest.store(longest, Ordering::Release);
        self.free_blocks
            .store(desc.free_clusters(), Ordering::Relaxed);
        self.free_inodes
            .store(desc.free_inodes(), Ordering::Relaxed);
        self.inodes.store(inodes, Ordering::Relaxed);
        self.directories.store(desc.used_dirs(), Ordering::Relaxed);
    }
}
