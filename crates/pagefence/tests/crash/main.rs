//! Power cuts at every moment of random work: nothing that was made durable is lost, names change
//! as a whole and in order, no file shows bytes that are not its own, and e2fsck has nothing to
//! say.

mod check;
#[path = "../common/mod.rs"]
mod common;
mod history;
mod names;
mod workload;

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use pagefence::device::{Capabilities, Device, DeviceError, MemoryDevice};
use pagefence::{Kind, Volume};
use pagefence_block_io::fault_device::random::Random;
use pagefence_block_io::fault_device::{FaultDevice, Trace};

use check::{SUPERBLOCK, Tried, check};
use common::image::Setup;
use common::{Budget, e2fsck, first_seed};
use history::{History, Wrap, options};
use workload::{PROFILES, Profile, operations};

/// How long each type of image is tried; two run at a time.
const NORMAL: Duration = Duration::from_secs(15);
/// Operations of a workload.
const OPERATIONS: u64 = 50;
/// Moments of a workload at which the power is cut.
const MOMENTS: usize = 24;
/// States that are tried of each.
const STATES: usize = 6;

/// One workload, crashed at some of its moments, in some of the states each leaves; told how many
/// states were new.
fn crash_everywhere(
    setup: &Setup,
    image: &MemoryDevice,
    profile: Profile,
    seed: u64,
    (wrap, claims_all): (Wrap, bool),
    seen: &mut HashSet<u64>,
) -> Result<Tried, String> {
    let mut random = Random::new(seed);
    let count = 4 + random.below(OPERATIONS) as usize;
    let operations = operations(setup, profile, &mut random, count);
    let device = Arc::new(FaultDevice::new(image, random.next_u64()));
    device.set_atomic(SUPERBLOCK);
    // What goes wrong before the power is cut is no finding of a crash.
    let (history, trace) = History::record(setup, &device, wrap, operations, claims_all)
        .unwrap_or_else(|error| {
            panic!("{setup:?}, {profile:?}, PAGEFENCE_PROOF_SEED={seed}: {error}")
        });
    let moments = moments(&trace, &mut random);
    let mut tried = Tried::default();
    let mut failure = None;
    trace.walk(|point| {
        let position = point.position();
        if failure.is_some() || !moments.contains(&position) {
            return;
        }
        let states = point.crash_states();
        let mut chosen = states.explore(random.next_u64(), STATES);
        while chosen.len() > STATES {
            chosen.swap_remove(random.below(chosen.len() as u64) as usize);
        }
        for state in chosen {
            let crashed = states.image(&state);
            if !seen.insert(fingerprint(&crashed) ^ position as u64) {
                continue;
            }
            let outcome = check(setup, &history, position, crashed, &mut random, &mut tried);
            if let Err(error) = outcome {
                let done = history.shown(position);
                failure = Some(format!(
                    "at step {position} of {}: {error}\n{done}",
                    trace.len()
                ));
                return;
            }
        }
    });
    match failure {
        None => Ok(tried),
        Some(error) => Err(error),
    }
}

/// Where the power is cut: mostly before flushes, where what was written before is in every state.
fn moments(trace: &Trace, random: &mut Random) -> HashSet<usize> {
    let mut before_flushes = Vec::new();
    trace.walk(|point| {
        if point.is_before_flush() {
            before_flushes.push(point.position());
        }
    });
    let mut moments = HashSet::new();
    for number in 0..MOMENTS {
        let any = random.below(trace.len() as u64 + 1) as usize;
        let before = before_flushes[random.below(before_flushes.len() as u64) as usize];
        moments.insert(if number % 4 == 0 { any } else { before });
    }
    moments
}

/// A number for what is on the device.
fn fingerprint(device: &MemoryDevice) -> u64 {
    const STEP: u64 = 4096;
    let mut hasher = DefaultHasher::new();
    let mut block = vec![0; STEP as usize];
    let zeros = block.clone();
    for offset in (0..device.size()).step_by(STEP as usize) {
        device.read(offset, &mut block).expect("whole blocks");
        if block != zeros {
            offset.hash(&mut hasher);
            hasher.write(&block);
        }
    }
    hasher.finish()
}

fn as_it_is(device: Arc<FaultDevice>) -> Arc<dyn Device> {
    device
}

fn run(setup: Setup) {
    if !e2fsck::is_there() {
        println!("skipped: there is no e2fsck");
        return;
    }
    let budget = Budget::new(NORMAL);
    let image = setup.make();
    let mut seen = HashSet::new();
    let (mut seed, mut workloads) = (first_seed(), 0);
    let mut total = Tried::default();
    while workloads == 0 || budget.is_left() {
        let profile = PROFILES[(seed % PROFILES.len() as u64) as usize];
        let outcome = crash_everywhere(&setup, &image, profile, seed, (as_it_is, false), &mut seen);
        match outcome {
            Ok(tried) => {
                total.states += tried.states;
                total.crashed_again += tried.crashed_again;
                total.by_e2fsck += tried.by_e2fsck;
                total.recovered_by_e2fsck += tried.recovered_by_e2fsck;
                total.without_a_name += tried.without_a_name;
                println!("{profile:?} {seed}: {} distinct states", tried.states);
            }
            Err(error) => panic!("{setup:?}, {profile:?}, PAGEFENCE_PROOF_SEED={seed}: {error}"),
        }
        (seed, workloads) = (seed + 1, workloads + 1);
    }
    println!(
        "{setup:?}: {workloads} workloads, {} distinct states, {} of them crashed again, \
         {} shown to e2fsck, {} recovered by it too, {} files found without their names, \
         failures 0",
        total.states,
        total.crashed_again,
        total.by_e2fsck,
        total.recovered_by_e2fsck,
        total.without_a_name
    );
}

#[test]
fn ext4_of_small_blocks_survives_power_cuts() {
    run(Setup::new(Kind::Ext4, 1024, 8));
}

#[test]
fn ext4_of_large_blocks_survives_power_cuts() {
    run(Setup::new(Kind::Ext4, 4096, 16));
}

#[test]
fn ext3_survives_power_cuts() {
    run(Setup::new(Kind::Ext3, 1024, 8));
}

#[test]
fn what_ext2_made_durable_survives_power_cuts_and_e2fsck() {
    run(Setup::new(Kind::Ext2, 1024, 4));
}

#[test]
fn what_ext4_without_a_journal_made_durable_survives_power_cuts_and_e2fsck() {
    let mut setup = Setup::new(Kind::Ext4, 4096, 16);
    setup.features = "^has_journal";
    run(setup);
}

/// A block of a directory that is freed in the transaction that made it, and then holds data: the
/// journal has the directory's entries and must not bring them back.
#[test]
fn a_directory_that_came_and_went_is_not_replayed_over_data() {
    let setup = Setup::new(Kind::Ext4, 1024, 8);
    let device = Arc::new(setup.make());
    let volume = Volume::open_device(Arc::clone(&device) as _, options()).expect("it opens");
    volume.create_dir("d").expect("a directory");
    volume.remove_dir("d").expect("it goes");
    volume.sync().expect("both are durable");
    let data = vec![7; 20_000];
    let file = volume.create("f").expect("a file");
    file.write_all_at(0, &data).expect("it is written");
    file.sync_all().expect("it is durable");
    let crashed = Arc::new(device.fork());
    let recovered = Volume::open_device(crashed, options()).expect("it recovers");
    assert!(recovered.read("f").expect("it is there") == data);
}

/// A device that says that it flushed, and did not.
#[derive(Debug)]
struct NeverFlushes(Arc<FaultDevice>);

impl Device for NeverFlushes {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn read_vectored(
        &self,
        offset: u64,
        buffers: &mut [std::io::IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        self.0.read_vectored(offset, buffers)
    }

    fn write_vectored(
        &self,
        offset: u64,
        buffers: &[std::io::IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        self.0.write_vectored(offset, buffers)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.0.discard(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.0.write_zeroes(offset, length)
    }
}

fn never_flushes(device: Arc<FaultDevice>) -> Arc<dyn Device> {
    Arc::new(NeverFlushes(device))
}

/// Whether what is broken on purpose is found by a workload in which nothing else is.
fn is_found(setup: &Setup, how: (Wrap, bool)) -> bool {
    let image = setup.make();
    let is_found = |seed| {
        let profile = PROFILES[(seed % PROFILES.len() as u64) as usize];
        let crash = |how| crash_everywhere(setup, &image, profile, seed, how, &mut HashSet::new());
        crash((as_it_is, false)).is_ok() && crash(how).is_err()
    };
    (1..40).any(is_found)
}

#[test]
fn a_device_that_ignores_flushes_is_found() {
    for kind in [Kind::Ext2, Kind::Ext3, Kind::Ext4] {
        let setup = Setup::new(kind, 1024, 8);
        assert!(is_found(&setup, (never_flushes, false)), "{kind:?}");
    }
}

#[test]
fn a_promise_that_is_not_kept_is_found() {
    for kind in [Kind::Ext3, Kind::Ext4] {
        let setup = Setup::new(kind, 1024, 8);
        assert!(is_found(&setup, (as_it_is, true)), "{kind:?}");
    }
}
