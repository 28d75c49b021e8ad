//! The budget is never exceeded; holes and small files cost nothing.

use pagefence_host_memory::FrameMut;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Invalidate, PageLock, Writepages};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};

use super::device::Device;
use super::{SMALL, Task, config, read, stamped};
use crate::backing::{Backing, PAGE_SIZE, Segment, WriteBacking};
use crate::{Config, Mapping, PageCache, Readahead, WriteBatch};

const PAGE: u64 = PAGE_SIZE as u64;

/// A large file: a hole, with one page of data in every `stride`; 0 for none.
struct Sparse {
    size: u64,
    stride: u64,
    reads: AtomicU64,
}

impl Sparse {
    fn new(size: u64, stride: u64) -> Self {
        Self {
            size,
            stride,
            reads: AtomicU64::new(0),
        }
    }
}

impl Backing for Sparse {
    type Error = ();

    fn size(&self) -> u64 {
        self.size
    }

    fn segment(&self, _: &mut Held<'_, Invalidate>, offset: u64) -> Result<(Segment, u64), ()> {
        let page = offset / PAGE;
        let next = |page: u64| page.saturating_mul(PAGE) - offset;
        Ok(match page.checked_rem(self.stride) {
            None => (Segment::Hole, u64::MAX),
            Some(0) => (Segment::Data, next(page + 1)),
            Some(rest) => (Segment::Hole, next(page - rest + self.stride)),
        })
    }

    fn read_pages(
        &self,
        _: &mut Held<'_, PageLock>,
        first: u64,
        pages: &mut [FrameMut],
    ) -> Result<(), ()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        for (page, frame) in (first..).zip(pages) {
            frame.fill(0);
            frame[..8].copy_from_slice(&page.to_le_bytes());
        }
        Ok(())
    }
}

#[test]
fn a_hundred_times_the_budget_is_read_within_it() {
    let budget = 2 << 20;
    let cache = PageCache::new(Config::new(budget)).expect("a cache");
    let mapping = Mapping::new(&cache, 1, Sparse::new(100 * budget, 1));
    let done = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (cache, done) = (Arc::clone(&cache), Arc::clone(&done));
        Task::start(move || {
            let mut most = 0;
            while !done.load(Ordering::SeqCst) {
                most = most.max(cache.usage().used_bytes);
            }
            most
        })
    };
    let readers: Vec<_> = (0..4_u64)
        .map(|part| {
            let mapping = Arc::clone(&mapping);
            Task::start(move || {
                let readahead = Readahead::new();
                let mut buffer = vec![0; 128 << 10];
                let mut offset = part * 25 * budget;
                while offset < (part + 1) * 25 * budget {
                    let read = mapping
                        .read(&mut Held::at_entry(), &readahead, offset, &mut buffer)
                        .expect("read");
                    for (at, page) in buffer[..read].chunks(PAGE_SIZE).enumerate() {
                        let number = u64::from_le_bytes(page[..8].try_into().expect("8 bytes"));
                        assert_eq!(number, offset / PAGE + at as u64);
                    }
                    offset += read as u64;
                }
            })
        })
        .collect();
    for reader in readers {
        reader.finish();
    }
    done.store(true, Ordering::SeqCst);
    let most = watcher.finish();
    assert!(most <= budget, "{most} bytes of {budget}");
    assert!(most > budget / 2, "the cache was used");
    assert!(mapping.nr_pages() * PAGE <= budget);
}

#[test]
fn a_sparse_file_costs_no_memory() {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Mapping::new(&cache, 1, Sparse::new(100 << 30, 0));
    let readahead = Readahead::new();
    let mut buffer = vec![0xEE; 1 << 20];
    for offset in (0..100_u64 << 30).step_by(64 << 20) {
        buffer.fill(0xEE);
        let read = mapping.read(&mut Held::at_entry(), &readahead, offset, &mut buffer);
        assert_eq!(read.expect("read"), buffer.len());
        assert!(buffer.iter().all(|&byte| byte == 0));
    }
    assert_eq!(mapping.nr_pages(), 0);
    assert_eq!(cache.usage().used_bytes, 0);
    assert_eq!(mapping.backing().reads.load(Ordering::Relaxed), 0);
}

#[test]
fn lone_pages_among_holes_are_found_and_stay_within_the_budget() {
    let budget = 1 << 20;
    let cache = PageCache::new(config(budget)).expect("a cache");
    let mapping = Mapping::new(&cache, 1, Sparse::new(1 << 40, 1000));
    for page in (0..1_000_000).step_by(1000) {
        let mut buffer = [0xEE; 3 * PAGE_SIZE];
        let offset = if page == 0 { 0 } else { (page - 1) * PAGE };
        let read = mapping.read(
            &mut Held::at_entry(),
            &Readahead::new(),
            offset,
            &mut buffer,
        );
        assert_eq!(read.expect("read"), buffer.len());
        let at = usize::try_from(page * PAGE - offset).expect("small");
        assert_eq!(buffer[at..at + 8], page.to_le_bytes());
        assert!(cache.usage().used_bytes <= budget);
    }
}

#[test]
fn an_empty_mapping_is_small() {
    let rest = size_of::<crate::pages::Pages>() + 2 * size_of::<usize>();
    assert!(size_of::<Mapping<()>>() + rest < 300);
}

impl Backing for () {
    type Error = ();

    fn size(&self) -> u64 {
        u64::MAX
    }

    fn segment(&self, _: &mut Held<'_, Invalidate>, _: u64) -> Result<(Segment, u64), ()> {
        Ok((Segment::Data, u64::MAX))
    }

    fn read_pages(
        &self,
        _: &mut Held<'_, PageLock>,
        _: u64,
        pages: &mut [FrameMut],
    ) -> Result<(), ()> {
        pages.iter_mut().for_each(|frame| frame.fill(1));
        Ok(())
    }
}

impl WriteBacking for () {
    fn block_size(&self) -> u32 {
        4096
    }

    fn reserve(&self, _: &mut Held<'_, PageLock>, _: std::ops::Range<u64>) -> Result<(), ()> {
        Ok(())
    }

    fn grow(&self, _: &mut Held<'_, PageLock>, end: u64) {
        assert!(end <= u64::MAX >> 1);
    }

    fn write_pages(&self, _: &mut Held<'_, Writepages>, _: &WriteBatch<'_>) -> Result<(), ()> {
        Ok(())
    }
}

#[test]
fn offsets_near_the_end_of_all_numbers_are_safe() {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Mapping::new(&cache, 1, ());
    let end = u64::MAX >> 1;
    let read = |offset: u64, len: usize| {
        let mut buffer = vec![0; len];
        let read = mapping
            .read(
                &mut Held::at_entry(),
                &Readahead::new(),
                offset,
                &mut buffer,
            )
            .expect("read");
        assert!(buffer[..read].iter().all(|&byte| byte == 1));
        read
    };
    assert_eq!(read(u64::MAX, 100), 0);
    assert_eq!(read(u64::MAX - 50, 100), 0);
    assert_eq!(read(end, 100), 0);
    assert_eq!(read(end - 10, 100), 10);
    assert_eq!(read(end - 3 * PAGE - 5, 4 * PAGE_SIZE), 3 * PAGE_SIZE + 5);
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, end - PAGE..u64::MAX);
    let _ = fence
        .evict(&mut held, crate::Evict::Discard)
        .expect("evicted");
    drop(fence);
    assert!(mapping.nr_pages() > 0);
    let (mut fence, mut held) = mapping.fence(&mut entry, 0..u64::MAX);
    let _ = fence
        .evict(&mut held, crate::Evict::Discard)
        .expect("evicted");
    assert_eq!(mapping.nr_pages(), 0);
}

#[test]
fn dropping_a_mapping_gives_its_frames_back() {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Device::stamped(40, PAGE_SIZE).mapped(&cache);
    read(&mapping, 0, 40 * PAGE_SIZE).expect("read");
    assert_eq!(mapping.nr_pages(), 40);
    assert!(cache.usage().used_bytes >= 40 * PAGE);
    drop(mapping);
    assert_eq!(cache.usage().used_bytes, 0);
}

#[test]
fn pages_in_use_outlive_a_scan() {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let hot = Device::stamped(4, PAGE_SIZE).mapped(&cache);
    let scan = Device::stamped(400, PAGE_SIZE).mapped(&cache);
    for page in 0..400 {
        if page % 16 == 0 {
            for hot_page in 0..4 {
                let bytes = read(&hot, hot_page * PAGE, PAGE_SIZE).expect("read");
                assert_eq!(bytes, stamped(hot_page.try_into().expect("small"), 1));
            }
        }
        read(&scan, page * PAGE, PAGE_SIZE).expect("read");
    }
    let reads = hot.backing().take_reads();
    assert_eq!(reads.len(), 1, "the hot pages were read once: {reads:?}");
}

#[test]
fn shrinking_gives_pages_up() {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Device::stamped(40, PAGE_SIZE).mapped(&cache);
    read(&mapping, 0, 40 * PAGE_SIZE).expect("read");
    assert!(cache.shrink(10 * PAGE) >= 10 * PAGE);
    assert!(mapping.nr_pages() <= 30);
    cache.shrink(u64::MAX);
    cache.shrink(u64::MAX);
    assert_eq!(cache.usage().used_bytes, 0);
    assert_eq!(read(&mapping, 0, PAGE_SIZE), Ok(stamped(0, 1)));
}

#[test]
fn budgets_that_make_no_sense_are_refused() {
    for budget in [0, SMALL - 1, u64::MAX] {
        assert!(PageCache::new(config(budget)).is_err());
    }
}
