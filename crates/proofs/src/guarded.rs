//! A case that may not panic, in any thread, nor go on for ever.

use std::panic::PanicHookInfo;
use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::thread;

/// A case that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// Who waits looks so often.
const LOOK: Duration = Duration::from_micros(200);

/// Panics so far, of all threads of this process.
static PANICS: AtomicU64 = AtomicU64::new(0);
static IS_COUNTING: AtomicBool = AtomicBool::new(false);

/// Counts panics from now on, and prints them as before.
fn count_panics() {
    if IS_COUNTING.swap(true, Ordering::SeqCst) {
        return;
    }
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        before(info);
    }));
}

/// Runs a case in a thread of its own.
///
/// # Errors
/// It panicked, or a thread that it started did; or it does not end: then its threads are left behind.
pub(crate) fn guarded<T: Send + 'static>(
    case: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    count_panics();
    let panics = PANICS.load(Ordering::SeqCst);
    let begun = Instant::now();
    let thread =
        thread::spawn("case", case).map_err(|error| format!("a thread for a case: {error}"))?;
    while !thread.is_finished() {
        if begun.elapsed() > LIMIT {
            return Err(format!("it does not end: {} s so far", LIMIT.as_secs()));
        }
        std::thread::sleep(LOOK);
    }
    let outcome = thread.join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("it panicked: {}", text.unwrap_or_default())
    })?;
    if PANICS.load(Ordering::SeqCst) != panics {
        return Err("a thread panicked while it ran; what it said is above".to_owned());
    }
    Ok(outcome)
}

#[test]
fn panics_are_failures() {
    assert_eq!(guarded(|| 7), Ok(7));
    let caught = guarded(|| -> u8 { panic!("on purpose") });
    assert_eq!(caught, Err("it panicked: on purpose".to_owned()));
    let behind = guarded(|| {
        let thread = thread::spawn("behind", || panic!("on purpose, too"));
        thread.map(|thread| thread.join().is_err()).ok()
    });
    assert!(behind.is_err());
}
