//! An open file of a volume.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pagefence_ext4::FileSystem;
use pagefence_vfs::{ExtentInfo, FileSystem as _, InodeId, Whence};

use crate::error::{Error, Result};
use crate::metadata::Metadata;
use crate::volume::Volume;

/// The most bytes that one step of [`File::read_all`] reads.
const STEP: usize = 1 << 20;

/// Extents asked for at a time.
const EXTENTS_AT_ONCE: usize = 256;

/// An open regular file. Reads at an offset may run from many threads at once; [`Read`] and
/// [`Seek`] keep a position of their own.
///
/// ```
/// # let image = pagefence::doc_image();
/// use std::io::Read;
/// let volume = pagefence::Volume::open(&image, pagefence::Options::new())?;
/// let mut file = volume.open_file("/etc/hostname")?;
/// let mut start = [0; 4];
/// assert_eq!(file.read_at(0, &mut start)?, 4);
/// assert_eq!(&start, b"page");
/// let mut text = String::new();
/// file.read_to_string(&mut text)?;
/// assert_eq!(text, "pagefence\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct File {
    fs: Arc<FileSystem>,
    file: <FileSystem as pagefence_vfs::FileSystem>::File,
    path: PathBuf,
    id: InodeId,
    position: u64,
}

/// A piece of a file that has blocks: see [`File::extents`]. Offsets and length in bytes.
pub type Extent = ExtentInfo;

impl File {
    pub(crate) fn open(volume: &Volume, path: &Path, id: InodeId) -> Result<Self> {
        let file = volume
            .fs
            .open(id, false)
            .map_err(|error| Error::at(path, error))?;
        Ok(Self {
            fs: Arc::clone(&volume.fs),
            file,
            path: path.to_path_buf(),
            id,
            position: 0,
        })
    }

    fn fail(&self, error: pagefence_vfs::Error) -> Error {
        Error::at(&self.path, error)
    }

    /// Its attributes.
    ///
    /// # Errors
    /// The inode can't be read.
    pub fn metadata(&self) -> Result<Metadata> {
        self.fs
            .attr(self.id)
            .map(Metadata)
            .map_err(|error| self.fail(error))
    }

    /// Reads into `buffer` from byte `offset` on, and returns how many bytes: fewer than asked
    /// for only at the end of the file. The position stays.
    ///
    /// # Errors
    /// The device fails, or the file's block map is damaged.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.fs
            .read(&self.file, offset, buffer)
            .map_err(|error| self.fail(error))
    }

    /// The whole contents, from byte 0 on; holes are zeros, so that a file may be much longer
    /// than what the image holds.
    ///
    /// # Errors
    /// As [`File::read_at`]; [`io::ErrorKind::OutOfMemory`] if they do not fit in memory.
    pub fn read_all(&self) -> Result<Vec<u8>> {
        let no_memory = || self.fail(pagefence_vfs::Error::OutOfMemory);
        let size = usize::try_from(self.metadata()?.len()).map_err(|_| no_memory())?;
        let mut bytes = Vec::new();
        // A size that no memory can hold fails here, before any is used.
        bytes.try_reserve_exact(size).map_err(|_| no_memory())?;
        loop {
            let start = bytes.len();
            let step = STEP.min(size - start);
            bytes.resize(start + step, 0);
            let read = self.read_at(start as u64, &mut bytes[start..])?;
            bytes.truncate(start + read);
            if read < step || bytes.len() == size {
                return Ok(bytes);
            }
        }
    }

    /// The next byte at or after `offset` that is no hole, or nothing if there is none.
    ///
    /// # Errors
    /// As [`File::read_at`].
    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>> {
        self.seek_for(offset, Whence::Data)
    }

    /// The next byte at or after `offset` that is in a hole (the end of the file is one), or
    /// nothing if `offset` is past the end.
    ///
    /// # Errors
    /// As [`File::read_at`].
    pub fn seek_hole(&self, offset: u64) -> Result<Option<u64>> {
        self.seek_for(offset, Whence::Hole)
    }

    fn seek_for(&self, offset: u64, whence: Whence) -> Result<Option<u64>> {
        match self.fs.seek(&self.file, offset, whence) {
            Ok(found) => Ok(Some(found)),
            Err(pagefence_vfs::Error::NoData) => Ok(None),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// The pieces of the file that have blocks, ascending; holes lie between them.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// let volume = pagefence::Volume::open(&image, pagefence::Options::new())?;
    /// let file = volume.open_file("/usr/share/sparse.bin")?;
    /// let mapped: u64 = file.extents().map(|extent| extent.map(|e| e.length)).sum::<Result<_, _>>()?;
    /// assert!(mapped < file.metadata()?.len());
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    pub fn extents(&self) -> Extents<'_> {
        Extents {
            file: self,
            next: 0,
            batch: Vec::new().into_iter(),
            done: false,
        }
    }
}

/// Iterator over a file's extents, from [`File::extents`].
#[derive(Debug)]
pub struct Extents<'a> {
    file: &'a File,
    next: u64,
    batch: std::vec::IntoIter<ExtentInfo>,
    done: bool,
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(extent) = self.batch.next() {
            self.next = extent.logical.saturating_add(extent.length.max(1));
            return Some(Ok(extent));
        }
        if self.done {
            return None;
        }
        let left = u64::MAX - self.next;
        match self
            .file
            .fs
            .extents(self.file.id, self.next, left, EXTENTS_AT_ONCE)
        {
            Ok(batch) => {
                self.done = batch.len() < EXTENTS_AT_ONCE;
                self.batch = batch.into_iter();
                let extent = self.batch.next()?;
                self.next = extent.logical.saturating_add(extent.length.max(1));
                Some(Ok(extent))
            }
            Err(error) => {
                self.done = true;
                Some(Err(self.file.fail(error)))
            }
        }
    }
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.read_at(self.position, buffer)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.metadata()?.len().checked_add_signed(by),
        };
        self.position = target.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "seek to a position before byte 0",
            )
        })?;
        Ok(self.position)
    }
}
