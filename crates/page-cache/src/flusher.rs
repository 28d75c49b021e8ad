//! When dirty pages are written: the limits, the list of files that have some, and the threads.
//!
//! A file enters the list with its first dirty page and leaves it when it is found clean. Its turn
//! comes when it is old enough, or when more pages are dirty than [`Limits::background`]; the
//! oldest goes first, several files at once. A writer that would go over [`Limits::dirty`] writes
//! back itself, or waits for those who do: before it takes any page lock.
//!
//! The list refers to files weakly. A file that is gone has nothing to write.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pagefence_lock_order::levels::{Entry, Inode, Level};
use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
use pagefence_lock_order::primitives::thread::{self, JoinHandle};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, MutexGuard, Weak};
use pagefence_lock_order::{Held, rank};

use crate::cache::Shared;
use crate::wait::Events;

/// How much of a file is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Portion {
    /// Up to this many of its dirty pages, from the front; what others write is left to them.
    Pages(u64),
    /// All of it, waiting for what others write.
    All,
}

/// A mapping, to those who write files they know nothing else of. How many pages were written, or
/// tried to; errors are noted for the [`crate::ErrorCursor`]s of the files and of the cache.
pub(crate) trait Flush: Send + Sync {
    fn flush_at_entry(&self, held: &mut Held<'_, Entry>, portion: Portion) -> u64;

    /// The same for a thread that holds an inode lock, of this file or another: writing needs
    /// none.
    fn flush_below_inode(&self, held: &mut Held<'_, Inode>, portion: Portion) -> u64;

    /// See [`crate::dirty::DirtyIndex::delist`].
    fn delist(&self) -> bool;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Entry {}
    impl Sealed for super::Inode {}
}

/// The levels from which files of any kind can be written back: nothing held, or an inode lock.
pub trait CanFlush: Level + sealed::Sealed + Sized {
    #[doc(hidden)]
    #[expect(private_interfaces, reason = "sealed: called by this crate only")]
    fn flush(target: &dyn Flush, held: &mut Held<'_, Self>, portion: Portion) -> u64;
}

impl CanFlush for Entry {
    #[expect(private_interfaces, reason = "sealed: called by this crate only")]
    fn flush(target: &dyn Flush, held: &mut Held<'_, Self>, portion: Portion) -> u64 {
        target.flush_at_entry(held, portion)
    }
}

impl CanFlush for Inode {
    #[expect(private_interfaces, reason = "sealed: called by this crate only")]
    fn flush(target: &dyn Flush, held: &mut Held<'_, Self>, portion: Portion) -> u64 {
        target.flush_below_inode(held, portion)
    }
}

/// When to write. In pages, those under writeback included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// More than this, and writers write back themselves.
    pub(crate) dirty: usize,
    /// More than this, and the threads begin to.
    pub(crate) background: usize,
    /// A file that has had dirty pages for this long is written.
    pub(crate) expire: Duration,
    /// Threads that write.
    pub(crate) threads: usize,
    /// Pages written at a time by who writes because of the limits.
    pub(crate) portion: u64,
}

/// The list of files with dirty pages, and the threads that write them.
pub(crate) struct Flusher {
    limits: Limits,
    dirty: AtomicUsize,
    writeback: AtomicUsize,
    state: Mutex<State>,
    /// There is something to do for a thread.
    changed: Condvar,
    /// Pages were written.
    progress: Events,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    listed: VecDeque<Listed>,
    /// Being written by a thread or a throttled writer.
    busy: Vec<Weak<dyn Flush>>,
    /// Files to write although nothing else asks for it: somebody found no frame.
    urgent: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

struct Listed {
    file: Weak<dyn Flush>,
    since: Instant,
}

impl Flusher {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            dirty: AtomicUsize::new(0),
            writeback: AtomicUsize::new(0),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
            progress: Events::default(),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Dirty pages, those under writeback not included.
    pub(crate) fn dirty(&self) -> usize {
        self.dirty.load(Ordering::Relaxed)
    }

    /// Pages under writeback.
    pub(crate) fn writeback(&self) -> usize {
        self.writeback.load(Ordering::Relaxed)
    }

    fn unclean(&self) -> usize {
        self.dirty() + self.writeback()
    }

    /// `pages` became dirty.
    pub(crate) fn note_dirtied(&self, pages: usize) {
        self.dirty.fetch_add(pages, Ordering::Relaxed);
    }

    /// `pages` are no longer dirty, though not written.
    pub(crate) fn note_discarded(&self, pages: usize) {
        if pages > 0 {
            self.dirty.fetch_sub(pages, Ordering::Relaxed);
            self.progress.notify();
        }
    }

    /// `pages` that were dirty are under writeback.
    pub(crate) fn note_begun(&self, pages: usize) {
        // In this order, so that no moment shows them as neither.
        self.writeback.fetch_add(pages, Ordering::Relaxed);
        self.dirty.fetch_sub(pages, Ordering::Relaxed);
    }

    /// `pages` were written.
    pub(crate) fn note_written(&self, pages: usize) {
        self.writeback.fetch_sub(pages, Ordering::Relaxed);
        self.progress.notify();
    }

    /// Puts `file` on the list, if [`crate::dirty::DirtyIndex::enlist`], which is `is_news`, asks for
    /// it; starts a thread if there are fewer than allowed and than files.
    pub(crate) fn enlist(
        &self,
        shared: &Arc<Shared>,
        file: Weak<dyn Flush>,
        is_news: impl FnOnce() -> bool,
    ) {
        let mut state = self.state.lock();
        // Asked under this lock: who finds the file known, and looks for it, finds it.
        if !is_news() {
            return;
        }
        // Files that are gone, should no thread look.
        while state.listed.front().is_some_and(Listed::is_gone) {
            state.listed.pop_front();
        }
        state.listed.push_back(Listed {
            file,
            since: Instant::now(),
        });
        let wanted = self
            .limits
            .threads
            .min(state.listed.len() + state.busy.len());
        if !state.closed && state.threads.len() < wanted {
            let shared = Arc::clone(shared);
            // Without a thread, writers over the limit write back; the next file tries again.
            if let Ok(thread) = thread::spawn("flusher", move || shared.flusher.run()) {
                state.threads.push(thread);
            }
        }
        // A thread that sleeps without a file to expire sleeps for ever.
        self.changed.notify_one();
    }

    /// Wakes a thread if more is dirty than is to be in the background.
    pub(crate) fn wake_if_needed(&self) {
        if self.dirty() > self.limits.background {
            let _state = self.state.lock();
            self.changed.notify_one();
        }
    }

    /// Has a file written, because memory is short.
    pub(crate) fn urge(&self) {
        if self.dirty() > 0 {
            let mut state = self.state.lock();
            state.urgent = state.listed.len().min(1).max(state.urgent);
            self.changed.notify_one();
        }
    }

    /// Brings who is to make pages of `own` dirty below the limit. A writer holds the inode lock and
    /// nothing else, a fault nothing at all.
    pub(crate) fn throttle<L: CanFlush>(&self, held: &mut Held<'_, L>, own: &dyn Flush) {
        let portion = Portion::Pages(self.limits.portion);
        while self.is_over_limit() {
            if L::flush(own, held, portion) > 0 || self.run_one(held) {
                continue;
            }
            if self.writeback() == 0 {
                // Nothing to write that could be found: a soft limit.
                return;
            }
            self.progress
                .wait_unless(|| !self.is_over_limit() || self.writeback() == 0);
        }
    }

    /// Whether who makes pages dirty has to wait.
    pub(crate) fn is_over_limit(&self) -> bool {
        self.unclean() > self.limits.dirty
    }

    /// Writes a portion of the oldest file; false if no file has anything to write.
    pub(crate) fn run_one<L: CanFlush>(&self, held: &mut Held<'_, L>) -> bool {
        let files = self.state.lock().listed.len();
        // Each file once: one that is dirty and can't be written now goes back to the list.
        (0..files).any(|_| {
            let file = self.state.lock().take();
            file.is_some_and(|file| {
                self.run_file(held, file, Portion::Pages(self.limits.portion)) > 0
            })
        })
    }

    /// Writes every file that is dirty now, waiting for what others write.
    pub(crate) fn run_all<L: CanFlush>(&self, held: &mut Held<'_, L>) {
        let files: Vec<Weak<dyn Flush>> = {
            let state = self.state.lock();
            let listed = state.listed.iter().map(|listed| &listed.file);
            listed.chain(&state.busy).map(Weak::clone).collect()
        };
        for file in files.iter().filter_map(Weak::upgrade) {
            L::flush(&*file, held, Portion::All);
        }
    }

    /// Writes a portion of `file`, which was taken off the list, and puts it back if it is not
    /// clean; how many pages that were.
    fn run_file<L: CanFlush>(
        &self,
        held: &mut Held<'_, L>,
        file: Weak<dyn Flush>,
        portion: Portion,
    ) -> u64 {
        let Some(mapping) = file.upgrade() else {
            self.state.lock().put_back(&file, false);
            return 0;
        };
        let pages = L::flush(&*mapping, held, portion);
        let clean = mapping.delist();
        self.state.lock().put_back(&file, !clean);
        // Possibly the last reference: the file goes with no lock of the flusher held.
        drop(mapping);
        pages
    }

    fn run(&self) {
        let held = &mut Held::at_entry();
        while let Some(file) = self.next_due() {
            let pages = self.run_file(held, file, Portion::Pages(u64::MAX));
            rank::assert_nothing_held();
            if pages == 0 && self.writeback() > 0 {
                // Others write what there is; it may be due again at once.
                self.progress.wait_unless(|| self.writeback() == 0);
            }
        }
    }

    /// Waits for a file whose turn it is; `None` when the cache is gone.
    fn next_due(&self) -> Option<Weak<dyn Flush>> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            let age = state.listed.front().map(|listed| listed.since.elapsed());
            let due = state.urgent > 0 || self.dirty() > self.limits.background;
            match age {
                Some(age) if due || age >= self.limits.expire => {
                    state.urgent = state.urgent.saturating_sub(1);
                    return state.take();
                }
                Some(age) => sleep(&self.changed, &mut state, self.limits.expire - age),
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Ends the threads and waits for what they write just now. What is dirty stays dirty.
    pub(crate) fn close(&self) {
        let threads = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.threads)
        };
        self.changed.notify_all();
        self.progress.notify();
        for thread in threads {
            // A thread that drops the last file drops the cache with it: it can't join itself.
            if thread.thread().id() != thread::current().id() {
                let ended = thread.join();
                debug_assert!(ended.is_ok(), "a flusher panicked");
            }
        }
    }
}

/// Sleeps until `changed`, for `most` at most.
fn sleep(changed: &Condvar, state: &mut MutexGuard<'_, State>, most: Duration) {
    #[cfg(not(shuttle))]
    changed.wait_for(state, most);
    // There no time passes: only what is done wakes.
    #[cfg(shuttle)]
    {
        let _ = most;
        changed.wait(state);
    }
}

impl State {
    /// The oldest file, off the list.
    fn take(&mut self) -> Option<Weak<dyn Flush>> {
        let file = self.listed.pop_front()?.file;
        self.busy.push(Weak::clone(&file));
        Some(file)
    }

    /// Undoes [`Self::take`], with `dirty` if the file is to be written again.
    fn put_back(&mut self, file: &Weak<dyn Flush>, dirty: bool) {
        if let Some(at) = self.busy.iter().position(|busy| Weak::ptr_eq(busy, file)) {
            self.busy.swap_remove(at);
        }
        if dirty {
            self.listed.push_back(Listed {
                file: Weak::clone(file),
                since: Instant::now(),
            });
        }
    }
}

impl Listed {
    fn is_gone(&self) -> bool {
        self.file.strong_count() == 0
    }
}

impl std::fmt::Debug for Flusher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flusher")
            .field("limits", &self.limits)
            .field("dirty", &self.dirty)
            .field("writeback", &self.writeback)
            .finish_non_exhaustive()
    }
}
