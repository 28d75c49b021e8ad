//! Power cuts and failing devices while recovery itself is at work: wherever it is cut off, a second
//! recovery ends the same.

use pagefence_block_io::fault_device::random::Random;
use pagefence_block_io::fault_device::{Fault, Times};
use pagefence_block_io::{Device, FaultDevice, Operation};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::FileSystem as _;

use crate::images::{Image, read_only, recover};
use crate::journal::dirty;
use crate::orphans::KINDS;
use crate::walk::walk;

/// States that are tried of one image, about.
const STATES: usize = 48;

/// The seed of a run: given by the environment to run it again.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("PAGEFENCE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
            now.as_nanos() as u64
        });
    println!("PAGEFENCE_SEED={seed}");
    seed
}

/// Recovers `image` on a device that loses power, at moments and in states by chance, and
/// recovers what is left. With a journal each ends sound; without one e2fsck mends it.
pub(crate) fn cut_off(kind: &str, image: &Image, journal: bool, seed: u64) {
    let device = Arc::new(FaultDevice::new(&image.device(), seed));
    device.set_atomic(1024..2048);
    device.start_trace();
    let expected = walk(&recover(Arc::clone(&device) as _).unwrap());
    let trace = device.take_trace().unwrap();
    let mut random = Random::new(seed);
    // Moments are the same in number each time, so that a seed names a run.
    let mut moments = 0;
    trace.walk(|point| moments += usize::from(point.is_before_flush()));
    let per_moment = (STATES / moments).max(2);
    let mut tried = 0;
    trace.walk(|point| {
        if !point.is_before_flush() {
            return;
        }
        let states = point.crash_states();
        let mut chosen = vec![states.nothing(), states.everything()];
        chosen.extend((2..per_moment).map(|_| states.random(&mut random)));
        chosen.sort();
        chosen.dedup();
        for state in chosen {
            let what = format!("{kind}, step {}, {state:?}", point.position());
            let cut = Arc::new(states.image(&state));
            let fs =
                recover(Arc::clone(&cut) as _).unwrap_or_else(|error| panic!("{what}: {error}"));
            // Without a journal, somebody has to be told to run e2fsck.
            let is_due = |note: &String| !journal && note.contains("was not closed properly");
            assert!(fs.notes().iter().all(is_due), "{what}: {:?}", fs.notes());
            drop(fs);
            let ours = Image::of(&cut.to_vec());
            if !journal {
                ours.mend();
            }
            let left = walk(&read_only(Arc::new(ours.device())).unwrap());
            let findings = ours.check();
            assert!(findings.is_clean(), "{what}: {findings:?}");
            assert!(left == expected, "{what}: another tree");
            tried += 1;
        }
    });
    println!(
        "{kind}: {tried} states at {moments} moments of {} steps",
        trace.len()
    );
    assert!(tried >= moments, "each moment was tried");
}

#[test]
fn a_recovery_that_is_cut_off_starts_over() {
    let seed = seed();
    // Blocks of another size differ in nothing that a power cut could find.
    for (kind, arguments) in KINDS
        .into_iter()
        .filter(|(kind, _)| !["ext4 2k", "ext4 4k"].contains(kind))
    {
        let journal = kind != "ext2 1k";
        let (orphans, _) = crate::orphans::with_orphans(arguments);
        if !journal {
            cut_off(kind, &orphans, journal, seed);
            continue;
        }
        let changes = [
            "rm /kept",
            "mkdir /made",
            "ln /cut /made/linked",
            "set_inode_field /cut links_count 2",
        ]
        .map(str::to_owned);
        let dirty = dirty(orphans, &changes);
        cut_off(kind, &dirty.image, journal, seed);
    }
}

/// Calls of a kind that are made to fail, of all that there are.
const FAULTS: u64 = 16;

#[test]
fn a_device_that_fails_leaves_a_recovery_that_can_start_over() {
    let seed = seed();
    for (kind, arguments) in [KINDS[0], KINDS[3]] {
        let (orphans, _) = crate::orphans::with_orphans(arguments);
        let image = dirty(orphans, &["rm /kept".to_owned()]).image;
        let expected = walk(&recover(Arc::new(FaultDevice::new(&image.device(), seed))).unwrap());
        // Without a walk, whose reads are noted in the inodes.
        let whole = Arc::new(FaultDevice::new(&image.device(), seed));
        recover(Arc::clone(&whole) as _)
            .unwrap()
            .shut_down()
            .unwrap();
        for operation in [Operation::Read, Operation::Write, Operation::Flush] {
            let calls = whole.calls(operation);
            for call in (0..calls).step_by((calls / FAULTS).max(1) as usize) {
                let what = format!("{kind}, {operation} {call}");
                let device = Arc::new(FaultDevice::new(&image.device(), seed));
                device.set_atomic(1024..2048);
                device.fail(Fault {
                    operation,
                    call,
                    times: if call % 2 == 0 {
                        Times::Once
                    } else {
                        Times::Forever
                    },
                    errno: 5,
                });
                // Reads may fail where there is another way; nothing else goes unnoticed.
                let outcome = recover(Arc::clone(&device) as Arc<dyn Device>)
                    .map_err(|error| error.to_string())
                    .and_then(|fs| fs.shut_down().map_err(|error| error.to_string()));
                assert!(outcome.is_err() || operation == Operation::Read, "{what}");
                device.clear_faults();
                let fs = recover(Arc::clone(&device) as _)
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(walk(&fs) == expected, "{what}: another tree");
                drop(fs);
                let findings = Image::of(&device.live().to_vec()).check();
                assert!(findings.is_clean(), "{what}: {findings:?}");
            }
        }
    }
}
