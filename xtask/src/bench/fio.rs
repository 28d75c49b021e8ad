//! Reads and writes by fio.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::command;

/// The order in which offsets are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    Sequential,
    Random,
}

impl Pattern {
    fn unit(self) -> &'static str {
        match self {
            Self::Sequential => "MiB/s",
            Self::Random => "kIOPS",
        }
    }
}

/// One sort of reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pattern: Pattern,
    direct: bool,
    jobs: u32,
}

/// Sequential and random, buffered and direct, by one and by four.
pub(crate) fn jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    for pattern in [Pattern::Sequential, Pattern::Random] {
        for direct in [false, true] {
            for count in [1, 4] {
                jobs.push(Job {
                    pattern,
                    direct,
                    jobs: count,
                });
            }
        }
    }
    jobs
}

impl Job {
    /// What its row is called.
    pub(crate) fn name(&self) -> String {
        let pattern = match self.pattern {
            Pattern::Sequential => "read 1 MiB in sequence",
            Pattern::Random => "read 4 KiB at random",
        };
        let mode = if self.direct { "direct" } else { "buffered" };
        let plural = if self.jobs == 1 { "" } else { "s" };
        format!("{pattern}, {mode}, {} job{plural}", self.jobs)
    }

    /// The unit of its figure.
    pub(crate) fn unit(&self) -> &'static str {
        self.pattern.unit()
    }
}

/// Runs a job on `file`; gives its figure. A cold job reads each byte at most once, a warm one goes
/// on for `seconds`.
pub(crate) fn run(job: &Job, file: &Path, seconds: u32, is_warm: bool) -> Result<f64> {
    let (pattern, block) = match job.pattern {
        Pattern::Sequential => ("read", "1M"),
        Pattern::Random => ("randread", "4k"),
    };
    let mut command = command("fio", ["--name=read", "--readonly", "--output-format=json"]);
    command
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--rw={pattern}"))
        .arg(format!("--bs={block}"))
        .arg(format!("--direct={}", u32::from(job.direct)))
        .arg(format!("--numjobs={}", job.jobs))
        .args(["--ioengine=psync", "--group_reporting", "--invalidate=0"])
        .args([
            "--thread",
            "--randseed=7",
            "--allrandrepeat=1",
            "--create_on_open=0",
        ])
        .arg(format!("--runtime={seconds}"));
    if is_warm {
        command.arg("--time_based");
    }
    if job.jobs > 1 && job.pattern == Pattern::Sequential {
        // Each job its own part, so that none reads what another has just brought in.
        let length = std::fs::metadata(file)?.len() / u64::from(job.jobs);
        command
            .arg(format!("--size={length}"))
            .arg(format!("--offset_increment={length}"));
    }
    measure(&mut command, job.pattern, "read")
}

/// One sort of writing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteJob {
    pattern: Pattern,
    direct: bool,
    /// fsync after each write.
    syncs: bool,
    threads: u32,
}

/// Sequential and random, buffered and direct; with fsync after each by one thread and by sixteen.
pub(crate) fn write_jobs() -> Vec<WriteJob> {
    let job = |pattern, direct, syncs, threads| WriteJob {
        pattern,
        direct,
        syncs,
        threads,
    };
    vec![
        job(Pattern::Sequential, false, false, 1),
        job(Pattern::Sequential, true, false, 1),
        job(Pattern::Random, false, false, 1),
        job(Pattern::Random, true, false, 1),
        job(Pattern::Random, false, true, 1),
        job(Pattern::Random, false, true, 16),
    ]
}

impl WriteJob {
    /// What its row is called.
    pub(crate) fn name(&self) -> String {
        let pattern = match self.pattern {
            Pattern::Sequential => "write 1 MiB in sequence",
            Pattern::Random => "write 4 KiB at random",
        };
        let mode = if self.direct { "direct" } else { "buffered" };
        let syncs = if self.syncs {
            "fsync after each"
        } else {
            "fsync at the end"
        };
        let plural = if self.threads == 1 { "" } else { "s" };
        format!(
            "{pattern}, {mode}, {syncs}, {} thread{plural}",
            self.threads
        )
    }

    /// The unit of its figure.
    pub(crate) fn unit(&self) -> &'static str {
        self.pattern.unit()
    }
}

/// Runs a job on new files beside `file`, of `mib` MiB in all; gives its figure.
pub(crate) fn run_write(job: &WriteJob, file: &Path, mib: u64, seconds: u32) -> Result<f64> {
    let (pattern, block) = match job.pattern {
        Pattern::Sequential => ("write", "1M"),
        Pattern::Random => ("randwrite", "4k"),
    };
    let directory = file.parent().context("a file in a directory")?;
    let size = mib / u64::from(job.threads);
    let mut command = command("fio", ["--name=write", "--output-format=json"]);
    command
        .arg(format!("--directory={}", directory.display()))
        .arg(format!("--rw={pattern}"))
        .arg(format!("--bs={block}"))
        .arg(format!("--direct={}", u32::from(job.direct)))
        .arg(format!("--numjobs={}", job.threads))
        .arg(format!("--size={size}M"))
        .arg(format!("--fsync={}", u32::from(job.syncs)))
        .arg(format!("--runtime={seconds}"))
        .args(["--ioengine=psync", "--group_reporting", "--thread"])
        .args(["--randseed=7", "--allrandrepeat=1", "--fallocate=none"]);
    if !job.syncs {
        command.arg("--end_fsync=1");
    }
    measure(&mut command, job.pattern, "write")
}

/// Runs fio; gives the figure of one side, in the pattern's unit.
fn measure(command: &mut Command, pattern: Pattern, side: &str) -> Result<f64> {
    let output = command.output().context("cannot run fio")?;
    ensure!(
        output.status.success(),
        "fio failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let printed = String::from_utf8_lossy(&output.stdout);
    match pattern {
        Pattern::Sequential => Ok(figure(&printed, side, "bw_bytes")? / f64::from(1 << 20)),
        Pattern::Random => Ok(figure(&printed, side, "iops")? / 1000.0),
    }
}

/// A number of the object `read` or `write` in fio's JSON, which has one job: the first `"NAME" :` after the
/// first `"read" :` (or `"write" :`).
fn figure(json: &str, side: &str, name: &str) -> Result<f64> {
    // Where the value of the first key of that name starts; the name may also be some value.
    let after = |text: &str, key: &str| -> Option<usize> {
        let quoted = format!("\"{key}\"");
        text.match_indices(&quoted).find_map(|(at, _)| {
            let rest = text[at + quoted.len()..].trim_start();
            rest.starts_with(':').then(|| text.len() - rest.len() + 1)
        })
    };
    let start = after(json, side).with_context(|| format!("fio's JSON has no {side:?}"))?;
    let object = &json[start..];
    let value = after(object, name).with_context(|| format!("fio's JSON has no {name:?}"))?;
    let digits: String = object[value..]
        .trim_start()
        .chars()
        .take_while(|character| character.is_ascii_digit() || "+-.eE".contains(*character))
        .collect();
    digits
        .parse()
        .with_context(|| format!("fio's JSON has no number for {name:?}: {digits:?}"))
}

#[cfg(test)]
mod tests {
    use super::{figure, jobs, write_jobs};

    #[test]
    fn finds_the_figures_of_reads() {
        let json = r#"{ "global options" : { "rw" : "read" }, "jobs" : [ { "jobname" : "read",
            "job options" : { "name" : "read" },
            "read" : { "io_bytes" : 1, "bw_bytes" : 1048576, "bw" : 1024, "iops" : 2.5e1 },
            "write" : { "bw_bytes" : 0, "iops" : 0.0 } } ] }"#;
        assert_eq!(
            figure(json, "read", "bw_bytes").unwrap().to_bits(),
            1_048_576_f64.to_bits()
        );
        assert_eq!(
            figure(json, "read", "iops").unwrap().to_bits(),
            25_f64.to_bits()
        );
        assert!(figure("{}", "read", "iops").is_err());
        assert!(figure(json, "write", "no-such-figure").is_err());
    }

    #[test]
    fn every_job_has_a_name_of_its_own() {
        let names: std::collections::HashSet<String> =
            jobs().iter().map(|job| job.name()).collect();
        assert_eq!(names.len(), 8);
        let names: std::collections::HashSet<String> =
            write_jobs().iter().map(|job| job.name()).collect();
        assert_eq!(names.len(), write_jobs().len());
    }
}
