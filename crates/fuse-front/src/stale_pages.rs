//! Pages that the kernel has of files whose data was changed past it, and telling it.
//!
//! The kernel takes away pages itself for whatever it passes on (truncate, punch). Where a file was
//! changed past it, it has to be told to drop them, and it waits for those that are being read or
//! written meanwhile, that is, for a request of its own. So a thread of its own tells, and whoever
//! serves requests waits for nothing. Until the kernel has been told, each open of the file makes it
//! drop all pages first.
//!
//! While the kernel waits more may come to be told. It is put together, a range a file: however slow
//! the kernel is, no more is kept than there are files.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use fuser::{INodeNo, Notifier};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, thread};

/// What is stale of a file.
#[derive(Debug, Default)]
struct Stale {
    /// How many changes are under way, one more if there is something to be told, and one if it is
    /// being told.
    pending: u64,
    /// The bytes to be told of. It is in the queue then.
    to_tell: Option<Range<u64>>,
}

#[derive(Debug, Default)]
struct State {
    /// None of them has nothing pending.
    stale: HashMap<INodeNo, Stale>,
    /// First come, first told; no file twice.
    queue: VecDeque<INodeNo>,
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

/// A change of a file past the kernel that is under way. When it is dropped, it is done, or has failed
/// half-way: the kernel is told, some time.
#[must_use]
pub(crate) struct Change<'a> {
    shared: &'a Shared,
    node: INodeNo,
    bytes: Range<u64>,
}

impl StalePages {
    /// Starts the thread.
    pub(crate) fn connect(&self, notifier: Notifier) -> std::io::Result<()> {
        let shared = Arc::clone(&self.0);
        let _detached = thread::spawn("pagefence-notice", move || shared.tell_all(&notifier))?;
        Ok(())
    }

    /// What the file holds in `length` bytes from byte `offset` on, 0 for all from there on, is about
    /// to change.
    pub(crate) fn begin(&self, node: INodeNo, offset: u64, length: u64) -> Change<'_> {
        let end = match length {
            0 => u64::MAX,
            length => offset.saturating_add(length),
        };
        self.0.state.lock().begin(node);
        Change {
            shared: &self.0,
            node,
            bytes: offset..end,
        }
    }

    /// Whether the kernel may have pages of the file that it is still to be told of.
    pub(crate) fn is_stale(&self, node: INodeNo) -> bool {
        self.0.state.lock().stale.contains_key(&node)
    }
}

impl Change<'_> {
    /// The change is done.
    pub(crate) fn tell(self) {}
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.shared.state.lock().end(self.node, self.bytes.clone());
        self.shared.work.notify_one();
    }
}

impl State {
    /// A change begins.
    fn begin(&mut self, node: INodeNo) {
        self.stale.entry(node).or_default().pending += 1;
    }

    /// A change of these bytes that had begun is to be told.
    fn end(&mut self, node: INodeNo, bytes: Range<u64>) {
        let Some(stale) = self.stale.get_mut(&node) else {
            debug_assert!(false, "a change ends that had begun");
            return;
        };
        match &mut stale.to_tell {
            Some(others) => {
                *others = others.start.min(bytes.start)..others.end.max(bytes.end);
                // What is to be told counts already.
                stale.pending -= 1;
            }
            none => {
                *none = Some(bytes);
                self.queue.push_back(node);
            }
        }
    }

    /// What is to be told next: [`told`](Self::told) follows.
    fn next(&mut self) -> Option<(INodeNo, Range<u64>)> {
        let node = self.queue.pop_front()?;
        let bytes = self.stale.get_mut(&node)?.to_tell.take()?;
        Some((node, bytes))
    }

    /// The kernel was told.
    fn told(&mut self, node: INodeNo) {
        if let Some(stale) = self.stale.get_mut(&node) {
            stale.pending -= 1;
            if stale.pending == 0 {
                self.stale.remove(&node);
            }
        }
    }
}

impl Shared {
    fn tell_all(&self, notifier: &Notifier) {
        let mut state = self.state.lock();
        while !state.ended {
            let Some((node, bytes)) = state.next() else {
                self.work.wait(&mut state);
                continue;
            };
            drop(state);
            // Fails if the kernel does not know the node, or is gone.
            let (offset, length) = notice(&bytes);
            if let Err(error) = notifier.inval_inode(node, offset, length) {
                tracing::trace!(%node, %error, "the kernel has no pages to drop");
            }
            state = self.state.lock();
            state.told(node);
        }
    }
}

/// Offset and length as the kernel is told of them: a length of 0 is to the end of the file.
fn notice(bytes: &Range<u64>) -> (i64, i64) {
    let offset = i64::try_from(bytes.start).unwrap_or(i64::MAX);
    match i64::try_from(bytes.end) {
        Ok(end) => (offset, end.saturating_sub(offset)),
        Err(_) => (offset, 0),
    }
}

impl Drop for StalePages {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.work.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: INodeNo = INodeNo(12);
    const OTHER: INodeNo = INodeNo(13);

    #[test]
    fn what_comes_while_the_kernel_waits_is_told_as_one() {
        let pages = StalePages::default();
        let told = |node| pages.0.state.lock().told(node);
        let next = || pages.0.state.lock().next();
        let first = pages.begin(NODE, 4096, 4096);
        assert!(pages.is_stale(NODE), "a change is under way");
        assert_eq!(next(), None, "it is not done");
        first.tell();
        assert_eq!(next(), Some((NODE, 4096..8192)));
        // The kernel is being told of it.
        pages.begin(OTHER, 7, 0).tell();
        let late = pages.begin(NODE, 0, 1);
        for page in (5..1000).rev() {
            pages.begin(NODE, page * 4096, 4096).tell();
        }
        assert_eq!(pages.0.state.lock().queue.len(), 2);
        told(NODE);
        assert_eq!(next(), Some((OTHER, 7..u64::MAX)));
        told(OTHER);
        assert!(!pages.is_stale(OTHER));
        late.tell();
        assert_eq!(next(), Some((NODE, 0..1000 * 4096)));
        assert!(pages.is_stale(NODE), "it is being told");
        told(NODE);
        assert!(!pages.is_stale(NODE));
        assert_eq!(next(), None);
        assert!(pages.0.state.lock().stale.is_empty());
    }

    #[test]
    fn a_change_that_is_under_way_outlives_what_is_told() {
        let pages = StalePages::default();
        let long = pages.begin(NODE, 0, 1);
        pages.begin(NODE, 1, 1).tell();
        assert_eq!(pages.0.state.lock().next(), Some((NODE, 1..2)));
        pages.0.state.lock().told(NODE);
        assert!(pages.is_stale(NODE), "nobody was told of the long one");
        // Also if whoever makes it panics.
        drop(long);
        assert_eq!(pages.0.state.lock().next(), Some((NODE, 0..1)));
        pages.0.state.lock().told(NODE);
        assert!(!pages.is_stale(NODE));
    }

    #[test]
    fn the_kernel_is_told_of_signed_numbers() {
        assert_eq!(notice(&(4096..8192)), (4096, 4096));
        assert_eq!(notice(&(5..u64::MAX)), (5, 0));
        let end = i64::MAX.cast_unsigned();
        assert_eq!(notice(&(1..end)), (1, i64::MAX - 1));
        assert_eq!(notice(&(u64::MAX - 1..u64::MAX)), (i64::MAX, 0));
    }
}
