//! Pages that are mapped before anybody touches them.

use pagefence_lock_order::Held;
use pagefence_page_cache::simulated::Entry;
use pagefence_page_cache::{FaultError, PAGE_SIZE};

use super::disk::{Disk, Failed, Stop};
use super::eyes::{Seen, look};
use super::{Bench, NEVER, PAGE, Task, load, stamped, stamped_disk};
use crate::Kind;

const MAPPED: Seen = Seen::Page(Entry::ReadOnly);

#[test]
fn all_pages_are_there_with_few_reads() {
    for kind in [Kind::Shared, Kind::Private] {
        let bench = Bench::with(stamped_disk(300), 4 << 20, 0);
        let region = bench.map(0..300, kind);
        let held = &mut Held::at_entry();
        region.populate(held, 16..290).expect("populated");
        assert!((16..290).all(|page| look(region.view(), page) == MAPPED));
        assert!((0..16).all(|page| look(region.view(), page) == Seen::Nothing));
        assert!(bench.disk().take_reads().len() < 40);
        assert_eq!(bench.mapping.dirty_pages(), 0);
        assert_eq!(load(&region, 200 * PAGE, PAGE_SIZE), stamped(200));
        region.populate(held, 0..300).expect("the rest");
        assert!((0..300).all(|page| look(region.view(), page) == MAPPED));
    }
}

#[test]
fn it_ends_where_a_page_can_not_be_had_and_poisons_nothing() {
    let bench = Bench::new(stamped_disk(20));
    let region = bench.map(0..40, Kind::Shared);
    let held = &mut Held::at_entry();
    assert_eq!(region.populate(held, 0..40), Err(FaultError::Beyond));
    assert!((0..20).all(|page| look(region.view(), page) == MAPPED));
    bench.punch(0..PAGE);
    bench.reclaim_all();
    bench.disk().fail_reads(1);
    let failed = region.populate(held, 4..8);
    assert_eq!(failed, Err(FaultError::Read(Failed)));
    assert!((0..40).all(|page| look(region.view(), page) == Seen::Nothing));
    region.populate(held, 4..8).expect("not remembered");
}

#[test]
fn a_hint_is_followed_until_the_region_ends() {
    let bench = Bench::with(stamped_disk(1200), 16 << 20, 0);
    let region = bench.map(0..1200, Kind::Shared);
    region.will_need(0..1200);
    let start = std::time::Instant::now();
    while look(region.view(), 1199) != MAPPED {
        assert!(start.elapsed() < NEVER, "the hint is forgotten");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    bench.reclaim_all();
    bench.disk().stop_at(Stop::BeforeRead);
    region.will_need(0..1200);
    bench.disk().wait_stopped(1);
    let ending = Task::start(move || drop(region));
    assert!(!ending.is_over_shortly(), "waits for what is being read");
    bench.disk().go_on();
    ending.finish();
    assert!(bench.mapping.nr_pages() < 1200, "and no longer");
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < NEVER, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Pages of zeros would be most of the cache.
#[test]
fn a_hint_takes_no_memory_for_holes() {
    let bench = Bench::with(Disk::hole(4000 * PAGE, PAGE_SIZE), 1 << 20, 0);
    let data = [10, 11, 2000, 3999];
    for page in data {
        bench.write(page * PAGE, &stamped(page)).expect("written");
    }
    let region = bench.map(0..5000, Kind::Shared);
    assert_eq!(bench.mapping.nr_pages(), 0);
    region.will_need(0..5000);
    wait_until("the hint is forgotten", || {
        data.iter().all(|&page| look(region.view(), page) == MAPPED)
    });
    assert_eq!(bench.mapping.nr_pages(), 4);
    for hole in [0, 9, 12, 1999, 2001, 3998] {
        assert_eq!(look(region.view(), hole), Seen::Nothing);
    }
    // A page of zeros that is there is mapped as others are; and populating is asking for them.
    assert_eq!(load(&region, 500 * PAGE, 8), [0; 8]);
    region
        .populate(&mut Held::at_entry(), 1000..1010)
        .expect("zeros");
    assert!((1000..1010).all(|page| look(region.view(), page) == MAPPED));
}

/// Else what it reads last would take the place of what it has read first, and of everything else.
#[test]
fn hints_take_half_the_cache_at_most() {
    // 15,087 pages. One fault may bring 512 pages, and a window of as many that follow.
    let bench = Bench::with(stamped_disk(14_000), 64 << 20, 0);
    let region = bench.map(0..14_000, Kind::Shared);
    for hint in 0..8 {
        region.will_need(hint * 1700..14_000);
    }
    wait_until("the hint is forgotten", || bench.mapping.nr_pages() >= 7000);
    let mut before = 0;
    wait_until("hints go on and on", || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        std::mem::replace(&mut before, bench.mapping.nr_pages()) == bench.mapping.nr_pages()
    });
    assert!(before < 12_000, "{before} of 14,000");
}
