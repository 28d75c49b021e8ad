//! The end of the daemon, as its clients see it: SIGBUS, and nobody hangs.

use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::PAGE_SIZE;

use super::{load, map, store, wait_until};
use crate::remote::{Guard, RemoteKind};
use crate::tests::disk::Stop;
use crate::tests::eyes::{Seen, look};
use crate::tests::poison::gives_bus_in;
use crate::tests::{Bench, PAGE, Task, stamped, stamped_disk};

/// Whether `body` ends the process that runs it by SIGBUS.
fn gives_bus(name: &str, body: impl FnOnce()) -> bool {
    gives_bus_in("tests::remote::end", name, body)
}

/// The guard of a daemon that is about to end.
fn guard(pages: u64, kind: RemoteKind) -> (Arc<Bench>, Arc<Guard>, super::Served) {
    let bench = Bench::new(stamped_disk(pages));
    let (guard, served) = map(&bench, 0..8, kind);
    (bench, guard, served)
}

/// Ends the daemon: the guard has learned of it.
fn end(served: &super::Served, guard: &Guard) {
    served.source().cut_off();
    wait_until(|| guard.is_over());
}

#[test]
fn a_load_past_the_end_gives_bus() {
    assert!(gives_bus("a_load_past_the_end_gives_bus", || {
        let (_bench, guard, _served) = self::guard(3, RemoteKind::Shared);
        assert_eq!(load(&guard, 2 * PAGE, PAGE_SIZE), stamped(2));
        load(&guard, 3 * PAGE, 1);
    }));
}

#[test]
fn a_store_past_an_end_that_came_nearer_gives_bus() {
    let name = "a_store_past_an_end_that_came_nearer_gives_bus";
    assert!(gives_bus(name, || {
        let (bench, guard, _served) = self::guard(8, RemoteKind::Shared);
        store(&guard, 4 * PAGE, &[1]);
        bench.truncate(4 * PAGE);
        store(&guard, 4 * PAGE, &[1]);
    }));
}

#[test]
fn a_load_that_fails_gives_bus() {
    assert!(gives_bus("a_load_that_fails_gives_bus", || {
        let (bench, guard, _served) = self::guard(8, RemoteKind::ReadOnly);
        bench.disk().fail_reads(usize::MAX);
        load(&guard, 4 * PAGE, 1);
    }));
}

#[test]
fn a_page_that_failed_works_some_time_later() {
    let name = "a_page_that_failed_works_some_time_later";
    assert!(!gives_bus(name, || {
        let (bench, guard, served) = self::guard(8, RemoteKind::Shared);
        let why = crate::shootdown::Poison::failed(std::time::Instant::now());
        served.shared.entries.poison(3, why, || 0);
        wait_until(|| look(guard.view(), 3) == Seen::Poison);
        served.shared.bell.ring();
        wait_until(|| look(guard.view(), 3) == Seen::Nothing);
        assert_eq!(load(&guard, 3 * PAGE, PAGE_SIZE), stamped(3));
        drop(bench);
    }));
}

#[test]
fn a_store_to_a_page_mapped_for_it_gives_bus() {
    assert!(gives_bus(
        "a_store_to_a_page_mapped_for_it_gives_bus",
        || {
            let (_bench, guard, served) = self::guard(8, RemoteKind::Shared);
            store(&guard, 3 * PAGE, &[1]);
            end(&served, &guard);
            store(&guard, 3 * PAGE, &[2]);
        }
    ));
}

#[test]
fn a_store_to_a_page_that_was_protected_gives_bus() {
    let name = "a_store_to_a_page_that_was_protected_gives_bus";
    assert!(gives_bus(name, || {
        let (bench, guard, served) = self::guard(8, RemoteKind::Shared);
        store(&guard, 3 * PAGE, &[1]);
        bench.sync().expect("synced");
        end(&served, &guard);
        store(&guard, 3 * PAGE, &[2]);
    }));
}

#[test]
fn a_load_of_a_page_mapped_for_it_gives_bus() {
    assert!(gives_bus(
        "a_load_of_a_page_mapped_for_it_gives_bus",
        || {
            let (_bench, guard, served) = self::guard(8, RemoteKind::ReadOnly);
            load(&guard, 3 * PAGE, 1);
            end(&served, &guard);
            load(&guard, 3 * PAGE, 1);
        }
    ));
}

#[test]
fn a_load_where_nothing_was_mapped_gives_bus() {
    assert!(gives_bus(
        "a_load_where_nothing_was_mapped_gives_bus",
        || {
            let (_bench, guard, served) = self::guard(8, RemoteKind::Private);
            end(&served, &guard);
            load(&guard, 3 * PAGE, 1);
        }
    ));
}

/// The daemon ends while a thread waits for a page of a map of `kind`.
fn end_below_a_fault(kind: RemoteKind) {
    let (bench, guard, served) = guard(8, kind);
    bench.disk().stop_at(Stop::BeforeRead);
    let waiting = {
        let guard = Arc::clone(&guard);
        Task::start(move || load(&guard, 3 * PAGE, 1))
    };
    bench.disk().wait_stopped(1);
    end(&served, &guard);
    waiting.finish();
}

#[test]
fn who_waits_at_a_fault_gets_bus() {
    let end = || end_below_a_fault(RemoteKind::Shared);
    assert!(gives_bus("who_waits_at_a_fault_gets_bus", end));
}

#[test]
fn who_waits_for_a_private_page_gets_bus() {
    let end = || end_below_a_fault(RemoteKind::Private);
    assert!(gives_bus("who_waits_for_a_private_page_gets_bus", end));
}

#[test]
fn who_waits_to_store_where_it_is_protected_gets_bus() {
    let name = "who_waits_to_store_where_it_is_protected_gets_bus";
    assert!(gives_bus(name, || {
        let (bench, guard, served) = self::guard(8, RemoteKind::Shared);
        load(&guard, 3 * PAGE, 1);
        // The fault is not told any more: its page is mapped, and it stands there.
        let held = guard.hold();
        let waiting = {
            let guard = Arc::clone(&guard);
            Task::start(move || store(&guard, 3 * PAGE, &[1]))
        };
        assert!(!waiting.is_over_shortly());
        served.source().cut_off();
        drop(held);
        waiting.finish();
        drop(bench);
    }));
}

#[test]
fn a_private_map_keeps_its_copies() {
    assert!(!gives_bus("a_private_map_keeps_its_copies", || {
        let (_bench, guard, served) = self::guard(8, RemoteKind::Private);
        store(&guard, 3 * PAGE, &[9; 10]);
        end(&served, &guard);
        assert_eq!(load(&guard, 3 * PAGE, 10), [9; 10]);
    }));
}

#[test]
fn who_has_pages_populated_is_told() {
    let (bench, guard, served) = guard(8, RemoteKind::Shared);
    bench.disk().stop_at(Stop::BeforeRead);
    let populate = {
        let guard = Arc::clone(&guard);
        Task::start(move || guard.populate(0..8).map_err(|error| error.kind()))
    };
    bench.disk().wait_stopped(1);
    end(&served, &guard);
    let not_connected = Err(std::io::ErrorKind::NotConnected);
    assert_eq!(populate.finish(), not_connected);
    let again = guard.populate(0..8).map_err(|error| error.kind());
    assert_eq!(again, not_connected);
    bench.disk().go_on();
}

#[test]
fn what_is_being_populated_is_given_up() {
    let bench = Bench::with(stamped_disk(1200), 8 << 20, 0);
    let (guard, served) = map(&bench, 0..1200, RemoteKind::Shared);
    bench.disk().stop_at(Stop::BeforeRead);
    let populate = {
        let guard = Arc::clone(&guard);
        Task::start(move || guard.populate(0..1200).is_err())
    };
    bench.disk().wait_stopped(1);
    end(&served, &guard);
    assert!(populate.finish());
    let ending = Task::start(move || drop(served));
    assert!(!ending.is_over_shortly(), "waits for what is being read");
    bench.disk().go_on();
    ending.finish();
    assert!(bench.mapping.nr_pages() < 1200, "and no longer");
}

#[test]
fn a_guard_ends_after_its_daemon() {
    for kind in [
        RemoteKind::Shared,
        RemoteKind::Private,
        RemoteKind::ReadOnly,
    ] {
        let (_bench, guard, served) = guard(8, kind);
        load(&guard, 0, 1);
        drop(served);
        wait_until(|| guard.is_over());
        Task::start(move || drop(guard)).finish();
    }
}
