//! A device that fails once, at any call of an exchange: nothing panics, both files can be read, and
//! are in one of the states that docs/CRASH.md names.

use pagefence_block_io::device::Operation;
use pagefence_block_io::fault_device::{Fault, FaultDevice, Times};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::FileSystem as _;

use super::crash::{Files, read_both};
use crate::shift::kit::{CASES, Case, mended, open};
use crate::support::{Image, find};

const AT: [usize; 2] = [5, 30];
const LEN: usize = 300;

/// Fails one call, the `late`th from the beginning of the exchange on; whether there was such a
/// call.
fn fail(case: &Case, files: &Files, operation: Operation, late: u64) -> bool {
    let what = format!("{}, {operation:?} {late}", case.name);
    let device = Arc::new(FaultDevice::new(&files.image, 1));
    case.set_atomic(&device);
    let fs = open(device.clone());
    let first = fs.open(find(&fs, "file"), true).unwrap();
    let second = fs.open(find(&fs, "other"), true).unwrap();
    let call = device.calls(operation) + late;
    device.fail(Fault {
        operation,
        call,
        times: Times::Once,
        errno: 5,
    });
    let [at, other_at] = AT.map(|at| (at * files.block) as u64);
    let length = (LEN * files.block) as u64;
    let outcome = fs.exchange_range(&first, at, &second, other_at, length);
    let synced = fs.sync_file(&first, false);
    let was_hit = device.calls(operation) > call;
    device.clear_faults();
    if !was_hit {
        outcome.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        synced.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    }
    let found = read_both(&fs);
    assert!(files.judge(&found, AT, LEN).is_some(), "{what}");
    drop((first, second));
    // Read-only if it could not be told what is on the device.
    let is_live = fs.shut_down().is_ok();
    drop(fs);
    let left = device.live();
    let image = if is_live {
        let image = Image::of(&left.to_vec());
        image.assert_clean(&what);
        image
    } else {
        mended(&left, &what)
    };
    let found = read_both(&image.open());
    let is_known = match is_live || case.has_log {
        true => files.judge(&found, AT, LEN),
        false => files.judge_mended(&found, AT, LEN),
    };
    assert!(is_known.is_some(), "{what}, later");
    was_hit
}

#[test]
fn a_call_that_fails_during_an_exchange_loses_nothing() {
    for case in &CASES {
        let files = Files::new(case);
        for operation in [Operation::Read, Operation::Write, Operation::Flush] {
            let mut late = 0;
            while fail(case, &files, operation, late) {
                // Each of the first ones, then ever fewer.
                late += 1 + late / 2;
            }
            assert!(late > 0, "{} {operation:?}: no call", case.name);
        }
    }
}
