//! An open file of a volume.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pagefence_ext4::FileSystem;
use pagefence_vfs::{
    ExtentInfo, FallocateMode, FileSystem as _, InodeId, MapFormat, SetAttr, Whence, WriteMode,
};

use crate::change::ROOT;
use crate::error::{Error, Result};
use crate::map::FaultService;
use crate::map::live::{fill_outside_maps, outside_maps};
use crate::metadata::Metadata;
use crate::volume::Volume;

/// The most bytes that one step of [`File::read_all`] reads.
const STEP: usize = 1 << 20;

/// Extents asked for at a time.
const EXTENTS_AT_ONCE: usize = 256;

/// An open regular file. Reads and writes at an offset may run from many threads at once;
/// [`Read`], [`Write`] and [`Seek`] keep a position of their own.
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
    pub(crate) fs: Arc<FileSystem>,
    file: <FileSystem as pagefence_vfs::FileSystem>::File,
    pub(crate) path: PathBuf,
    pub(crate) id: InodeId,
    position: u64,
    pub(crate) rights: Rights,
    pub(crate) faults: Arc<FaultService>,
    /// Behind `file`: fields go in their order.
    _closed: Closed,
}

/// Tells the file system, when a file that was open is let go, that it may have been the last of
/// one without a name.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) fs: Arc<FileSystem>,
    id: InodeId,
}

impl Closed {
    /// Of a file that was opened before.
    pub(crate) fn new(fs: &Arc<FileSystem>, id: InodeId) -> Self {
        Self {
            fs: Arc::clone(fs),
            id,
        }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.fs.forget(self.id);
    }
}

/// What a file was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of open(2), and goes with any other"
)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) append: bool,
    pub(crate) direct: bool,
}

impl Rights {
    pub(crate) const READ: Self = Self {
        read: true,
        write: false,
        append: false,
        direct: false,
    };
}

/// A piece of a file that has blocks: see [`File::extents`]. Offsets and length in bytes.
pub type Extent = ExtentInfo;

impl File {
    pub(crate) fn open(volume: &Volume, path: &Path, id: InodeId) -> Result<Self> {
        Self::open_with(volume, path, id, Rights::READ)
    }

    pub(crate) fn open_with(
        volume: &Volume,
        path: &Path,
        id: InodeId,
        rights: Rights,
    ) -> Result<Self> {
        let file = volume
            .fs
            .open(id, rights.write)
            .map_err(|error| Error::at(path, error))?;
        Ok(Self {
            fs: Arc::clone(&volume.fs),
            file,
            path: path.to_path_buf(),
            id,
            position: 0,
            rights,
            faults: Arc::clone(&volume.faults),
            _closed: Closed::new(&volume.fs, id),
        })
    }

    pub(crate) fn fail(&self, error: pagefence_vfs::Error) -> Error {
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
    /// for only at the end of the file. The position stays. The buffer may lie in a [`Map`] of any
    /// file, this one included.
    ///
    /// [`Map`]: crate::Map
    ///
    /// # Errors
    /// The device fails, or the file's block map is damaged.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if !self.rights.read {
            return Err(self.fail(pagefence_vfs::Error::PermissionDenied));
        }
        fill_outside_maps(buffer, |at, part| {
            let offset = offset.saturating_add(at as u64);
            if self.rights.direct {
                self.fs.read_direct(&self.file, offset, part)
            } else {
                self.fs.read(&self.file, offset, part)
            }
        })
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
            // Fewer than asked for are the last ones, or those before an error: who asks again knows.
            if read == 0 || bytes.len() == size {
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

    /// Writes `data` from byte `offset` on, growing the file if need be, and returns how many
    /// bytes: fewer only if something failed behind them. With [`OpenOptions::append`] they go to
    /// the end of the file, wherever that is. The position stays. The data may lie in a [`Map`] of
    /// any file, this one included.
    ///
    /// What was written is seen by every reader at once; it is durable after
    /// [`File::sync_data`]. It has its space already: that never fails later.
    ///
    /// [`OpenOptions::append`]: crate::OpenOptions::append
    /// [`Map`]: crate::Map
    ///
    /// # Errors
    /// Not opened for writing; no space; the file would be too large.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<usize> {
        if !self.rights.write {
            return Err(self.fail(pagefence_vfs::Error::PermissionDenied));
        }
        // As root, here as everywhere: set-uid bits stay, capabilities go.
        let mut mode = WriteMode::USE_RESERVE | WriteMode::KILL_CAPABILITIES;
        mode.set(WriteMode::APPEND, self.rights.append);
        mode.set(WriteMode::DIRECT, self.rights.direct);
        let mut written = 0;
        for chunk in data.chunks(STEP) {
            let at = offset.saturating_add(written as u64);
            match self.fs.write(&self.file, at, &outside_maps(chunk), mode) {
                Ok(some) => {
                    written += some;
                    if some < chunk.len() {
                        break;
                    }
                }
                Err(_) if written > 0 => break,
                Err(error) => return Err(self.fail(error)),
            }
        }
        Ok(written)
    }

    /// Writes all of `data` from byte `offset` on.
    ///
    /// # Errors
    /// As [`File::write_at`]; some of it may have been written then.
    pub fn write_all_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < data.len() {
            done += self.write_at(offset.saturating_add(done as u64), &data[done..])?;
        }
        Ok(())
    }

    /// Makes the file `size` bytes long: cuts it off, or lets it end in a hole.
    ///
    /// # Errors
    /// Not opened for writing; the file would be too large.
    pub fn set_len(&self, size: u64) -> Result<()> {
        if !self.rights.write {
            return Err(self.fail(pagefence_vfs::Error::PermissionDenied));
        }
        let change = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        self.fs
            .set_attr(self.id, &change, &ROOT)
            .map(drop)
            .map_err(|error| self.fail(error))
    }

    /// Gives `length` bytes from `offset` on their space, so that writing there can't fail for
    /// want of it; the file grows to the range's end.
    ///
    /// # Errors
    /// Not opened for writing; no space; [`io::ErrorKind::Unsupported`] for a file that can't have
    /// space without data there (ext2, ext3).
    pub fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.change_range(offset, length, FallocateMode::empty())
    }

    /// As [`File::allocate`], with the size left as it is: what lies past the end has its space for
    /// when the file grows.
    ///
    /// # Errors
    /// As [`File::allocate`].
    pub fn allocate_keeping_size(&self, offset: u64, length: u64) -> Result<()> {
        self.change_range(offset, length, FallocateMode::KEEP_SIZE)
    }

    /// Makes `length` bytes from `offset` on a hole, which reads as zeros; the size stays. Blocks that
    /// lie in the range as a whole are given up.
    ///
    /// # Errors
    /// Not opened for writing; the file is damaged; the device fails.
    pub fn punch_hole(&self, offset: u64, length: u64) -> Result<()> {
        let mode = FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE;
        self.change_range(offset, length, mode)
    }

    /// Makes `length` bytes from `offset` on read as zeros, and gives them their space, as
    /// [`File::allocate`]; the file grows to the range's end.
    ///
    /// # Errors
    /// As [`File::allocate`].
    pub fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        self.change_range(offset, length, FallocateMode::ZERO_RANGE)
    }

    /// As [`File::zero_range`], with the size left as it is.
    ///
    /// # Errors
    /// As [`File::allocate`].
    pub fn zero_range_keeping_size(&self, offset: u64, length: u64) -> Result<()> {
        let mode = FallocateMode::ZERO_RANGE | FallocateMode::KEEP_SIZE;
        self.change_range(offset, length, mode)
    }

    /// Takes `length` bytes from `offset` on out of the file: what follows moves there, and the file
    /// is that much shorter. No data is copied.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use pagefence::{OpenOptions, Options, Volume};
    /// let volume = Volume::open(&image, Options::new().write(true))?;
    /// let file = OpenOptions::new().read(true).write(true).create(true).open(&volume, "/log")?;
    /// let block = 64 << 10; // a multiple of every block size
    /// file.write_all_at(0, &[b'a'; 64 << 10])?;
    /// file.write_all_at(block, b"news")?;
    /// file.collapse_range(0, block)?;
    /// assert_eq!(file.read_all()?, b"news");
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] unless the range begins and ends with a block, before the end
    /// of the file; not opened for writing; no space for the map; the file is damaged; the device
    /// fails. After the last two some of what follows may have moved, and the hole that it left
    /// lies behind it.
    pub fn collapse_range(&self, offset: u64, length: u64) -> Result<()> {
        self.change_range(offset, length, FallocateMode::COLLAPSE_RANGE)
    }

    /// Puts a hole of `length` bytes in at `offset`: what is there, and what follows, moves behind
    /// it, and the file is that much longer. No data is copied.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use pagefence::{OpenOptions, Options, Volume};
    /// let volume = Volume::open(&image, Options::new().write(true))?;
    /// let file = OpenOptions::new().read(true).write(true).create(true).open(&volume, "/log")?;
    /// let block = 64 << 10; // a multiple of every block size
    /// file.write_all_at(0, b"news")?;
    /// file.insert_range(0, block)?;
    /// assert_eq!(file.seek_data(0)?, Some(block));
    /// let mut news = [0; 4];
    /// file.read_at(block, &mut news)?;
    /// assert_eq!(&news, b"news");
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`File::collapse_range`], where only `offset` has to lie before the end of the file; the
    /// file would be too large.
    pub fn insert_range(&self, offset: u64, length: u64) -> Result<()> {
        self.change_range(offset, length, FallocateMode::INSERT_RANGE)
    }

    /// What `length` bytes from `offset` on hold and as many from `other_offset` on of `other`, which
    /// may be this file, change places, holes as well. No data is copied, and sizes stay. All is in
    /// whole blocks; the length may be less if it ends where one of the files does.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use pagefence::{OpenOptions, Options, Volume};
    /// let volume = Volume::open(&image, Options::new().write(true))?;
    /// let options = OpenOptions::new().read(true).write(true).create(true);
    /// let (old, new) = (options.open(&volume, "/old")?, options.open(&volume, "/new")?);
    /// old.write_all_at(0, b"before")?;
    /// new.write_all_at(0, b"behind")?;
    /// old.exchange_range(0, &new, 0, 6)?;
    /// assert_eq!(old.read_all()?, b"behind");
    /// assert_eq!(new.read_all()?, b"before");
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] unless both ranges begin and end with a block, lie within the
    /// last blocks of their files, and are apart if it is one file, or if other bytes than zeros
    /// would come to lie behind the end of a file; files of two volumes; one that is not opened for
    /// writing, or can't have the other one's blocks; no space for the maps; a file is damaged; the
    /// device fails. After the last two some from the beginning may have changed places.
    pub fn exchange_range(
        &self,
        offset: u64,
        other: &File,
        other_offset: u64,
        length: u64,
    ) -> Result<()> {
        if !self.rights.write || !other.rights.write {
            return Err(self.fail(pagefence_vfs::Error::PermissionDenied));
        }
        if !Arc::ptr_eq(&self.fs, &other.fs) {
            return Err(self.fail(pagefence_vfs::Error::CrossesDevices));
        }
        lose_capabilities(&self.fs, self.id)
            .and_then(|()| lose_capabilities(&other.fs, other.id))
            .and_then(|()| {
                let (one, two) = (&self.file, &other.file);
                self.fs
                    .exchange_range(one, offset, two, other_offset, length)
            })
            .map_err(|error| self.fail(error))
    }

    fn change_range(&self, offset: u64, length: u64, mode: FallocateMode) -> Result<()> {
        if !self.rights.write {
            return Err(self.fail(pagefence_vfs::Error::PermissionDenied));
        }
        let mode = mode | FallocateMode::USE_RESERVE;
        lose_capabilities(&self.fs, self.id)
            .and_then(|()| self.fs.allocate(&self.file, offset, length, mode))
            .map_err(|error| self.fail(error))
    }

    /// Gives the file's blocks another kind of map, in which they stay where they are; does nothing
    /// if it has such a map. Others may use the file meanwhile.
    ///
    /// # Errors
    /// The volume is not open for writing; no space; [`io::ErrorKind::Unsupported`] if such a map
    /// can't say what the file's says, [`io::ErrorKind::InvalidInput`] if the file system has no
    /// extents, or the file has no map; [`io::ErrorKind::WouldBlock`] if somebody else's data got
    /// blocks meanwhile: the file is as it was, and may be migrated the next time.
    pub fn migrate(&self, to: MapFormat) -> Result<()> {
        self.fs
            .migrate(self.id, to, &ROOT)
            .map_err(|error| self.fail(error))
    }

    /// Returns once the file's data, and what is needed to find it, is durable.
    ///
    /// # Errors
    /// The device failed, now or since the file was opened: told once.
    pub fn sync_data(&self) -> Result<()> {
        self.fs
            .sync_file(&self.file, true)
            .map_err(|error| self.fail(error))
    }

    /// Returns once the file's data and all its attributes are durable. A new file's name is
    /// durable, too.
    ///
    /// # Errors
    /// As [`File::sync_data`].
    pub fn sync_all(&self) -> Result<()> {
        self.fs
            .sync_file(&self.file, false)
            .map_err(|error| self.fail(error))
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

impl Write for File {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.write_at(self.position, data)?;
        self.position = if self.rights.append {
            self.metadata()?.len()
        } else {
            self.position + written as u64
        };
        Ok(written)
    }

    /// Does nothing: nothing is held back. See [`File::sync_data`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes capabilities off a file before its contents change otherwise than by a write.
fn lose_capabilities(fs: &FileSystem, id: InodeId) -> pagefence_vfs::Result<()> {
    const CAPABILITY: &[u8] = b"security.capability";
    match fs.xattr(id, CAPABILITY) {
        Ok(_) => fs.remove_xattr(id, CAPABILITY),
        // Its attributes may be damaged: the data is then no worse.
        Err(_) => Ok(()),
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
