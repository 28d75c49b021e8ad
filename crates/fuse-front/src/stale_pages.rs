//! Pages that the kernel has of files whose data lies elsewhere now, and telling it.
//!
//! The kernel takes away pages itself for whatever it passes on (truncate, punch). Where a file was
//! changed past it, it has to be told to drop them, and it waits for those that are being read or
//! written meanwhile, that is, for a request of its own. So a thread of its own tells, and whoever
//! serves requests waits for nothing. Until the kernel has been told, each open of the file makes it
//! drop all pages first.

use std::collections::{HashMap, VecDeque};

use fuser::{INodeNo, Notifier};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, thread};

#[derive(Debug, Default)]
struct State {
    /// How many changes of the file are under way or to be told.
    stale: HashMap<INodeNo, u64>,
    /// From which byte on, first come first.
    queue: VecDeque<(INodeNo, u64)>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    /// A leaf; not held while the kernel is told.
    state: Mutex<State>,
    work: Condvar,
}

/// The files whose pages are stale. Dropping it ends the thread that tells.
#[derive(Debug, Default)]
pub(crate) struct StalePages(Arc<Shared>);

/// A change of a file past the kernel that is under way.
#[must_use]
pub(crate) struct Change<'a> {
    shared: &'a Shared,
    node: INodeNo,
    offset: u64,
}

impl StalePages {
    /// Starts the thread.
    pub(crate) fn connect(&self, notifier: Notifier) -> std::io::Result<()> {
        let shared = Arc::clone(&self.0);
        let _detached = thread::spawn("pagefence-notice", move || shared.tell_all(&notifier))?;
        Ok(())
    }

    /// What the file holds from byte `offset` on is about to change.
    pub(crate) fn begin(&self, node: INodeNo, offset: u64) -> Change<'_> {
        *self.0.state.lock().stale.entry(node).or_default() += 1;
        Change {
            shared: &self.0,
            node,
            offset,
        }
    }

    /// Whether the kernel may have pages of the file that it is still to be told of.
    pub(crate) fn is_stale(&self, node: INodeNo) -> bool {
        self.0.state.lock().stale.contains_key(&node)
    }
}

impl Change<'_> {
    /// The change is done, or has failed half-way: the kernel is told, some time.
    pub(crate) fn tell(self) {
        let mut state = self.shared.state.lock();
        state.queue.push_back((self.node, self.offset));
        drop(state);
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn tell_all(&self, notifier: &Notifier) {
        let mut state = self.state.lock();
        while !state.ended {
            let Some((node, offset)) = state.queue.pop_front() else {
                self.work.wait(&mut state);
                continue;
            };
            drop(state);
            // To the end of the file. Fails if the kernel does not know the node, or is gone.
            let offset = i64::try_from(offset).unwrap_or(i64::MAX);
            if let Err(error) = notifier.inval_inode(node, offset, 0) {
                tracing::trace!(%node, %error, "the kernel has no pages to drop");
            }
            state = self.state.lock();
            if let Some(changes) = state.stale.get_mut(&node) {
                *changes -= 1;
                if *changes == 0 {
                    state.stale.remove(&node);
                }
            }
        }
    }
}

impl Drop for StalePages {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.work.notify_all();
    }
}
