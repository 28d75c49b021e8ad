//! Migrations that the power, or the device, ends: the file, or the directory, is as it was or as it
//! was to be, and each block has one owner (T11, RACES B6).

use std::process::Command;
use std::time::Duration;

use pagefence_block_io::Device;
use pagefence_block_io::device::Operation;
use pagefence_block_io::fault_device::random::Random;
use pagefence_block_io::fault_device::{Fault, FaultDevice, Times};
use pagefence_block_io::memory_device::MemoryDevice;
use pagefence_ext4::{FileSystem, MountOptions};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{FileSystem as _, MapFormat};

use crate::migrate::{Pieces, by_kernel, check, has_extents, holes, image_with_file, migrate};
use crate::migrate_dirs::{Names, image_with_directory};
use crate::support::{Image, beside_commits, find, is_thorough, root};

/// Moments that are tried, evenly spread; all of them if the run is thorough.
const MOMENTS: usize = 12;
/// Moments at the end that are all tried.
const LAST_MOMENTS: usize = 3;
/// Outcomes by chance that are tried at each moment.
const RANDOM_STATES: usize = 2;

const KINDS: [&[&str]; 3] = [
    &["-t", "ext4", "-b", "1024", "-J", "size=1"],
    &["-t", "ext4", "-b", "4096", "-O", "orphan_file"],
    &["-t", "ext4", "-b", "1024", "-O", "^has_journal"],
];

fn open(device: Arc<dyn Device>) -> FileSystem {
    let options = MountOptions {
        write: true,
        cache: Some(16 << 20),
        commit_interval: Some(Duration::from_secs(3600)),
        ..MountOptions::default()
    };
    FileSystem::open(device, &options).unwrap()
}

/// What is migrated.
trait Subject: Sized {
    /// Its name in the root directory.
    const NAME: &str;

    /// Makes one in an image; of extents.
    fn make(options: &[&str]) -> (Image, Self);

    /// Whether it holds what it held.
    fn check(&self, fs: &FileSystem) -> Result<(), String>;

    /// Has the kernel mount the image.
    fn by_kernel(&self, image: &Image) -> Option<()>;
}

/// A scattered file.
struct Scattered {
    pieces: Pieces,
    holes: Vec<u64>,
}

impl Subject for Scattered {
    const NAME: &str = "file";

    fn make(options: &[&str]) -> (Image, Self) {
        let (image, pieces) = image_with_file(options, None, "10M", 3, 260);
        let fs = image.open();
        let holes = holes(&fs, find(&fs, Self::NAME));
        fs.shut_down().unwrap();
        drop(fs);
        (image, Self { pieces, holes })
    }

    fn check(&self, fs: &FileSystem) -> Result<(), String> {
        let id = find(fs, Self::NAME);
        check(fs, id, &self.pieces)?;
        match holes(fs, id) == self.holes {
            true => Ok(()),
            false => Err("its holes are others".to_owned()),
        }
    }

    fn by_kernel(&self, image: &Image) -> Option<()> {
        by_kernel(&image.path, &self.pieces)
    }
}

impl Subject for Names {
    const NAME: &str = "directory";

    fn make(options: &[&str]) -> (Image, Self) {
        image_with_directory(options, None, "10M", 420)
    }

    fn check(&self, fs: &FileSystem) -> Result<(), String> {
        self.find_all(fs)
    }

    fn by_kernel(&self, image: &Image) -> Option<()> {
        by_kernel(&image.path, &Vec::new())
    }
}

/// A device with what is to be migrated.
fn prepared<S: Subject>(options: &[&str], from: MapFormat) -> (MemoryDevice, S) {
    let (image, subject) = S::make(options);
    if from == MapFormat::Blocks {
        let fs = image.open();
        migrate(&fs, find(&fs, S::NAME), from);
        fs.shut_down().unwrap();
    }
    let bytes = std::fs::read(&image.path).unwrap();
    (MemoryDevice::from_bytes(&bytes), subject)
}

fn other(format: MapFormat) -> MapFormat {
    match format {
        MapFormat::Blocks => MapFormat::Extents,
        MapFormat::Extents => MapFormat::Blocks,
    }
}

/// Has e2fsck mend what it finds.
fn mend(image: &Image, what: &str) {
    let output = Command::new("e2fsck")
        .args(["-f", "-y"])
        .arg(&image.path)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        matches!(output.status.code(), Some(0 | 1)),
        "{what}: {said}"
    );
    assert!(!said.contains("ultiply-claimed"), "{what}: {said}");
}

fn crashes<S: Subject + Sync>(options: &[&str], from: MapFormat) -> usize {
    let (before, subject) = prepared::<S>(options, from);
    let has_journal = !options.contains(&"^has_journal");
    let device = Arc::new(FaultDevice::new(&before, 1));
    device.set_atomic(1024..2048);
    let fs = open(device.clone());
    let id = find(&fs, S::NAME);
    device.start_trace();
    let pause = Duration::from_micros(300);
    beside_commits(&fs, pause, || migrate(&fs, id, other(from)));
    fs.shut_down().unwrap();
    drop(fs);
    let trace = device.take_trace().unwrap();
    let mut flushes = 0;
    trace.walk(|point| flushes += usize::from(point.is_before_flush()));
    let step = match is_thorough() {
        true => 1,
        false => flushes.div_ceil(MOMENTS),
    };
    let (mut tried, mut moments, mut as_before, mut by_the_kernel) = (0, 0, 0, 0);
    trace.walk(|point| {
        if !point.is_before_flush() {
            return;
        }
        moments += 1;
        // The last ones in any case: only there it is done.
        if moments % step != 0 && moments + LAST_MOMENTS < flushes {
            return;
        }
        let position = point.position();
        let states = point.crash_states();
        let mut random = Random::new(position as u64);
        let mut outcomes = vec![states.nothing(), states.everything()];
        outcomes.extend((0..RANDOM_STATES).map(|_| states.random(&mut random)));
        for outcome in outcomes {
            let what = format!("{options:?}, from {from:?}, moment {position}");
            let image = states.image(&outcome);
            tried += 1;
            let by_e2fsck = Image::of(&image.to_vec());
            if !has_journal || tried % 5 == 0 {
                // What another's recovery makes of it.
                mend(&by_e2fsck, &what);
                by_e2fsck.assert_clean(&what);
                let fs = by_e2fsck.open();
                let checked = subject.check(&fs);
                checked.unwrap_or_else(|told| panic!("{what}, e2fsck: {told}"));
            }
            if has_journal && tried % 40 == 7 && by_the_kernel < 8 {
                by_the_kernel += 1;
                let image = Image::of(&image.to_vec());
                if subject.by_kernel(&image).is_some() {
                    image.assert_clean(&format!("{what}, the kernel"));
                }
            }
            let image = Arc::new(image);
            let fs = open(image.clone());
            let id = find(&fs, S::NAME);
            let checked = subject.check(&fs);
            checked.unwrap_or_else(|told| panic!("{what}: {told}"));
            as_before += usize::from(has_extents(&fs, id) == (from == MapFormat::Extents));
            fs.shut_down().unwrap();
            drop(fs);
            if has_journal {
                Image::of(&image.to_vec()).assert_clean(&what);
            }
        }
    });
    assert!(as_before > 0 && as_before < tried, "{as_before} of {tried}");
    tried
}

#[test]
fn a_power_cut_leaves_one_map_and_each_block_one_owner() {
    let mut tried = 0;
    for options in KINDS {
        for from in [MapFormat::Blocks, MapFormat::Extents] {
            tried += crashes::<Scattered>(options, from);
        }
    }
    assert!(tried > 100, "{tried} states");
    println!("{tried} states");
}

#[test]
fn a_power_cut_leaves_a_directory_one_map_and_all_its_names() {
    let mut tried = 0;
    for options in KINDS {
        for from in [MapFormat::Blocks, MapFormat::Extents] {
            tried += crashes::<Names>(options, from);
        }
    }
    assert!(tried > 60, "{tried} states");
    println!("{tried} states");
}

/// Each call of the device in its turn fails, and those after it, or not.
#[test]
fn a_device_error_leaves_the_file_whole() {
    device_errors::<Scattered>();
}

#[test]
fn a_device_error_leaves_a_directory_whole() {
    device_errors::<Names>();
}

fn device_errors<S: Subject>() {
    for options in &KINDS[..2] {
        for from in [MapFormat::Blocks, MapFormat::Extents] {
            let (before, subject) = prepared::<S>(options, from);
            for operation in [Operation::Read, Operation::Write, Operation::Flush] {
                for times in [Times::Once, Times::Forever] {
                    let failed = fail_each(&before, &subject, from, operation, times);
                    assert!(
                        failed > 0 || operation != Operation::Read,
                        "{options:?}: no call of {operation:?} failed"
                    );
                }
            }
        }
    }
}

fn fail_each<S: Subject>(
    before: &MemoryDevice,
    subject: &S,
    from: MapFormat,
    operation: Operation,
    times: Times,
) -> usize {
    let mut failed = 0;
    for call in 0.. {
        let what = format!("from {from:?}, {operation:?} {call}, {times:?}");
        let device = Arc::new(FaultDevice::new(before, 1));
        device.set_atomic(1024..2048);
        let fs = open(device.clone());
        let id = find(&fs, S::NAME);
        let first = device.calls(operation);
        device.fail(Fault {
            operation,
            call: first + call,
            times,
            errno: 5,
        });
        let migrated = fs.migrate(id, other(from), &root());
        let synced = fs.sync();
        let is_reached = device.calls(operation) > first + call;
        failed += usize::from(migrated.is_err());
        device.clear_faults();
        if migrated.is_ok() && synced.is_ok() {
            assert!(
                has_extents(&fs, id) == (from == MapFormat::Blocks),
                "{what}"
            );
        }
        // What is in memory is whole, too.
        if times == Times::Once {
            let checked = subject.check(&fs);
            checked.unwrap_or_else(|told| panic!("{what}, in memory: {told}"));
        }
        let closed = fs.shut_down();
        drop(fs);
        let image = Arc::new(device.live());
        let fs = open(image.clone());
        if fs.read_only_because().is_none() {
            let checked = subject.check(&fs);
            checked.unwrap_or_else(|told| panic!("{what}: {told}"));
            fs.shut_down().unwrap();
            drop(fs);
            Image::of(&image.to_vec()).assert_clean(&what);
        } else {
            // The error is on record: e2fsck is asked for, and finds nothing else.
            drop(fs);
            let image = Image::of(&device.live().to_vec());
            mend(&image, &what);
            image.assert_clean(&what);
            let fs = image.open();
            let checked = subject.check(&fs);
            checked.unwrap_or_else(|told| panic!("{what}, mended: {told}"));
        }
        if !is_reached {
            assert!(migrated.is_ok() && closed.is_ok(), "{what}");
            break;
        }
    }
    failed
}
