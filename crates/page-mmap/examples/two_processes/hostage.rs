//! A FUSE server that answers when it likes: with it a client holds locks of the kernel as long as it
//! wants to. No privilege is needed for such a server; it mounts as root here to be short.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, SessionACL, WriteFlags,
};
use pagefence_lock_order::primitives::{Arc, Mutex, thread};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::wire::{Actor, Wire};

/// Server: it has a request that it does not answer; the number is the inode's.
pub(crate) const HELD: u64 = 1;
/// Server: it is mounted.
pub(crate) const MOUNTED: u64 = 2;
/// Server: a write to the backed file came to it.
pub(crate) const SERVED: u64 = 3;
/// To the server: answer what is held, and everything from now on.
pub(crate) const RELEASE: u64 = 4;

/// Cached if it is opened for writing, direct if not. A WRITE is held.
pub(crate) const FILE: u64 = 2;
/// Each READ is held.
pub(crate) const NEVER: u64 = 3;
/// Direct; each READ is held, and answered with [`LATE_BYTE`]s.
pub(crate) const LATE: u64 = 4;
/// Maps of it are maps of the memory that the server was handed; the rest is asked of the server.
const BACKED: u64 = 5;

/// What reads of the late file give.
pub(crate) const LATE_BYTE: u8 = 0x55;

const FOREVER: Duration = Duration::from_secs(3600);
const SIZE: u64 = 1 << 16;

/// The server's process, and its mount.
pub(crate) struct Hostage {
    /// Taken down first: what it held comes to an end then.
    _server: Actor,
    pub(crate) wire: Wire,
    directory: tempfile::TempDir,
}

impl Hostage {
    /// Starts it and mounts it; `memory` backs a file of it.
    pub(crate) fn start(memory: rustix::fd::BorrowedFd<'_>) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory
            .path()
            .to_str()
            .ok_or(io::ErrorKind::InvalidData)?;
        let (wire, theirs) = Wire::pair()?;
        let actor = Actor::role(&["hostage", path], theirs)?;
        wire.send_with([0, 0], &[memory])?;
        assert_eq!(wire.expect()?[0], MOUNTED);
        Ok(Self {
            _server: actor,
            wire,
            directory,
        })
    }

    /// Where it is mounted.
    pub(crate) fn mountpoint(&self) -> &Path {
        self.directory.path()
    }

    /// Waits until it holds a request for `inode`.
    pub(crate) fn wait_until_held(&self, inode: u64) -> io::Result<()> {
        while self.wire.expect()? != [HELD, inode] {}
        Ok(())
    }

    /// Has it answer everything.
    pub(crate) fn release(&self) -> io::Result<()> {
        self.wire.send([RELEASE, 0])
    }
}

impl Drop for Hostage {
    fn drop(&mut self) {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let unmounted = rustix::mount::unmount(self.directory.path(), flags);
        if let Err(errno) = unmounted {
            eprintln!("{}: {errno}", self.directory.path().display());
        }
    }
}

#[derive(Debug, Default)]
struct Held {
    released: bool,
    writes: Vec<(ReplyWrite, u32)>,
    reads: Vec<(ReplyData, usize)>,
}

struct Server {
    wire: Arc<Wire>,
    held: Arc<Mutex<Held>>,
    memory: OwnedFd,
    backing: Mutex<Option<BackingId>>,
}

/// The role: mounts at `path`, serves until the other end of the wire is closed.
pub(crate) fn run(path: &str) -> io::Result<()> {
    let wire = Arc::new(Wire::inherited()?);
    let (_, mut fds) = wire.expect_with()?;
    let memory = fds.pop().ok_or(io::ErrorKind::InvalidData)?;
    let device = mount(&PathBuf::from(path))?;
    let held = Arc::<Mutex<Held>>::default();
    let server = Server {
        wire: Arc::clone(&wire),
        held: Arc::clone(&held),
        memory,
        backing: Mutex::new(None),
    };
    let session = Session::from_fd(server, device, SessionACL::All, Config::default())?;
    let serving = thread::spawn("serve", move || session.run())?;
    wire.send([MOUNTED, 0])?;
    while wire.receive()?.is_some() {
        let mut held = held.lock();
        held.released = true;
        for (reply, count) in held.writes.drain(..) {
            reply.written(count);
        }
        for (reply, count) in held.reads.drain(..) {
            reply.data(&vec![LATE_BYTE; count]);
        }
    }
    drop(serving);
    // With it goes the connection, and whoever waits for an answer gets an error.
    std::process::exit(0);
}

fn mount(path: &Path) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        device.as_raw_fd()
    );
    let options = CString::new(options)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("hostage", path, "fuse.hostage", flags, options.as_c_str())?;
    Ok(device.into())
}

fn attributes(inode: u64) -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    let kind = match inode {
        1 => FileType::Directory,
        _ => FileType::RegularFile,
    };
    FileAttr {
        ino: INodeNo(inode),
        size: SIZE,
        blocks: SIZE / 512,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: 0o777,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // A kernel without it refuses to open the backed file.
        if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
            config
                .set_max_stack_depth(1)
                .map_err(|_| io::ErrorKind::Unsupported)?;
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let inode = match name.as_encoded_bytes() {
            b"file" => FILE,
            b"never" => NEVER,
            b"late" => LATE,
            b"backed" => BACKED,
            _ => return reply.error(Errno::ENOENT),
        };
        reply.entry(&FOREVER, &attributes(inode), Generation(0));
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &attributes(inode.0));
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let reads_only = flags.acc_mode() == OpenAccMode::O_RDONLY;
        match inode.0 {
            BACKED => {
                let mut backing = self.backing.lock();
                match reply.open_backing(&self.memory) {
                    Ok(made) => {
                        let made = backing.insert(made);
                        reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO, made);
                    }
                    Err(_) => reply.error(Errno::EOPNOTSUPP),
                }
            }
            LATE => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            FILE if reads_only => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            _ => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let count = usize::try_from(size).expect("32 bits or more");
        let mut held = self.held.lock();
        if held.released || inode.0 == FILE {
            return reply.data(&vec![0; count]);
        }
        held.reads.push((reply, count));
        self.tell([HELD, inode.0]);
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let count = u32::try_from(data.len()).expect("a request is short");
        let mut held = self.held.lock();
        if inode.0 == BACKED {
            self.tell([SERVED, inode.0]);
            return reply.written(count);
        }
        if held.released {
            return reply.written(count);
        }
        held.writes.push((reply, count));
        self.tell([HELD, inode.0]);
    }
}

impl Server {
    fn tell(&self, words: [u64; 2]) {
        // Nobody listens any more when the experiment is over.
        let _ = self.wire.send(words);
    }
}
