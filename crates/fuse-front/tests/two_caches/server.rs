//! A FUSE server that is nothing but memory, so that what is seen above it is the kernel's doing:
//! one flat directory of regular files, no attributes of its own, every request answered at once.
//!
//! Shared by the race test and the bench of the same name.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow,
    WriteFlags,
};
use pagefence_fuse_front::MountRequest;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::primitives::thread::{self, JoinHandle};
use pagefence_lock_order::primitives::{Arc, Mutex, RwLock};

/// The longest request: 256 pages.
const REQUEST_BYTES: u32 = 1 << 20;

/// The kernel may keep what it was told: nobody else writes.
const LIFETIME: Duration = Duration::from_secs(3600);

/// FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE (`linux/falloc.h`).
const PUNCH_KEEPING_SIZE: i32 = 0x01 | 0x02;

/// Who gathers what write(2) wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// write(2) returns once the server has the bytes.
    Writethrough,
    /// The kernel keeps dirty pages, size and mtime, and sends them when it likes.
    Writeback,
}

/// How the server deals with the request that precedes each write(2): GETXATTR of
/// `security.capability`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Xattrs {
    /// "There is none", each time.
    Answered,
    /// "There is no such request", after which the kernel does not ask any more.
    Refused,
}

/// What the server counts, by request.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// WRITE.
    pub(crate) writes: AtomicU64,
    /// GETXATTR.
    pub(crate) xattrs: AtomicU64,
    /// SETATTR.
    pub(crate) setattrs: AtomicU64,
}

/// Sees each WRITE before it is done: the file's name, the offset, the bytes.
pub(crate) type Watch = dyn Fn(&OsStr, u64, &[u8]) + Send + Sync;

struct Node {
    name: OsString,
    contents: RwLock<Contents>,
}

struct Contents {
    bytes: Vec<u8>,
    mode: u16,
    modified: SystemTime,
}

#[derive(Default)]
struct Tree {
    nodes: RwLock<HashMap<u64, Arc<Node>>>,
    names: Mutex<HashMap<OsString, u64>>,
    last: AtomicU64,
}

struct MemoryServer {
    mode: Mode,
    xattrs: Xattrs,
    tree: Arc<Tree>,
    requests: Arc<Requests>,
    watch: Arc<Watch>,
}

impl Tree {
    fn node(&self, number: INodeNo) -> Option<Arc<Node>> {
        self.nodes.read().get(&number.0).cloned()
    }

    fn named(&self, name: &OsStr) -> Option<(u64, Arc<Node>)> {
        let number = *self.names.lock().get(name)?;
        Some((number, self.node(INodeNo(number))?))
    }
}

fn attributes(number: u64, kind: FileType, mode: u16, size: u64, modified: SystemTime) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(512),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind,
        perm: mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Node {
    fn attributes(&self, number: u64) -> FileAttr {
        let contents = self.contents.read();
        let size = contents.bytes.len() as u64;
        attributes(
            number,
            FileType::RegularFile,
            contents.mode,
            size,
            contents.modified,
        )
    }
}

impl Filesystem for MemoryServer {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What pagefence's own session asks for, and the flag that this is about.
        let mut wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        if self.mode == Mode::Writeback {
            wanted |= InitFlags::FUSE_WRITEBACK_CACHE;
        }
        config.add_capabilities(wanted).map_err(|missing| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the kernel lacks {missing:?}"),
            )
        })?;
        let refused = |limit| io::Error::other(format!("the kernel allows {limit} at most"));
        config.set_max_write(REQUEST_BYTES).map_err(refused)?;
        // A kernel whose longest readahead is shorter keeps its own.
        let _shorter = config.set_max_readahead(REQUEST_BYTES);
        config
            .set_max_background(64)
            .map_err(|limit| refused(limit.into()))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.tree.named(name) {
            Some((number, node)) => {
                reply.entry(&LIFETIME, &node.attributes(number), Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if number == INodeNo::ROOT {
            let root = attributes(1, FileType::Directory, 0o755, 0, SystemTime::UNIX_EPOCH);
            return reply.attr(&LIFETIME, &root);
        }
        match self.tree.node(number) {
            Some(node) => reply.attr(&LIFETIME, &node.attributes(number.0)),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.requests.setattrs.fetch_add(1, Ordering::Relaxed);
        let Some(node) = self.tree.node(number) else {
            return reply.error(Errno::ESTALE);
        };
        {
            let mut contents = node.contents.write();
            if let Some(mode) = mode {
                contents.mode = (mode & 0o7777) as u16;
            }
            if let Some(size) = size {
                contents.bytes.resize(size as usize, 0);
                contents.modified = SystemTime::now();
            }
            match modified {
                Some(TimeOrNow::SpecificTime(time)) => contents.modified = time,
                Some(TimeOrNow::Now) => contents.modified = SystemTime::now(),
                None => {}
            }
        }
        reply.attr(&LIFETIME, &node.attributes(number.0));
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        // Inode 1 is the root.
        let number = self.tree.last.fetch_add(1, Ordering::Relaxed) + 2;
        let node = Arc::new(Node {
            name: name.to_owned(),
            contents: RwLock::new(Contents {
                bytes: Vec::new(),
                mode: (mode & 0o7777) as u16,
                modified: SystemTime::now(),
            }),
        });
        let attributes = node.attributes(number);
        self.tree.nodes.write().insert(number, node);
        self.tree.names.lock().insert(name.to_owned(), number);
        reply.created(
            &LIFETIME,
            &attributes,
            Generation(0),
            FileHandle(0),
            FopenFlags::empty(),
        );
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        // The contents stay until the kernel forgets the inode.
        match self.tree.names.lock().remove(name) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn forget(&self, _: &Request, number: INodeNo, _: u64) {
        let mut nodes = self.tree.nodes.write();
        if let Some(node) = nodes.get(&number.0)
            && self.tree.names.lock().get(&node.name) != Some(&number.0)
        {
            nodes.remove(&number.0);
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(node) = self.tree.node(number) else {
            return reply.error(Errno::ESTALE);
        };
        let contents = node.contents.read();
        let from = contents.bytes.len().min(offset as usize);
        let to = contents.bytes.len().min(from + size as usize);
        reply.data(&contents.bytes[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.requests.writes.fetch_add(1, Ordering::Relaxed);
        let Some(node) = self.tree.node(number) else {
            return reply.error(Errno::ESTALE);
        };
        (self.watch)(&node.name, offset, data);
        {
            let mut contents = node.contents.write();
            let from = offset as usize;
            if contents.bytes.len() < from {
                contents.bytes.resize(from, 0);
            }
            let overlap = (contents.bytes.len() - from).min(data.len());
            contents.bytes[from..from + overlap].copy_from_slice(&data[..overlap]);
            contents.bytes.extend_from_slice(&data[overlap..]);
            if self.mode == Mode::Writethrough {
                contents.modified = SystemTime::now();
            }
        }
        reply.written(data.len() as u32);
    }

    fn fallocate(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != PUNCH_KEEPING_SIZE {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let Some(node) = self.tree.node(number) else {
            return reply.error(Errno::ESTALE);
        };
        {
            let mut contents = node.contents.write();
            let size = contents.bytes.len();
            let from = size.min(offset as usize);
            let to = size.min(from + length as usize);
            contents.bytes[from..to].fill(0);
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        self.requests.xattrs.fetch_add(1, Ordering::Relaxed);
        match self.xattrs {
            Xattrs::Answered => reply.error(Errno::NO_XATTR),
            Xattrs::Refused => reply.error(Errno::ENOSYS),
        }
    }
}

/// A server with its mount; dropping it unmounts.
pub(crate) struct Served {
    directory: tempfile::TempDir,
    tree: Arc<Tree>,
    /// What reached the server so far.
    pub(crate) requests: Arc<Requests>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Served {
    /// Mounts an empty server; `None`, with a word on stderr, where that is impossible.
    pub(crate) fn mount(mode: Mode, xattrs: Xattrs, watch: Arc<Watch>) -> Option<Self> {
        if !Path::new("/dev/fuse").exists() || !rustix::process::geteuid().is_root() {
            eprintln!("skipped: this mounts, which needs root and /dev/fuse");
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory can be made");
        let request = MountRequest {
            source: OsStr::new("memory"),
            subtype: "pagefence",
            mountpoint: directory.path(),
            read_only: false,
            suid: false,
            dev: false,
            exec: true,
            allow_other: false,
            default_permissions: true,
        };
        let fd = pagefence_fuse_front::mount(&request).expect("root can mount");
        let tree = Arc::new(Tree::default());
        let requests = Arc::new(Requests::default());
        let server = MemoryServer {
            mode,
            xattrs,
            tree: Arc::clone(&tree),
            requests: Arc::clone(&requests),
            watch,
        };
        let mut config = Config::default();
        config.n_threads = Some(4);
        config.clone_fd = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .is_ok();
        let session =
            Session::from_fd(server, fd, SessionACL::All, config).expect("the kernel greets");
        let thread = thread::spawn("server", move || session.run()).expect("a thread");
        let served = Self {
            directory,
            tree,
            requests,
            thread: Some(thread),
        };
        pagefence_fuse_front::tune(served.directory.path());
        Some(served)
    }

    /// A path in the mount.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the server holds for a file: the truth once everything was flushed.
    ///
    /// # Panics
    /// There is no such file.
    pub(crate) fn contents(&self, name: &str) -> Vec<u8> {
        let (_, node) = self.tree.named(OsStr::new(name)).expect("the file exists");
        let contents = node.contents.read();
        contents.bytes.clone()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if let Err(error) = pagefence_fuse_front::unmount(self.directory.path(), true) {
            eprintln!("{} stays mounted: {error}", self.directory.path().display());
        } else if !std::thread::panicking() {
            let ended = thread.join().expect("the server does not panic");
            ended.expect("the server ends well");
        }
    }
}
