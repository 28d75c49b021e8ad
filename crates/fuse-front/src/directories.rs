//! Requests on open directories.
//!
//! A directory is opened by a request of its own (NO_OPENDIR is not negotiated): what is open
//! keeps the file system's state between two requests, where starting anew could mean sorting a
//! large directory for each buffer full; and opening is where an encrypted directory says so. It
//! costs one request an opendir; with the kernel's cache of entries that is the only one left.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;

use fuser::{Errno, FileHandle, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{DirEntry, FileKind, FileSystem, InodeId};

use crate::attributes::{LIFETIME, bare, file_type, refused};
use crate::dispatch::Dispatch;
use crate::errno::errno;
use crate::nodes::Nodes;

impl<F: FileSystem> Dispatch<F> {
    /// Makes a directory's changes durable.
    pub(crate) fn sync_directory(&self, handle: FileHandle) -> Result<(), Errno> {
        let directory = self.directories.get(handle.0).ok_or(Errno::EBADF)?;
        self.fs.sync_dir(&directory).map_err(|error| errno(&error))
    }

    /// Opens a directory.
    pub(crate) fn open_directory(&self, node: INodeNo) -> Result<FileHandle, Errno> {
        let id = self.nodes.inode(node)?;
        let directory = self.fs.open_dir(id).map_err(|error| errno(&error))?;
        let number = self
            .directories
            .insert(id.0, directory)
            .ok_or(Errno::ENFILE)?;
        Ok(FileHandle(number))
    }

    /// READDIR: names, numbers and kinds.
    pub(crate) fn list(
        &self,
        handle: FileHandle,
        from: u64,
        reply: &mut ReplyDirectory,
    ) -> Result<(), Errno> {
        self.fill(handle, from, false, |entry| {
            let name = OsStr::from_bytes(entry.name);
            reply.add(
                Nodes::shown(entry.id),
                entry.next,
                file_type(self.kind(entry)),
                name,
            )
        })
    }

    /// READDIRPLUS: each entry with its attributes, as if it had been looked up.
    ///
    /// Entries are counted once the file system is done with the directory: counting may wait
    /// (see `lookups`), and the file system may hold locks while it hands entries over.
    pub(crate) fn list_with_attributes(
        &self,
        handle: FileHandle,
        from: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<(), Errno> {
        let mut given = Vec::new();
        let filled = self.fill(handle, from, true, |entry| {
            let name = OsStr::from_bytes(entry.name);
            let shown = Nodes::shown(entry.id);
            // The kernel counts no lookup for these two.
            let is_dot = matches!(entry.name, b"." | b"..");
            // One time for both: an entry whose attributes hold for a short time is looked up anew.
            let mut lifetime = LIFETIME;
            let (attr, generation) = if is_dot {
                (bare(shown, FileKind::Directory), Generation(0))
            } else {
                match entry.attr.as_ref().map(|attr| (attr, self.shown(attr))) {
                    Some((_, Ok(found))) if found.attr.ino != INodeNo::ROOT => {
                        lifetime = found.attr_lifetime;
                        (found.attr, found.generation)
                    }
                    _ => (refused(shown, self.kind(entry)), Generation(0)),
                }
            };
            let is_full = reply.add(shown, entry.next, name, &lifetime, &attr, generation);
            // What it can't use the kernel forgets at once, so that counts, too.
            if !is_full && !is_dot && self.forgettable(entry.id) {
                given.push(entry.id);
            }
            is_full
        });
        for id in given {
            self.lookups.add(id);
        }
        filled
    }

    /// Whether a FORGET of the number that `id` is shown under is taken for one of `id`.
    fn forgettable(&self, id: InodeId) -> bool {
        let node = Nodes::shown(id);
        node != INodeNo::ROOT && self.nodes.inode(node).is_ok()
    }

    /// Hands entries to `add` until it says that there is no more room. An error after the first
    /// entry is kept for the next request, which starts where this one ends.
    fn fill(
        &self,
        handle: FileHandle,
        from: u64,
        with_attr: bool,
        mut add: impl FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let directory: Arc<F::Directory> = self.directories.get(handle.0).ok_or(Errno::EBADF)?;
        let mut taken = 0u32;
        let mut sink = |entry: &DirEntry<'_>| {
            if add(entry) {
                return ControlFlow::Break(());
            }
            taken += 1;
            ControlFlow::Continue(())
        };
        match self.fs.read_dir(&directory, from, with_attr, &mut sink) {
            Err(error) if taken == 0 => Err(errno(&error)),
            _ => Ok(()),
        }
    }

    /// The kind of an entry: as the directory says, else as the inode says. If neither can tell,
    /// "file"; whoever opens it then learns what is wrong.
    fn kind(&self, entry: &DirEntry<'_>) -> FileKind {
        let inode = || self.fs.attr(entry.id).map(|attr| attr.kind);
        entry
            .attr
            .as_ref()
            .map(|attr| attr.kind)
            .or(entry.kind)
            .unwrap_or_else(|| inode().unwrap_or(FileKind::Regular))
    }
}
