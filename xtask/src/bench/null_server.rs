//! A FUSE server that does nothing: what a punch takes on its mount is the kernel's.
//!
//! It has the two files of [`super::ranges`], of any size: reads are zeros, writes go nowhere,
//! fallocate is done at once. With the kernel it agrees on what `pagefence mount` agrees on as far as
//! reads and maps go, and it serves with as many threads. It runs in a process of its own: a server
//! whose own process faults in what it serves may wait for itself.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyWrite, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use pagefence_fuse_front::{MountRequest, mount, unmount};
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};

/// Arguments of the process.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where it is mounted, absolute.
    mountpoint: PathBuf,
}

/// Names of the files; their inodes follow on the root's.
pub(super) const FILES: [&str; 2] = ["punched", "other"];
/// The longest request, and the longest readahead, as of `pagefence mount`.
const REQUEST_BYTES: usize = 1 << 20;
const BACKGROUND_REQUESTS: u16 = 64;
/// As many as `pagefence mount` has on a small machine.
const THREADS: usize = 16;
/// How long the kernel may take an answer for true.
const TTL: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
struct Nothing {
    /// Of each file: its size, and the space that it says it has, in bytes.
    sizes: [AtomicU64; FILES.len()],
    spaces: [AtomicU64; FILES.len()],
}

impl Nothing {
    fn index(node: INodeNo) -> Option<usize> {
        let index = usize::try_from(node.0).ok()?.checked_sub(2)?;
        (index < FILES.len()).then_some(index)
    }

    fn attributes(&self, node: INodeNo) -> FileAttr {
        let of = |what: &[AtomicU64]| Some(what[Self::index(node)?].load(Ordering::SeqCst));
        let size = of(&self.sizes);
        FileAttr {
            ino: node,
            size: size.unwrap_or(0),
            blocks: of(&self.spaces).unwrap_or(0) / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: size.map_or(FileType::Directory, |_| FileType::RegularFile),
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Nothing {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        let offered = wanted & config.capabilities();
        let refused = |what: &str| io::Error::other(format!("{what} was refused"));
        config
            .add_capabilities(offered)
            .map_err(|_| refused("what was offered"))?;
        let bytes = REQUEST_BYTES as u32;
        config
            .set_max_write(bytes)
            .map_err(|_| refused("the length of requests"))?;
        config
            .set_max_background(BACKGROUND_REQUESTS)
            .map_err(|_| refused("the number of requests"))?;
        // A kernel whose longest readahead is shorter answers with it, and keeps to it.
        let _ = config.set_max_readahead(bytes);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = FILES.iter().position(|file| name == *file);
        match found.filter(|_| parent == INodeNo::ROOT) {
            Some(index) => {
                let attributes = self.attributes(INodeNo(index as u64 + 2));
                reply.entry(&TTL, &attributes, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(node));
    }

    fn setattr(
        &self,
        _request: &Request,
        node: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let (Some(index), Some(size)) = (Self::index(node), size) {
            self.sizes[index].store(size, Ordering::SeqCst);
        }
        reply.attr(&TTL, &self.attributes(node));
    }

    fn read(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        static ZEROS: [u8; REQUEST_BYTES] = [0; REQUEST_BYTES];
        reply.data(&ZEROS[..ZEROS.len().min(size as usize)]);
    }

    fn write(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.written(data.len() as u32);
    }

    fn flush(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _data: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if let Some(index) = Self::index(node) {
            // Whoever looks at it sees when it was answered.
            let space = if mode == 0 { length } else { 0 };
            self.spaces[index].store(space, Ordering::SeqCst);
        }
        reply.ok();
    }
}

/// The process: mounts, and serves until it is unmounted.
pub(crate) fn serve(arguments: &Arguments) -> Result<bool> {
    let device = mount(&MountRequest {
        source: OsStr::new("nothing"),
        subtype: "nothing",
        mountpoint: &arguments.mountpoint,
        read_only: false,
        suid: false,
        dev: false,
        exec: false,
        allow_other: false,
        default_permissions: true,
    })?;
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let session = Session::from_fd(Nothing::default(), device, SessionACL::All, config);
    let session = session.inspect_err(|_| {
        let _unmounted = unmount(&arguments.mountpoint, true);
    });
    match session
        .context("the kernel's FUSE can't be agreed with")?
        .run()
    {
        // What a thread gets that was being handed a request when the mount went.
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::CONNABORTED.raw_os_error()) => {}
        ended => ended?,
    }
    Ok(true)
}
