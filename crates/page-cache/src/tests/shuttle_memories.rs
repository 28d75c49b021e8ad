//! Memories of mapped files that come and go, under a scheduler that chooses interleavings.
//!
//! Oracles: those of faults; a page's bytes are never in a memory that was given back, which would be
//! zeros to who loads them; what was stored is loaded, and in the end the device has what the cache has.

use pagefence_lock_order::levels::Inode;
use pagefence_lock_order::schedules::by_chance;
use pagefence_lock_order::{Held, OrderedRwLock};

use super::device::Device;
use super::shuttle_writes::{World, check};
use super::{SMALL, config};
use crate::backing::PAGE_SIZE;
use crate::mutants::Mutants;
use crate::simulated::AddressSpace;

const PAGE: u64 = PAGE_SIZE as u64;
const PAGES: u64 = 2;

/// Maps the file, stores and loads, and ends the mapping.
fn map(world: &World) {
    let memory = world.share_memory();
    let space = AddressSpace::shared(&world.mapping, 0..PAGES);
    drop(memory);
    space.store(100, &[7; 8]).expect("stored");
    let mut bytes = [0; 8];
    space.load(PAGE + 100, &mut bytes).expect("loaded");
    assert!([[1; 8], [5; 8]].contains(&bytes), "stale: {bytes:?}");
    space.load(100, &mut bytes).expect("loaded");
    assert!([[7; 8], [5; 8]].contains(&bytes), "lost: {bytes:?}");
    space.check();
}

/// Has the memory given back, as who maps another file.
fn give_back(world: &World) {
    let other: OrderedRwLock<Inode, ()> = OrderedRwLock::new(3, ());
    let mut entry = Held::at_entry();
    let (_alone, mut held) = other.write(&mut entry);
    world.cache.shared().unused_memories.shrink(&mut held, 0);
}

fn against(others: &[fn(&World)]) {
    let device = Device::stamped(2, PAGE_SIZE);
    let world = World::of(config(SMALL), Mutants::default(), device);
    map(&world);
    let threads = [map as fn(&World), give_back]
        .into_iter()
        .chain(others.iter().copied())
        .map(|work| world.thread("other", work))
        .collect();
    world.end(threads);
}

#[test]
fn shuttle_memories_two_mappers() {
    check(|| against(&[map, give_back]));
}

#[test]
fn shuttle_memories_read_reclaim() {
    // A reader that copied from a page which is leaving looks again until it has left. Who leaves may be
    // kept from running for ever by a scheduler that is not fair.
    let scenario = || against(&[|world| world.read(1), World::reclaim]);
    by_chance(scenario, 2000);
}

#[test]
fn shuttle_memories_write() {
    check(|| against(&[|world| world.write_at(100, &[5; 8])]));
}
