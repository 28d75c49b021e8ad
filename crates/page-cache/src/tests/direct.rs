//! Direct writes: stopped where it hurts, and against all that fills, dirties or takes away pages.

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;

use super::device::{Device, Failed, Stop, TestMapping};
use super::edges::{punch, truncate};
use super::faults::{Space, load, setup, start_fault};
use super::{SMALL, Task, config, only, read, stamped, sync, write, write_direct};
use crate::backing::PAGE_SIZE;
use crate::simulated::Entry;
use crate::{FaultKind, PageCache};

const PAGE: u64 = PAGE_SIZE as u64;

/// Pages 2 and 3, which are written in most tests.
const WRITTEN: u64 = 2 * PAGE;
const NEW: [u8; 2 * PAGE_SIZE] = [0xD1; 2 * PAGE_SIZE];

fn start_direct(
    mapping: &Arc<TestMapping>,
    offset: u64,
    data: &[u8],
) -> Task<Result<usize, Failed>> {
    let (mapping, data) = (Arc::clone(mapping), data.to_vec());
    Task::start(move || write_direct(&mapping, offset, &data))
}

fn start_read(mapping: &Arc<TestMapping>, offset: u64) -> Task<Result<Vec<u8>, Failed>> {
    let mapping = Arc::clone(mapping);
    Task::start(move || read(&mapping, offset, PAGE_SIZE))
}

/// The device and the cache agree, everything is given back, and nothing went where it must not.
fn judge(cache: &PageCache, mapping: &TestMapping) -> Vec<u8> {
    let size = usize::try_from(mapping.size()).expect("small");
    let cached = read(mapping, 0, size).expect("read");
    sync(mapping).expect("synced");
    assert!(mapping.backing().contents() == cached);
    assert_eq!(mapping.backing().reserved(), 0);
    assert_eq!(mapping.backing().violations(), 0);
    assert_eq!(mapping.backing().disk_size(), mapping.size());
    cache.shrink(u64::MAX);
    assert_eq!(mapping.nr_pages(), 0);
    assert!(read(mapping, 0, size).expect("read") == cached);
    cached
}

#[test]
fn a_direct_write_is_on_the_device_and_not_in_the_cache() {
    let (cache, mapping, _) = setup(Device::stamped(8, PAGE_SIZE));
    read(&mapping, 0, 8 * PAGE_SIZE).expect("read");
    assert_eq!(mapping.nr_pages(), 8);
    assert_eq!(write_direct(&mapping, WRITTEN, &NEW), Ok(NEW.len()));
    assert_eq!(mapping.nr_pages(), 6, "what was cached is not");
    assert!(mapping.is_idle());
    assert_eq!(only(mapping.backing().take_writes()), WRITTEN..4 * PAGE);
    // Past the end, over what was never there.
    assert_eq!(write_direct(&mapping, 10 * PAGE, &NEW), Ok(NEW.len()));
    assert_eq!(mapping.nr_pages(), 6);
    let file = judge(&cache, &mapping);
    assert_eq!(file.len(), 12 * PAGE_SIZE);
    assert_eq!(file[2 * PAGE_SIZE..4 * PAGE_SIZE], NEW);
    assert_eq!(file[8 * PAGE_SIZE..10 * PAGE_SIZE], [0; 2 * PAGE_SIZE]);
    assert_eq!(file[10 * PAGE_SIZE..], NEW);
}

#[test]
fn a_long_direct_write_goes_in_pieces() {
    let (cache, mapping, _) = setup(Device::hole(0, PAGE_SIZE));
    let data: Vec<u8> = (0..600_usize).flat_map(|page| stamped(page, 3)).collect();
    // Of no frame: the cache has far fewer.
    assert_eq!(write_direct(&mapping, 0, &data), Ok(data.len()));
    assert_eq!(mapping.backing().take_batches(), 3);
    assert!(judge(&cache, &mapping) == data);
}

/// K16, T20: whoever comes while a direct write is stopped before its I/O, or after it and before
/// its blocks are mapped, sees the new data, whatever was cached before; no store is lost; and the
/// rest of the file is nobody's hindrance.
#[test]
fn t20_nobody_sees_old_data_while_a_direct_write_is_stopped() {
    for (stop, cached, hole) in [Stop::BeforeWrite, Stop::BeforeMapping]
        .iter()
        .flat_map(|&stop| [(stop, true), (stop, false)])
        .flat_map(|(stop, cached)| [(stop, cached, true), (stop, cached, false)])
    {
        let device = if hole {
            Device::hole(8 * PAGE, PAGE_SIZE)
        } else {
            Device::stamped(8, PAGE_SIZE)
        };
        let (cache, mapping, space) = setup(device);
        if cached {
            load(&space, 0, 8 * PAGE_SIZE).expect("loaded");
        }
        let device = mapping.backing();
        device.stop_at(stop);
        let direct = start_direct(&mapping, WRITTEN, &NEW);
        device.wait_stopped(1);
        let reader = start_read(&mapping, WRITTEN);
        let loader = start_fault(&space, 2, FaultKind::Read);
        let storer = {
            let space = Arc::clone(&space);
            Task::start(move || space.store(3 * PAGE + 100, &[9; 8]))
        };
        assert!(mapping.queue_readahead(0..8, None));
        assert!(
            cache.run_readahead(&mut Held::at_entry()),
            "it waits for none"
        );
        assert!(!reader.is_over_shortly());
        assert!(!loader.is_over_shortly() && !storer.is_over_shortly());
        assert_eq!(
            read(&mapping, 6 * PAGE, 10).map(|bytes| bytes.len()),
            Ok(10)
        );
        let beside = start_direct(&mapping, 5 * PAGE, &[0xBE; PAGE_SIZE]);
        device.wait_stopped(2);
        device.go_on();
        assert_eq!(beside.finish(), Ok(PAGE_SIZE));
        assert_eq!(direct.finish(), Ok(NEW.len()));
        assert_eq!(reader.finish(), Ok(NEW[..PAGE_SIZE].to_vec()), "{stop:?}");
        loader.finish().expect("mapped");
        storer.finish().expect("stored");
        let mut expected = NEW.to_vec();
        expected[PAGE_SIZE + 100..][..8].fill(9);
        assert_eq!(load(&space, WRITTEN, NEW.len()), Ok(expected.clone()));
        space.check();
        drop(space);
        let file = judge(&cache, &mapping);
        assert_eq!(file[2 * PAGE_SIZE..4 * PAGE_SIZE], expected);
    }
}

#[test]
fn dirty_and_delayed_pages_are_written_before_a_direct_write() {
    let (cache, mapping, space) = setup(Device::hole(4 * PAGE, 1024));
    write(&mapping, 0, &[1; 2 * PAGE_SIZE]).expect("written");
    space.store(PAGE + 3000, &[2; 1000]).expect("stored");
    // Of page 0 the second block, and so on to the first one of page 1.
    assert_eq!(write_direct(&mapping, 1024, &[3; PAGE_SIZE]), Ok(PAGE_SIZE));
    assert!(mapping.is_idle());
    assert_eq!(mapping.nr_pages(), 0);
    drop(space);
    let file = judge(&cache, &mapping);
    assert_eq!(file[..1024], [1; 1024]);
    assert_eq!(file[1024..1024 + PAGE_SIZE], [3; PAGE_SIZE]);
    assert_eq!(file[1024 + PAGE_SIZE..PAGE_SIZE + 3000], [1; 1976]);
    assert_eq!(file[PAGE_SIZE + 3000..PAGE_SIZE + 4000], [2; 1000]);
}

/// A page that is stored to whenever it has been written back: the write gets through, and no
/// store is lost.
#[test]
fn a_page_that_is_dirtied_again_and_again_loses_nothing() {
    let (cache, mapping, space) = setup(Device::stamped(4, 1024));
    fn store_again(mapping: &Arc<TestMapping>, space: &Arc<Space>, times: u8) {
        let again = (Arc::clone(mapping), Arc::clone(space));
        mapping.backing().on_size(move || {
            let (mapping, space) = again;
            let storer = Arc::clone(&space);
            let stored = Task::start(move || storer.store(3000 + u64::from(times), &[times]));
            stored.finish().expect("stored");
            if times > 1 {
                store_again(&mapping, &space, times - 1);
            }
        });
    }
    store_again(&mapping, &space, 6);
    assert_eq!(write_direct(&mapping, 1024, &[3; 1024]), Ok(1024));
    // The hook that is left, if there is one, is for nobody.
    mapping.backing().on_size(|| ());
    space.check();
    drop(space);
    let file = judge(&cache, &mapping);
    assert_eq!(file[1024..2048], [3; 1024]);
    assert!(
        (3..=6).all(|times| file[3000 + usize::from(times)] == times),
        "stores"
    );
    assert_eq!(file[..8], [0; 8]);
}

#[test]
fn direct_writes_wait_for_each_other_only_where_they_meet() {
    let (cache, mapping, _) = setup(Device::stamped(8, PAGE_SIZE));
    let device = mapping.backing();
    device.stop_at(Stop::BeforeWrite);
    let one = start_direct(&mapping, 0, &[1; 2 * PAGE_SIZE]);
    device.wait_stopped(1);
    let other = start_direct(&mapping, 4 * PAGE, &[2; 2 * PAGE_SIZE]);
    device.wait_stopped(2);
    let overlapping = start_direct(&mapping, PAGE, &[3; 4 * PAGE_SIZE]);
    assert!(!overlapping.is_over_shortly());
    assert_eq!(device.stopped(), 2);
    device.go_on();
    for (task, pages) in [(one, 2), (other, 2), (overlapping, 4)] {
        assert_eq!(task.finish(), Ok(pages * PAGE_SIZE));
    }
    assert_eq!(device.direct_at_once(), 2);
    let file = judge(&cache, &mapping);
    let expected = [1, 3, 3, 3, 3, 2].map(|byte| [byte; PAGE_SIZE]).concat();
    assert_eq!(file[..6 * PAGE_SIZE], expected, "the last one came last");
}

/// B4: what takes blocks away waits for a direct write in flight, with or without the inode lock.
#[test]
fn b4_fences_wait_for_direct_writes_in_flight() {
    for stop in [Stop::BeforeWrite, Stop::BeforeMapping] {
        for truncates in [false, true] {
            let (cache, mapping, _) = setup(Device::stamped(8, PAGE_SIZE));
            let device = mapping.backing();
            device.stop_at(stop);
            let direct = start_direct(&mapping, WRITTEN, &NEW);
            device.wait_stopped(1);
            let taker = {
                let mapping = Arc::clone(&mapping);
                Task::start(move || {
                    if truncates {
                        truncate(&mapping, 3 * PAGE);
                    } else {
                        punch(&mapping, 3 * PAGE..8 * PAGE);
                    }
                })
            };
            assert!(!taker.is_over_shortly());
            device.go_on();
            assert_eq!(direct.finish(), Ok(NEW.len()));
            taker.finish();
            let file = judge(&cache, &mapping);
            assert_eq!(file[2 * PAGE_SIZE..3 * PAGE_SIZE], NEW[..PAGE_SIZE]);
            assert!(file[3 * PAGE_SIZE..].iter().all(|&byte| byte == 0));
        }
    }
}

#[test]
fn what_maps_the_pages_looks_again_and_copies_stay() {
    let (_cache, mapping, space) = setup(Device::stamped(8, PAGE_SIZE));
    let private = Space::private(&mapping, 0..8);
    load(&space, 0, 8 * PAGE_SIZE).expect("loaded");
    private.store(WRITTEN, &[5; 4]).expect("stored");
    assert_eq!(write_direct(&mapping, WRITTEN, &NEW), Ok(NEW.len()));
    assert_eq!(space.entry(2), None);
    assert_eq!(space.entry(4), Some(Entry::ReadOnly), "no other page");
    assert_eq!(private.entry(2), Some(Entry::Private));
    space.check();
    assert_eq!(load(&space, WRITTEN, 8), Ok(vec![0xD1; 8]));
    assert_eq!(load(&private, WRITTEN, 4), Ok(vec![5; 4]));
}

#[test]
fn a_direct_write_that_fails_half_way_keeps_what_is_mapped_and_no_space() {
    let (cache, mapping, _) = setup(Device::hole(0, 1024));
    let device = mapping.backing();
    device.limit_space(12, &[]);
    device.fail_direct_at(Some(5 * 1024));
    assert_eq!(write_direct(&mapping, 0, &[4; 8 * 1024]), Ok(5 * 1024));
    assert_eq!((mapping.size(), device.reserved()), (5 * 1024, 0));
    assert_eq!(write_direct(&mapping, 5 * 1024, &[4; 1024]), Err(Failed));
    device.fail_direct_at(None);
    device.fail_writes(1);
    assert_eq!(write_direct(&mapping, 5 * 1024, &[4; 1024]), Err(Failed));
    assert_eq!((mapping.size(), device.reserved()), (5 * 1024, 0));
    assert_eq!(mapping.nr_pages(), 0, "no page is left behind");
    // All that was reserved and not used is there.
    assert_eq!(
        write_direct(&mapping, 5 * 1024, &[6; 7 * 1024]),
        Ok(7 * 1024)
    );
    assert_eq!(write_direct(&mapping, 12 * 1024, &[6; 1024]), Err(Failed));
    let file = judge(&cache, &mapping);
    assert_eq!(file[..5 * 1024], [4; 5 * 1024]);
    assert_eq!(file[5 * 1024..], [6; 7 * 1024]);
}

#[test]
fn a_direct_write_without_space_is_as_long_as_there_is_some() {
    let (cache, mapping, _) = setup(Device::hole(0, PAGE_SIZE));
    let device = mapping.backing();
    device.limit_space(2, &[1]);
    assert_eq!(
        write_direct(&mapping, 0, &[4; 8 * PAGE_SIZE]),
        Ok(3 * PAGE_SIZE)
    );
    assert_eq!(mapping.size(), 3 * PAGE);
    assert_eq!(
        write_direct(&mapping, 3 * PAGE, &[4; PAGE_SIZE]),
        Err(Failed)
    );
    assert_eq!(judge(&cache, &mapping), [4; 3 * PAGE_SIZE]);
}

/// Space that failed writing back keeps is nobody's any more when a direct write takes the place.
#[test]
fn what_could_not_be_written_back_fails_a_direct_write_once() {
    let (cache, mapping, _) = setup(Device::hole(2 * PAGE, PAGE_SIZE));
    write(&mapping, 0, &[1; PAGE_SIZE]).expect("written");
    mapping.backing().fail_writes(1);
    assert_eq!(write_direct(&mapping, 0, &NEW), Err(Failed));
    assert_eq!(
        mapping.backing().reserved(),
        1,
        "as Linux, clean and cached"
    );
    assert_eq!(read(&mapping, 0, 4), Ok(vec![1; 4]), "nothing was dropped");
    assert_eq!(write_direct(&mapping, 0, &NEW), Ok(NEW.len()));
    assert_eq!(judge(&cache, &mapping), NEW);
}

#[test]
fn a_panic_in_a_direct_write_leaves_no_lock_and_no_page() {
    let (_cache, mapping, _) = setup(Device::stamped(8, PAGE_SIZE));
    read(&mapping, WRITTEN, PAGE_SIZE).expect("read");
    mapping.backing().panic_in_write();
    let direct = start_direct(&mapping, WRITTEN, &NEW);
    assert!(direct.result().is_err());
    assert!((2..4).all(|page| mapping.pages().get(page).is_none()));
    punch(&mapping, 0..8 * PAGE);
    assert_eq!(write_direct(&mapping, WRITTEN, &NEW), Ok(NEW.len()));
    assert_eq!(read(&mapping, WRITTEN, NEW.len()), Ok(NEW.to_vec()));
}

/// B22: what was stored past the end through a map is not in the file when it grows.
#[test]
fn a_direct_write_past_the_end_zeroes_what_was_stored_there() {
    let (cache, mapping, space) = setup(Device::stamped(1, 1024));
    truncate(&mapping, 1000);
    space.store(1000, &[8; 3000]).expect("stored");
    assert_eq!(write_direct(&mapping, 2 * PAGE, &NEW), Ok(NEW.len()));
    let mut tail = vec![0xEE; PAGE_SIZE - 1000];
    space.load(1000, &mut tail).expect("loaded");
    assert!(tail.iter().all(|&byte| byte == 0), "stored past the end");
    space.check();
    drop(space);
    let file = judge(&cache, &mapping);
    assert!(file[1000..2 * PAGE_SIZE].iter().all(|&byte| byte == 0));
    assert_eq!(file[2 * PAGE_SIZE..], NEW);
}

/// B18, B19: readers beside direct writes, over and over; nobody reads a version older than one that
/// was written when it began.
#[test]
fn readers_beside_direct_writes_never_see_an_old_version() {
    use pagefence_lock_order::primitives::atomic::{AtomicU8, Ordering};
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Device::stamped(8, PAGE_SIZE).mapped(&cache);
    let floor = Arc::new(AtomicU8::new(1));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (mapping, floor) = (Arc::clone(&mapping), Arc::clone(&floor));
            Task::start(move || {
                while floor.load(Ordering::SeqCst) < 200 {
                    for page in [2, 3] {
                        let least = floor.load(Ordering::SeqCst);
                        let bytes = read(&mapping, page * PAGE, PAGE_SIZE).expect("read");
                        assert!(bytes[100] >= least, "{} after {least}", bytes[100]);
                    }
                }
            })
        })
        .collect();
    for version in 2..=200 {
        let data = [stamped(2, version), stamped(3, version)].concat();
        assert_eq!(write_direct(&mapping, WRITTEN, &data), Ok(data.len()));
        floor.store(version, Ordering::SeqCst);
    }
    readers.into_iter().for_each(Task::finish);
    judge(&cache, &mapping);
}
