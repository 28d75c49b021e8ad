//! What is written to blocks that moved shows where they are now, after any power cut: not where they were.

use pagefence_block_io::fault_device::FaultDevice;
use pagefence_block_io::fault_device::random::Random as StateRandom;
use pagefence_ext4::{File, FileSystem};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{FallocateMode, FileSystem as _};

use super::crash::{Files, read_both};
use crate::shift::kit::{CASES, Case, mended, open};
use crate::support::{is_thorough, write_all};

/// What no block held before.
const NEW: u8 = 0xee;
/// The blocks of the first file that are written anew.
const WRITTEN: std::ops::Range<usize> = 20..40;

/// Has blocks move, writes to them where they are now, and cuts the power at each moment of that; the states
/// that were tried.
fn cut(case: &Case, what: &str, moves: impl FnOnce(&FileSystem, [&File; 2], u64)) -> usize {
    let files = Files::new(case);
    let device = Arc::new(FaultDevice::new(&files.image, 1));
    case.set_atomic(&device);
    device.start_trace();
    let fs = open(device.clone());
    let [file, other] =
        ["file", "other"].map(|name| fs.open(crate::support::find(&fs, name), true).unwrap());
    moves(&fs, [&file, &other], files.block as u64);
    let begun = device.trace_position();
    let bytes = vec![NEW; WRITTEN.len() * files.block];
    write_all(&fs, &file, (WRITTEN.start * files.block) as u64, &bytes);
    fs.sync_file(&file, false).unwrap();
    drop((file, other));
    drop(fs);
    let (mut tried, mut moments) = (0, 0);
    device.take_trace().unwrap().walk(|point| {
        let position = point.position();
        if position < begun {
            return;
        }
        moments += 1;
        // Each takes its time, most of all what e2fsck has to mend.
        let every = if case.has_log { 3 } else { 24 };
        if !is_thorough() && moments % every != 1 {
            return;
        }
        let states = point.crash_states();
        let mut random = StateRandom::new(position as u64);
        for outcome in [states.everything(), states.random(&mut random)] {
            tried += 1;
            let image = states.image(&outcome);
            let what = format!("{}, {what}, {position}", case.name);
            let found = if case.has_log {
                let fs = open(Arc::new(image));
                read_both(&fs)
            } else {
                read_both(&mended(&image, &what).open())
            };
            for (side, bytes) in found.iter().enumerate() {
                for (at, sector) in bytes.chunks(512).enumerate() {
                    let block = at * 512 / files.block;
                    let is_there = side == 0 && WRITTEN.contains(&block);
                    let is_new = sector.iter().all(|byte| *byte == NEW);
                    assert!(is_there || !is_new, "{what}: file {side}, block {block}");
                }
            }
        }
    });
    tried
}

#[test]
fn what_is_written_to_blocks_that_moved_shows_nowhere_else() {
    for case in &CASES {
        let shift = |mode, blocks: u64| {
            move |fs: &FileSystem, [file, _]: [&File; 2], block: u64| {
                fs.allocate(file, 3 * block, blocks * block, mode).unwrap();
            }
        };
        let exchange = |fs: &FileSystem, [file, other]: [&File; 2], block: u64| {
            let (at, from, length) = (18 * block, 6 * block, 30 * block);
            fs.exchange_range(file, at, other, from, length).unwrap();
        };
        let counts = [
            cut(case, "insert", shift(FallocateMode::INSERT_RANGE, 5)),
            cut(case, "collapse", shift(FallocateMode::COLLAPSE_RANGE, 5)),
            cut(case, "exchange", exchange),
        ];
        println!("{}: {counts:?} states", case.name);
        assert!(counts.iter().all(|count| *count > 0), "{}", case.name);
    }
}
