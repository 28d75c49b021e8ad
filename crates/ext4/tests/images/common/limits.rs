//! Limits of time and memory for what a damaged image may do.

use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex};

/// A case that takes longer hangs, however slow the machine.
const TIME: Duration = Duration::from_secs(60);

/// Memory of the whole test process, its caches included, at any time.
const MEMORY_KIB: u64 = 1 << 20;

/// Ends the process with the name of the case that hangs: a thread that hangs can't be stopped.
pub(crate) struct Watchdog {
    case: Arc<Mutex<(String, Instant)>>,
    over: Arc<AtomicBool>,
}

impl Watchdog {
    pub(crate) fn new() -> Self {
        let watchdog = Self {
            case: Arc::new(Mutex::new((String::new(), Instant::now()))),
            over: Arc::new(AtomicBool::new(false)),
        };
        let (case, over) = (Arc::clone(&watchdog.case), Arc::clone(&watchdog.over));
        pagefence_lock_order::primitives::thread::spawn("watchdog", move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(200));
                let (name, since) = &*case.lock();
                if since.elapsed() > TIME && !over.load(Ordering::Relaxed) {
                    eprintln!("it hangs: {name}");
                    std::process::abort();
                }
            }
        })
        .expect("a thread");
        watchdog
    }

    /// A new case begins.
    pub(crate) fn case(&self, name: String) {
        *self.case.lock() = (name, Instant::now());
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Fails if this process ever took more memory than any of these tests may.
pub(crate) fn check_memory() {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let peak: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .expect("a peak");
    assert!(peak < MEMORY_KIB, "{peak} KiB");
}
