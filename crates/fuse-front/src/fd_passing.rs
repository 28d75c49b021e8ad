//! Descriptors handed from process to process over a socket (SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Sends `message`, and `fd` with it.
///
/// # Errors
/// EPIPE if the other side is gone; whatever sendmsg says.
pub fn send(socket: impl AsFd, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let parts = [IoSlice::new(message)];
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket.as_fd(), &parts, &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    if sent == message.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Receives a message of at most `buffer.len()` bytes; its length (0 if the other side is gone)
/// and the descriptor that came with it, closed on exec.
///
/// # Errors
/// Whatever recvmsg says.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket.as_fd(),
            &mut parts,
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            descriptor = fds.next();
        }
    }
    Ok((received.bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

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
    fn the_end_of_the_other_side_is_a_message_of_no_bytes() {
        let (here, there) = UnixStream::pair().expect("sockets can be made");
        drop(here);
        let (length, fd) = receive(&there, &mut [0; 8]).expect("the end is no error");
        assert_eq!(length, 0);
        assert!(fd.is_none());
    }
}
