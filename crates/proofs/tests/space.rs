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
#[test]
fn dbg_one() {
    let Ok(seed) = std::env::var("DBGSEED") else {
        return;
    };
    for (kind, bs, mib) in [
        (Kind::Ext4, 1024, 8),
        (Kind::Ext4, 4096, 16),
        (Kind::Ext3, 1024, 8),
        (Kind::Ext3, 4096, 16),
        (Kind::Ext2, 1024, 4),
        (Kind::Ext2, 4096, 16),
    ] {
        let plan = Plan {
            seed: seed.parse().unwrap(),
            time: Duration::from_secs(std::env::var("DBGSECS").unwrap().parse().unwrap()),
        };
        let row = prove_short(Setup::new(kind, bs, mib), &plan);
        println!("{row}");
        let plan = Plan {
            seed: seed.parse::<u64>().unwrap() + 100,
            ..plan
        };
        let lies = pagefence_proofs::devices::prove_lies(Setup::new(kind, bs, mib), &plan);
        println!("{lies}");
        for f in lies.failures {
            println!("FAIL {:.1000}", f);
        }
        for f in row.failures {
            println!("FAIL {:.1000}", f);
        }
    }
}
