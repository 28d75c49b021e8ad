//! Long ranges are taken in steps, between which others fill pages.

use std::time::{Duration, Instant};

use pagefence_block_io::device::Operation;
use pagefence_ext4_format::FileBlock;
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::{FallocateMode, FileSystem as _};

use super::STEP_BYTES;
use crate::failures::{
    BLOCK, create, drop_cache, extents, formatted, inode, open, place, punch, read, wait_for, write,
};
use crate::map_blocks::Target;

const STEPS: u64 = 8;

/// A reader of what lies behind a range that is punched, or made zero, waits for the step that
/// runs when it comes, and for no other.
#[test]
fn a_fill_elsewhere_waits_for_one_step() {
    for zeroes in [false, true] {
        let device = formatted();
        let fs = open(&device);
        let id = create(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        let step = vec![7; STEP_BYTES as usize];
        for number in 0..=STEPS {
            write(&fs, &file, number * STEP_BYTES, &step);
        }
        fs.sync_file(&file, false).expect("it is written");
        drop_cache(&fs);
        let end = STEPS * STEP_BYTES;
        // Without the inode lock, which whoever clears holds: all extents fit into the inode.
        let left = || {
            let disk = inode(&fs, id).disk();
            let (mut at, mut left) = (FileBlock(0), 0);
            while u64::from(at.0) < (STEPS + 1) * STEP_BYTES / BLOCK {
                let run = fs.instance.map_blocks(&disk, at).expect("sound");
                if matches!(run.target, Target::Written(_)) {
                    left += u64::from(run.len) * BLOCK;
                }
                at = FileBlock(at.0 + run.len);
            }
            left
        };
        let behind = place(&fs, id, end);
        device.hold(Operation::Write, place(&fs, id, 0));
        thread::scope(|scope| {
            let cleared = scope.spawn(|| {
                if zeroes {
                    fs.allocate(&file, 100, end - 100, FallocateMode::ZERO_RANGE)
                } else {
                    punch(&fs, &file, 100..end)
                }
            });
            // In the first step's fence, its edge is being written.
            device.wait_held();
            let reader = scope.spawn(|| read(&fs, &file, end..end + BLOCK));
            // Long enough for it to stand in line.
            std::thread::sleep(Duration::from_millis(200));
            assert_eq!(left(), (STEPS + 1) * STEP_BYTES);
            device.hold(Operation::Read, behind.clone());
            device.release(Operation::Write);
            wait_for("the end of a step", || left() < (STEPS + 1) * STEP_BYTES);
            // Then the reader has the fence's lock, and the next step waits for it.
            device.wait_held();
            let cut = left();
            device.heal();
            assert!(cut > STEP_BYTES + BLOCK, "all is done: {cut} bytes left");
            let bytes = reader.join().expect("no panic").expect("it is read");
            assert_eq!(bytes, [7; BLOCK as usize]);
            cleared.join().expect("no panic").expect("it is cleared");
        });
        let bytes = read(&fs, &file, 0..end + 1).expect("it is read");
        assert!(bytes[..100] == [7; 100] && bytes[end as usize] == 7);
        assert!(bytes[100..end as usize].iter().all(|byte| *byte == 0));
        assert_eq!(left(), STEP_BYTES + BLOCK);
        drop(file);
        fs.shut_down().expect("all is written");
    }
}

/// What was never there is passed over, however long it is.
#[test]
fn holes_cost_no_steps() {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    let end = 1 << 43;
    write(&fs, &file, end, &[7; BLOCK as usize]);
    write(&fs, &file, end / 2, &[7; BLOCK as usize]);
    let start = Instant::now();
    punch(&fs, &file, 0..end).expect("it is punched");
    // There are eight million steps.
    assert!(start.elapsed() < Duration::from_secs(20));
    fs.sync_file(&file, false).expect("it is written");
    let left = extents(&fs, id);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].logical, end);
    drop(file);
    fs.shut_down().expect("all is written");
}
