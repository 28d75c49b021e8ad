//! Faults against everything that takes pages away, stopped where it hurts.

use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_lock_order::{Held, OrderedRwLock};

use super::device::{Device, Failed, Stop, TestMapping};
use super::edges::{punch, truncate};
use super::{SMALL, Task, config, read, stamped, sync, write};
use crate::backing::PAGE_SIZE;
use crate::folio::PageLockGuard;
use crate::reclaim::Pressure;
use crate::simulated::{AddressSpace, Entry};
use crate::{Evict, FaultError, FaultKind, PageCache};

const PAGE: u64 = PAGE_SIZE as u64;
const PAGES: u64 = 8;
const KINDS: [FaultKind; 3] = [FaultKind::Read, FaultKind::Write, FaultKind::PrivateWrite];

pub(super) type Space = AddressSpace<Device>;

pub(super) fn setup(device: Device) -> (Arc<PageCache>, Arc<TestMapping>, Arc<Space>) {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = device.mapped(&cache);
    mapping.backing().let_holes_be_read();
    let space = Arc::new(Space::shared(&mapping, 0..PAGES));
    (cache, mapping, space)
}

fn stamped_file() -> (Arc<PageCache>, Arc<TestMapping>, Arc<Space>) {
    setup(Device::stamped(8, PAGE_SIZE))
}

pub(super) fn load(space: &Space, offset: u64, len: usize) -> Result<Vec<u8>, FaultError<Failed>> {
    let mut bytes = vec![0xEE; len];
    space.load(offset, &mut bytes).map(|()| bytes)
}

pub(super) fn start_fault(
    space: &Arc<Space>,
    index: u64,
    kind: FaultKind,
) -> Task<Result<(), FaultError<Failed>>> {
    let space = Arc::clone(space);
    Task::start(move || space.fault(index, kind))
}

fn entry_of(kind: FaultKind) -> Entry {
    match kind {
        FaultKind::Read => Entry::ReadOnly,
        FaultKind::Write => Entry::Writable,
        FaultKind::PrivateWrite => Entry::Private,
    }
}

#[test]
fn loads_and_stores_go_through_the_cache() {
    let (cache, mapping, space) = stamped_file();
    assert_eq!(load(&space, PAGE + 10, 2 * PAGE_SIZE), {
        let file: Vec<u8> = (0..8).flat_map(|page| stamped(page, 1)).collect();
        Ok(file[PAGE_SIZE + 10..][..2 * PAGE_SIZE].to_vec())
    });
    assert_eq!(mapping.dirty_pages(), 0, "loads make nothing dirty");
    space.store(3 * PAGE - 2, &[9; 4]).expect("stored");
    assert_eq!(mapping.dirty_pages(), 2);
    assert_eq!(read(&mapping, 3 * PAGE - 2, 4), Ok(vec![9; 4]));
    write(&mapping, 3 * PAGE, &[7; 10]).expect("written");
    assert_eq!(load(&space, 3 * PAGE - 2, 4), Ok(vec![9, 9, 7, 7]));
    space.check();
    sync(&mapping).expect("synced");
    assert_eq!(space.entry(2), Some(Entry::ReadOnly), "the next one asks");
    space.store(3 * PAGE - 1, &[8]).expect("stored");
    assert_eq!(mapping.dirty_pages(), 1, "dirty again");
    sync(&mapping).expect("synced");
    let contents = mapping.backing().contents();
    assert_eq!(contents[3 * PAGE_SIZE - 2..][..4], [9, 8, 7, 7]);
    drop(space);
    cache.shrink(u64::MAX);
    assert_eq!(mapping.nr_pages(), 0, "nothing is kept");
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn private_stores_stay_private() {
    let (_cache, mapping, shared) = stamped_file();
    let private = Space::private(&mapping, 0..PAGES);
    private.store(PAGE, &[9; 10]).expect("stored");
    assert_eq!(private.entry(1), Some(Entry::Private));
    assert_eq!(mapping.dirty_pages(), 0);
    assert_eq!(load(&shared, PAGE, 10), Ok(stamped(1, 1)[..10].to_vec()));
    shared.store(PAGE, &[4; 20]).expect("stored");
    let mut expected = stamped(1, 1);
    expected[..10].fill(9);
    assert_eq!(load(&private, PAGE, PAGE_SIZE), Ok(expected), "a copy");
    // Stores of others are seen where there is no copy.
    shared.store(2 * PAGE, &[4; 20]).expect("stored");
    assert_eq!(load(&private, 2 * PAGE, 20), Ok(vec![4; 20]));
    shared.check();
    private.check();
}

#[test]
fn faults_past_the_end_fail_and_others_around_it_do_not() {
    let (_cache, mapping, _) = setup(Device::stamped(2, PAGE_SIZE));
    let space = Space::shared(&mapping, 0..u64::MAX);
    for kind in KINDS {
        for index in [2, 3, u64::MAX / PAGE, u64::MAX - 1] {
            assert_eq!(space.fault(index, kind), Err(FaultError::Beyond));
        }
    }
    let narrow = Space::shared(&mapping, 1..2);
    assert_eq!(narrow.fault(0, FaultKind::Read), Err(FaultError::Beyond));
    assert_eq!(narrow.fault(1, FaultKind::Read), Ok(()));
    assert_eq!(narrow.entries(), 1, "nothing outside of what is mapped");
    assert_eq!(space.fault(0, FaultKind::Read), Ok(()));
    assert_eq!(space.entries(), 2, "the neighbour came along");
}

#[test]
fn a_load_maps_cached_neighbours_and_reads_those_that_follow() {
    let (_cache, mapping, _) = setup(Device::stamped(40, PAGE_SIZE));
    let space = Space::shared(&mapping, 0..40);
    write(&mapping, 16 * PAGE, &[1; 2 * PAGE_SIZE]).expect("written");
    space.fault(20, FaultKind::Read).expect("mapped");
    assert_eq!(super::only(mapping.backing().take_reads()), 20..32);
    assert_eq!(space.entries(), 12, "20 to 31");
    space.fault(17, FaultKind::Read).expect("mapped");
    assert_eq!(space.entries(), 14, "16 and 17 as well: 18 was not cached");
    assert!((16..32).all(|page| {
        let expected = (!(18..20).contains(&page)).then_some(Entry::ReadOnly);
        space.entry(page) == expected
    }));
    space.fault(33, FaultKind::Write).expect("mapped");
    assert_eq!(space.entries(), 15, "stores get their page alone");
    space.check();
}

#[test]
fn fault_around_takes_no_page_that_is_locked_or_beyond() {
    let (_cache, mapping, space) = stamped_file();
    read(&mapping, 0, 8 * PAGE_SIZE).expect("read");
    let busy = mapping.pages().get(3).expect("cached");
    let guard = PageLockGuard::try_lock(&busy).expect("free");
    mapping.backing().set_size(6 * PAGE);
    space
        .fault(0, FaultKind::Read)
        .expect("mapped, and never waits");
    let mapped = || -> Vec<u64> {
        (0..PAGES)
            .filter(|&page| space.entry(page).is_some())
            .collect()
    };
    assert_eq!(mapped(), [0, 1, 2]);
    space.fault(5, FaultKind::Read).expect("mapped");
    assert_eq!(mapped(), [0, 1, 2, 4, 5]);
    drop(guard);
}

#[test]
fn t1_faults_wait_for_the_fence_and_see_the_hole() {
    for kind in KINDS {
        let (_cache, mapping, space) = stamped_file();
        load(&space, 0, 8 * PAGE_SIZE).expect("loaded");
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = mapping.fence(&mut entry, 0..4 * PAGE);
        // K1: dropped from the cache, the blocks are still there.
        let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
        assert_eq!(space.entries(), 4, "those of the range are gone");
        mapping.backing().take_reads();
        let fault = start_fault(&space, 2, kind);
        assert!(!fault.is_over_shortly(), "{kind:?} waits");
        assert_eq!(mapping.backing().take_reads(), []);
        // Fault-around asks for no lock and finds nothing.
        let elsewhere = start_fault(&space, 5, FaultKind::Read);
        elsewhere.finish().expect("mapped");
        assert_eq!(space.entry(1), None);
        Device::punch(&evicted);
        drop(fence);
        fault.finish().expect("mapped");
        assert_eq!(space.entry(2), Some(entry_of(kind)));
        assert_eq!(load(&space, 2 * PAGE, PAGE_SIZE), Ok(vec![0; PAGE_SIZE]));
        space.check();
        sync(&mapping).expect("synced");
        assert_eq!(mapping.backing().violations(), 0);
    }
}

#[test]
fn t2_the_fence_waits_for_a_fault_that_fills() {
    for kind in KINDS {
        for stop in [Stop::BeforeIo, Stop::AfterIo] {
            let (_cache, mapping, space) = stamped_file();
            mapping.backing().stop_at(stop);
            let fault = start_fault(&space, 2, kind);
            mapping.backing().wait_stopped(1);
            let puncher = start_punch(&mapping);
            assert!(!puncher.is_over_shortly(), "the fence waits");
            mapping.backing().go_on();
            fault.finish().expect("mapped");
            puncher.finish();
            assert_eq!(mapping.backing().violations(), 0);
            if kind != FaultKind::PrivateWrite {
                // Mapped before the punch or after it.
                let seen = load(&space, 2 * PAGE, PAGE_SIZE);
                assert_eq!(seen, Ok(vec![0; PAGE_SIZE]));
            }
            space.check();
            assert!(mapping.is_idle());
        }
    }
}

fn start_punch(mapping: &Arc<TestMapping>) -> Task<()> {
    let mapping = Arc::clone(mapping);
    Task::start(move || punch(&mapping, 0..8 * PAGE))
}

/// Takes everything away, or writes it out first.
fn start_invalidator(mapping: &Arc<TestMapping>, how: Option<Evict>) -> Task<()> {
    let mapping = Arc::clone(mapping);
    Task::start(move || {
        let Some(how) = how else {
            return truncate(&mapping, 0);
        };
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = mapping.fence(&mut entry, 0..8 * PAGE);
        let _evicted = fence.evict(&mut held, how).expect("evicted");
    })
}

#[test]
fn t5_an_invalidator_waits_for_a_fault_with_its_page_locked() {
    for kind in KINDS {
        for how in [None, Some(Evict::Discard), Some(Evict::WriteFirst)] {
            let (cache, mapping, space) = stamped_file();
            read(&mapping, 0, 8 * PAGE_SIZE).expect("read");
            space.stop();
            // K6: locked, and not mapped.
            let fault = start_fault(&space, 3, kind);
            space.wait_stopped(1);
            let invalidator = start_invalidator(&mapping, how);
            assert!(!invalidator.is_over_shortly(), "{how:?} waits for {kind:?}");
            // So does reclaim, without waiting.
            cache.shared().clock.sweep(100, 100, Pressure::Any);
            assert!(mapping.pages().get(3).is_some(), "not while it is locked");
            space.go_on();
            fault.finish().expect("mapped");
            invalidator.finish();
            let keeps_copy = kind == FaultKind::PrivateWrite && how.is_some();
            assert_eq!(space.entry(3), keeps_copy.then_some(Entry::Private));
            assert_eq!(mapping.pages().get(3).map(|folio| folio.index), None);
            space.check();
            assert_eq!(mapping.backing().violations(), 0);
        }
    }
}

#[test]
fn t6_a_truncate_below_a_fault_that_has_found_its_page_gives_an_error() {
    for kind in KINDS {
        let (_cache, mapping, space) = stamped_file();
        read(&mapping, 0, 8 * PAGE_SIZE).expect("read");
        let folio = mapping.pages().get(3).expect("cached");
        let references = Arc::strong_count(&folio);
        // K5: found, and not locked.
        let guard = PageLockGuard::try_lock(&folio).expect("free");
        let fault = start_fault(&space, 3, kind);
        assert!(!fault.is_over_shortly(), "waits for the page");
        // The first step of a truncate: its page is still there.
        mapping.backing().set_size(3 * PAGE);
        drop(guard);
        assert_eq!(fault.finish(), Err(FaultError::Beyond));
        assert_eq!(Arc::strong_count(&folio), references, "released (S4.D1)");
        assert!(PageLockGuard::try_lock(&folio).is_some(), "unlocked");
        assert_eq!((space.entries(), mapping.dirty_pages()), (0, 0));
        truncate(&mapping, 3 * PAGE);
        assert_eq!(Arc::strong_count(&folio), references - 1, "the cache's");
    }
}

#[test]
fn t7_a_private_copy_mapped_between_the_two_passes_of_a_truncate_goes() {
    for is_truncate in [true, false] {
        let (_cache, mapping, _) = stamped_file();
        let space = Arc::new(Space::private(&mapping, 0..PAGES));
        read(&mapping, 0, 8 * PAGE_SIZE).expect("read");
        space.stop();
        // K6: the size is checked, the copy is made, the entry is not there.
        let fault = start_fault(&space, 3, FaultKind::PrivateWrite);
        space.wait_stopped(1);
        let how = (!is_truncate).then_some(Evict::Discard);
        let invalidator = start_invalidator(&mapping, how);
        if is_truncate {
            // K17: past the first pass.
            space.wait_unmaps(1);
        }
        assert!(!invalidator.is_over_shortly(), "the page is locked");
        space.go_on();
        fault.finish().expect("mapped");
        invalidator.finish();
        let expected = (!is_truncate).then_some(Entry::Private);
        assert_eq!(space.entry(3), expected, "a punch keeps it (S4.15)");
        let again = load(&space, 3 * PAGE, 10);
        assert_eq!(again.is_err(), is_truncate);
    }
}

#[test]
fn private_copies_past_an_end_that_moved_after_the_eviction_go() {
    let (_cache, mapping, _) = stamped_file();
    let space = Space::private(&mapping, 0..PAGES);
    for page in [2, 6] {
        space.store(page * PAGE, &[9]).expect("stored");
    }
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, 0..8 * PAGE);
    let _evicted = fence.evict(&mut held, Evict::WriteFirst).expect("evicted");
    assert_eq!(space.entries(), 2, "a shift keeps them");
    mapping.backing().set_size(4 * PAGE);
    drop(fence);
    assert_eq!(space.entry(2), Some(Entry::Private));
    assert_eq!(space.entry(6), None);
}

#[test]
fn t8_reads_that_fail_end_every_fault() {
    for kind in KINDS {
        let (_cache, mapping, space) = stamped_file();
        mapping.backing().fail_reads(usize::MAX);
        let faults: Vec<_> = (0..8).map(|_| start_fault(&space, 3, kind)).collect();
        for fault in faults {
            assert_eq!(fault.finish(), Err(FaultError::Read(Failed)));
        }
        assert_eq!(mapping.backing().take_reads().len(), 8, "one try each");
        assert_eq!((mapping.nr_pages(), space.entries()), (0, 0));
        mapping.backing().fail_reads(0);
        assert_eq!(space.fault(3, kind), Ok(()), "not remembered");
        start_punch(&mapping).finish();
    }
}

#[test]
fn a_fault_without_space_is_an_error_and_makes_nothing_dirty() {
    let (_cache, mapping, space) = setup(Device::hole(8 * PAGE, PAGE_SIZE));
    mapping.backing().limit_space(1, &[]);
    space.store(0, &[1; 10]).expect("stored");
    let refused = space.store(PAGE, &[1; 10]);
    assert_eq!(refused, Err(FaultError::NoSpace(Failed)));
    assert_eq!(load(&space, PAGE, 10), Ok(vec![0; 10]), "loads go on");
    assert_eq!(
        space.fault(1, FaultKind::Write),
        Err(FaultError::NoSpace(Failed))
    );
    assert_eq!(space.entry(1), Some(Entry::ReadOnly), "as it was");
    assert_eq!(
        (mapping.dirty_pages(), mapping.backing().reserved()),
        (1, 1)
    );
    mapping.backing().limit_space(0, &[1, 0, 0]);
    space.store(PAGE, &[2; 10]).expect("room was made");
    mapping.backing().limit_space(0, &[1, 0, 0, 0]);
    let refused = space.store(2 * PAGE, &[1; 10]);
    assert_eq!(refused, Err(FaultError::NoSpace(Failed)), "three times");
    sync(&mapping).expect("what was accepted is written");
    assert_eq!(mapping.backing().violations(), 0);
    start_punch(&mapping).finish();
}

#[test]
fn errors_after_the_page_was_locked_leave_no_lock() {
    for kind in KINDS {
        let (_cache, mapping, space) = stamped_file();
        space.fail_faults(1);
        let failed = space.fault(2, kind);
        assert_eq!(failed, Err(FaultError::CannotMap(crate::CannotMap)));
        assert_eq!(space.entry(2), None);
        let folio = mapping.pages().get(2).expect("cached");
        assert!(
            PageLockGuard::try_lock(&folio).is_some(),
            "unlocked (S4.10)"
        );
        sync(&mapping).expect("synced");
        start_punch(&mapping).finish();
    }
}

#[test]
fn without_a_frame_a_fault_waits_with_nothing_held() {
    for kind in KINDS {
        let (cache, mapping, space) = stamped_file();
        let taken = cache.shared().take_all_frames();
        let fault = start_fault(&space, 3, kind);
        assert!(!fault.is_over_shortly(), "no frame, no page");
        start_punch(&mapping).finish();
        drop(taken);
        cache.shared().frame_events.notify();
        assert_eq!(fault.finish(), Ok(()));
    }
}

#[test]
fn faults_on_different_pages_do_not_wait_for_each_other() {
    let (_cache, _mapping, space) = stamped_file();
    space.stop();
    let first = start_fault(&space, 1, FaultKind::Write);
    let second = start_fault(&space, 3, FaultKind::PrivateWrite);
    space.wait_stopped(2);
    // A load takes its neighbours along if it can have them at once; so it comes last here.
    let third = start_fault(&space, 2, FaultKind::Read);
    // S4.18: all three have their page locked.
    space.wait_stopped(3);
    space.go_on();
    for fault in [first, second, third] {
        fault.finish().expect("mapped");
    }
}

#[test]
fn a_fault_needs_no_inode_lock() {
    let (_cache, _mapping, space) = stamped_file();
    let inode: OrderedRwLock<pagefence_lock_order::levels::Inode, ()> = OrderedRwLock::new(7, ());
    let mut entry = Held::at_entry();
    let (_writer, _held) = inode.write(&mut entry);
    for kind in KINDS {
        start_fault(&space, 3, kind).finish().expect("mapped");
    }
}

#[test]
fn reclaim_unmaps_clean_pages_and_leaves_stored_ones() {
    let (cache, mapping, space) = stamped_file();
    load(&space, 0, 8 * PAGE_SIZE).expect("loaded");
    space.store(2 * PAGE, &[9; 10]).expect("stored");
    assert_eq!(cache.shared().clock.sweep(100, 100, Pressure::Any), 7);
    assert_eq!((mapping.nr_pages(), space.entries()), (1, 1));
    space.check();
    assert_eq!(load(&space, 3 * PAGE, PAGE_SIZE), Ok(stamped(3, 1)));
    assert_eq!(load(&space, 2 * PAGE, 10), Ok(vec![9; 10]));
}

#[test]
fn a_store_while_the_page_is_written_makes_it_dirty_again() {
    for stop in [Stop::BeforeWrite, Stop::BeforeMapping] {
        let (_cache, mapping, space) = setup(Device::hole(8 * PAGE, PAGE_SIZE));
        space.store(0, &[1; PAGE_SIZE]).expect("stored");
        mapping.backing().stop_at(stop);
        let syncer = {
            let mapping = Arc::clone(&mapping);
            Task::start(move || sync(&mapping))
        };
        mapping.backing().wait_stopped(1);
        assert_eq!(space.entry(0), Some(Entry::ReadOnly));
        space.store(0, &[2; 10]).expect("a store does not wait");
        assert_eq!(mapping.dirty_pages(), 1);
        mapping.backing().go_on();
        syncer.finish().expect("synced");
        space.check();
        assert_eq!(mapping.backing().contents()[..11], [1; 11]);
        sync(&mapping).expect("synced");
        assert_eq!(
            mapping.backing().contents()[..11],
            [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]
        );
        assert_eq!(mapping.backing().violations(), 0);
    }
}

#[test]
fn a_fault_between_reservation_and_dirtying_keeps_fences_and_writeback_out() {
    let (_cache, mapping, space) = setup(Device::hole(8 * PAGE, PAGE_SIZE));
    let others = Arc::new(Mutex::new(Vec::new()));
    let (starting, other) = (Arc::clone(&others), Arc::clone(&mapping));
    // K7.
    mapping.backing().on_reserve(move || {
        let puncher = start_punch(&other);
        assert!(!puncher.is_over_shortly(), "the fence waits");
        starting.lock().push(puncher);
    });
    space.store(0, &[1; 10]).expect("stored");
    others.lock().drain(..).for_each(Task::finish);
    assert_eq!(mapping.backing().reserved(), mapping.dirty_pages());
    space.check();
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn t18_a_store_after_a_truncate_down_and_up_inside_a_page_is_kept() {
    let (cache, mapping, space) = setup(Device::hole(3072, 1024));
    space.store(0, &[1; 3072]).expect("stored");
    assert_eq!(mapping.backing().reserved(), 3, "blocks inside the file");
    truncate(&mapping, 1024);
    assert_eq!(space.entry(0), Some(Entry::ReadOnly), "asks again (B20)");
    truncate(&mapping, 4096);
    assert_eq!(
        load(&space, 0, 4096),
        Ok([vec![1; 1024], vec![0; 3072]].concat())
    );
    space.store(2048, &[5; 10]).expect("stored");
    sync(&mapping).expect("synced");
    drop(space);
    cache.shrink(u64::MAX);
    assert_eq!(mapping.nr_pages(), 0);
    assert_eq!(read(&mapping, 2048, 10), Ok(vec![5; 10]));
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn t19_stores_past_the_end_never_show() {
    // By truncate up; by a write further on in the page, in the next one, and right at the end.
    let extensions: [fn(&TestMapping); 4] = [
        |mapping| truncate(mapping, 2 * PAGE),
        |mapping| drop(write(mapping, 3000, &[7; 1096])),
        |mapping| drop(write(mapping, PAGE + 10, &[7; 10])),
        |mapping| {
            drop(write(mapping, 1500, &[7; 10]));
            truncate(mapping, 2 * PAGE);
        },
    ];
    for block_size in [1024, PAGE_SIZE] {
        for (nr, extend) in extensions.into_iter().enumerate() {
            for is_written in [false, true] {
                let (cache, mapping, space) = setup(Device::hole(1500, block_size));
                space
                    .store(0, &[1; PAGE_SIZE])
                    .expect("past the end, in its page");
                if is_written {
                    sync(&mapping).expect("synced");
                    space.store(1600, &[2; 100]).expect("stored again");
                }
                extend(&mapping);
                space.check();
                let check = |when| {
                    let page = read(&mapping, 0, PAGE_SIZE).expect("read");
                    assert!(page[..1500].iter().all(|&byte| byte == 1), "{nr} {when}");
                    let garbage = page[1500..].iter().any(|&byte| byte != 0 && byte != 7);
                    assert!(!garbage, "extension {nr}, {when}");
                };
                check("cached");
                sync(&mapping).expect("synced");
                cache.shared().clock.sweep(100, 100, Pressure::Any);
                assert_eq!(mapping.nr_pages(), 0);
                check("read back");
                assert_eq!(mapping.backing().violations(), 0);
            }
        }
    }
}

#[test]
fn t22_faults_in_the_hole_do_not_starve_a_punch() {
    use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
    let (_cache, mapping, space) = stamped_file();
    let stop = Arc::new(AtomicBool::new(false));
    let faulters: Vec<_> = (0..8)
        .map(|seed| {
            let (space, stop) = (Arc::clone(&space), Arc::clone(&stop));
            Task::start(move || {
                let mut at = seed;
                while !stop.load(Ordering::SeqCst) {
                    at = (at * 5 + 3) % PAGES;
                    let kind = KINDS[usize::try_from(at % 2).expect("small")];
                    space.fault(at, kind).expect("mapped");
                    space.check();
                }
            })
        })
        .collect();
    let start = std::time::Instant::now();
    for _ in 0..100 {
        punch(&mapping, 0..8 * PAGE);
    }
    let took = start.elapsed();
    stop.store(true, Ordering::SeqCst);
    faulters.into_iter().for_each(Task::finish);
    assert!(took < super::NEVER, "a punch took {:?}", took / 100);
    space.check();
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
#[cfg(debug_assertions)]
fn removing_a_page_that_is_mapped_is_caught() {
    let (_cache, mapping, space) = stamped_file();
    space.fault(3, FaultKind::Read).expect("mapped");
    let caught = Task::start(move || {
        let folio = mapping.pages().get(3).expect("cached");
        let guard = PageLockGuard::try_lock(&folio).expect("free");
        mapping.pages().remove_locked(&guard)
    })
    .result();
    assert!(caught.is_err());
}
