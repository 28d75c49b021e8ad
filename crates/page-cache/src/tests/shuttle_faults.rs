//! Faults under a scheduler that chooses interleavings, against everything that takes pages away,
//! cleans them, or makes them dirty.
//!
//! Oracles: the mapping checker after every load and store; no I/O to blocks that were taken away,
//! no dirty block without space (the device's); what was stored is loaded, and in the end the device
//! has what the cache has.

use pagefence_lock_order::primitives::Arc;

use super::device::Device;
use super::shuttle_writes::{World, check};
use super::{SMALL, config};
use crate::backing::PAGE_SIZE;
use crate::mutants::Mutants;
use crate::simulated::AddressSpace;
use crate::{Evict, FaultError, WaitFor};

const PAGE: u64 = PAGE_SIZE as u64;
const PAGES: u64 = 2;

type Space = AddressSpace<Device>;

/// What a thread does that may be given the private mapping.
type Other = fn(&World, &Space);

/// Stores, loads and private stores at both pages, meeting `others`.
fn faults_against(mutants: Mutants, device: Device, others: &[Other]) {
    let world = World::of(config(SMALL), mutants, device);
    let shared = Arc::new(Space::shared(&world.mapping, 0..PAGES));
    let private = Arc::new(Space::private(&world.mapping, 0..PAGES));
    let mut threads = vec![
        {
            let space = Arc::clone(&shared);
            world.thread("storer", move |_| {
                for page in 0..PAGES {
                    store(&space, page);
                }
            })
        },
        {
            let (shared, private) = (Arc::clone(&shared), Arc::clone(&private));
            world.thread("loader", move |_| {
                load(&shared, 1);
                store(&private, 1);
                load(&private, 0);
            })
        },
    ];
    for other in others.iter().copied() {
        let space = Arc::clone(&private);
        threads.push(world.thread("other", move |world| other(world, &space)));
    }
    for thread in threads {
        thread.join().expect("a thread");
    }
    shared.check();
    private.check();
    drop((shared, private));
    if others.contains(&(give_back as Other)) {
        // What is dirty has its space. What could not be written is clean, and lost: the device
        // gets something newer.
        world.write_back(WaitFor::All);
        world.write_at(0, &[1; 2 * PAGE_SIZE]);
    }
    world.end(Vec::new());
}

/// What is past the end faults, and nothing else does.
fn is_inside<E: std::fmt::Debug + PartialEq>(outcome: Result<(), FaultError<E>>) -> bool {
    assert!(
        outcome == Ok(()) || outcome == Err(FaultError::Beyond),
        "{outcome:?}"
    );
    outcome.is_ok()
}

fn store(space: &Space, page: u64) {
    is_inside(space.store(page * PAGE + 100, &[7; 8]));
    space.check();
}

fn load(space: &Space, page: u64) {
    let mut bytes = [0xEE; 8];
    if is_inside(space.load(page * PAGE + 100, &mut bytes)) {
        // Zeros of a hole, what was stored, or what was written.
        assert!(
            [[0; 8], [7; 8], [1; 8]].contains(&bytes),
            "stale: {bytes:?}"
        );
    }
    space.check();
}

fn holes() -> Device {
    Device::hole(PAGES * PAGE, PAGE_SIZE)
}

/// Two pages that have blocks, and no zeros.
fn data() -> Device {
    Device::stamped(2, PAGE_SIZE)
}

fn punch(world: &World, _: &Space) {
    world.evict(0..PAGES * PAGE, Evict::Discard);
}

fn write_out(world: &World, _: &Space) {
    world.evict(0..PAGES * PAGE, Evict::WriteFirst);
}

fn shorten(world: &World, private: &Space) {
    world.truncate(PAGE);
    assert_eq!(private.entry(1), None, "stale: a copy past the end");
    world.truncate(PAGES * PAGE);
}

fn write_back(world: &World, _: &Space) {
    world.write_back(WaitFor::Own);
    world.write_back(WaitFor::All);
}

fn reclaim(world: &World, _: &Space) {
    world.reclaim();
    world.reclaim();
}

fn write(world: &World, _: &Space) {
    world.write_at(100, &[1; 8]);
    world.write_at(PAGE + 100, &[1; 8]);
}

#[test]
fn shuttle_faults_evict_discard() {
    check(|| faults_against(Mutants::default(), data(), &[punch, reclaim]));
}

#[test]
fn shuttle_faults_evict_write_first() {
    check(|| faults_against(Mutants::default(), holes(), &[write_out]));
}

#[test]
fn shuttle_faults_truncate() {
    check(|| faults_against(Mutants::default(), data(), &[shorten, write_back]));
}

#[test]
fn shuttle_faults_writeback_reclaim() {
    check(|| faults_against(Mutants::default(), holes(), &[write_back, reclaim]));
}

#[test]
fn shuttle_faults_write() {
    check(|| faults_against(Mutants::default(), holes(), &[write, write_back]));
}

/// Reservations of pages that could not be written are given back, while they are stored to.
#[test]
fn shuttle_faults_punch_delalloc() {
    check(|| faults_against(Mutants::default(), holes(), &[give_back, give_back_alone]));
}

fn give_back(world: &World, space: &Space) {
    world.write_at(0, &[0; 10]);
    world.mapping.backing().fail_writes(1);
    let held = &mut pagefence_lock_order::Held::at_entry();
    let _told = world.mapping.write_back(held, 0..u64::MAX, WaitFor::All);
    world.mapping.backing().fail_writes(0);
    give_back_alone(world, space);
}

fn give_back_alone(world: &World, _: &Space) {
    let held = &mut pagefence_lock_order::Held::at_entry();
    let (mut fence, mut held) = world.mapping.fence(held, 0..u64::MAX);
    fence.punch_delalloc(&mut held);
}

/// What is stored is loaded by everybody, whatever happens to the page meanwhile.
#[test]
fn shuttle_faults_lose_no_store() {
    check(|| {
        let world = World::new(Mutants::default());
        let space = Arc::new(Space::shared(&world.mapping, 0..PAGES));
        let other = Arc::new(Space::shared(&world.mapping, 0..PAGES));
        let threads = vec![
            {
                let (space, other) = (Arc::clone(&space), Arc::clone(&other));
                world.thread("storer", move |_| {
                    for version in 1..4 {
                        space.store(100, &[version]).expect("stored");
                        let mut seen = [0];
                        other.load(100, &mut seen).expect("loaded");
                        assert_eq!(seen, [version], "stale: a store is lost");
                        other.check();
                    }
                })
            },
            world.thread("writeback", |world| write_back_once(world)),
            world.thread("reclaim", World::reclaim),
            world.thread("shift", |world| {
                world.evict(0..PAGES * PAGE, Evict::WriteFirst);
            }),
        ];
        for thread in threads {
            thread.join().expect("a thread");
        }
        drop((space, other));
        world.end(Vec::new());
    });
}

fn write_back_once(world: &World) {
    world.write_back(WaitFor::Own);
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_faults_without_the_lock_are_caught() {
    check(|| {
        let mutants = Mutants {
            fault_unlocked: true,
            ..Mutants::default()
        };
        faults_against(mutants, data(), &[punch]);
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_mapping_after_unlocking_is_caught() {
    check(|| {
        let mutants = Mutants {
            map_unlocked: true,
            ..Mutants::default()
        };
        faults_against(mutants, data(), &[punch]);
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_unmapping_once_is_caught() {
    check(|| {
        let mutants = Mutants {
            unmap_once: true,
            ..Mutants::default()
        };
        faults_against(mutants, data(), &[shorten]);
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_writing_unprotected_pages_is_caught() {
    check(|| {
        let mutants = Mutants {
            write_unprotected: true,
            ..Mutants::default()
        };
        faults_against(mutants, holes(), &[write_back]);
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_reclaiming_mapped_pages_is_caught() {
    check(|| {
        let mutants = Mutants {
            reclaim_mapped: true,
            ..Mutants::default()
        };
        faults_against(mutants, data(), &[reclaim, write_back]);
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_punching_dirty_delalloc_is_caught() {
    check(|| {
        let mutants = Mutants {
            punch_takes_dirty: true,
            ..Mutants::default()
        };
        faults_against(mutants, holes(), &[give_back]);
    });
}
