//! The threads that read ahead in the background, and their queue.
//!
//! The queue is bounded and refers to mappings weakly: a window that does not fit is forgotten, a
//! file that is gone is not read. While a worker reads, it keeps the mapping; should everyone
//! else let go meanwhile, the mapping (and its backing) is dropped there, with no lock held.

use std::collections::VecDeque;
use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::Entry;
use pagefence_lock_order::primitives::thread::{self, JoinHandle};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, Weak};

use crate::cache::Shared;

/// A mapping, to a worker.
pub(crate) trait Target: Send + Sync {
    /// Brings the missing pages of `range` that hold data into the cache; marks the first of
    /// them from `marker` on. Errors are dropped: who needs the page will meet them.
    fn read_ahead(&self, held: &mut Held<'_, Entry>, range: Range<u64>, marker: Option<u64>);
}

/// One window to read.
pub(crate) struct Job {
    pub(crate) target: Weak<dyn Target>,
    pub(crate) range: Range<u64>,
    pub(crate) marker: Option<u64>,
}

/// Windows that wait for a worker.
#[derive(Debug)]
pub(crate) struct Queue {
    limit: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }

    /// Queues a window; false if there is no room, or nobody to read it any more.
    pub(crate) fn push(&self, job: Job) -> bool {
        let mut state = self.state.lock();
        if state.closed || state.jobs.len() >= self.limit {
            return false;
        }
        state.jobs.push_back(job);
        self.changed.notify_one();
        true
    }

    /// Reads one queued window; false if there is none.
    pub(crate) fn run_one(&self, held: &mut Held<'_, Entry>) -> bool {
        let job = self.state.lock().jobs.pop_front();
        job.map(|job| job.run(held)).is_some()
    }

    fn run_until_closed(&self) {
        loop {
            let mut state = self.state.lock();
            let job = loop {
                if state.closed {
                    return;
                }
                if let Some(job) = state.jobs.pop_front() {
                    break job;
                }
                self.changed.wait(&mut state);
            };
            drop(state);
            job.run(&mut Held::at_entry());
        }
    }

    fn close(&self) {
        let jobs = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.jobs)
        };
        drop(jobs);
        self.changed.notify_all();
    }
}

impl Job {
    fn run(self, held: &mut Held<'_, Entry>) {
        if let Some(target) = self.target.upgrade() {
            target.read_ahead(held, self.range, self.marker);
        }
    }
}

/// The threads; dropping this ends them.
#[derive(Debug)]
pub(crate) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub(crate) fn start(shared: &Arc<Shared>, count: usize) -> std::io::Result<Self> {
        let mut workers = Self {
            shared: Arc::clone(shared),
            threads: Vec::with_capacity(count),
        };
        for _ in 0..count {
            let shared = Arc::clone(shared);
            workers.threads.push(thread::spawn("readahead", move || {
                shared.readahead.run_until_closed();
            })?);
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.readahead.close();
        for worker in self.threads.drain(..) {
            // A worker that drops the last file drops the cache with it: it can't join itself.
            if worker.thread().id() != thread::current().id() {
                let ended = worker.join();
                debug_assert!(ended.is_ok(), "a readahead worker panicked");
            }
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("jobs", &self.jobs.len())
            .field("closed", &self.closed)
            .finish()
    }
}
