//! The way to a memory map of a file: a ticket for whoever has the file open.
//!
//! A program can map a file of a mount so that its loads and stores are served from the file
//! system's own pages, not from copies that the kernel keeps: it asks the file system for that past
//! the kernel, by a socket, say. How is the file system's business; but who may is the kernel's to
//! check, at open(2). So whoever has the file open gets a ticket here, to be shown there. The way to
//! maps is the trait [`MapDoor`]; a server is started with one or without.
//!
//! # `MAP_TICKET`: asks for a ticket
//!
//! `_IOR(0xF7, 5, 64 bytes)`, on a regular file. The answer is made by the door, and means nothing
//! here. Errors, the first that applies: ENOTTY if the file system has no maps; EOPNOTSUPP on a mount
//! whose kernel keeps dirty pages (`writeback`), which would write them over what was stored since;
//! EBADF if it is no regular file; EAGAIN if the door gives no ticket now. So who asks for one of a
//! directory learns whether there are maps at all.
//!
//! # What the kernel has of a mapped file
//!
//! It does not hear of stores by maps. From the first ticket on, and for as long as the door says so,
//!
//! - files that are opened pass its pages by (FOPEN_DIRECT_IO): they show each store at once;
//! - its pages are dropped when the ticket is made, and again after each answer that leaves it some:
//!   who had the file open before, or maps it by the kernel, sees a store a little later;
//! - it keeps attributes for a short time only, as stores change them.
//!
//! What programs store to maps that are the kernel's own (mmap(2)) it writes by whole pages: what was
//! stored to such a page past it meanwhile may be lost.
//!
//! Invariant: pages that come to the kernel by a request are dropped after its answer if the file was
//! mapped *before* the file system was asked. A request that began earlier than the first ticket has
//! its pages in the kernel's cache, locked until it is answered if they are to be filled: what that
//! ticket has the kernel drop, which waits for locked ones, are these, too. So it matters not when
//! maps end: none of their stores is missing from pages that stay.

use fuser::{Errno, FileHandle, FopenFlags, INodeNo};
use pagefence_vfs::{FileSystem, InodeId};
use rustix::fs::OFlags;

use crate::dispatch::Dispatch;
use crate::errno::errno;
use crate::files::{APPEND_ONLY, IMMUTABLE};
use crate::ioctl::{READ, ioc};

/// Bytes of a ticket, as [`MAP_TICKET`] answers it.
pub const TICKET_BYTES: usize = 64;

/// Number of the ioctl that asks for a ticket.
pub const MAP_TICKET: u32 = ioc(READ, 0xf7, 5, TICKET_BYTES as u32);

/// What the open file that a ticket is asked for can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRights {
    /// It was opened for reading.
    pub reads: bool,
    /// It was opened for writing, and the inode can be written to anywhere: it is neither immutable
    /// nor append-only.
    pub writes: bool,
}

/// Lets other processes to maps of files.
///
/// Called by many threads at once.
pub trait MapDoor: Send + Sync {
    /// A ticket for a map of a regular file that someone has open; `None` if there can't be one now.
    /// From before it returns, the inode is mapped ([`is_mapped`](Self::is_mapped)), for as long as
    /// the ticket is good or a map that came of it or of another one exists.
    fn ticket(&self, inode: InodeId, rights: MapRights) -> Option<[u8; TICKET_BYTES]>;

    /// Whether what the inode holds may change by a map, or may have since the last ticket for it: may
    /// go on for a while, but ends no earlier than the last store has come to the file. Called for each
    /// read and write, and while the file system lists a directory: it has to cost next to nothing
    /// where nobody maps anything, and takes no lock but a leaf.
    fn is_mapped(&self, inode: InodeId) -> bool;

    /// Ends all maps, and lets nobody in any more; called once, when no requests come any more,
    /// before files are closed and the file system is shut down. Returns when no store can come to the
    /// file system any more.
    fn close(&self);
}

impl<F: FileSystem> Dispatch<F> {
    /// Whether programs store to the inode past the kernel.
    pub(crate) fn is_mapped(&self, id: InodeId) -> bool {
        self.door.as_ref().is_some_and(|door| door.is_mapped(id))
    }

    /// Answers [`MAP_TICKET`].
    pub(crate) fn map_ticket(&self, node: INodeNo, handle: FileHandle) -> Result<Vec<u8>, Errno> {
        let door = self.door.as_ref().ok_or(Errno::ENOTTY)?;
        // What is so of the whole mount is said of its directories, too.
        if self.agreed.writeback {
            return Err(Errno::EOPNOTSUPP);
        }
        let id = self.nodes.inode(node)?;
        self.check_regular(id)?;
        let file = self.files.get(handle.0).ok_or(Errno::EBADF)?;
        let marks = self.fs.attr(id).map_err(|error| errno(&error))?.flags;
        let rights = MapRights {
            reads: file.reads,
            writes: file.writes && marks & (IMMUTABLE | APPEND_ONLY) == 0,
        };
        let change = self.stale_pages.begin(node, 0, 0);
        let ticket = door.ticket(id, rights);
        // With its pages the kernel drops the attributes that it was to keep for long.
        change.tell();
        Ok(ticket.ok_or(Errno::EAGAIN)?.to_vec())
    }

    /// Runs a request that leaves the kernel pages of what the file holds in `length` bytes from
    /// `offset` on, and sends the answer. If programs store to the file past the kernel, it is told to
    /// drop the pages: not before the answer, for which they are locked.
    pub(crate) fn leaving_pages(
        &self,
        node: INodeNo,
        (offset, length): (u64, u64),
        answer: impl FnOnce(),
    ) {
        let is_mapped = self.nodes.inode(node).is_ok_and(|id| self.is_mapped(id));
        let change = is_mapped.then(|| self.stale_pages.begin(node, offset, length));
        answer();
        if let Some(change) = change {
            change.tell();
        }
    }

    /// How an open file is treated by the kernel, by the flags of open(2). Pages that it has and that
    /// are not to be believed it drops.
    pub(crate) fn opened_as(&self, node: INodeNo, flags: i32) -> FopenFlags {
        // NOFLUSH: closing a descriptor writes nothing; what an error of writing back has to tell,
        // fsync tells.
        let mut opened = FopenFlags::FOPEN_NOFLUSH;
        if self.nodes.inode(node).is_ok_and(|id| self.is_mapped(id)) {
            return opened | FopenFlags::FOPEN_DIRECT_IO;
        }
        if !self.stale_pages.is_stale(node) {
            opened |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        // Writes past the kernel's cache need not wait for each other.
        if flags & OFlags::DIRECT.bits().cast_signed() != 0 {
            opened |= FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        }
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_tells_direction_and_size() {
        assert_eq!(MAP_TICKET, 0x8040_f705);
    }
}
