//! Chores that map files of mounts, in a process of their own.
//!
//! Who loads from a mapped page that can't be read is killed (SIGBUS), and what it mounted stays. So
//! the process that was started only waits for another, which does the chore; should that one be
//! killed, by whatever signal, its mounts and loop devices are taken down, and the chore has failed.
//! They are known by its scratch directories, which have its number in their names.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::command::run as run_program;
use crate::scratch;

/// Set for the process that does the chore.
const GUARDED: &str = "PAGEFENCE_XTASK_GUARDED";

/// In the process that was started: has another do the chore, and says how it ended. `None` in that
/// other one.
///
/// # Errors
/// It can't be started.
pub(crate) fn watch() -> Result<Option<ExitCode>> {
    if std::env::var_os(GUARDED).is_some() {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        return Ok(None);
    }
    let mut worker = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(GUARDED, "1")
        .spawn()
        .context("cannot start the process that does the chore")?;
    let mark = scratch::prefix(worker.id());
    let status = worker.wait()?;
    if let Some(code) = status.code() {
        return Ok(Some(ExitCode::from(u8::try_from(code).unwrap_or(2))));
    }
    let signal = status.signal().unwrap_or_default();
    let why = if signal == Signal::BUS.as_raw() {
        ": a mapped page of a mount could not be read"
    } else {
        ""
    };
    eprintln!("error: the chore was killed by signal {signal}{why}");
    take_down(&mark);
    eprintln!("its files are kept in directories whose names begin with {mark}");
    Ok(Some(ExitCode::from(2)))
}

/// Takes down what is mounted, and what loop devices have of images, below directories whose names
/// begin with `mark`.
fn take_down(mark: &str) {
    let warn = |error: anyhow::Error| eprintln!("warning: {error:#}");
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    for mount in mounts_below(&mounts, mark) {
        eprintln!("unmounting {}", mount.display());
        let done = run_program("umount", [Path::new("-l"), &mount]);
        done.map(drop).unwrap_or_else(warn);
    }
    let devices = run_program(
        "losetup",
        ["--list", "--noheadings", "--output", "NAME,BACK-FILE"],
    );
    for device in devices_below(&devices.unwrap_or_default(), mark) {
        let done = run_program("losetup", ["--detach", device]);
        done.map(drop).unwrap_or_else(warn);
    }
}

/// Whether a directory on the way has a name that begins so.
fn is_below(path: &[u8], mark: &str) -> bool {
    let mut names = path.split(|&byte| byte == b'/');
    names.any(|name| name.starts_with(mark.as_bytes()))
}

/// Where something is mounted, those that were mounted last first. Source: proc(5), mountinfo.
fn mounts_below(mountinfo: &[u8], mark: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .filter(|path| is_below(path, mark))
        .map(unescape)
        .collect();
    found.reverse();
    found
}

/// A path of mountinfo, which has spaces and the like as octal numbers.
fn unescape(path: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), path);
    while let Some((&byte, behind)) = rest.split_first() {
        let number = behind.get(..3).filter(|_| byte == b'\\');
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok());
        match number.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &behind[3..];
            }
            None => {
                bytes.push(byte);
                rest = behind;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// The devices of images there, of what losetup lists.
fn devices_below<'a>(list: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
    list.lines()
        .filter(move |line| {
            let image = line.split_once(char::is_whitespace);
            image.is_some_and(|(_, image)| is_below(image.trim().as_bytes(), mark))
        })
        .filter_map(|line| line.split_whitespace().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = b"\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /scratch/pagefence-xtask-12.Ab/mnt rw - fuse nothing rw
31 22 0:41 / /scratch/pagefence-xtask-123.Ab/mnt rw - fuse nothing rw
32 30 7:0 / /scratch/pagefence-xtask-12.Ab/mnt/a\\040b rw - ext4 /dev/loop0 rw
";

    #[test]
    fn only_its_own_mounts_are_taken_down_the_last_first() {
        let found = mounts_below(MOUNTINFO, &scratch::prefix(12));
        let expected =
            ["mnt/a b", "mnt"].map(|name| format!("/scratch/pagefence-xtask-12.Ab/{name}"));
        assert_eq!(found, expected.map(PathBuf::from));
        assert!(mounts_below(MOUNTINFO, &scratch::prefix(1)).is_empty());
    }

    #[test]
    fn only_its_own_loop_devices_are_detached() {
        let list = "/dev/loop0 /scratch/pagefence-xtask-12.Ab/one.img\n\
                    /dev/loop1 /scratch/pagefence-xtask-123.Ab/one.img\n/dev/loop2\n";
        let found: Vec<_> = devices_below(list, "pagefence-xtask-12.").collect();
        assert_eq!(found, ["/dev/loop0"]);
    }
}
