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
use pagefence_vfs::FileSystem;

use crate::attributes::{LIFETIME, Overrides};
use crate::handles::Handles;
use crate::nodes::Nodes;
use crate::session;

/// How shutting the file system down went, told to who waits for the session.
pub(crate) type Outcome = Arc<Mutex<Option<pagefence_vfs::Result<()>>>>;

/// A file system and what the kernel holds of it.
pub(crate) struct Dispatch<F: FileSystem> {
    /// What is served.
    pub(crate) fs: F,
    /// Translation of inode numbers.
    pub(crate) nodes: Nodes,
    /// What is shown instead of what is on disk.
    pub(crate) overrides: Overrides,
    /// Whether to negotiate ACLs with the kernel.
    pub(crate) posix_acl: bool,
    /// Open files.
    pub(crate) files: Handles<F::File>,
    /// Open directories.
    pub(crate) directories: Handles<F::Directory>,
    /// Where the end is told.
    pub(crate) outcome: Outcome,
}

/// Runs one request. A panic in it is logged and ends this request alone: the reply that it drops
/// on its way out answers EIO. Nothing on disk can have been damaged, as nothing is written.
fn guarded(request: &'static str, body: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
        let message = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        tracing::error!(
            request,
            "a defect of pagefence was met, the request failed: {message}"
        );
    }
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

impl<F: FileSystem> Filesystem for Dispatch<F> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        session::negotiate(config, self.posix_acl);
        Ok(())
    }

    fn destroy(&mut self) {
        *self.outcome.lock() = Some(self.fs.shut_down());
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded(
            "lookup",
            || answer!(reply, self.find(parent, name.as_bytes()) => |found| reply.entry_with_ttls(&found.attr_lifetime, &LIFETIME, &found.attr, found.generation)),
        );
    }

    fn forget(&self, _: &Request, node: INodeNo, count: u64) {
        guarded("forget", || self.forget_node(node, count));
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        guarded(
            "getattr",
            || answer!(reply, self.stat(node) => |attr| reply.attr(&LIFETIME, &attr)),
        );
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        guarded(
            "readlink",
            || answer!(reply, self.target(node) => |target| reply.data(&target)),
        );
    }

    fn access(&self, _: &Request, node: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        guarded(
            "access",
            || answer!(reply, self.may(node, mask) => |_done| reply.ok()),
        );
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        guarded(
            "statfs",
            || answer!(reply, self.stat_fs() => |s| reply.statfs(s.blocks, s.blocks_free, s.blocks_available, s.inodes, s.inodes_free, s.block_size, s.name_length, s.block_size)),
        );
    }

    fn open(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // NOFLUSH: there is nothing to write when a descriptor is closed.
        let keep = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        guarded(
            "open",
            || answer!(reply, self.open_file(node, flags) => |handle| reply.opened(handle, keep)),
        );
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded("read", || self.read_file(handle, offset, size, reply));
    }

    fn lseek(
        &self,
        _: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        guarded(
            "lseek",
            || answer!(reply, self.seek(node, handle, offset, whence) => |at| reply.offset(at)),
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
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
        guarded("release", || {
            drop(self.files.remove(handle.0));
            reply.ok();
        });
    }

    fn opendir(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let keep = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        guarded(
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
        guarded(
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
        guarded(
            "readdirplus",
            move || answer!(reply, self.list_with_attributes(handle, offset, &mut reply) => |_done| reply.ok()),
        );
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        guarded("releasedir", || {
            drop(self.directories.remove(handle.0));
            reply.ok();
        });
    }

    fn getxattr(&self, _: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        guarded("getxattr", || {
            send_sized(self.xattr(node, name.as_bytes()), size, reply)
        });
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        guarded("listxattr", || {
            send_sized(self.xattr_list(node, request.uid()), size, reply)
        });
    }

    fn ioctl(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        command: u32,
        input: &[u8],
        output_size: u32,
        reply: ReplyIoctl,
    ) {
        guarded(
            "ioctl",
            || answer!(reply, self.control(node, command, input, output_size) => |output| reply.ioctl(0, &output)),
        );
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &std::path::Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
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
