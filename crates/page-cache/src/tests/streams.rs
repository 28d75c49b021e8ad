//! Readahead, seen from the device: what is read, in how many pieces, and who waits.

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;

use super::device::{Device, Stop, TestMapping};
use super::{SMALL, Task, config, only, read, read_with, stamped};
use crate::backing::PAGE_SIZE;
use crate::{Config, Evict, Hint, PageCache, Readahead};

const PAGE: u64 = PAGE_SIZE as u64;
const REQUEST: usize = 128 << 10;
const PAGES: usize = 2048;

fn setup() -> (Arc<PageCache>, Arc<TestMapping>) {
    let cache = PageCache::new(config(64 << 20)).expect("a cache");
    let mapping = Device::stamped(PAGES, PAGE_SIZE).mapped(&cache);
    (cache, mapping)
}

fn request(mapping: &TestMapping, readahead: &Readahead, number: usize) {
    let offset = (number * REQUEST) as u64;
    let bytes = read_with(mapping, readahead, offset, REQUEST).expect("read");
    assert_eq!(bytes.len(), REQUEST);
    for (at, page) in bytes.chunks(PAGE_SIZE).enumerate() {
        assert_eq!(page, stamped(number * REQUEST / PAGE_SIZE + at, 1));
    }
}

fn pages_of(reads: &[Range<u64>]) -> u64 {
    reads.iter().map(|range| range.end - range.start).sum()
}

/// Reads the file by `order`, running queued readahead after each request; how many requests had
/// to wait for the device.
fn stream(cache: &PageCache, mapping: &TestMapping, order: &[usize]) -> (usize, Vec<Range<u64>>) {
    let readahead = Readahead::new();
    let (mut waited, mut all) = (0, Vec::new());
    for &number in order {
        request(mapping, &readahead, number);
        let reads = mapping.backing().take_reads();
        waited += usize::from(!reads.is_empty());
        all.extend(reads);
        while cache.run_readahead(&mut Held::at_entry()) {}
        all.extend(mapping.backing().take_reads());
    }
    (waited, all)
}

#[test]
fn a_sequential_reader_waits_once() {
    let (cache, mapping) = setup();
    let order: Vec<usize> = (0..PAGES * PAGE_SIZE / REQUEST).collect();
    let (waited, reads) = stream(&cache, &mapping, &order);
    assert_eq!(waited, 1);
    assert_eq!(pages_of(&reads), PAGES as u64, "each page once");
    assert!(reads.len() <= 8, "few and long: {reads:?}");
    let longest = reads.iter().map(|range| range.end - range.start).max();
    assert_eq!(longest, Some(512), "the window grew to 2 MiB");
}

#[test]
fn small_sequential_reads_are_gathered() {
    let (cache, mapping) = setup();
    let readahead = Readahead::new();
    for page in 0..512 {
        let bytes = read_with(&mapping, &readahead, page * PAGE, PAGE_SIZE).expect("read");
        assert_eq!(bytes, stamped(page.try_into().expect("small"), 1));
        while cache.run_readahead(&mut Held::at_entry()) {}
    }
    let reads = mapping.backing().take_reads();
    assert!(reads.len() <= 8, "{reads:?}");
    assert_eq!(reads[0], 0..32, "128 KiB at first");
}

#[test]
fn requests_slightly_out_of_order_are_a_stream() {
    for swap in [[1, 0, 3, 2], [2, 0, 1, 3], [3, 2, 1, 0]] {
        let (cache, mapping) = setup();
        let order: Vec<usize> = (0..PAGES * PAGE_SIZE / REQUEST)
            .map(|number| number / 4 * 4 + swap[number % 4])
            .collect();
        let (waited, reads) = stream(&cache, &mapping, &order);
        assert!(waited <= 8, "{swap:?}: {waited} of 64 waited");
        assert_eq!(pages_of(&reads), PAGES as u64, "each page once");
        assert!(reads.len() <= 16, "{swap:?}: {reads:?}");
    }
}

#[test]
fn threads_sharing_a_stream_read_each_page_once() {
    use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
    let cache = PageCache::new(Config::new(64 << 20)).expect("a cache");
    let mapping = Device::stamped(PAGES, PAGE_SIZE).mapped(&cache);
    let (next, readahead) = (Arc::new(AtomicUsize::new(0)), Arc::new(Readahead::new()));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (next, readahead) = (Arc::clone(&next), Arc::clone(&readahead));
            let mapping = Arc::clone(&mapping);
            Task::start(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= PAGES * PAGE_SIZE / REQUEST {
                        return;
                    }
                    request(&mapping, &readahead, number);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.finish();
    }
    // A window may still be in flight at the end of the file; dropping the cache waits for it.
    drop(cache);
    let reads = mapping.backing().take_reads();
    assert_eq!(pages_of(&reads), PAGES as u64, "each page once");
    assert!(reads.len() < PAGES * PAGE_SIZE / REQUEST, "{reads:?}");
}

#[test]
fn random_reads_read_what_they_ask_for() {
    let (cache, mapping) = setup();
    let readahead = Readahead::new();
    let mut page = 1000;
    for _ in 0..50 {
        read_with(&mapping, &readahead, page * PAGE, PAGE_SIZE).expect("read");
        assert!(!cache.run_readahead(&mut Held::at_entry()));
        page = (page * 5 + 701) % PAGES as u64;
    }
    let reads = mapping.backing().take_reads();
    assert!(
        reads.iter().all(|range| range.end - range.start == 1),
        "{reads:?}"
    );
}

#[test]
fn hints_are_followed() {
    let (cache, mapping) = setup();
    let readahead = Readahead::new();
    readahead.set_hint(Hint::Random);
    for number in 0..4 {
        request(&mapping, &readahead, number);
    }
    assert!(!cache.run_readahead(&mut Held::at_entry()));
    assert_eq!(pages_of(&mapping.backing().take_reads()), 4 * 32);
    readahead.set_hint(Hint::Sequential);
    assert_eq!(readahead.hint(), Hint::Sequential);
    read_with(&mapping, &readahead, 1000 * PAGE, PAGE_SIZE).expect("read");
    assert_eq!(only(mapping.backing().take_reads()), 1000..1032);
}

#[test]
fn no_window_at_all() {
    let cache = PageCache::new(Config {
        readahead_max_bytes: 0,
        ..config(1 << 20)
    })
    .expect("a cache");
    let mapping = Device::stamped(64, PAGE_SIZE).mapped(&cache);
    let readahead = Readahead::new();
    for page in 0..64 {
        read_with(&mapping, &readahead, page * PAGE, PAGE_SIZE).expect("read");
    }
    assert_eq!(mapping.backing().take_reads().len(), 64);
}

#[test]
fn nothing_is_read_past_the_end() {
    let cache = PageCache::new(config(1 << 20)).expect("a cache");
    let mapping = Device::stamped(20, PAGE_SIZE).mapped(&cache);
    assert_eq!(
        read(&mapping, 0, 100 * PAGE_SIZE).expect("read").len(),
        20 * PAGE_SIZE
    );
    assert!(!cache.run_readahead(&mut Held::at_entry()));
    assert_eq!(only(mapping.backing().take_reads()), 0..20);
    assert_eq!(mapping.nr_pages(), 20);
    assert_eq!(read(&mapping, 20 * PAGE, 10), Ok(vec![]));
}

#[test]
fn holes_in_a_window_take_no_memory() {
    let (cache, mapping) = setup();
    {
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = mapping.fence(&mut entry, 40 * PAGE..100 * PAGE);
        Device::punch(&fence.evict(&mut held, Evict::Discard).expect("evicted"));
    }
    let readahead = Readahead::new();
    for number in 0..6 {
        let offset = (number * REQUEST) as u64;
        assert_eq!(
            read_with(&mapping, &readahead, offset, REQUEST),
            Ok(mapping.backing().contents()[number * REQUEST..][..REQUEST].to_vec())
        );
        while cache.run_readahead(&mut Held::at_entry()) {}
    }
    assert!((40..100).all(|page| mapping.pages().get(page).is_none()));
    assert_eq!(mapping.backing().violations(), 0);
}

#[test]
fn a_full_queue_forgets_and_the_reader_reads_itself() {
    let cache = PageCache::new(Config {
        readahead_queue: 0,
        ..config(64 << 20)
    })
    .expect("a cache");
    let mapping = Device::stamped(PAGES, PAGE_SIZE).mapped(&cache);
    let readahead = Readahead::new();
    for number in 0..PAGES * PAGE_SIZE / REQUEST {
        request(&mapping, &readahead, number);
    }
    let reads = mapping.backing().take_reads();
    assert_eq!(pages_of(&reads), PAGES as u64);
    assert!(
        reads.len() < 12,
        "windows grow without workers too: {reads:?}"
    );
}

#[test]
fn queued_windows_do_not_keep_a_mapping() {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Device::stamped(40, PAGE_SIZE).mapped(&cache);
    assert!(mapping.queue_readahead(0..40, None));
    let weak = Arc::downgrade(&mapping);
    drop(mapping);
    assert!(weak.upgrade().is_none());
    assert!(
        cache.run_readahead(&mut Held::at_entry()),
        "queued, and nothing to read"
    );
    assert_eq!(cache.usage().used_bytes, 0);
}

#[test]
fn dropping_the_cache_waits_for_the_read_in_flight_and_forgets_the_rest() {
    let cache = PageCache::new(Config {
        readahead_workers: 1,
        ..Config::new(SMALL)
    })
    .expect("a cache");
    let mapping = Device::stamped(40, PAGE_SIZE).mapped(&cache);
    mapping.backing().stop_at(Stop::BeforeIo);
    assert!(mapping.queue_readahead(0..4, None));
    assert!(mapping.queue_readahead(20..24, None));
    mapping.backing().wait_stopped(1);
    let dropper = Task::start(move || drop(cache));
    assert!(!dropper.is_over_shortly());
    mapping.backing().go_on();
    dropper.finish();
    assert_eq!(only(mapping.backing().take_reads()), 0..4);
    assert!(!mapping.queue_readahead(0..4, None));
    assert_eq!(
        read(&mapping, 0, PAGE_SIZE),
        Ok(stamped(0, 1)),
        "it still reads"
    );
}

#[test]
fn a_worker_that_drops_the_last_mapping_may_drop_the_cache() {
    let cache = PageCache::new(Config {
        readahead_workers: 1,
        ..Config::new(SMALL)
    })
    .expect("a cache");
    let mapping = Device::stamped(40, PAGE_SIZE)
        .owning(Arc::clone(&cache))
        .mapped(&cache);
    mapping.backing().stop_at(Stop::BeforeIo);
    assert!(mapping.queue_readahead(0..4, None));
    mapping.backing().wait_stopped(1);
    let (weak, remote) = (Arc::downgrade(&cache), mapping.backing().remote());
    drop(cache);
    drop(mapping);
    remote.go_on();
    while weak.strong_count() != 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
