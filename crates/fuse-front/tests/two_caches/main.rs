//! Two page caches, the kernel's above ours: what becomes of stamped bytes when write(2) and stores
//! through mappings meet punches and truncates, in writethrough and with WRITEBACK_CACHE.
//!
//! Needs root, /dev/fuse and python3, and says so on stderr where it is skipped. Runs for a few
//! seconds; `PAGEFENCE_RACE_SECONDS=60 cargo test -p pagefence-fuse-front --test two_caches --
//! --nocapture` runs for a minute in each mode and prints the counts.
//! `docs/adr/0009-two-page-caches.md` holds what they were.

mod episode;
mod history;
mod random;
mod server;
mod stamp;
mod storer;

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};

use crate::episode::Outcome;
use crate::server::{Mode, Requests, Served, Xattrs};
use crate::stamp::Stamp;
use crate::storer::Storer;

/// How many broken things are told of.
const COMPLAINTS: usize = 20;

/// How long to race, unless the environment says otherwise.
const SECONDS: u64 = 3;

/// What a run found.
struct Report {
    outcome: Outcome,
    /// Broken: stamps in WRITE requests that belong elsewhere.
    misplaced_writes: u64,
    complaints: Vec<String>,
}

fn race(mode: Mode) -> Option<Report> {
    if !Storer::is_possible() {
        eprintln!("skipped: storing through maps needs python3");
        return None;
    }
    let seconds = std::env::var("PAGEFENCE_RACE_SECONDS").map_or(SECONDS, |text| {
        text.parse().expect("PAGEFENCE_RACE_SECONDS is a number")
    });
    let misplaced = Arc::new(AtomicU64::new(0));
    let mut mounts = Vec::new();
    for xattrs in [Xattrs::Answered, Xattrs::Refused] {
        let misplaced = Arc::clone(&misplaced);
        let watch = move |name: &OsStr, offset: u64, data: &[u8]| {
            let number = name.to_str().and_then(|name| name.parse().ok());
            let number = number.expect("files are named by number");
            let elsewhere = stamp::read(number, offset, data)
                .filter(|(_, stamp)| *stamp == Stamp::Misplaced)
                .count();
            misplaced.fetch_add(elsewhere as u64, Ordering::Relaxed);
        };
        mounts.push(Served::mount(mode, xattrs, Arc::new(watch))?);
    }
    let mut total = Outcome::default();
    let mut complaints = Vec::new();
    let until = Instant::now() + Duration::from_secs(seconds);
    // The kernel's question before each write(2) makes writers slow: every other episode is without.
    for (served, first) in mounts.iter().cycle().zip((0..u16::MAX - 8).step_by(8)) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let length = left.clamp(Duration::from_millis(500), Duration::from_millis(1500));
        let outcome = episode::run(served, first, length, &mut |complaint| {
            if complaints.len() < COMPLAINTS {
                complaints.push(complaint);
            }
        });
        total.verdict.add(&outcome.verdict);
        total.torn += outcome.torn;
        total.sizes += outcome.sizes;
    }
    let count = |which: fn(&Requests) -> &AtomicU64| -> u64 {
        let counts = mounts.iter().map(|served| which(&served.requests));
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    };
    eprintln!(
        "{mode:?}: {total:#?}\nWRITE {}, GETXATTR {}, SETATTR {}, misplaced in WRITE {}",
        count(|requests| &requests.writes),
        count(|requests| &requests.xattrs),
        count(|requests| &requests.setattrs),
        misplaced.load(Ordering::Relaxed),
    );
    Some(Report {
        outcome: total,
        misplaced_writes: misplaced.load(Ordering::Relaxed),
        complaints,
    })
}

fn assert_sound(mode: Mode) {
    let Some(report) = race(mode) else {
        return;
    };
    let Outcome {
        verdict,
        torn,
        sizes,
    } = report.outcome;
    // The races took place. What is not asserted: `dropped`, `dropped_after_zeros` and `past_end`
    // count what the kernel's cache does to stores through maps, in either mode.
    assert!(verdict.stores[0] > 0 && verdict.stores[1] > 0);
    assert!(verdict.punches > 0 && verdict.truncates > 0 && verdict.seen > 0);
    assert!(verdict.beside[1] > 0, "no store met a punch");
    let broken = [
        ("misplaced in a WRITE", report.misplaced_writes),
        ("misplaced as read", verdict.misplaced),
        ("older than what was there", verdict.stale),
        ("lost", verdict.lost),
        ("outlived a punch or truncate", verdict.kept),
        ("stored by nobody", verdict.unknown),
        ("cache and server differ", verdict.diverged),
        ("half a stamp", torn),
        ("sizes differ", sizes),
    ];
    let found: Vec<_> = broken.iter().filter(|(_, count)| *count > 0).collect();
    assert!(
        found.is_empty(),
        "{mode:?}: {found:?}\n{}",
        report.complaints.join("\n")
    );
}

#[test]
fn punch_and_truncate_against_stores_in_writethrough() {
    assert_sound(Mode::Writethrough);
}

#[test]
fn punch_and_truncate_against_stores_with_the_writeback_cache() {
    assert_sound(Mode::Writeback);
}
