//! Trials that are test programs of the workspace: how many passed, and which did not.

use anyhow::{Context as _, Result};
use pagefence_proofs::{Plan, Row};

use crate::command::command;
use crate::mounts::workspace_root;

/// How a test prints how many schedules it tried.
const SCHEDULES: &str = "schedules ";

/// Crates whose locks and atomics a scheduler can stand behind.
const SCHEDULED: [&str; 3] = ["pagefence-ext4", "pagefence-jbd2", "pagefence-page-cache"];

/// What cargo is asked to test.
struct Program {
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl Program {
    fn new<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Self {
        let first = ["test", "--no-fail-fast"].into_iter();
        Self {
            arguments: first.chain(arguments).map(str::to_owned).collect(),
            environment: Vec::new(),
        }
    }

    /// What it prints, tests' own words included.
    fn run<'a>(&self, of_tests: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let output = command(cargo, &self.arguments)
            .arg("--")
            .args(of_tests)
            .envs(self.environment.iter().cloned())
            .current_dir(workspace_root()?)
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Every scenario under a scheduler that chooses interleavings, all for the same time.
pub(crate) fn schedules(plan: &Plan) -> Result<Row> {
    let mut row = Row::new("scheduled threads, page cache, journal and ext4", plan.seed);
    let packages = SCHEDULED.iter().flat_map(|package| ["--package", package]);
    let arguments = ["--release", "--lib", "--target-dir", "target/shuttle"];
    let mut program = Program::new(arguments.into_iter().chain(packages).chain(["shuttle"]));
    // As `.ci/run`, so that one finds what the other has built.
    program.environment = vec![
        ("RUSTFLAGS", "--cfg shuttle".to_owned()),
        ("CARGO_PROFILE_RELEASE_LTO", "off".to_owned()),
        ("PAGEFENCE_PROOF_SEED", plan.seed.to_string()),
    ];
    let listed = program.run(["--list"])?;
    let tests = listed
        .lines()
        .filter(|line| line.ends_with(": test"))
        .count();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    // Each test has two kinds of schedules.
    let each = plan.time.as_millis() * threads as u128 / (2 * tests.max(1) as u128);
    let milliseconds = ("PAGEFENCE_SCHEDULE_MS", each.max(1).to_string());
    program.environment.push(milliseconds);
    let printed = program.run(["--show-output"])?;
    let schedules = printed
        .lines()
        .filter_map(|line| line.strip_prefix(SCHEDULES));
    let sum = schedules
        .filter_map(|count| count.parse::<u64>().ok())
        .sum();
    row.count("schedules", sum);
    judge(&mut row, "scenarios", &printed);
    Ok(row)
}

/// Escape attempts from the confinement, and what is refused.
pub(crate) fn confinement(plan: &Plan) -> Result<Row> {
    let mut row = Row::new("escape attempts of a confined server", plan.seed);
    let package = ["--package", "pagefence-cli"];
    let inside = Program::new(package.into_iter().chain(["--lib", "confinement"])).run([])?;
    judge(&mut row, "attempts denied", &inside);
    let mounted = Program::new(package.into_iter().chain(["--test", "contained"])).run([])?;
    judge(&mut row, "attempts denied", &mounted);
    Ok(row)
}

/// Counts tests that passed; the others are failures, and so is that there are none.
fn judge(row: &mut Row, passed: &'static str, printed: &str) {
    let mut any = 0;
    for line in printed
        .lines()
        .filter_map(|line| line.strip_prefix("test "))
    {
        if line.ends_with(" ... ok") {
            any += 1;
        } else if let Some((name, _)) = line.split_once(" ... FAILED") {
            row.failures.push(name.to_owned());
        } else if let Some((name, _)) = line.split_once(" ... ignored") {
            row.skipped.push(name.to_owned());
        }
    }
    row.count(passed, any);
    if any == 0 {
        row.failures.push("no test has passed".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_pass_is_told() {
        let printed = "running 3 tests\ntest a::b ... ok\ntest c - should panic ... ok\n\
            test d ... FAILED\ntest e ... ignored, no root\n\ntest result: FAILED. 2 passed\n";
        let mut row = Row::new("all", 1);
        judge(&mut row, "passed", printed);
        assert_eq!(row.counts, [(2, "passed")]);
        assert_eq!(row.failures, ["d"]);
        assert_eq!(row.skipped, ["e"]);
        judge(&mut row, "passed", "error: could not compile");
        assert_eq!(row.failures.len(), 2);
    }
}
