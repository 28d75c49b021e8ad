//! A device that fails once, at any call of a collapse or an insertion: nothing panics, the file
//! can be read, and is in one of the states that docs/CRASH.md names.

use pagefence_block_io::device::Operation;
use pagefence_block_io::fault_device::{Fault, FaultDevice, Times};
use pagefence_block_io::memory_device::MemoryDevice;
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{FileSystem as _, WriteMode};

use super::kit::{Between, CASES, Case, mended, open, with_file};
use crate::support::{find, read_all};

/// Fails one call, the `late`th from the beginning of the operation on; whether there was such a
/// call.
fn fail(
    case: &Case,
    (image, bytes, block): &(MemoryDevice, Vec<u8>, usize),
    operation: Operation,
    late: u64,
    collapses: bool,
) -> bool {
    let (mut bytes, block) = (bytes.clone(), *block);
    let what = format!("{}, {operation:?} {late}, collapse {collapses}", case.name);
    let device = Arc::new(FaultDevice::new(image, 1));
    case.set_atomic(&device);
    let fs = open(device.clone());
    let file = fs.open(find(&fs, "file"), true).unwrap();
    let of = |bytes: &[u8]| Between::new(bytes, (5, 300), block, collapses, case.has_log);
    let unwritten = of(&bytes);
    // Dirty when it moves. A write that fails may tear: one sector only.
    let at = 400 * block;
    let dirty = [0xdd; 512];
    fs.write(&file, at as u64, &dirty, WriteMode::empty())
        .unwrap();
    bytes[at..at + 512].copy_from_slice(&dirty);
    let between = of(&bytes);
    let call = device.calls(operation) + late;
    device.fail(Fault {
        operation,
        call,
        times: Times::Once,
        errno: 5,
    });
    let outcome = between.change(&fs, &file);
    let synced = fs.sync_file(&file, false);
    let was_hit = device.calls(operation) > call;
    device.clear_faults();
    if !was_hit {
        assert!(
            outcome.is_ok() && synced.is_ok(),
            "{what}: {outcome:?} {synced:?}"
        );
    }
    let found = read_all(&fs, find(&fs, "file"));
    let is_known = between.judge(&found).or_else(|| unwritten.judge(&found));
    assert!(is_known.is_some(), "{what}: {} bytes", found.len());
    drop(file);
    // Read-only if it could not be told what is on the device.
    let is_live = fs.shut_down().is_ok();
    // What can't be read is met before anything changes; but for what the commit reads.
    let must_live = operation == Operation::Read && case.has_log && outcome.is_err();
    assert!(is_live || !must_live, "{what}: {outcome:?} {synced:?}");
    drop(fs);
    let left = device.live();
    let image = if is_live {
        let image = crate::support::Image::of(&left.to_vec());
        image.assert_clean(&what);
        image
    } else {
        mended(&left, &what)
    };
    let fs = image.open();
    let found = read_all(&fs, find(&fs, "file"));
    let is_known = between.judge(&found).or_else(|| unwritten.judge(&found));
    assert!(is_known.is_some(), "{what}: {} bytes later", found.len());
    was_hit
}

#[test]
fn a_call_that_fails_while_blocks_move_loses_nothing() {
    for case in &CASES {
        let made = with_file(case);
        for operation in [Operation::Read, Operation::Write, Operation::Flush] {
            for collapses in [true, false] {
                let mut late = 0;
                while fail(case, &made, operation, late, collapses) {
                    // Each of the first ones, then ever fewer.
                    late += 1 + late / 3;
                }
                assert!(late > 0, "{} {operation:?}: no call", case.name);
            }
        }
    }
}
