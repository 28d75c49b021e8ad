//! Volumes that are full, for seconds.

use std::time::Duration;

use pagefence::Kind;
use pagefence_proofs::budget::{first_seed, seconds};
use pagefence_proofs::image::Setup;
use pagefence_proofs::space::{prove_full, prove_short};
use pagefence_proofs::{Plan, Row};

/// How long each type of image is tried; two run at a time.
const NORMAL: Duration = Duration::from_millis(1000);

fn run(prove: fn(Setup, &Plan) -> Row, setup: Setup) {
    let plan = Plan {
        seed: first_seed(),
        time: seconds(NORMAL),
    };
    let row = prove(setup, &plan);
    println!("{row}");
    assert!(row.failures.is_empty(), "{:#?}", row.failures);
}

#[test]
fn ext4_keeps_what_it_took_when_space_runs_out() {
    run(prove_short, Setup::new(Kind::Ext4, 1024, 8));
}

#[test]
fn ext2_keeps_what_it_took_when_space_runs_out() {
    run(prove_short, Setup::new(Kind::Ext2, 1024, 4));
}

#[test]
fn ext3_keeps_what_it_took_when_space_runs_out() {
    run(prove_short, Setup::new(Kind::Ext3, 4096, 16));
}

#[test]
fn threads_fill_ext2_and_its_counts_are_exact() {
    run(prove_full, Setup::new(Kind::Ext2, 1024, 4));
}

#[test]
fn threads_fill_ext4_and_its_counts_are_exact() {
    run(prove_full, Setup::new(Kind::Ext4, 1024, 8));
}

#[test]
fn threads_fill_ext3_and_its_counts_are_exact() {
    run(prove_full, Setup::new(Kind::Ext3, 4096, 16));
}
