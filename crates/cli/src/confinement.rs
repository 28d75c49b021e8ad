//! What a server, or a command, gives up before it reads a byte of the image: see `docs/CONTAINMENT.md`.
//!
//! - Owns: the order of it. Capabilities first (dropping them from the bounding set needs one), then
//!   no_new_privs, then [`files`] (landlock), then [`calls`] (seccomp, which ends the right to the calls
//!   that the others need).
//! - Stays outside: what needs those rights later, mounting and unmounting, which the `keeper` does.
//! - Lifecycle: made before the image is opened, entered once it is open and while the process has one
//!   thread, in force until it ends.
//!
//! Invariant: a confined process has no thread that is not. Capabilities and landlock hold for the
//! calling thread and for those that it starts, so a process with others is refused.

mod calls;
mod files;
#[cfg(test)]
mod tests;

use anyhow::{Context as _, bail};
use pagefence_fuse_front::check::{CHECK_BEGIN, CHECK_NEWS};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The end of a process's rights, for who opens a file system.
#[derive(Debug)]
pub struct Confinement {
    state: State,
    user: User,
}

/// Who is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// The server of a mount: it may open /dev/fuse.
    Server,
    /// A command that works on an image without a mount.
    Command,
    /// A command that asks the server of a mount, of which it has a directory open.
    Client,
}

impl User {
    /// Ioctls that it calls besides those of every process, on what it has open.
    fn ioctls(self) -> &'static [u32] {
        match self {
            Self::Server | Self::Command => &[],
            Self::Client => &[CHECK_BEGIN, CHECK_NEWS],
        }
    }
}

/// What commands look for in the environment: with [`UNWANTED`], they keep their rights.
pub(crate) const VARIABLE: &str = "PAGEFENCE_CONFINED";
const UNWANTED: &str = "no";

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Asked for, not yet in force.
    Ahead,
    /// The user wants none: `-o unconfined`.
    Unwanted,
    /// Entered, as far as it was wanted.
    Entered,
}

/// What a mechanism came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is in force: what it denies.
    InForce(String),
    /// This kernel has it not, or not in full: what is missing.
    Missing(String),
}

impl Confinement {
    /// What a server is to enter, unless the user wants none.
    pub(crate) fn of_server(wanted: bool) -> Self {
        Self::new(User::Server, wanted)
    }

    /// What a command that reads an image is to enter, unless the environment says otherwise.
    pub(crate) fn of_command() -> Self {
        Self::unless_unwanted(User::Command)
    }

    /// What a command that asks a server is to enter, unless the environment says otherwise.
    pub(crate) fn of_client() -> Self {
        Self::unless_unwanted(User::Client)
    }

    fn unless_unwanted(user: User) -> Self {
        let wanted = std::env::var_os(VARIABLE).is_none_or(|value| value != UNWANTED);
        Self::new(user, wanted)
    }

    fn new(user: User, wanted: bool) -> Self {
        // A sanitizer writes files as a process ends, and starts what names the functions in them.
        let state = if wanted && !cfg!(sanitized) {
            State::Ahead
        } else {
            State::Unwanted
        };
        Self { state, user }
    }

    /// From now on this process can do nothing but work on what it has open: call it as soon as the image is
    /// open, before its first byte is interpreted, and before a thread is started. It is entered for a server
    /// that does not call it, once the file system is open. The second call has no effect.
    ///
    /// What this kernel doesn't have is left out, and logged.
    ///
    /// # Errors
    /// The process has other threads already, or the kernel refuses what it has.
    pub fn enter(&mut self) -> anyhow::Result<()> {
        if self.state == State::Entered {
            return Ok(());
        }
        // It keeps no directory busy; to change it later is one of the rights that go.
        rustix::process::chdir("/").context("the directory / can't be gone to")?;
        if self.state == State::Unwanted {
            tracing::info!("not confined, as asked for");
        } else {
            refuse_threads()
                .and_then(|()| confine(self.user))
                .with_context(|| match self.user {
                    User::Server => {
                        "the server can't confine itself; `-o unconfined` mounts without that".to_owned()
                    }
                    User::Command | User::Client => format!(
                        "the command can't confine itself; {VARIABLE}={UNWANTED} in the environment runs it \
                         without that"
                    ),
                })?;
        }
        self.state = State::Entered;
        Ok(())
    }
}

/// Gives up what `user` doesn't need, for good: this thread, and what it starts from now on.
fn confine(user: User) -> anyhow::Result<()> {
    // A library asks for it once, by a call that is not left later.
    let _known_from_now_on = rustix::param::page_size();
    drop_capabilities().context("capabilities can't be dropped")?;
    rustix::thread::set_no_new_privs(true).context("no_new_privs can't be set")?;
    tracing::debug!("confined: no capabilities, and no program that has any can be run");
    for (name, outcome) in [
        ("landlock", files::restrict(user)?),
        ("seccomp", calls::restrict(user)?),
    ] {
        match outcome {
            Outcome::InForce(denied) => tracing::debug!("confined by {name}: {denied}"),
            Outcome::Missing(what) => tracing::info!("not fully confined by {name}: {what}"),
        }
    }
    Ok(())
}

fn refuse_threads() -> anyhow::Result<()> {
    // Who can't tell (no /proc) finds out below: seccomp is asked to hold for all threads.
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return Ok(());
    };
    match threads.count() {
        1 => Ok(()),
        count => bail!("it has {count} threads already"),
    }
}

/// No capability, and none to be had again by running a program.
fn drop_capabilities() -> rustix::io::Result<()> {
    let held = rustix::thread::capabilities(None)?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // One that this kernel doesn't know.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none)
}
