//! One test program under a sanitizer: what it says, and how it ends.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use super::programs::Program;
use super::{SELF_TESTS, Sanitizer, left_out};
use crate::command::{command, run as run_program};

/// With what a process ends of which something was reported.
const REPORTED: i32 = 66;

/// Bytes of what a program printed that are shown of its end.
const SHOWN: usize = 12_000;

/// What a program came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) passed: usize,
    /// How many of those have shown that something is reported.
    pub(crate) self_tests: usize,
    pub(crate) failed: Vec<String>,
    /// Tests that were left out, and why.
    pub(crate) left_out: Vec<(String, &'static str)>,
    pub(crate) reports: Vec<String>,
    /// Suppressions, and how often each was used.
    pub(crate) suppressed: Vec<(String, usize)>,
    /// What tests said that they could not try.
    pub(crate) not_tried: BTreeSet<String>,
    pub(crate) end: End,
    /// Tests that had no end when the program had one.
    pub(crate) unfinished: Vec<String>,
    /// The end of what it printed.
    pub(crate) said: String,
    pub(crate) time: Duration,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All its tests had ended.
    Itself,
    /// Before its tests had, or in another way than it should.
    Crash(String),
    /// It went on for too long.
    Hang,
}

impl Outcome {
    fn new(left_out: Vec<(String, &'static str)>) -> Self {
        Self {
            passed: 0,
            self_tests: 0,
            failed: Vec::new(),
            left_out,
            reports: Vec::new(),
            suppressed: Vec::new(),
            not_tried: BTreeSet::new(),
            end: End::Itself,
            unfinished: Vec::new(),
            said: String::new(),
            time: Duration::ZERO,
        }
    }

    /// Tests that failed, and that the program did not end as it should.
    pub(crate) fn failures(&self) -> usize {
        self.failed.len() + usize::from(self.end != End::Itself)
    }
}

/// Runs `program`, of its tests those that begin with `only`, with files in the empty directory `within`.
pub(crate) fn run(
    program: &Program,
    sanitizer: Sanitizer,
    only: Option<&str>,
    limit: Duration,
    within: &Path,
) -> Result<Outcome> {
    let begun = Instant::now();
    let listed = run_program(program.path.to_str().context("a path of text")?, ["--list"])?;
    let is_asked_for = |name: &&str| only.is_none_or(|only| name.starts_with(only));
    let names = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    let (mut asked_for, mut skipped) = (Vec::new(), Vec::new());
    for name in names.filter(is_asked_for) {
        match left_out::reason(program, name, sanitizer) {
            Some(reason) => skipped.push((name.to_owned(), reason)),
            None => asked_for.push(name.to_owned()),
        }
    }
    let mut outcome = Outcome::new(skipped);
    if asked_for.is_empty() {
        return Ok(outcome);
    }
    let (out, err) = (within.join("out"), within.join("err"));
    let mut tests = command(&program.path, ["--show-output", "--exact"]);
    if only.is_some() {
        tests.args(&asked_for);
    }
    for (name, _) in &outcome.left_out {
        tests.args(["--skip", name]);
    }
    tests
        .current_dir(&program.directory)
        .envs(options(sanitizer, &within.join("report"))?)
        // The library's own cache of what it has read to print one is behind a lock of its own.
        .env("RUST_BACKTRACE", "0")
        .stdout(File::create(&out)?)
        .stderr(File::create(&err)?)
        .process_group(0);
    let mut child = tests.spawn().context("a test program can't be run")?;
    let status = wait(&mut child, begun + limit)?;
    let printed = lossy(&out)?;
    let mut reported = [printed.clone(), lossy(&err)?];
    outcome.said = format!("{}{}", end_of(&reported[0]), end_of(&reported[1]));
    outcome.judge(&asked_for, &printed, status);
    let mut files: Vec<_> = fs::read_dir(within)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|path| *path != out && *path != err);
    files.sort();
    for path in &files {
        outcome.read(&lossy(path)?);
    }
    for text in &mut reported {
        outcome.read(text);
    }
    if outcome.end == End::Itself && outcome.failed.is_empty() && outcome.reports.is_empty() {
        // It reported where nobody looks.
        outcome.end = match status.and_then(|status| status.code()) {
            Some(0) => End::Itself,
            _ => End::Crash(describe(status)),
        };
    }
    outcome.time = begun.elapsed();
    Ok(outcome)
}

impl Outcome {
    /// Reads what the harness printed about tests, and how it ended: `None` if it was ended.
    fn judge(&mut self, asked_for: &[String], printed: &str, status: Option<ExitStatus>) {
        let mut unfinished: BTreeSet<&str> = asked_for.iter().map(String::as_str).collect();
        let mut has_ended = false;
        for line in printed.lines() {
            if line.starts_with("test result: ") {
                has_ended = true;
            } else if let Some(what) = line.strip_prefix("skipped: ") {
                self.not_tried.insert(what.to_owned());
            }
            // A child of a test may have left the beginning of a line.
            let Some((_, rest)) = line.rfind("test ").map(|at| line.split_at(at + 5)) else {
                continue;
            };
            let Some((name, how)) = rest.split_once(" ... ") else {
                continue;
            };
            let name = name.strip_suffix(" - should panic").unwrap_or(name);
            if !unfinished.contains(name) {
                continue;
            }
            match how {
                "ok" => {
                    self.passed += 1;
                    self.self_tests += usize::from(name.starts_with(SELF_TESTS));
                }
                "FAILED" => self.failed.push(name.to_owned()),
                _ => continue,
            }
            unfinished.remove(name);
        }
        self.unfinished = unfinished.into_iter().map(str::to_owned).collect();
        let code = status.and_then(|status| status.code());
        self.end = if status.is_none() {
            End::Hang
        } else if !has_ended || !self.unfinished.is_empty() || code.is_none() {
            End::Crash(describe(status))
        } else {
            End::Itself
        };
    }

    /// Reads what a sanitizer has written.
    fn read(&mut self, text: &str) {
        let mut report = String::new();
        let mut is_counted = false;
        for line in text.lines() {
            if is_report(line) {
                self.end_report(&mut report);
                report.push_str(line);
                report.push('\n');
            } else if !report.is_empty() {
                let is_end = line.starts_with("SUMMARY: ");
                report.push_str(line);
                report.push('\n');
                if is_end {
                    self.end_report(&mut report);
                }
            }
            if is_counted && let Some((times, what)) = line.trim().split_once(' ') {
                match times.parse() {
                    Ok(times) => self.suppressed.push((what.trim().to_owned(), times)),
                    Err(_) => is_counted = false,
                }
            }
            is_counted |= line.contains("Sanitizer: Matched ");
        }
        self.end_report(&mut report);
    }

    fn end_report(&mut self, report: &mut String) {
        if !report.is_empty() {
            self.reports.push(std::mem::take(report));
        }
    }
}

/// Whether a line begins a report. That a program was refused memory is none.
fn is_report(line: &str) -> bool {
    if line.contains("Sanitizer failed to allocate") {
        return false;
    }
    ["WARNING: ", "ERROR: ", "FATAL: "].iter().any(|grade| {
        let behind = line.split_once(grade).map(|(_, behind)| behind);
        behind.is_some_and(|behind| {
            ["Thread", "Address", "Leak"]
                .iter()
                .any(|kind| behind.starts_with(&format!("{kind}Sanitizer")))
        })
    })
}

fn describe(status: Option<ExitStatus>) -> String {
    match status {
        None => "ended here".to_owned(),
        Some(status) => match status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => status.to_string(),
        },
    }
}

/// What the sanitizers are told: to go on after a report, to write it to files that begin with `log` (children
/// too), to leave signals alone of which tests die on purpose, and to refuse memory as the allocator does.
fn options(sanitizer: Sanitizer, log: &Path) -> Result<[(&'static str, String); 2]> {
    let suppressions = sanitizer.suppressions()?;
    let common = format!(
        "exitcode={REPORTED}:log_path={}:handle_segv=0:handle_sigbus=0:handle_sigill=0:handle_sigfpe=0:\
         allow_addr2line=1:allocator_may_return_null=1",
        log.display()
    );
    let suppressions = format!("suppressions={}", suppressions.display());
    Ok(match sanitizer {
        Sanitizer::Thread => [
            (
                "TSAN_OPTIONS",
                format!("{common}:{suppressions}:print_suppressions=1"),
            ),
            ("ASAN_OPTIONS", String::new()),
        ],
        Sanitizer::Address => {
            let own = "detect_leaks=1:quarantine_size_mb=64";
            [
                ("ASAN_OPTIONS", format!("{common}:{own}")),
                ("LSAN_OPTIONS", suppressions),
            ]
        }
    })
}

/// Waits for `child`, the first of its process group; at the deadline the group is ended, and there is no
/// status.
fn wait(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            kill_process_group(group.context("a process")?, Signal::KILL)?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn lossy(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn end_of(text: &str) -> &str {
    let mut from = text.len().saturating_sub(SHOWN);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(printed: &str, status: Option<i32>) -> Outcome {
        let tests = ["a::b", "sanitized::c", "d"].map(str::to_owned);
        let mut outcome = Outcome::new(Vec::new());
        outcome.judge(&tests, printed, status.map(ExitStatus::from_raw));
        outcome
    }

    #[test]
    fn what_tests_came_to_is_counted() {
        let printed = "running 3 tests\ntest a::b ... \nrunning 1 test\n\
            test sanitized::c ... test sanitized::c ... ok\ntest d - should panic ... FAILED\n\
            test a::b ... ok\nskipped: no root\ntest result: FAILED. 2 passed\n";
        let outcome = judged(printed, Some(101 << 8));
        assert_eq!((outcome.passed, outcome.self_tests), (2, 1));
        assert_eq!(outcome.failed, ["d"]);
        assert_eq!((outcome.end.clone(), outcome.failures()), (End::Itself, 1));
        assert!(outcome.not_tried.contains("no root"));
    }

    #[test]
    fn a_crash_is_told_from_a_failure() {
        let printed = "running 3 tests\ntest a::b ... ok\n";
        let outcome = judged(printed, Some(11));
        assert_eq!(outcome.end, End::Crash("signal 11".to_owned()));
        assert_eq!(outcome.unfinished, ["d", "sanitized::c"]);
        assert_eq!((outcome.passed, outcome.failures()), (1, 1));
        assert_eq!(judged(printed, None).end, End::Hang);
        // A test has ended the process as if all was well.
        let early = judged(printed, Some(0)).end;
        assert_eq!(early, End::Crash("exit status: 0".to_owned()));
    }

    #[test]
    fn reports_are_told_apart() {
        let mut outcome = Outcome::new(Vec::new());
        outcome.read(
            "==\nWARNING: ThreadSanitizer: data race (pid=1)\n  Write of size 8\n\
             SUMMARY: ThreadSanitizer: data race a.rs in b\n==\n==\n\
             WARNING: ThreadSanitizer: data race (pid=1)\n  Read of size 8\n\
             SUMMARY: ThreadSanitizer: data race c.rs in d\n==\n\
             ThreadSanitizer: reported 2 warnings\n\
             ThreadSanitizer: Matched 12 suppressions (pid=1):\n12 race:e::f\n",
        );
        outcome.read("==2==ERROR: AddressSanitizer: heap-use-after-free on address 0x1\n");
        outcome.read("==3==ERROR: LeakSanitizer: detected memory leaks\nSUMMARY: x\n");
        outcome.read("FATAL: ThreadSanitizer: unexpected memory mapping\n");
        outcome.read("an ERROR: of ThreadSanitizer's\n");
        outcome
            .read("==4==WARNING: AddressSanitizer failed to allocate 0x7fffffffffffffff bytes\n");
        assert_eq!(outcome.reports.len(), 5, "{:?}", outcome.reports);
        assert!(outcome.reports[1].contains("c.rs in d") && !outcome.reports[1].contains("b\n"));
        assert_eq!(outcome.suppressed, [("race:e::f".to_owned(), 12)]);
    }
}
