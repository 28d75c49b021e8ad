//! Writes and writing back that end early, and the space that they were given (S3).

use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::{Held, OrderedRwLock, levels::Inode};

use super::device::{Device, Failed, Stop, TestMapping};
use super::faults::{Space, load, setup};
use super::{Task, read, stamped, sync, write};
use crate::backing::PAGE_SIZE;
use crate::folio::PageLockGuard;
use crate::reclaim::Pressure;
use crate::{PageCache, WaitFor};

const PAGE: u64 = PAGE_SIZE as u64;

fn hole(block_size: usize) -> (Arc<PageCache>, Arc<TestMapping>, Arc<Space>) {
    setup(Device::hole(8 * PAGE, block_size))
}

fn with_inode<T>(body: impl FnOnce(&mut Held<'_, Inode>) -> T) -> T {
    let inode: OrderedRwLock<Inode, ()> = OrderedRwLock::new(7, ());
    let mut entry = Held::at_entry();
    let (_lock, mut held) = inode.write(&mut entry);
    body(&mut held)
}

/// Writes `len` bytes of which the source has `there`.
fn write_from(
    mapping: &TestMapping,
    offset: u64,
    len: usize,
    there: usize,
) -> Result<usize, Failed> {
    let mut given = 0;
    with_inode(|held| {
        mapping.write_from(held, offset, len, |buffer| {
            let copied = buffer.len().min(there - given);
            buffer[..copied].fill(3);
            given += copied;
            copied
        })
    })
}

fn punch_delalloc(mapping: &TestMapping, range: std::ops::Range<u64>) {
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, range);
    fence.punch_delalloc(&mut held);
}

/// Four pages that were written and could not be written back: clean, with their space.
fn unwritten(mapping: &TestMapping) {
    write(mapping, 0, &[1; 4 * PAGE_SIZE]).expect("written");
    mapping.backing().fail_writes(1);
    assert_eq!(sync(mapping), Err(Failed));
    assert_eq!(
        (mapping.dirty_pages(), mapping.backing().reserved()),
        (0, 4)
    );
}

#[test]
fn a_source_that_ends_early_is_reserved_for_as_far_as_it_came() {
    for (there, blocks) in [
        (0, 0),
        (1, 1),
        (1024, 1),
        (1025, 2),
        (5000, 5),
        (20_000, 20),
    ] {
        let (_cache, mapping, _space) = hole(1024);
        assert_eq!(write_from(&mapping, 0, 20_000, there), Ok(there));
        assert_eq!(mapping.backing().reserved(), blocks, "for {there} bytes");
        let mut expected = vec![0; 20_000];
        expected[..there].fill(3);
        assert_eq!(read(&mapping, 0, 20_000), Ok(expected));
        sync(&mapping).expect("synced");
        assert_eq!(mapping.backing().reserved(), 0);
        assert_eq!(mapping.backing().violations(), 0);
    }
}

#[test]
fn a_source_may_be_a_mapping_of_the_file() {
    let (_cache, mapping, space) = setup(Device::stamped(8, PAGE_SIZE));
    let mut at = 10;
    // As another thread serves the faults of this one's memory.
    let written = with_inode(|held| {
        mapping.write_from(held, 0, 2 * PAGE_SIZE, |buffer| {
            let (space, from, len) = (Arc::clone(&space), at, buffer.len());
            at += len as u64;
            let bytes = Task::start(move || load(&space, from, len)).finish();
            buffer.copy_from_slice(&bytes.expect("loaded"));
            len
        })
    });
    assert_eq!(written, Ok(2 * PAGE_SIZE));
    let file: Vec<u8> = (0..3).flat_map(|page| stamped(page, 1)).collect();
    assert_eq!(
        read(&mapping, 0, 2 * PAGE_SIZE),
        Ok(file[10..][..2 * PAGE_SIZE].to_vec())
    );
}

#[test]
fn t21_a_fence_in_the_queue_keeps_nobody_from_copying_the_source() {
    // A source that is a mapping of the file faults while a fence is queued behind another filler:
    // it waits for the fence, so the write must not keep that waiting (RACES U1, U2).
    let (_cache, mapping, space) = setup(Device::stamped(8, PAGE_SIZE));
    let mut others = None;
    let written = with_inode(|held| {
        mapping.write_from(held, 0, PAGE_SIZE, |buffer| {
            mapping.backing().stop_at(Stop::BeforeIo);
            let filler = {
                let mapping = Arc::clone(&mapping);
                Task::start(move || read(&mapping, 5 * PAGE, PAGE_SIZE))
            };
            mapping.backing().wait_stopped(1);
            let puncher = {
                let mapping = Arc::clone(&mapping);
                Task::start(move || super::edges::punch(&mapping, 6 * PAGE..7 * PAGE))
            };
            assert!(!puncher.is_over_shortly(), "queued behind the filler");
            let len = buffer.len();
            let space = Arc::clone(&space);
            let source = Task::start(move || load(&space, 10, len));
            assert!(!source.is_over_shortly(), "waits for the fence");
            mapping.backing().go_on();
            buffer.copy_from_slice(&source.finish().expect("loaded"));
            others = Some((filler, puncher));
            len
        })
    });
    assert_eq!(written, Ok(PAGE_SIZE));
    let (filler, puncher) = others.expect("the source was asked");
    assert_eq!(filler.finish(), Ok(stamped(5, 1)));
    puncher.finish();
    let file: Vec<u8> = (0..2).flat_map(|page| stamped(page, 1)).collect();
    let expected = file[10..][..PAGE_SIZE].to_vec();
    assert_eq!(read(&mapping, 0, PAGE_SIZE), Ok(expected));
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn a_write_that_fails_half_way_has_space_for_what_is_dirty_alone() {
    // What the last page keeps can't be read; no space; no frame for more than three pages.
    let (_cache, mapping, _space) = setup(Device::stamped(8, PAGE_SIZE));
    super::edges::punch(&mapping, 0..4 * PAGE);
    mapping.backing().fail_reads(2);
    assert_eq!(
        write(&mapping, PAGE, &[1; 3 * PAGE_SIZE + 10]),
        Ok(3 * PAGE_SIZE)
    );
    assert_eq!(
        (mapping.dirty_pages(), mapping.backing().reserved()),
        (3, 3)
    );

    let (_cache, mapping, _space) = hole(PAGE_SIZE);
    mapping.backing().limit_space(2, &[]);
    assert_eq!(write(&mapping, 0, &[1; 5 * PAGE_SIZE]), Ok(2 * PAGE_SIZE));
    assert_eq!(
        (mapping.dirty_pages(), mapping.backing().reserved()),
        (2, 2)
    );

    let (_cache, mapping, _space) = hole(PAGE_SIZE);
    mapping.backing().fail_reads(1);
    assert_eq!(write(&mapping, 100, &[1; 10]), Err(Failed));
    assert_eq!((mapping.nr_pages(), mapping.backing().reserved()), (0, 0));
}

#[test]
fn t12_only_what_is_not_dirty_is_punched() {
    let (_cache, mapping, space) = hole(PAGE_SIZE);
    unwritten(&mapping);
    space.store(2 * PAGE, &[9; 10]).expect("stored");
    punch_delalloc(&mapping, 0..8 * PAGE);
    assert_eq!(mapping.backing().reserved(), 1, "the dirty page's");
    assert_eq!(mapping.nr_pages(), 4, "no page goes (S3.9)");
    space.check();
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().contents()[2 * PAGE_SIZE..][..10], [9; 10]);
    assert_eq!(mapping.backing().reserved(), 0);
    // Those whose space was given back ask for it anew.
    space.store(0, &[8; 10]).expect("stored");
    assert_eq!(mapping.backing().reserved(), 1);
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn t12_a_store_waits_for_the_punch_and_is_reserved_anew() {
    let (_cache, mapping, space) = hole(PAGE_SIZE);
    unwritten(&mapping);
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, 0..8 * PAGE);
    let store = {
        let space = Arc::clone(&space);
        Task::start(move || space.store(2 * PAGE, &[9; 10]))
    };
    assert!(!store.is_over_shortly(), "the store waits");
    fence.punch_delalloc(&mut held);
    assert_eq!(mapping.backing().reserved(), 0);
    drop(fence);
    store.finish().expect("stored");
    assert_eq!(
        (mapping.dirty_pages(), mapping.backing().reserved()),
        (1, 1)
    );
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn t12_the_punch_waits_for_the_lock_of_each_page() {
    // So nobody begins to write a page back while its reservation is judged (S3.12).
    let (_cache, mapping, _space) = hole(PAGE_SIZE);
    unwritten(&mapping);
    let folio = mapping.pages().get(2).expect("cached");
    let guard = PageLockGuard::try_lock(&folio).expect("free");
    let puncher = {
        let mapping = Arc::clone(&mapping);
        Task::start(move || punch_delalloc(&mapping, 0..8 * PAGE))
    };
    assert!(!puncher.is_over_shortly(), "waits for the page");
    assert_eq!(mapping.backing().reserved(), 2, "this one's and the next");
    drop(guard);
    puncher.finish();
    assert_eq!(mapping.backing().reserved(), 0);
}

#[test]
fn t12_blocks_of_one_page_are_punched_one_by_one() {
    let (_cache, mapping, _space) = hole(1024);
    write(&mapping, 0, &[1; PAGE_SIZE]).expect("written");
    mapping.backing().fail_writes(1);
    assert_eq!(sync(&mapping), Err(Failed));
    write(&mapping, 1500, &[2; 10]).expect("written");
    punch_delalloc(&mapping, 100..2500);
    // The second is dirty, the fourth is not touched.
    assert_eq!(mapping.backing().reserved(), 2);
    punch_delalloc(&mapping, 0..u64::MAX);
    assert_eq!(mapping.backing().reserved(), 1);
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().contents()[1500..1510], [2; 10]);
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn t12_pages_that_reclaim_took_count_as_clean() {
    let (cache, mapping, _space) = hole(PAGE_SIZE);
    unwritten(&mapping);
    write(&mapping, PAGE, &[2; 10]).expect("written");
    assert_eq!(cache.shared().clock.sweep(100, 100, Pressure::Any), 3);
    punch_delalloc(&mapping, 0..8 * PAGE);
    assert_eq!(mapping.backing().reserved(), 1);
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn t13_what_lies_past_the_end_is_punched_dirty_or_not() {
    let (_cache, mapping, space) = hole(1024);
    space.store(0, &[1; 4 * PAGE_SIZE]).expect("stored");
    assert_eq!(mapping.backing().reserved(), 16);
    // As after a write that had grown the file and is undone.
    mapping.backing().set_size(PAGE + 1500);
    punch_delalloc(&mapping, 0..u64::MAX);
    assert_eq!(mapping.backing().reserved(), 6, "those of the file");
    assert_eq!(mapping.dirty_pages(), 2);
    space.check();
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().reserved(), 0);
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn a_write_without_space_takes_back_what_failed_writes_keep() {
    let (_cache, mapping, _space) = hole(PAGE_SIZE);
    mapping.backing().limit_space(4, &[]);
    unwritten(&mapping);
    assert_eq!(
        write(&mapping, 4 * PAGE, &[2; 3 * PAGE_SIZE]),
        Ok(3 * PAGE_SIZE)
    );
    assert_eq!(
        (mapping.dirty_pages(), mapping.backing().reserved()),
        (3, 3)
    );
    assert!(
        !with_inode(|held| mapping.give_back_unwritten(held)),
        "once"
    );
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn a_store_without_space_takes_back_what_failed_writes_keep() {
    let (_cache, mapping, space) = hole(PAGE_SIZE);
    mapping.backing().limit_space(4, &[]);
    unwritten(&mapping);
    space.store(5 * PAGE, &[2; 10]).expect("stored");
    assert_eq!(
        (mapping.dirty_pages(), mapping.backing().reserved()),
        (1, 1)
    );
    space.check();
}

#[test]
fn t15_a_page_written_and_evicted_while_a_write_waits_keeps_its_bytes() {
    let (cache, mapping, _space) = hole(PAGE_SIZE);
    write(&mapping, 5 * PAGE, &stamped(5, 4)).expect("written");
    read(&mapping, 4 * PAGE, PAGE_SIZE).expect("read");
    write(&mapping, 4 * PAGE, &[1; 10]).expect("written");
    // K8: the write has looked pages 0 to 5 up, and does not have the lock of the fifth yet.
    let folio = mapping.pages().get(4).expect("cached");
    let guard = PageLockGuard::try_lock(&folio).expect("free");
    let writer = {
        let mapping = Arc::clone(&mapping);
        Task::start(move || write(&mapping, 0, &[7; 5 * PAGE_SIZE + 100]))
    };
    assert!(!writer.is_over_shortly(), "waits for the page");
    let held = &mut Held::at_entry();
    mapping
        .write_back(held, 5 * PAGE..6 * PAGE, WaitFor::All)
        .expect("written back");
    cache.shared().clock.sweep(100, 100, Pressure::Any);
    assert!(mapping.pages().get(5).is_none(), "evicted");
    drop(guard);
    assert_eq!(writer.finish(), Ok(5 * PAGE_SIZE + 100));
    let mut expected = stamped(5, 4);
    expected[..100].fill(7);
    assert_eq!(read(&mapping, 5 * PAGE, PAGE_SIZE), Ok(expected.clone()));
    sync(&mapping).expect("synced");
    assert_eq!(
        mapping.backing().contents()[5 * PAGE_SIZE..][..PAGE_SIZE],
        expected
    );
    assert_eq!(mapping.backing().violations(), 0);
}
