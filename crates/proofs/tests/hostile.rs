//! Hostile images, some cases of each type; and a protection that is left out is found missing.

use std::time::Duration;

use pagefence_block_io::fault_device::random::Random;
use pagefence_proofs::budget::{first_seed, seconds};
use pagefence_proofs::e2fsck::is_there;
use pagefence_proofs::hostile::{Fuzzed, Launcher, Recipe, prove_fields, recipes, served};
use pagefence_proofs::{Plan, Row};

/// How long some types of images are tried together.
const NORMAL: Duration = Duration::from_secs(5);
/// One type of so many is tried.
const SHARE: usize = 3;

/// This program, as a process that tries cases.
fn launcher() -> Launcher {
    let arguments = ["--exact", "cases_in_a_process_of_their_own", "--nocapture"];
    Launcher {
        program: std::env::current_exe().expect("this program"),
        arguments: arguments.map(Into::into).to_vec(),
        environment: Vec::new(),
    }
}

/// No test by itself: what the others start.
#[test]
fn cases_in_a_process_of_their_own() {
    let _ = served();
}

fn prove(recipe: &Recipe, plan: &Plan, launcher: &Launcher) -> Row {
    let row = prove_fields(recipe, plan, launcher);
    println!("{row}");
    row
}

/// All cases of a recipe that leaves few of them.
const WHOLE: Plan = Plan {
    seed: 1,
    time: Duration::from_secs(120),
};

fn assert_sound(recipe: &Recipe) {
    let row = prove(recipe, &WHOLE, &launcher());
    assert_eq!(row.failures, [""; 0]);
}

/// Nothing fails, but where `mutant` is left out, of which this is `said`.
fn assert_noticed(recipe: &Recipe, mutant: &str, said: &str) {
    assert_sound(recipe);
    let mut launcher = launcher();
    let variable = "PAGEFENCE_LEAVE_OUT".into();
    launcher.environment.push((variable, mutant.into()));
    let row = prove(recipe, &WHOLE, &launcher);
    let is_found = |failure: &String| failure.contains(said);
    assert!(row.failures.iter().any(is_found), "{row}");
}

#[test]
fn hostile_fields_are_errors() {
    let first = (first_seed() % SHARE as u64) as usize;
    let recipes: Vec<Recipe> = recipes().into_iter().skip(first).step_by(SHARE).collect();
    let plan = Plan {
        seed: first_seed(),
        time: seconds(NORMAL) / recipes.len() as u32,
    };
    let mut failures = Vec::new();
    for recipe in &recipes {
        let row = prove(recipe, &plan, &launcher());
        failures.extend(row.failures.clone());
        let is_tried = row.counts.first().is_some_and(|(cases, _)| *cases > 0);
        assert!(is_tried || !row.skipped.is_empty(), "{row}");
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The system zones, and what is free by the bitmap: the mutant is the first of them left out.
#[test]
fn the_check_that_files_own_no_metadata() {
    let recipe = Recipe {
        only: "inode of small: 0.ee_start_lo",
        ..recipes()[0]
    };
    assert_noticed(&recipe, "unchecked-field", "of metadata");
}

/// A range of a fast commit is replayed with its checksum mended: without the check of what it names,
/// a file gets the inode table, and writes to it.
#[test]
fn the_check_that_fast_commits_give_no_metadata() {
    let recipes = recipes();
    let has_them = |recipe: &&Recipe| recipe.name == "ext4 with fast commits";
    let recipe = Recipe {
        only: "ADD_RANGE.ee_start_lo",
        ..*recipes.iter().find(has_them).expect("it is listed")
    };
    assert_noticed(&recipe, "unchecked-field", "of metadata");
}

/// What e2fsck finds and the check does not is a failure: here, the count of links.
#[test]
fn what_only_e2fsck_finds_is_told() {
    if !is_there() {
        eprintln!("skipped: e2fsck is not there");
        return;
    }
    let recipe = Recipe {
        only: "inode of small: i_links_count",
        ..recipes()[0]
    };
    assert_noticed(&recipe, "uncounted-links", "the check finds nothing");
}

/// A directory without blocks whose first entry leads to itself: removing all of it ends.
#[test]
fn a_directory_in_itself_is_removed_by_nobody() {
    let recipes = recipes();
    let is_inline = |recipe: &&Recipe| recipe.name.ends_with("inline_data");
    let recipe = Recipe {
        only: "inode of sub: pointer 1 = 0x",
        ..**recipes
            .iter()
            .filter(is_inline)
            .collect::<Vec<_>>()
            .last()
            .expect("it is listed")
    };
    assert_sound(&recipe);
}

/// What fuzzers do, with bytes that a seed gives.
#[test]
fn random_bytes_are_errors() {
    let mut random = Random::new(first_seed());
    let fuzzed = Fuzzed::new(&recipes()[0]).expect("it is made here");
    let mut bytes = |most: u64| -> Vec<u8> {
        let count = random.below(most);
        (0..count).map(|_| random.next_u64() as u8).collect()
    };
    for _ in 0..2000 {
        fuzzed.parse(&bytes(1025));
    }
    for _ in 0..3 {
        fuzzed.bytes(&bytes(400));
        fuzzed.structure(&bytes(72));
    }
}
