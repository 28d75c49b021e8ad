//! Direct writes under a scheduler that chooses interleavings, against buffered reads, stores through
//! maps, fences, reclaim, and each other.
//!
//! Oracles: a reader never sees an older version than one that was certainly written before it
//! began; what was stored beside the blocks of a direct write is there in the end; the mapping
//! checker; no I/O to blocks that were taken away, no dirty block without space (the device's); in
//! the end the device has what the cache has.

use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::Ordering;

use super::device::Device;
use super::shuttle_writes::{World, check};
use super::{SMALL, config, read_with};
use crate::backing::PAGE_SIZE;
use crate::mutants::Mutants;
use crate::simulated::AddressSpace;
use crate::{Evict, Readahead, WaitFor};

const PAGE: u64 = PAGE_SIZE as u64;

/// Writes `version` to the first block of both pages, past the cache.
fn write(world: &World, version: u8) {
    for page in 0..2 {
        world.write_direct(page * PAGE, &[version; 1024]);
    }
    world.floor.fetch_max(version, Ordering::SeqCst);
}

/// Two files of small blocks: of data, and of holes.
fn devices() -> [fn() -> Device; 2] {
    [|| Device::stamped(2, 1024), || Device::hole(2 * PAGE, 1024)]
}

fn direct_against_all(mutants: Mutants, device: Device) {
    let world = World::of(config(SMALL), mutants, device);
    let space = Arc::new(AddressSpace::shared(&world.mapping, 0..2));
    let stores = Arc::clone(&space);
    let threads = vec![
        world.thread("direct", |world| {
            write(world, 2);
            write(world, 3);
        }),
        world.thread("reader", |world| {
            world.read(0);
            world.read(1);
            world.read(0);
        }),
        world.thread("storer", move |_| {
            stores.store(3072, &[7; 8]).expect("stored");
            stores.check();
            stores.store(PAGE + 3072, &[7; 8]).expect("stored");
            stores.check();
        }),
        world.thread("shift", |world| world.evict(0..2 * PAGE, Evict::WriteFirst)),
        world.thread("reclaim", |world| {
            world.reclaim();
            world.write_back(WaitFor::Own);
            world.reclaim();
        }),
    ];
    for thread in threads {
        thread.join().expect("a thread");
    }
    space.check();
    drop(space);
    for page in 0..2 {
        world.read(page);
        let stored = read_with(&world.mapping, &Readahead::new(), page * PAGE + 3072, 8);
        assert_eq!(stored, Ok(vec![7; 8]), "stale: a store is lost");
    }
    world.end(Vec::new());
}

#[test]
fn shuttle_direct_writes_against_reads_stores_and_fences() {
    for device in devices() {
        check(move || direct_against_all(Mutants::default(), device()));
    }
}

#[test]
fn shuttle_direct_writes_against_punches_and_each_other() {
    check(|| {
        let world = World::of(
            config(SMALL),
            Mutants::default(),
            Device::stamped(2, PAGE_SIZE),
        );
        let threads = vec![
            world.thread("direct", |world| world.write_direct(0, &[1; 2 * PAGE_SIZE])),
            world.thread("direct", |world| world.write_direct(PAGE, &[2; PAGE_SIZE])),
            world.thread("punch", |world| world.evict(0..2 * PAGE, Evict::Discard)),
            world.thread("give back", |world| {
                // What a fault without space does: a fence, and no inode lock.
                world.mapping.unwritten.store(true, Ordering::SeqCst);
                let held = &mut pagefence_lock_order::Held::at_entry();
                world.mapping.give_back_unwritten(held);
            }),
            world.thread("reader", |world| {
                let file = read_with(&world.mapping, &Readahead::new(), 0, 2 * PAGE_SIZE);
                assert_eq!(file.map(|bytes| bytes.len()), Ok(2 * PAGE_SIZE));
            }),
        ];
        world.end(threads);
    });
}

fn caught(mutants: Mutants) {
    check(move || direct_against_all(mutants, Device::stamped(2, 1024)));
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_direct_writes_without_page_locks_are_caught() {
    caught(Mutants {
        direct_unlocked: true,
        ..Mutants::default()
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_direct_writes_that_drop_dirty_pages_are_caught() {
    caught(Mutants {
        direct_drops_dirty: true,
        ..Mutants::default()
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_direct_writes_that_leave_pages_are_caught() {
    caught(Mutants {
        direct_keeps_cached: true,
        ..Mutants::default()
    });
}
