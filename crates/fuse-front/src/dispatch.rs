//! What the kernel asks, one line a request: the answer is computed in the module of its noun.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_vfs::{FileSystem, NewKind};

use crate::attributes::{LIFETIME, Overrides};
use crate::changes::{Asked, Wanted};
use crate::check::Checks;
use crate::files::{OpenFile, ReadBuffers};
use crate::handles::Handles;
use crate::invalidate::Notices;
use crate::ioctl;
use crate::lookups::Lookups;
use crate::map_door::MapDoor;
use crate::nodes::Nodes;
use crate::session::{self, Agreed};
use crate::stale_pages::StalePages;

/// How shutting the file system down went, told to who waits for the session.
pub(crate) type Outcome = Arc<Mutex<Option<pagefence_vfs::Result<()>>>>;

/// A file system and what the kernel holds of it.
pub(crate) struct Dispatch<F: FileSystem> {
    /// What is served.
    pub(crate) fs: Arc<F>,
    /// The way to maps of its files.
    pub(crate) door: Option<Arc<dyn MapDoor>>,
    /// Translation of inode numbers.
    pub(crate) nodes: Nodes,
    /// What is shown instead of what is on disk.
    pub(crate) overrides: Overrides,
    /// Whether to negotiate ACLs with the kernel.
    pub(crate) posix_acl: bool,
    /// Open files.
    pub(crate) files: Handles<OpenFile<F>>,
    /// Open directories.
    pub(crate) directories: Handles<F::Directory>,
    /// Whoever asks counts as root.
    pub(crate) fakeroot: bool,
    /// Nothing can be written.
    pub(crate) read_only: bool,
    /// Ask the kernel to keep dirty pages.
    pub(crate) writeback: bool,
    /// What the kernel agreed to.
    pub(crate) agreed: Agreed,
    /// What the kernel knows.
    pub(crate) lookups: Lookups,
    /// The check that goes on.
    pub(crate) checks: Checks,
    /// Where reads put their bytes.
    pub(crate) read_buffers: ReadBuffers,
    /// Where the kernel is told that attributes changed.
    pub(crate) notices: Arc<Notices>,
    /// Where the kernel is told that pages it has are not what the file holds.
    pub(crate) stale_pages: Arc<StalePages>,
    /// Where the end is told.
    pub(crate) outcome: Outcome,
}

/// Runs one request. A panic in it is logged and ends this request alone: the reply that it drops
/// on its way out answers EIO. Says whether it ended well.
fn guarded(request: &'static str, body: impl FnOnce()) -> bool {
    let Err(panic) = catch_unwind(AssertUnwindSafe(body)) else {
        return true;
    };
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(
        request,
        "a defect of pagefence was met, the request failed: {message}"
    );
    false
}

/// Sends a result: `answer!(reply, result => |value| how to send it)`.
macro_rules! answer {
    ($reply:ident, $result:expr => |$value:ident| $send:expr) => {
        match $result {
            Ok($value) => $send,
            Err(errno) => $reply.error(errno),
        }
    };
}

impl<F: FileSystem> Dispatch<F> {
    /// Runs a request that changes nothing (but times of access), so that a panic in it leaves
    /// nothing half done.
    fn reading(&self, request: &'static str, body: impl FnOnce()) {
        guarded(request, body);
    }

    /// Runs a request that may change something. After a panic in it nobody knows what is half
    /// done, so the file system is told to write nothing more.
    fn changing(&self, request: &'static str, body: impl FnOnce()) {
        if !guarded(request, body) {
            guarded("what follows a defect", || self.fs.poisoned());
        }
    }
}

impl<F: FileSystem> Filesystem for Dispatch<F> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let asked = session::Asked {
            posix_acl: self.posix_acl,
            writeback: self.writeback && !self.read_only,
        };
        self.agreed = session::negotiate(config, asked);
        Ok(())
    }

    fn destroy(&mut self) {
        if let Some(door) = &self.door {
            self.changing("the end of the maps", || door.close());
        }
        self.reading("the end of a check", || self.checks.end());
        self.changing("destroy", || {
            // A connection that was cut closes nothing.
            self.files.clear();
            self.directories.clear();
            *self.outcome.lock() = Some(self.fs.shut_down());
        });
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.reading(
            "lookup",
            || answer!(reply, self.find(parent, name.as_bytes()) => |found| reply.entry_with_ttls(&found.attr_lifetime, &LIFETIME, &found.attr, found.generation)),
        );
    }

    fn forget(&self, _: &Request, node: INodeNo, count: u64) {
        self.changing("forget", || self.forget_node(node, count));
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.reading(
            "getattr",
            || answer!(reply, self.stat(node) => |known| reply.attr(&known.1, &known.0)),
        );
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        self.reading(
            "readlink",
            || answer!(reply, self.target(node) => |target| reply.data(&target)),
        );
    }

    fn access(&self, _: &Request, node: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        self.reading(
            "access",
            || answer!(reply, self.may(node, mask) => |_done| reply.ok()),
        );
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.reading(
            "statfs",
            || answer!(reply, self.stat_fs() => |s| reply.statfs(s.blocks, s.blocks_free, s.blocks_available, s.inodes, s.inodes_free, s.block_size, s.name_length, s.block_size)),
        );
    }

    fn open(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.reading(
            "open",
            || answer!(reply, self.open_file(node, flags) => |handle| reply.opened(handle, self.opened_as(node, flags.0))),
        );
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        file: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.reading("read", || {
            self.leaving_pages(node, (offset, size.into()), || {
                self.read_file(file, offset, size, flags, reply)
            })
        });
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.reading(
            "lseek",
            || answer!(reply, self.seek(handle, offset, whence) => |at| reply.offset(at)),
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Never sent but with a writeback cache, which makes the kernel send what it holds and then
        // this, for all that files are opened with NOFLUSH.
        reply.ok();
    }

    fn fsync(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.changing(
            "fsync",
            || answer!(reply, self.sync_file(handle, data_only) => |_done| reply.ok()),
        );
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.changing("release", || {
            drop(self.files.remove(handle.0));
            reply.ok();
        });
    }

    fn opendir(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let keep = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        self.reading(
            "opendir",
            || answer!(reply, self.open_directory(node) => |handle| reply.opened(handle, keep)),
        );
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.reading(
            "readdir",
            move || answer!(reply, self.list(handle, offset, &mut reply) => |_done| reply.ok()),
        );
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.reading(
            "readdirplus",
            move || answer!(reply, self.list_with_attributes(handle, offset, &mut reply) => |_done| reply.ok()),
        );
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.changing(
            "fsyncdir",
            || answer!(reply, self.sync_directory(handle) => |_done| reply.ok()),
        );
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.changing("releasedir", || {
            self.checks.closed(handle);
            drop(self.directories.remove(handle.0));
            reply.ok();
        });
    }

    fn getxattr(&self, _: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.reading("getxattr", || {
            send_sized(self.xattr(node, name.as_bytes()), size, reply)
        });
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.reading("listxattr", || {
            send_sized(self.xattr_list(node, request.uid()), size, reply)
        });
    }

    fn ioctl(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        _: IoctlFlags,
        command: u32,
        input: &[u8],
        output_size: u32,
        reply: ReplyIoctl,
    ) {
        let control = || answer!(reply, self.control(request, (node, handle), command, input, output_size) => |output| reply.ioctl(0, &output));
        if ioctl::changes(command) {
            self.changing("ioctl", control);
        } else {
            self.reading("ioctl", control);
        }
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        changed: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let asked = Asked {
            mode,
            uid,
            gid,
            size,
            accessed,
            modified,
            changed,
        };
        self.changing(
            "setattr",
            || answer!(reply, self.set_attributes(request, node, &asked) => |known| reply.attr(&known.1, &known.0)),
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        let wanted = Wanted { mode, umask };
        self.changing(
            "mknod",
            || answer!(reply, self.make_node(request, parent, name.as_bytes(), wanted, device) => |found| reply.entry_with_ttls(&found.attr_lifetime, &LIFETIME, &found.attr, found.generation)),
        );
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let wanted = Wanted { mode, umask };
        self.changing(
            "mkdir",
            || answer!(reply, self.make(request, parent, name.as_bytes(), NewKind::Directory, wanted) => |found| reply.entry_with_ttls(&found.attr_lifetime, &LIFETIME, &found.attr, found.generation)),
        );
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.changing(
            "unlink",
            || answer!(reply, self.remove_name(parent, name.as_bytes()) => |_done| reply.ok()),
        );
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.changing(
            "rmdir",
            || answer!(reply, self.remove_directory(parent, name.as_bytes()) => |_done| reply.ok()),
        );
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &std::path::Path,
        reply: ReplyEntry,
    ) {
        let kind = NewKind::Symlink(target.as_os_str().as_bytes());
        let wanted = Wanted {
            mode: 0o777,
            umask: 0,
        };
        self.changing(
            "symlink",
            || answer!(reply, self.make(request, parent, name.as_bytes(), kind, wanted) => |found| reply.entry_with_ttls(&found.attr_lifetime, &LIFETIME, &found.attr, found.generation)),
        );
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((parent, name.as_bytes()), (new_parent, new_name.as_bytes()));
        self.changing(
            "rename",
            || answer!(reply, self.move_name(request, from, to, flags) => |_done| reply.ok()),
        );
    }

    fn link(&self, by: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.changing(
            "link",
            || answer!(reply, self.add_name(by, node, parent, name.as_bytes()) => |found| reply.entry_with_ttls(&found.attr_lifetime, &LIFETIME, &found.attr, found.generation)),
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let wanted = Wanted { mode, umask };
        self.changing(
            "create",
            || answer!(reply, self.create_file(request, parent, name.as_bytes(), wanted, flags) => |made| reply.created(&made.0.attr_lifetime, &made.0.attr, made.0.generation, made.1, self.opened_as(made.0.node, flags))),
        );
    }

    fn write(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        open_flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let bytes = (offset, data.len() as u64);
        self.changing("write", || {
            self.leaving_pages(
                node,
                bytes,
                || answer!(reply, self.write_file(request, (node, handle), offset, data, flags, open_flags) => |written| reply.written(written)),
            )
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.changing(
            "fallocate",
            || answer!(reply, self.allocate(request, node, handle, offset, length, mode) => |_done| reply.ok()),
        );
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _: INodeNo,
        from: FileHandle,
        from_offset: u64,
        node: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.changing(
            "copy_file_range",
            || answer!(reply, self.copy(request, (from, from_offset), (node, to, to_offset), length) => |copied| reply.written(copied)),
        );
    }

    fn setxattr(
        &self,
        _: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        self.changing(
            "setxattr",
            || answer!(reply, self.set_xattr(node, name.as_bytes(), value, flags) => |_done| reply.ok()),
        );
    }

    fn removexattr(&self, _: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.changing(
            "removexattr",
            || answer!(reply, self.remove_xattr(node, name.as_bytes()) => |_done| reply.ok()),
        );
    }

    // ENOSYS: the kernel answers these itself from now on, and asks no more.

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }
}

/// The size protocol of getxattr and listxattr: 0 asks for the length, less than the length is
/// ERANGE.
fn send_sized(value: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Err(errno) => reply.error(errno),
        Ok(value) => match u32::try_from(value.len()) {
            Err(_) => reply.error(Errno::E2BIG),
            Ok(length) if size == 0 => reply.size(length),
            Ok(length) if length > size => reply.error(Errno::ERANGE),
            Ok(_) => reply.data(&value),
        },
    }
}
