//! The real cache under a scheduler that chooses interleavings.
//!
//! Oracle: a reader never returns bytes of a block after its removal finished. Pages carry the
//! version of their blocks; before it reads, a reader looks up the version that is certainly in
//! force.

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicU8, Ordering};
use pagefence_lock_order::primitives::thread::{JoinHandle, spawn};
use pagefence_lock_order::schedules::{by_chance, by_priority};

use super::device::{Device, TestMapping};
use super::{SMALL, config, read_with};
use crate::backing::PAGE_SIZE;
use crate::mutants::Mutants;
use crate::reclaim::Pressure;
use crate::{Evict, PageCache, Readahead};

const PAGE: u64 = PAGE_SIZE as u64;
const PAGES: u64 = 2;
const SCHEDULES: usize = 3000;

struct World {
    cache: Arc<PageCache>,
    mapping: Arc<TestMapping>,
    /// The version that every block has at least.
    floor: AtomicU8,
}

impl World {
    fn new(mutants: Mutants, pages: u64) -> Arc<Self> {
        let cache = PageCache::with_mutants(config(SMALL), mutants).expect("a cache");
        let mapping = Device::stamped(pages.try_into().expect("small"), PAGE_SIZE).mapped(&cache);
        Arc::new(Self {
            cache,
            mapping,
            floor: AtomicU8::new(1),
        })
    }

    fn thread(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce(&Self) + Send + 'static,
    ) -> JoinHandle<()> {
        let world = Arc::clone(self);
        spawn(name, move || body(&world)).expect("a thread")
    }

    fn read(&self, page: u64) {
        let least = self.floor.load(Ordering::SeqCst);
        let bytes = read_with(&self.mapping, &Readahead::new(), page * PAGE, PAGE_SIZE);
        let bytes = bytes.expect("read");
        let version = bytes[8];
        assert!(version >= least, "stale: version {version} after {least}");
        assert!(bytes[8..].iter().all(|&byte| byte == version));
    }

    fn read_ahead(&self) {
        if self.mapping.queue_readahead(0..PAGES, None) {
            self.cache.run_readahead(&mut Held::at_entry());
        }
    }

    fn replace(&self, pages: Range<u64>, version: u8) {
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = self
            .mapping
            .fence(&mut entry, pages.start * PAGE..pages.end * PAGE);
        let evicted = fence.evict(&mut held, Evict::WriteFirst).expect("evicted");
        let bytes: Vec<u8> = pages
            .flat_map(|page| super::stamped(page.try_into().expect("small"), version))
            .collect();
        Device::replace(&evicted, &bytes);
        drop(fence);
        self.floor.fetch_max(version, Ordering::SeqCst);
    }

    fn reclaim(&self) {
        self.cache.shared().clock.sweep(64, 1, Pressure::Any);
    }

    fn end(self: Arc<Self>, threads: Vec<JoinHandle<()>>) {
        for thread in threads {
            thread.join().expect("a thread");
        }
        let violations = self.mapping.backing().violations();
        assert_eq!(violations, 0, "stale: I/O to blocks taken away");
        self.read(0);
        let world = Arc::into_inner(self).expect("all threads are over");
        drop(world.mapping);
        assert_eq!(world.cache.usage().used_bytes, 0, "every frame came back");
    }
}

fn everyone(mutants: Mutants) {
    let world = World::new(mutants, PAGES);
    let threads = vec![
        world.thread("reader", |world| {
            world.read(0);
            world.read(1);
            world.read(0);
        }),
        world.thread("reader", |world| {
            world.read(1);
            world.read(0);
        }),
        world.thread("readahead", World::read_ahead),
        world.thread("fence", |world| {
            world.replace(0..PAGES, 2);
            world.replace(0..PAGES, 3);
        }),
        world.thread("reclaim", |world| {
            world.reclaim();
            world.reclaim();
        }),
    ];
    world.end(threads);
}

fn check(scenario: impl Fn() + Send + Sync + 'static) {
    by_chance(scenario, SCHEDULES);
}

#[test]
fn shuttle_fill_fence_reclaim_readahead() {
    check(|| everyone(Mutants::default()));
    by_priority(|| everyone(Mutants::default()), SCHEDULES);
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_read_without_the_lock_is_caught() {
    check(|| {
        everyone(Mutants {
            read_unlocked: true,
            ..Mutants::default()
        });
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_readahead_without_the_lock_is_caught() {
    check(|| {
        everyone(Mutants {
            readahead_unlocked: true,
            ..Mutants::default()
        });
    });
}

#[test]
#[should_panic(expected = "stale: version 0 after")]
fn shuttle_publishing_first_is_caught() {
    check(|| {
        everyone(Mutants {
            publish_first: true,
            ..Mutants::default()
        });
    });
}

#[test]
fn shuttle_failing_fills_leave_nothing() {
    check(|| {
        let world = World::new(Mutants::default(), PAGES);
        world.mapping.backing().fail_reads(2);
        let try_read = |world: &World| {
            let read = read_with(&world.mapping, &Readahead::new(), 0, PAGE_SIZE);
            if let Ok(bytes) = read {
                assert!(bytes[8..].iter().all(|&byte| byte == bytes[8] && byte > 0));
            }
        };
        let threads = vec![
            world.thread("reader", try_read),
            world.thread("reader", try_read),
            world.thread("readahead", World::read_ahead),
            world.thread("fence", |world| world.replace(0..PAGES, 2)),
        ];
        for thread in threads {
            thread.join().expect("a thread");
        }
        world.mapping.backing().fail_reads(0);
        world.end(Vec::new());
    });
}

#[test]
fn shuttle_starved_readers_are_woken() {
    // Two frames for three readers of three pages; the others are in nobody's cache.
    check(|| {
        let world = World::new(Mutants::default(), 3);
        let mut frames = world.cache.shared().take_all_frames();
        frames.truncate(frames.len() - 2);
        let threads = (0..3)
            .map(|page| {
                world.thread("reader", move |world| {
                    world.read(page);
                    world.read((page + 1) % 3);
                })
            })
            .collect::<Vec<_>>();
        for thread in threads {
            thread.join().expect("a thread");
        }
        drop(frames);
        world.end(Vec::new());
    });
}

#[test]
fn shuttle_workers_end_with_the_cache() {
    check(|| {
        let cache = PageCache::new(crate::Config {
            readahead_workers: 1,
            ..config(SMALL)
        })
        .expect("a cache");
        let mapping = Device::stamped(2, PAGE_SIZE)
            .owning(Arc::clone(&cache))
            .mapped(&cache);
        assert!(mapping.queue_readahead(0..1, None));
        let dropper = spawn("dropper", move || drop(cache)).expect("a thread");
        mapping.queue_readahead(1..2, None);
        drop(mapping);
        dropper.join().expect("a thread");
    });
}
