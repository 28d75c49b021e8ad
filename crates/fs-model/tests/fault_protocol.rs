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

#[test]
fn each_protection_is_needed() {
    let faulters = [Load, Store, PrivateStore];
    for (mutant, broken) in [
        (Mutant::ReadWithoutLock, property::ACCESSES_ARE_CURRENT),
        (Mutant::FaultWithoutLock, property::ACCESSES_ARE_CURRENT),
        (Mutant::CutWithoutLock, property::ACCESSES_ARE_CURRENT),
        (Mutant::MapAfterUnlock, property::MAPS_ARE_CACHED),
        (Mutant::NoSizeCheck, property::MAPS_ARE_INSIDE),
        (Mutant::NoUnmapAtRemoval, property::MAPS_ARE_CACHED),
        (Mutant::NoSecondUnmap, property::MAPS_ARE_INSIDE),
        (Mutant::RemoveDuringWriteback, property::WRITES_ARE_OWNED),
        (Mutant::ReclaimKeepsMaps, property::MAPS_ARE_CACHED),
        (Mutant::NoWriteProtect, property::CLEAN_IS_ON_DISK),
    ] {
        let world = scenario("a mutant", 1, &faulters, &[Truncate, Punch]).with(mutant);
        let (run, states) = find(world, broken);
        println!("{mutant:?}: {states} states, {run:?}");
        assert!(run.is_some(), "{mutant:?} does not break: {broken}");
    }
}
