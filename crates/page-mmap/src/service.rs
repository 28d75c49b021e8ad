//! Threads for faults that have to wait.

use std::collections::VecDeque;
use std::io;

use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, thread};

/// What a thread is to do.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads that serves the faults of any number of regions that have to wait for something:
/// a page that is read, space, a fence. Threads are started when they are needed, up to a limit, and end
/// with the pool.
///
/// A fault waits for locks and I/O alone, never for another fault: so any number of threads, one
/// included, gets all of them done.
///
/// The faults of one program in another process take half the threads at most.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    /// Fault loops that look out for faults, and how many may.
    looking_out: AtomicUsize,
    most_looking_out: usize,
    most: usize,
}

/// Where the jobs of one region stand in line: so that one whose jobs take long, and which ever has more,
/// leaves threads to others.
#[derive(Debug)]
pub(crate) struct Line {
    /// How many threads may be at its jobs; any number, if `None`.
    most: Option<usize>,
    /// How many are. Changed with the lock of the pool's state.
    running: AtomicUsize,
}

/// A job that nobody can do.
pub(crate) struct NoThread {
    pub(crate) error: io::Error,
    pub(crate) job: Job,
}

/// A fault loop that looks out for faults.
pub(crate) struct Lookout<'a>(&'a AtomicUsize);

impl Drop for Lookout<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// In the order in which they came.
    jobs: VecDeque<(Arc<Line>, Job)>,
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
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State::default()),
                changed: Condvar::new(),
            }),
            most: most.max(1),
            looking_out: AtomicUsize::new(0),
            most_looking_out: (cpus / 2).max(1),
        })
    }

    /// Has the caller look out for faults, until what it gives is dropped; `None` if so many do that no
    /// processors would be left for those who fault.
    pub(crate) fn look_out(&self) -> Option<Lookout<'_>> {
        let most = self.most_looking_out;
        let one_more = |count: usize| (count < most).then_some(count + 1);
        self.looking_out
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
            .then(|| Lookout(&self.looking_out))
    }

    /// A line of this pool's, for a region of this process, or of a client in another one.
    pub(crate) fn line(&self, is_client: bool) -> Arc<Line> {
        Arc::new(Line {
            most: is_client.then(|| (self.most / 2).max(1)),
            running: AtomicUsize::new(0),
        })
    }

    /// Has `job` run by one of the threads, when those in `line` before it have been begun.
    ///
    /// # Errors
    /// There is no thread, and none can be started; the job comes back.
    pub(crate) fn submit(&self, line: &Arc<Line>, job: Job) -> Result<(), NoThread> {
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
        state.jobs.push_back((Arc::clone(line), job));
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

impl State {
    /// The first job whose line may have one more thread: it has.
    fn next_job(&mut self) -> Option<(Arc<Line>, Job)> {
        let is_free = |line: &Line| {
            let running = line.running.load(Ordering::Relaxed);
            line.most.is_none_or(|most| running < most)
        };
        let at = self.jobs.iter().position(|(line, _)| is_free(line))?;
        let (line, job) = self.jobs.remove(at)?;
        line.running.fetch_add(1, Ordering::Relaxed);
        Some((line, job))
    }
}

impl Shared {
    fn run(&self) {
        let _panic = AbortOnPanic;
        let mut state = self.state.lock();
        loop {
            // Whoever is done looks here again, so nobody need be woken when a line may go on.
            if let Some((line, job)) = state.next_job() {
                drop(state);
                job();
                state = self.state.lock();
                line.running.fetch_sub(1, Ordering::Relaxed);
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

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Jobs that are counted while they wait for the test.
    #[derive(Default)]
    struct Gate {
        is_open: Mutex<bool>,
        changed: Condvar,
        running: AtomicUsize,
        done: Mutex<Vec<usize>>,
    }

    impl Gate {
        fn submit(self: &Arc<Self>, service: &Service, line: &Arc<Line>, jobs: usize) {
            for nr in 0..jobs {
                let gate = Arc::clone(self);
                let job = Box::new(move || {
                    gate.running.fetch_add(1, Ordering::SeqCst);
                    let mut is_open = gate.is_open.lock();
                    while !*is_open {
                        gate.changed.wait(&mut is_open);
                    }
                    gate.done.lock().push(nr);
                });
                assert!(service.submit(line, job).is_ok());
            }
        }

        fn open(&self) {
            *self.is_open.lock() = true;
            self.changed.notify_all();
        }

        fn wait_running(&self, count: usize) {
            let start = Instant::now();
            while self.running.load(Ordering::SeqCst) < count {
                assert!(start.elapsed() < Duration::from_secs(30), "nobody comes");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn clients_leave_threads_to_others_and_regions_of_this_process_take_all() {
        let service = Service::new(4);
        let gates = [(); 3].map(|()| Arc::new(Gate::default()));
        gates[0].submit(&service, &service.line(true), 20);
        gates[0].wait_running(2);
        // Behind eighteen that were there before.
        gates[1].submit(&service, &service.line(true), 1);
        gates[1].wait_running(1);
        gates[1].open();
        gates[2].submit(&service, &service.line(false), 2);
        gates[2].wait_running(2);
        assert_eq!(gates[0].running.load(Ordering::SeqCst), 2);
        gates[2].open();
        gates[0].open();
        drop(service);
        let done = gates.map(|gate| {
            let mut done = gate.done.lock().clone();
            done.sort_unstable();
            done
        });
        assert_eq!(done, [(0..20).collect::<Vec<_>>(), vec![0], vec![0, 1]]);

        let service = Service::new(4);
        let gate = Arc::new(Gate::default());
        gate.submit(&service, &service.line(false), 4);
        gate.wait_running(4);
        gate.open();
    }

    #[test]
    fn one_thread_serves_clients_as_well() {
        let service = Service::new(1);
        let gate = Arc::new(Gate::default());
        gate.submit(&service, &service.line(true), 3);
        gate.open();
        drop(service);
        assert_eq!(*gate.done.lock(), [0, 1, 2]);
    }

    #[test]
    fn as_many_look_out_as_leave_processors_to_others() {
        let service = Service::new(1);
        let all: Vec<_> = std::iter::from_fn(|| service.look_out()).collect();
        assert_eq!(all.len(), service.most_looking_out);
        assert!(service.look_out().is_none() && service.look_out().is_none());
        drop(all);
        assert!(service.look_out().is_some());
    }
}
