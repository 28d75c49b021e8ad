//! Pages that are the storage: they stay, whoever wants memory or clean pages.

use std::ops::Range;

use pagefence_host_memory::FrameMut;
use pagefence_lock_order::levels::{Inode, Invalidate, PageLock, Writepages};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::{Held, OrderedRwLock};

use crate::{
    Backing, Config, Evict, Mapping, PAGE_SIZE, PageCache, Readahead, Segment, WaitFor,
    WriteBacking, WriteBatch,
};

const PAGES: usize = 40;

/// A file that is nowhere but in the cache.
#[derive(Debug, Default)]
struct InMemory {
    size: AtomicU64,
}

impl Backing for InMemory {
    type Error = ();

    const IS_STORAGE: bool = true;

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn segment(&self, _: &mut Held<'_, Invalidate>, offset: u64) -> Result<(Segment, u64), ()> {
        Ok((Segment::Hole, u64::MAX - offset))
    }

    fn read_pages(
        &self,
        _: &mut Held<'_, PageLock>,
        _: u64,
        pages: &mut [FrameMut],
    ) -> Result<(), ()> {
        pages.iter_mut().for_each(|page| page.fill(0));
        Ok(())
    }
}

impl WriteBacking for InMemory {
    fn block_size(&self) -> u32 {
        4096
    }

    fn reserve(&self, _: &mut Held<'_, PageLock>, range: Range<u64>) -> Result<(), ()> {
        let end = (PAGES * PAGE_SIZE) as u64;
        if range.end <= end { Ok(()) } else { Err(()) }
    }

    fn grow(&self, _: &mut Held<'_, PageLock>, end: u64) {
        self.size.fetch_max(end, Ordering::AcqRel);
    }

    fn write_pages(&self, _: &mut Held<'_, Writepages>, _: &WriteBatch<'_>) -> Result<(), ()> {
        panic!("written back");
    }
}

struct Bench {
    cache: Arc<PageCache>,
    inode: OrderedRwLock<Inode, ()>,
    mapping: Arc<Mapping<InMemory>>,
}

fn bench() -> Bench {
    let mut config = Config::for_storage(PAGES as u64, 1);
    assert_eq!((config.readahead_workers, config.flusher_threads), (0, 0));
    // With flushers, so that they may do harm.
    config.flusher_threads = 1;
    config.dirty_expire = std::time::Duration::ZERO;
    let cache = PageCache::new(config).expect("memory");
    Bench {
        mapping: Mapping::new(&cache, 1, InMemory::default()),
        inode: OrderedRwLock::new(1, ()),
        cache,
    }
}

impl Bench {
    fn write(&self, offset: usize, data: &[u8]) -> Result<usize, ()> {
        let mut entry = Held::at_entry();
        let (_alone, mut held) = self.inode.write(&mut entry);
        self.mapping.write(&mut held, offset as u64, data)
    }

    fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0xee; (PAGES + 1) * PAGE_SIZE];
        let readahead = Readahead::new();
        let mut held = Held::at_entry();
        let read = self.mapping.read(&mut held, &readahead, 0, &mut bytes);
        bytes.truncate(read.expect("nothing can fail"));
        bytes
    }
}

#[test]
fn pages_that_are_the_storage_are_neither_written_nor_reclaimed() {
    let bench = bench();
    let data: Vec<u8> = (0..PAGES * PAGE_SIZE).map(|at| (at % 251) as u8).collect();
    assert_eq!(bench.write(0, &data), Ok(data.len()));
    let usage = bench.cache.usage();
    assert_eq!((usage.dirty_bytes, usage.writeback_bytes), (0, 0));
    let mut held = Held::at_entry();
    assert!(!bench.cache.run_flusher(&mut held));
    bench.cache.sync_all(&mut held);
    let everything = 0..u64::MAX;
    let written = bench
        .mapping
        .write_back(&mut held, everything, WaitFor::All);
    assert_eq!(written, Ok(()));
    bench.cache.shrink(u64::MAX);
    assert_eq!(bench.mapping.dirty_pages(), PAGES);
    assert_eq!(bench.read(), data);
}

#[test]
fn a_storage_that_is_full_refuses_and_does_not_wait() {
    let bench = bench();
    let data = vec![7; (PAGES + 20) * PAGE_SIZE];
    assert_eq!(bench.write(100, &data), Ok(PAGES * PAGE_SIZE - 100));
    assert_eq!(bench.write(PAGES * PAGE_SIZE, &data), Err(()));
}

#[test]
fn a_fence_frees_pages_that_are_the_storage() {
    let bench = bench();
    let data = vec![7; PAGES * PAGE_SIZE];
    assert_eq!(bench.write(0, &data), Ok(data.len()));
    let (from, end) = (PAGE_SIZE + 10, 9 * PAGE_SIZE + 20);
    {
        let mut entry = Held::at_entry();
        let (_alone, mut held) = bench.inode.write(&mut entry);
        let bytes = from as u64..end as u64;
        let (mut fence, mut held) = bench.mapping.fence(&mut held, bytes);
        let evicted = fence.evict(&mut held, Evict::Discard);
        assert!(evicted.is_ok(), "nothing is to be written");
    }
    assert_eq!(bench.mapping.nr_pages(), PAGES as u64 - 7);
    let mut expected = data;
    expected[from..end].fill(0);
    assert_eq!(bench.read(), expected);
    let hole = (9 * PAGE_SIZE) as u64;
    assert_eq!(
        bench.mapping.next_dirty(from as u64 + PAGE_SIZE as u64),
        Some(hole..(PAGES * PAGE_SIZE) as u64)
    );
}
