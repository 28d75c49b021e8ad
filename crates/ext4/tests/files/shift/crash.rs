//! Power cuts while blocks move: what is left is one of the states that docs/CRASH.md names.

use std::ops::Range;
use std::process::Command;

use pagefence_block_io::fault_device::FaultDevice;
use pagefence_block_io::fault_device::random::Random as StateRandom;
use pagefence_block_io::memory_device::MemoryDevice;
use pagefence_ext4::{FileSystem, MountOptions};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread::scope;
use pagefence_vfs::{FileSystem as _, SetAttr, SetTime};

use super::{COLLAPSE, INSERT};
use crate::support::{Image, create, find, read_all, root, write_all};

/// Outcomes by chance that are tried at each moment.
const RANDOM_STATES: usize = 1;

/// A kind of file system, and how a file is laid out in it.
struct Case {
    name: &'static str,
    options: &'static [&'static str],
    has_log: bool,
    /// Blocks of the file, and every how many of them has data.
    blocks: u64,
    every: u64,
}

const CASES: [Case; 5] = [
    Case {
        name: "extents, a small log",
        options: &["-t", "ext4", "-b", "1024", "-J", "size=1"],
        has_log: true,
        blocks: 3000,
        every: 2,
    },
    Case {
        name: "extents of 4k",
        options: &["-t", "ext4", "-b", "4096"],
        has_log: true,
        blocks: 1500,
        every: 2,
    },
    Case {
        name: "pointers",
        options: &["-t", "ext3", "-b", "1024", "-J", "size=1"],
        has_log: true,
        blocks: 3000,
        every: 1,
    },
    Case {
        name: "extents without a log",
        options: &["-t", "ext4", "-b", "1024", "-O", "^has_journal"],
        has_log: false,
        blocks: 1200,
        every: 2,
    },
    Case {
        name: "pointers without a log",
        options: &["-t", "ext2", "-b", "1024"],
        has_log: false,
        blocks: 1200,
        every: 1,
    },
];

fn open(device: Arc<dyn pagefence_block_io::Device>) -> FileSystem {
    let options = MountOptions {
        write: true,
        cache: Some(16 << 20),
        ..MountOptions::default()
    };
    FileSystem::open(device, &options).unwrap()
}

/// An image with a file of which each block is another.
fn with_file(case: &Case) -> (MemoryDevice, Vec<u8>, usize) {
    let image = Image::new(case.options, "16M");
    let fs = image.open();
    let block = fs.stat_fs().unwrap().block_size as usize;
    let file = fs.open(create(&fs, "file"), true).unwrap();
    let mut bytes = vec![0; case.blocks as usize * block];
    for at in (0..case.blocks).step_by(case.every as usize) {
        let from = at as usize * block;
        let number = (at as u32 + 1).to_le_bytes();
        for four in bytes[from..from + block].chunks_mut(4) {
            four.copy_from_slice(&number);
        }
        write_all(&fs, &file, from as u64, &bytes[from..from + block]);
    }
    let size = bytes.len() as u64;
    crate::support::set_size(&fs, find(&fs, "file"), size).unwrap();
    drop(file);
    fs.shut_down().unwrap();
    drop(fs);
    let device = MemoryDevice::from_bytes(&std::fs::read(&image.path).unwrap());
    (device, bytes, block)
}

/// What a file was and is to be, and between: `low` below some block, `high` behind the hole that
/// comes there.
struct Between {
    low: Vec<u8>,
    high: Vec<u8>,
    gap: Range<usize>,
    block: usize,
    collapses: bool,
    /// Without a log what is in the place of the hole is what was, or what will be.
    has_log: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Before,
    Between,
    After,
}

impl Between {
    fn judge(&self, found: &[u8]) -> Option<State> {
        let (before, after) = if self.collapses {
            (&self.high, &self.low)
        } else {
            (&self.low, &self.high)
        };
        if found == &before[..] {
            return Some(State::Before);
        }
        if found == &after[..] {
            return Some(State::After);
        }
        let mut found = found.to_vec();
        if !self.has_log {
            // e2fsck makes a file as long as its blocks are, and no longer.
            found.resize(self.high.len(), 0);
        }
        if found.len() != self.high.len() {
            return None;
        }
        let len = self.gap.len();
        let starts = (self.gap.start..=self.low.len()).step_by(self.block);
        let fits = |at: usize| {
            let may_stay = !self.has_log || (self.collapses && at == self.gap.start);
            let may_be = |from: usize, piece: &[u8]| {
                let is = |other: &[u8]| other.get(from..from + piece.len()) == Some(piece);
                let is_hole = piece.iter().all(|byte| *byte == 0);
                is_hole || (may_stay && is(before)) || (!self.has_log && is(after))
            };
            let window = (at..at + len)
                .step_by(self.block)
                .all(|from| may_be(from, &found[from..(from + self.block).min(found.len())]));
            found[..at] == self.low[..at] && window && found[at + len..] == self.high[at + len..]
        };
        starts.into_iter().any(fits).then_some(State::Between)
    }
}

/// What e2fsck makes of an image.
fn mended(image: &MemoryDevice, what: &str) -> Image {
    let image = Image::of(&image.to_vec());
    let output = Command::new("e2fsck")
        .args(["-f", "-y"])
        .arg(&image.path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let code = output.status.code().unwrap();
    assert!(code < 4, "{what}: {said}");
    image.assert_clean(&format!("{what}, after {said}"));
    image
}

/// Cuts the power at each moment of one operation; how many states of each kind there were.
fn cut(case: &Case, collapses: bool, first: usize, blocks: usize) -> [usize; 3] {
    let (before, bytes, block) = with_file(case);
    let gap = first * block..(first + blocks) * block;
    let mut changed = bytes.clone();
    if collapses {
        changed.drain(gap.clone());
    } else {
        changed.splice(gap.start..gap.start, std::iter::repeat_n(0, gap.len()));
    }
    let (low, high) = if collapses {
        (changed, bytes)
    } else {
        (bytes, changed)
    };
    let between = Between {
        low,
        high,
        gap: gap.clone(),
        block,
        collapses,
        has_log: case.has_log,
    };
    let device = Arc::new(FaultDevice::new(&before, 1));
    if case.has_log {
        device.set_atomic(1024..2048);
    } else {
        // Without a log nothing helps against a block of the map that tears.
        for at in (1024..16 << 20).step_by(block.max(1024)) {
            device.set_atomic(at as u64..at as u64 + 1024);
        }
    }
    device.start_trace();
    let fs = open(device.clone());
    let file = fs.open(find(&fs, "file"), true).unwrap();
    let begun = device.trace_position();
    let is_over = AtomicBool::new(!case.has_log);
    scope(|scope| {
        // Commits at any moment, so that a handle does not get more than it asked for.
        scope.spawn(|| {
            let root_dir = fs.open_dir(fs.root()).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                let change = SetAttr {
                    modified: Some(SetTime::Now),
                    ..SetAttr::default()
                };
                fs.set_attr(fs.root(), &change, &root()).unwrap();
                fs.sync_dir(&root_dir).unwrap();
            }
        });
        let mode = if collapses { COLLAPSE } else { INSERT };
        fs.allocate(&file, gap.start as u64, gap.len() as u64, mode)
            .unwrap();
        is_over.store(true, Ordering::Relaxed);
    });
    fs.sync_file(&file, false).unwrap();
    drop(file);
    drop(fs);
    let mut counts = [0; 3];
    let mut tried = 0;
    device.take_trace().unwrap().walk(|point| {
        let position = point.position();
        if !point.is_before_flush() || position < begun {
            return;
        }
        let states = point.crash_states();
        let mut random = StateRandom::new(position as u64);
        let mut outcomes = vec![states.nothing(), states.everything()];
        outcomes.extend((0..RANDOM_STATES).map(|_| states.random(&mut random)));
        for outcome in outcomes {
            let image = states.image(&outcome);
            let what = format!("{}, {gap:?}, collapse {collapses}, {position}", case.name);
            tried += 1;
            let found = if case.has_log {
                let image = Arc::new(image);
                let fs = open(image.clone());
                let found = read_all(&fs, find(&fs, "file"));
                fs.shut_down().unwrap();
                drop(fs);
                if tried % 4 == 0 {
                    Image::of(&image.to_vec()).assert_clean(&what);
                }
                found
            } else {
                let image = mended(&image, &what);
                let fs = image.open();
                read_all(&fs, find(&fs, "file"))
            };
            match between.judge(&found) {
                Some(state) => counts[state as usize] += 1,
                None => panic!("{what}: {} bytes in no state", found.len()),
            }
        }
    });
    counts
}

#[test]
fn a_power_cut_while_blocks_move_leaves_a_documented_state() {
    for case in &CASES {
        let mut total = [0; 3];
        for (collapses, first, blocks) in [
            (true, 3, 5),
            (true, 40, 700),
            (false, 3, 5),
            (false, 301, 300),
        ] {
            let counts = cut(case, collapses, first, blocks);
            total
                .iter_mut()
                .zip(counts)
                .for_each(|(sum, count)| *sum += count);
        }
        println!("{}: {total:?} states before, between, after", case.name);
        // A tree of a few leaves moves in one transaction.
        let [before, between, after] = total;
        let is_split = case.name != "extents of 4k";
        assert!(before > 0 && after > 0, "{}: {total:?}", case.name);
        assert!(between > 0 || !is_split, "{}: {total:?}", case.name);
    }
}
