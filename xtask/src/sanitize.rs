//! `cargo xtask sanitize`: the tests of the crates with threads or unsafe code, built for a sanitizer; a table
//! of what passed and what was reported.
//!
//! The sanitizers come with the stable compiler, but asking for them does not, so it is told to take unstable
//! flags. The standard library is as it ships: nothing in it is watched. rustix goes through the C library
//! instead of making system calls itself, so that the sanitizer sees what is mapped, read and written.
//!
//! That a sanitizer is on is the first thing to be seen: tests of host-memory break contracts in children, and
//! fail where that is not reported.

mod left_out;
mod programs;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::command::find;
use crate::mounts::workspace_root;
use crate::scratch::Scratch;
use programs::Program;
use run::{End, Outcome};

/// The crates, in the order in which they are tried; the first has the tests of the sanitizer itself.
const CRATES: [&str; 13] = [
    "host-memory",
    "lock-order",
    "page-cache",
    "jbd2",
    "page-mmap",
    "block-io",
    "ext4-format",
    "vfs",
    "memfs",
    "pagefence",
    "ext4",
    "fuse-front",
    "cli",
];

/// What the names of the tests begin with that want something reported.
const SELF_TESTS: &str = "sanitized::";

/// Arguments of `sanitize`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to look for.
    sanitizer: Sanitizer,
    /// Run the tests of these crates only, and host-memory's of the sanitizer.
    #[arg(long = "only", value_name = "CRATE", value_delimiter = ',')]
    only: Vec<String>,
    /// How long a test program may take before it is ended as one that hangs.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sanitizer {
    /// Data races.
    Thread,
    /// Accesses of memory that is not there or not one's own, and leaks.
    Address,
}

impl Sanitizer {
    /// Its name, for the compiler and for people.
    fn name(self) -> &'static str {
        match self {
            Self::Thread => "thread",
            Self::Address => "address",
        }
    }

    /// Known false reports.
    fn suppressions(self) -> Result<PathBuf> {
        let file = match self {
            Self::Thread => "xtask/src/sanitize/thread.supp",
            Self::Address => "xtask/src/sanitize/leaks.supp",
        };
        Ok(workspace_root()?.join(file))
    }
}

/// What came of a crate's tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Row {
    passed: usize,
    failed: usize,
    left_out: usize,
    reports: usize,
}

/// Runs the chore; `true` if nothing was reported and nothing failed.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    if let Some(name) = (arguments.only.iter()).find(|name| !CRATES.contains(&name.as_str())) {
        bail!("{name} is none of: {}", CRATES.join(", "));
    }
    if find("llvm-symbolizer").is_none() && find("addr2line").is_none() {
        // Without names of functions no suppression fits.
        bail!("reports want names: apt-get install llvm");
    }
    let sanitizer = arguments.sanitizer;
    let limit = Duration::try_from_secs_f64(arguments.minutes * 60.0)?;
    let begun = Instant::now();
    // All are built, whatever is asked for: other crates together are built with other features.
    let programs = programs::build(sanitizer, &CRATES)?;
    let scratch = Scratch::new()?;
    let set_mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
    set_mode(scratch.path(), 0o755)?;
    let mut rows: BTreeMap<usize, (String, Row)> = BTreeMap::new();
    let mut not_tried = BTreeSet::new();
    let mut suppressed: BTreeMap<String, usize> = BTreeMap::new();
    let mut left_out: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut self_tests = 0;
    for (number, program) in programs.iter().enumerate() {
        let is_chosen = arguments.only.is_empty() || arguments.only.contains(&program.package);
        if !is_chosen && program.package != CRATES[0] {
            continue;
        }
        let only = (!is_chosen).then_some(SELF_TESTS);
        // Some tests act as users who own nothing, and report as such.
        let within = scratch.directory(&number.to_string())?;
        set_mode(&within, 0o1777)?;
        let outcome = run::run(program, sanitizer, only, limit, &within)?;
        show(program, &outcome);
        self_tests += outcome.self_tests;
        not_tried.extend(outcome.not_tried.iter().cloned());
        for (what, times) in &outcome.suppressed {
            *suppressed.entry(what.clone()).or_default() += times;
        }
        if is_chosen {
            let names = outcome.left_out.iter().map(|(test, _)| test.clone());
            left_out.entry(&program.package).or_default().extend(names);
        }
        let place = CRATES.iter().position(|name| *name == program.package);
        let (_, row) = rows
            .entry(place.unwrap_or_default())
            .or_insert_with(|| (program.package.clone(), Row::default()));
        row.passed += outcome.passed;
        row.failed += outcome.failures();
        row.left_out += outcome.left_out.len();
        row.reports += outcome.reports.len();
    }
    if self_tests == 0 {
        bail!("no test has shown that the sanitizer is on");
    }
    let mut unused = 0;
    for (package, names) in &left_out {
        for tests in left_out::unused(package, names, sanitizer) {
            println!("FAILED: {package} has no test to leave out: {tests}");
            unused += 1;
        }
    }
    println!("crate        passed  failed  left out  reports");
    let mut sum = Row {
        failed: unused,
        ..Row::default()
    };
    for (name, row) in rows.values() {
        println!(
            "{name:<12} {:>6}  {:>6}  {:>8}  {:>7}",
            row.passed, row.failed, row.left_out, row.reports
        );
        sum.passed += row.passed;
        sum.failed += row.failed;
        sum.left_out += row.left_out;
        sum.reports += row.reports;
    }
    for (what, times) in suppressed {
        println!("suppressed: {what}, {times} times");
    }
    for what in not_tried {
        println!("not tried: {what}");
    }
    println!(
        "sanitized: {}, {} crates, {} tests passed ({self_tests} of the sanitizer), {} left out, {:.0} s, \
         reports {}, failures {}",
        sanitizer.name(),
        rows.len(),
        sum.passed,
        sum.left_out,
        begun.elapsed().as_secs_f64(),
        sum.reports,
        sum.failed,
    );
    Ok(sum.reports == 0 && sum.failed == 0)
}

/// Prints what came of a program: at once, since the others take a while.
fn show(program: &Program, outcome: &Outcome) {
    println!(
        "{}: {} passed in {:.0} s, {} failed, {} reports",
        program.name,
        outcome.passed,
        outcome.time.as_secs_f64(),
        outcome.failures(),
        outcome.reports.len()
    );
    for report in &outcome.reports {
        println!("{}", report.trim_end());
    }
    for (test, reason) in &outcome.left_out {
        println!("left out: {test}: {reason}");
    }
    for test in &outcome.failed {
        println!("FAILED: {test}");
    }
    match &outcome.end {
        End::Itself => {}
        End::Crash(how) => println!("CRASHED: {how}"),
        End::Hang => println!("HANGS: it was ended"),
    }
    if outcome.end != End::Itself {
        println!("not finished: {}", outcome.unfinished.join(", "));
    }
    if outcome.failures() > 0 {
        println!("{}", outcome.said.trim_end());
    }
}
