//! The protocol of faults and fences holds in every state, and each protection is needed.

use pagefence_fs_model::fault_protocol::{Access, Cut, Mutant, Scenario, check, find, property};

fn scenario(name: &'static str, readers: usize, faulters: &[Access], cuts: &[Cut]) -> Scenario {
    Scenario {
        name,
        readers,
        faulters: faulters.to_vec(),
        cuts: cuts.to_vec(),
        mutant: None,
    }
}

fn holds(scenario: Scenario) {
    let name = scenario.name;
    let outcome = check(scenario);
    println!("{name}: {} states, depth {}", outcome.states, outcome.depth);
    assert_eq!(outcome.violated, [], "{name}");
}

use Access::{Load, PrivateStore, Store};
use Cut::{Punch, Truncate};

/// Everybody at once.
#[test]
fn faults_reads_punches_reclaim_and_writeback() {
    holds(scenario(
        "three faults, two reads, two punches",
        2,
        &[Load, Store, PrivateStore],
        &[Punch, Punch],
    ));
}

#[test]
fn faults_reads_truncate_and_punch() {
    holds(scenario(
        "three faults, two reads, a truncate, a punch",
        2,
        &[Load, Store, PrivateStore],
        &[Truncate, Punch],
    ));
}

#[test]
fn stores_against_each_other() {
    holds(scenario(
        "three stores, a read, a punch",
        1,
        &[Store, Store, Store],
        &[Punch],
    ));
}

/// Leaves a protection out, and sees that what it is there for breaks.
fn needed(mutant: Mutant, broken: &'static str) {
    let faulters = [Load, Store, PrivateStore];
    let world = scenario("a mutant", 1, &faulters, &[Truncate, Punch]).with(mutant);
    let (run, states) = find(world, broken);
    println!("{mutant:?}: {states} states, {run:?}");
    assert!(run.is_some(), "{mutant:?} does not break: {broken}");
}

#[test]
fn a_read_without_the_lock() {
    needed(Mutant::ReadWithoutLock, property::ACCESSES_ARE_CURRENT);
}

#[test]
fn a_fault_without_the_lock() {
    needed(Mutant::FaultWithoutLock, property::ACCESSES_ARE_CURRENT);
}

#[test]
fn a_cut_without_the_lock() {
    needed(Mutant::CutWithoutLock, property::ACCESSES_ARE_CURRENT);
}

#[test]
fn mapping_after_unlocking() {
    needed(Mutant::MapAfterUnlock, property::MAPS_ARE_CACHED);
}

#[test]
fn no_look_at_the_size() {
    needed(Mutant::NoSizeCheck, property::MAPS_ARE_INSIDE);
}

#[test]
fn no_unmapping_at_removal() {
    needed(Mutant::NoUnmapAtRemoval, property::MAPS_ARE_CACHED);
}

#[test]
fn no_second_unmapping() {
    needed(Mutant::NoSecondUnmap, property::MAPS_ARE_INSIDE);
}

#[test]
fn removing_during_writeback() {
    needed(Mutant::RemoveDuringWriteback, property::WRITES_ARE_OWNED);
}

#[test]
fn reclaim_without_unmapping() {
    needed(Mutant::ReclaimKeepsMaps, property::MAPS_ARE_CACHED);
}

#[test]
fn writeback_without_protecting() {
    needed(Mutant::NoWriteProtect, property::CLEAN_IS_ON_DISK);
}
