//! The set-uid helper fusermount3, through which users other than root mount.
//!
//! It finds the number of a socket in `_FUSE_COMMFD`, mounts, and sends the /dev/fuse descriptor
//! over that socket. The socket is its standard input: the one descriptor that a child gets
//! under a known number without unsafe code.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Stdio};

use pagefence_host_memory::fd_passing;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::mount::{MountError, MountRequest, UnmountError, escape, kernel_options};

const PROGRAM: &str = "fusermount3";

/// Mounts by fusermount3.
pub(crate) fn mount(request: &MountRequest<'_>) -> Result<OwnedFd, MountError> {
    let (here, there) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| MountError::NoDescriptor(error.into()))?;
    let mut command = Command::new(PROGRAM);
    command
        .arg("-o")
        .arg(options(request))
        .arg("--")
        .arg(request.mountpoint)
        .env("_FUSE_COMMFD", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::from(there))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let child = command.spawn().map_err(MountError::NoFusermount)?;
    // It holds the other end of the socket, whose end must show when the child is gone.
    drop(command);
    let received = fd_passing::receive(&here, &mut [0; 16]);
    let output = child.wait_with_output().map_err(MountError::NoFusermount)?;
    match received {
        Ok((_, Some(fd))) => Ok(fd),
        _ if !output.status.success() => Err(MountError::Fusermount(complaint(&output.stderr))),
        Ok((_, None)) => Err(MountError::NoDescriptor(
            io::ErrorKind::UnexpectedEof.into(),
        )),
        Err(error) => Err(MountError::NoDescriptor(error)),
    }
}

/// Unmounts by fusermount3.
pub(crate) fn unmount(mountpoint: &Path, lazily: bool) -> Result<(), UnmountError> {
    let mut command = Command::new(PROGRAM);
    command.arg("-u");
    if lazily {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(mountpoint)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| UnmountError::Other(format!("{PROGRAM} can't be run: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = complaint(&output.stderr);
    if complaint.contains("busy") {
        Err(UnmountError::Busy)
    } else {
        Err(UnmountError::Other(complaint))
    }
}

/// The option list: what the kernel is told, and what fusermount3 makes of source and flags.
fn options(request: &MountRequest<'_>) -> OsString {
    let mut list = kernel_options(request);
    list.push(if request.read_only { "ro" } else { "rw" }.into());
    // fusermount3 gives no one but root set-uid bits and devices.
    list.push("nosuid,nodev".into());
    if !request.exec {
        list.push("noexec".into());
    }
    let mut bytes = list.join(",").into_bytes();
    bytes.extend_from_slice(b",subtype=");
    bytes.extend_from_slice(&escape(request.subtype.as_ref()));
    bytes.extend_from_slice(b",fsname=");
    bytes.extend_from_slice(&escape(request.source));
    OsString::from_vec(bytes)
}

/// What the helper said, without its name, on one line.
fn complaint(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.strip_prefix("fusermount3: ").unwrap_or(line).trim())
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        "it did not say why".into()
    } else {
        lines.join("; ")
    }
}
