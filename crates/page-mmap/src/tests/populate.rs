//! Pages that are mapped before anybody touches them.

use pagefence_lock_order::Held;
use pagefence_page_cache::simulated::Entry;
use pagefence_page_cache::{FaultError, PAGE_SIZE};

use super::disk::{Failed, Stop};
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
    let bench = Bench::with(stamped_disk(1200), 8 << 20, 0);
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
