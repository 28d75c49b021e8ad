//! What the process that mounts and the server say to each other, over a socket that is the
//! server's standard input.
//!
//! The server: `R` ready, and why it is read-only if it is, `S` serving, or `E` and a sentence. The mounting process: `F` with the
//! /dev/fuse descriptor. The end of the socket means that the other side is gone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context as _, bail};
use pagefence_fuse_front::fd_passing;
use rustix::fs::FileType;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// Set in the environment of what is started to be a server or its keeper: which of both; and of what starts
/// anew to serve in the foreground.
pub(crate) const VARIABLE: &str = "PAGEFENCE_SERVER";

/// What [`VARIABLE`] says to who serves in the foreground.
pub(crate) const FOREGROUND: &str = "foreground";

/// What a process is started to be, with a socket as its standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The server: see [`Channel`].
    Server,
    /// The server's keeper: see `keeper`.
    Keeper,
}

impl Role {
    /// What [`VARIABLE`] says.
    pub(crate) fn value(self) -> &'static str {
        match self {
            Self::Server => "1",
            Self::Keeper => "keeper",
        }
    }

    /// The socket, if this process was started to be this. Its standard input becomes /dev/null.
    ///
    /// # Errors
    /// No descriptors are left; there is no /dev/null.
    pub(crate) fn socket(self) -> anyhow::Result<Option<OwnedFd>> {
        let asked = std::env::var_os(VARIABLE).is_some_and(|value| value == self.value());
        let input = rustix::stdio::stdin();
        let socket = || {
            rustix::fs::fstat(input)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
        };
        if !asked || !socket() {
            return Ok(None);
        }
        let own = input
            .try_clone_to_owned()
            .context("the socket can't be kept")?;
        rustix::stdio::dup2_stdin(File::open("/dev/null").context("/dev/null can't be opened")?)?;
        Ok(Some(own))
    }
}

/// Longest message.
const MESSAGE_BYTES: usize = 4096;

/// One side of the conversation.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// What the server says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The image is open and sound; why it is read-only, if it is.
    Ready(Option<String>),
    /// The kernel has been answered.
    Serving,
    /// It failed; why.
    Failed(String),
    /// It is gone.
    Nothing,
}

/// A conversation: the side of the mounting process, and what will be the server's input.
pub(crate) fn pair() -> io::Result<(Channel, OwnedFd)> {
    let (here, there) = sockets()?;
    Ok((Channel(here), there))
}

/// Two ends of a conversation.
pub(crate) fn sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

impl Channel {
    /// The server's side, if this process was started as a server. Its standard input becomes
    /// /dev/null.
    pub(crate) fn of_server() -> anyhow::Result<Option<Self>> {
        Ok(Role::Server.socket()?.map(Self))
    }

    /// The server says something.
    pub(crate) fn say(&self, said: &Said) -> io::Result<()> {
        let message = match said {
            Said::Ready(why) => {
                let mut message = format!("R{}", why.as_deref().unwrap_or("")).into_bytes();
                message.truncate(MESSAGE_BYTES);
                message
            }
            Said::Serving => b"S".to_vec(),
            Said::Nothing => return Ok(()),
            Said::Failed(why) => {
                let mut message = format!("E{why}").into_bytes();
                message.truncate(MESSAGE_BYTES);
                message
            }
        };
        fd_passing::send(&self.0, &message, None)
    }

    /// What the server says next.
    pub(crate) fn hear(&self) -> io::Result<Said> {
        let mut buffer = [0; MESSAGE_BYTES];
        let (length, _) = match fd_passing::receive(&self.0, &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (0, None),
            other => other?,
        };
        match buffer[..length].split_first() {
            None => Ok(Said::Nothing),
            Some((b'R', [])) => Ok(Said::Ready(None)),
            Some((b'R', why)) => Ok(Said::Ready(Some(String::from_utf8_lossy(why).into_owned()))),
            Some((b'S', [])) => Ok(Said::Serving),
            Some((b'E', why)) => Ok(Said::Failed(String::from_utf8_lossy(why).into_owned())),
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Hands the descriptor to the server.
    pub(crate) fn give(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        fd_passing::send(&self.0, b"F", Some(fd))
    }

    /// Waits for the descriptor.
    pub(crate) fn take(&self) -> anyhow::Result<OwnedFd> {
        match fd_passing::receive(self.0.as_fd(), &mut [0; 1])? {
            (1, Some(fd)) => Ok(fd),
            _ => bail!("the process that mounts is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let (here, there) = pair().expect("sockets can be made");
        let there = Channel(there);
        for said in [
            Said::Ready(None),
            Said::Ready(Some("it is".into())),
            Said::Failed("why, öh?".into()),
            Said::Serving,
        ] {
            there.say(&said).expect("there is room");
            assert_eq!(here.hear().expect("a message"), said);
        }
        let long = Said::Failed("x".repeat(100_000));
        there.say(&long).expect("a long sentence is cut");
        assert!(matches!(here.hear(), Ok(Said::Failed(why)) if why.len() == MESSAGE_BYTES - 1));
        drop(there);
        assert_eq!(here.hear().expect("the end is no error"), Said::Nothing);
    }

    #[test]
    fn the_descriptor_is_taken_and_its_absence_noticed() {
        let (here, there) = pair().expect("sockets can be made");
        let there = Channel(there);
        let null = File::open("/dev/null").expect("it is there");
        here.give(null.as_fd()).expect("there is room");
        there.take().expect("a descriptor");
        drop(here);
        assert!(there.take().is_err());
    }
}
