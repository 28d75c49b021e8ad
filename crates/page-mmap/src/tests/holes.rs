//! Holes in a file's memory that somebody has punched by hand, where the cache has a page (ADR 17).

use std::time::Instant;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_page_cache::PAGE_SIZE;
use pagefence_page_cache::simulated::Entry;

use super::disk::Stop;
use super::remote::space::Remote;
use super::space::{ALL, Real, Space, Touch, entry_of};
use super::{Bench, PAGE, SHORTLY, Task, stamped, stamped_disk};
use crate::Kind;

/// Page 3 is cached, clean and mapped when its memory goes, and its neighbours, too. A store to it that goes to
/// the file makes it dirty before anybody knows.
fn a_clean_page_is_read_again<S: Space>() {
    for (kind, touch) in ALL {
        let bench = Bench::new(stamped_disk(8));
        let space = S::of(&bench, 0..8, kind);
        assert_eq!(space.load(3 * PAGE, PAGE_SIZE), stamped(3));
        assert_eq!(space.load(2 * PAGE, PAGE_SIZE), stamped(2));
        bench.disk().take_reads();
        bench.memory().punch(2..5);
        assert_eq!(space.entry(3), None, "gone everywhere");
        let is_stored = (kind, touch) == (Kind::Shared, Touch::Store);
        let mut expected = if is_stored {
            vec![0; PAGE_SIZE]
        } else {
            stamped(3)
        };
        if touch == Touch::Store {
            space.store(3 * PAGE + 100, &[9; 10]);
            expected[100..110].fill(9);
        }
        assert!(
            space.load(3 * PAGE, PAGE_SIZE) == expected,
            "{kind:?} {touch:?}"
        );
        assert_eq!(space.entry(3), Some(entry_of(kind, touch)));
        let reads = bench.disk().take_reads();
        let is_read = reads.iter().any(|read| read.contains(&3));
        assert_eq!(is_read, !is_stored, "{kind:?} {touch:?}: {reads:?}");
        for page in [2, 4, 5] {
            assert_eq!(space.load(page * PAGE, PAGE_SIZE), stamped(page));
        }
        bench.sync().expect("synced");
        let on_disk = bench.disk().contents()[3 * PAGE_SIZE..4 * PAGE_SIZE].to_vec();
        assert!(on_disk == if is_stored { expected } else { stamped(3) });
        assert_eq!(bench.disk().violations(), 0);
    }
}

#[test]
fn a_clean_page_that_was_punched_by_hand_is_read_again() {
    a_clean_page_is_read_again::<Real>();
    a_clean_page_is_read_again::<Remote>();
}

fn a_dirty_page_is_zeros<S: Space>() {
    for touch in [Touch::Load, Touch::Store] {
        let bench = Bench::new(stamped_disk(8));
        let space = S::of(&bench, 0..8, Kind::Shared);
        space.store(3 * PAGE, &[7; PAGE_SIZE]);
        bench.disk().take_reads();
        bench.memory().punch(3..4);
        let mut expected = vec![0; PAGE_SIZE];
        if touch == Touch::Store {
            space.store(3 * PAGE + 100, &[9; 10]);
            expected[100..110].fill(9);
        }
        assert_eq!(space.load(3 * PAGE, PAGE_SIZE), expected);
        assert_eq!(bench.mapping.dirty_pages(), 1, "as dirty as before");
        assert!(bench.disk().take_reads().is_empty(), "not from the disk");
        bench.sync().expect("synced");
        bench.reclaim_all();
        assert_eq!(
            bench.disk().contents()[3 * PAGE_SIZE..4 * PAGE_SIZE],
            expected
        );
        assert_eq!(space.load(3 * PAGE, PAGE_SIZE), expected);
        assert_eq!(bench.disk().violations(), 0);
    }
}

#[test]
fn a_dirty_page_that_was_punched_by_hand_is_zeros() {
    a_dirty_page_is_zeros::<Real>();
    a_dirty_page_is_zeros::<Remote>();
}

/// What is written was copied before, and is what comes back.
fn a_page_under_writeback_is_written_first<S: Space>() {
    let bench = Bench::new(stamped_disk(8));
    let space = S::of(&bench, 0..8, Kind::Shared);
    space.store(3 * PAGE, &[7; PAGE_SIZE]);
    bench.disk().stop_at(Stop::BeforeWrite);
    let syncer = {
        let bench = Arc::clone(&bench);
        Task::start(move || bench.sync())
    };
    bench.disk().wait_stopped(1);
    bench.memory().punch(3..4);
    let loader = {
        let space = Arc::clone(&space);
        Task::start(move || space.load(3 * PAGE, PAGE_SIZE))
    };
    assert!(!loader.is_over_shortly(), "it is being written");
    bench.disk().go_on();
    assert_eq!(loader.finish(), [7; PAGE_SIZE]);
    syncer.finish().expect("synced");
    assert_eq!(space.entry(3), Some(Entry::ReadOnly));
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn a_page_under_writeback_that_was_punched_by_hand_is_written_first() {
    a_page_under_writeback_is_written_first::<Real>();
    a_page_under_writeback_is_written_first::<Remote>();
}

/// Nobody is sent a signal, stands still or sees anything else than the file.
fn who_punches_without_end_harms_no_loads<S: Space>() {
    let bench = Bench::new(stamped_disk(8));
    let space = S::of(&bench, 0..8, Kind::Shared);
    let is_over = Arc::new(AtomicBool::new(false));
    let puncher = {
        let (memory, is_over) = (bench.memory(), Arc::clone(&is_over));
        Task::start(move || {
            while !is_over.load(Ordering::SeqCst) {
                memory.punch(0..8);
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
        })
    };
    let start = Instant::now();
    while start.elapsed() < SHORTLY {
        for page in 0..8 {
            assert_eq!(space.load(page * PAGE, 8), page.to_le_bytes());
        }
    }
    is_over.store(true, Ordering::SeqCst);
    puncher.finish();
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn who_punches_by_hand_without_end_harms_no_loads() {
    who_punches_without_end_harms_no_loads::<Real>();
    who_punches_without_end_harms_no_loads::<Remote>();
}

#[test]
fn pages_that_were_punched_by_hand_are_populated() {
    let bench = Bench::new(stamped_disk(8));
    let region = bench.map(0..8, Kind::Shared);
    bench.read(0, 8 * PAGE_SIZE).expect("read");
    bench.memory().punch(2..4);
    region
        .populate(&mut Held::at_entry(), 0..8)
        .expect("populated");
    for page in 0..8 {
        let seen = super::eyes::look(region.view(), page);
        assert_eq!(seen, super::eyes::Seen::Page(Entry::ReadOnly), "{page}");
        assert_eq!(super::load(&region, page * PAGE, PAGE_SIZE), stamped(page));
    }
}

/// Only what is a hole is one, whoever says what.
#[test]
fn only_holes_are_mended() {
    let bench = Bench::new(stamped_disk(8));
    let region = bench.map(0..8, Kind::Shared);
    let mend = |page| region.range().mend_hole(&mut Held::at_entry(), page);
    assert!(!mend(3), "not cached");
    super::store(&region, 3 * PAGE, &[7]);
    super::load(&region, 5 * PAGE, 1);
    let cached = bench.mapping.nr_pages();
    assert!(!(0..9).any(mend));
    assert_eq!(bench.mapping.nr_pages(), cached);
    assert_eq!(bench.read(3 * PAGE, 1), Ok(vec![7]));
    bench.memory().punch(3..6);
    assert!(mend(3) && !mend(3), "zeros");
    assert!(mend(5) && !mend(5), "dropped");
    assert_eq!(bench.mapping.nr_pages(), cached - 1);
    assert_eq!(bench.mapping.dirty_pages(), 1);
    assert_eq!(bench.read(3 * PAGE, PAGE_SIZE), Ok(vec![0; PAGE_SIZE]));
    assert_eq!(bench.read(5 * PAGE, PAGE_SIZE), Ok(stamped(5)));
}
