//! Checks by the program itself: of a mount, again and again beside writers, or of an image.

use std::path::Path;

use anyhow::{Context, Result, bail};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread::{self, JoinHandle};

use crate::command::command;
use crate::mounts::Server;

/// The status of a check that has found something.
const FOUND: i32 = 4;

/// How a check ended.
enum Outcome {
    Sound,
    Found(String),
    /// It could not be made, for this reason.
    Failed(String),
}

fn outcome(binary: &Path, place: &Path) -> Result<Outcome> {
    let output = command(binary, [Path::new("check"), place])
        .output()
        .context("cannot run pagefence check")?;
    Ok(match output.status.code() {
        Some(0) => Outcome::Sound,
        Some(FOUND) => Outcome::Found(String::from_utf8_lossy(&output.stdout).into_owned()),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            Outcome::Failed(format!("{}: {}", output.status, said.trim()))
        }
    })
}

fn binary_of(server: &Server) -> Result<&Path> {
    match server {
        Server::Pagefence(binary) => Ok(binary),
        other => bail!("{other:?} has no check"),
    }
}

/// Makes sure that a check of an image, or of a mount, finds nothing.
pub(super) fn check(server: &Server, place: &Path) -> Result<()> {
    match outcome(binary_of(server)?, place)? {
        Outcome::Sound => Ok(()),
        Outcome::Found(what) => bail!("a check finds: {what}"),
        Outcome::Failed(why) => bail!("a check fails: {why}"),
    }
}

/// Checks of a mount, one after the other.
pub(super) struct Checks {
    may_fail: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Checks {
    /// The first begins at once.
    pub(super) fn begin(server: &Server, mountpoint: &Path) -> Result<Self> {
        let (binary, mountpoint) = (binary_of(server)?.to_owned(), mountpoint.to_owned());
        let may_fail = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&may_fail);
        let thread = thread::spawn("checks", move || {
            let mut checks = 0;
            loop {
                match outcome(&binary, &mountpoint)? {
                    Outcome::Sound => checks += 1,
                    Outcome::Found(what) => bail!("a check of the mount finds: {what}"),
                    Outcome::Failed(_) if is_over.load(Ordering::SeqCst) => {}
                    Outcome::Failed(why) => bail!("a check of the mount fails: {why}"),
                }
                if is_over.load(Ordering::SeqCst) {
                    return Ok(checks);
                }
            }
        })?;
        Ok(Self { may_fail, thread })
    }

    /// The server is about to end; the check that goes on is the last.
    pub(super) fn may_fail(&self) {
        self.may_fail.store(true, Ordering::SeqCst);
    }

    /// How many came to their end and found nothing.
    pub(super) fn end(self) -> Result<u64> {
        match self.thread.join() {
            Ok(checks) => checks,
            Err(_) => bail!("who checks has panicked"),
        }
    }
}
