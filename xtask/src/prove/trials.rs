//! Trials that run in this process, each on an image in memory.

use anyhow::Result;
use pagefence::Kind;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_proofs::crash::{self, Work};
use pagefence_proofs::devices::{self, How};
use pagefence_proofs::image::Setup;
use pagefence_proofs::{Plan, Row, hostile, space};

use super::MUTANT_VARIABLE;

/// One row of the table, in its time.
pub(crate) type Trial = Box<dyn FnOnce(&Plan) -> Row + Send>;

/// Each type of file system, with a journal of the fewest blocks, so that it wraps.
pub(crate) fn crash() -> Vec<Trial> {
    let setups = [
        Setup::new(Kind::Ext4, 1024, 8),
        Setup::new(Kind::Ext4, 4096, 16),
        Setup::new(Kind::Ext4, 1024, 8).with("^metadata_csum"),
        Setup::new(Kind::Ext4, 4096, 16).with("^metadata_csum"),
        Setup::new(Kind::Ext3, 1024, 8),
        Setup::new(Kind::Ext3, 4096, 16),
        Setup::new(Kind::Ext3, 1024, 8).with("metadata_csum"),
        Setup::new(Kind::Ext2, 1024, 4),
        Setup::new(Kind::Ext2, 4096, 8),
        Setup::new(Kind::Ext4, 4096, 16).with("^has_journal"),
    ];
    let works = [Work::Random, Work::Ones, Work::Twos];
    let is_noticed = Arc::new(AtomicBool::new(false));
    let trial = |work, setup| -> Trial {
        let is_noticed = Arc::clone(&is_noticed);
        Box::new(move |plan: &Plan| until_noticed(&is_noticed, || crash::prove(work, setup, plan)))
    };
    let rows = |work| setups.map(|setup| trial(work, setup));
    works.into_iter().flat_map(rows).collect()
}

/// Where a protection is left out, no more is tried once that was noticed.
fn until_noticed(is_noticed: &AtomicBool, trial: impl FnOnce() -> Row) -> Row {
    if std::env::var_os(MUTANT_VARIABLE).is_none() {
        return trial();
    }
    if is_noticed.load(Ordering::Relaxed) {
        let mut row = Row::new("power cuts", 0);
        row.skipped.push("it was noticed already".to_owned());
        return row;
    }
    let row = trial();
    is_noticed.fetch_or(!row.failures.is_empty(), Ordering::Relaxed);
    row
}

/// Each type of file system, with small and large blocks.
fn types() -> [Setup; 6] {
    [
        Setup::new(Kind::Ext4, 1024, 8),
        Setup::new(Kind::Ext4, 4096, 16),
        Setup::new(Kind::Ext3, 1024, 8),
        Setup::new(Kind::Ext3, 4096, 16),
        Setup::new(Kind::Ext2, 1024, 4),
        Setup::new(Kind::Ext2, 4096, 16),
    ]
}

/// Devices of which calls fail, such that shrink, and such that lie.
pub(crate) fn eio() -> Vec<Trial> {
    let how = How::of_process();
    let shrinking = How {
        shrinks: true,
        ..how
    };
    let trial =
        |setup, how| Box::new(move |plan: &Plan| devices::prove_errors(setup, plan, how)) as Trial;
    let mut trials: Vec<Trial> = types().map(|setup| trial(setup, how)).into();
    let shrunk = [types()[0], types()[3], types()[4]];
    trials.extend(shrunk.map(|setup| trial(setup, shrinking)));
    let lied_to = [types()[0], types()[1], types()[2], types()[4]];
    let lies = |setup| Box::new(move |plan: &Plan| devices::prove_lies(setup, plan)) as Trial;
    trials.extend(lied_to.map(lies));
    trials
}

/// Volumes that are full, or about to be.
pub(crate) fn enospc() -> Vec<Trial> {
    type Proof = fn(Setup, &Plan) -> Row;
    let trial = |setup, proof: Proof| Box::new(move |plan: &Plan| proof(setup, plan)) as Trial;
    let short = types().map(|setup| trial(setup, space::prove_short));
    let full = types().map(|setup| trial(setup, space::prove_full));
    short.into_iter().chain(full).collect()
}

/// Each field of each structure of each type of image; the cases run in processes of their own.
pub(crate) fn hostile() -> Result<Vec<Trial>> {
    let launcher = hostile::Launcher {
        program: std::env::current_exe()?,
        arguments: vec!["prove".into()],
        environment: Vec::new(),
    };
    let trial = |recipe| {
        let launcher = launcher.clone();
        Box::new(move |plan: &Plan| hostile::prove_fields(&recipe, plan, &launcher)) as Trial
    };
    Ok(hostile::recipes().into_iter().map(trial).collect())
}
