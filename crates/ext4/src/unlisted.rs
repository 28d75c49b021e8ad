//! Whether there are inodes in use that neither a name nor the list of orphans leads to: the
//! temporary ones of migrations, on a file system without a journal (docs/adr/0013). Commits meanwhile
//! show blocks that belong to two inodes, or to none. Who wants a commit that is sound in itself
//! keeps such inodes out until it is made.
//!
//! A leaf, under which nothing else is done. A migration waits here with its inode lock held, for no
//! longer than a commit takes, which needs no such lock; whoever keeps out waits for migrations with
//! nothing held.

use pagefence_lock_order::primitives::{Arc, Condvar, Mutex};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Unlisted {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    inodes: u32,
    kept_out: u32,
}

/// There may be an inode that nothing leads to, until this is dropped.
#[derive(Debug)]
pub(crate) struct Inside(Arc<Unlisted>);

/// There is no such inode until this is dropped.
#[derive(Debug)]
pub(crate) struct KeptOut<'a>(&'a Unlisted);

impl Unlisted {
    /// Waits while somebody keeps such inodes out.
    pub(crate) fn enter(self: &Arc<Self>) -> Inside {
        let mut state = self.state.lock();
        while state.kept_out > 0 {
            self.changed.wait(&mut state);
        }
        state.inodes = state.inodes.saturating_add(1);
        Inside(Arc::clone(self))
    }

    /// Waits until there are none. Those that come meanwhile are let in.
    pub(crate) fn keep_out(&self) -> KeptOut<'_> {
        let mut state = self.state.lock();
        while state.inodes > 0 {
            self.changed.wait(&mut state);
        }
        state.kept_out = state.kept_out.saturating_add(1);
        KeptOut(self)
    }

    fn leave(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0
            .leave(|state| state.inodes = state.inodes.saturating_sub(1));
    }
}

impl Drop for KeptOut<'_> {
    fn drop(&mut self) {
        self.0
            .leave(|state| state.kept_out = state.kept_out.saturating_sub(1));
    }
}
