//! The schedules of the races that concern reading: fillers against the fence, errors, reclaim.

use std::time::{Duration, Instant};

use pagefence_lock_order::levels::Inode;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::{Held, OrderedRwLock};

use super::device::{Device, Failed, Stop, TestMapping};
use super::{NEVER, SMALL, Task, config, read, stamped, write};
use crate::backing::PAGE_SIZE;
use crate::reclaim::Pressure;
use crate::{Evict, PageCache};

const PAGE: u64 = PAGE_SIZE as u64;
fn setup(pages: usize) -> (Arc<PageCache>, Arc<TestMapping>) {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Device::stamped(pages, PAGE_SIZE).mapped(&cache);
    (cache, mapping)
}

fn start_read(mapping: &Arc<TestMapping>, page: u64) -> Task<Result<Vec<u8>, Failed>> {
    let mapping = Arc::clone(mapping);
    Task::start(move || read(&mapping, page * PAGE, PAGE_SIZE))
}

fn start_punch(mapping: &Arc<TestMapping>, pages: std::ops::Range<u64>) -> Task<()> {
    let mapping = Arc::clone(mapping);
    Task::start(move || punch(&mapping, pages))
}

fn punch(mapping: &TestMapping, pages: std::ops::Range<u64>) {
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, pages.start * PAGE..pages.end * PAGE);
    Device::punch(&fence.evict(&mut held, Evict::Discard).expect("evicted"));
}

#[test]
fn t1_read_waits_for_the_fence_and_sees_the_hole() {
    let (_cache, mapping) = setup(8);
    read(&mapping, 0, 8 * PAGE_SIZE).expect("read");
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, 0..4 * PAGE);
    // K1: dropped from the cache, the blocks are still there.
    let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
    mapping.backing().take_reads();
    let reader = start_read(&mapping, 2);
    assert!(!reader.is_over_shortly(), "the reader waits");
    assert!(mapping.backing().take_reads().is_empty());
    Device::punch(&evicted);
    drop(fence);
    assert_eq!(reader.finish(), Ok(vec![0; PAGE_SIZE]));
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn t1_cached_pages_outside_the_range_are_read_during_a_fence() {
    let (_cache, mapping) = setup(8);
    read(&mapping, 0, 8 * PAGE_SIZE).expect("read");
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, 0..4 * PAGE);
    let _evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
    assert_eq!(start_read(&mapping, 6).finish(), Ok(stamped(6, 1)));
}

#[test]
fn t1_readahead_waits_for_the_fence() {
    let (cache, mapping) = setup(32);
    assert!(mapping.queue_readahead(0..32, None));
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, 0..16 * PAGE);
    let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
    let worker = Task::start(move || cache.run_readahead(&mut Held::at_entry()));
    assert!(!worker.is_over_shortly(), "readahead waits");
    Device::punch(&evicted);
    drop(fence);
    assert!(worker.finish());
    assert_eq!(mapping.nr_pages(), 16, "the hole takes no memory");
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn t1_a_write_waits_for_the_fence_and_fills_from_the_hole() {
    // By this lock, and not the inode lock alone: who gives reservations back for a fault has not
    // got that (S1.14).
    let (_cache, mapping) = setup(8);
    mapping.backing().let_holes_be_read();
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, 0..4 * PAGE);
    let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
    let writer = {
        let mapping = Arc::clone(&mapping);
        Task::start(move || write(&mapping, 2 * PAGE + 10, &[7; 10]))
    };
    assert!(!writer.is_over_shortly(), "the writer waits");
    assert!(mapping.backing().take_reads().is_empty());
    Device::punch(&evicted);
    drop(fence);
    assert_eq!(writer.finish(), Ok(10));
    let mut expected = vec![0; PAGE_SIZE];
    expected[10..20].fill(7);
    assert_eq!(read(&mapping, 2 * PAGE, PAGE_SIZE), Ok(expected));
    assert_eq!(mapping.backing().violations(), 0);
}

/// S1.13: the caller's memory may be a mapping of the file, whose faults wait for who holds the lock.
#[test]
fn a_read_copies_with_nothing_held() {
    let (cache, mapping) = setup(8);
    let fenced = Arc::clone(&mapping);
    cache.stop_at(crate::probe::Stop::Copying, move || {
        pagefence_lock_order::rank::assert_nothing_held();
        let mapping = Arc::clone(&fenced);
        let evicting = Task::start(move || {
            let mut entry = Held::at_entry();
            let (mut fence, mut held) = mapping.fence(&mut entry, 0..8 * PAGE);
            Device::punch(&fence.evict(&mut held, Evict::Discard).expect("evicted"));
        });
        evicting.finish();
    });
    let seen = read(&mapping, 2 * PAGE, PAGE_SIZE);
    assert_eq!(seen, Ok(stamped(2, 1)), "what it has found, it has");
    cache.stop_nowhere();
    assert_eq!(read(&mapping, 2 * PAGE, PAGE_SIZE), Ok(vec![0; PAGE_SIZE]));
}

#[test]
fn t2_the_fence_waits_for_a_fill_in_flight() {
    for stop in [Stop::BeforeIo, Stop::AfterIo] {
        let (_cache, mapping) = setup(8);
        mapping.backing().stop_at(stop);
        let reader = start_read(&mapping, 2);
        mapping.backing().wait_stopped(1);
        let puncher = start_punch(&mapping, 0..8);
        assert!(!puncher.is_over_shortly(), "the fence waits");
        mapping.backing().go_on();
        assert_eq!(reader.finish(), Ok(stamped(2, 1)));
        puncher.finish();
        assert_eq!(mapping.backing().violations(), 0);
        assert_eq!(mapping.nr_pages(), 0);
        assert_eq!(read(&mapping, 2 * PAGE, PAGE_SIZE), Ok(vec![0; PAGE_SIZE]));
    }
}

#[test]
fn t2_the_fence_waits_for_readahead_in_flight() {
    let (cache, mapping) = setup(32);
    assert!(mapping.queue_readahead(0..32, None));
    mapping.backing().stop_at(Stop::BeforeIo);
    let worker = Task::start(move || cache.run_readahead(&mut Held::at_entry()));
    mapping.backing().wait_stopped(1);
    let puncher = start_punch(&mapping, 0..32);
    assert!(!puncher.is_over_shortly(), "the fence waits");
    mapping.backing().go_on();
    assert!(worker.finish());
    puncher.finish();
    assert_eq!((mapping.backing().violations(), mapping.nr_pages()), (0, 0));
}

#[test]
fn t3_reads_do_not_wait_for_the_inode_lock() {
    let (_cache, mapping) = setup(64);
    read(&mapping, 0, PAGE_SIZE).expect("read");
    let inode: OrderedRwLock<Inode, ()> = OrderedRwLock::new(7, ());
    let mut entry = Held::at_entry();
    let (_writer, _held) = inode.write(&mut entry);
    assert_eq!(start_read(&mapping, 0).finish(), Ok(stamped(0, 1)));
    assert_eq!(start_read(&mapping, 50).finish(), Ok(stamped(50, 1)));
}

#[test]
fn t4_failed_fills_leave_no_lock_and_no_page() {
    let (_cache, mapping) = setup(8);
    mapping.backing().fail_reads(1);
    assert_eq!(read(&mapping, 0, PAGE_SIZE), Err(Failed));
    assert_eq!(mapping.nr_pages(), 0);
    mapping.backing().fail_segments(1);
    assert_eq!(read(&mapping, 0, PAGE_SIZE), Err(Failed));
    start_punch(&mapping, 4..8).finish();
    assert_eq!(
        read(&mapping, 0, PAGE_SIZE),
        Ok(stamped(0, 1)),
        "not remembered"
    );
}

#[test]
fn t4_a_panic_in_the_backing_leaves_no_lock_and_no_page() {
    let (_cache, mapping) = setup(8);
    mapping.backing().panic_in_read();
    let reader = Arc::clone(&mapping);
    let died = Task::start(move || read(&reader, 0, PAGE_SIZE)).result();
    assert!(died.is_err());
    assert_eq!(mapping.nr_pages(), 0);
    start_punch(&mapping, 4..8).finish();
    assert_eq!(read(&mapping, 0, PAGE_SIZE), Ok(stamped(0, 1)));
}

#[test]
fn t4_a_place_taken_meanwhile_is_looked_up_again() {
    let (_cache, mapping) = setup(8);
    let other = Arc::clone(&mapping);
    mapping.backing().on_segment(move || {
        let read = start_read(&other, 3).finish();
        assert_eq!(read, Ok(stamped(3, 1)));
    });
    assert_eq!(read(&mapping, 3 * PAGE, PAGE_SIZE), Ok(stamped(3, 1)));
    assert_eq!(mapping.backing().take_reads().len(), 1);
    start_punch(&mapping, 0..8).finish();
}

#[test]
fn t4_without_a_frame_the_reader_waits_and_the_fence_gets_through() {
    let (cache, mapping) = setup(8);
    let taken = cache.shared().take_all_frames();
    let reader = start_read(&mapping, 3);
    assert!(!reader.is_over_shortly(), "no frame, no page");
    start_punch(&mapping, 0..2).finish();
    drop(taken);
    cache.shared().frame_events.notify();
    assert_eq!(reader.finish(), Ok(stamped(3, 1)));
}

#[test]
fn a_reader_waits_for_anothers_fill_without_the_invalidate_lock() {
    // U7: the waiting reader must not keep the fence from anything; with the fill held, the
    // fence can't get in, but the moment the fill is over nothing else is in its way.
    let (_cache, mapping) = setup(8);
    mapping.backing().stop_at(Stop::AfterIo);
    let filler = start_read(&mapping, 1);
    mapping.backing().wait_stopped(1);
    let waiting = start_read(&mapping, 1);
    assert!(!waiting.is_over_shortly(), "not up to date: waits");
    assert_eq!(mapping.backing().stopped(), 1, "one fill, not two");
    let puncher = start_punch(&mapping, 0..8);
    assert!(!puncher.is_over_shortly());
    mapping.backing().go_on();
    assert_eq!(filler.finish(), Ok(stamped(1, 1)));
    puncher.finish();
    let seen = waiting.finish().expect("read");
    assert!(seen == stamped(1, 1) || seen == vec![0; PAGE_SIZE]);
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn readers_of_a_bad_page_all_fail_after_one_try_each() {
    // S4.D2: no endless loop, however many wait for each other's failing reads.
    let (_cache, mapping) = setup(8);
    mapping.backing().fail_reads(usize::MAX);
    let readers: Vec<_> = (0..8).map(|_| start_read(&mapping, 0)).collect();
    for reader in readers {
        assert_eq!(reader.finish(), Err(Failed));
    }
    assert_eq!(mapping.backing().take_reads().len(), 8);
    assert_eq!(mapping.nr_pages(), 0);
}

#[test]
fn an_error_after_some_bytes_gives_those_bytes() {
    let (_cache, mapping) = setup(8);
    read(&mapping, 0, PAGE_SIZE).expect("read");
    let (mut entry, all) = (Held::at_entry(), PAGE..8 * PAGE);
    {
        let (mut fence, mut held) = mapping.fence(&mut entry, all);
        let _ = fence.evict(&mut held, Evict::Discard).expect("evicted");
    }
    mapping.backing().fail_reads(1);
    assert_eq!(read(&mapping, 0, 2 * PAGE_SIZE), Ok(stamped(0, 1)));
    assert_eq!(
        read(&mapping, 0, 2 * PAGE_SIZE).map(|bytes| bytes.len()),
        Ok(2 * PAGE_SIZE)
    );
}

#[test]
fn a_read_ends_where_the_file_ends_when_its_pages_are_there() {
    // S0.12, B37: the size before the pages were read counts for nothing.
    let (_cache, mapping) = setup(8);
    mapping.backing().stop_at(Stop::AfterIo);
    let reader = {
        let mapping = Arc::clone(&mapping);
        Task::start(move || read(&mapping, 0, 8 * PAGE_SIZE))
    };
    mapping.backing().wait_stopped(1);
    // The first step of a truncate.
    mapping.backing().set_size(2 * PAGE + 100);
    mapping.backing().go_on();
    let seen = reader.finish().expect("read");
    assert_eq!(seen.len(), 2 * PAGE_SIZE + 100);
    assert_eq!(seen[..PAGE_SIZE], stamped(0, 1));
}

#[test]
fn reclaim_leaves_pages_in_flight_alone() {
    let (cache, mapping) = setup(8);
    mapping.backing().stop_at(Stop::AfterIo);
    let reader = start_read(&mapping, 0);
    mapping.backing().wait_stopped(1);
    assert_eq!(cache.shared().clock.sweep(100, 100, Pressure::Any), 0);
    assert_eq!(mapping.nr_pages(), 8);
    mapping.backing().go_on();
    reader.finish().expect("read");
    assert_eq!(cache.shared().clock.sweep(100, 100, Pressure::Any), 8);
    assert_eq!(mapping.nr_pages(), 0);
}

#[test]
fn a_pinned_page_keeps_its_bytes_through_eviction_and_reclaim() {
    let (cache, mapping) = setup(8);
    read(&mapping, 0, 2 * PAGE_SIZE).expect("read");
    let pinned = mapping.pages().get(0).expect("cached");
    assert_eq!(cache.shared().clock.sweep(100, 100, Pressure::Any), 8);
    punch(&mapping, 0..8);
    let others = cache.shared().take_all_frames();
    assert!(
        !others
            .iter()
            .any(|frame| frame.number() == pinned.frame().expect("full").number())
    );
    let mut bytes = vec![0; PAGE_SIZE];
    pinned.frame().expect("full").copy_out(0, &mut bytes);
    assert_eq!(bytes, stamped(0, 1));
    drop(pinned);
    assert_eq!(cache.shared().take_all_frames().len(), 1);
}

#[test]
fn the_fence_waits_for_a_held_page_lock_in_its_second_pass() {
    let (_cache, mapping) = setup(8);
    read(&mapping, 0, 8 * PAGE_SIZE).expect("read");
    let busy = mapping.pages().get(3).expect("cached");
    let guard = crate::folio::PageLockGuard::try_lock(&busy).expect("free");
    let puncher = start_punch(&mapping, 0..8);
    let start = Instant::now();
    while mapping.nr_pages() > 1 {
        assert!(start.elapsed() < NEVER, "the first pass takes the others");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!puncher.is_over_shortly(), "one page is held");
    drop(guard);
    puncher.finish();
    assert_eq!(mapping.nr_pages(), 0);
}

#[test]
fn readers_fences_and_reclaim_together_never_show_an_old_version() {
    use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU8, Ordering};
    let cache = PageCache::new(crate::Config::new(SMALL)).expect("a cache");
    let mapping = Device::stamped(100, PAGE_SIZE).mapped(&cache);
    let (floor, stop) = (Arc::new(AtomicU8::new(1)), Arc::new(AtomicBool::new(false)));
    let readers: Vec<_> = (0..3_u64)
        .map(|seed| {
            let (mapping, floor, stop) =
                (Arc::clone(&mapping), Arc::clone(&floor), Arc::clone(&stop));
            Task::start(move || {
                let (mut at, mut pages) = (seed * 31, 0_usize);
                while !stop.load(Ordering::SeqCst) {
                    at = (at * 7 + 3) % 100;
                    let least = floor.load(Ordering::SeqCst);
                    let bytes = read(&mapping, at * PAGE, 4 * PAGE_SIZE).expect("read");
                    for page in bytes.chunks(PAGE_SIZE) {
                        assert!(page[8] >= least, "version {} after {least}", page[8]);
                        assert!(page[8..].iter().all(|&byte| byte == page[8]));
                        pages += 1;
                    }
                }
                pages
            })
        })
        .collect();
    for version in 2..60 {
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = mapping.fence(&mut entry, 0..100 * PAGE);
        let evicted = fence.evict(&mut held, Evict::WriteFirst).expect("evicted");
        let bytes: Vec<u8> = (0..100).flat_map(|page| stamped(page, version)).collect();
        Device::replace(&evicted, &bytes);
        drop(fence);
        floor.store(version, Ordering::SeqCst);
        cache.shrink(20 * PAGE);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    stop.store(true, Ordering::SeqCst);
    let pages: usize = readers.into_iter().map(Task::finish).sum();
    assert!(pages > 0);
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
#[cfg(debug_assertions)]
fn dropping_pages_without_the_fence_is_caught() {
    let (_cache, mapping) = setup(8);
    let caught = Task::start(move || {
        let mut entry = Held::at_entry();
        let (_guard, mut held) = mapping.invalidate_lock().read(&mut entry);
        mapping.pages().drop_range(&mut held, 0..8);
    })
    .result();
    assert!(caught.is_err());
}
