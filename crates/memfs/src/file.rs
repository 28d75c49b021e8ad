//! Open files: reading, writing, looking for data.

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{Backing as _, Mapping, ReadError, Readahead};
use pagefence_vfs::{
    Copy, Error, InodeId, Result, Whence, WriteMode, copy_in_pieces, without_privileges,
};

use crate::clock;
use crate::data::FileData;
use crate::filesystem::{MemFs, Open, ReleaseMemory};
use crate::inode::Inode;
use crate::setattr::SIZE_MAX;
use crate::xattr::CAPABILITY;

/// An open regular file.
#[derive(Debug)]
pub struct File {
    open: Open,
    mapping: Arc<Mapping<FileData>>,
    /// What the cache keeps for each reader; nothing is read ahead here.
    readahead: Readahead,
    /// The last: by then its pages are gone, if they go with it.
    _after: ReleaseMemory,
}

impl File {
    pub(crate) fn inode(&self) -> &Arc<Inode> {
        self.open.inode()
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping<FileData>> {
        &self.mapping
    }
}

impl MemFs {
    pub(crate) fn open_file(&self, id: InodeId) -> Result<File> {
        let inode = self.core.inodes.get(id)?;
        let mapping = Arc::clone(inode.mapping()?);
        Ok(File {
            open: Open::new(&self.core, inode)?,
            mapping,
            readahead: Readahead::new(),
            _after: ReleaseMemory::new(&self.core),
        })
    }

    pub(crate) fn read_file(&self, file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut held = Held::at_entry();
        let read = file
            .mapping
            .read(&mut held, &file.readahead, offset, buffer)
            .map_err(|error| match error {
                ReadError::Backing(full) => full.into(),
                _ => Error::OutOfMemory,
            })?;
        self.note_access(file.inode());
        Ok(read)
    }

    /// See [`pagefence_vfs::FileSystem::write`]. Takes the inode lock exclusively, and below it
    /// what the cache takes. What was written is as durable as it will get.
    pub(crate) fn write_file(
        &self,
        file: &File,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<usize> {
        let inode = file.inode();
        let mut held = Held::at_entry();
        let (_alone, mut held) = inode.lock.write(&mut held);
        let size = file.mapping.backing().size();
        let offset = match mode.contains(WriteMode::APPEND) {
            true => size,
            false => offset,
        };
        if data.is_empty() {
            return Ok(0);
        }
        let room = SIZE_MAX.saturating_sub(offset);
        if room == 0 {
            return Err(Error::FileTooLarge);
        }
        let most = usize::try_from(room).unwrap_or(usize::MAX);
        let data = data.get(..most).unwrap_or(data);
        if mode.intersects(WriteMode::KILL_PRIVILEGES | WriteMode::KILL_CAPABILITIES) {
            kill_privileges(inode, mode);
        }
        if offset > size {
            Self::zero_tail(&mut held, &file.mapping)?;
        }
        let written = file.mapping.write(&mut held, offset, data)?;
        if !mode.contains(WriteMode::WRITEBACK) {
            inode.touch(clock::now());
        }
        Ok(written)
    }

    /// See [`pagefence_vfs::FileSystem::seek`]. Pages that were written are data; what was promised
    /// and not written is a hole, as in Linux.
    pub(crate) fn seek_file(&self, file: &File, offset: u64, whence: Whence) -> Result<u64> {
        let size = file.mapping.backing().size();
        if offset >= size {
            return Err(Error::NoData);
        }
        let mut at = offset;
        loop {
            let data = file.mapping.next_dirty(at).filter(|run| run.start < size);
            match (whence, data) {
                (Whence::Data, Some(data)) => return Ok(data.start),
                (Whence::Data, None) => return Err(Error::NoData),
                (Whence::Hole, Some(data)) if data.start == at && data.end < size => at = data.end,
                (Whence::Hole, Some(data)) if data.start == at => return Ok(size),
                (Whence::Hole, _) => return Ok(at),
            }
        }
    }

    /// See [`pagefence_vfs::FileSystem::copy_range`]: a piece at a time, so that no two files'
    /// locks are held at once.
    pub(crate) fn copy_file_range(
        &self,
        (from, from_offset): (&File, u64),
        (to, to_offset): (&File, u64),
        length: u64,
        mode: WriteMode,
    ) -> Result<u64> {
        let copy = Copy {
            offsets: [from_offset, to_offset],
            length,
            size: from.mapping.backing().size(),
            is_same: Arc::ptr_eq(from.inode(), to.inode()),
        };
        copy_in_pieces(
            &copy,
            |at, buffer| self.read_file(from, at, buffer),
            |at, data| self.write_file(to, at, data, mode),
        )
    }
}

/// Takes off capabilities, and with [`WriteMode::KILL_PRIVILEGES`] set-uid and set-group-id. The caller holds the
/// inode lock exclusively.
fn kill_privileges(inode: &Inode, mode: WriteMode) {
    let freed = {
        let record = inode.record.read();
        let kept = if mode.contains(WriteMode::KILL_PRIVILEGES) {
            without_privileges(record.permissions)
        } else {
            record.permissions
        };
        if kept == record.permissions && !record.xattrs.contains_key(CAPABILITY) {
            return;
        }
        drop(record);
        let mut record = inode.record.write();
        record.permissions = kept;
        record.changed = clock::now();
        record.remove_xattr(CAPABILITY)
    };
    inode.discharge(freed);
}
