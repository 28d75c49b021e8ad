//! Several programs map a file, and each takes its time to give a page up: they are waited for together, and
//! only by who needs those pages.

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::{Arc, Mutex};

use super::device::{Device, TestMapping};
use super::{SMALL, config, read, sync, write, write_direct};
use crate::backing::PAGE_SIZE;
use crate::mutants::Mutants;
use crate::{
    Access, Answer, CannotMap, Evict, FaultKind, MapTarget, MappedPage, MappedRange, PageCache,
    PageRun, Unmap,
};

const PAGE: u64 = PAGE_SIZE as u64;
const PAGES: u64 = 16;
const PROGRAMS: usize = 3;

/// Questions to the programs, as the test sees them.
#[derive(Debug, Default)]
struct Seen {
    asked: Vec<Range<u64>>,
    /// Asked, and not waited for.
    outstanding: usize,
    /// The most that ever were.
    most: usize,
}

/// A program that has to be asked, and answers when it is waited for.
#[derive(Debug, Default)]
struct Program {
    seen: Arc<Mutex<Seen>>,
    /// Pages that it would have to be waited for.
    busy: Range<u64>,
}

impl Program {
    fn ask(&self, pages: Range<u64>) -> Answer<'_> {
        let mut seen = self.seen.lock();
        seen.asked.push(pages);
        seen.outstanding += 1;
        seen.most = seen.most.max(seen.outstanding);
        Answer::awaited(|| self.seen.lock().outstanding -= 1)
    }
}

impl MapTarget for Program {
    fn map(&self, _: &PageRun<'_>, _: Access) -> Result<(), CannotMap> {
        Ok(())
    }

    fn map_copy(&self, _: &MappedPage) -> Result<(), CannotMap> {
        Ok(())
    }

    fn unmap(&self, pages: Range<u64>, _: Unmap) -> Answer<'_> {
        self.ask(pages)
    }

    fn write_protect(&self, pages: Range<u64>) -> Answer<'_> {
        self.ask(pages)
    }

    fn is_free(&self, pages: Range<u64>) -> bool {
        pages.end <= self.busy.start || self.busy.end <= pages.start
    }

    fn around(&self, page: u64) -> Range<u64> {
        page..page + 1
    }

    fn grown(&self, _: u64) -> Answer<'_> {
        self.ask(0..PAGES)
    }
}

struct Bench {
    seen: Arc<Mutex<Seen>>,
    programs: Vec<MappedRange<Device>>,
    mapping: Arc<TestMapping>,
    cache: Arc<PageCache>,
}

impl Bench {
    /// `count` programs that map all of a file, and want to be waited for when they are to give `busy` up.
    fn new(mutants: Mutants, count: usize, busy: &Range<u64>) -> Self {
        let cache = PageCache::with_mutants(config(SMALL), mutants).expect("a cache");
        let pages = usize::try_from(PAGES).expect("few");
        let mapping = Device::stamped(pages, PAGE_SIZE).mapped(&cache);
        let seen = Arc::<Mutex<Seen>>::default();
        let program = |_| {
            let program = Program {
                seen: Arc::clone(&seen),
                busy: busy.clone(),
            };
            // Past the end as well.
            mapping.map_range(0..2 * PAGES, Arc::new(program))
        };
        Self {
            programs: (0..count).map(program).collect(),
            seen,
            mapping,
            cache,
        }
    }

    fn fault(&self, pages: impl IntoIterator<Item = u64>, kind: FaultKind) {
        for page in pages {
            for program in &self.programs {
                let served = program.fault(&mut Held::at_entry(), page, kind);
                served.expect("mapped");
            }
        }
    }

    /// The most questions that were outstanding at a time during `what`; none is afterwards.
    fn most_outstanding(&self, what: impl FnOnce(&TestMapping)) -> usize {
        self.seen.lock().most = 0;
        what(&self.mapping);
        let seen = self.seen.lock();
        assert_eq!(seen.outstanding, 0, "somebody did not wait");
        seen.most
    }

    fn take_asked(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.seen.lock().asked)
    }

    /// The pages that are in the cache.
    fn cached(&self) -> Vec<u64> {
        let is_cached = |&page: &u64| self.mapping.pages().get(page).is_some();
        (0..PAGES).filter(is_cached).collect()
    }
}

fn evict(mapping: &TestMapping, pages: Range<u64>, how: Evict) {
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, pages.start * PAGE..pages.end * PAGE);
    let _evicted = fence.evict(&mut held, how).expect("evicted");
}

fn cut(mapping: &TestMapping, pages: u64) {
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, pages * PAGE..u64::MAX);
    let shorten = || mapping.backing().set_size(pages * PAGE);
    let _evicted = fence
        .evict_with(&mut held, Evict::Discard, shorten)
        .expect("evicted");
}

/// What takes pages away or protects them, with the runs of pages that it concerns.
type Case = (&'static str, FaultKind, fn(&TestMapping), usize);

const CASES: [Case; 6] = [
    (
        "a fence",
        FaultKind::Read,
        |mapping| evict(mapping, 0..PAGES, Evict::Discard),
        2,
    ),
    (
        "a fence that writes first",
        FaultKind::Write,
        |mapping| evict(mapping, 0..PAGES, Evict::WriteFirst),
        2,
    ),
    (
        "writing back",
        FaultKind::Write,
        |mapping| sync(mapping).expect("synced"),
        2,
    ),
    (
        "a direct write",
        FaultKind::Read,
        |mapping| {
            let bytes = vec![7; 8 * PAGE_SIZE];
            write_direct(mapping, 0, &bytes).expect("written");
        },
        2,
    ),
    (
        "a truncate",
        FaultKind::PrivateWrite,
        |mapping| cut(mapping, 1),
        2,
    ),
    (
        "growth",
        FaultKind::Read,
        |mapping| {
            write(mapping, PAGES * PAGE, &[1]).expect("written");
        },
        1,
    ),
];

#[test]
fn all_who_map_a_page_are_asked_before_one_is_waited_for() {
    for asks_in_turn in [false, true] {
        for (name, kind, what, runs) in CASES {
            let mutants = Mutants {
                asks_in_turn,
                ..Mutants::default()
            };
            let bench = Bench::new(mutants, PROGRAMS, &(0..0));
            bench.fault([1, 2, 5], kind);
            let most = bench.most_outstanding(what);
            let all = if asks_in_turn { 1 } else { PROGRAMS * runs };
            assert_eq!(most, all, "{name}");
        }
    }
}

#[test]
fn pieces_that_are_written_one_after_the_other_are_protected_in_one_round() {
    let bench = Bench::new(Mutants::default(), PROGRAMS, &(0..0));
    let pages = || (0..PAGES).step_by(2);
    for turn in 0..3 {
        bench.fault(pages(), FaultKind::Write);
        let most = bench.most_outstanding(|mapping| sync(mapping).expect("synced"));
        assert_eq!(most, PROGRAMS * pages().count(), "turn {turn}");
        let asked = bench.take_asked();
        assert_eq!(asked.len(), most, "nobody is asked twice: {asked:?}");
    }
    assert_eq!(bench.mapping.dirty_pages(), 0);
    // Nobody stores to them.
    write(&bench.mapping, 0, &[1; 16 * PAGE_SIZE]).expect("written");
    let most = bench.most_outstanding(|mapping| sync(mapping).expect("synced"));
    assert_eq!(most, 0);
}

#[test]
fn reclaim_passes_over_pages_that_it_would_have_to_wait_for() {
    for reclaim_asks in [false, true] {
        let mutants = Mutants {
            reclaim_asks,
            ..Mutants::default()
        };
        let bench = Bench::new(mutants, 1, &(3..5));
        bench.fault(0..8, FaultKind::Read);
        read(&bench.mapping, 8 * PAGE, 4 * PAGE_SIZE).expect("read");
        while bench.cache.shared().clock.reclaim(1, false) > 0 {}
        let asked = bench.take_asked();
        let has_asked = asked.iter().any(|pages| (3..5).contains(&pages.start));
        assert_eq!(has_asked, reclaim_asks);
        if reclaim_asks {
            continue;
        }
        assert_eq!(bench.cached(), [3, 4], "only they are left");
        assert_eq!(bench.cache.shared().clock.reclaim(2, false), 0);
        assert!(bench.take_asked().is_empty());
        // Somebody who has nothing else waits, for one.
        assert_eq!(bench.cache.shared().clock.reclaim(2, true), 1);
        assert_eq!(bench.take_asked().len(), 1);
        assert_eq!(bench.cached().len(), 1);
    }
}

#[test]
fn who_has_a_frame_waits_for_nobody_to_get_more() {
    let bench = Bench::new(Mutants::default(), 1, &(0..PAGES));
    bench.fault(0..PAGES, FaultKind::Read);
    let shared = bench.cache.shared();
    let mut frames = shared.take_all_frames();
    frames.pop();
    assert_eq!(shared.allocate(4).len(), 1);
    assert!(bench.take_asked().is_empty());
    let free = shared.take_all_frames();
    assert_eq!(shared.allocate(4).len(), 1, "asked for one page");
    assert_eq!(bench.take_asked().len(), 1);
    drop((frames, free));
}
