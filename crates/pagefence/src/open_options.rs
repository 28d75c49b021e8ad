//! How a file is opened.

use std::path::Path;

use pagefence_vfs::{FileSystem as _, New, NewKind, SetAttr};

use crate::change::{ROOT, UMASK};
use crate::error::{Error, Result};
use crate::file::{File, Rights};
use crate::path::{Follow, Found, walk};
use crate::volume::Volume;

/// How a file is opened, and whether it is made: as [`std::fs::OpenOptions`].
///
/// ```
/// # let image = pagefence::doc_image();
/// use std::io::Write;
/// use pagefence::{OpenOptions, Options, Volume};
/// let volume = Volume::open(&image, Options::new().write(true))?;
/// let mut log = OpenOptions::new().append(true).create(true).open(&volume, "/notes.txt")?;
/// log.write_all(b"one line\n")?;
/// log.sync_all()?;
/// assert_eq!(volume.read("/notes.txt")?, b"one line\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the name and shape of std::fs::OpenOptions"
)]
pub struct OpenOptions {
    read: bool,
    write: bool,
    append: bool,
    truncate: bool,
    create: bool,
    create_new: bool,
    direct: bool,
    permissions: Option<u16>,
}

impl OpenOptions {
    /// Nothing is allowed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// For reading.
    pub fn read(mut self, read: bool) -> Self {
        self.read = read;
        self
    }

    /// For writing.
    pub fn write(mut self, write: bool) -> Self {
        self.write = write;
        self
    }

    /// For writing at the end, wherever it is then.
    pub fn append(mut self, append: bool) -> Self {
        self.append = append;
        self
    }

    /// Its contents go.
    pub fn truncate(mut self, truncate: bool) -> Self {
        self.truncate = truncate;
        self
    }

    /// It is made if it is not there.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// It is made, and must not be there.
    pub fn create_new(mut self, create_new: bool) -> Self {
        self.create_new = create_new;
        self
    }

    /// Its data goes past the cache (O_DIRECT): reads and writes of whole blocks at block boundaries go
    /// straight between the caller's memory and the device, one at a time; what is in the cache is
    /// written before it is read past, and gone from the cache before a write returns. Everything
    /// else goes through the cache, writes at once on to the device. Durability is, as ever,
    /// [`File::sync_data`]'s matter.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use pagefence::{OpenOptions, Options, Volume};
    /// let volume = Volume::open(&image, Options::new().write(true))?;
    /// let table = OpenOptions::new().read(true).write(true).create(true).direct(true)
    ///     .open(&volume, "/table")?;
    /// table.write_all_at(64 << 10, &[7; 64 << 10])?;
    /// let mut page = [0; 4096];
    /// assert_eq!(table.read_at(64 << 10, &mut page)?, 4096);
    /// assert_eq!(page, [7; 4096]);
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// Permissions of a file that is made, instead of 0644.
    pub fn permissions(mut self, permissions: u16) -> Self {
        self.permissions = Some(permissions);
        self
    }

    /// Opens the file at `path`; symbolic links are followed.
    ///
    /// # Errors
    /// Nothing there and not to be made; there, and it must not be; no regular file; the volume is
    /// read-only; options that make no sense together ([`std::io::ErrorKind::InvalidInput`]).
    pub fn open(&self, volume: &Volume, path: impl AsRef<Path>) -> Result<File> {
        let path = path.as_ref();
        self.open_at(volume, path)
            .map_err(|error| error.unwrap_or_else(|error| Error::at(path, error)))
    }

    fn open_at(
        &self,
        volume: &Volume,
        path: &Path,
    ) -> std::result::Result<File, std::result::Result<Error, pagefence_vfs::Error>> {
        let rights = Rights {
            read: self.read,
            write: self.write || self.append,
            append: self.append,
            direct: self.direct,
        };
        let makes = self.create || self.create_new;
        let changes = makes || self.truncate;
        let is_for_nothing = !rights.read && !rights.write;
        let contradicts = (changes && !rights.write) || (self.append && self.truncate);
        if is_for_nothing || contradicts {
            return Err(Err(pagefence_vfs::Error::InvalidArgument));
        }
        let follow = if self.create_new {
            Follow::NotLast
        } else {
            Follow::Last
        };
        // Another thread may make or remove it meanwhile: then look again.
        loop {
            match walk(&*volume.fs, path, follow).map_err(Err)? {
                Found::There(_) if self.create_new => {
                    return Err(Err(pagefence_vfs::Error::Exists));
                }
                Found::There(attr) => {
                    let file = File::open_with(volume, path, attr.id, rights).map_err(Ok)?;
                    if self.truncate && attr.size > 0 {
                        file.set_len(0).map_err(Ok)?;
                    }
                    return Ok(file);
                }
                Found::Missing {
                    parent,
                    name,
                    is_directory,
                } => {
                    if !makes {
                        return Err(Err(pagefence_vfs::Error::NotFound));
                    }
                    if is_directory {
                        return Err(Err(pagefence_vfs::Error::IsDirectory));
                    }
                    let new = New {
                        kind: NewKind::Regular,
                        permissions: self.permissions.unwrap_or(0o666),
                        umask: if self.permissions.is_some() { 0 } else { UMASK },
                    };
                    match volume.fs.create(parent, &name, &new, &ROOT) {
                        Ok(entry) => {
                            return File::open_with(volume, path, entry.attr.id, rights)
                                .map_err(Ok);
                        }
                        Err(pagefence_vfs::Error::Exists) if !self.create_new => {}
                        Err(error) => return Err(Err(error)),
                    }
                }
            }
        }
    }
}

impl Volume {
    /// Opens a new or empty file for writing; follows symbolic links.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn create(&self, path: impl AsRef<Path>) -> Result<File> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(self, path)
    }

    /// Makes `contents` the contents of the file at `path`, which is made if it is not there.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use pagefence::{Options, Volume};
    /// let volume = Volume::open(&image, Options::new().write(true))?;
    /// volume.write("/greeting", "hello\n")?;
    /// assert_eq!(volume.read_to_string("/greeting")?, "hello\n");
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`OpenOptions::open`] and [`File::write_at`].
    pub fn write(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> Result<()> {
        self.create(path)?.write_all_at(0, contents.as_ref())
    }

    /// Sets the length of the file at `path`; follows symbolic links.
    ///
    /// # Errors
    /// Nothing there, or no regular file; the volume is read-only; too large.
    pub fn set_len(&self, path: impl AsRef<Path>, size: u64) -> Result<()> {
        let change = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        self.set_attr(path.as_ref(), Follow::Last, &change)
    }
}
