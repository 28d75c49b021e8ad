//! Power cuts while files are written, cut, punched and made durable: what was synced is there, and
//! what lay on the disk before shows nowhere.

use pagefence_lock_order::primitives::Arc;

use pagefence_block_io::device::Operation;
use pagefence_block_io::fault_device::{Fault, FaultDevice, Times};
use pagefence_block_io::memory_device::MemoryDevice;
use pagefence_ext4::{FileSystem, MountOptions};
use pagefence_vfs::{Error, ExtentState, FallocateMode, FileSystem as _, RenameMode, WriteMode};

use crate::support::{
    Image, KINDS, Kind, Random, beside_commits, create, find, read_all, set_size, write_all,
    write_all_as,
};

/// The byte that all free blocks are filled with. Nobody writes it.
const STALE: u8 = 0x5a;
/// Bytes that a file has at most.
const SPAN: u64 = 60 << 10;
/// Outcomes by chance that are tried at each moment.
const RANDOM_STATES: usize = 2;
const FILES: usize = 2;

/// What was done to a file, and when, in steps of the device.
struct Step {
    begun: usize,
    ended: usize,
    /// Which file, what it holds then, and whether that is durable.
    file: usize,
    contents: Vec<u8>,
    is_synced: bool,
    said: String,
}

fn open(device: Arc<dyn pagefence_block_io::Device>) -> FileSystem {
    let options = MountOptions {
        write: true,
        cache: Some(16 << 20),
        ..MountOptions::default()
    };
    FileSystem::open(device, &options).unwrap()
}

/// A file system with two empty files, whose free blocks hold what must not be seen.
fn used(kind: &Kind) -> MemoryDevice {
    let image = Image::new(kind.options, "10M");
    let bytes = std::fs::read(&image.path).unwrap();
    let device = Arc::new(MemoryDevice::from_bytes(&bytes));
    let fs = open(device.clone());
    let filler = create(&fs, "filler");
    let file = fs.open(filler, true).unwrap();
    let mut offset = 0;
    loop {
        match write_all(&fs, &file, offset, &[STALE; 32 << 10]) {
            (_, None) => offset += 32 << 10,
            (_, Some(Error::NoSpace)) => break,
            (_, Some(error)) => panic!("{error:?}"),
        }
    }
    fs.sync().unwrap();
    drop(file);
    fs.unlink(fs.root(), b"filler").unwrap();
    fs.forget(filler);
    for number in 0..FILES {
        create(&fs, &format!("file{number}"));
    }
    fs.shut_down().unwrap();
    drop(fs);
    Image::of(&device.to_vec()).assert_clean(kind.name);
    Arc::into_inner(device).unwrap()
}

fn work(fs: &FileSystem, device: &FaultDevice, seed: u64, steps: usize) -> Vec<Step> {
    let mut random = Random::new(seed);
    let mut contents = vec![Vec::new(); FILES];
    let ids: Vec<_> = (0..FILES)
        .map(|number| find(fs, &format!("file{number}")))
        .collect();
    let files: Vec<_> = ids.iter().map(|id| fs.open(*id, true).unwrap()).collect();
    let mut done = Vec::new();
    for _ in 0..steps {
        let begun = device.trace_position();
        let number = random.below(FILES as u64) as usize;
        let model: &mut Vec<u8> = &mut contents[number];
        let file = &files[number];
        let mut start = random.below(SPAN);
        let most = if random.below(2) == 0 { 12_000 } else { 500 };
        let mut len = 1 + random.below((SPAN - start).min(most));
        let what = random.below(10);
        let mut mode = WriteMode::empty();
        if what < 2 {
            // Past the cache; half of it of blocks that are whole on any of these file systems.
            mode = WriteMode::DIRECT;
            let unit = [1024, 4096][random.below(2) as usize];
            (start, len) = (start / unit * unit, len.next_multiple_of(unit));
        }
        let (from, to) = (start as usize, (start + len) as usize);
        let mut is_synced = false;
        let said = match what {
            0..4 => {
                let byte = match 1 + (random.next() % 255) as u8 {
                    STALE => 1,
                    byte => byte,
                };
                let data = vec![byte; len as usize];
                let (written, error) = write_all_as(fs, file, start, &data, mode);
                assert_eq!(written as u64, len, "{error:?}");
                if model.len() < to {
                    model.resize(to, 0);
                }
                model[from..to].fill(byte);
                format!("write {start} {len} {byte} {mode:?}")
            }
            4 | 5 => {
                let size = start.min(model.len() as u64 + 5000);
                set_size(fs, ids[number], size).unwrap();
                model.resize(size as usize, 0);
                format!("truncate {size}")
            }
            6 => {
                let mode = FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE;
                fs.allocate(file, start, len, mode).unwrap();
                let to = to.min(model.len());
                if from < to {
                    model[from..to].fill(0);
                }
                format!("punch {start} {len}")
            }
            7 => match fs.allocate(file, start, len, FallocateMode::empty()) {
                Ok(()) => {
                    if model.len() < to {
                        model.resize(to, 0);
                    }
                    format!("allocate {start} {len}")
                }
                Err(Error::Unsupported(_)) => "nothing".to_owned(),
                Err(error) => panic!("{error:?}"),
            },
            other => {
                fs.sync_file(file, other == 8).unwrap();
                is_synced = true;
                "fsync".to_owned()
            }
        };
        done.push(Step {
            begun,
            ended: device.trace_position(),
            file: number,
            contents: model.clone(),
            is_synced,
            said,
        });
    }
    done
}

/// Whether a file that a crash at `position` left may be so.
fn judge(bytes: &[u8], steps: &[Step], file: usize, position: usize) -> Result<(), String> {
    let of_file: Vec<&Step> = steps.iter().filter(|step| step.file == file).collect();
    let synced = of_file
        .iter()
        .rposition(|step| step.is_synced && step.ended <= position);
    let empty = Vec::new();
    let base = synced.map_or(&empty, |at| &of_file[at].contents);
    let later: Vec<&Step> = of_file
        .iter()
        .skip(synced.map_or(0, |at| at + 1))
        .take_while(|step| step.begun <= position)
        .copied()
        .collect();
    let said: Vec<_> = later.iter().map(|step| step.said.as_str()).collect();
    let sizes = later.iter().map(|step| step.contents.len());
    let least = sizes.clone().min().unwrap_or(base.len()).min(base.len());
    let most = sizes.max().unwrap_or(base.len()).max(base.len());
    let is_changed = later.iter().any(|step| !step.is_synced);
    if bytes.len() < least || bytes.len() > most {
        return Err(format!(
            "{} bytes instead of {least} to {most} after {said:?}",
            bytes.len()
        ));
    }
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == STALE {
            return Err(format!("stale bytes at {at} after {said:?}"));
        }
        let mut versions = std::iter::once(base).chain(later.iter().map(|step| &step.contents));
        let is_known = versions.any(|contents| contents.get(at) == Some(byte));
        let is_fine = is_known || (is_changed && *byte == 0);
        if !is_fine {
            return Err(format!("byte {byte} at {at} after {said:?}"));
        }
    }
    Ok(())
}

fn crashes(kind: &Kind, seed: u64, steps: usize) -> usize {
    let before = used(kind);
    let device = Arc::new(FaultDevice::new(&before, seed));
    device.set_atomic(1024..2048);
    device.start_trace();
    let fs = open(device.clone());
    let pause = std::time::Duration::from_micros(300);
    let steps = beside_commits(&fs, pause, || work(&fs, &device, seed, steps));
    drop(fs);
    let trace = device.take_trace().unwrap();
    let (mut tried, mut moments) = (0, 0);
    trace.walk(|point| {
        if !point.is_before_flush() {
            return;
        }
        let position = point.position();
        moments += 1;
        let is_known = steps.iter().any(|step| step.ended == position);
        if moments % 2 != 0 && !is_known {
            return;
        }
        let states = point.crash_states();
        let mut random = pagefence_block_io::fault_device::random::Random::new(position as u64);
        let mut outcomes = vec![states.nothing(), states.everything()];
        outcomes.extend((0..RANDOM_STATES).map(|_| states.random(&mut random)));
        for outcome in outcomes {
            let image = Arc::new(states.image(&outcome));
            let fs = open(image.clone());
            for file in 0..FILES {
                let bytes = read_all(&fs, find(&fs, &format!("file{file}")));
                if let Err(what) = judge(&bytes, &steps, file, position) {
                    panic!(
                        "{}, seed {seed}, moment {position}, file {file}: {what}",
                        kind.name
                    );
                }
            }
            fs.shut_down().unwrap();
            drop(fs);
            if tried % 8 == 0 {
                let judged = Image::of(&image.to_vec());
                judged.assert_clean(&format!("{}, seed {seed}, moment {position}", kind.name));
            }
            tried += 1;
        }
    });
    tried
}

#[test]
fn a_power_cut_loses_nothing_synced_and_shows_nothing_stale() {
    let seeds = std::env::var("PAGEFENCE_CRASHES").map_or(2, |count| count.parse().unwrap());
    let mut tried = 0;
    for seed in 0..seeds {
        for kind in KINDS.iter().filter(|kind| kind.has_journal()) {
            tried += crashes(kind, seed, 60);
        }
    }
    assert!(tried > 100 * seeds as usize, "{tried} states");
    println!("{tried} states");
}

/// Somebody else's writes left bytes behind the end of a file, in its last block. They do not show
/// when the file grows, whichever way, and whenever the power goes.
#[test]
fn foreign_bytes_behind_the_end_never_show() {
    for kind in KINDS.iter().filter(|kind| kind.has_journal()) {
        let image = Image::new(kind.options, "10M");
        let fs = image.open();
        for number in 0..3 {
            let id = create(&fs, &format!("file{number}"));
            let file = fs.open(id, true).unwrap();
            write_all(&fs, &file, 0, &[7; 700]);
        }
        fs.sync().unwrap();
        let blocks: Vec<_> = (0..3)
            .map(|number| {
                let id = find(&fs, &format!("file{number}"));
                let extents = fs.extents(id, 0, u64::MAX, 2).unwrap();
                assert_eq!(extents[0].state, ExtentState::Written);
                (extents[0].physical as usize, extents[0].length as usize)
            })
            .collect();
        fs.shut_down().unwrap();
        drop(fs);
        let mut bytes = std::fs::read(&image.path).unwrap();
        for (start, length) in blocks {
            bytes[start + 700..start + length].fill(STALE);
        }
        let device = Arc::new(FaultDevice::new(&MemoryDevice::from_bytes(&bytes), 1));
        device.set_atomic(1024..2048);
        device.start_trace();
        let fs = open(device.clone());
        let ids: Vec<_> = (0..3)
            .map(|number| find(&fs, &format!("file{number}")))
            .collect();
        set_size(&fs, ids[0], 5000).unwrap();
        let file = fs.open(ids[1], true).unwrap();
        write_all(&fs, &file, 9000, &[8; 100]);
        let other = fs.open(ids[2], true).unwrap();
        fs.write(&other, 0, &[8; 10], WriteMode::APPEND).unwrap();
        let check = |fs: &FileSystem| {
            for number in 0..3 {
                let bytes = read_all(fs, find(fs, &format!("file{number}")));
                let stale = bytes.iter().position(|byte| *byte == STALE);
                assert_eq!(stale, None, "{} file {number}", kind.name);
            }
        };
        check(&fs);
        // Mapping what lies behind must not come before the zeros.
        fs.sync_file(&file, false).unwrap();
        fs.sync_file(&other, false).unwrap();
        drop((file, other));
        fs.shut_down().unwrap();
        drop(fs);
        device.take_trace().unwrap().walk(|point| {
            if !point.is_before_flush() {
                return;
            }
            let states = point.crash_states();
            for outcome in states.explore(1, 4) {
                check(&open(Arc::new(states.image(&outcome))));
            }
        });
    }
}

/// What is overwritten in place needs no transaction, and is durable when it is synced all the
/// same.
#[test]
fn an_overwrite_that_was_synced_survives() {
    for kind in &KINDS {
        let image = Image::new(kind.options, "10M");
        let bytes = std::fs::read(&image.path).unwrap();
        let device = Arc::new(FaultDevice::new(&MemoryDevice::from_bytes(&bytes), 1));
        device.set_atomic(1024..2048);
        let fs = open(device.clone());
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        write_all(&fs, &file, 0, &[7; 10_000]);
        fs.sync().unwrap();
        for (byte, data_only) in [(8, true), (9, false), (10, true), (11, true)] {
            write_all(&fs, &file, 3000, &[byte; 2000]);
            fs.sync_file(&file, data_only).unwrap();
            let states = device.crash_states();
            let left = open(Arc::new(states.image(&states.nothing())));
            let bytes = read_all(&left, find(&left, "file"));
            assert_eq!(bytes.len(), 10_000, "{} {byte}", kind.name);
            assert!(
                bytes[3000..5000] == [byte; 2000] && bytes[5000..] == [7; 5000],
                "{} {byte}",
                kind.name
            );
        }
    }
}

/// A write that fails is told once to each open file, and nothing else suffers.
#[test]
fn a_failed_write_is_told_to_each_open_file_once() {
    for kind in &KINDS {
        let image = Image::new(kind.options, "10M");
        let bytes = std::fs::read(&image.path).unwrap();
        let device = Arc::new(FaultDevice::new(&MemoryDevice::from_bytes(&bytes), 1));
        let fs = open(device.clone());
        let id = create(&fs, "file");
        let (first, second) = (fs.open(id, true).unwrap(), fs.open(id, true).unwrap());
        fs.sync().unwrap();
        write_all(&fs, &first, 0, &[7; 10_000]);
        device.fail(Fault {
            operation: Operation::Write,
            call: device.calls(Operation::Write),
            times: Times::Once,
            errno: 5,
        });
        for file in [&first, &second] {
            let told = fs.sync_file(file, false);
            assert!(matches!(told, Err(Error::Io(_))), "{}: {told:?}", kind.name);
        }
        for file in [&first, &second] {
            fs.sync_file(file, false).unwrap();
        }
        // The same blocks, once more.
        write_all(&fs, &first, 0, &[8; 10_000]);
        fs.sync_file(&first, false).unwrap();
        drop((first, second));
        // Who syncs all files did not hear it from those two.
        let told = fs.sync();
        assert!(matches!(told, Err(Error::Io(_))), "{}: {told:?}", kind.name);
        fs.shut_down().unwrap();
        drop(fs);
        let image = Image::of(&device.live().to_vec());
        image.assert_clean(kind.name);
        let fs = image.open();
        assert!(
            read_all(&fs, find(&fs, "file")) == [8; 10_000],
            "{}",
            kind.name
        );
    }
}

/// A file that replaces another by its name, or whose own contents were cut off before, is not left
/// empty by the commit that makes that durable, though nobody synced it.
#[test]
fn what_replaces_is_written_before_what_it_replaces_is_gone() {
    for kind in KINDS.iter().filter(|kind| kind.has_journal()) {
        let image = Image::new(kind.options, "10M");
        let bytes = std::fs::read(&image.path).unwrap();
        let device = Arc::new(FaultDevice::new(&MemoryDevice::from_bytes(&bytes), 1));
        device.set_atomic(1024..2048);
        let fs = open(device.clone());
        for name in ["cut", "replaced"] {
            let file = fs.open(create(&fs, name), true).unwrap();
            write_all(&fs, &file, 0, &[7; 10_000]);
        }
        fs.sync().unwrap();
        let cut = find(&fs, "cut");
        let file = fs.open(cut, true).unwrap();
        set_size(&fs, cut, 0).unwrap();
        write_all(&fs, &file, 0, &[8; 9000]);
        drop(file);
        let new = fs.open(create(&fs, "new"), true).unwrap();
        write_all(&fs, &new, 0, &[8; 9000]);
        let top = fs.root();
        fs.rename(top, b"new", top, b"replaced", RenameMode::empty())
            .unwrap();
        fs.sync_dir(&fs.open_dir(top).unwrap()).unwrap();
        let states = device.crash_states();
        let left = open(Arc::new(states.image(&states.nothing())));
        for name in ["cut", "replaced"] {
            let bytes = read_all(&left, find(&left, name));
            assert!(bytes == [8; 9000], "{}: {name}, {}", kind.name, bytes.len());
        }
    }
}
