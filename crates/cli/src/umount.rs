//! `pagefence umount`: takes a mount down, and waits until its server is gone.
//!
//! The kernel's umount returns at once, with the server perhaps still writing; so the server is
//! asked who it is first, and its end waited for.
//!
//! Who looks at a process that ends (ps, say) keeps its memory maps for a moment longer, and with
//! them the files of the mount that were mapped: after all programs have ended it may be in use
//! still. So that is waited for, a little while.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use pagefence_fuse_front::{ServerId, UnmountError, unmount};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::mountinfo::{self, Mount, TYPE};

/// After how many seconds of waiting the user is told what is waited for.
const PATIENCE_SECONDS: i64 = 10;

/// How long it is tried again while the mount is in use, and how often.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Unmounts what is on top at `given`.
pub(crate) fn run(given: &Path) -> anyhow::Result<()> {
    let shown = given.display();
    let path =
        mountinfo::resolve(given).with_context(|| format!("there is no mount at {shown}"))?;
    let Some(mounted) = mountinfo::on_top(&path)? else {
        bail!("nothing is mounted at {shown}: `findmnt -t {TYPE}` lists what can be unmounted");
    };
    // With the option subtype= the type says something else, but the server is ours.
    let ours =
        mounted.kind == TYPE || (mounted.kind.starts_with("fuse.") && ServerId::ask(&path).is_ok());
    if !ours {
        bail!(
            "what is mounted at {shown} is of type {}, not {TYPE}: use `umount {shown}`",
            mounted.kind
        );
    }
    let server = match server_of(&path) {
        Ok(server) => server,
        // The server died: nothing is left to wait for, and nothing to keep from going.
        Err(error) if mountinfo::is_dead(&error) => {
            return unmount(&path, true).map_err(|error| failed(given, &error));
        }
        Err(error) => {
            eprintln!(
                "pagefence: the server of {shown} can't be asked who it is, so its end is not waited for: {error}"
            );
            None
        }
    };
    unmount_unless_busy_for_long(&path, &mounted).map_err(|error| failed(given, &error))?;
    let elsewhere = mountinfo::mounts()?
        .into_iter()
        .find(|other| other.device == mounted.device);
    if let Some(other) = elsewhere {
        let other = other.path.display();
        eprintln!(
            "pagefence: {shown} is unmounted; its server goes on, as it is also mounted at {other}"
        );
        return Ok(());
    }
    match server {
        Some((id, process)) => wait(id, &process),
        None => Ok(()),
    }
}

/// Unmounts `mounted`, which is on top at `path`.
fn unmount_unless_busy_for_long(path: &Path, mounted: &Mount) -> Result<(), UnmountError> {
    let begin = Instant::now();
    // Not what someone else has mounted there since.
    let is_there = || mountinfo::on_top(path).is_ok_and(|on_top| on_top.as_ref() == Some(mounted));
    loop {
        match unmount(path, false) {
            Err(UnmountError::Busy) if begin.elapsed() < BUSY_PATIENCE => sleep(BUSY_PAUSE),
            done => return done,
        }
        if !is_there() {
            return Err(UnmountError::Busy);
        }
    }
}

fn failed(given: &Path, error: &UnmountError) -> anyhow::Error {
    let shown = given.display();
    match error {
        UnmountError::Busy => anyhow!(
            "{shown} is in use: close what has files open there (`fuser -vm {shown}` shows it), then try again"
        ),
        other => anyhow!("{shown} can't be unmounted: {other}"),
    }
}

/// The server of a mount, held so that its number can't pass to another process; `None` if it
/// can't be seen from here.
///
/// It is asked twice: that it answers after it has been opened proves that what was opened is it.
fn server_of(path: &Path) -> std::io::Result<Option<(ServerId, OwnedFd)>> {
    let id = ServerId::ask(path)?;
    if id.pid_namespace != ServerId::own().pid_namespace {
        return Ok(None);
    }
    let pid = i32::try_from(id.pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(None) };
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    Ok((ServerId::ask(path)? == id).then_some((id, process)))
}

/// Waits until the server is gone.
fn wait(id: ServerId, process: &OwnedFd) -> anyhow::Result<()> {
    let patience = Timespec {
        tv_sec: PATIENCE_SECONDS,
        tv_nsec: 0,
    };
    let mut timeout = Some(&patience);
    loop {
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout) {
            Ok(0) => {
                timeout = None;
                eprintln!(
                    "pagefence: unmounted; waiting for the server, process {}, to finish (another mount namespace may still use it)",
                    id.pid
                );
            }
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => bail!("the server can't be waited for: {error}"),
        }
    }
}
