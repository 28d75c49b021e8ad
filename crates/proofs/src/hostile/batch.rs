//! Cases in a process of their own, watched by the one that started it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::agreement::Verdict;
use super::case::{Cases, Tried};
use super::images::Image;
use crate::{Budget, Plan, Row};

/// Tells a process to try cases, and which.
const VARIABLE: &str = "PAGEFENCE_HOSTILE";
/// A case that takes longer hangs, however slow the machine.
const TIME: Duration = Duration::from_secs(30);
/// Address space of a process that tries cases.
const ADDRESSES: u64 = 4 << 30;
/// Memory that one case may take, in KiB: a volume's cache and a check's, what is beside them, and the
/// pieces of one directory, of which a check keeps a few millions.
const MEMORY_KIB: u64 = 192 << 10;
/// After so many failures of an image, no more are looked for.
const FAILURES_MAX: usize = 8;
/// How often the process that tries cases is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How to start a process in which [`served`] is called, and nothing else is done if it was asked.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// More of its environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// Which cases a process is to try.
#[derive(Debug, PartialEq, Eq)]
struct Batch {
    image: PathBuf,
    report: PathBuf,
    only: String,
    is_dirty: bool,
    seed: u64,
    first: usize,
    milliseconds: u64,
}

impl Batch {
    fn to_text(&self) -> OsString {
        let mut text = OsString::new();
        for path in [&self.image, &self.report] {
            text.push(path);
            text.push("\n");
        }
        let Self {
            only,
            seed,
            first,
            milliseconds,
            ..
        } = self;
        let is_dirty = u8::from(self.is_dirty);
        text.push(format!(
            "{only}\n{is_dirty}\n{seed}\n{first}\n{milliseconds}"
        ));
        text
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.split('\n');
        Some(Self {
            image: lines.next()?.into(),
            report: lines.next()?.into(),
            only: lines.next()?.to_owned(),
            is_dirty: lines.next()? == "1",
            seed: lines.next()?.parse().ok()?,
            first: lines.next()?.parse().ok()?,
            milliseconds: lines.next()?.parse().ok()?,
        })
    }
}

/// Tries cases if this process was started for that; whether it was.
///
/// # Panics
/// It was, and can't.
#[must_use]
pub fn served() -> bool {
    let Ok(asked) = std::env::var(VARIABLE) else {
        return false;
    };
    let batch = Batch::from_text(&asked).expect("whoever asks knows how");
    serve(&batch);
    true
}

fn serve(batch: &Batch) {
    let maximum = getrlimit(Resource::As).maximum;
    let limit = Rlimit {
        current: Some(ADDRESSES),
        maximum,
    };
    setrlimit(Resource::As, limit).expect("less than there is");
    // Whichever thread panics, the case has failed, and what is left of the process is no use.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        std::process::abort();
    }));
    let mut report = OpenOptions::new()
        .append(true)
        .open(&batch.report)
        .expect("a report");
    let mut say = |line: String| report.write_all(line.as_bytes()).expect("it is written");
    let image = std::fs::read(&batch.image).expect("an image");
    let cases = Cases::of(&image, batch.is_dirty, &batch.only, batch.seed).expect("a sound image");
    drop(image);
    say(format!("of {} {}\n", cases.len(), cases.structures()));
    if batch.first == 0 {
        say("case 0 the image as it was made\n".to_owned());
        if let Err(wrong) = cases.run_sound() {
            say(format!("failed {wrong:?}\n"));
        }
    }
    let budget = Budget::new(Duration::from_millis(batch.milliseconds));
    let mut number = batch.first;
    while number < cases.len() && (number == batch.first || budget.is_left()) {
        say(format!("case {number} {}\n", cases.name(number)));
        let before = peak_from_here();
        match cases.run(number) {
            Ok(Tried {
                opened,
                written,
                errors,
                verdict,
            }) => {
                let verdicts = Verdict::NAMES.map(|(it, _)| u64::from(it == verdict).to_string());
                let verdicts = verdicts.join(" ");
                say(format!("tried {opened} {written} {errors} {verdicts}\n"));
            }
            Err(wrong) => say(format!("failed {wrong:?}\n")),
        }
        let more = peak().saturating_sub(before);
        if more > MEMORY_KIB {
            say(format!("failed \"it took {more} KiB of memory\"\n"));
        }
        number += 1;
    }
    say("over\n".to_owned());
}

/// Has the peak of this process's memory begin here, and says where that is, in KiB.
fn peak_from_here() -> u64 {
    // Where it can't be set, what is told is the most that was ever in use.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    peak()
}

/// The most memory that was in use, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

/// What is known of a process that tries cases, from its report.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes of the report that were read.
    position: u64,
    /// The case that it is at.
    at: Option<(usize, String)>,
    is_over: bool,
}

/// Tries cases of an image, as many as there is time for.
pub(super) fn run(image: &Image, plan: &Plan, launcher: &Launcher, row: &mut Row) {
    let budget = Budget::new(plan.time);
    let begun = Instant::now();
    let mut total = None;
    let mut first = 0;
    for name in ["cases", "opened", "written to", "errors met"] {
        row.count(name, 0);
    }
    while (first == 0 || budget.is_left()) && row.failures.len() < FAILURES_MAX {
        let report = tempfile::NamedTempFile::new().expect("a report");
        let left = plan.time.saturating_sub(begun.elapsed());
        let batch = Batch {
            image: image.file.path().to_owned(),
            report: report.path().to_owned(),
            only: image.only.to_owned(),
            is_dirty: image.is_dirty,
            seed: plan.seed,
            first,
            milliseconds: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        let mut errors = tempfile::tempfile().expect("a file");
        let mut child = start(launcher, &batch, &errors);
        let mut progress = Progress::default();
        let ended = watch(&mut child, report.path(), &mut progress, &mut total, row);
        if progress.is_over {
            break;
        }
        let (at, case) = progress
            .at
            .take()
            .unwrap_or((first, "before the first".to_owned()));
        let how = match ended {
            Some(status) => format!("{status}: {}", last_of(&mut errors)),
            None => format!("it took more than {} s", TIME.as_secs()),
        };
        let seed = plan.seed;
        row.failures
            .push(format!("seed {seed}, case {at}, {case}: {how}"));
        first = at + 1;
    }
    if let Some((cases, structures)) = total {
        row.count("in all", cases);
        row.count("structures", structures);
    }
}

fn start(launcher: &Launcher, batch: &Batch, errors: &File) -> Child {
    Command::new(&launcher.program)
        .args(&launcher.arguments)
        .env(VARIABLE, batch.to_text())
        .env("RUST_BACKTRACE", "0")
        .envs(launcher.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors.try_clone().expect("a file"))
        .spawn()
        .expect("this program can be started again")
}

/// Waits for the end of a process, and counts what it reports; nothing if it had to be ended.
fn watch(
    child: &mut Child,
    report: &Path,
    progress: &mut Progress,
    total: &mut Option<(u64, u64)>,
    row: &mut Row,
) -> Option<ExitStatus> {
    let mut since = Instant::now();
    loop {
        let ended = child.try_wait().expect("it is a child");
        if read_report(report, progress, total, row) {
            since = Instant::now();
        }
        if ended.is_some() {
            return ended;
        }
        if since.elapsed() > TIME {
            child.kill().expect("it is a child");
            child.wait().expect("it is a child");
            return None;
        }
        std::thread::sleep(LOOK);
    }
}

/// Reads what is new in a report; whether there was anything.
fn read_report(
    path: &Path,
    progress: &mut Progress,
    total: &mut Option<(u64, u64)>,
    row: &mut Row,
) -> bool {
    let mut text = String::new();
    let mut file = File::open(path).expect("a report");
    file.seek(SeekFrom::Start(progress.position))
        .expect("a place");
    file.read_to_string(&mut text).expect("it is text");
    // A line may be half there.
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    progress.position += whole as u64;
    for line in text[..whole].lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let numbers = || {
            rest.split(' ')
                .filter_map(|number| number.parse::<u64>().ok())
        };
        match word {
            "of" => *total = numbers().next().zip(numbers().nth(1)),
            "case" => {
                let (number, name) = rest.split_once(' ').unwrap_or((rest, ""));
                progress.at = number.parse().ok().map(|number| (number, name.to_owned()));
            }
            "tried" => {
                let names = ["opened", "written to", "errors met"];
                let names = names
                    .into_iter()
                    .chain(Verdict::NAMES.map(|(_, name)| name));
                row.count("cases", 1);
                for (name, count) in names.zip(numbers()) {
                    row.count(name, count);
                }
            }
            "failed" => {
                let (number, name) = progress.at.clone().unwrap_or_default();
                let seed = row.seed;
                let failure = format!("seed {seed}, case {number}, {name}: {rest}");
                row.failures.push(failure);
            }
            _ => progress.is_over = true,
        }
    }
    whole > 0
}

/// The last lines of what a process said.
fn last_of(errors: &mut File) -> String {
    let mut said = String::new();
    let _ = errors.seek(SeekFrom::Start(0));
    let _ = errors.read_to_string(&mut said);
    let lines: Vec<&str> = said.lines().collect();
    lines[lines.len().saturating_sub(6)..].join(" / ")
}

#[test]
fn a_batch_comes_through() {
    let batch = Batch {
        image: "/a b".into(),
        report: "/c".into(),
        only: "a field".to_owned(),
        is_dirty: true,
        seed: 7,
        first: 3,
        milliseconds: 99,
    };
    let text = batch.to_text().into_string().expect("text");
    assert_eq!(Batch::from_text(&text), Some(batch));
    assert_eq!(Batch::from_text("nonsense"), None);
}
