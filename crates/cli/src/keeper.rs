//! The keeper of a mount: a small process beside the server, which mounts and unmounts for it.
//!
//! The server gives up the right to do either, and to run the helper that does it for users other than
//! root, before it reads the image. What it needs later it asks of the keeper, over a socket that is the
//! keeper's standard input: `M` to mount (`1` after it: read-only; answered by `D` with the /dev/fuse
//! descriptor), `W` to remember what the mounting process has mounted, `T` to tune it, `U` to unmount.
//! `O` says that it is done, `E` and a sentence that it is not. Where to mount and how, the keeper knows
//! from its command line, which is the server's: a server that was taken over can ask for its own mount
//! to come, once, and to go, and for nothing else.
//!
//! It ends with the server, whose end of the socket it waits for.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Stdio;

use anyhow::{Context as _, anyhow, bail};
use pagefence_fuse_front::{UnmountError, fd_passing, tune, unmount};
use pagefence_lock_order::primitives::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::handoff::{self, Role};
use crate::mount::{self, Plan};
use crate::mountinfo;

/// Longest message.
const MESSAGE_BYTES: usize = 1024;

/// The keeper, for the server.
#[derive(Debug)]
pub(crate) struct Keeper(Mutex<OwnedFd>);

impl Keeper {
    /// Starts it: the same program with the same arguments, in a session of its own.
    ///
    /// # Errors
    /// No process or socket can be had.
    pub(crate) fn start(argv: &[OsString]) -> anyhow::Result<Self> {
        let (here, there) = handoff::sockets().context("a socket to the keeper can't be made")?;
        mount::same_program(argv)
            .env(handoff::VARIABLE, Role::Keeper.value())
            .stdin(Stdio::from(there))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("the keeper of the mount can't be started")?;
        let keeper = Self(Mutex::new(here));
        // It has checked the mount point, and will not end with a signal that is for the server.
        keeper.ask(b"H")?;
        Ok(keeper)
    }

    /// Mounts, and returns the connection.
    ///
    /// # Errors
    /// What [`Plan::mount`] says.
    pub(crate) fn mount(&self, read_only: bool) -> anyhow::Result<OwnedFd> {
        self.ask(if read_only { b"M1" } else { b"M0" })?
            .context("the keeper of the mount handed over no descriptor")
    }

    /// What is mounted now is what is to be unmounted, and nothing that comes upon it.
    ///
    /// # Errors
    /// The table of mounts can't be read.
    pub(crate) fn watch(&self) -> anyhow::Result<()> {
        self.ask(b"W").map(drop)
    }

    /// As [`tune`], which asks the mount: it must be served meanwhile. Returns at once.
    ///
    /// # Errors
    /// The keeper is gone.
    pub(crate) fn tune(&self) -> anyhow::Result<()> {
        self.ask(b"T").map(drop)
    }

    /// Unmounts: what is in use disappears, and ends with its last user.
    ///
    /// # Errors
    /// It can't be done, or is not on top at the mount point any more.
    pub(crate) fn unmount(&self) -> anyhow::Result<()> {
        self.ask(b"U").map(drop)
    }

    fn ask(&self, question: &[u8]) -> anyhow::Result<Option<OwnedFd>> {
        let socket = self.0.lock();
        let mut buffer = [0; MESSAGE_BYTES];
        let (length, fd) = fd_passing::send(&*socket, question, None)
            .and_then(|()| fd_passing::receive(&*socket, &mut buffer))
            .context("the keeper of the mount is gone")?;
        match buffer[..length].split_first() {
            Some((b'O', [])) => Ok(None),
            Some((b'D', [])) => Ok(fd),
            Some((b'E', why)) => Err(anyhow!("{}", String::from_utf8_lossy(why))),
            None => bail!("the keeper of the mount is gone"),
            Some(_) => bail!("the keeper of the mount can't be understood"),
        }
    }
}

/// What the keeper knows.
struct Kept {
    plan: Plan,
    /// `major:minor` of what is mounted, once it is.
    device: Option<String>,
    /// It was tuned: once is enough, and each time takes a thread for as long as the server likes.
    is_tuned: bool,
}

/// The keeper itself: answers until the server is gone.
pub(crate) fn run(socket: &OwnedFd, plan: Plan) -> anyhow::Result<()> {
    // Errors: it leads a session already. Then it needs no new one.
    let _leads = rustix::process::setsid();
    let _unnamed = rustix::thread::set_name(c"pagefence-keeper");
    // It keeps no directory busy.
    rustix::process::chdir("/")?;
    // They are for the server, which then asks.
    let caught = [SIGHUP, SIGINT, SIGTERM].map(|signal| {
        let seen = std::sync::Arc::default();
        signal_hook::flag::register(signal, seen)
    });
    for caught in caught {
        caught.context("signals can't be caught")?;
    }
    let mut kept = Kept {
        plan,
        device: None,
        is_tuned: false,
    };
    let mut buffer = [0; MESSAGE_BYTES];
    loop {
        let (length, _) = fd_passing::receive(socket, &mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let answered = match kept.answer(&buffer[..length]) {
            Ok(Some(device)) => fd_passing::send(socket, b"D", Some(device.as_fd())),
            Ok(None) => fd_passing::send(socket, b"O", None),
            Err(error) => {
                let mut answer = format!("E{error:#}").into_bytes();
                answer.truncate(MESSAGE_BYTES);
                fd_passing::send(socket, &answer, None)
            }
        };
        if answered.is_err() {
            return Ok(());
        }
    }
}

impl Kept {
    fn answer(&mut self, question: &[u8]) -> anyhow::Result<Option<OwnedFd>> {
        match question {
            b"H" => Ok(None),
            b"M0" | b"M1" if self.device.is_none() => {
                let device = self.plan.mount(question == b"M1")?;
                if let Err(error) = self.remember() {
                    let _unmounted = unmount(&self.plan.mountpoint, true);
                    return Err(error);
                }
                Ok(Some(device))
            }
            b"W" if self.device.is_none() => self.remember().map(|()| None),
            b"T" if !self.is_tuned => {
                self.is_tuned = true;
                let mountpoint = self.plan.mountpoint.clone();
                // Not here: a server that never answers must yet be able to ask for its end.
                pagefence_lock_order::primitives::thread::spawn("pagefence-tune", move || {
                    tune(&mountpoint);
                })?;
                Ok(None)
            }
            b"U" => self.unmount().map(|()| None),
            _ => bail!("that was not to be asked"),
        }
    }

    fn remember(&mut self) -> anyhow::Result<()> {
        let on_top = mountinfo::on_top(&self.plan.mountpoint)?;
        self.device = on_top.map(|mount| mount.device);
        Ok(())
    }

    fn unmount(&self) -> anyhow::Result<()> {
        let mountpoint = &self.plan.mountpoint;
        // Not what someone else has mounted there since.
        let on_top = mountinfo::on_top(mountpoint)?.map(|mount| mount.device);
        if on_top.is_none() || on_top != self.device {
            bail!("it is not on top at the mount point any more");
        }
        match unmount(mountpoint, false) {
            Err(UnmountError::Busy) => Ok(unmount(mountpoint, true)?),
            done => Ok(done?),
        }
    }
}
