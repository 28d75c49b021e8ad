//! Each protection of maps across processes left out: it is noticed. With it: nothing is lost.

use std::time::Duration;

use pagefence_page_cache::PAGE_SIZE;

use super::{load, map, store};
use crate::mutants::Mutant;
use crate::remote::RemoteKind;
use crate::tests::disk::{Disk, Stop};
use crate::tests::{Bench, PAGE, Task};

/// Whether a store that comes after its page was written back is known of, and so not lost, when the guard
/// was held up meanwhile.
fn notices_a_store(left_out: Option<Mutant>) -> bool {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let (guard, served) = map(&bench, 0..8, RemoteKind::Shared);
    if let Some(mutant) = left_out {
        served.source().leave_out(mutant);
    }
    store(&guard, 0, &[1]);
    let held = guard.hold();
    let stuck = {
        let guard = guard.clone();
        Task::start(move || load(&guard, 5 * PAGE, 1))
    };
    assert!(!stuck.is_over_shortly());
    bench.sync().expect("synced");
    let storing = {
        let guard = guard.clone();
        Task::start(move || store(&guard, 0, &[2]))
    };
    let did_not_ask = storing.is_over_shortly();
    drop(held);
    storing.finish();
    stuck.finish();
    let is_known = bench.mapping.dirty_pages() == 1;
    assert_eq!(is_known, !did_not_ask);
    bench.sync().expect("synced");
    assert_eq!(bench.disk().contents()[0], if is_known { 2 } else { 1 });
    is_known
}

#[test]
fn the_wait_until_pages_are_protected() {
    assert!(notices_a_store(None));
    assert!(!notices_a_store(Some(Mutant::ProtectWait)));
}

#[test]
fn the_freeze_of_pages_that_nobody_protects() {
    assert!(!notices_a_store(Some(Mutant::Freeze)));
}

/// Whether a store is known of for which a right was given before its page was taken away, and is found by
/// the guard afterwards; the page has come again meanwhile.
fn notices_a_late_store(left_out: Option<Mutant>) -> bool {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let (guard, served) = map(&bench, 0..8, RemoteKind::Shared);
    if let Some(mutant) = left_out {
        served.source().leave_out(mutant);
    }
    // Its fault waits for the disk, and the guard is held up by another one until the right is there.
    bench.disk().stop_at(Stop::BeforeRead);
    let storing = {
        let guard = guard.clone();
        Task::start(move || store(&guard, 0, &[2]))
    };
    bench.disk().wait_stopped(1);
    let held = guard.hold();
    let stuck = {
        let guard = guard.clone();
        Task::start(move || load(&guard, 5 * PAGE, 1))
    };
    std::thread::sleep(Duration::from_millis(50));
    bench.disk().go_on();
    super::wait_until(|| bench.mapping.dirty_pages() == 1);
    bench.punch(0..PAGE);
    // The page comes again, and is written back.
    bench.write(0, &[5]).expect("written");
    bench.sync().expect("synced");
    drop(held);
    storing.finish();
    stuck.finish();
    let is_known = bench.mapping.dirty_pages() == 1;
    bench.sync().expect("synced");
    assert_eq!(bench.disk().contents()[0], if is_known { 2 } else { 5 });
    assert_eq!(load(&guard, 0, 1), [2]);
    assert_eq!(bench.disk().contents().len(), 8 * PAGE_SIZE);
    is_known
}

#[test]
fn the_wait_until_rights_are_made_use_of_or_too_old() {
    assert!(notices_a_late_store(None));
    // The guard must come before the right is too old, which a busy machine may not let it.
    let is_lost = (0..5).any(|_| !notices_a_late_store(Some(Mutant::Settle)));
    assert!(is_lost);
}
