//! What a mapped file does, one thing after the other.

use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_page_cache::PAGE_SIZE;
use pagefence_page_cache::simulated::Entry;

use super::disk::{Disk, Stop};
use super::eyes::{Seen, look};
use super::{Bench, PAGE, SHORTLY, SMALL, Task, load, stamped, stamped_disk, store};
use crate::Kind;

#[test]
fn loads_see_data_and_holes() {
    let bench = Bench::new(stamped_disk(8));
    let region = bench.map(0..8, Kind::Shared);
    for page in [3, 0, 7] {
        assert_eq!(load(&region, page * PAGE, PAGE_SIZE), stamped(page));
    }
    assert_eq!(bench.mapping.dirty_pages(), 0, "loads make nothing dirty");

    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let region = bench.map(0..8, Kind::Shared);
    assert_eq!(load(&region, 0, 8 * PAGE_SIZE), vec![0; 8 * PAGE_SIZE]);
    assert_eq!(
        (bench.mapping.dirty_pages(), bench.disk().reserved()),
        (0, 0)
    );
}

#[test]
fn stores_reserve_are_written_back_and_ask_again() {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let region = bench.map(0..8, Kind::Shared);
    store(&region, 2 * PAGE - 2, &[9; 4]);
    assert_eq!(
        (bench.mapping.dirty_pages(), bench.disk().reserved()),
        (2, 2)
    );
    assert_eq!(bench.read(2 * PAGE - 3, 6), Ok(vec![0, 9, 9, 9, 9, 0]));
    bench.sync().expect("synced");
    assert_eq!(
        (bench.mapping.dirty_pages(), bench.disk().reserved()),
        (0, 0)
    );
    let at = 2 * PAGE_SIZE;
    assert_eq!(bench.disk().contents()[at - 3..at + 3], [0, 9, 9, 9, 9, 0]);
    store(&region, 2 * PAGE, &[7]);
    assert_eq!(
        bench.mapping.dirty_pages(),
        1,
        "write-protected, so it asked"
    );
    bench.sync().expect("synced");
    assert_eq!(bench.disk().contents()[at], 7);
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn a_punch_takes_pages_out_of_every_map() {
    let bench = Bench::new(stamped_disk(8));
    let regions = [bench.map(0..8, Kind::Shared), bench.map(2..6, Kind::Shared)];
    for region in &regions {
        load(region, 2 * PAGE, 4 * PAGE_SIZE);
    }
    store(&regions[0], 3 * PAGE, &[9; 100]);
    bench.punch(2 * PAGE + 10..5 * PAGE);
    for region in &regions {
        assert_eq!(look(region.view(), 3), Seen::Nothing);
        let mut expected = [stamped(2), vec![0; 2 * PAGE_SIZE], stamped(5)].concat();
        expected[10..PAGE_SIZE].fill(0);
        let before = load(region, 2 * PAGE, 3 * PAGE_SIZE);
        assert_eq!(before, expected[..3 * PAGE_SIZE]);
        assert_eq!(load(region, 5 * PAGE, PAGE_SIZE), stamped(5));
    }
    store(&regions[1], 3 * PAGE, &[7]);
    assert_eq!(load(&regions[0], 3 * PAGE, 2), [7, 0]);
    bench.sync().expect("synced");
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn a_truncate_inside_a_page_leaves_its_front_and_zeros() {
    let bench = Bench::new(stamped_disk(8));
    let region = bench.map(0..8, Kind::Shared);
    store(&region, 3 * PAGE, &[9; PAGE_SIZE]);
    bench.truncate(3 * PAGE + 100);
    let page = || [vec![9; 100], vec![0; PAGE_SIZE - 100]].concat();
    assert_eq!(load(&region, 3 * PAGE, PAGE_SIZE), page());
    // Past the end, in its page: as far as memory.
    store(&region, 3 * PAGE + 200, &[5; 10]);
    bench.truncate(8 * PAGE);
    assert_eq!(load(&region, 3 * PAGE, PAGE_SIZE), page());
    assert_eq!(load(&region, 4 * PAGE, PAGE_SIZE), vec![0; PAGE_SIZE]);
    bench.sync().expect("synced");
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn stores_and_writes_see_each_other_at_once() {
    let bench = Bench::new(stamped_disk(8));
    let regions = [bench.map(0..8, Kind::Shared), bench.map(0..8, Kind::Shared)];
    store(&regions[0], 2 * PAGE - 2, &[9; 4]);
    assert_eq!(load(&regions[1], 2 * PAGE - 2, 4), [9; 4]);
    bench.write(2 * PAGE, &[7; 10]).expect("written");
    for region in &regions {
        assert_eq!(load(region, 2 * PAGE - 2, 4), [9, 9, 7, 7]);
    }
    store(&regions[1], 2 * PAGE + 1, &[6]);
    assert_eq!(bench.read(2 * PAGE, 3), Ok(vec![7, 6, 7]));
    let [first, second] = regions;
    drop(first);
    store(&second, 2 * PAGE + 2, &[5]);
    bench.punch(0..PAGE);
    assert_eq!(load(&second, 0, 8), [0; 8]);
    assert_eq!(bench.read(2 * PAGE, 3), Ok(vec![7, 6, 5]));
    bench.sync().expect("synced");
    let contents = bench.disk().contents();
    assert_eq!(contents[2 * PAGE_SIZE - 2..][..5], [9, 9, 7, 6, 5]);
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn atomics_of_two_maps_are_of_one_memory() {
    let bench = Bench::with(Disk::hole(2 * PAGE, PAGE_SIZE), SMALL, 1);
    let regions = [0, 1].map(|_| Arc::new(bench.map(0..2, Kind::Shared)));
    let counters: Vec<_> = (0..4)
        .map(|nr: usize| {
            let region = Arc::clone(&regions[nr % 2]);
            Task::start(move || {
                for _ in 0..2000 {
                    region.view().fetch_add_u64(8, 1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    // Each protects the page anew.
    for _ in 0..50 {
        bench.sync().expect("synced");
    }
    counters.into_iter().for_each(Task::finish);
    assert_eq!(bench.read(8, 8), Ok(8000_u64.to_ne_bytes().to_vec()));
    bench.sync().expect("synced");
    assert_eq!(bench.disk().contents()[8..16], 8000_u64.to_ne_bytes());
}

#[test]
fn private_stores_stay_private() {
    let bench = Bench::new(stamped_disk(8));
    let private = bench.map(0..8, Kind::Private);
    let shared = bench.map(0..8, Kind::Shared);
    store(&private, PAGE, &[9; 10]);
    load(&private, 2 * PAGE, 1);
    assert_eq!(look(private.view(), 1), Seen::Page(Entry::Private));
    assert_eq!(bench.mapping.dirty_pages(), 0);
    assert_eq!(load(&shared, PAGE, PAGE_SIZE), stamped(1));
    store(&shared, PAGE, &[4; 20]);
    let mut copy = stamped(1);
    copy[..10].fill(9);
    assert_eq!(load(&private, PAGE, PAGE_SIZE), copy, "a copy");
    store(&shared, 2 * PAGE, &[4; 20]);
    assert_eq!(load(&private, 2 * PAGE, 20), [4; 20], "no copy");
    // A punch is none of a copy's business, a truncate is.
    bench.punch(0..8 * PAGE);
    assert_eq!(load(&private, PAGE, PAGE_SIZE), copy);
    assert_eq!(load(&private, 2 * PAGE, 20), [0; 20]);
    bench.reclaim_all();
    assert_eq!(load(&private, PAGE, PAGE_SIZE), copy);
    bench.truncate(PAGE);
    bench.truncate(8 * PAGE);
    assert_eq!(load(&private, PAGE, PAGE_SIZE), vec![0; PAGE_SIZE]);
    bench.sync().expect("synced");
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn a_page_past_the_end_of_the_budget_is_taken_back_and_comes_again() {
    let bench = Bench::new(stamped_disk(200));
    let region = bench.map(0..200, Kind::Shared);
    let memory = bench.memory();
    for round in 0..3 {
        for page in 0..200 {
            assert_eq!(
                load(&region, page * PAGE, PAGE_SIZE),
                stamped(page),
                "{round}"
            );
            assert!(memory.allocated_pages() <= 59, "no more than the budget");
        }
    }
    bench.reclaim_all();
    assert_eq!((bench.mapping.nr_pages(), memory.allocated_pages()), (0, 0));
    assert!((0..200).all(|page| look(region.view(), page) == Seen::Nothing));
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn dirty_pages_stay_when_memory_is_wanted() {
    let bench = Bench::new(stamped_disk(8));
    let region = bench.map(0..8, Kind::Shared);
    load(&region, 0, 8 * PAGE_SIZE);
    store(&region, 2 * PAGE + 100, &[9; 10]);
    bench.reclaim_all();
    assert_eq!(bench.mapping.nr_pages(), 1);
    assert_eq!(look(region.view(), 2), Seen::Page(Entry::Writable));
    assert_eq!(look(region.view(), 3), Seen::Nothing);
    assert_eq!(load(&region, 2 * PAGE + 100, 10), [9; 10]);
    bench.sync().expect("synced");
    assert_eq!(look(region.view(), 2), Seen::Page(Entry::ReadOnly));
    bench.reclaim_all();
    assert_eq!(look(region.view(), 2), Seen::Nothing);
    assert_eq!(load(&region, 2 * PAGE + 100, 10), [9; 10]);
}

/// 64 MiB through 4 MiB: loaded, stored to, and loaded again, from the disk at the end.
#[test]
fn a_file_larger_than_the_cache_is_scanned_and_stored_to() {
    const PAGES: u64 = 16 << 10;
    let bytes: Vec<u8> = (0..PAGES).flat_map(stamped).collect();
    let bench = Bench::with(Disk::of_bytes(bytes, PAGE_SIZE), 4 << 20, 1);
    let region = bench.map(0..PAGES, Kind::Shared);
    let mut expected: Vec<u8> = stamped(0);
    for page in 0..PAGES {
        expected[..8].copy_from_slice(&page.to_le_bytes());
        assert_eq!(load(&region, page * PAGE, PAGE_SIZE), expected);
        store(&region, page * PAGE + 16, &(!page).to_le_bytes());
    }
    let memory = bench.memory();
    assert!(memory.allocated_pages() <= 1024, "as many as were paid for");
    bench.sync().expect("synced");
    let contents = bench.disk().contents();
    for page in 0..PAGES {
        expected[..8].copy_from_slice(&page.to_le_bytes());
        expected[16..24].copy_from_slice(&(!page).to_le_bytes());
        assert_eq!(load(&region, page * PAGE, PAGE_SIZE), expected);
        let at = usize::try_from(page * PAGE).expect("small");
        assert_eq!(contents[at..at + PAGE_SIZE], expected);
    }
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn pages_that_were_cached_before_the_first_map_are_written_and_read_again() {
    let bench = Bench::new(stamped_disk(8));
    bench.write(3 * PAGE, &[9; 100]).expect("written");
    let region = bench.map(0..8, Kind::Shared);
    assert_eq!(bench.disk().contents()[3 * PAGE_SIZE..][..100], [9; 100]);
    assert_eq!(bench.mapping.nr_pages(), 0);
    let mut expected = stamped(3);
    expected[..100].fill(9);
    assert_eq!(load(&region, 3 * PAGE, PAGE_SIZE), expected);
}

#[test]
fn a_scan_needs_few_faults() {
    let bench = Bench::with(stamped_disk(4096), 32 << 20, 0);
    bench.read(0, 4096 * PAGE_SIZE).expect("cached");
    let region = bench.map(0..4096, Kind::Shared);
    bench.read(0, 4096 * PAGE_SIZE).expect("cached");
    load(&region, 0, 1);
    let mapped = |page| look(region.view(), page) == Seen::Page(Entry::ReadOnly);
    assert!((0..16).all(mapped) && !mapped(16), "16 at first");
    load(&region, 16 * PAGE, 1);
    assert!((0..80).all(mapped) && !mapped(80), "then 64");
    load(&region, 80 * PAGE, 1);
    assert!((0..592).all(mapped) && !mapped(592), "then 512");
}

#[test]
fn regions_come_and_go_beside_each_other() {
    let bench = Bench::with(stamped_disk(64), SMALL, 1);
    let workers: Vec<_> = (0..4_u64)
        .map(|nr| {
            let bench = Arc::clone(&bench);
            Task::start(move || {
                for round in 0..20 {
                    let region = bench.map(nr * 16..nr * 16 + 16, Kind::Shared);
                    for page in nr * 16..nr * 16 + 16 {
                        assert_eq!(load(&region, page * PAGE, 8), page.to_le_bytes());
                        store(&region, page * PAGE + 100, &[round; 8]);
                    }
                }
            })
        })
        .collect();
    workers.into_iter().for_each(Task::finish);
    bench.sync().expect("synced");
    let contents = bench.disk().contents();
    assert!((0..64).all(|page| contents[page * PAGE_SIZE + 100..][..8] == [19; 8]));
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn few_threads_serve_whatever_waits_and_what_is_cached_waits_for_nothing() {
    let bench = Bench::new(stamped_disk(200));
    let region = Arc::new(bench.map(0..200, Kind::Shared));
    bench.read(0, PAGE_SIZE).expect("cached");
    bench.disk().stop_at(Stop::BeforeRead);
    // Twice as many as there are threads for them, and none is read along with another.
    let waiting: Vec<_> = [40, 60, 80, 100]
        .into_iter()
        .map(|page| {
            let region = Arc::clone(&region);
            Task::start(move || load(&region, page * PAGE, PAGE_SIZE) == stamped(page))
        })
        .collect();
    bench.disk().wait_stopped(2);
    assert_eq!(load(&region, 0, PAGE_SIZE), stamped(0));
    std::thread::sleep(SHORTLY);
    assert!(waiting.iter().all(|task| !task.0.is_finished()));
    bench.disk().go_on();
    assert!(waiting.into_iter().all(Task::finish));
}

#[test]
fn no_memory_outlives_its_page() {
    let bench = Bench::new(stamped_disk(16));
    let regions = [
        bench.map(0..32, Kind::Shared),
        bench.map(0..32, Kind::Private),
    ];
    for region in &regions {
        load(region, 0, 16 * PAGE_SIZE);
        store(region, 3 * PAGE, &[1]);
    }
    let memory = bench.memory();
    let check = || assert_eq!(memory.allocated_pages(), bench.mapping.nr_pages());
    check();
    bench.punch(PAGE + 10..9 * PAGE);
    check();
    bench.write(20 * PAGE + 100, &[7; 100]).expect("written");
    check();
    bench.truncate(10 * PAGE + 1);
    check();
    bench.sync().expect("synced");
    bench.reclaim_all();
    check();
    bench.disk().fail_reads(1);
    assert!(bench.read(9 * PAGE, PAGE_SIZE).is_err());
    check();
    drop(regions);
    bench.truncate(0);
    check();
    assert_eq!(memory.allocated_pages(), 0);
}
