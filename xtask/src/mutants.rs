//! `cargo xtask mutants`: for each protection that a test can leave out, that a test notices.
//!
//! `docs/MUTANTS.md` is the list: a row a mutant, with the tests that leave the protection out and
//! demand that an oracle notices. A mutant is killed if all tests of its row ran and passed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

use crate::command::command;
use crate::mounts::workspace_root;

const LIST: &str = "docs/MUTANTS.md";

/// Tests whose names begin so run under a scheduler.
const SCHEDULED: &str = "shuttle";

/// Arguments of `mutants`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only mutants whose description contains this.
    only: Option<String>,
}

/// A row of the list.
#[derive(Debug, PartialEq, Eq)]
struct Mutant {
    /// What is left out.
    what: String,
    tests: Vec<Test>,
}

/// A test that the list names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Test {
    package: String,
    /// The program in `tests/` that has it; `None` if it is one of the library's.
    program: Option<String>,
    function: String,
}

/// Tests that are built and run together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    package: String,
    program: Option<String>,
    is_scheduled: bool,
}

impl Test {
    /// Understands `crate::module::function` and `crates/name/…/file.rs::function`.
    fn parse(name: &str) -> Option<Self> {
        let (place, function) = name.rsplit_once("::")?;
        let (first, program) = match place.strip_prefix("crates/") {
            Some(path) => {
                let (first, rest) = path.split_once('/')?;
                let file = rest
                    .strip_prefix("tests/")
                    .and_then(|file| file.split('/').next());
                (first, file.map(|file| file.trim_end_matches(".rs")))
            }
            None => (place.split("::").next()?, None),
        };
        Some(Self {
            package: format!("pagefence-{}", first.replace('_', "-")),
            program: program.map(str::to_owned),
            function: function.to_owned(),
        })
    }

    fn run(&self) -> Run {
        Run {
            package: self.package.clone(),
            program: self.program.clone(),
            is_scheduled: self.function.starts_with(SCHEDULED),
        }
    }
}

/// The rows of the tables in the list.
fn parse(list: &str) -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    for row in list.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [what, .., noticed] = cells.as_slice() else {
            bail!("{LIST}: a row without cells: {row}");
        };
        let Some(names) = noticed
            .strip_prefix("`test: ")
            .or_else(|| noticed.strip_prefix("`tests: "))
            .and_then(|names| names.strip_suffix('`'))
        else {
            // The head of the table.
            if *noticed == "noticed by" {
                continue;
            }
            bail!("{LIST}: no tests are named for: {what}");
        };
        let tests = names.split(',').map(|name| Test::parse(name.trim()));
        mutants.push(Mutant {
            what: (*what).to_owned(),
            tests: tests
                .collect::<Option<_>>()
                .with_context(|| format!("{LIST}: a test's crate can't be told: {noticed}"))?,
        });
    }
    if mutants.is_empty() {
        bail!("{LIST} lists no mutants");
    }
    Ok(mutants)
}

/// Runs the tests of one program, and returns those that passed, by the last part of their names.
fn passed(run: &Run, functions: &BTreeSet<&str>) -> Result<BTreeSet<String>> {
    let mut cargo = command("cargo", ["test", "--package", &run.package]);
    cargo.current_dir(workspace_root()?);
    match &run.program {
        Some(program) => cargo.args(["--test", program]),
        None => cargo.arg("--lib"),
    };
    if run.is_scheduled {
        // As `.ci/run`, so that one finds what the other has built.
        cargo
            .env("RUSTFLAGS", "--cfg shuttle")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .args(["--release", "--target-dir", "target/shuttle"]);
    }
    let output = cargo
        .args(["--no-fail-fast", "--"])
        .args(functions)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    Ok(outcomes(&String::from_utf8_lossy(&output.stdout)))
}

/// The tests that passed, of what a test program printed: `test a::b ... ok`, with notes before the
/// dots for tests that must panic.
fn outcomes(printed: &str) -> BTreeSet<String> {
    let passed = |line: &str| {
        let (name, rest) = line.strip_prefix("test ")?.split_once(' ')?;
        let (_, function) = name.rsplit_once("::").unwrap_or(("", name));
        rest.ends_with("... ok").then(|| function.to_owned())
    };
    printed.lines().filter_map(passed).collect()
}

/// Runs the chore; `true` if no mutant survives.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let list = std::fs::read_to_string(workspace_root()?.join(LIST))
        .with_context(|| format!("cannot read {LIST}"))?;
    let mut mutants = parse(&list)?;
    if let Some(only) = &arguments.only {
        mutants.retain(|mutant| mutant.what.contains(only));
    }
    let tests = mutants.iter().flat_map(|mutant| &mutant.tests);
    let mut runs: BTreeMap<Run, BTreeSet<&str>> = BTreeMap::new();
    for test in tests {
        runs.entry(test.run()).or_default().insert(&test.function);
    }
    let mut killers = BTreeSet::new();
    for (run, functions) in runs {
        for function in passed(&run, &functions)? {
            killers.insert((run.clone(), function));
        }
    }
    let mut killed = 0;
    for mutant in &mutants {
        let missing = mutant
            .tests
            .iter()
            .find(|test| !killers.contains(&(test.run(), test.function.clone())));
        let names: Vec<&str> = mutant
            .tests
            .iter()
            .map(|test| test.function.as_str())
            .collect();
        match missing {
            None => {
                killed += 1;
                println!("killed    {:<72} {}", mutant.what, names.join(", "));
            }
            Some(test) => println!(
                "SURVIVED  {:<72} {} of {} did not notice, or did not run",
                mutant.what, test.function, test.package
            ),
        }
    }
    println!("mutants {}, killed {killed}", mutants.len());
    Ok(killed == mutants.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_name_their_tests() {
        let list = "# Mutants\n\n| left out | noticed by |\n|---|---|\n\
            | the lock | `test: page_cache::the_lock` |\n\
            | order | `tests: crates/fs-model/tests/a.rs::each, jbd2::tests::shuttle_b` |\n";
        let mutants = parse(list).expect("a list");
        assert_eq!(mutants.len(), 2);
        assert_eq!(mutants[0].what, "the lock");
        let shown: Vec<_> = mutants[1]
            .tests
            .iter()
            .map(|test| (test.run(), test.function.as_str()))
            .collect();
        let run = |package: &str, program: Option<&str>, is_scheduled| Run {
            package: package.to_owned(),
            program: program.map(str::to_owned),
            is_scheduled,
        };
        assert_eq!(
            shown,
            [
                (run("pagefence-fs-model", Some("a"), false), "each"),
                (run("pagefence-jbd2", None, true), "shuttle_b")
            ]
        );
        assert!(parse("| left out | noticed by |\n| the lock | nobody |\n").is_err());
        assert!(parse("nothing").is_err());
    }

    #[test]
    fn only_what_passed_counts() {
        let printed = "running 3 tests\ntest tests::a ... ok\n\
            test tests::b - should panic ... ok\ntest c ... FAILED\ntest d ... ignored\n";
        let passed: Vec<String> = outcomes(printed).into_iter().collect();
        assert_eq!(passed, ["a", "b"]);
    }
}
