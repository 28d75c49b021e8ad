//! Each protection left out: the oracles notice. With it: they don't.

use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_page_cache::PAGE_SIZE;
use pagefence_page_cache::probe::Stop;

use super::disk::Disk;
use super::eyes::{Seen, look};
use super::{Bench, PAGE, load, stamped, stamped_disk, store};
use crate::Kind;
use crate::mutants::Mutant;
use crate::shootdown::Poison;

/// What a page has that was loaded from, stored to, written back, stored to again and read again from
/// the disk.
fn stored_twice(left_out: Option<Mutant>, loads_first: bool) -> u8 {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let region = bench.map(0..8, Kind::Shared);
    if let Some(mutant) = left_out {
        region.leave_out(mutant);
    }
    if loads_first {
        load(&region, 0, 1);
    }
    for value in [1, 2] {
        store(&region, 0, &[value]);
        bench.sync().expect("synced");
    }
    bench.reclaim_all();
    assert_eq!(bench.mapping.nr_pages(), 0);
    load(&region, 0, 1)[0]
}

#[test]
fn write_protection_before_writing_back() {
    assert_eq!(stored_twice(None, false), 2);
    assert_eq!(stored_twice(Some(Mutant::WriteProtection), false), 1);
}

#[test]
fn write_protection_of_what_is_loaded() {
    assert_eq!(stored_twice(None, true), 2);
    assert_eq!(stored_twice(Some(Mutant::LoadProtection), true), 0);
}

#[test]
fn memory_of_pages_that_leave() {
    for left_out in [false, true] {
        let bench = Bench::new(stamped_disk(8));
        let region = bench.map(0..8, Kind::Shared);
        load(&region, 3 * PAGE, 1);
        if left_out {
            bench.cache.leave_memory();
        }
        bench.punch(0..8 * PAGE);
        let is_stale = load(&region, 3 * PAGE, PAGE_SIZE) == stamped(3);
        assert_eq!(is_stale, left_out);
    }
}

#[test]
fn the_second_look_of_readers() {
    for left_out in [false, true] {
        let bench = Bench::new(stamped_disk(8));
        let _region = bench.map(0..8, Kind::Shared);
        bench.read(3 * PAGE, PAGE_SIZE).expect("read");
        if left_out {
            bench.cache.look_once();
        }
        // The reader has its pages, and a fence takes them.
        let fencer = Arc::downgrade(&bench);
        let is_first = AtomicBool::new(true);
        bench.cache.stop_at(Stop::Copying, move || {
            if is_first.swap(false, Ordering::SeqCst) {
                let bench = fencer.upgrade().expect("in use");
                super::schedules::drop_pages(&bench.mapping, 3..4);
            }
        });
        let seen = bench.read(3 * PAGE, PAGE_SIZE).expect("read");
        let expected = if left_out {
            vec![0; PAGE_SIZE]
        } else {
            stamped(3)
        };
        assert_eq!(seen, expected);
        bench.cache.stop_nowhere();
    }
}

#[test]
fn the_cure_of_poison() {
    for left_out in [false, true] {
        let bench = Bench::new(stamped_disk(3));
        let region = bench.map(0..8, Kind::Shared);
        let entries = &region.shared.entries;
        entries.poison(3, Poison::Beyond, || 3);
        entries.poison(4, Poison::failed(Instant::now()), || 3);
        if left_out {
            region.leave_out(Mutant::Cure);
        }
        bench.truncate(8 * PAGE);
        entries.cure_failed(Instant::now() + Duration::from_secs(2));
        for page in [3, 4] {
            let is_bad = look(region.view(), page) == Seen::Poison;
            assert_eq!(is_bad, left_out);
        }
    }
}
