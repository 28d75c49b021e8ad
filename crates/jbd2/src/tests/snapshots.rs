//! Snapshots: whatever is changed, freed, used again and brought home after one was taken, it reads
//! as the metadata of its commit.
//!
//! Each thing that it has to keep is then left out once, and the same test must notice.

use pagefence_block_io::fault_device::random::Random;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread;

use super::running::*;
use super::running_crash::{Model, State};
use super::*;
use crate::mutant::Mutant;
use crate::{Snapshot, SnapshotLost, Tid};

/// More than all blocks of the device take.
const ENOUGH: u64 = 1 << 20;

fn read(snapshot: &Snapshot, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    snapshot.read(block * BLOCK as u64, &mut bytes).unwrap();
    bytes
}

/// The first block that the snapshot has otherwise than it was.
fn differs(snapshot: &Snapshot, state: &State) -> Option<u64> {
    let is_same = |block: &u64, bytes: &Vec<u8>| *bytes == read(snapshot, *block);
    let mut known = state
        .iter()
        .filter_map(|(block, bytes)| Some((block, bytes.as_ref()?)));
    known
        .find(|(block, bytes)| !is_same(block, bytes))
        .map(|(block, _)| *block)
}

/// Takes snapshots of a journal in use; how often one was compared, and bytes that it kept at most.
fn compare(
    kind: (u32, u32),
    log: bool,
    seed: u64,
    mutant: Option<Mutant>,
) -> Result<(usize, u64), String> {
    let image = Image::new(kind.0, kind.1, 0, 7);
    let mut model = Model::new(&image, seed);
    let mut random = Random::new(seed ^ 0x5eed);
    let ground = Ground::with(&image, options(mutant), log);
    let (mut compared, mut most) = (0, 0);
    for round in 0..4 {
        let mut last = Tid(0);
        for _ in 0..random.below(15) {
            last = model.operate(&ground);
            if random.one_in(3) {
                model.promise(&ground, last);
            }
        }
        let snapshot = ground.journal.snapshot(last, ENOUGH).unwrap();
        let state = model.state.clone();
        for step in 0..25 {
            if let Some(block) = differs(&snapshot, &state) {
                return Err(format!("round {round}, step {step}: block {block}"));
            }
            compared += 1;
            let tid = model.operate(&ground);
            match random.below(3) {
                0 => model.promise(&ground, tid),
                1 => ground.journal.request_commit(tid),
                _ => {}
            }
            if random.one_in(3) {
                model.write_data(&ground);
            }
        }
        most = most.max(snapshot.kept_bytes());
        // In requests of any size, at any place.
        let whole: Vec<u8> = (10..14).flat_map(|block| read(&snapshot, block)).collect();
        let (from, length) = (random.below(2000) as usize, 1 + random.below(2000) as usize);
        let mut part = vec![0; length];
        let offset = 10 * BLOCK + from;
        snapshot.read(offset as u64, &mut part).unwrap();
        assert_eq!(part, whole[from..from + length]);
    }
    ground.journal.close().unwrap();
    Ok((compared, most))
}

#[test]
fn a_snapshot_reads_as_of_its_commit() {
    let (mut compared, mut most) = (0, 0);
    for log in [true, false] {
        for seed in 0..25 {
            let kind = KINDS[seed as usize % KINDS.len()];
            let (times, bytes) = compare(kind, log, seed, None)
                .unwrap_or_else(|what| panic!("log {log}, seed {seed}: {what}"));
            compared += times;
            most = most.max(bytes);
        }
    }
    println!("{compared} comparisons, {most} bytes kept");
    assert!(compared >= 5000 && most > 20 * BLOCK as u64);
}

/// Whether the test notices that something is not kept.
fn noticed(mutant: Mutant, log: bool) {
    let noticed = (0..25).find_map(|seed| compare((0, REVOKE | V3), log, seed, Some(mutant)).err());
    println!("{mutant:?}: {noticed:?}");
    assert!(noticed.is_some(), "{mutant:?} is not noticed");
}

#[test]
fn what_goes_home_is_not_kept() {
    noticed(Mutant::HomeNotKept, true);
    noticed(Mutant::HomeNotKept, false);
}

#[test]
fn what_is_used_again_is_not_kept() {
    noticed(Mutant::FreedNotKept, true);
    noticed(Mutant::FreedNotKept, false);
}

#[test]
fn what_is_not_home_is_not_kept() {
    noticed(Mutant::NotHomeNotKept, true);
}

/// The journal's thread is not in the way when one has gone and another is taken.
#[test]
fn one_follows_the_other_while_the_journal_is_busy() {
    let ground = ground();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for block in 20..25 {
                    ground.fill(block, 1);
                }
                ground.journal.commit(ground.fill(25, 1)).unwrap();
            }
        });
        // Also as of a transaction that is being committed just now, with nobody else to ask for the
        // next commit.
        let taken = (0..300).find_map(|_| {
            let tid = Tid(ground.journal.running().0.saturating_sub(1));
            ground.journal.snapshot(tid, ENOUGH).err()
        });
        stop.store(true, Ordering::Relaxed);
        assert!(taken.is_none(), "{taken:?}");
    });
}

fn ground() -> Ground {
    Ground::new(&Image::new(0, REVOKE | V3, 0, 7))
}

#[test]
fn there_is_one_at_a_time() {
    let ground = ground();
    // Nothing has to run for it.
    let first = ground.journal.snapshot(Tid(0), ENOUGH).unwrap();
    let second = ground.journal.snapshot(Tid(0), ENOUGH);
    assert!(matches!(second, Err(JournalError::SnapshotInUse)));
    drop(first);
    let tid = ground.fill(20, 1);
    let snapshot = ground.journal.snapshot(tid, ENOUGH).unwrap();
    assert!(ground.journal.committed_tid() >= tid);
    assert_eq!(read(&snapshot, 20), [1; BLOCK]);
    assert!(snapshot.write(0, &[0; BLOCK]).is_err() && snapshot.discard(0, 1024).is_err());
    assert!(snapshot.write_zeroes(0, 1024).is_err() && snapshot.capabilities().read_only);
    ground.journal.close().unwrap();
    let closed = ground.journal.snapshot(tid, ENOUGH);
    assert!(closed.is_err(), "{closed:?}");
    // What was brought home at the end was kept.
    assert_eq!(read(&snapshot, 20), [1; BLOCK]);
}

#[test]
fn one_that_would_keep_too_much_is_lost_and_nothing_else() {
    let ground = ground();
    let few = 4 * (BLOCK as u64 + 512);
    let snapshot = ground.journal.snapshot(Tid(0), few).unwrap();
    for round in 0..8 {
        let mut tid = Tid(0);
        for block in 20..26 {
            tid = ground.fill(block, round);
        }
        ground.journal.commit(tid).unwrap();
    }
    ground.journal.close().unwrap();
    let lost = snapshot.lost();
    let is_outgrown =
        matches!(lost, Some(SnapshotLost::Outgrown { bytes_max }) if bytes_max == few);
    assert!(is_outgrown, "{lost:?}");
    assert_eq!(snapshot.kept_bytes(), 0);
    assert!(snapshot.read(0, &mut [0; BLOCK]).is_err());
    assert_eq!(ground.at_home(25), 7);
}

#[test]
fn one_that_cant_read_what_it_must_keep_is_lost_and_nothing_else() {
    let ground = ground();
    let snapshot = ground.journal.snapshot(Tid(0), ENOUGH).unwrap();
    let tid = ground.fill(20, 1);
    ground.journal.commit(tid).unwrap();
    ground.device.fail(Fault {
        operation: Operation::Read,
        call: ground.device.calls(Operation::Read),
        times: Times::Forever,
        errno: 5,
    });
    ground.journal.close().unwrap();
    ground.device.clear_faults();
    let lost = snapshot.lost();
    assert!(matches!(lost, Some(SnapshotLost::Device(_))), "{lost:?}");
    assert!(snapshot.read(0, &mut [0; BLOCK]).is_err());
    assert_eq!(ground.at_home(20), 1);
}

#[test]
fn who_waits_for_one_is_told_of_an_abort() {
    let ground = ground();
    let mut entry = pagefence_lock_order::Held::at_entry();
    let (handle, _held) = ground.journal.start(&mut entry, 1).unwrap();
    let (journal, tid) = (ground.journal.clone(), handle.tid());
    // It waits for the handle's end, if it is there in time.
    let waiter = thread::spawn("waiter", move || journal.snapshot(tid, ENOUGH).map(drop)).unwrap();
    thread::yield_now();
    ground.journal.abort(JournalError::Closed);
    drop(handle);
    assert!(waiter.join().unwrap().is_err());
}
