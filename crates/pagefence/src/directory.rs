//! Reading a directory.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pagefence_ext4::FileSystem;
use pagefence_vfs::{Attr, Cookie, FileKind, FileSystem as _, InodeId};

use crate::error::{Error, Result};
use crate::metadata::{FileType, Metadata};
use crate::volume::Volume;

/// Entries taken from the directory at a time.
const BATCH: usize = 256;

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    fs: Arc<FileSystem>,
    parent: Arc<Path>,
    dir: InodeId,
    name: OsString,
    id: InodeId,
    kind: Option<FileKind>,
    attr: Option<Attr>,
}

impl DirEntry {
    /// The entry's name, without the path.
    #[must_use]
    pub fn file_name(&self) -> &OsStr {
        &self.name
    }

    /// The directory's path, as it was given, and the entry's name.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// Number of the inode.
    #[must_use]
    pub fn ino(&self) -> u64 {
        self.id.0
    }

    /// The kind of file; reads the inode only where the directory does not record it.
    ///
    /// # Errors
    /// The inode can't be read.
    pub fn file_type(&self) -> Result<FileType> {
        match self.kind {
            Some(kind) => Ok(FileType(kind)),
            None => Ok(self.metadata()?.file_type()),
        }
    }

    /// Attributes of the entry itself: symbolic links are not followed.
    ///
    /// # Errors
    /// The inode can't be read.
    pub fn metadata(&self) -> Result<Metadata> {
        match &self.attr {
            Some(attr) => Ok(Metadata(attr.clone())),
            None => match self.fs.attr(self.id) {
                // Gone meanwhile, or never there: the directory tells one from the other.
                Err(pagefence_vfs::Error::Stale) => self
                    .fs
                    .lookup(self.dir, self.name.as_bytes())
                    .map(|found| found.attr),
                result => result,
            }
            .map(Metadata)
            .map_err(|error| Error::at(&self.path(), error)),
        }
    }
}

/// Iterator over a directory's entries, from [`Volume::read_dir`].
///
/// It ends at damage, with an error behind the entries before it.
pub struct ReadDir {
    fs: Arc<FileSystem>,
    dir: <FileSystem as pagefence_vfs::FileSystem>::Directory,
    path: Arc<Path>,
    id: InodeId,
    with_attr: bool,
    next: Cookie,
    batch: std::vec::IntoIter<DirEntry>,
    /// Why reading stopped, told behind the entries before it.
    error: Option<Error>,
    done: bool,
}

impl std::fmt::Debug for ReadDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadDir")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl ReadDir {
    pub(crate) fn open(volume: &Volume, path: PathBuf, id: InodeId) -> Result<Self> {
        let dir = volume
            .fs
            .open_dir(id)
            .map_err(|error| Error::at(&path, error))?;
        Ok(Self {
            fs: Arc::clone(&volume.fs),
            dir,
            path: path.into(),
            id,
            with_attr: false,
            next: 0,
            batch: Vec::new().into_iter(),
            error: None,
            done: false,
        })
    }

    /// Reads the attributes along with the entries: faster when all of them are wanted.
    pub(crate) fn with_attr(mut self) -> Self {
        self.with_attr = true;
        self
    }

    fn fill(&mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut next = self.next;
        let mut full = false;
        let result = self.fs.read_dir(
            &self.dir,
            self.next,
            self.with_attr,
            &mut |entry: &pagefence_vfs::DirEntry<'_>| {
                if batch.len() == BATCH {
                    full = true;
                    return ControlFlow::Break(());
                }
                next = entry.next;
                if entry.name != b"." && entry.name != b".." {
                    batch.push(DirEntry {
                        fs: Arc::clone(&self.fs),
                        parent: Arc::clone(&self.path),
                        dir: self.id,
                        name: OsString::from_vec(entry.name.to_vec()),
                        id: entry.id,
                        kind: entry.kind,
                        attr: entry.attr.clone(),
                    });
                }
                ControlFlow::Continue(())
            },
        );
        self.next = next;
        self.batch = batch.into_iter();
        self.done = !full;
        self.error = result.err().map(|error| Error::at(&self.path, error));
    }
}

impl Iterator for ReadDir {
    type Item = Result<DirEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.batch.next() {
                return Some(Ok(entry));
            }
            if let Some(error) = self.error.take() {
                return Some(Err(error));
            }
            if self.done {
                return None;
            }
            self.fill();
        }
    }
}
