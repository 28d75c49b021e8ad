//! The file system beside the model: every operation gives the same, and so does every look at the
//! tree, at holes, and at the space that files have.

use std::time::{Duration, Instant};

use pagefence_fs_model::drive::{Driven, Exactness};
use pagefence_fs_model::files::{Answer, Format, Operation, Tree};
use pagefence_vfs::{FileSystem as _, NewKind, SetAttr};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use crate::operations::operations;
use crate::{fresh, make, root};

const STEPS: usize = 60;
/// The whole tree is compared after so many operations.
const WALK_EVERY: usize = 16;
/// Enough that the model, which knows no limit, is never refused.
const SIZE: u64 = 64 << 20;
const FORMAT: Format = Format {
    block_size: 4096,
    has_unwritten: true,
    size_limit: 1 << 63,
};

/// Does the operations; `forgets` names those that the model only says it does.
fn compare(operations: &[Operation], forgets: fn(&Operation) -> bool) -> Result<usize, String> {
    let fs = fresh(SIZE);
    let empty = fs.stat_fs().map_err(|error| error.to_string())?;
    let lost = make(&fs, fs.root(), "lost+found", NewKind::Directory);
    let change = SetAttr {
        permissions: Some(0o700),
        ..SetAttr::default()
    };
    fs.set_attr(lost, &change, &root())
        .map_err(|error| error.to_string())?;
    let (mut driven, mut tree) = (Driven::new(&fs), Tree::new(FORMAT));
    let mut done = 0;
    for (number, operation) in operations.iter().enumerate() {
        let found = driven.apply(operation);
        let is_forgotten = forgets(operation) && tree.clone().apply(operation) == Ok(Answer::Done);
        let expected = match is_forgotten {
            true => Ok(Answer::Done),
            false => tree.apply(operation),
        };
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
        if number % WALK_EVERY == 0 {
            driven
                .compare(&tree, Exactness::Space)
                .map_err(|error| format!("after operation {number}, {operation:.300?}: {error}"))?;
        }
    }
    driven.compare(&tree, Exactness::Space)?;
    remove_everything(&mut driven, &mut tree)?;
    drop(driven);
    let left = fs.stat_fs().map_err(|error| error.to_string())?;
    match left == empty {
        true => Ok(done),
        false => Err(format!("{left:?} is left of {empty:?} when all is gone")),
    }
}

fn remove_everything(
    driven: &mut Driven<'_, pagefence_memfs::MemFs>,
    tree: &mut Tree,
) -> Result<(), String> {
    let mut paths = tree.paths();
    paths.reverse();
    for (path, number) in paths.into_iter().filter(|(path, _)| !path.is_empty()) {
        let operation = match &tree.node(number).kind {
            pagefence_fs_model::files::Kind::Directory(_) => Operation::RemoveDirectory { path },
            _ => Operation::Remove { path },
        };
        driven
            .apply(&operation)
            .map_err(|(_, error)| format!("{operation:?}: {error}"))?;
        tree.apply(&operation)
            .map_err(|error| format!("{operation:?}: {error:?}"))?;
    }
    driven
        .apply(&Operation::Reopen)
        .map_err(|(_, error)| error)?;
    Ok(())
}

fn runner(seed: u64) -> TestRunner {
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: 3_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

#[test]
fn does_as_the_model() {
    let (start, mut cases) = (Instant::now(), 0);
    while cases < 100 || start.elapsed() < Duration::from_secs(4) {
        let outcome = runner(cases).run(&operations(STEPS), |operations| {
            let compared = compare(&operations, |_| false);
            compared.map(drop).map_err(TestCaseError::fail)
        });
        outcome.unwrap_or_else(|error| panic!("seed {cases}: {error}"));
        cases += 1;
    }
}

/// A model that forgets something is told from the file system.
#[test]
fn a_wrong_model_is_noticed() {
    use proptest::strategy::{Strategy as _, ValueTree as _};
    let wrong: [fn(&Operation) -> bool; 5] = [
        |done| matches!(done, Operation::WriteHeld { .. }),
        |done| matches!(done, Operation::SetSize { .. }),
        |done| matches!(done, Operation::Rename { .. }),
        |done| matches!(done, Operation::Allocate { .. }),
        |done| matches!(done, Operation::SetXattr { .. }),
    ];
    for (number, forgets) in wrong.into_iter().enumerate() {
        let is_noticed = (1..200).any(|seed| {
            let sample = operations(STEPS).new_tree(&mut runner(seed));
            let operations = sample.expect("a list").current();
            compare(&operations, forgets).is_err()
        });
        assert!(is_noticed, "forgetful model {number}");
    }
}
