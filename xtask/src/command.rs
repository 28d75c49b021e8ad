//! Running external programs: arguments as a list, the C locale, errors that quote stderr.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Where administration tools live, even for a user whose PATH leaves them out.
const ADMINISTRATION_PATHS: &str = "/usr/local/sbin:/usr/sbin:/sbin";

fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:{ADMINISTRATION_PATHS}")
}

/// A command with the C locale, no stdin, and administration tools in reach.
pub(crate) fn command<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LC_ALL", "C")
        .env("PATH", search_path())
        .stdin(Stdio::null());
    command
}

/// Runs to the end, whatever the exit status.
pub(crate) fn output<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Result<Output> {
    command(program, arguments)
        .output()
        .with_context(|| format!("cannot run {program}"))
}

/// Runs to the end and returns stdout; a failure is an error that quotes the command and stderr.
pub(crate) fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Result<String> {
    let mut command = command(program, arguments);
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}{}",
            describe(&command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The program and its arguments, without the environment.
fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Where a program is found, if it is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Debian's package for a program that the chores call.
fn package_of(program: &str) -> &'static str {
    match program {
        "mke2fs" | "e2fsck" | "debugfs" | "tune2fs" | "dumpe2fs" | "chattr" | "lsattr" => {
            "e2fsprogs"
        }
        "fusermount3" => "fuse3",
        "fuse2fs" => "fuse2fs",
        "fio" => "fio",
        "find" => "findutils",
        _ => "util-linux",
    }
}

/// What a chore cannot do without.
pub(crate) struct Needs<'a> {
    /// Programs.
    pub(crate) programs: &'a [&'a str],
    /// Whether it mounts FUSE.
    pub(crate) fuse: bool,
}

/// Refuses, in one sentence that says what to do, if root, a loop device, /dev/fuse or a program
/// is missing.
pub(crate) fn require(needs: &Needs<'_>) -> Result<()> {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        missing.push("root (it mounts images through loop devices): run it with sudo".to_owned());
    }
    if !std::path::Path::new("/dev/loop-control").exists() {
        missing.push("loop devices: /dev/loop-control is not there (modprobe loop)".to_owned());
    }
    if needs.fuse && !std::path::Path::new("/dev/fuse").exists() {
        missing.push("FUSE: /dev/fuse is not there (modprobe fuse)".to_owned());
    }
    for program in needs.programs {
        if find(program).is_none() {
            missing.push(format!(
                "the program {program}: apt-get install {}",
                package_of(program)
            ));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this chore needs {}", missing.join("; and "));
}
