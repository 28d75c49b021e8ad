//! Processes of the experiment, and the sockets between them: messages of two words, and descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long anything may take that is not the subject of a measurement.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A message: what it is, and a number.
pub(crate) type Words = [u64; 2];

/// One end of a socket that keeps messages apart.
#[derive(Debug)]
pub(crate) struct Wire(OwnedFd);

impl Wire {
    /// Two ends.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(one), Self(other)))
    }

    /// The end that the process was started with.
    pub(crate) fn inherited() -> io::Result<Self> {
        Ok(Self(io::stdin().as_fd().try_clone_to_owned()?))
    }

    /// Sends `words`.
    pub(crate) fn send(&self, words: Words) -> io::Result<()> {
        self.send_with(words, &[])
    }

    /// Sends `words`, and `fds` with them.
    pub(crate) fn send_with(&self, words: Words, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = words.map(u64::to_ne_bytes);
        let parts = [IoSlice::new(bytes.as_flattened())];
        retry_on_intr(|| sendmsg(&self.0, &parts, &mut ancillary, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// The next message, waited for without end; `None` if the other end is closed.
    pub(crate) fn receive(&self) -> io::Result<Option<Words>> {
        Ok(self.receive_with()?.map(|(words, _)| words))
    }

    /// The next message and what descriptors came with it.
    pub(crate) fn receive_with(&self) -> io::Result<Option<(Words, Vec<OwnedFd>)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; size_of::<Words>()];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received =
            retry_on_intr(|| recvmsg(&self.0, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC));
        let count = match received {
            Ok(received) => received.bytes,
            Err(Errno::CONNRESET) => 0,
            Err(errno) => return Err(errno.into()),
        };
        if count == 0 {
            return Ok(None);
        }
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let (what, number) = bytes.split_at(8);
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        Ok(Some(([word(what), word(number)], fds)))
    }

    /// Whether there is a message, or the other end is closed, before `limit` is over.
    pub(crate) fn is_ready_within(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        Ok(retry_on_intr(|| poll(&mut polled, Some(&limit)))? > 0)
    }

    /// The next message, which must come soon.
    pub(crate) fn expect(&self) -> io::Result<Words> {
        Ok(self.expect_with()?.0)
    }

    /// The next message and its descriptors, which must come soon.
    pub(crate) fn expect_with(&self) -> io::Result<(Words, Vec<OwnedFd>)> {
        if !self.is_ready_within(PATIENCE)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.receive_with()?
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl From<OwnedFd> for Wire {
    /// An end that was handed over.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A process of the experiment; killed when dropped.
#[derive(Debug)]
pub(crate) struct Actor {
    child: Child,
}

impl Actor {
    /// This program in another role, with `wire` as its standard input.
    pub(crate) fn role(arguments: &[&str], wire: Wire) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments);
        Self::start(command, wire)
    }

    /// `command`, with `wire` as its standard input.
    pub(crate) fn start(mut command: Command, wire: Wire) -> io::Result<Self> {
        command.stdin(Stdio::from(wire.0));
        let child = command.spawn()?;
        Ok(Self { child })
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL; does not wait.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }

    /// How it ended, if it does before `limit` is over.
    pub(crate) fn ended_within(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(Some(status));
        }
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        let process = pidfd_open(id.expect("a process has a number"), PidfdFlags::empty())?;
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        retry_on_intr(|| poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)))?;
        self.child.try_wait()
    }

    /// How it ended, waited for without end.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.ended_within(PATIENCE));
        if !matches!(ended, Ok(Some(_))) {
            eprintln!("process {} can't be ended: {ended:?}", self.id());
        }
    }
}
