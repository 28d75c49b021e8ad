//! Descriptors handed from process to process over a socket (SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Sends `message`, and `fd` with it.
///
/// # Errors
/// EPIPE if the other side is gone; whatever sendmsg says.
pub fn send(socket: impl AsFd, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send_by(socket.as_fd(), message, fd, SendFlags::empty())
}

/// As [`send`], without waiting: false if there is no room for the message.
///
/// # Errors
/// As [`send`].
pub fn try_send(socket: impl AsFd, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<bool> {
    match send_by(socket.as_fd(), message, fd, SendFlags::DONTWAIT) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        sent => sent.map(|()| true),
    }
}

/// Receives a message of at most `buffer.len()` bytes; its length (0 if the other side is gone)
/// and the descriptor that came with it, closed on exec.
///
/// # Errors
/// `InvalidData` for a packet that is longer; whatever recvmsg says.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    receive_by(socket.as_fd(), buffer, RecvFlags::empty())
}

/// As [`receive`], without waiting: `None` if no message is there.
///
/// # Errors
/// As [`receive`].
pub fn try_receive(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<Option<(usize, Option<OwnedFd>)>> {
    match receive_by(socket.as_fd(), buffer, RecvFlags::DONTWAIT) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        received => received.map(Some),
    }
}

/// Receives a message of `buffer.len()` bytes at most, if `waits` after waiting for one; its length, 0 if the
/// other side is gone; `None` if none is there. A descriptor that came with it is given up by the kernel: to close
/// one that a stranger made may wait for him without end (a file of his FUSE mount).
///
/// # Errors
/// `InvalidData` for a packet that is longer; whatever recvmsg says.
pub fn receive_bytes(
    socket: impl AsFd,
    buffer: &mut [u8],
    waits: bool,
) -> io::Result<Option<usize>> {
    let flags = if waits {
        RecvFlags::empty()
    } else {
        RecvFlags::DONTWAIT
    };
    let mut parts = [IoSliceMut::new(buffer)];
    let received = rustix::io::retry_on_intr(|| {
        let mut nothing = RecvAncillaryBuffer::default();
        rustix::net::recvmsg(socket.as_fd(), &mut parts, &mut nothing, flags)
    });
    match received {
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno.into()),
        Ok(received) if received.flags.contains(ReturnFlags::TRUNC) => {
            Err(io::ErrorKind::InvalidData.into())
        }
        Ok(received) => Ok(Some(received.bytes)),
    }
}

fn send_by(
    socket: BorrowedFd<'_>,
    message: &[u8],
    fd: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> io::Result<()> {
    let fds = fd.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let (parts, flags) = ([IoSlice::new(message)], flags | SendFlags::NOSIGNAL);
    let sent =
        rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, &parts, &mut ancillary, flags))?;
    if sent == message.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

fn receive_by(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut parts, &mut ancillary, flags)
    })?;
    // Those that nobody asked for are closed.
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            descriptor = fds.next();
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((received.bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_message() {
        let (here, there) = UnixStream::pair().expect("sockets can be made");
        let (mut reader, writer) = UnixStream::pair().expect("sockets can be made");
        send(&here, b"F", Some(writer.as_fd())).expect("there is room for a message");
        drop(writer);
        let mut buffer = [0; 8];
        let (length, fd) = receive(&there, &mut buffer).expect("a message is there");
        assert_eq!(&buffer[..length], b"F");
        let mut writer = UnixStream::from(fd.expect("a descriptor came with it"));
        writer.write_all(b"through").expect("the reader is there");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("the writer wrote");
        assert_eq!(text, "through");
    }

    #[test]
    fn a_descriptor_that_nobody_wants_does_not_arrive() {
        let (here, there) = UnixStream::pair().expect("sockets can be made");
        let (mut reader, writer) = UnixStream::pair().expect("sockets can be made");
        let mut buffer = [0; 8];
        assert!(matches!(
            receive_bytes(&there, &mut buffer, false),
            Ok(None)
        ));
        send(&here, b"F", Some(writer.as_fd())).expect("there is room for a message");
        drop(writer);
        let length = receive_bytes(&there, &mut buffer, true).expect("a message is there");
        assert_eq!(length, Some(1));
        // The last one is gone.
        assert_eq!(reader.read(&mut buffer).expect("an end"), 0);
        drop(here);
        let length = receive_bytes(&there, &mut buffer, true).expect("the end is no error");
        assert_eq!(length, Some(0));
    }

    #[test]
    fn the_end_of_the_other_side_is_a_message_of_no_bytes() {
        let (here, there) = UnixStream::pair().expect("sockets can be made");
        drop(here);
        let (length, fd) = receive(&there, &mut [0; 8]).expect("the end is no error");
        assert_eq!(length, 0);
        assert!(fd.is_none());
    }

    fn packets() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("sockets can be made")
    }

    #[test]
    fn nobody_waits_who_only_tries() {
        let (here, there) = packets();
        let mut buffer = [0; 64];
        assert!(try_receive(&there, &mut buffer).is_ok_and(|none| none.is_none()));
        let mut sent = 0u8;
        // The socket's buffer is bounded, and so is what a packet at least takes of it.
        while try_send(&here, &[sent; 64], None).expect("the reader is there") {
            sent = sent.checked_add(1).unwrap_or(0);
        }
        let (length, fd) = try_receive(&there, &mut buffer)
            .expect("the writer is there")
            .expect("a packet");
        assert_eq!((length, buffer), (64, [0; 64]));
        assert!(fd.is_none());
        assert!(try_send(&here, &buffer, Some(here.as_fd())).expect("there is room again"));
        drop(here);
        let mut received = 0u32;
        loop {
            let next = try_receive(&there, &mut buffer).expect("the end is no error");
            let (length, fd) = next.expect("what was sent, then the end");
            if length == 0 {
                break;
            }
            received += 1;
            if let Some(fd) = fd {
                drop(fd);
                assert_eq!(buffer, [0; 64], "it came with its packet");
            }
        }
        assert!(received > 1);
    }

    #[test]
    fn a_packet_that_is_too_long_is_refused_and_its_descriptor_closed() {
        let (here, there) = packets();
        let (kept, given) = packets();
        send(&here, &[7; 65], Some(given.as_fd())).expect("there is room");
        drop(given);
        let refused = receive(&there, &mut [0; 64]).expect_err("it is cut off");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        let (length, _) = receive(&kept, &mut [0; 64]).expect("the end is no error");
        assert_eq!(length, 0, "nobody holds the other side");
        send(&here, &[8; 64], None).expect("there is room");
        let (length, _) = receive(&there, &mut [0; 64]).expect("the next one fits");
        assert_eq!(length, 64);
    }
}
