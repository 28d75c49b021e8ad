//! Each protection left out: the oracles notice. With it: they don't.
//!
//! A fill that a fence overtakes at K3 or K4 needs no mutant of its own here: its pages are in the
//! index and locked, so the second pass of the eviction waits for them even without the lock.

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;

use super::device::{Device, Stop, TestMapping};
use super::{NEVER, SHORTLY, SMALL, Task, config, read, stamped, sync, write};
use crate::backing::PAGE_SIZE;
use crate::mutants::Mutants;
use crate::reclaim::Pressure;
use crate::{Evict, PageCache};

const PAGE: u64 = PAGE_SIZE as u64;

fn setup(mutants: Mutants) -> (Arc<PageCache>, Arc<TestMapping>) {
    let cache = PageCache::with_mutants(config(SMALL), mutants).expect("a cache");
    let mapping = Device::stamped(8, PAGE_SIZE).mapped(&cache);
    (cache, mapping)
}

/// Whether `task` is over before it is let go on; a mutant is given all the time it takes.
fn over<T: Send + 'static>(task: &Task<T>, mutated: bool) -> bool {
    task.wait(if mutated { NEVER } else { SHORTLY })
}

/// A fill by `fill` starts while a punch has dropped the pages but not yet the blocks (K1).
/// True if afterwards the hole reads as anything but zeros.
fn stale_after_fill_inside_fence(
    mapping: &Arc<TestMapping>,
    mutated: bool,
    fill: impl FnOnce() + Send + 'static,
) -> bool {
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, 0..8 * PAGE);
    let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
    let filler = Task::start(fill);
    assert_eq!(over(&filler, mutated), mutated);
    Device::punch(&evicted);
    drop(fence);
    filler.finish();
    read(mapping, 0, PAGE_SIZE) != Ok(vec![0; PAGE_SIZE])
}

fn reading(mapping: &Arc<TestMapping>) -> impl FnOnce() + Send + 'static {
    let mapping = Arc::clone(mapping);
    move || drop(read(&mapping, 0, PAGE_SIZE))
}

fn reading_ahead(
    cache: &Arc<PageCache>,
    mapping: &Arc<TestMapping>,
) -> impl FnOnce() + Send + 'static {
    assert!(mapping.queue_readahead(0..8, None));
    let cache = Arc::clone(cache);
    move || assert!(cache.run_readahead(&mut Held::at_entry()))
}

#[test]
fn the_lock_in_read() {
    for read_unlocked in [false, true] {
        let mutants = Mutants {
            read_unlocked,
            ..Mutants::default()
        };
        let (_cache, mapping) = setup(mutants);
        let stale = stale_after_fill_inside_fence(&mapping, read_unlocked, reading(&mapping));
        assert_eq!(stale, read_unlocked);
    }
}

#[test]
fn the_lock_in_readahead() {
    for readahead_unlocked in [false, true] {
        let mutants = Mutants {
            readahead_unlocked,
            ..Mutants::default()
        };
        let (cache, mapping) = setup(mutants);
        let stale = stale_after_fill_inside_fence(
            &mapping,
            readahead_unlocked,
            reading_ahead(&cache, &mapping),
        );
        assert_eq!(stale, readahead_unlocked);
    }
}

#[test]
fn publishing_last() {
    for publish_first in [false, true] {
        let (_cache, mapping) = setup(Mutants {
            publish_first,
            ..Mutants::default()
        });
        mapping.backing().stop_at(Stop::AfterIo);
        let filler = Task::start(reading(&mapping));
        mapping.backing().wait_stopped(1);
        let second = {
            let mapping = Arc::clone(&mapping);
            Task::start(move || read(&mapping, 0, PAGE_SIZE))
        };
        assert_eq!(over(&second, publish_first), publish_first);
        mapping.backing().go_on();
        filler.finish();
        let seen = second.finish().expect("read");
        assert_eq!(seen != stamped(0, 1), publish_first);
    }
}

/// A file of holes, of which the first page is written, and being written back up to `stop`.
fn being_written(
    mutants: Mutants,
    stop: Stop,
) -> (
    Arc<PageCache>,
    Arc<TestMapping>,
    Task<Result<(), super::device::Failed>>,
) {
    let cache = PageCache::with_mutants(config(SMALL), mutants).expect("a cache");
    let mapping = Device::hole(8 * PAGE, PAGE_SIZE).mapped(&cache);
    write(&mapping, 0, &stamped(0, 2)).expect("written");
    mapping.backing().stop_at(stop);
    let syncer = {
        let mapping = Arc::clone(&mapping);
        Task::start(move || sync(&mapping))
    };
    mapping.backing().wait_stopped(1);
    (cache, mapping, syncer)
}

#[test]
fn the_writeback_mark_until_blocks_are_mapped() {
    for unmark_early in [false, true] {
        let (cache, mapping, syncer) = being_written(
            Mutants {
                unmark_early,
                ..Mutants::default()
            },
            Stop::BeforeMapping,
        );
        cache.shared().clock.sweep(100, 100, Pressure::Any);
        let seen = read(&mapping, 0, PAGE_SIZE).expect("read");
        assert_eq!(seen != stamped(0, 2), unmark_early);
        mapping.backing().go_on();
        syncer.finish().expect("synced");
    }
}

#[test]
fn waiting_for_writeback_before_blocks_are_taken_away() {
    for evict_unwaited in [false, true] {
        let (_cache, mapping, syncer) = being_written(
            Mutants {
                evict_unwaited,
                ..Mutants::default()
            },
            Stop::BeforeWrite,
        );
        let puncher = {
            let mapping = Arc::clone(&mapping);
            Task::start(move || super::edges::punch(&mapping, 0..PAGE))
        };
        assert_eq!(over(&puncher, evict_unwaited), evict_unwaited);
        mapping.backing().go_on();
        syncer.finish().expect("synced");
        puncher.finish();
        assert_eq!(mapping.backing().violations() > 0, evict_unwaited);
    }
}

#[test]
fn dirty_pages_against_reclaim() {
    for reclaim_takes_dirty in [false, true] {
        let (cache, mapping) = setup(Mutants {
            reclaim_takes_dirty,
            ..Mutants::default()
        });
        write(&mapping, 0, &stamped(0, 2)).expect("written");
        cache.shared().clock.sweep(100, 100, Pressure::Any);
        let seen = read(&mapping, 0, PAGE_SIZE).expect("read");
        assert_eq!(seen != stamped(0, 2), reclaim_takes_dirty);
    }
}

#[test]
fn dirty_before_unlocked() {
    for dirty_unlocked in [false, true] {
        let (cache, mapping) = setup(Mutants {
            dirty_unlocked,
            ..Mutants::default()
        });
        // K9: the bytes are copied; with the mutant, the page is unlocked and not dirty.
        let reclaiming = Arc::clone(&cache);
        mapping.backing().on_grow(move || {
            reclaiming.shared().clock.sweep(100, 100, Pressure::Any);
        });
        write(&mapping, 0, &stamped(0, 2)).expect("written");
        let seen = read(&mapping, 0, PAGE_SIZE).expect("read");
        assert_eq!(seen != stamped(0, 2), dirty_unlocked);
    }
}
