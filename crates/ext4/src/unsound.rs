//! Whether commits are not sound in themselves for the moment, which happens on a file system without
//! a journal alone. Who wants one that is sound keeps such changes out until it is made.
//!
//! - *Migrations*: neither a name nor the list of orphans leads to their temporary inode
//!   (docs/adr/0013). Commits meanwhile show blocks that belong to two inodes, or to none.
//! - *Collapses and insertions in a block map*: pointers are in the map twice between two of their
//!   transactions (`change::shift_block_map`).
//!
//! A leaf, under which nothing else is done. A change waits here with an inode lock held, and an
//! invalidate lock, for no longer than a commit takes, which needs no such lock; whoever keeps out
//! waits for changes with nothing held.

use pagefence_lock_order::primitives::{Arc, Condvar, Mutex};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Unsound {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Changes that go on.
    inside: u32,
    kept_out: u32,
    /// Those who are about to keep out.
    #[cfg(all(test, not(shuttle)))]
    waiting: u32,
}

/// Commits may not be sound in themselves, until this is dropped.
#[derive(Debug)]
pub(crate) struct Inside(Arc<Unsound>);

/// Commits are sound in themselves until this is dropped.
#[derive(Debug)]
pub(crate) struct KeptOut<'a>(&'a Unsound);

impl Unsound {
    /// Waits while somebody keeps such changes out. No handle is held.
    pub(crate) fn enter(self: &Arc<Self>) -> Inside {
        let mut state = self.state.lock();
        while state.kept_out > 0 {
            self.changed.wait(&mut state);
        }
        state.inside = state.inside.saturating_add(1);
        Inside(Arc::clone(self))
    }

    /// Waits until there are none. Those that come meanwhile are let in.
    pub(crate) fn keep_out(&self) -> KeptOut<'_> {
        let mut state = self.state.lock();
        #[cfg(all(test, not(shuttle)))]
        {
            state.waiting += 1;
        }
        while state.inside > 0 {
            self.changed.wait(&mut state);
        }
        #[cfg(all(test, not(shuttle)))]
        {
            state.waiting -= 1;
        }
        state.kept_out = state.kept_out.saturating_add(1);
        KeptOut(self)
    }

    /// Whether somebody waits until there are none.
    #[cfg(all(test, not(shuttle)))]
    pub(crate) fn is_awaited(&self) -> bool {
        self.state.lock().waiting > 0
    }

    fn leave(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0
            .leave(|state| state.inside = state.inside.saturating_sub(1));
    }
}

impl Drop for KeptOut<'_> {
    fn drop(&mut self) {
        self.0
            .leave(|state| state.kept_out = state.kept_out.saturating_sub(1));
    }
}
