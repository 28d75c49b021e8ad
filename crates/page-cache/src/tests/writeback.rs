//! Writeback: what is gathered, who waits for whom, errors, the flusher.

use std::time::Duration;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;

use super::device::{Device, Failed, Stop, TestMapping};
use super::{SMALL, Task, config, only, read, stamped, sync, write};
use crate::backing::PAGE_SIZE;
use crate::reclaim::Pressure;
use crate::{Config, Evict, PageCache, WaitFor};

const PAGE: u64 = PAGE_SIZE as u64;

fn setup(budget: u64) -> (Arc<PageCache>, Arc<TestMapping>) {
    let cache = PageCache::new(Config {
        dirty_limit_bytes: budget / 2,
        ..config(budget)
    })
    .expect("a cache");
    let mapping = Device::hole(0, PAGE_SIZE).mapped(&cache);
    (cache, mapping)
}

fn start_sync(mapping: &Arc<TestMapping>, wait: WaitFor) -> Task<Result<(), Failed>> {
    let mapping = Arc::clone(mapping);
    Task::start(move || mapping.write_back(&mut Held::at_entry(), 0..u64::MAX, wait))
}

#[test]
fn consecutive_pages_are_written_in_pieces_of_4_mib() {
    let (_cache, mapping) = setup(64 << 20);
    let megabyte = vec![1; 1 << 20];
    for at in 0..10 {
        write(&mapping, at << 20, &megabyte).expect("written");
    }
    write(&mapping, 20 << 20, &megabyte).expect("written");
    sync(&mapping).expect("synced");
    let mib = |range: std::ops::Range<u64>| range.start << 20..range.end << 20;
    assert_eq!(
        mapping.backing().take_writes(),
        [mib(0..4), mib(4..8), mib(8..10), mib(20..21)]
    );
    assert_eq!(mapping.backing().take_batches(), 4);
}

#[test]
fn only_the_range_asked_for_is_written() {
    let (_cache, mapping) = setup(4 << 20);
    write(&mapping, 0, &[1; 10 * PAGE_SIZE]).expect("written");
    let held = &mut Held::at_entry();
    mapping
        .write_back(held, 2 * PAGE + 1..4 * PAGE + 1, WaitFor::All)
        .expect("written");
    assert_eq!(only(mapping.backing().take_writes()), 2 * PAGE..5 * PAGE);
    mapping
        .write_back(held, 7..7, WaitFor::All)
        .expect("nothing");
    assert_eq!(mapping.dirty_pages(), 7);
}

#[test]
fn a_page_dirtied_while_it_is_written_stays_dirty() {
    let (_cache, mapping) = setup(4 << 20);
    write(&mapping, 0, &[1; 2 * PAGE_SIZE]).expect("written");
    mapping.backing().stop_at(Stop::BeforeMapping);
    let syncer = start_sync(&mapping, WaitFor::All);
    mapping.backing().wait_stopped(1);
    // The writer waits for nobody, and readers see the new bytes at once.
    assert_eq!(write(&mapping, 0, &[2; PAGE_SIZE]), Ok(PAGE_SIZE));
    assert_eq!(read(&mapping, 0, PAGE_SIZE), Ok(vec![2; PAGE_SIZE]));
    assert_eq!(mapping.dirty_pages(), 1);
    mapping.backing().go_on();
    syncer.finish().expect("synced");
    assert_eq!(mapping.dirty_pages(), 1, "dirtied behind the writer's back");
    assert_eq!(mapping.backing().contents(), vec![1; 2 * PAGE_SIZE]);
    sync(&mapping).expect("synced");
    assert_eq!(
        mapping.backing().contents()[..PAGE_SIZE],
        vec![2; PAGE_SIZE]
    );
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn fsync_waits_for_pages_that_others_write() {
    let (_cache, mapping) = setup(4 << 20);
    write(&mapping, 0, &[1; 2 * PAGE_SIZE]).expect("written");
    mapping.backing().stop_at(Stop::BeforeWrite);
    let first = start_sync(&mapping, WaitFor::Own);
    mapping.backing().wait_stopped(1);
    let waiting = start_sync(&mapping, WaitFor::All);
    assert!(!waiting.is_over_shortly(), "not written yet");
    start_sync(&mapping, WaitFor::Own)
        .finish()
        .expect("nothing to do");
    write(&mapping, 0, &[2; PAGE_SIZE]).expect("written");
    start_sync(&mapping, WaitFor::Own)
        .finish()
        .expect("left to others");
    let redirtied = start_sync(&mapping, WaitFor::All);
    assert!(!redirtied.is_over_shortly(), "one writer a page");
    assert_eq!(mapping.backing().take_batches(), 1);
    assert!(!mapping.is_idle());
    mapping.backing().go_on();
    for task in [first, waiting, redirtied] {
        task.finish().expect("synced");
    }
    assert!(mapping.is_idle());
    assert_eq!(
        mapping.backing().contents()[..PAGE_SIZE],
        vec![2; PAGE_SIZE]
    );
}

#[test]
fn writeback_waits_for_nothing_with_pages_gathered() {
    // Of pages 0 to 3, somebody holds the lock of 2: 0 and 1 are written without it.
    let (_cache, mapping) = setup(4 << 20);
    write(&mapping, 0, &[1; 4 * PAGE_SIZE]).expect("written");
    let busy = mapping.pages().get(2).expect("cached");
    let guard = crate::folio::PageLockGuard::try_lock(&busy).expect("free");
    let syncer = start_sync(&mapping, WaitFor::All);
    assert!(!syncer.is_over_shortly(), "one page is held");
    assert_eq!(only(mapping.backing().take_writes()), 0..2 * PAGE);
    drop(guard);
    syncer.finish().expect("synced");
    assert_eq!(only(mapping.backing().take_writes()), 2 * PAGE..4 * PAGE);
}

#[test]
fn reclaim_leaves_pages_being_written_alone() {
    for stop in [Stop::BeforeWrite, Stop::BeforeMapping] {
        let (cache, mapping) = setup(SMALL);
        write(&mapping, 0, &[1; 2 * PAGE_SIZE]).expect("written");
        mapping.backing().stop_at(stop);
        let syncer = start_sync(&mapping, WaitFor::All);
        mapping.backing().wait_stopped(1);
        assert_eq!(cache.usage().writeback_bytes, 2 * PAGE);
        assert_eq!(cache.shared().clock.sweep(100, 100, Pressure::Any), 0);
        assert_eq!(read(&mapping, 0, PAGE_SIZE), Ok(vec![1; PAGE_SIZE]));
        mapping.backing().go_on();
        syncer.finish().expect("synced");
        assert_eq!(cache.shared().clock.sweep(100, 100, Pressure::Any), 2);
        assert_eq!(read(&mapping, 0, PAGE_SIZE), Ok(vec![1; PAGE_SIZE]));
    }
}

#[test]
fn an_error_leaves_pages_cached_and_clean_and_each_file_hears_of_it_once() {
    let (cache, mapping) = setup(4 << 20);
    let (first, second) = (mapping.error_cursor(), mapping.error_cursor());
    let all = cache.error_cursor();
    write(&mapping, 0, &[1; 3 * PAGE_SIZE]).expect("written");
    mapping.backing().fail_writes(1);
    cache.sync_all(&mut Held::at_entry());
    assert!(mapping.is_idle());
    assert!(cache.has_failed_since(&all));
    assert!(!cache.has_failed_since(&all), "told once");
    assert_eq!(
        read(&mapping, 0, PAGE_SIZE),
        Ok(vec![1; PAGE_SIZE]),
        "still cached"
    );
    assert_eq!(mapping.check_errors(&first), Err(Failed));
    assert_eq!(mapping.check_errors(&first), Ok(()));
    assert_eq!(mapping.check_errors(&mapping.error_cursor()), Ok(()));
    assert_eq!(mapping.check_errors(&second), Err(Failed));
    // Written anew, it is written.
    write(&mapping, 0, &[2; 3 * PAGE_SIZE]).expect("written");
    cache.sync_all(&mut Held::at_entry());
    assert!(!cache.has_failed_since(&all));
    assert_eq!(mapping.backing().contents(), vec![2; 3 * PAGE_SIZE]);
    assert_eq!(mapping.check_errors(&second), Ok(()));
    assert_eq!(mapping.backing().violations(), 0);
}

/// Pages that another thread is writing are waited for, and so is what comes of it.
#[test]
fn who_waits_for_what_another_writes_hears_that_it_failed() {
    let wait =
        |mapping: &TestMapping| mapping.write_back(&mut Held::at_entry(), 0..1, WaitFor::All);
    let evict = |mapping: &TestMapping| {
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = mapping.fence(&mut entry, 0..PAGE);
        fence.evict(&mut held, Evict::WriteFirst).map(drop)
    };
    for waits in [wait, evict] {
        let (cache, mapping) = setup(4 << 20);
        let all = cache.error_cursor();
        write(&mapping, 0, &[1; PAGE_SIZE]).expect("written");
        mapping.backing().stop_at(Stop::BeforeWrite);
        let flusher = start_sync(&mapping, WaitFor::Own);
        mapping.backing().wait_stopped(1);
        let waiting = Arc::clone(&mapping);
        let waiter = Task::start(move || waits(&waiting));
        assert!(!waiter.is_over_shortly(), "it is being written");
        mapping.backing().fail_writes(1);
        mapping.backing().go_on();
        assert_eq!(flusher.finish(), Err(Failed));
        assert_eq!(waiter.finish(), Err(Failed));
        assert_eq!(wait(&mapping), Ok(()), "told");
        assert!(cache.has_failed_since(&all));
    }
}

/// The size on disk covers what is in the copy, and nothing that was appended after it was made.
#[test]
fn an_append_while_pages_are_copied_is_in_the_copy_or_past_the_size() {
    let (_cache, mapping) = setup(4 << 20);
    write(&mapping, 0, &[1; 10]).expect("written");
    let appending = Arc::clone(&mapping);
    mapping.backing().on_size(move || {
        let append = move || write(&appending, 10, &[2; PAGE_SIZE]);
        let appended = Task::start(append).finish();
        assert_eq!(appended, Ok(PAGE_SIZE));
    });
    mapping
        .write_back(&mut Held::at_entry(), 0..PAGE, WaitFor::Own)
        .expect("written");
    let on_disk = usize::try_from(mapping.backing().disk_size()).expect("small");
    let mut expected = vec![1; 10];
    expected.resize(on_disk, 2);
    assert!(
        mapping.backing().contents()[..on_disk] == expected,
        "{on_disk} bytes"
    );
}

#[test]
fn one_bad_piece_does_not_keep_the_others_from_the_device() {
    let (_cache, mapping) = setup(4 << 20);
    for page in [0, 2, 4] {
        write(&mapping, page * PAGE, &[1; PAGE_SIZE]).expect("written");
    }
    mapping.backing().fail_writes(1);
    assert_eq!(sync(&mapping), Err(Failed));
    assert!(mapping.is_idle());
    let written = mapping.backing().take_writes();
    assert_eq!(written, [2 * PAGE..3 * PAGE, 4 * PAGE..5 * PAGE]);
}

#[test]
fn a_panic_in_the_backing_ends_the_writeback() {
    let (_cache, mapping) = setup(4 << 20);
    write(&mapping, 0, &[1; PAGE_SIZE]).expect("written");
    mapping.backing().panic_in_write();
    assert!(start_sync(&mapping, WaitFor::All).result().is_err());
    assert!(mapping.is_idle());
    super::edges::punch(&mapping, 0..PAGE);
}

#[test]
fn a_change_of_format_waits_for_writeback_and_keeps_it_out() {
    let (_cache, mapping) = setup(4 << 20);
    write(&mapping, 0, &[1; PAGE_SIZE]).expect("written");
    let mut entry = Held::at_entry();
    let (lock, _held) = mapping.writepages_lock().write(&mut entry);
    let syncer = start_sync(&mapping, WaitFor::All);
    assert!(!syncer.is_over_shortly(), "the format changes");
    assert_eq!(mapping.backing().take_batches(), 0);
    assert_eq!(mapping.dirty_pages(), 1);
    drop(lock);
    syncer.finish().expect("synced");
    assert!(mapping.is_idle());
}

#[test]
fn dirty_bytes_are_data_until_they_are_mapped() {
    let cache = PageCache::new(config(4 << 20)).expect("a cache");
    let mapping = Device::hole(100 * PAGE, 1024).mapped(&cache);
    assert_eq!(mapping.next_dirty(0), None);
    write(&mapping, 2 * PAGE + 3000, &[1; 2000]).expect("written");
    write(&mapping, 70 * PAGE + 10, &[1; 1]).expect("written");
    let first = 2 * PAGE + 2048..3 * PAGE + 1024;
    let check = || {
        assert_eq!(mapping.next_dirty(0), Some(first.clone()));
        assert_eq!(
            mapping.next_dirty(2 * PAGE + 2500),
            Some(2 * PAGE + 2500..first.end)
        );
        assert_eq!(
            mapping.next_dirty(3 * PAGE + 5),
            Some(3 * PAGE + 5..first.end)
        );
        let second = 70 * PAGE..70 * PAGE + 1024;
        assert_eq!(mapping.next_dirty(first.end), Some(second.clone()));
        assert_eq!(mapping.next_dirty(second.end), None);
    };
    check();
    mapping.backing().stop_at(Stop::BeforeMapping);
    let syncer = start_sync(&mapping, WaitFor::All);
    mapping.backing().wait_stopped(1);
    check();
    mapping.backing().go_on();
    syncer.finish().expect("synced");
    assert_eq!(mapping.next_dirty(0), None);
    assert_eq!(mapping.next_dirty(u64::MAX), None);
}

fn flushing(threads: usize, expire: Duration) -> Arc<PageCache> {
    PageCache::new(Config {
        flusher_threads: threads,
        dirty_expire: expire,
        ..config(4 << 20)
    })
    .expect("a cache")
}

fn until(what: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !what() {
        assert!(start.elapsed() < super::NEVER, "never came true");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn old_pages_are_written_in_the_background() {
    let cache = flushing(2, Duration::from_millis(20));
    let files: Vec<_> = (0..5)
        .map(|_| Device::hole(0, PAGE_SIZE).mapped(&cache))
        .collect();
    for (byte, file) in (1..).zip(&files) {
        write(file, 0, &[byte; 5000]).expect("written");
    }
    for (byte, file) in (1..).zip(&files) {
        until(|| file.is_idle());
        assert_eq!(file.backing().contents(), vec![byte; 5000]);
    }
    // Again: a file that was clean is found anew.
    write(&files[0], 0, &[9; 5000]).expect("written");
    until(|| files[0].is_idle());
    assert_eq!(cache.usage().dirty_bytes, 0);
}

#[test]
fn several_files_are_written_at_once() {
    let cache = flushing(2, Duration::ZERO);
    let files: Vec<_> = (0..2)
        .map(|_| Device::hole(0, PAGE_SIZE).mapped(&cache))
        .collect();
    for file in &files {
        file.backing().stop_at(Stop::BeforeWrite);
        write(file, 0, &[1; 10]).expect("written");
    }
    files.iter().for_each(|file| file.backing().wait_stopped(1));
    files.iter().for_each(|file| file.backing().go_on());
    files.iter().for_each(|file| until(|| file.is_idle()));
}

#[test]
fn many_dirty_pages_wake_the_flusher_before_they_are_old() {
    let cache = flushing(1, Duration::from_secs(1000));
    let mapping = Device::hole(0, PAGE_SIZE).mapped(&cache);
    write(&mapping, 0, &[1; 10 * PAGE_SIZE]).expect("written");
    assert_eq!(mapping.backing().take_batches(), 0);
    write(&mapping, 0, &[1; 110 * PAGE_SIZE]).expect("written");
    until(|| mapping.is_idle());
}

#[test]
fn who_finds_no_frame_wakes_the_flusher() {
    let cache = flushing(1, Duration::from_secs(1000));
    let mapping = Device::hole(0, PAGE_SIZE).mapped(&cache);
    write(&mapping, 0, &[1; 4 * PAGE_SIZE]).expect("written");
    let taken = cache.shared().take_all_frames();
    let other = Device::stamped(1, PAGE_SIZE).mapped(&cache);
    let reader = Task::start(move || read(&other, 0, PAGE_SIZE));
    assert_eq!(reader.finish(), Ok(stamped(0, 1)));
    drop(taken);
}

#[test]
fn dropping_the_cache_ends_the_flushers_and_keeps_what_is_dirty() {
    let cache = flushing(2, Duration::ZERO);
    let mapping = Device::hole(0, PAGE_SIZE).mapped(&cache);
    mapping.backing().stop_at(Stop::BeforeWrite);
    write(&mapping, 0, &[1; 10]).expect("written");
    mapping.backing().wait_stopped(1);
    write(&mapping, PAGE, &[2; 10]).expect("written");
    let dropper = Task::start(move || drop(cache));
    assert!(
        !dropper.is_over_shortly(),
        "waits for what is being written"
    );
    mapping.backing().go_on();
    dropper.finish();
    write(&mapping, 2 * PAGE, &[3; 10]).expect("written");
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().contents().len(), 2 * PAGE_SIZE + 10);
}

#[test]
fn a_flusher_that_drops_the_last_mapping_may_drop_the_cache() {
    let cache = flushing(1, Duration::ZERO);
    let mapping = Device::hole(0, PAGE_SIZE)
        .owning(Arc::clone(&cache))
        .mapped(&cache);
    mapping.backing().stop_at(Stop::BeforeWrite);
    write(&mapping, 0, &[1; 10]).expect("written");
    mapping.backing().wait_stopped(1);
    let (weak, remote) = (Arc::downgrade(&cache), mapping.backing().remote());
    drop(cache);
    drop(mapping);
    remote.go_on();
    until(|| weak.strong_count() == 0);
}

#[test]
fn writers_readers_fences_flushers_and_reclaim_together() {
    use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
    // Every page of the file is of one version at a time, and versions only grow or are zero.
    let cache = PageCache::new(Config {
        dirty_expire: Duration::from_millis(1),
        ..Config::new(SMALL)
    })
    .expect("a cache");
    let pages = 100_u64;
    let mapping = Device::hole(pages * PAGE, PAGE_SIZE).mapped(&cache);
    let stop = Arc::new(AtomicBool::new(false));
    let inode: Arc<pagefence_lock_order::OrderedRwLock<pagefence_lock_order::levels::Inode, ()>> =
        Arc::new(pagefence_lock_order::OrderedRwLock::new(7, ()));
    let writers: Vec<_> = (0..2_u64)
        .map(|seed| {
            let (mapping, inode) = (Arc::clone(&mapping), Arc::clone(&inode));
            Task::start(move || {
                let mut at = seed * 17 + 1;
                for version in 1..200_u8 {
                    at = (at * 13 + 7) % (pages - 8);
                    let data: Vec<u8> = (at..at + 8)
                        .flat_map(|page| stamped(page.try_into().expect("small"), version))
                        .collect();
                    let mut entry = Held::at_entry();
                    let (_lock, mut held) = inode.write(&mut entry);
                    assert_eq!(mapping.write(&mut held, at * PAGE, &data), Ok(data.len()));
                    if version % 16 == 0 {
                        let range = (at + 2) * PAGE..(at + 5) * PAGE;
                        let (mut fence, mut held) = mapping.fence(&mut held, range);
                        let how = crate::Evict::Discard;
                        Device::punch(&fence.evict(&mut held, how).expect("evicted"));
                    }
                }
            })
        })
        .collect();
    let readers: Vec<_> = (0..2_u64)
        .map(|seed| {
            let (mapping, stop) = (Arc::clone(&mapping), Arc::clone(&stop));
            Task::start(move || {
                let mut at = seed;
                while !stop.load(Ordering::SeqCst) {
                    at = (at * 7 + 3) % pages;
                    let page = read(&mapping, at * PAGE, PAGE_SIZE).expect("read");
                    let number = u64::from_le_bytes(page[..8].try_into().expect("8 bytes"));
                    assert!(number == at || number == 0, "page {number} at {at}");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.finish();
    }
    stop.store(true, Ordering::SeqCst);
    readers.into_iter().for_each(Task::finish);
    let cached = read(&mapping, 0, 100 * PAGE_SIZE).expect("read");
    sync(&mapping).expect("synced");
    assert_eq!(mapping.backing().contents(), cached);
    assert_eq!(mapping.backing().violations(), 0);
    assert_eq!(mapping.backing().reserved(), 0);
}
