//! Extended attributes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use pagefence_vfs::{FileSystem as _, XattrMode};

use crate::error::{Error, Result};
use crate::map::live::outside_maps;
use crate::path::Follow;
use crate::volume::Volume;

impl Volume {
    /// The value of the extended attribute `name` (with its namespace: `user.comment`) of what is
    /// at `path` itself, or nothing if it has none of that name. Symbolic links are not followed.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// let volume = pagefence::Volume::open(&image, pagefence::Options::new())?;
    /// assert_eq!(volume.xattr("/etc/hostname", "user.comment")?, None);
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    ///
    /// # Errors
    /// Nothing at `path`; an unknown namespace; damage.
    pub fn xattr(
        &self,
        path: impl AsRef<Path>,
        name: impl AsRef<OsStr>,
    ) -> Result<Option<Vec<u8>>> {
        let path = path.as_ref();
        let attr = self.resolve(path, Follow::NotLast)?;
        match self.fs.xattr(attr.id, name.as_ref().as_bytes()) {
            Ok(value) => Ok(Some(value)),
            Err(pagefence_vfs::Error::NoAttribute) => Ok(None),
            Err(error) => Err(Error::at(path, error)),
        }
    }

    /// Sets the extended attribute `name` of what is at `path` itself.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use pagefence::{Options, Volume};
    /// let volume = Volume::open(&image, Options::new().write(true))?;
    /// volume.set_xattr("/etc/hostname", "user.comment", b"short")?;
    /// assert_eq!(volume.xattr("/etc/hostname", "user.comment")?, Some(b"short".to_vec()));
    /// assert!(volume.remove_xattr("/etc/hostname", "user.comment")?);
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    ///
    /// # Errors
    /// Nothing at `path`; an unknown namespace; no space for the value; the volume is read-only.
    pub fn set_xattr(
        &self,
        path: impl AsRef<Path>,
        name: impl AsRef<OsStr>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        let path = path.as_ref();
        let attr = self.resolve(path, Follow::NotLast)?;
        let (name, value) = (name.as_ref().as_bytes(), outside_maps(value.as_ref()));
        self.fs
            .set_xattr(attr.id, name, &value, XattrMode::Set)
            .map_err(|error| Error::at(path, error))
    }

    /// Removes the extended attribute `name` of what is at `path` itself; false if there is none.
    ///
    /// # Errors
    /// Nothing at `path`; an unknown namespace; the volume is read-only.
    pub fn remove_xattr(&self, path: impl AsRef<Path>, name: impl AsRef<OsStr>) -> Result<bool> {
        let path = path.as_ref();
        let attr = self.resolve(path, Follow::NotLast)?;
        match self.fs.remove_xattr(attr.id, name.as_ref().as_bytes()) {
            Ok(()) => Ok(true),
            Err(pagefence_vfs::Error::NoAttribute) => Ok(false),
            Err(error) => Err(Error::at(path, error)),
        }
    }

    /// The names of the extended attributes of what is at `path` itself.
    ///
    /// # Errors
    /// Nothing at `path`; damage.
    pub fn xattr_names(&self, path: impl AsRef<Path>) -> Result<Vec<OsString>> {
        let path = path.as_ref();
        let attr = self.resolve(path, Follow::NotLast)?;
        let names = self
            .fs
            .xattr_names(attr.id)
            .map_err(|error| Error::at(path, error))?;
        Ok(names
            .into_iter()
            .map(|name| OsString::from_vec(name.0))
            .collect())
    }
}
