//! Power cuts while ranges change places: what is left is one of the states that docs/CRASH.md names.

use pagefence_block_io::fault_device::FaultDevice;
use pagefence_block_io::fault_device::random::Random as StateRandom;
use pagefence_block_io::memory_device::MemoryDevice;
use pagefence_ext4::{File, FileSystem};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::FileSystem as _;

use crate::shift::kit::{CASES, Case, State, mended, open, with_file};
use crate::support::{Image, create, find, read_all, write_all};

/// Outcomes by chance that are tried at each moment.
const RANDOM_STATES: usize = 1;
/// Blocks of the second file, and every how many of them has data.
const BLOCKS: usize = 1000;
const EVERY: usize = 3;

/// Two files, of which each block is another.
pub(super) struct Files {
    pub(super) image: MemoryDevice,
    bytes: [Vec<u8>; 2],
    pub(super) block: usize,
}

impl Files {
    pub(super) fn new(case: &Case) -> Self {
        let (image, first, block) = with_file(case);
        let image = Image::of(&image.to_vec());
        let fs = image.open();
        let file = fs.open(create(&fs, "other"), true).unwrap();
        let mut second = vec![0; BLOCKS * block];
        for at in (0..BLOCKS).rev().filter(|at| at % EVERY == 0) {
            let piece = at * block..(at + 1) * block;
            let number = (0x0100_0000 + at as u32).to_le_bytes();
            for four in second[piece.clone()].chunks_mut(4) {
                four.copy_from_slice(&number);
            }
            write_all(&fs, &file, piece.start as u64, &second[piece]);
        }
        second.truncate((BLOCKS - EVERY + 1) * block);
        crate::support::set_size(&fs, find(&fs, "other"), second.len() as u64).unwrap();
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        let image = MemoryDevice::from_bytes(&std::fs::read(&image.path).unwrap());
        Self {
            image,
            bytes: [first, second],
            block,
        }
    }

    /// What the files are when so many blocks have changed places.
    fn exchanged(&self, at: [usize; 2], done: usize) -> [Vec<u8>; 2] {
        let mut bytes = self.bytes.clone();
        for side in [0, 1] {
            let to = at[side] * self.block;
            let from = at[1 - side] * self.block;
            let len = done * self.block;
            bytes[side][to..to + len].copy_from_slice(&self.bytes[1 - side][from..from + len]);
        }
        bytes
    }

    /// With a log: some from the beginning has changed places, in both files as much.
    pub(super) fn judge(&self, found: &[Vec<u8>; 2], at: [usize; 2], len: usize) -> Option<State> {
        let after = self.exchanged(at, len);
        if *found == self.bytes {
            return Some(State::Before);
        }
        if *found == after {
            return Some(State::After);
        }
        let done = (0..len).find(|done| {
            (0..2).any(|side| {
                let from = (at[side] + done) * self.block;
                let block = from..from + self.block;
                found[side].get(block.clone()) != after[side].get(block)
            })
        })?;
        (*found == self.exchanged(at, done)).then_some(State::Between)
    }

    /// Without a log: each block of the ranges is one of the two; all else is as it was.
    pub(super) fn judge_mended(
        &self,
        found: &[Vec<u8>; 2],
        at: [usize; 2],
        len: usize,
    ) -> Option<State> {
        let after = self.exchanged(at, len);
        if *found == self.bytes {
            return Some(State::Before);
        }
        if *found == after {
            return Some(State::After);
        }
        let fits = (0..2).all(|side| {
            let pieces = |bytes: &[u8]| bytes.chunks(self.block).map(<[u8]>::to_vec).collect();
            let (found, old, new): (Vec<_>, Vec<_>, Vec<_>) = (
                pieces(&found[side]),
                pieces(&self.bytes[side]),
                pieces(&after[side]),
            );
            found.len() == old.len()
                && (found.iter().zip(old.iter().zip(&new)))
                    .all(|(found, (old, new))| found == old || found == new)
        });
        fits.then_some(State::Between)
    }
}

pub(super) fn read_both(fs: &FileSystem) -> [Vec<u8>; 2] {
    ["file", "other"].map(|name| read_all(fs, find(fs, name)))
}

/// Cuts the power at each moment of one change of the two files; how many states of each kind `judge`
/// found. `what` is what it is.
fn cut(
    case: &Case,
    files: &Files,
    what: &str,
    change: impl FnOnce(&FileSystem, &File, &File),
    judge: impl Fn(&[Vec<u8>; 2]) -> Option<State>,
) -> [usize; 3] {
    let device = Arc::new(FaultDevice::new(&files.image, 1));
    case.set_atomic(&device);
    device.start_trace();
    let fs = open(device.clone());
    let first = fs.open(find(&fs, "file"), true).unwrap();
    let second = fs.open(find(&fs, "other"), true).unwrap();
    let begun = device.trace_position();
    case.beside_commits(&fs, || change(&fs, &first, &second));
    fs.sync_file(&first, false).unwrap();
    fs.sync_file(&second, false).unwrap();
    drop((first, second));
    drop(fs);
    let mut counts = [0; 3];
    let (mut tried, mut moments) = (0, 0);
    device.take_trace().unwrap().walk(|point| {
        let position = point.position();
        if !point.is_before_flush() || position < begun {
            return;
        }
        moments += 1;
        // Each takes its time, most of all what e2fsck has to mend.
        if moments % if case.has_log { 3 } else { 40 } != 1 {
            return;
        }
        let states = point.crash_states();
        let mut random = StateRandom::new(position as u64);
        let mut outcomes = vec![states.nothing(), states.everything()];
        outcomes.extend((0..RANDOM_STATES).map(|_| states.random(&mut random)));
        for outcome in outcomes {
            let image = states.image(&outcome);
            let what = format!("{}, {what}, {position}", case.name);
            tried += 1;
            let state = if case.has_log {
                let image = Arc::new(image);
                let fs = open(image.clone());
                let found = read_both(&fs);
                fs.shut_down().unwrap();
                drop(fs);
                if tried % 4 == 0 {
                    Image::of(&image.to_vec()).assert_clean(&what);
                }
                judge(&found)
            } else {
                let image = mended(&image, &what);
                let fs = image.open();
                judge(&read_both(&fs))
            };
            match state {
                Some(state) => counts[state as usize] += 1,
                None => panic!("{what}: in no state"),
            }
        }
    });
    counts
}

#[test]
fn a_power_cut_during_an_exchange_leaves_a_documented_state() {
    for case in &CASES {
        let mut total = [0; 3];
        for (at, len) in [
            ([3, 6], 11),
            ([40, 7], if case.has_log { 900 } else { 120 }),
        ] {
            let files = Files::new(case);
            let exchange = |fs: &FileSystem, first: &File, second: &File| {
                let [at, other_at, len] = [at[0], at[1], len].map(|n| (n * files.block) as u64);
                fs.exchange_range(first, at, second, other_at, len).unwrap();
            };
            let judge = |found: &[Vec<u8>; 2]| match case.has_log {
                true => files.judge(found, at, len),
                false => files.judge_mended(found, at, len),
            };
            let counts = cut(case, &files, &format!("{at:?} {len}"), exchange, judge);
            total
                .iter_mut()
                .zip(counts)
                .for_each(|(sum, count)| *sum += count);
        }
        println!("{}: {total:?} states before, between, after", case.name);
        let [before, between, after] = total;
        assert!(before > 0 && after > 0, "{}: {total:?}", case.name);
        let is_split = case.name != "extents of 4k";
        assert!(between > 0 || !is_split, "{}: {total:?}", case.name);
    }
}

/// Blocks of the ranges that move.
const MOVED: usize = 150;

#[test]
fn a_power_cut_during_a_move_leaves_the_file_as_it_is() {
    for case in CASES.iter().filter(|case| case.has_extents()) {
        let files = Files::new(case);
        let (at, other_at) = (7 * files.block, 10 * files.block);
        let len = MOVED * files.block;
        let moves = |fs: &FileSystem, file: &File, donor: &File| {
            let (at, other_at, len) = (at as u64, other_at as u64, len as u64);
            let moved = fs.move_blocks(file, at, donor, other_at, len).unwrap();
            assert_eq!(moved, len);
        };
        let counts = cut(case, &files, "a move", moves, |found| {
            let [file, donor] = found;
            let [bytes, given] = &files.bytes;
            let range = other_at..other_at + len;
            let outside = |donor: &[u8]| [&donor[..range.start], &donor[range.end..]].concat();
            if file != bytes || donor.len() != given.len() || outside(donor) != outside(given) {
                return None;
            }
            // What it had, what was copied there, and zeros: each sector whole.
            let (old, copied) = (&given[range.clone()], &bytes[at..at + len]);
            let now = &donor[range.clone()];
            let known = old.chunks(512).zip(copied.chunks(512));
            let is_known = now.chunks(512).zip(known).all(|(now, (old, copied))| {
                now == old || now == copied || now.iter().all(|byte| *byte == 0)
            });
            let state = if now == old {
                State::Before
            } else {
                State::After
            };
            is_known.then_some(state)
        });
        println!("{}: {counts:?} states before, between, after", case.name);
        let [before, _, after] = counts;
        assert!(before > 0 && after > 0, "{}: {counts:?}", case.name);
    }
}
