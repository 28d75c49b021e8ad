//! The fence against what is dirty and what is being written, and the edges of its range.

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;

use super::device::{Device, Failed, Stop, TestMapping};
use super::{SMALL, Task, config, only, read, stamped, sync, write};
use crate::backing::PAGE_SIZE;
use crate::{Evict, PageCache, fence_both};

const PAGE: u64 = PAGE_SIZE as u64;

pub(super) fn truncate(mapping: &TestMapping, size: u64) {
    let mut entry = Held::at_entry();
    let from = size.min(crate::Backing::size(mapping.backing()));
    let (mut fence, mut held) = mapping.fence(&mut entry, from..u64::MAX);
    let shorten = || mapping.backing().set_size(size);
    let evicted = fence.evict_with(&mut held, Evict::Discard, shorten);
    Device::truncate(&evicted.expect("evicted"));
}

pub(super) fn punch(mapping: &TestMapping, range: Range<u64>) {
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, range);
    Device::punch(&fence.evict(&mut held, Evict::Discard).expect("evicted"));
}

fn setup(pages: usize, block_size: usize) -> (Arc<PageCache>, Arc<TestMapping>) {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Device::stamped(pages, block_size).mapped(&cache);
    mapping.backing().let_holes_be_read();
    (cache, mapping)
}

#[test]
fn edges_are_on_the_device_before_blocks_may_change() {
    for cached in [false, true] {
        let (_cache, mapping) = setup(8, 1024);
        if cached {
            read(&mapping, 0, 8 * PAGE_SIZE).expect("read");
        }
        let mut entry = Held::at_entry();
        let range = PAGE + 1500..5 * PAGE + 100;
        let (mut fence, mut held) = mapping.fence(&mut entry, range);
        let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
        let contents = mapping.backing().contents();
        assert!(
            contents[PAGE_SIZE + 1500..PAGE_SIZE + 2048]
                .iter()
                .all(|&byte| byte == 0)
        );
        assert!(
            contents[5 * PAGE_SIZE..5 * PAGE_SIZE + 100]
                .iter()
                .all(|&byte| byte == 0)
        );
        let base = 5 * PAGE;
        let written = mapping.backing().take_writes();
        assert_eq!(
            written,
            [PAGE + 1024..PAGE + 2048, base..base + 1024],
            "nothing else"
        );
        assert!(mapping.is_idle());
        Device::punch(&evicted);
        drop(fence);
        let mut expected: Vec<u8> = (0..8).flat_map(|page| stamped(page, 1)).collect();
        expected[PAGE_SIZE + 1500..5 * PAGE_SIZE + 100].fill(0);
        assert_eq!(read(&mapping, 0, 8 * PAGE_SIZE), Ok(expected));
        assert_eq!(mapping.backing().violations(), 0);
    }
}

#[test]
fn an_edge_in_a_hole_costs_nothing() {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Device::hole(8 * PAGE, 1024).mapped(&cache);
    punch(&mapping, 100..5 * PAGE + 100);
    assert_eq!(mapping.backing().take_writes(), []);
    assert_eq!(mapping.backing().take_reads(), []);
    assert_eq!((mapping.nr_pages(), mapping.backing().reserved()), (0, 0));
}

#[test]
fn dirty_edges_keep_what_is_outside_and_lose_what_is_inside() {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Device::hole(0, 1024).mapped(&cache);
    write(&mapping, 0, &[1; 2 * PAGE_SIZE]).expect("written");
    // The first block keeps its front, the next two go, the fourth is kept.
    punch(&mapping, 500..3072);
    assert_eq!(
        mapping.backing().reserved(),
        6,
        "those taken away have none"
    );
    assert_eq!(
        mapping.backing().take_writes(),
        [],
        "nothing old is on the device"
    );
    let mut expected = vec![1; 2 * PAGE_SIZE];
    expected[500..3072].fill(0);
    assert_eq!(read(&mapping, 0, 2 * PAGE_SIZE), Ok(expected.clone()));
    assert_eq!(mapping.dirty_pages(), 2);
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().contents(), expected);
    assert_eq!(mapping.backing().take_writes(), [0..1024, 3072..8192]);
    // A page of which nothing dirty is left is clean.
    write(&mapping, 1024, &[2; 1024]).expect("written");
    punch(&mapping, 1024..2048);
    assert!(mapping.is_idle());
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn dirty_pages_inside_are_discarded_unwritten() {
    let (cache, mapping) = setup(8, PAGE_SIZE);
    write(&mapping, PAGE, &[9; 4 * PAGE_SIZE]).expect("written");
    punch(&mapping, PAGE..5 * PAGE);
    assert_eq!(mapping.backing().take_writes(), []);
    assert!(mapping.is_idle());
    assert_eq!(cache.usage().dirty_bytes, 0);
    assert_eq!(
        read(&mapping, PAGE, 4 * PAGE_SIZE),
        Ok(vec![0; 4 * PAGE_SIZE])
    );
}

#[test]
fn the_fence_waits_for_pages_being_written() {
    // P7, S4.16: whether in the range or at its edge, and whether submitted or not.
    for stop in [Stop::BeforeWrite, Stop::BeforeMapping] {
        for range in [PAGE..4 * PAGE, 0..2 * PAGE - 7, 2 * PAGE + 7..8 * PAGE] {
            let (_cache, mapping) = setup(8, PAGE_SIZE);
            punch(&mapping, 0..8 * PAGE);
            write(&mapping, PAGE, &[9; 2 * PAGE_SIZE]).expect("written");
            mapping.backing().stop_at(stop);
            let writer = {
                let mapping = Arc::clone(&mapping);
                Task::start(move || sync(&mapping))
            };
            mapping.backing().wait_stopped(1);
            let puncher = {
                let (mapping, range) = (Arc::clone(&mapping), range.clone());
                Task::start(move || punch(&mapping, range))
            };
            assert!(!puncher.is_over_shortly(), "the fence waits");
            mapping.backing().go_on();
            writer.finish().expect("synced");
            puncher.finish();
            let mut expected = vec![0; 8 * PAGE_SIZE];
            expected[PAGE_SIZE..3 * PAGE_SIZE].fill(9);
            let at = |offset: u64| usize::try_from(offset).expect("small");
            expected[at(range.start)..at(range.end)].fill(0);
            assert_eq!(read(&mapping, 0, 8 * PAGE_SIZE), Ok(expected.clone()));
            assert_eq!(mapping.backing().contents(), expected);
            assert_eq!(mapping.backing().violations(), 0);
        }
    }
}

#[test]
fn writing_first_writes_all_that_is_touched_and_drops_it() {
    let (_cache, mapping) = setup(8, PAGE_SIZE);
    write(&mapping, 100, &[7; 3 * PAGE_SIZE]).expect("written");
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, 200..2 * PAGE + 10);
    let _evicted = fence.evict(&mut held, Evict::WriteFirst).expect("evicted");
    assert_eq!(only(mapping.backing().take_writes()), 0..3 * PAGE);
    assert!((0..3).all(|page| mapping.pages().get(page).is_none()));
    assert_eq!(
        mapping.dirty_pages(),
        1,
        "the page past the range is not touched"
    );
    drop(fence);
    let mut expected = stamped(0, 1);
    expected[100..].fill(7);
    assert_eq!(read(&mapping, 0, PAGE_SIZE), Ok(expected));
}

#[test]
fn an_edge_that_fails_stops_the_change() {
    let (_cache, mapping) = setup(8, PAGE_SIZE);
    let evict = |how| {
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = mapping.fence(&mut entry, 10..4 * PAGE);
        fence.evict(&mut held, how).map(|evicted| evicted.range())
    };
    mapping.backing().fail_reads(1);
    assert_eq!(evict(Evict::Discard), Err(Failed));
    mapping.backing().fail_segments(1);
    assert_eq!(evict(Evict::Discard), Err(Failed));
    mapping.backing().fail_writes(1);
    assert_eq!(evict(Evict::Discard), Err(Failed));
    write(&mapping, PAGE, &[7; PAGE_SIZE]).expect("written");
    mapping.backing().fail_writes(1);
    assert_eq!(evict(Evict::WriteFirst), Err(Failed));
    assert_eq!(evict(Evict::WriteFirst), Ok(10..4 * PAGE));
    assert_eq!(evict(Evict::Discard), Ok(10..4 * PAGE));
    // No lock was left behind.
    punch(&mapping, 0..8 * PAGE);
    assert_eq!(read(&mapping, 0, 8 * PAGE_SIZE), Ok(vec![0; 8 * PAGE_SIZE]));
}

#[test]
fn without_a_frame_an_edge_waits_for_one() {
    let (cache, mapping) = setup(8, PAGE_SIZE);
    let taken = cache.shared().take_all_frames();
    let puncher = {
        let mapping = Arc::clone(&mapping);
        Task::start(move || punch(&mapping, 10..20))
    };
    assert!(!puncher.is_over_shortly(), "no frame, no page");
    drop(taken);
    cache.shared().frame_events.notify();
    puncher.finish();
    assert!(
        mapping.backing().contents()[10..20]
            .iter()
            .all(|&byte| byte == 0)
    );
}

/// RACES U5: two files are fenced in the order of their numbers, whichever is named first; one file
/// once, over both ranges. The rank checker sees to it.
#[test]
fn two_files_are_fenced_in_order_and_one_file_once() {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let first = Device::stamped(8, 1024).mapped(&cache);
    let second = crate::Mapping::new(&cache, first.number() + 1, Device::stamped(8, 1024));
    for (low_first, low, high) in [(true, 0..PAGE, PAGE..3 * PAGE), (false, 0..PAGE, 0..PAGE)] {
        read(&first, 0, 8 * PAGE_SIZE).expect("read");
        read(&second, 0, 8 * PAGE_SIZE).expect("read");
        let mut entry = Held::at_entry();
        let (one, other) = ((&*first, low), (&*second, high));
        let (one, other) = if low_first {
            (one, other)
        } else {
            (other, one)
        };
        let (mut fence, mut fence_other, mut held) =
            fence_both(one.clone(), other.clone(), &mut entry);
        assert_eq!(fence.mapping().number(), one.0.number());
        let fence_other = fence_other.as_mut().expect("two files");
        assert_eq!(fence_other.mapping().number(), other.0.number());
        let evicted = fence.evict(&mut held, Evict::WriteFirst).expect("evicted");
        let other_evicted = fence_other
            .evict(&mut held, Evict::WriteFirst)
            .expect("evicted");
        assert_eq!(evicted.range(), one.1);
        assert_eq!(other_evicted.range(), other.1);
    }
    let mut entry = Held::at_entry();
    let ranges = ((&*first, 5 * PAGE..6 * PAGE), (&*first, PAGE..2 * PAGE));
    let (mut fence, other, mut held) = fence_both(ranges.0, ranges.1, &mut entry);
    assert!(other.is_none(), "one lock");
    let evicted = fence.evict(&mut held, Evict::WriteFirst).expect("evicted");
    assert_eq!(evicted.range(), PAGE..6 * PAGE);
}
