//! For tests of what is built on the cache: where it stops for them, and what its fences leave out.
//!
//! There is none of it but in this crate's tests and with the feature `mutants`, which nobody but
//! other crates' tests asks for.

use std::panic::Location;

use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex};

use crate::cache::PageCache;

type Hook = Arc<dyn Fn() + Send + Sync>;

/// Where a fence stops, or who fills or reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A fence is asked for, and nothing is done yet.
    BeforeLock,
    /// K1: a fence's pages are gone, the blocks are there.
    PagesGone,
    /// K2: the blocks are gone, the lock is held.
    BlocksGone,
    /// K3, a moment earlier: a filler knows which blocks it wants, and has no page yet.
    LookedUp,
    /// Space of blocks that have no page is about to be given back.
    GivingBack,
    /// Memory that is no page of the cache was found, and is about to be taken.
    StraysFound,
    /// A read is about to touch its caller's memory.
    Copying,
}

/// What tests do to a cache.
#[derive(Default)]
pub(crate) struct Probe {
    /// There is a hook, or a fence to leave out: as long as there is neither, what is asked for here
    /// puts threads in no order.
    is_armed: AtomicBool,
    hooks: Mutex<Vec<(Stop, Hook)>>,
    unlocked_in: Mutex<Option<&'static str>>,
    flushes_early: AtomicBool,
    leaves_edges: AtomicBool,
    keeps_memory: AtomicBool,
    looks_once: AtomicBool,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").finish_non_exhaustive()
    }
}

impl Probe {
    pub(crate) fn stop(&self, at: Stop) {
        if !self.is_armed.load(Ordering::Relaxed) {
            return;
        }
        let hooks = self.hooks.lock().clone();
        for (_, hook) in hooks.iter().filter(|(stop, _)| *stop == at) {
            hook();
        }
    }

    /// Whether a fence that is asked for at `place` is left out.
    pub(crate) fn is_unlocked(&self, place: &Location<'_>) -> bool {
        if !self.is_armed.load(Ordering::Relaxed) {
            return false;
        }
        let file = *self.unlocked_in.lock();
        file.is_some_and(|file| place.file().ends_with(file))
    }

    pub(crate) fn flushes_early(&self) -> bool {
        self.flushes_early.load(Ordering::Acquire)
    }

    pub(crate) fn leaves_edges(&self) -> bool {
        self.leaves_edges.load(Ordering::Acquire)
    }

    pub(crate) fn keeps_memory(&self) -> bool {
        self.keeps_memory.load(Ordering::Relaxed)
    }

    pub(crate) fn looks_once(&self) -> bool {
        self.looks_once.load(Ordering::Relaxed)
    }
}

impl PageCache {
    /// Has `hook` run by whoever comes to `stop` from now on.
    pub fn stop_at(&self, stop: Stop, hook: impl Fn() + Send + Sync + 'static) {
        let hook: Hook = Arc::new(hook);
        let probe = &self.shared().probe;
        probe.hooks.lock().push((stop, hook));
        probe.is_armed.store(true, Ordering::SeqCst);
    }

    /// Everybody runs through again.
    pub fn stop_nowhere(&self) {
        self.shared().probe.hooks.lock().clear();
    }

    /// The mutant: fences that are asked for in a source file whose path ends with `file` are taken
    /// without the invalidate lock; who asserts that it is held is told that it is.
    pub fn leave_out_fences(&self, file: &'static str) {
        let probe = &self.shared().probe;
        *probe.unlocked_in.lock() = Some(file);
        probe.is_armed.store(true, Ordering::SeqCst);
    }

    /// The mutant: what [`crate::Evict::WriteFirst`] writes is written before the invalidate lock is
    /// taken (RACES B3): by who stops at [`Stop::BeforeLock`], and not inside.
    pub fn flush_before_fences(&self) {
        let probe = &self.shared().probe;
        probe.flushes_early.store(true, Ordering::Release);
    }

    /// The mutant: the edges of a fence's range are zeroed in the cache, and on the device some time
    /// later (RACES B21).
    pub fn leave_out_edges(&self) {
        let probe = &self.shared().probe;
        probe.leaves_edges.store(true, Ordering::Release);
    }
    /// The mutant: a page of a mapped file that leaves the cache keeps its memory, and stays mapped.
    pub fn leave_memory(&self) {
        let probe = &self.shared().probe;
        probe.keeps_memory.store(true, Ordering::Release);
    }

    /// The mutant: who has copied from a mapped file's pages does not look whether they had gone.
    pub fn look_once(&self) {
        let probe = &self.shared().probe;
        probe.looks_once.store(true, Ordering::Release);
    }
}
