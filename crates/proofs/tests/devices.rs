//! Devices of which a call fails, for seconds; and what is broken on purpose is found.

use std::time::Duration;

use pagefence::Kind;
use pagefence_proofs::budget::{first_seed, seconds};
use pagefence_proofs::devices::{Failures, How, prove_errors, prove_lies};
use pagefence_proofs::image::Setup;
use pagefence_proofs::{Budget, Plan};

/// How long each type of image is tried; two run at a time.
const NORMAL: Duration = Duration::from_secs(2);

fn run(setup: Setup) {
    let plan = Plan {
        seed: first_seed(),
        time: seconds(NORMAL),
    };
    let row = prove_errors(setup, &plan, How::default());
    println!("{row}");
    assert!(row.failures.is_empty(), "{:#?}", row.failures);
}

#[test]
fn ext4_of_small_blocks_stands_calls_that_fail() {
    run(Setup::new(Kind::Ext4, 1024, 8));
}

#[test]
fn ext4_of_large_blocks_stands_calls_that_fail() {
    run(Setup::new(Kind::Ext4, 4096, 16));
}

#[test]
fn ext3_stands_calls_that_fail() {
    run(Setup::new(Kind::Ext3, 1024, 8));
}

#[test]
fn ext2_stands_calls_that_fail() {
    run(Setup::new(Kind::Ext2, 1024, 4));
}

fn shrink(setup: Setup) {
    let plan = Plan {
        seed: first_seed(),
        // Three types share the time of one.
        time: seconds(NORMAL / 3),
    };
    let how = How {
        shrinks: true,
        ..How::default()
    };
    let row = prove_errors(setup, &plan, how);
    println!("{row}");
    assert!(row.failures.is_empty(), "{:#?}", row.failures);
}

#[test]
fn a_device_may_shrink() {
    shrink(Setup::new(Kind::Ext4, 1024, 8));
    shrink(Setup::new(Kind::Ext3, 4096, 16));
    shrink(Setup::new(Kind::Ext2, 1024, 4));
}

/// The mutant: an error of the device that nobody hears of.
#[test]
fn an_error_that_is_swallowed_is_found() {
    let how = How {
        swallows_errors: true,
        ..How::default()
    };
    for kind in [Kind::Ext3, Kind::Ext4] {
        let failures = Failures::new(Setup::new(kind, 1024, 8), how);
        let budget = Budget::new(Duration::from_secs(20));
        let found = (1..20).find_map(|seed| failures.workload(seed, &budget).err());
        println!("{}", found.expect("it is found"));
    }
}

fn lie(setup: Setup) {
    let plan = Plan {
        seed: first_seed(),
        time: seconds(NORMAL / 3),
    };
    let row = prove_lies(setup, &plan);
    println!("{row}");
    assert!(row.failures.is_empty(), "{:#?}", row.failures);
}

#[test]
fn a_device_may_lie() {
    lie(Setup::new(Kind::Ext4, 1024, 8));
    lie(Setup::new(Kind::Ext3, 4096, 16));
    lie(Setup::new(Kind::Ext2, 1024, 4));
}
