//! Power cuts while blocks move: what is left is one of the states that docs/CRASH.md names.

use pagefence_block_io::fault_device::FaultDevice;
use pagefence_block_io::fault_device::random::Random as StateRandom;
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::FileSystem as _;

use super::kit::{Between, CASES, Case, mended, open, with_file};
use crate::support::{Image, find, is_thorough, read_all};

/// Outcomes by chance that are tried at each moment.
const RANDOM_STATES: usize = 1;

/// Cuts the power at each moment of one operation; how many states of each kind there were.
fn cut(case: &Case, collapses: bool, first: usize, blocks: usize) -> [usize; 3] {
    let (before, bytes, block) = with_file(case);
    let between = Between::new(&bytes, (first, blocks), block, collapses, case.has_log);
    let device = Arc::new(FaultDevice::new(&before, 1));
    case.set_atomic(&device);
    device.start_trace();
    let fs = open(device.clone());
    let file = fs.open(find(&fs, "file"), true).unwrap();
    let begun = device.trace_position();
    case.beside_commits(&fs, || between.change(&fs, &file).unwrap());
    fs.sync_file(&file, false).unwrap();
    drop(file);
    drop(fs);
    let mut counts = [0; 3];
    let (mut tried, mut moments) = (0, 0);
    device.take_trace().unwrap().walk(|point| {
        let position = point.position();
        if !point.is_before_flush() || position < begun {
            return;
        }
        moments += 1;
        // What e2fsck has to mend takes its time.
        let every = if is_thorough() { 3 } else { 8 };
        if !case.has_log && moments % every != 1 {
            return;
        }
        let states = point.crash_states();
        let mut random = StateRandom::new(position as u64);
        let mut outcomes = vec![states.nothing(), states.everything()];
        outcomes.extend((0..RANDOM_STATES).map(|_| states.random(&mut random)));
        for outcome in outcomes {
            let image = states.image(&outcome);
            let what = format!(
                "{}, {first} {blocks}, collapse {collapses}, {position}",
                case.name
            );
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
        let shifts = [
            (true, 3, 5),
            (true, 40, 700),
            (false, 3, 5),
            (false, 301, 300),
        ];
        // A tree of a few leaves moves in one transaction.
        let is_split = case.name != "extents of 4k";
        let (mut total, mut tried) = ([0; 3], 0);
        // Whether a commit comes between is chance where there is a log: until one did.
        for (collapses, first, blocks) in shifts.into_iter().cycle().take(100 * shifts.len()) {
            let counts = cut(case, collapses, first, blocks);
            total
                .iter_mut()
                .zip(counts)
                .for_each(|(sum, count)| *sum += count);
            tried += 1;
            if tried % shifts.len() == 0 && (total[1] > 0 || !is_split) {
                break;
            }
        }
        println!("{}: {total:?} states before, between, after", case.name);
        let [before, between, after] = total;
        assert!(before > 0 && after > 0, "{}: {total:?}", case.name);
        assert!(between > 0 || !is_split, "{}: {total:?}", case.name);
    }
}
