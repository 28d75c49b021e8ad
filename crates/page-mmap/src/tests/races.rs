//! Faults against those who take pages away, stopped where it hurts: T1 to T8 and T22 of the race
//! matrix, each with simulated and with real faults.

use std::time::Instant;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_page_cache::simulated::{AddressSpace, Entry};
use pagefence_page_cache::{Evict, FaultError, FaultKind, PAGE_SIZE};

use super::disk::{Disk, Failed, Stop};
use super::space::{ALL, Space, Touch, entry_of, fault_of, for_both};
use super::{Bench, NEVER, PAGE, Task, stamped, stamped_disk};
use crate::Kind;

const PAGES: u64 = 8;
const KINDS: [FaultKind; 3] = [FaultKind::Read, FaultKind::Write, FaultKind::PrivateWrite];

for_both! {
    t1_faults_wait_for_the_fence_and_see_the_hole;
    t2_the_fence_waits_for_a_fault_that_fills;
    t3_faults_do_not_wait_for_the_inode_lock;
    t4_failed_fills_leave_no_lock_and_no_page;
    t5_an_invalidator_waits_for_a_fault_with_its_page_locked;
    t6_a_truncate_below_a_fault_that_has_found_its_page_gives_an_error;
    t7_a_private_copy_mapped_between_the_two_passes_of_a_truncate_goes;
    t8_reads_that_fail_end_every_fault;
    t22_faults_in_the_hole_do_not_starve_a_punch;
}

/// A cached file of 8 stamped pages, and a mapping of it.
fn cached<S: Space>(kind: Kind) -> (Arc<Bench>, Arc<S>) {
    let bench = Bench::new(stamped_disk(PAGES));
    let space = S::of(&bench, 0..PAGES, kind);
    bench.read(0, 8 * PAGE_SIZE).expect("read");
    (bench, space)
}

/// What a page of a hole has after `touch`: [`Space::start`] stores zeros.
fn zeros() -> Vec<u8> {
    vec![0; PAGE_SIZE]
}

fn t1_faults_wait_for_the_fence_and_see_the_hole<S: Space>() {
    for (kind, touch) in ALL {
        let (bench, space) = cached::<S>(kind);
        space.load(0, 8 * PAGE_SIZE);
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = bench.mapping.fence(&mut entry, 0..4 * PAGE);
        // K1: dropped from the cache, the blocks are still there.
        let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
        let mapped = (0..PAGES).filter(|&page| space.entry(page).is_some());
        assert_eq!(mapped.collect::<Vec<_>>(), [4, 5, 6, 7]);
        bench.disk().take_reads();
        let toucher = S::start(&space, 2, kind, touch);
        assert!(!toucher.is_over_shortly(), "{kind:?} {touch:?} waits");
        assert_eq!(bench.disk().take_reads(), []);
        // Loads of what is cached need no lock, and fault-around takes nothing from inside.
        let elsewhere = S::start(&space, 5, kind, Touch::Load);
        elsewhere.finish();
        assert_eq!(space.entry(1), None);
        Disk::punch(&evicted);
        drop(fence);
        toucher.finish();
        assert_eq!(space.entry(2), Some(entry_of(kind, touch)));
        assert_eq!(space.load(2 * PAGE, PAGE_SIZE), zeros());
        bench.sync().expect("synced");
        assert_eq!(bench.disk().violations(), 0);
    }
}

fn start_punch(bench: &Arc<Bench>) -> Task<()> {
    let bench = Arc::clone(bench);
    Task::start(move || bench.punch(0..PAGES * PAGE))
}

fn t2_the_fence_waits_for_a_fault_that_fills<S: Space>() {
    for (kind, touch) in ALL {
        for stop in [Stop::BeforeRead, Stop::AfterRead] {
            let bench = Bench::new(stamped_disk(PAGES));
            let space = S::of(&bench, 0..PAGES, kind);
            bench.disk().stop_at(stop);
            let toucher = S::start(&space, 2, kind, touch);
            bench.disk().wait_stopped(1);
            let puncher = start_punch(&bench);
            assert!(!puncher.is_over_shortly(), "the fence waits");
            bench.disk().go_on();
            toucher.finish();
            puncher.finish();
            assert_eq!(bench.disk().violations(), 0, "{kind:?} {touch:?}");
            if fault_of(kind, touch) != FaultKind::PrivateWrite {
                // Touched before the punch or after it.
                assert_eq!(space.load(2 * PAGE, PAGE_SIZE), zeros());
            }
            bench.sync().expect("synced");
            assert_eq!(bench.disk().violations(), 0);
        }
    }
}

fn t3_faults_do_not_wait_for_the_inode_lock<S: Space>() {
    for (kind, touch) in ALL {
        let bench = Bench::new(stamped_disk(PAGES));
        let space = S::of(&bench, 0..PAGES, kind);
        bench.read(0, PAGE_SIZE).expect("read");
        let mut entry = Held::at_entry();
        let (_writer, _held) = bench.inode.write(&mut entry);
        // One that is cached, and one that is not.
        for page in [0, 5] {
            S::start(&space, page, kind, touch).finish();
            assert_eq!(space.entry(page), Some(entry_of(kind, touch)));
        }
    }
}

fn t4_failed_fills_leave_no_lock_and_no_page<S: Space>() {
    for (kind, fault) in [
        (Kind::Shared, FaultKind::Read),
        (Kind::Shared, FaultKind::Write),
        (Kind::Private, FaultKind::PrivateWrite),
    ] {
        let bench = Bench::new(stamped_disk(PAGES));
        let space = S::of(&bench, 0..PAGES, kind);
        bench.disk().fail_reads(1);
        assert_eq!(space.fault(3, fault), Err(FaultError::Read(Failed)));
        assert_eq!((bench.mapping.nr_pages(), space.entry(3)), (0, None));
        start_punch(&bench).finish();
        assert_eq!(space.load(3 * PAGE, PAGE_SIZE), zeros(), "not remembered");
    }
}

/// Takes everything away, or writes it out first.
fn start_invalidator(bench: &Arc<Bench>, how: Option<Evict>) -> Task<()> {
    let bench = Arc::clone(bench);
    Task::start(move || {
        let Some(how) = how else {
            return bench.truncate(0);
        };
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = bench.mapping.fence(&mut entry, 0..PAGES * PAGE);
        let _evicted = fence.evict(&mut held, how).expect("evicted");
    })
}

fn t5_an_invalidator_waits_for_a_fault_with_its_page_locked<S: Space>() {
    for (kind, touch) in ALL {
        for how in [None, Some(Evict::Discard), Some(Evict::WriteFirst)] {
            let (bench, space) = cached::<S>(kind);
            space.stop();
            // K6: locked, and not mapped.
            let toucher = S::start(&space, 3, kind, touch);
            space.wait_stopped(1);
            let invalidator = start_invalidator(&bench, how);
            assert!(
                !invalidator.is_over_shortly(),
                "{how:?} waits for {touch:?}"
            );
            // Reclaim does not wait, nor take it.
            bench.reclaim_all();
            assert_eq!(bench.mapping.next_cached(3 * PAGE), Some(3 * PAGE));
            space.finish(vec![toucher]);
            invalidator.finish();
            let keeps_copy = kind == Kind::Private && touch == Touch::Store && how.is_some();
            assert_eq!(space.entry(3), keeps_copy.then_some(Entry::Private));
            assert_eq!(bench.mapping.next_cached(0), None);
            assert_eq!(bench.disk().violations(), 0);
        }
    }
}

fn t6_a_truncate_below_a_fault_that_has_found_its_page_gives_an_error<S: Space>() {
    for fault in KINDS {
        let kind = if fault == FaultKind::PrivateWrite {
            Kind::Private
        } else {
            Kind::Shared
        };
        let (bench, space) = cached::<S>(kind);
        // Another one's fault has the page locked.
        let other = Arc::new(AddressSpace::shared(&bench.mapping, 3..4));
        other.stop();
        let holder = <AddressSpace<Disk> as Space>::start(&other, 3, kind, Touch::Load);
        other.wait_stopped(1);
        let used = bench.cache.usage().used_bytes;
        // K5: found, and not locked.
        let late = {
            let space = Arc::clone(&space);
            Task::start(move || space.fault(3, fault))
        };
        assert!(!late.is_over_shortly(), "waits for the page");
        // The first step of a truncate: its page is still there.
        bench.disk().set_size(3 * PAGE);
        other.go_on();
        assert_eq!(late.finish(), Err(FaultError::Beyond));
        // The size was looked at when the holder had its lock: it is mapped there.
        holder.finish();
        assert_eq!((space.entry(3), bench.mapping.dirty_pages()), (None, 0));
        assert_eq!(bench.cache.usage().used_bytes, used);
        bench.truncate(3 * PAGE);
        assert_eq!(other.entry(3), None);
        let one = used / PAGES;
        let left = bench.cache.usage().used_bytes;
        assert_eq!(left, used - 5 * one, "released (S4.D1)");
    }
}

fn t7_a_private_copy_mapped_between_the_two_passes_of_a_truncate_goes<S: Space>() {
    for is_truncate in [true, false] {
        let (bench, space) = cached::<S>(Kind::Private);
        space.stop();
        // K6: the size is checked; the copy is made and mapped when this goes on.
        let toucher = S::start(&space, 3, Kind::Private, Touch::Store);
        space.wait_stopped(1);
        let how = (!is_truncate).then_some(Evict::Discard);
        let invalidator = start_invalidator(&bench, how);
        if is_truncate {
            // K17: past the first pass.
            space.wait_unmapped();
        }
        assert!(!invalidator.is_over_shortly(), "the page is locked");
        space.finish(vec![toucher]);
        invalidator.finish();
        let expected = (!is_truncate).then_some(Entry::Private);
        assert_eq!(space.entry(3), expected, "a punch keeps it (S4.15)");
        let again = space.fault(3, FaultKind::Read);
        assert_eq!(again.is_err(), is_truncate);
    }
}

fn t8_reads_that_fail_end_every_fault<S: Space>() {
    for fault in KINDS {
        let kind = if fault == FaultKind::PrivateWrite {
            Kind::Private
        } else {
            Kind::Shared
        };
        let bench = Bench::new(stamped_disk(PAGES));
        let space = S::of(&bench, 0..PAGES, kind);
        bench.disk().fail_reads(usize::MAX);
        let faults: Vec<_> = (0..8)
            .map(|_| {
                let space = Arc::clone(&space);
                Task::start(move || space.fault(3, fault))
            })
            .collect();
        for fault in faults {
            assert_eq!(fault.finish(), Err(FaultError::Read(Failed)));
        }
        assert_eq!(bench.disk().take_reads().len(), 8, "one try each");
        assert_eq!((bench.mapping.nr_pages(), space.entry(3)), (0, None));
        bench.disk().fail_reads(0);
        assert_eq!(space.fault(3, fault), Ok(()), "not remembered");
        assert_eq!(space.load(3 * PAGE, PAGE_SIZE), stamped(3));
        start_punch(&bench).finish();
    }
}

fn t22_faults_in_the_hole_do_not_starve_a_punch<S: Space>() {
    let bench = Bench::new(stamped_disk(PAGES));
    let space = S::of(&bench, 0..PAGES, Kind::Shared);
    let stop = Arc::new(AtomicBool::new(false));
    let touches = Arc::new(AtomicU64::new(0));
    let faulters: Vec<_> = (0..8)
        .map(|seed| {
            let (space, stop) = (Arc::clone(&space), Arc::clone(&stop));
            let touches = Arc::clone(&touches);
            Task::start(move || {
                let mut at: u64 = seed;
                while !stop.load(Ordering::SeqCst) {
                    at = (at * 5 + 3) % PAGES;
                    if at.is_multiple_of(2) {
                        space.load(at * PAGE, 8);
                    } else {
                        space.store(at * PAGE + 8 * seed, &[1; 8]);
                    }
                    touches.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let start = Instant::now();
    let mut punches = 0;
    // Neither side starves the other.
    while punches < 100 || touches.load(Ordering::SeqCst) < 1000 {
        bench.punch(0..PAGES * PAGE);
        punches += 1;
        assert!(
            start.elapsed() < NEVER,
            "{punches} punches, {touches:?} touches"
        );
    }
    stop.store(true, Ordering::SeqCst);
    faulters.into_iter().for_each(Task::finish);
    bench.sync().expect("synced");
    assert_eq!(bench.disk().violations(), 0);
}
