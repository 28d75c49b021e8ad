//! Pages that can't be had: SIGBUS, and what is taken off with it and what is not.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::simulated::Entry;
use pagefence_page_cache::{FaultKind, PAGE_SIZE};

use super::disk::Disk;
use super::eyes::{Seen, look};
use super::space::{Real, Space, Touch};
use super::{Bench, PAGE, Task, load, stamped, stamped_disk, store};
use crate::Kind;
use crate::shootdown::Poison;

/// Names the test that a child shall run.
const VARIABLE: &str = "PAGEFENCE_TEST_IN_CHILD";

/// With what a child ends that came to the end of its test.
const DONE: i32 = 77;

const SIGBUS: i32 = 7;

/// Runs `body` in a child, a process that runs the test `name` alone; how it ended.
fn in_child(name: &str, body: impl FnOnce()) -> ExitStatus {
    if std::env::var(VARIABLE).as_deref() == Ok(name) {
        body();
        std::process::exit(DONE);
    }
    Command::new(std::env::current_exe().expect("this test"))
        .args([name, "--exact", "--nocapture"])
        .env(VARIABLE, name)
        .status()
        .expect("a child")
}

fn gives_bus(name: &str, body: impl FnOnce()) -> bool {
    gives_bus_in("tests::poison", name, body)
}

/// Whether `body` ends the process that runs it by SIGBUS, and is no test that can't be found: `name` of
/// `module`.
pub(super) fn gives_bus_in(module: &str, name: &str, body: impl FnOnce()) -> bool {
    let status = in_child(&format!("{module}::{name}"), body);
    assert!(status.signal().is_some() || status.code() == Some(DONE));
    status.signal() == Some(SIGBUS)
}

#[test]
fn a_load_past_the_end_gives_bus() {
    assert!(gives_bus("a_load_past_the_end_gives_bus", || {
        let bench = Bench::new(stamped_disk(3));
        let region = bench.map(0..8, Kind::Shared);
        assert_eq!(load(&region, 2 * PAGE, PAGE_SIZE), stamped(2));
        load(&region, 3 * PAGE, 1);
    }));
}

#[test]
fn a_store_past_an_end_that_came_nearer_gives_bus() {
    assert!(gives_bus(
        "a_store_past_an_end_that_came_nearer_gives_bus",
        || {
            let bench = Bench::new(stamped_disk(8));
            let region = bench.map(0..8, Kind::Shared);
            store(&region, 4 * PAGE, &[1]);
            bench.truncate(4 * PAGE);
            store(&region, 4 * PAGE, &[1]);
        }
    ));
}

#[test]
fn a_copy_past_the_end_gives_bus() {
    assert!(gives_bus("a_copy_past_the_end_gives_bus", || {
        let bench = Bench::new(stamped_disk(8));
        let region = bench.map(0..8, Kind::Private);
        store(&region, 4 * PAGE, &[1]);
        bench.truncate(4 * PAGE);
        load(&region, 4 * PAGE, 1);
    }));
}

#[test]
fn a_load_that_fails_gives_bus() {
    assert!(gives_bus("a_load_that_fails_gives_bus", || {
        let bench = Bench::new(stamped_disk(8));
        let region = bench.map(0..8, Kind::Shared);
        bench.disk().fail_reads(usize::MAX);
        load(&region, 4 * PAGE, 1);
    }));
}

#[test]
fn a_store_without_space_gives_bus() {
    assert!(gives_bus("a_store_without_space_gives_bus", || {
        let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
        let region = bench.map(0..8, Kind::Shared);
        bench.disk().limit_space(1);
        store(&region, 0, &[1]);
        assert_eq!(load(&region, PAGE, 1), [0], "a load needs none");
        store(&region, PAGE, &[1]);
    }));
}

#[test]
fn a_child_that_meets_no_poison_ends_well() {
    assert!(!gives_bus("a_child_that_meets_no_poison_ends_well", || {
        let bench = Bench::new(stamped_disk(8));
        let region = bench.map(0..8, Kind::Shared);
        store(&region, 4 * PAGE, &[1]);
        bench.truncate(4 * PAGE);
        bench.truncate(8 * PAGE);
        assert_eq!(load(&region, 4 * PAGE, PAGE_SIZE), vec![0; PAGE_SIZE]);
    }));
}

/// Poisons `page` as a fault does that met `why`.
fn poison(region: &crate::Region<Disk>, page: u64, why: Poison) {
    region.shared.entries.poison(page, why, || 0);
    assert_eq!(look(region.view(), page), Seen::Poison);
}

/// As the fault loop does it a second later.
fn wait_for_cure(region: &crate::Region<Disk>) {
    let later = Instant::now() + Duration::from_secs(2);
    assert_eq!(region.shared.entries.cure_failed(later), None);
}

#[test]
fn a_page_past_the_end_works_when_the_file_has_grown_over_it() {
    for by_write in [false, true] {
        let bench = Bench::new(stamped_disk(3));
        let region = bench.map(0..8, Kind::Shared);
        for page in [3, 7] {
            poison(&region, page, Poison::Beyond);
        }
        if by_write {
            bench.write(5 * PAGE, &[7; 10]).expect("written");
        } else {
            bench.truncate(6 * PAGE);
        }
        assert_eq!(load(&region, 3 * PAGE, PAGE_SIZE), vec![0; PAGE_SIZE]);
        assert_eq!(look(region.view(), 7), Seen::Poison, "still past the end");
        bench.truncate(8 * PAGE);
        store(&region, 7 * PAGE, &[9]);
        assert_eq!(bench.read(7 * PAGE, 2), Ok(vec![9, 0]));
    }
}

#[test]
fn a_page_is_not_poisoned_that_the_file_has_grown_over_meanwhile() {
    let bench = Bench::new(stamped_disk(3));
    let region = bench.map(0..8, Kind::Shared);
    region.shared.entries.poison(3, Poison::Beyond, || 4);
    assert_eq!(look(region.view(), 3), Seen::Nothing);
}

#[test]
fn a_page_that_failed_works_some_time_later() {
    let bench = Bench::new(stamped_disk(8));
    let region = bench.map(0..8, Kind::Shared);
    poison(&region, 3, Poison::failed(Instant::now()));
    // The fault loop does that by itself, when it is rung as it is by who poisons.
    region.shared.bell.ring();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(look(region.view(), 3), Seen::Poison, "not at once");
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(look(region.view(), 3), Seen::Nothing);
    assert_eq!(load(&region, 3 * PAGE, PAGE_SIZE), stamped(3));
}

#[test]
fn poison_takes_the_place_of_what_is_mapped_and_mapping_that_of_poison() {
    for kind in [Kind::Shared, Kind::Private] {
        let bench = Bench::new(stamped_disk(8));
        let region = bench.map(0..8, kind);
        load(&region, 0, 8 * PAGE_SIZE);
        if kind == Kind::Private {
            // What is mapped privately stays; so it goes before.
            region.shared.entries.source.view().zap(3..4);
        }
        poison(&region, 3, Poison::failed(Instant::now()));
        // By the fault of a neighbour.
        region.shared.entries.source.view().zap(2..3);
        let held = &mut pagefence_lock_order::Held::at_entry();
        region
            .range()
            .fault(held, 3, FaultKind::Read)
            .expect("mapped");
        let expected = Seen::Page(Entry::ReadOnly);
        assert_eq!(look(region.view(), 3), expected);
        assert_eq!(load(&region, 3 * PAGE, PAGE_SIZE), stamped(3));
        wait_for_cure(&region);
        assert_eq!(
            look(region.view(), 3),
            expected,
            "there was nothing to cure"
        );
    }
}

#[test]
fn poison_that_comes_late_leaves_a_private_copy_and_so_does_the_cure() {
    let bench = Bench::new(stamped_disk(8));
    let region = bench.map(0..8, Kind::Private);
    store(&region, 3 * PAGE + 100, &[9]);
    let late = Poison::failed(Instant::now());
    region.shared.entries.poison(3, late, || 0);
    assert_eq!(load(&region, 3 * PAGE + 100, 1), [9]);
    wait_for_cure(&region);
    assert_eq!(load(&region, 3 * PAGE + 100, 1), [9]);
}

#[test]
fn a_copy_made_where_poison_was_survives_the_cure() {
    let bench = Bench::new(stamped_disk(8));
    let region = bench.map(0..8, Kind::Private);
    poison(&region, 3, Poison::failed(Instant::now()));
    bench.read(0, 8 * PAGE_SIZE).expect("cached");
    // A neighbour's fault takes it along.
    load(&region, 2 * PAGE, 1);
    assert_eq!(look(region.view(), 3), Seen::Page(Entry::ReadOnly));
    store(&region, 3 * PAGE + 100, &[9]);
    wait_for_cure(&region);
    assert_eq!(load(&region, 3 * PAGE + 100, 1), [9]);
}

#[test]
fn a_copy_made_after_a_truncate_took_the_poison_survives_the_cure() {
    let bench = Bench::new(stamped_disk(8));
    let region = bench.map(0..8, Kind::Private);
    poison(&region, 3, Poison::failed(Instant::now()));
    bench.truncate(0);
    assert_eq!(look(region.view(), 3), Seen::Nothing);
    bench.truncate(8 * PAGE);
    store(&region, 3 * PAGE + 100, &[9]);
    wait_for_cure(&region);
    assert_eq!(load(&region, 3 * PAGE + 100, 1), [9]);
}

#[test]
fn nobody_poisons_while_somebody_maps() {
    // Who poisons takes the protection of a page off: one that was mapped just then could be stored
    // to, and nobody would know.
    let bench = Bench::new(stamped_disk(8));
    let space = <Real as Space>::of(&bench, 0..8, Kind::Shared);
    space.stop();
    let toucher = <Real as Space>::start(&space, 3, Kind::Shared, Touch::Load);
    space.wait_stopped(1);
    let poisoner = {
        let space = Arc::clone(&space);
        Task::start(move || {
            let why = Poison::failed(Instant::now());
            space.shared.entries.poison(3, why, || 0);
        })
    };
    assert!(!poisoner.is_over_shortly());
    space.finish(vec![toucher]);
    poisoner.finish();
}
