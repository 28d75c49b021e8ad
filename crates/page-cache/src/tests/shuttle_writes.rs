//! The writing half under a scheduler that chooses interleavings.
//!
//! Oracles: a reader never sees an older version than one that was certainly written before it
//! began; no write is in flight to blocks that were taken away, no dirty block is without space
//! (the device's); in the end the device has what the cache has.

use std::ops::Range;

use pagefence_lock_order::levels::Inode;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicU8, Ordering};
use pagefence_lock_order::primitives::thread::{JoinHandle, spawn};
use pagefence_lock_order::schedules::{by_chance, by_priority};
use pagefence_lock_order::{Held, OrderedRwLock};

use super::device::{Device, TestMapping};
use super::{SMALL, config, read_with, stamped, sync};
use crate::backing::PAGE_SIZE;
use crate::mutants::Mutants;
use crate::reclaim::Pressure;
use crate::write_batch::WHOLE;
use crate::{Config, Evict, FileMemory, PageCache, Readahead, WaitFor};

const PAGE: u64 = PAGE_SIZE as u64;
const PAGES: u64 = 2;
const SCHEDULES: usize = 2000;

pub(super) struct World {
    pub(super) cache: Arc<PageCache>,
    pub(super) mapping: Arc<TestMapping>,
    inode: OrderedRwLock<Inode, ()>,
    /// The version that every page has at least.
    pub(super) floor: AtomicU8,
}

impl World {
    pub(super) fn new(mutants: Mutants) -> Arc<Self> {
        Self::of(
            config(SMALL),
            mutants,
            Device::hole(PAGES * PAGE, PAGE_SIZE),
        )
    }

    pub(super) fn of(config: Config, mutants: Mutants, device: Device) -> Arc<Self> {
        let cache = PageCache::with_mutants(config, mutants).expect("a cache");
        let mapping = device.mapped(&cache);
        mapping.backing().let_holes_be_read();
        Arc::new(Self {
            cache,
            mapping,
            inode: OrderedRwLock::new(7, ()),
            floor: AtomicU8::new(0),
        })
    }

    pub(super) fn thread(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce(&Self) + Send + 'static,
    ) -> JoinHandle<()> {
        let world = Arc::clone(self);
        spawn(name, move || body(&world)).expect("a thread")
    }

    pub(super) fn read(&self, page: u64) {
        let least = self.floor.load(Ordering::SeqCst);
        let bytes = read_with(&self.mapping, &Readahead::new(), page * PAGE, PAGE_SIZE);
        let bytes = bytes.expect("read");
        let version = bytes[100];
        assert!(version >= least, "stale: version {version} after {least}");
    }

    pub(super) fn write_at(&self, offset: u64, data: &[u8]) {
        let mut entry = Held::at_entry();
        let (_lock, mut held) = self.inode.write(&mut entry);
        let written = self.mapping.write(&mut held, offset, data);
        assert_eq!(written, Ok(data.len()));
    }

    /// Writes past the cache.
    pub(super) fn write_direct(&self, offset: u64, data: &[u8]) {
        let mut entry = Held::at_entry();
        let (_lock, mut held) = self.inode.read(&mut entry);
        let written = self.mapping.write_direct(&mut held, offset, data);
        assert_eq!(written, Ok(data.len()));
    }

    /// Writes `version` to every page.
    fn write(&self, version: u8) {
        let data: Vec<u8> = (0..PAGES)
            .flat_map(|page| stamped(page.try_into().expect("small"), version))
            .collect();
        self.write_at(0, &data);
        self.floor.fetch_max(version, Ordering::SeqCst);
    }

    /// The file's pages lie in a memory that can be mapped: this one.
    pub(super) fn share_memory(&self) -> Arc<FileMemory> {
        let mut entry = Held::at_entry();
        let (_lock, mut held) = self.inode.write(&mut entry);
        self.mapping.share_memory(&mut held).expect("memory")
    }

    pub(super) fn write_back(&self, wait: WaitFor) {
        let held = &mut Held::at_entry();
        let result = self.mapping.write_back(held, 0..u64::MAX, wait);
        assert_eq!(result, Ok(()));
    }

    pub(super) fn evict(&self, range: Range<u64>, how: Evict) {
        let mut entry = Held::at_entry();
        let (_lock, mut held) = self.inode.write(&mut entry);
        let (mut fence, mut held) = self.mapping.fence(&mut held, range);
        let evicted = fence.evict(&mut held, how).expect("evicted");
        if how == Evict::Discard {
            Device::punch(&evicted);
        }
    }

    pub(super) fn truncate(&self, size: u64) {
        let mut entry = Held::at_entry();
        let (_lock, mut held) = self.inode.write(&mut entry);
        let from = size.min(crate::Backing::size(self.mapping.backing()));
        let (mut fence, mut held) = self.mapping.fence(&mut held, from..u64::MAX);
        let shorten = || self.mapping.backing().set_size(size);
        let evicted = fence.evict_with(&mut held, Evict::Discard, shorten);
        Device::truncate(&evicted.expect("evicted"));
    }

    pub(super) fn reclaim(&self) {
        self.cache.shared().clock.sweep(64, 1, Pressure::Any);
    }

    /// Waits for `threads`; the device then has, in full, what the cache has.
    pub(super) fn end(self: Arc<Self>, threads: Vec<JoinHandle<()>>) {
        for thread in threads {
            thread.join().expect("a thread");
        }
        let size = usize::try_from(self.mapping.size()).expect("small");
        let all = || read_with(&self.mapping, &Readahead::new(), 0, size).expect("read");
        let cached = all();
        sync(&self.mapping).expect("synced");
        assert!(self.mapping.is_idle());
        let device = self.mapping.backing();
        assert_eq!(device.violations(), 0, "stale: I/O to blocks taken away");
        assert!(
            device.contents() == cached,
            "stale: the device and the cache"
        );
        assert_eq!(device.reserved(), 0, "reserved for nothing");
        assert_eq!(device.disk_size(), self.mapping.size(), "the size on disk");
        self.cache.shrink(u64::MAX);
        assert!(all() == cached, "stale: read back");
        let world = Arc::into_inner(self).expect("all threads are over");
        drop(world.mapping);
        let usage = world.cache.usage();
        assert_eq!(usage.used_bytes, 0, "every frame came back");
        assert_eq!((usage.dirty_bytes, usage.writeback_bytes), (0, 0));
    }
}

pub(super) fn check(scenario: impl Fn() + Send + Sync + 'static) {
    let scenario = Arc::new(scenario);
    let again = Arc::clone(&scenario);
    by_chance(move || scenario(), SCHEDULES);
    by_priority(move || again(), SCHEDULES);
}

fn written_and_read(mutants: Mutants) {
    let world = World::new(mutants);
    let threads = vec![
        world.thread("writer", |world| {
            world.write(1);
            world.write(2);
        }),
        world.thread("reader", |world| {
            world.read(0);
            world.read(1);
            world.read(0);
        }),
        world.thread("writeback", |world| world.write_back(WaitFor::Own)),
        world.thread("reclaim", |world| {
            world.reclaim();
            world.reclaim();
        }),
    ];
    for thread in threads {
        thread.join().expect("a thread");
    }
    (0..PAGES).for_each(|page| world.read(page));
    world.end(Vec::new());
}

#[test]
fn shuttle_write_read_writeback_reclaim() {
    check(|| written_and_read(Mutants::default()));
}

fn written_and_fenced(mutants: Mutants) {
    let world = World::new(mutants);
    let threads = vec![
        world.thread("writer", |world| {
            world.write_at(0, &[1; 2 * PAGE_SIZE]);
            world.write_at(PAGE, &[2; PAGE_SIZE]);
        }),
        world.thread("fsync", |world| world.write_back(WaitFor::All)),
        world.thread("punch", |world| world.evict(100..2 * PAGE, Evict::Discard)),
        world.thread("shift", |world| world.evict(0..2 * PAGE, Evict::WriteFirst)),
        world.thread("flusher", |world| {
            world.cache.run_flusher(&mut Held::at_entry());
        }),
    ];
    world.end(threads);
}

#[test]
fn shuttle_write_writeback_fence() {
    check(|| written_and_fenced(Mutants::default()));
}

#[test]
fn shuttle_truncate_edge_writeback_and_growth() {
    check(|| {
        let device = Device::stamped(2, 1024);
        let world = World::of(config(SMALL), Mutants::default(), device);
        let threads = vec![
            world.thread("truncate", |world| {
                world.truncate(PAGE + 1500);
                world.truncate(2 * PAGE);
            }),
            world.thread("writer", |world| world.write_at(PAGE + 1000, &[7; 3000])),
            world.thread("writeback", |world| world.write_back(WaitFor::All)),
            world.thread("reclaim", |world| {
                world.reclaim();
                world.reclaim();
            }),
        ];
        for thread in threads {
            thread.join().expect("a thread");
        }
        // The write came before, between or after the truncates: what was cut is zeros.
        let page = read_with(&world.mapping, &Readahead::new(), PAGE, PAGE_SIZE).expect("read");
        let outcomes = [0, 7].map(|byte| vec![byte; 2500]);
        assert!(
            outcomes.contains(&page[1500..4000].to_vec()),
            "stale: the tail"
        );
        assert!(page[4000..].iter().all(|&byte| byte == 0), "stale: the end");
        world.end(Vec::new());
    });
}

#[test]
fn shuttle_two_writers_extend_a_file_under_writeback() {
    check(|| {
        let world = World::of(
            config(SMALL),
            Mutants::default(),
            Device::hole(0, PAGE_SIZE),
        );
        let threads = vec![
            world.thread("writer", |world| world.write_at(0, &[1; 100])),
            world.thread("writer", |world| world.write_at(50, &[2; PAGE_SIZE])),
            world.thread("writeback", |world| {
                world.write_back(WaitFor::Own);
                world.write_back(WaitFor::All);
            }),
            world.thread("reclaim", World::reclaim),
        ];
        for thread in threads {
            thread.join().expect("a thread");
        }
        let file = read_with(&world.mapping, &Readahead::new(), 0, 2 * PAGE_SIZE).expect("read");
        assert_eq!(file.len(), PAGE_SIZE + 50);
        assert_eq!(file[..50], [1; 50]);
        assert!(file[100..].iter().all(|&byte| byte == 2), "stale: the tail");
        world.end(Vec::new());
    });
}

#[test]
fn shuttle_starved_writers_and_flushers() {
    // Three frames, two files, two flushers, more pages than frames, a limit of two pages.
    check(|| {
        let config = Config {
            flusher_threads: 2,
            dirty_limit_bytes: 2 * PAGE,
            ..config(SMALL)
        };
        let world = World::of(
            config,
            Mutants::default(),
            Device::hole(3 * PAGE, PAGE_SIZE),
        );
        let other = Device::hole(0, PAGE_SIZE).mapped(&world.cache);
        let mut frames = world.cache.shared().take_all_frames();
        frames.truncate(frames.len() - 3);
        let threads = vec![
            world.thread("writer", |world| world.write_at(0, &[1; 3 * PAGE_SIZE])),
            world.thread("reader", |world| {
                world.read(2);
                world.read(0);
            }),
            world.thread("writer", move |_| {
                let lock: OrderedRwLock<Inode, ()> = OrderedRwLock::new(8, ());
                let mut entry = Held::at_entry();
                let (_lock, mut held) = lock.write(&mut entry);
                let data = [1; 2 * PAGE_SIZE];
                assert_eq!(other.write(&mut held, 0, &data), Ok(data.len()));
            }),
        ];
        for thread in threads {
            thread.join().expect("a thread");
        }
        drop(frames);
        // Ends the flushers; what is dirty yet, the end writes.
        world.cache.shared().flusher.close();
        world.end(Vec::new());
    });
}

#[test]
fn shuttle_flushers_end_with_the_cache() {
    check(|| {
        let cache = PageCache::new(Config {
            flusher_threads: 1,
            ..config(SMALL)
        })
        .expect("a cache");
        let mapping = Device::hole(0, PAGE_SIZE)
            .owning(Arc::clone(&cache))
            .mapped(&cache);
        let inode: OrderedRwLock<Inode, ()> = OrderedRwLock::new(7, ());
        let mut entry = Held::at_entry();
        let (lock, mut held) = inode.write(&mut entry);
        mapping.write(&mut held, 0, &[1; 10]).expect("written");
        drop((lock, held));
        cache.shared().flusher.urge();
        let dropper = spawn("dropper", move || drop(cache)).expect("a thread");
        drop(mapping);
        dropper.join().expect("a thread");
    });
}

#[test]
fn shuttle_errors_are_heard_of_once() {
    check(|| {
        let world = World::new(Mutants::default());
        let cursor = Arc::new(world.mapping.error_cursor());
        world.mapping.backing().fail_writes(1);
        world.write(1);
        let heard = Arc::new(AtomicU8::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (cursor, heard) = (Arc::clone(&cursor), Arc::clone(&heard));
                world.thread("fsync", move |world| {
                    // Either may meet the error; one of them reports it.
                    let _ =
                        world
                            .mapping
                            .write_back(&mut Held::at_entry(), 0..u64::MAX, WaitFor::All);
                    if world.mapping.check_errors(&cursor).is_err() {
                        heard.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("a thread");
        }
        assert_eq!(heard.load(Ordering::SeqCst), 1);
    });
}

/// Whoever writes the zeros of an edge: if that fails, blocks must not be taken away.
#[test]
fn shuttle_an_edge_that_was_not_written_is_an_error() {
    check(|| {
        let device = Device::stamped(2, PAGE_SIZE);
        let world = World::of(config(SMALL), Mutants::default(), device);
        world.mapping.backing().fail_writes(1);
        let threads = vec![
            world.thread("punch", |world| {
                let mut entry = Held::at_entry();
                let (_lock, mut held) = world.inode.write(&mut entry);
                let (mut fence, mut held) = world.mapping.fence(&mut held, 100..PAGE);
                let evicted = fence.evict(&mut held, Evict::Discard).is_ok();
                let contents = world.mapping.backing().contents();
                let is_zeroed = contents[100..PAGE_SIZE].iter().all(|&byte| byte == 0);
                assert!(is_zeroed || !evicted, "the edge keeps old bytes");
            }),
            world.thread("flusher", |world| {
                world.cache.run_flusher(&mut Held::at_entry());
            }),
            world.thread("another", |world| {
                let held = &mut Held::at_entry();
                let _told = world.mapping.write_back(held, 0..PAGE, WaitFor::Own);
            }),
        ];
        for thread in threads {
            thread.join().expect("a thread");
        }
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_unmarking_early_is_caught() {
    check(|| {
        written_and_read(Mutants {
            unmark_early: true,
            ..Mutants::default()
        });
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_evicting_without_waiting_is_caught() {
    check(|| {
        written_and_fenced(Mutants {
            evict_unwaited: true,
            ..Mutants::default()
        });
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_reclaiming_dirty_pages_is_caught() {
    check(|| {
        written_and_read(Mutants {
            reclaim_takes_dirty: true,
            ..Mutants::default()
        });
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_dirtying_after_unlocking_is_caught() {
    check(|| {
        written_and_reclaimed(Mutants {
            dirty_unlocked: true,
            ..Mutants::default()
        });
    });
}

fn written_and_reclaimed(mutants: Mutants) {
    let world = World::new(mutants);
    let threads = vec![
        world.thread("writer", |world| world.write(1)),
        world.thread("reclaim", World::reclaim),
        world.thread("reclaim", World::reclaim),
    ];
    for thread in threads {
        thread.join().expect("a thread");
    }
    (0..PAGES).for_each(|page| world.read(page));
    world.end(Vec::new());
}

#[test]
fn shuttle_write_reclaim() {
    check(|| written_and_reclaimed(Mutants::default()));
}

/// Faults make pages of one file dirty at once, with no lock in common: each sync finds what became
/// dirty before it, whoever told the flusher of the file.
#[test]
fn shuttle_a_file_is_listed_before_anybody_relies_on_it() {
    check(|| {
        let device = Device::stamped(2, PAGE_SIZE);
        let world = World::of(config(SMALL), Mutants::default(), device);
        (0..PAGES).for_each(|page| world.read(page));
        let threads = (0..PAGES).map(|page| {
            world.thread("fault", move |world| {
                let folio = world.mapping.pages().get(page).expect("cached");
                let queues = &world.cache.shared().page_queues;
                queues.lock(&folio);
                let pages = world.mapping.pages();
                pages.set_dirty(std::iter::once((&folio, WHOLE)));
                queues.unlock(&folio);
                world.mapping.tell_flusher();
                world.cache.sync_all(&mut Held::at_entry());
                assert_eq!(folio.state.dirty(), 0, "stale: not written");
            })
        });
        let threads = threads.collect();
        world.end(threads);
    });
}
