//! The library beside the model: every operation gives the same, and so does every walk of the
//! tree, before and after the volume is closed and opened again; then e2fsck has nothing to say.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use pagefence::device::MemoryDevice;
use pagefence::{Kind, Options};
use pagefence_fs_model::files::{Answer, Operation, Tree};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::operations::operations;
use crate::seen;
use pagefence_proofs::budget::{first_seed, seconds};
use pagefence_proofs::image::Setup;
use pagefence_proofs::library::Library;
use pagefence_proofs::library::brief;
use pagefence_proofs::{Budget, e2fsck};

/// Steps of a case, at most.
pub(crate) const STEPS: usize = 60;
/// The whole tree is compared after so many operations.
const WALK_EVERY: usize = 16;
/// How long each type of image is tried; two run at a time.
const NORMAL: Duration = Duration::from_millis(3500);

/// A model that is wrong on purpose, to see that it is noticed: the operations that it forgets,
/// though it says that they are done.
type Forgets = fn(&Operation) -> bool;

/// What the model does.
fn for_the_model(operation: &Operation, tree: &Tree, forgets: Forgets) -> Operation {
    if forgets(operation) && tree.clone().apply(operation) == Ok(Answer::Done) {
        return Operation::SyncAll;
    }
    operation.clone()
}

/// Does the operations to a fresh image and to the model; how many of them could be done.
fn compare(
    setup: &Setup,
    image: &MemoryDevice,
    operations: &[Operation],
    forgets: Forgets,
) -> Result<usize, String> {
    let mut done = 0;
    let device = Arc::new(image.fork());
    let options = Options::new().write(true).cache(0);
    let mut library = Library::open(Arc::clone(&device) as _, options.clone())?;
    let mut tree = Tree::new(setup.format());
    for (number, operation) in operations.iter().enumerate() {
        let found = library.apply(operation);
        let expected = tree.apply(&for_the_model(operation, &tree, forgets));
        let agree = match (&expected, &found) {
            (Ok(expected), Ok(found)) => expected == found,
            (Err(expected), Err((Some(found), _))) => expected == found,
            _ => false,
        };
        if !agree {
            return Err(format!(
                "operation {number}, {operation:.300?}: expected {expected:.300?}, found {found:.300?}"
            ));
        }
        done += usize::from(found.is_ok());
        let reopened = *operation == Operation::Reopen;
        if reopened || number % WALK_EVERY == 0 {
            same_tree(&library, &tree)
                .map_err(|error| format!("after operation {number}, {operation:.300?}: {error}"))?;
        }
        if reopened {
            seen::check_space(library.volume(), &tree)?;
        }
    }
    same_tree(&library, &tree).map_err(|error| format!("at the end: {error}"))?;
    library
        .close()
        .map_err(|error| format!("closing: {error}"))?;
    e2fsck::check(&device)?;
    let library = Library::open(device, options)?;
    same_tree(&library, &tree).map_err(|error| format!("opened again: {error}"))?;
    seen::check_space(library.volume(), &tree)?;
    Ok(done)
}

fn same_tree(library: &Library, tree: &Tree) -> Result<(), String> {
    let found = seen::of_volume(library.volume(), tree)?;
    seen::difference(&seen::of_model(tree), &found)
}

/// What proptest does with one seed: the shortest list that fails, if one does.
pub(crate) fn one_case(
    seed: u64,
    test: impl Fn(&[Operation]) -> Result<(), String>,
) -> Result<(), String> {
    let outcome = runner(seed).run(&operations(STEPS), |operations| {
        test(&operations).map_err(TestCaseError::fail)
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(TestError::Fail(reason, operations)) => {
            let lines = operations.iter().map(|operation| format!("{operation:?}"));
            let lines = lines.collect::<Vec<_>>().join("\n");
            Err(brief(&format!(
                "PAGEFENCE_PROOF_SEED={seed}: {reason}\n{lines}"
            )))
        }
        Err(TestError::Abort(reason)) => Err(format!("PAGEFENCE_PROOF_SEED={seed}: {reason}")),
    }
}

fn runner(seed: u64) -> TestRunner {
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: 3_000,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn run(setup: Setup) {
    if !e2fsck::is_there() {
        println!("skipped: there is no e2fsck");
        return;
    }
    let budget = Budget::new(seconds(NORMAL));
    let image = setup.make();
    let mut seed = first_seed();
    let (mut cases, done, refused) = (0, Cell::new(0), Cell::new(0));
    while cases == 0 || budget.is_left() {
        let outcome = one_case(seed, |operations| {
            let could_be_done = compare(&setup, &image, operations, |_| false)?;
            done.set(done.get() + could_be_done);
            refused.set(refused.get() + operations.len() - could_be_done);
            Ok(())
        });
        if let Err(failure) = outcome {
            panic!("{setup:?}: {failure}");
        }
        (seed, cases) = (seed + 1, cases + 1);
    }
    println!(
        "{setup:?}: {cases} cases, {} operations done, {} refused, failures 0",
        done.get(),
        refused.get()
    );
}

#[test]
fn ext2_of_small_blocks_does_as_the_model() {
    run(Setup::new(Kind::Ext2, 1024, 16));
}

#[test]
fn ext2_of_large_blocks_does_as_the_model() {
    run(Setup::new(Kind::Ext2, 4096, 32));
}

#[test]
fn ext3_of_small_blocks_does_as_the_model() {
    run(Setup::new(Kind::Ext3, 1024, 16));
}

#[test]
fn ext3_of_large_blocks_does_as_the_model() {
    run(Setup::new(Kind::Ext3, 4096, 32));
}

#[test]
fn ext4_of_small_blocks_does_as_the_model() {
    run(Setup::new(Kind::Ext4, 1024, 16));
}

#[test]
fn ext4_of_large_blocks_does_as_the_model() {
    run(Setup::new(Kind::Ext4, 4096, 32));
}

/// Space is allocated where delayed blocks count on the room that is left in the inode's map.
#[test]
fn allocated_space_leaves_room_for_delayed_blocks() {
    let setup = Setup::new(Kind::Ext4, 1024, 16);
    let path = || "c".to_owned();
    let write = |offset, length| Operation::Write {
        path: path(),
        offset,
        length,
        tag: 1,
    };
    let operations = [
        Operation::Create { path: path() },
        write(16_384, 1),
        write(0, 1),
        Operation::SyncAll,
        write(882, 143),
        Operation::Allocate {
            path: path(),
            offset: 4096,
            length: 13_313,
        },
    ];
    let done = compare(&setup, &setup.make(), &operations, |_| false);
    assert_eq!(done, Ok(operations.len()));
}

/// Every wrong model is told from the library.
#[test]
fn a_wrong_model_is_noticed() {
    let setup = Setup::new(Kind::Ext4, 1024, 16);
    let image = setup.make();
    let wrong: [(&str, Forgets); 8] = [
        ("append", |done| matches!(done, Operation::Append { .. })),
        ("write", |done| matches!(done, Operation::WriteHeld { .. })),
        ("set the size", |done| {
            matches!(done, Operation::SetSize { .. })
        }),
        ("rename", |done| matches!(done, Operation::Rename { .. })),
        ("link", |done| matches!(done, Operation::Link { .. })),
        ("remove", |done| matches!(done, Operation::Remove { .. })),
        ("set an attribute", |done| {
            matches!(done, Operation::SetXattr { .. })
        }),
        ("set the owner", |done| {
            matches!(done, Operation::SetOwner { .. })
        }),
    ];
    for (what, forgets) in wrong {
        let is_noticed = (1..200).any(|seed| {
            let sample = operations(STEPS).new_tree(&mut runner(seed));
            let operations = sample.expect("a list").current();
            compare(&setup, &image, &operations, |_| false).is_ok()
                && compare(&setup, &image, &operations, forgets).is_err()
        });
        assert!(is_noticed, "a model that forgets to {what}");
    }
}
