//! Requests on open files: open, read, write, allocate, copy, sync, lseek.

use fuser::{Errno, FileHandle, INodeNo, OpenAccMode, OpenFlags, ReplyData, Request, WriteFlags};
use pagefence_lock_order::primitives::Mutex;
use pagefence_vfs::{FallocateMode, FileSystem, InodeId, Result as FsResult, Whence, WriteMode};
use rustix::fs::OFlags;

use crate::dispatch::Dispatch;
use crate::errno::errno;
use crate::session::REQUEST_BYTES;

const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Flags of an inode, as FS_IOC_GETFLAGS has them: it can't be written to, or at its end only.
pub(crate) const IMMUTABLE: u32 = 0x10;
pub(crate) const APPEND_ONLY: u32 = 0x20;

/// Bytes copied by one request.
const COPY_BYTES_MAX: u64 = 1 << 30;

/// Memory that is kept for reads to come, at most this many pieces.
const SPARE_BUFFERS: usize = 4;

/// What a device may want its memory aligned to, for direct reads to come straight to it.
const ALIGNMENT: usize = 4096;

/// Where reads put their bytes: memory of the last ones, each of at most [`REQUEST_BYTES`] and
/// [`ALIGNMENT`]. Shared, as few threads read at once and each that ever read would keep a piece.
///
/// Locks: a leaf, held to take a piece out or put one in.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffers(Mutex<Vec<Vec<u8>>>);

impl ReadBuffers {
    /// Calls `read` with `size` bytes of aligned memory, of whatever contents.
    fn with<R>(&self, size: usize, read: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut buffer = self.0.lock().pop().unwrap_or_default();
        if buffer.len() < size + ALIGNMENT {
            buffer.resize(size + ALIGNMENT, 0);
        }
        let start = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let done = read(&mut buffer[start..start + size]);
        let mut spares = self.0.lock();
        if spares.len() < SPARE_BUFFERS {
            spares.push(buffer);
        }
        done
    }
}

/// A file that the kernel has open.
pub(crate) struct OpenFile<F: FileSystem> {
    file: F::File,
    /// It was opened for reading.
    pub(crate) reads: bool,
    /// It was opened for writing.
    pub(crate) writes: bool,
}

impl<F: FileSystem> std::ops::Deref for OpenFile<F> {
    type Target = F::File;

    fn deref(&self) -> &F::File {
        &self.file
    }
}

impl<F: FileSystem> Dispatch<F> {
    /// Opens a file. O_TRUNC does not come (ATOMIC_O_TRUNC is not negotiated): the kernel cuts the
    /// file off by a SETATTR before. Nor does the offset of O_APPEND concern us: the kernel, which
    /// holds the inode's lock and knows the size, says where to write.
    ///
    /// What is opened for writing alone is read, too: a kernel with a writeback cache reads the
    /// rest of a page that is written in part.
    pub(crate) fn open_file(&self, node: INodeNo, flags: OpenFlags) -> Result<FileHandle, Errno> {
        let id = self.nodes.inode(node)?;
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            // The kernel knows nothing of these flags.
            let marks = self.fs.attr(id).map_err(|error| errno(&error))?.flags;
            let appends = flags.0 & OFlags::APPEND.bits().cast_signed() != 0;
            if marks & IMMUTABLE != 0 || (marks & APPEND_ONLY != 0 && !appends) {
                return Err(Errno::EPERM);
            }
        }
        self.open_inode(id, flags)
    }

    /// Opens a file that is known by its number on disk.
    pub(crate) fn open_inode(&self, id: InodeId, flags: OpenFlags) -> Result<FileHandle, Errno> {
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let file = self.fs.open(id, writes).map_err(|error| errno(&error))?;
        let reads = flags.acc_mode() != OpenAccMode::O_WRONLY;
        let file = OpenFile {
            file,
            reads,
            writes,
        };
        let number = self.files.insert(id.0, file).ok_or(Errno::ENFILE)?;
        Ok(FileHandle(number))
    }

    /// Reads, and answers from this thread's buffer: no allocation, one copy.
    pub(crate) fn read_file(
        &self,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        reply: ReplyData,
    ) {
        let Some(file) = self.files.get(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        // The kernel was told that a request is at most this long.
        let size = (size as usize).min(REQUEST_BYTES);
        self.read_buffers.with(size, |buffer| {
            let read = if is_direct(flags) {
                self.fs.read_direct(&file, offset, buffer)
            } else {
                read_all(offset, buffer, |at, part| self.fs.read(&file, at, part))
            };
            match read {
                Ok(length) => reply.data(&buffer[..length.min(size)]),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    /// Writes. O_SYNC is no matter of ours: the kernel sends an FSYNC after the write.
    pub(crate) fn write_file(
        &self,
        request: &Request,
        (node, handle): (INodeNo, FileHandle),
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        open_flags: OpenFlags,
    ) -> Result<u32, Errno> {
        let file = self.files.get(handle.0).ok_or(Errno::EBADF)?;
        let mut mode = WriteMode::empty();
        let is_cached = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        mode.set(WriteMode::WRITEBACK, is_cached);
        // What comes from the kernel's cache comes by any file that is open for writing.
        mode.set(WriteMode::DIRECT, !is_cached && is_direct(open_flags));
        // It is too late to refuse what the kernel has taken.
        let uses_reserve = is_cached || self.is_root(request);
        mode.set(WriteMode::USE_RESERVE, uses_reserve);
        let kills = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        mode.set(WriteMode::KILL_PRIVILEGES, kills);
        let has_privileges = kills && self.privileges(node)?.is_some();
        let written = self
            .fs
            .write(&file, offset, data, mode)
            .map_err(|error| errno(&error))?;
        if has_privileges {
            self.attributes_changed(node);
        }
        u32::try_from(written).map_err(|_| Errno::EIO)
    }

    /// fallocate(2). A mode that is not known is EOPNOTSUPP: programs then do without.
    pub(crate) fn allocate(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        let file = self.files.get(handle.0).ok_or(Errno::EBADF)?;
        let mut mode = fallocate_mode(mode).ok_or(Errno::EOPNOTSUPP)?;
        mode.set(FallocateMode::USE_RESERVE, self.is_root(request));
        self.take_privileges(request, node)?;
        self.fs
            .allocate(&file, offset, length, mode)
            .map_err(|error| errno(&error))?;
        self.attributes_changed(node);
        Ok(())
    }

    /// fallocate(2) without the kernel's part in it: it locks nothing, and does not know that pages
    /// which it has are elsewhere now.
    pub(crate) fn move_range(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        let file = self.files.get(handle.0).ok_or(Errno::EBADF)?;
        if !file.writes {
            return Err(Errno::EBADF);
        }
        // A kernel that writes back has the last word on the size, and pages that nobody saw yet.
        if self.agreed.writeback {
            return Err(Errno::EOPNOTSUPP);
        }
        let change = self.stale_pages.begin(node, offset, 0);
        let outcome = self.allocate(request, node, handle, offset, length, mode);
        // Also after an error: half of it may have been done.
        change.tell();
        outcome
    }

    /// copy_file_range(2). `to` is a node, and a handle and an offset of it.
    pub(crate) fn copy(
        &self,
        request: &Request,
        from: (FileHandle, u64),
        to: (INodeNo, FileHandle, u64),
        length: u64,
    ) -> Result<u32, Errno> {
        let source = self.files.get(from.0.0).ok_or(Errno::EBADF)?;
        let target = self.files.get(to.1.0).ok_or(Errno::EBADF)?;
        let is_root = self.is_root(request);
        let mut mode = WriteMode::empty();
        mode.set(WriteMode::USE_RESERVE, is_root);
        mode.set(WriteMode::KILL_PRIVILEGES, !is_root);
        let has_privileges = !is_root && self.privileges(to.0)?.is_some();
        // The answer has 32 bits.
        let length = length.min(COPY_BYTES_MAX);
        let copied = self
            .fs
            .copy_range(&source, from.1, &target, to.2, length, mode)
            .map_err(|error| errno(&error))?;
        if has_privileges {
            self.attributes_changed(to.0);
        }
        u32::try_from(copied).map_err(|_| Errno::EIO)
    }

    /// fsync(2), fdatasync(2).
    pub(crate) fn sync_file(&self, handle: FileHandle, data_only: bool) -> Result<(), Errno> {
        let file = self.files.get(handle.0).ok_or(Errno::EBADF)?;
        self.fs
            .sync_file(&file, data_only)
            .map_err(|error| errno(&error))
    }

    /// SEEK_DATA and SEEK_HOLE; the kernel does the others.
    ///
    /// With a writeback cache there may be data that was written and has not come down here yet,
    /// and a program that is told of a hole there copies none of it. ENOSYS has the kernel take
    /// all of a file for data, and ask no more.
    pub(crate) fn seek(&self, handle: FileHandle, offset: i64, whence: i32) -> Result<i64, Errno> {
        if self.agreed.writeback {
            return Err(Errno::ENOSYS);
        }
        let file = self.files.get(handle.0).ok_or(Errno::EBADF)?;
        let whence = match whence {
            SEEK_DATA => Whence::Data,
            SEEK_HOLE => Whence::Hole,
            _ => return Err(Errno::EINVAL),
        };
        let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        let at = self
            .fs
            .seek(&file, offset, whence)
            .map_err(|error| errno(&error))?;
        i64::try_from(at).map_err(|_| Errno::EOVERFLOW)
    }
}

/// Whether a file was opened with O_DIRECT, or has it by fcntl(2) since: the kernel says so with each
/// request. It has written its own pages of the range then, and drops them before and after a write.
fn is_direct(flags: OpenFlags) -> bool {
    flags.0 & OFlags::DIRECT.bits().cast_signed() != 0
}

/// The mode of fallocate(2), if all of it is known.
fn fallocate_mode(mode: i32) -> Option<FallocateMode> {
    const BITS: [(i32, FallocateMode); 5] = [
        (0x01, FallocateMode::KEEP_SIZE),
        (0x02, FallocateMode::PUNCH_HOLE),
        (0x08, FallocateMode::COLLAPSE_RANGE),
        (0x10, FallocateMode::ZERO_RANGE),
        (0x20, FallocateMode::INSERT_RANGE),
    ];
    let known = BITS.iter().fold(0, |known, (bit, _)| known | bit);
    (mode & !known == 0).then(|| {
        BITS.iter()
            .filter(|(bit, _)| mode & bit != 0)
            .fold(FallocateMode::empty(), |all, (_, one)| all | *one)
    })
}

/// Reads all that there is. The kernel takes an answer that is shorter than its request for the end of the
/// file, and the rest of the pages that it asked for for zeros: what comes short of an error is that error, for
/// the kernel to ask again for each page.
fn read_all(
    offset: u64,
    buffer: &mut [u8],
    mut read: impl FnMut(u64, &mut [u8]) -> FsResult<usize>,
) -> FsResult<usize> {
    let mut done = read(offset, buffer)?;
    while (1..buffer.len()).contains(&done) {
        match read(offset.saturating_add(done as u64), &mut buffer[done..])? {
            0 => break,
            more => done += more,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_linux_and_no_others() {
        assert_eq!(fallocate_mode(0), Some(FallocateMode::empty()));
        assert_eq!(
            fallocate_mode(3),
            Some(FallocateMode::KEEP_SIZE | FallocateMode::PUNCH_HOLE)
        );
        assert_eq!(fallocate_mode(0x10), Some(FallocateMode::ZERO_RANGE));
        assert_eq!(fallocate_mode(0x40), None, "unshare");
        assert_eq!(fallocate_mode(4), None);
    }
}
