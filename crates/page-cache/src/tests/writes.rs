//! Writing into the cache: what is read, reserved, kept, and refused.

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::{Arc, Mutex};

use super::device::{Device, Failed, TestMapping};
use super::{SMALL, Task, config, only, read, stamped, sync, write};
use crate::backing::PAGE_SIZE;
use crate::reclaim::Pressure;
use crate::simulated::AddressSpace;
use crate::{Config, PageCache};

const PAGE: u64 = PAGE_SIZE as u64;

fn setup(device: Device) -> (Arc<PageCache>, Arc<TestMapping>) {
    let cache = PageCache::new(config(4 << 20)).expect("a cache");
    let mapping = device.mapped(&cache);
    mapping.backing().let_holes_be_read();
    (cache, mapping)
}

fn empty(block_size: usize) -> (Arc<PageCache>, Arc<TestMapping>) {
    setup(Device::hole(0, block_size))
}

#[test]
fn what_is_written_is_read_and_reaches_the_device() {
    for block_size in [1024, 2048, PAGE_SIZE] {
        let (cache, mapping) = empty(block_size);
        let data: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
        assert_eq!(write(&mapping, 0, &data[..100_001]), Ok(100_001));
        assert_eq!(write(&mapping, 100_001, &data[100_001..]), Ok(199_999));
        assert_eq!(read(&mapping, 0, 400_000), Ok(data.clone()));
        assert!(!mapping.is_idle());
        assert_eq!(mapping.backing().take_reads(), [], "nothing was to be kept");
        assert_eq!(sync(&mapping), Ok(()));
        assert!(mapping.is_idle());
        assert_eq!(mapping.backing().contents(), data);
        assert_eq!(mapping.backing().disk_size(), 300_000);
        assert_eq!(mapping.backing().reserved(), 0);
        cache.shrink(u64::MAX);
        assert_eq!(mapping.nr_pages(), 0);
        assert_eq!(read(&mapping, 0, 400_000), Ok(data));
        assert_eq!(mapping.backing().violations(), 0);
    }
}

/// Holes get their zeros, or what they read as, and nobody sees a difference: not who stores
/// meanwhile through a map either.
#[test]
fn what_is_rewritten_stays_what_it_is() {
    for block_size in [1024, 2048, PAGE_SIZE] {
        let (cache, mapping) = setup(Device::hole(10 * PAGE, block_size));
        let space = AddressSpace::shared(&mapping, 0..10);
        space.store(3 * PAGE + 10, &[7; 5]).expect("stored");
        let rewrite = |range| {
            let mut entry = Held::at_entry();
            let (_rank, mut held) = entry.descend(1);
            mapping.rewrite(&mut held, range)
        };
        assert_eq!(rewrite(PAGE..20 * PAGE), Ok(9 * PAGE), "inside the file");
        assert_eq!(rewrite(20 * PAGE..30 * PAGE), Ok(0));
        space.check();
        assert_eq!(mapping.dirty_pages(), 9);
        assert_eq!(mapping.backing().reserved(), 9 * PAGE_SIZE / block_size);
        let mut expected = vec![0; 10 * PAGE_SIZE];
        expected[3 * PAGE_SIZE + 10..][..5].fill(7);
        assert_eq!(read(&mapping, 0, 11 * PAGE_SIZE), Ok(expected.clone()));
        drop(space);
        assert_eq!(sync(&mapping), Ok(()));
        cache.shrink(u64::MAX);
        assert_eq!(read(&mapping, 0, 11 * PAGE_SIZE), Ok(expected));
        assert_eq!(mapping.next_cached(0), Some(PAGE), "a hole is not cached");
        assert_eq!(mapping.backing().violations(), 0);
    }
    // Of what is on the device, too: a page that can't be read ends it.
    let (_cache, mapping) = setup(Device::stamped(8, PAGE_SIZE));
    {
        let mut entry = Held::at_entry();
        let (_rank, mut held) = entry.descend(1);
        assert_eq!(mapping.rewrite(&mut held, 0..4 * PAGE), Ok(4 * PAGE));
    }
    assert_eq!(read(&mapping, PAGE, PAGE_SIZE), Ok(stamped(1, 1)));
    assert_eq!(mapping.next_cached(4 * PAGE), None);
}

#[test]
fn only_pages_that_keep_bytes_are_read() {
    let (_cache, mapping) = setup(Device::stamped(16, PAGE_SIZE));
    // Two whole pages, one of which half: the second keeps its tail.
    write(&mapping, 2 * PAGE, &[7; PAGE_SIZE + 100]).expect("written");
    assert_eq!(only(mapping.backing().take_reads()), 3..4);
    let mut expected = stamped(3, 1);
    expected[..100].fill(7);
    assert_eq!(read(&mapping, 3 * PAGE, PAGE_SIZE), Ok(expected));
    // The head is kept.
    write(&mapping, 9 * PAGE - 1, &[8; 1]).expect("written");
    assert_eq!(only(mapping.backing().take_reads()), 8..9);
    // Both are; one page, one read.
    write(&mapping, 12 * PAGE + 5, &[9; 10]).expect("written");
    assert_eq!(only(mapping.backing().take_reads()), 12..13);
    // Whole pages, the last one as far as the file goes.
    mapping.backing().set_size(15 * PAGE + 10);
    write(&mapping, 14 * PAGE, &[6; PAGE_SIZE + 10]).expect("written");
    assert_eq!(mapping.backing().take_reads(), []);
}

#[test]
fn a_gap_reads_as_zeros_and_stays_a_hole() {
    let (_cache, mapping) = empty(1024);
    write(&mapping, 10, &[1; 10]).expect("written");
    write(&mapping, 5 * PAGE + 3000, &[2; 10]).expect("written");
    let mut expected = vec![0; 5 * PAGE_SIZE + 3010];
    expected[10..20].fill(1);
    expected[5 * PAGE_SIZE + 3000..].fill(2);
    assert_eq!(read(&mapping, 0, 100_000), Ok(expected.clone()));
    assert_eq!(mapping.nr_pages(), 2);
    assert_eq!(mapping.backing().reserved(), 2, "a block each");
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().contents(), expected);
    let base = 5 * PAGE;
    assert_eq!(
        mapping.backing().take_writes(),
        [0..1024, base + 2048..base + 3072]
    );
}

#[test]
fn a_file_that_shrinks_and_grows_reads_zeros_where_it_was_cut() {
    // B20 to B22, with the page in the cache and without.
    for drop_cache in [false, true] {
        let (cache, mapping) = setup(Device::stamped(2, 1024));
        write(&mapping, PAGE + 100, &[5; 200]).expect("written");
        super::edges::truncate(&mapping, PAGE + 150);
        if drop_cache {
            sync(&mapping).expect("synced");
            cache.shrink(u64::MAX);
        }
        super::edges::truncate(&mapping, 2 * PAGE);
        let mut expected = stamped(1, 1);
        expected[100..150].fill(5);
        expected[150..].fill(0);
        assert_eq!(read(&mapping, PAGE, PAGE_SIZE), Ok(expected.clone()));
        write(&mapping, PAGE + 2048, &[6; 10]).expect("written");
        expected[2048..2058].fill(6);
        sync(&mapping).expect("synced");
        cache.shrink(u64::MAX);
        assert_eq!(read(&mapping, PAGE, PAGE_SIZE), Ok(expected));
        assert_eq!(mapping.backing().violations(), 0);
    }
}

#[test]
fn without_space_as_much_is_written_as_fits() {
    let (_cache, mapping) = empty(PAGE_SIZE);
    mapping.backing().limit_space(5, &[]);
    assert_eq!(write(&mapping, 0, &[1; 20 * PAGE_SIZE]), Ok(5 * PAGE_SIZE));
    assert_eq!(write(&mapping, 5 * PAGE, &[1; 10]), Err(Failed));
    assert_eq!(mapping.nr_pages(), 5, "what was not written is not cached");
    assert_eq!(write(&mapping, 100, &[2; 10]), Ok(10), "has its space");
    assert_eq!(
        read(&mapping, 0, 100 * PAGE_SIZE).map(|read| read.len()),
        Ok(5 * PAGE_SIZE)
    );
    sync(&mapping).expect("what was accepted is written");
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn room_is_made_a_few_times() {
    let (_cache, mapping) = empty(PAGE_SIZE);
    mapping.backing().limit_space(0, &[0, 0, 7, 0, 1]);
    assert_eq!(write(&mapping, 0, &[1; 8 * PAGE_SIZE]), Ok(8 * PAGE_SIZE));
    mapping.backing().limit_space(0, &[1, 0, 0, 0]);
    assert_eq!(
        write(&mapping, 8 * PAGE, &[1; 10]),
        Err(Failed),
        "three times"
    );
}

#[test]
fn a_page_that_cannot_be_read_is_not_written_in_part() {
    let (_cache, mapping) = setup(Device::stamped(8, PAGE_SIZE));
    mapping.backing().fail_reads(1);
    assert_eq!(write(&mapping, 100, &[1; 10]), Err(Failed));
    assert_eq!(mapping.nr_pages(), 0);
    mapping.backing().fail_reads(1);
    // The last page keeps its tail: the others are written.
    assert_eq!(
        write(&mapping, 0, &[1; 2 * PAGE_SIZE + 10]),
        Ok(2 * PAGE_SIZE + 10),
        "tried again"
    );
    mapping.backing().fail_reads(2);
    assert_eq!(
        write(&mapping, 3 * PAGE, &[1; 2 * PAGE_SIZE + 10]),
        Ok(2 * PAGE_SIZE)
    );
    assert_eq!(read(&mapping, 5 * PAGE, PAGE_SIZE), Ok(stamped(5, 1)));
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn a_failed_reservation_leaves_no_lock_and_no_page() {
    let (_cache, mapping) = setup(Device::hole(8 * PAGE, PAGE_SIZE));
    read(&mapping, 0, PAGE_SIZE).expect("read");
    mapping.backing().limit_space(0, &[]);
    assert_eq!(write(&mapping, 0, &[1; 3 * PAGE_SIZE]), Err(Failed));
    assert_eq!(mapping.nr_pages(), 0);
    assert!(mapping.is_idle());
    super::edges::punch(&mapping, 0..8 * PAGE);
    assert_eq!(read(&mapping, 0, 8 * PAGE_SIZE), Ok(vec![0; 8 * PAGE_SIZE]));
}

#[test]
fn the_size_grows_before_the_pages_are_unlocked() {
    // Else writeback would take what was just written for bytes past the end, and zero them.
    let (_cache, mapping) = empty(PAGE_SIZE);
    let other = Arc::clone(&mapping);
    let started = Arc::new(Mutex::new(None));
    let starting = Arc::clone(&started);
    mapping.backing().on_grow(move || {
        let syncer = Task::start(move || sync(&other));
        assert!(!syncer.is_over_shortly(), "the page is locked and dirty");
        *starting.lock() = Some(syncer);
    });
    write(&mapping, 0, &[3; 100]).expect("written");
    let syncer = started.lock().take().expect("the size grew");
    syncer.finish().expect("synced");
    assert_eq!(mapping.backing().contents(), vec![3; 100]);
    assert_eq!(mapping.backing().disk_size(), 100);
}

#[test]
fn a_writer_over_the_limit_writes_back() {
    let cache = PageCache::new(Config {
        dirty_limit_bytes: 16 * PAGE,
        ..config(1 << 20)
    })
    .expect("a cache");
    let mapping = Device::hole(0, PAGE_SIZE).mapped(&cache);
    for at in 0..1000 {
        write(
            &mapping,
            at * PAGE,
            &stamped(at.try_into().expect("small"), 4),
        )
        .expect("written");
        let usage = cache.usage();
        assert!(usage.dirty_bytes <= 24 * PAGE, "{usage:?}");
        assert_eq!(usage.writeback_bytes, 0);
    }
    assert!(mapping.backing().take_batches() < 200, "in pieces");
    assert_eq!(
        write(&mapping, 0, &[1; 200 * PAGE_SIZE]),
        Ok(200 * PAGE_SIZE)
    );
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn a_fault_over_the_limit_of_dirty_pages_writes_back() {
    let cache = PageCache::new(Config {
        dirty_limit_bytes: 16 * PAGE,
        ..config(1 << 20)
    })
    .expect("a cache");
    let mapping = Device::hole(200 * PAGE, PAGE_SIZE).mapped(&cache);
    let space = AddressSpace::shared(&mapping, 0..200);
    for page in 0..200 {
        space.store(page * PAGE, &[1; 10]).expect("stored");
        let usage = cache.usage();
        assert!(usage.dirty_bytes <= 24 * PAGE, "{usage:?}");
    }
    space.check();
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn a_writer_over_the_limit_writes_other_files_back() {
    let cache = PageCache::new(Config {
        dirty_limit_bytes: 16 * PAGE,
        ..config(1 << 20)
    })
    .expect("a cache");
    let other = Device::hole(0, PAGE_SIZE).mapped(&cache);
    write(&other, 0, &[1; 17 * PAGE_SIZE]).expect("written");
    let mapping = Device::hole(0, PAGE_SIZE).mapped(&cache);
    write(&mapping, 0, &[1; 10]).expect("written");
    assert!(other.backing().take_batches() > 0);
}

#[test]
fn a_write_without_a_frame_waits_with_no_page_locked() {
    let (cache, mapping) = setup(Device::stamped(8, PAGE_SIZE));
    let taken = cache.shared().take_all_frames();
    let writer = {
        let mapping = Arc::clone(&mapping);
        Task::start(move || write(&mapping, 3 * PAGE, &[1; PAGE_SIZE]))
    };
    assert!(!writer.is_over_shortly(), "no frame, no page");
    super::edges::punch(&mapping, 0..2 * PAGE);
    drop(taken);
    cache.shared().frame_events.notify();
    assert_eq!(writer.finish(), Ok(PAGE_SIZE));
}

#[test]
fn reclaim_leaves_dirty_pages_alone() {
    let (cache, mapping) = setup(Device::stamped(8, PAGE_SIZE));
    write(&mapping, 2 * PAGE, &[1; 2 * PAGE_SIZE]).expect("written");
    read(&mapping, 0, 8 * PAGE_SIZE).expect("read");
    assert_eq!(mapping.nr_pages(), 8);
    cache.shrink(u64::MAX);
    cache.shrink(u64::MAX);
    assert_eq!(mapping.nr_pages(), 2);
    assert_eq!(
        read(&mapping, 2 * PAGE, 2 * PAGE_SIZE),
        Ok(vec![1; 2 * PAGE_SIZE])
    );
    sync(&mapping).expect("synced");
    assert!(cache.shared().clock.sweep(100, 100, Pressure::Any) > 0);
    cache.shrink(u64::MAX);
    assert_eq!(mapping.nr_pages(), 0);
}

#[test]
fn a_mapping_dropped_with_dirty_pages_leaves_no_trace() {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Device::hole(0, PAGE_SIZE).mapped(&cache);
    write(&mapping, 0, &[1; 4 * PAGE_SIZE]).expect("written");
    assert_eq!(cache.usage().dirty_bytes, 4 * PAGE);
    assert_eq!(mapping.dirty_pages(), 4);
    drop(mapping);
    let usage = cache.usage();
    assert_eq!((usage.dirty_bytes, usage.used_bytes), (0, 0));
    assert!(!cache.run_flusher(&mut Held::at_entry()));
}

#[test]
fn writes_end_where_files_do() {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = crate::Mapping::new(&cache, 1, ());
    let inode = pagefence_lock_order::OrderedRwLock::new(1, ());
    let mut entry = Held::at_entry();
    let (_lock, mut held) = inode.write(&mut entry);
    let end = u64::MAX >> 1;
    assert_eq!(mapping.write(&mut held, end - 5, &[2; 100]), Ok(5));
    assert_eq!(mapping.write(&mut held, end, &[2; 100]), Ok(0));
    assert_eq!(mapping.write(&mut held, u64::MAX, &[2; 100]), Ok(0));
    assert_eq!(mapping.write(&mut held, 5, &[]), Ok(0));
    assert_eq!(mapping.dirty_pages(), 1);
}
