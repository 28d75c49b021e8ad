//! Trials of a fuzzer, which is built for it: instrumented, apart from everything else.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pagefence_proofs::{Plan, Row};

use crate::command::{Needs, command, require};
use crate::mounts::workspace_root;

/// The targets, and the most bytes that each is given.
const TARGETS: [(&str, u32); 3] = [
    ("parsers", 1100),
    ("image_bytes", 400),
    ("image_structure", 72),
];

/// What libFuzzer needs of the compiler, on a stable one.
const FLAGS: &str = "--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// How libFuzzer says how many inputs it has tried.
const EXECUTIONS: &str = "stat::number_of_executed_units:";

/// Runs each target for its share of the time.
pub(crate) fn fuzz(plan: &Plan) -> Result<Vec<Row>> {
    let time = plan.time / u32::try_from(TARGETS.len())?;
    let compiler = Needs {
        programs: &["c++"],
        fuse: false,
    };
    let programs = require(&compiler).map(|()| build());
    let mut rows = Vec::new();
    for (target, bytes_max) in TARGETS {
        let mut row = Row::new(format!("fuzzer, {target}"), plan.seed);
        match &programs {
            Ok(Ok(programs)) => run(&programs.join(target), bytes_max, time, &mut row)?,
            Ok(Err(error)) => row.failures.push(format!("{error:#}")),
            Err(lack) => row.skipped.push(format!("{lack:#}")),
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Builds them; where they are.
fn build() -> Result<PathBuf> {
    let root = workspace_root()?;
    let version = command("rustc", ["-vV"])
        .output()
        .context("cannot run rustc")?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not tell its host")?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let directory = root.join("target/fuzz");
    // With a target named, what runs while building is not instrumented.
    let output = command(
        cargo,
        [
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--target",
            host,
        ],
    )
    .arg("--manifest-path")
    .arg(root.join("fuzz/Cargo.toml"))
    .arg("--target-dir")
    .arg(&directory)
    .env("RUSTFLAGS", FLAGS)
    .stdout(Stdio::null())
    .output()
    .context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| line.starts_with("error"));
    anyhow::ensure!(
        output.status.success(),
        "the targets can't be built: {}",
        first.unwrap_or("no reason is given")
    );
    Ok(directory.join(host).join("release"))
}

fn run(program: &std::path::Path, bytes_max: u32, time: Duration, row: &mut Row) -> Result<()> {
    let mut found = program.as_os_str().to_owned();
    found.push("-found-");
    let found = found.to_string_lossy().into_owned();
    let output = command(
        program,
        [
            format!("-max_total_time={}", time.as_secs().max(1)),
            format!("-seed={}", row.seed.clamp(1, u32::MAX.into())),
            format!("-max_len={bytes_max}"),
            format!("-artifact_prefix={found}"),
            "-len_control=0".to_owned(),
            "-timeout=30".to_owned(),
            "-rss_limit_mb=1024".to_owned(),
            "-print_final_stats=1".to_owned(),
        ],
    )
    .output()
    .context("the fuzzer can't be run")?;
    judge(
        row,
        output.status.success(),
        &String::from_utf8_lossy(&output.stderr),
    );
    Ok(())
}

/// Counts what a fuzzer tried, and tells what it found.
fn judge(row: &mut Row, is_success: bool, said: &str) {
    let executions = said.lines().find_map(|line| line.strip_prefix(EXECUTIONS));
    let executions = executions
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0);
    row.count("executions", executions);
    let is_telling = |line: &&str| {
        ["panicked at", "ERROR: libFuzzer", "Test unit written to"]
            .iter()
            .any(|part| line.contains(part))
    };
    let lines: Vec<&str> = said.lines().collect();
    // What a panic says is in the line behind it.
    let telling = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| is_telling(line))
        .flat_map(|(at, line)| {
            let behind = lines.get(at + 1).filter(|_| line.contains("panicked at"));
            std::iter::once(*line).chain(behind.copied())
        });
    if !is_success {
        row.failures.push(telling.collect::<Vec<_>>().join(" / "));
    } else if executions == 0 {
        row.failures.push("nothing was tried".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_fuzzer_found_is_told() {
        let mut row = Row::new("fuzzer", 1);
        judge(
            &mut row,
            true,
            "Done 5 runs\nstat::number_of_executed_units: 5\n",
        );
        assert_eq!(
            (&row.counts[..], row.failures.len()),
            (&[(5, "executions")][..], 0)
        );
        judge(
            &mut row,
            false,
            "thread '<unnamed>' panicked at a.rs:1:2:\nwrong\n\
             ==1== ERROR: libFuzzer: deadly signal\nMS: 1\n",
        );
        let told = "thread '<unnamed>' panicked at a.rs:1:2: / wrong / \
            ==1== ERROR: libFuzzer: deadly signal";
        assert_eq!(row.failures, [told]);
        judge(&mut row, true, "");
        assert_eq!(row.failures.len(), 2);
    }
}
