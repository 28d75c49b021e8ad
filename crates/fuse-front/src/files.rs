//! Requests on open files: open, read, lseek.

use std::cell::RefCell;

use fuser::{Errno, FileHandle, INodeNo, OpenAccMode, OpenFlags, ReplyData};
use pagefence_vfs::{FileSystem, Whence};

use crate::dispatch::Dispatch;
use crate::errno::errno;
use crate::session::REQUEST_BYTES;

const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

pagefence_lock_order::primitives::thread_local! {
    /// Where the thread that serves a read puts the bytes. It grows to the largest read that the
    /// thread has served, at most [`REQUEST_BYTES`].
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<F: FileSystem> Dispatch<F> {
    /// Opens a file for reading.
    pub(crate) fn open_file(&self, node: INodeNo, flags: OpenFlags) -> Result<FileHandle, Errno> {
        let id = self.nodes.inode(node)?;
        let truncate = rustix::fs::OFlags::TRUNC.bits().cast_signed();
        if flags.acc_mode() != OpenAccMode::O_RDONLY || flags.0 & truncate != 0 {
            return Err(Errno::EROFS);
        }
        let file = self.fs.open(id, false).map_err(|error| errno(&error))?;
        let number = self.files.insert(id.0, file).ok_or(Errno::ENFILE)?;
        Ok(FileHandle(number))
    }

    /// Reads, and answers from this thread's buffer: no allocation, one copy.
    pub(crate) fn read_file(&self, handle: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        let Some(file) = self.files.get(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        // The kernel was told that a request is at most this long.
        let size = (size as usize).min(REQUEST_BYTES);
        BUFFER.with(|buffer| {
            let mut buffer = buffer.borrow_mut();
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.fs.read(&file, offset, &mut buffer[..size]) {
                Ok(length) => reply.data(&buffer[..length.min(size)]),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    /// SEEK_DATA and SEEK_HOLE; the kernel does the others.
    pub(crate) fn seek(
        &self,
        node: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
    ) -> Result<i64, Errno> {
        let id = self.nodes.inode(node)?;
        let file = self.files.get(handle.0).ok_or(Errno::EBADF)?;
        let whence = match whence {
            SEEK_DATA => Whence::Data,
            SEEK_HOLE => Whence::Hole,
            _ => return Err(Errno::EINVAL),
        };
        let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        if offset >= self.fs.attr(id).map_err(|error| errno(&error))?.size {
            return Err(Errno::ENXIO);
        }
        let at = self
            .fs
            .seek(&file, offset, whence)
            .map_err(|error| errno(&error))?;
        i64::try_from(at).map_err(|_| Errno::EOVERFLOW)
    }
}
