//! What a map of another process does, one thing after the other.

use std::io;
use std::time::Instant;

use pagefence_page_cache::PAGE_SIZE;
use pagefence_page_cache::simulated::Entry;

use super::{load, map, store, wait_until};
use crate::remote::{Advised, PATIENCE, RemoteKind};
use crate::serve_until_over;
use crate::shootdown::Poison;
use crate::tests::disk::Disk;
use crate::tests::eyes::{Seen, look};
use crate::tests::{Bench, PAGE, Task, stamped, stamped_disk};

const MAPPED: Seen = Seen::Page(Entry::ReadOnly);

#[test]
fn loads_stores_reads_and_writes_see_each_other() {
    let bench = Bench::new(stamped_disk(8));
    let (guard, _served) = map(&bench, 2..8, RemoteKind::Shared);
    assert_eq!(guard.size(), 8 * PAGE);
    for page in [3, 2, 7] {
        assert_eq!(load(&guard, page * PAGE, PAGE_SIZE), stamped(page));
    }
    assert_eq!(bench.mapping.dirty_pages(), 0, "loads make nothing dirty");
    let (other, _other_served) = map(&bench, 0..8, RemoteKind::Shared);
    let local = bench.map(0..8, crate::Kind::Shared);
    store(&guard, 4 * PAGE - 2, &[9; 4]);
    assert_eq!(bench.mapping.dirty_pages(), 2);
    assert_eq!(load(&other, 4 * PAGE - 2, 4), [9; 4]);
    assert_eq!(crate::tests::load(&local, 4 * PAGE - 2, 4), [9; 4]);
    assert_eq!(bench.read(4 * PAGE - 2, 4), Ok(vec![9; 4]));
    bench.write(4 * PAGE, &[7; 10]).expect("written");
    assert_eq!(load(&guard, 4 * PAGE - 2, 4), [9, 9, 7, 7]);
    crate::tests::store(&local, 4 * PAGE + 1, &[6]);
    assert_eq!(load(&guard, 4 * PAGE, 3), [7, 6, 7]);
    bench.sync().expect("synced");
    assert_eq!(bench.disk().contents()[4 * PAGE_SIZE..][..3], [7, 6, 7]);
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn stores_are_written_back_and_ask_again() {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let (guard, _served) = map(&bench, 0..8, RemoteKind::Shared);
    let counts = || (bench.mapping.dirty_pages(), bench.disk().reserved());
    for value in 1..20 {
        let start = Instant::now();
        store(&guard, 2 * PAGE - 2, &[value; 4]);
        assert_eq!(counts().0, 2, "it asked");
        bench.sync().expect("synced");
        assert_eq!(counts(), (0, 0));
        let at = 2 * PAGE_SIZE;
        let expected = [0, value, value, value, value, 0];
        assert_eq!(bench.disk().contents()[at - 3..at + 3], expected);
        assert_eq!(look(guard.view(), 1), MAPPED, "protected, not taken out");
        assert!(start.elapsed() < PATIENCE, "nobody waited in vain");
    }
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn a_punch_and_a_reclaim_take_pages_out_of_the_map() {
    let bench = Bench::new(stamped_disk(8));
    let (guard, _served) = map(&bench, 0..8, RemoteKind::Shared);
    load(&guard, 0, 8 * PAGE_SIZE);
    store(&guard, 3 * PAGE, &[9; 100]);
    bench.punch(2 * PAGE..5 * PAGE);
    assert_eq!(look(guard.view(), 3), Seen::Nothing);
    assert_eq!(
        load(&guard, 2 * PAGE, 3 * PAGE_SIZE),
        vec![0; 3 * PAGE_SIZE]
    );
    assert_eq!(load(&guard, 5 * PAGE, PAGE_SIZE), stamped(5));
    bench.sync().expect("synced");
    bench.reclaim_all();
    assert_eq!(bench.mapping.nr_pages(), 0);
    assert!((0..8).all(|page| look(guard.view(), page) == Seen::Nothing));
    assert_eq!(load(&guard, 5 * PAGE, PAGE_SIZE), stamped(5));
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn a_file_larger_than_its_cache_is_scanned_and_stored_to() {
    const PAGES: u64 = 512;
    let bench = Bench::with(stamped_disk(PAGES), crate::tests::SMALL, 1);
    let (guard, _served) = map(&bench, 0..PAGES, RemoteKind::Shared);
    for round in 1..3 {
        for page in 0..PAGES {
            assert_eq!(load(&guard, page * PAGE, 8), page.to_le_bytes());
            store(&guard, page * PAGE + 16, &[round; 8]);
        }
    }
    bench.sync().expect("synced");
    let contents = bench.disk().contents();
    assert!((0..PAGES).all(|page| {
        let at = usize::try_from(page * PAGE).expect("small");
        contents[at..at + 8] == page.to_le_bytes() && contents[at + 16..at + 24] == [2; 8]
    }));
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn private_stores_stay_private_until_a_truncate() {
    let bench = Bench::new(stamped_disk(8));
    let (guard, _served) = map(&bench, 0..8, RemoteKind::Private);
    store(&guard, PAGE, &[9; 10]);
    load(&guard, 2 * PAGE, 1);
    assert_eq!(look(guard.view(), 1), Seen::Page(Entry::Private));
    assert_eq!(bench.mapping.dirty_pages(), 0);
    assert_eq!(bench.read(PAGE, PAGE_SIZE), Ok(stamped(1)));
    let mut copy = stamped(1);
    copy[..10].fill(9);
    bench.write(PAGE, &[4; 20]).expect("written");
    bench.write(2 * PAGE, &[4; 20]).expect("written");
    assert_eq!(load(&guard, PAGE, PAGE_SIZE), copy, "a copy");
    assert_eq!(load(&guard, 2 * PAGE, 20), [4; 20], "no copy");
    bench.punch(0..8 * PAGE);
    assert_eq!(load(&guard, PAGE, PAGE_SIZE), copy);
    assert_eq!(load(&guard, 2 * PAGE, 20), [0; 20]);
    bench.truncate(PAGE);
    assert_eq!(look(guard.view(), 1), Seen::Nothing);
    bench.truncate(8 * PAGE);
    assert_eq!(load(&guard, PAGE, PAGE_SIZE), vec![0; PAGE_SIZE]);
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn a_view_for_loads_sees_what_is_written() {
    let bench = Bench::new(stamped_disk(8));
    let (guard, _served) = map(&bench, 0..8, RemoteKind::ReadOnly);
    assert_eq!(load(&guard, 3 * PAGE, PAGE_SIZE), stamped(3));
    bench.write(3 * PAGE, &[4; 20]).expect("written");
    assert_eq!(load(&guard, 3 * PAGE, 20), [4; 20]);
    bench.punch(3 * PAGE..4 * PAGE);
    assert_eq!(load(&guard, 3 * PAGE, 20), [0; 20]);
    bench.sync().expect("synced");
    bench.reclaim_all();
    assert_eq!(look(guard.view(), 3), Seen::Nothing);
    assert_eq!(load(&guard, 5 * PAGE, PAGE_SIZE), stamped(5));
}

#[test]
fn the_size_is_told_when_it_becomes_less() {
    let bench = Bench::new(stamped_disk(8));
    let (guard, _served) = map(&bench, 0..8, RemoteKind::Shared);
    bench.truncate(3 * PAGE + 5);
    assert_eq!(guard.size(), 3 * PAGE + 5, "before the truncate is over");
    bench.truncate(7 * PAGE);
    assert_eq!(guard.size(), 3 * PAGE + 5, "growth is not told");
    assert_eq!(guard.ask_size().ok(), Some(7 * PAGE));
    assert_eq!(guard.size(), 7 * PAGE);
    bench.truncate(6 * PAGE);
    assert_eq!(guard.size(), 6 * PAGE);
}

/// Neither takes a page of the map away, so that no page is settled for it.
#[test]
fn a_cut_inside_a_page_is_told_whatever_was_told_before() {
    let bench = Bench::new(stamped_disk(1));
    bench.truncate(100);
    let (guard, _served) = map(&bench, 0..1, RemoteKind::Shared);
    bench.truncate(200);
    assert_eq!(guard.ask_size().ok(), Some(200));
    bench.truncate(150);
    assert_eq!(guard.size(), 150, "before the truncate is over");
    bench.truncate(5 * PAGE);
    assert_eq!(guard.ask_size().ok(), Some(5 * PAGE));
    bench.truncate(2 * PAGE + 1);
    assert_eq!(guard.size(), 2 * PAGE + 1, "behind the map");
}

#[test]
fn a_page_past_the_end_works_when_the_file_has_grown_over_it() {
    for kind in [
        RemoteKind::Shared,
        RemoteKind::Private,
        RemoteKind::ReadOnly,
    ] {
        let bench = Bench::new(stamped_disk(3));
        let (guard, served) = map(&bench, 0..8, kind);
        let poison = |page| {
            served.shared.entries.poison(page, Poison::Beyond, || 0);
            wait_until(|| look(guard.view(), page) == Seen::Poison);
        };
        poison(3);
        poison(7);
        bench.truncate(6 * PAGE);
        assert_eq!(load(&guard, 3 * PAGE, PAGE_SIZE), vec![0; PAGE_SIZE]);
        // What is past the end was taken out of a private map, poison as well.
        if kind != RemoteKind::Private {
            assert_eq!(look(guard.view(), 7), Seen::Poison, "still past the end");
        }
        bench.truncate(8 * PAGE);
        assert_eq!(load(&guard, 7 * PAGE, 1), [0]);
    }
}

#[test]
fn the_cure_of_poison_leaves_a_private_copy() {
    let bench = Bench::new(stamped_disk(8));
    let (guard, served) = map(&bench, 0..8, RemoteKind::Private);
    store(&guard, 3 * PAGE + 100, &[9]);
    // It comes late: the page is mapped, and stays.
    let entries = &served.shared.entries;
    entries.poison(3, Poison::failed(Instant::now()), || 0);
    let later = Instant::now() + 2 * PATIENCE;
    assert_eq!(entries.cure_failed(later), None);
    guard
        .populate(0..1)
        .expect("all that was said before is done");
    assert_eq!(load(&guard, 3 * PAGE + 100, 1), [9]);
}

#[test]
fn pages_are_populated() {
    for kind in [
        RemoteKind::Shared,
        RemoteKind::Private,
        RemoteKind::ReadOnly,
    ] {
        let bench = Bench::with(stamped_disk(300), 4 << 20, 0);
        let (guard, _served) = map(&bench, 0..400, kind);
        guard.populate(16..290).expect("populated");
        assert!((16..290).all(|page| look(guard.view(), page) == MAPPED));
        assert!((0..16).all(|page| look(guard.view(), page) == Seen::Nothing));
        guard.populate(0..400).expect("as far as the file goes");
        assert!((0..300).all(|page| look(guard.view(), page) == MAPPED));
        guard.populate(5..5).expect("nothing");
        let outside = guard.populate(0..401).expect_err("not of the view");
        assert_eq!(outside.kind(), io::ErrorKind::InvalidInput);
    }
}

#[test]
fn pages_that_can_not_be_populated_are_not_poisoned() {
    let bench = Bench::new(stamped_disk(20));
    let (guard, _served) = map(&bench, 0..20, RemoteKind::Shared);
    bench.disk().fail_reads(usize::MAX);
    let failed = guard.populate(4..8).expect_err("the disk fails");
    assert_eq!(
        failed.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error())
    );
    assert!((0..20).all(|page| look(guard.view(), page) == Seen::Nothing));
    bench.disk().fail_reads(0);
    guard.populate(4..8).expect("not remembered");
    assert_eq!(load(&guard, 5 * PAGE, PAGE_SIZE), stamped(5));
}

#[test]
fn several_callers_populate() {
    let bench = Bench::with(stamped_disk(256), 4 << 20, 0);
    let (guard, _served) = map(&bench, 0..256, RemoteKind::Shared);
    let callers: Vec<_> = (0..8)
        .map(|nr| {
            let guard = std::sync::Arc::clone(&guard);
            Task::start(move || {
                guard.populate(nr * 32..nr * 32 + 32).expect("populated");
                let mapped = |page| look(guard.view(), page) == MAPPED;
                (nr * 32..nr * 32 + 32).all(mapped)
            })
        })
        .collect();
    assert!(callers.into_iter().all(Task::finish));
}

#[test]
fn advice_is_followed() {
    let bench = Bench::with(stamped_disk(1200), 8 << 20, 0);
    let (guard, _served) = map(&bench, 0..1300, RemoteKind::Shared);
    guard.advise(Advised::Random);
    // In order on the wire.
    guard.populate(0..1).expect("populated");
    bench.disk().take_reads();
    load(&guard, 100 * PAGE, 1);
    let reads = bench.disk().take_reads();
    assert!(reads.iter().eq([&(100..101)]), "no neighbour: {reads:?}");
    guard.advise(Advised::Normal);
    guard.advise(Advised::WillNeed);
    wait_until(|| look(guard.view(), 1199) == MAPPED);
}

#[test]
fn the_daemon_lets_go_when_the_client_ends() {
    let bench = Bench::new(stamped_disk(8));
    let (guard, source) = super::connect(&bench, 0..8, RemoteKind::Shared);
    let server = {
        let (mapping, service) = (bench.mapping.clone(), bench.service.clone());
        Task::start(move || serve_until_over(&mapping, source, &service))
    };
    let guard = guard.finish();
    store(&guard, 3 * PAGE, &[9]);
    assert!(!server.is_over_shortly());
    drop(guard);
    server.finish().expect("served");
    assert_eq!(bench.mapping.dirty_pages(), 1);
    bench.sync().expect("synced");
    assert_eq!(bench.disk().contents()[3 * PAGE_SIZE], 9);
    bench.punch(0..8 * PAGE);
    assert_eq!(bench.memory().allocated_pages(), 0);
}
