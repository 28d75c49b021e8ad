//! Tests with real page faults, on a disk that the test is in command of.

mod disk;
mod eyes;
mod holes;
mod mutants;
mod poison;
mod populate;
mod races;
mod remote;
mod schedules;
mod smoke;
mod space;
mod stress;

use std::ops::Range;
use std::time::{Duration, Instant};

use pagefence_lock_order::levels::Inode;
use pagefence_lock_order::primitives::{Arc, thread};
use pagefence_lock_order::{Held, OrderedRwLock};
use pagefence_page_cache::{
    Backing, Config, Evict, FileMemory, Mapping, PAGE_SIZE, PageCache, ReadError, Readahead,
    WaitFor,
};

use crate::{Faults, Kind, Region, Service};
use disk::{Disk, Failed};

const PAGE: u64 = PAGE_SIZE as u64;

/// The least budget: 59 pages.
const SMALL: u64 = 256 << 10;

/// What page `index` of a test's file holds.
fn stamped(index: u64) -> Vec<u8> {
    let mut page = vec![1; PAGE_SIZE];
    page[..8].copy_from_slice(&index.to_le_bytes());
    page
}

/// A file of `pages` stamped pages, in blocks of a page.
fn stamped_disk(pages: u64) -> Disk {
    Disk::of_bytes((0..pages).flat_map(stamped).collect(), PAGE_SIZE)
}

/// A file on a cache of its own, and who maps it.
struct Bench {
    cache: Arc<PageCache>,
    mapping: Arc<Mapping<Disk>>,
    inode: OrderedRwLock<Inode, ()>,
    service: Arc<Service>,
}

impl Bench {
    /// A file on `disk`, in a cache of the least size without threads.
    fn new(disk: Disk) -> Arc<Self> {
        Self::with(disk, SMALL, 0)
    }

    /// A file on `disk`, in a cache of `budget_bytes` with `flushers`.
    fn with(disk: Disk, budget_bytes: u64, flushers: usize) -> Arc<Self> {
        let config = Config {
            readahead_workers: 0,
            flusher_threads: flushers,
            ..Config::new(budget_bytes)
        };
        let cache = PageCache::new(config).expect("a cache");
        Arc::new(Self {
            mapping: Mapping::new(&cache, 7, disk),
            inode: OrderedRwLock::new(7, ()),
            service: Service::new(2),
            cache,
        })
    }

    /// The file's memory: its pages are there from now on.
    fn memory(&self) -> Arc<FileMemory> {
        let mut entry = Held::at_entry();
        let (_alone, mut held) = self.inode.write(&mut entry);
        self.mapping.share_memory(&mut held).expect("memory")
    }

    /// Maps `pages` of the file.
    fn map(&self, pages: Range<u64>, kind: Kind) -> Region<Disk> {
        let bytes = usize::try_from((pages.end - pages.start) * PAGE).expect("small");
        let range = (pages.start, bytes);
        let memory = self.memory();
        let faults = Faults::OfPrograms;
        Region::map(&self.mapping, &memory, range, kind, faults, &self.service).expect("a region")
    }

    fn disk(&self) -> &Disk {
        self.mapping.backing()
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Failed> {
        let mut buffer = vec![0xEE; len];
        let readahead = Readahead::new();
        match self
            .mapping
            .read(&mut Held::at_entry(), &readahead, offset, &mut buffer)
        {
            Ok(read) => {
                buffer.truncate(read);
                Ok(buffer)
            }
            Err(ReadError::Backing(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Failed> {
        let mut entry = Held::at_entry();
        let (_alone, mut held) = self.inode.write(&mut entry);
        self.mapping.write(&mut held, offset, data)
    }

    /// Writes back everything.
    fn sync(&self) -> Result<(), Failed> {
        self.mapping
            .write_back(&mut Held::at_entry(), 0..u64::MAX, WaitFor::All)
    }

    fn punch(&self, range: Range<u64>) {
        let mut entry = Held::at_entry();
        let (_alone, mut held) = self.inode.write(&mut entry);
        let (mut fence, mut held) = self.mapping.fence(&mut held, range);
        let evicted = fence.evict(&mut held, Evict::Discard);
        Disk::punch(&evicted.expect("evicted"));
    }

    /// Makes the file `size` bytes long.
    fn truncate(&self, size: u64) {
        let mut entry = Held::at_entry();
        let (_alone, mut held) = self.inode.write(&mut entry);
        let from = size.min(self.disk().size());
        let (mut fence, mut held) = self.mapping.fence(&mut held, from..u64::MAX);
        let shorten = || self.disk().set_size(size);
        let evicted = fence.evict_with(&mut held, Evict::Discard, shorten);
        Disk::cut(&evicted.expect("evicted"));
    }

    /// Takes all clean pages out of the cache but those that somebody has locked for long: who has
    /// served a fault has its pages locked a moment longer than the program waits.
    fn reclaim_all(&self) {
        let start = Instant::now();
        loop {
            // Each round spares pages that were used since the last one.
            while self.cache.shrink(u64::MAX) > 0 {}
            let clean = self.mapping.nr_pages() - self.mapping.dirty_pages() as u64;
            if clean == 0 || start.elapsed() > SHORTLY {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Loads `len` bytes at byte `offset` of the file.
fn load(region: &Region<Disk>, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xEE; len];
    region.view().load(place(region, offset), &mut bytes);
    bytes
}

/// Stores at byte `offset` of the file.
fn store(region: &Region<Disk>, offset: u64, bytes: &[u8]) {
    region.view().store(place(region, offset), bytes);
}

fn place(region: &Region<Disk>, offset: u64) -> usize {
    usize::try_from(offset - region.pages().start * PAGE).expect("inside")
}

/// A thread of a test.
struct Task<T>(thread::JoinHandle<T>);

/// Long enough for a thread that is not held up to finish.
const SHORTLY: Duration = Duration::from_millis(200);

/// A thread that takes this long hangs.
const NEVER: Duration = Duration::from_secs(30);

impl<T: Send + 'static> Task<T> {
    fn start(body: impl FnOnce() -> T + Send + 'static) -> Self {
        Self(thread::spawn("test", body).expect("a thread"))
    }

    /// Whether it is over, or will be in a moment.
    fn is_over_shortly(&self) -> bool {
        self.wait(SHORTLY)
    }

    /// What it came to; panics if it panicked or hangs.
    fn finish(self) -> T {
        assert!(self.wait(NEVER), "a thread hangs");
        self.0.join().expect("no panic")
    }

    fn wait(&self, most: Duration) -> bool {
        let start = Instant::now();
        while !self.0.is_finished() && start.elapsed() < most {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.0.is_finished()
    }
}
