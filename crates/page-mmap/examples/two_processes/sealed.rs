//! What a client can do to the memory by the descriptors that it gets.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use pagefence_host_memory::{Continue, FRAME_SIZE, FileMemory, Userfault, View, ViewKind};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, fchmod, ftruncate};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::report::line;

/// A user who is nobody here.
const OTHER: u32 = 65534;

pub(crate) fn run() -> io::Result<()> {
    let memory = FileMemory::new()?;
    memory.write(0, 0, &[7; FRAME_SIZE]);
    refuses_sizes("the descriptor", memory.fd())?;
    let again = reopen(memory.fd(), OFlags::RDWR)?;
    refuses_sizes("one reopened for writing", again.as_fd())?;
    let reads = reopen(memory.fd(), OFlags::RDONLY)?;
    read_only(&reads)?;
    fills_holes(&memory, &reads)?;
    rights(&memory, &reads)
}

fn reopen(fd: BorrowedFd<'_>, access: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::open(
        path,
        access | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// No descriptor changes the size: that would be SIGBUS for everybody who maps it.
fn refuses_sizes(what: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    let size = u64::try_from(rustix::fs::fstat(fd)?.st_size).map_err(io::Error::other)?;
    for length in [0, size - 1, size + 1] {
        assert_eq!(ftruncate(fd, length), Err(Errno::PERM), "to {length}");
    }
    line(&format!("ftruncate of {what}"), Errno::PERM);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(fd, punch, 8 * 4096, 4096)?;
    line(&format!("PUNCH_HOLE by {what}"), "succeeds");
    Ok(())
}

/// A descriptor for reading: a private view can be registered, no other, and it alters nothing.
fn read_only(fd: &OwnedFd) -> io::Result<()> {
    let open = || Userfault::open().map_err(io::Error::other);
    let shared = View::of_fd(fd, 0, FRAME_SIZE, ViewKind::SharedReadOnly)?;
    let refused = open()?
        .register(&shared)
        .expect_err("it is not open for writing");
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    line(
        "registering a shared view of an O_RDONLY descriptor",
        refused,
    );
    let private = View::of_fd(fd, 0, FRAME_SIZE, ViewKind::Private)?;
    let mut userfault = open()?;
    userfault.register(&private)?;
    userfault
        .continue_pages(&private, 0..1, true)
        .map_err(io::Error::other)?;
    let mut byte = [0];
    private.load(9, &mut byte);
    assert_eq!(byte, [7]);
    line(
        "registering and continuing a private view of it",
        "succeeds",
    );
    assert_eq!(rustix::io::pwrite(fd, &[1], 0), Err(Errno::BADF));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(fallocate(fd, punch, 0, 4096), Err(Errno::BADF));
    line("write and PUNCH_HOLE by it", Errno::BADF);
    Ok(())
}

/// A load by a view that nobody registered fills a hole with zeros, also by a descriptor for reading; a
/// grant that takes effect afterwards does not find the hole.
fn fills_holes(memory: &FileMemory, fd: &OwnedFd) -> io::Result<()> {
    let honest = View::of_fd(fd, 0, 2 * FRAME_SIZE, ViewKind::Private)?;
    let mut userfault = Userfault::open().map_err(io::Error::other)?;
    userfault.register(&honest)?;
    memory.punch(0..2);
    let late = userfault.continue_pages(&honest, 0..1, true);
    assert!(matches!(late, Err(Continue::Hole { page: 0 })), "{late:?}");
    let hostile = View::of_fd(fd, 0, 2 * FRAME_SIZE, ViewKind::Private)?;
    let mut byte = [1];
    hostile.load(FRAME_SIZE, &mut byte);
    assert_eq!(
        (byte, memory.allocated_pages()),
        ([0], 1),
        "a page of zeros"
    );
    userfault
        .continue_pages(&honest, 1..2, true)
        .map_err(io::Error::other)?;
    honest.load(FRAME_SIZE, &mut byte);
    assert_eq!(byte, [0]);
    line(
        "CONTINUE of a page punched since",
        "fails; maps zeros once an unregistered view of an O_RDONLY descriptor has loaded there",
    );
    memory.write(0, 0, &[7; 2 * FRAME_SIZE]);
    Ok(())
}

/// Who can reopen a descriptor for reading for writing: /proc asks the mode of the memfd's inode.
fn rights(memory: &FileMemory, reads: &OwnedFd) -> io::Result<()> {
    let reopens = "exec 3<>/proc/self/fd/0";
    let chmods = "chmod 600 /proc/self/fd/0 && exec 3<>/proc/self/fd/0";
    let mode = rustix::fs::fstat(memory.fd())?.st_mode & 0o777;
    let made = as_other(reopens, reads)?;
    line(
        &format!("another user reopens it for writing, mode {mode:o} as made"),
        made,
    );
    for (mode, owner, script, who, expected) in [
        (
            0o400,
            0,
            reopens,
            "another user reopens it for writing",
            false,
        ),
        (
            0o400,
            0,
            chmods,
            "another user changes the mode and reopens it",
            false,
        ),
        (
            0o000,
            OTHER,
            reopens,
            "the owner's other process reopens it",
            false,
        ),
        (
            0o000,
            OTHER,
            chmods,
            "the owner's other process changes the mode and reopens it",
            true,
        ),
    ] {
        fchmod(memory.fd(), Mode::from_raw_mode(mode))?;
        let ids = (Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)));
        rustix::fs::fchown(memory.fd(), ids.0, ids.1)?;
        let done = as_other(script, reads)?;
        assert_eq!(done, expected, "{who}");
        line(&format!("{who}, mode {mode:o}"), done);
    }
    // The daemon's own descriptor was open before.
    memory.write(0, 0, &[8; FRAME_SIZE]);
    line(
        "the daemon writes by its own descriptor, mode 0",
        "succeeds",
    );
    Ok(())
}

/// Whether `script` succeeds as another user with `fd` as its standard input.
fn as_other(script: &str, fd: &OwnedFd) -> io::Result<bool> {
    let status = Command::new("/bin/sh")
        .args(["-c", script])
        .stdin(Stdio::from(fd.try_clone()?))
        .stderr(Stdio::null())
        .current_dir("/")
        .uid(OTHER)
        .gid(OTHER)
        .status()?;
    Ok(status.success())
}
