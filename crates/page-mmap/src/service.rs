//! Threads for faults that have to wait.

use std::collections::VecDeque;
use std::io;

use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, thread};

/// What a thread is to do.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads that serves the faults of any number of regions that have to wait for something:
/// a page that is read, space, a fence. Threads are started when they are needed, up to a limit, and end
/// with the pool.
///
/// A fault waits for locks and I/O alone, never for another fault: so any number of threads, one
/// included, gets all of them done.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    most: usize,
}

/// A job that nobody can do.
pub(crate) struct NoThread {
    pub(crate) error: io::Error,
    pub(crate) job: Job,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: Vec<thread::JoinHandle<()>>,
    is_over: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("jobs", &self.jobs.len())
            .field("idle", &self.idle)
            .field("threads", &self.threads.len())
            .field("is_over", &self.is_over)
            .finish()
    }
}

impl Service {
    /// A pool of up to `most` threads, 1 at least, of which none runs yet.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State::default()),
                changed: Condvar::new(),
            }),
            most: most.max(1),
        })
    }

    /// Has `job` run by one of the threads.
    ///
    /// # Errors
    /// There is no thread, and none can be started; the job comes back.
    pub(crate) fn submit(&self, job: Job) -> Result<(), NoThread> {
        let mut state = self.shared.state.lock();
        if state.jobs.len() >= state.idle && state.threads.len() < self.most {
            let shared = Arc::clone(&self.shared);
            match thread::spawn("pagefence-fault", move || shared.run()) {
                Ok(thread) => state.threads.push(thread),
                Err(error) if state.threads.is_empty() => return Err(NoThread { error, job }),
                // The others will do.
                Err(_) => {}
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }
}

/// Ends the process if the thread that has it panics: threads stand still in the kernel, waiting for
/// what it was about to do, and nothing would ever wake them.
pub(crate) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Shared {
    fn run(&self) {
        let _panic = AbortOnPanic;
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state.lock();
            } else if state.is_over {
                return;
            } else {
                state.idle += 1;
                self.changed.wait(&mut state);
                state.idle -= 1;
            }
        }
    }
}

impl Drop for Service {
    /// Waits for what is being served.
    fn drop(&mut self) {
        let threads = {
            let mut state = self.shared.state.lock();
            state.is_over = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.changed.notify_all();
        for thread in threads {
            // It can't have panicked.
            let _ = thread.join();
        }
    }
}
