//! An open file's pages, to be mapped into the memory of programs.
//!
//! Who maps them serves faults at the page cache, which asks this file system for what a page needs as
//! ever ([`FileData`]); here is what comes before: whether the file may be mapped, and that its pages
//! lie where they can be.

use pagefence_ext4_format::inode::InodeFlags;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels;
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{self as cache, FileMemory, Mapping};
use pagefence_vfs::{Error, Result, WriteMode};

use crate::backing::FileData;
use crate::file_write::note_rights;
use crate::filesystem::{File, FileSystem};
use crate::inode::Inode;

/// What is to be mapped: the pages of a file, and the memory that they are in.
///
/// It does not keep the inode: whoever maps it keeps the [`File`] open, and drops that last.
#[derive(Debug)]
pub struct SharedPages {
    /// The pages.
    pub mapping: Arc<Mapping<FileData>>,
    /// Where they are, each at its place in the file.
    pub memory: Arc<FileMemory>,
}

/// Why a file's pages can't be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// The file, or the file system, does not allow it, or what is dirty could not be written first.
    #[error(transparent)]
    File(#[from] Error),
    /// The system gives no memory that can be mapped; its error says why.
    #[error("no memory that can be mapped: {0}")]
    Memory(#[source] std::io::Error),
}

impl FileSystem {
    /// Has the pages of an open file in memory that programs can map; with `stores`, to change the
    /// file by storing there: of that mode only [`WriteMode::USE_RESERVE`] counts.
    ///
    /// A file whose data lies in its inode gets a block, if it is to be stored to: a page that is
    /// stored to has no inode lock, which keeps the inode's room for it. For loads it stays there.
    ///
    /// Takes the inode lock exclusively, which no direct I/O then has; the first time all that is dirty
    /// is written, below the invalidate lock, and the pages are dropped.
    ///
    /// # Errors
    /// For stores `PermissionDenied` (mmap(2): `EACCES`) if the file is not open for writing, or can
    /// only be appended to, and `NotPermitted` (`EPERM`) if it can't be changed at all; `ReadOnly`. What
    /// writing what is dirty may meet; [`ShareError::Memory`].
    pub fn share_pages(
        &self,
        file: &File,
        stores: Option<WriteMode>,
    ) -> std::result::Result<SharedPages, ShareError> {
        let inode = &file.inode;
        let memory = {
            let mut entry = Held::at_entry();
            let (_alone, mut held) = inode.lock.write(&mut entry);
            if let Some(mode) = stores {
                self.prepare_for_stores(&mut held, file)?;
                note_rights(&mut held, inode, mode);
            }
            file.mapping
                .share_memory(&mut held)
                .map_err(|error| match error {
                    cache::ShareError::Write(error) => ShareError::File(error.into()),
                    cache::ShareError::Memory(error) => ShareError::Memory(error),
                    other => ShareError::Memory(std::io::Error::other(other.to_string())),
                })?
        };
        self.note_access(inode);
        Ok(SharedPages {
            mapping: Arc::clone(&file.mapping),
            memory,
        })
    }

    /// Refuses stores where they may not be, and makes a file one that pages are written back of with
    /// no inode lock.
    fn prepare_for_stores(&self, held: &mut Held<'_, levels::Inode>, file: &File) -> Result<()> {
        if !file.is_writer {
            return Err(Error::PermissionDenied);
        }
        self.instance.live()?;
        let inode: &Arc<Inode> = &file.inode;
        let flags = inode.disk().record.flags();
        if flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::VERITY) {
            return Err(Error::NotPermitted);
        }
        if flags.contains(InodeFlags::APPEND) {
            return Err(Error::PermissionDenied);
        }
        self.make_inline_fit(held, inode, u64::MAX)
    }
}
