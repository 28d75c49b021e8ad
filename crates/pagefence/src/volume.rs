//! An open image.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pagefence_block_io::Device;
use pagefence_ext4::FileSystem;
use pagefence_vfs::{Attr, FileKind, FileSystem as _};

use crate::directory::ReadDir;
use crate::error::{Error, Result};
use crate::file::File;
use crate::image::Image;
use crate::map::FaultService;
use crate::map_server::MapServer;
use crate::metadata::Metadata;
use crate::options::Options;
use crate::path::{Follow, resolve};
use crate::walk::Walk;

/// An ext2, ext3 or ext4 file system in an image.
///
/// Cheap to clone: clones share one open image, which is closed with the last of them and of the
/// files, maps and iterators made from them. Paths start at the volume's root, with or without a
/// leading `/`; symbolic links resolve inside the volume.
///
/// ```
/// # let image = pagefence::doc_image();
/// use pagefence::{Options, Volume};
/// let volume = Volume::open(&image, Options::new())?;
/// assert_eq!(volume.read("/etc/hostname")?, b"pagefence\n");
/// for entry in volume.read_dir("/etc")? {
///     println!("{}", entry?.file_name().display());
/// }
/// # Ok::<(), pagefence::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Volume {
    pub(crate) fs: Arc<FileSystem>,
    pub(crate) faults: Arc<FaultService>,
}

/// Size and free space of a volume, in bytes and inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Bytes for data, free and used.
    pub size: u64,
    /// Bytes free.
    pub free: u64,
    /// Bytes free for others than root.
    pub available: u64,
    /// Inodes, free and used.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
}

impl Volume {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// The file can't be opened, is in use by somebody who writes to it, holds no file system of
    /// these types, or one that is damaged or needs a feature that is not supported: the error's
    /// text says which.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        Image::open(path, options)?.into_volume()
    }

    /// Opens the file system on `device`: an image in memory, or a device of one's own.
    ///
    /// # Errors
    /// As [`Volume::open`].
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use std::sync::Arc;
    /// use pagefence::device::MemoryDevice;
    /// use pagefence::{Options, Volume};
    /// let bytes = std::fs::read(&image)?;
    /// let volume = Volume::open_device(Arc::new(MemoryDevice::from_bytes(&bytes)), Options::new())?;
    /// assert!(volume.exists("/etc")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open_device(device: Arc<dyn Device>, options: Options) -> Result<Self> {
        FileSystem::open(device, &options.mount())
            .map(Self::new)
            .map_err(|error| Error::open(None, error))
    }

    pub(crate) fn new(fs: FileSystem) -> Self {
        Self::of(Arc::new(fs))
    }

    fn of(fs: Arc<FileSystem>) -> Self {
        Self {
            fs,
            faults: Arc::default(),
        }
    }

    /// What the user should know about how the image was opened, a sentence each: that it is
    /// read-only although it was opened for writing, say.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        self.fs.notes()
    }

    /// The file system itself, for a front that serves [`pagefence_vfs::FileSystem`].
    ///
    /// # Errors
    /// The volume back, if clones, files, maps or iterators of it are still in use.
    pub fn into_file_system(self) -> std::result::Result<FileSystem, Self> {
        Arc::try_unwrap(self.fs).map_err(Self::of)
    }

    /// The file system itself, for a front that serves it beside others who use the volume.
    #[must_use]
    pub fn file_system(&self) -> Arc<FileSystem> {
        Arc::clone(&self.fs)
    }

    /// Serves maps of the volume's files to other processes, for a front that makes it a mount.
    ///
    /// # Errors
    /// No socket or thread can be had.
    pub fn serve_maps(&self) -> std::io::Result<MapServer> {
        MapServer::start(Arc::clone(&self.fs), Arc::clone(&self.faults))
    }

    pub(crate) fn resolve(&self, path: &Path, follow: Follow) -> Result<Attr> {
        resolve(&*self.fs, path, follow).map_err(|error| Error::at(path, error))
    }

    /// Opens the regular file at `path` for reading; follows symbolic links.
    ///
    /// # Errors
    /// Nothing there, no regular file, encrypted.
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<File> {
        let path = path.as_ref();
        let attr = self.resolve(path, Follow::Last)?;
        File::open(self, path, attr.id)
    }

    /// The whole contents of the file at `path`.
    ///
    /// # Errors
    /// As [`Volume::open_file`], and what reading may meet.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        self.open_file(path)?.read_all()
    }

    /// The contents of the file at `path` as text.
    ///
    /// # Errors
    /// As [`Volume::read`]; [`std::io::ErrorKind::InvalidData`] if it is no UTF-8.
    pub fn read_to_string(&self, path: impl AsRef<Path>) -> Result<String> {
        let path = path.as_ref();
        String::from_utf8(self.read(path)?).map_err(|error| {
            let error = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
            Error::at(path, pagefence_vfs::Error::Io(error))
        })
    }

    /// The entries of the directory at `path`, without `.` and `..`, in no order that means
    /// anything.
    ///
    /// # Errors
    /// Nothing there, or no directory.
    pub fn read_dir(&self, path: impl AsRef<Path>) -> Result<ReadDir> {
        let path = path.as_ref();
        let attr = self.resolve(path, Follow::Last)?;
        ReadDir::open(self, path.to_path_buf(), attr.id)
    }

    /// Everything at and below `path`, parents before children; symbolic links are not followed.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// let volume = pagefence::Volume::open(&image, pagefence::Options::new())?;
    /// let mut bytes = 0;
    /// for entry in volume.walk("/") {
    ///     let entry = entry?;
    ///     if entry.metadata().is_file() {
    ///         bytes += entry.metadata().len();
    ///     }
    /// }
    /// assert!(bytes > 0);
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    pub fn walk(&self, path: impl Into<PathBuf>) -> Walk {
        Walk::new(self, path.into())
    }

    /// Attributes of what `path` leads to; follows symbolic links.
    ///
    /// # Errors
    /// Nothing there.
    pub fn metadata(&self, path: impl AsRef<Path>) -> Result<Metadata> {
        self.resolve(path.as_ref(), Follow::Last).map(Metadata)
    }

    /// Attributes of what is at `path` itself, be it a symbolic link.
    ///
    /// # Errors
    /// Nothing there.
    pub fn symlink_metadata(&self, path: impl AsRef<Path>) -> Result<Metadata> {
        self.resolve(path.as_ref(), Follow::NotLast).map(Metadata)
    }

    /// Whether `path` leads to anything.
    ///
    /// # Errors
    /// It can't be told: a directory on the way is damaged, say.
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        match self.metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The target of the symbolic link at `path`.
    ///
    /// # Errors
    /// Nothing there, or no symbolic link.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let path = path.as_ref();
        let attr = self.resolve(path, Follow::NotLast)?;
        if attr.kind != FileKind::Symlink {
            return Err(Error::at(path, pagefence_vfs::Error::InvalidArgument));
        }
        let target = self
            .fs
            .read_link(attr.id)
            .map_err(|error| Error::at(path, error))?;
        Ok(std::ffi::OsString::from_vec(target).into())
    }

    /// Size and free space.
    ///
    /// # Errors
    /// The device fails.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// let volume = pagefence::Volume::open(&image, pagefence::Options::new())?;
    /// let usage = volume.usage()?;
    /// assert!(usage.free < usage.size);
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    pub fn usage(&self) -> Result<Usage> {
        let stat = self
            .fs
            .stat_fs()
            .map_err(|error| Error::at(Path::new("/"), error))?;
        let unit = u64::from(stat.block_size);
        Ok(Usage {
            size: stat.blocks.saturating_mul(unit),
            free: stat.blocks_free.saturating_mul(unit),
            available: stat.blocks_available.saturating_mul(unit),
            inodes: stat.inodes,
            inodes_free: stat.inodes_free,
        })
    }
}
