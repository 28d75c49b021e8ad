//! Power cuts at every moment of random work, for seconds; and what is broken on purpose is found.

use std::sync::Arc;
use std::time::Duration;

use pagefence::device::{Capabilities, Device, DeviceError};
use pagefence::{Kind, Volume};
use pagefence_block_io::fault_device::FaultDevice;
use pagefence_proofs::Plan;
use pagefence_proofs::budget::{first_seed, seconds};
use pagefence_proofs::crash::{Crashes, How, Work, options, prove};
use pagefence_proofs::image::Setup;

/// How long random work on each type of image is tried; two run at a time.
const RANDOM: Duration = Duration::from_secs(12);
/// How long sequences of one operation are.
const SEQUENCES: Duration = Duration::from_secs(5);

fn run(setup: Setup) {
    run_work(Work::Random, setup, RANDOM);
}

fn run_work(work: Work, setup: Setup, normal: Duration) {
    let plan = Plan {
        seed: first_seed(),
        time: seconds(normal),
    };
    let row = prove(work, setup, &plan);
    println!("{row}");
    assert!(row.failures.is_empty(), "{:#?}", row.failures);
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

#[test]
fn ext4_survives_power_cuts_around_single_operations() {
    run_work(Work::SomeOnes, Setup::new(Kind::Ext4, 1024, 8), SEQUENCES);
}

#[test]
fn ext3_survives_power_cuts_around_single_operations() {
    run_work(Work::SomeOnes, Setup::new(Kind::Ext3, 4096, 16), SEQUENCES);
}

#[test]
fn what_ext2_made_durable_around_single_operations_survives() {
    run_work(Work::SomeOnes, Setup::new(Kind::Ext2, 1024, 4), SEQUENCES);
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

const NEVER_FLUSHES: How = How {
    wrap: |device| Arc::new(NeverFlushes(device)),
    claims_all: false,
};
const CLAIMS_ALL: How = How {
    wrap: |device| device,
    claims_all: true,
};

/// Whether what is broken on purpose is found by a workload in which nothing else is.
fn is_found(setup: Setup, how: How) -> bool {
    let is_found = |seed| {
        let crash = |how| Crashes::new(setup, how).random(seed);
        crash(How::default()).is_ok() && crash(how).is_err()
    };
    (1..40).any(is_found)
}

#[test]
fn a_device_that_ignores_flushes_is_found() {
    for kind in [Kind::Ext2, Kind::Ext3, Kind::Ext4] {
        let setup = Setup::new(kind, 1024, 8);
        assert!(is_found(setup, NEVER_FLUSHES), "{kind:?}");
    }
}

#[test]
fn a_promise_that_is_not_kept_is_found() {
    for kind in [Kind::Ext3, Kind::Ext4] {
        let setup = Setup::new(kind, 1024, 8);
        assert!(is_found(setup, CLAIMS_ALL), "{kind:?}");
    }
}

/// Names the protection that the process of a test leaves out.
const LEAVES_OUT: &str = "PAGEFENCE_LEAVE_OUT";
/// Seeds of random work that the tests below try, from 1 on.
const SEEDS: u64 = 6;

/// The tests below run it in processes that leave a protection out, and look at what it prints.
#[test]
fn random_work_is_survived() {
    let mut crashes = Crashes::new(Setup::new(Kind::Ext4, 1024, 8), How::default());
    let noticed = (1..=SEEDS).find_map(|seed| Some((seed, crashes.random(seed).err()?)));
    match &noticed {
        Some((seed, error)) => println!("noticed under seed {seed}: {error}"),
        None => println!("nothing is noticed"),
    }
    let leaves_out = std::env::var_os(LEAVES_OUT).is_some();
    assert!(noticed.is_none() || leaves_out, "{noticed:?}");
}

/// What a process of its own, which leaves this out, notices.
fn noticed_without(protection: &str) -> String {
    let program = std::env::current_exe().expect("the tests' own");
    let output = std::process::Command::new(program)
        .args(["--exact", "--nocapture", "random_work_is_survived"])
        .env(LEAVES_OUT, protection)
        .output()
        .expect("it runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{protection}: {printed}");
    println!("{protection}: {printed}");
    printed
}

#[test]
fn a_commit_that_is_not_flushed_is_noticed() {
    assert!(noticed_without("dropped-flush").contains("noticed under seed"));
}

#[test]
fn missing_revokes_are_noticed() {
    assert!(noticed_without("missing-revoke").contains("noticed under seed"));
}

#[test]
fn forgotten_orphans_are_noticed() {
    assert!(noticed_without("forgotten-orphan").contains("noticed under seed"));
}

#[test]
fn blocks_that_are_reused_early_are_noticed() {
    assert!(noticed_without("early-reuse").contains("noticed under seed"));
}
