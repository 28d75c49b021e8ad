//! What an image is, told without opening it.

use std::path::{Path, PathBuf};

use crate::device::{Device, FileDevice};
use crate::error::{Error, Result};

pub use pagefence_ext4::info::{ErrorAt, Errors, Info, Journal, JournalState};

/// Tells what the image file or block device at `path` is: type, features, sizes, usage, state,
/// journal. Printed, it is what `pagefence info` shows. Nothing is opened for writing, and an
/// image that is in use or has features that are not supported is described, too.
///
/// # Errors
/// It can't be read, or holds no file system of these types.
///
/// ```
/// # let image = pagefence::doc_image();
/// let info = pagefence::info(&image)?;
/// assert_eq!(info.kind, pagefence::Kind::Ext4);
/// assert_eq!(info.label, "demo");
/// assert!(info.is_clean && info.blocks_free < info.blocks);
/// println!("{info}");
/// # Ok::<(), pagefence::Error>(())
/// ```
pub fn info(path: impl AsRef<Path>) -> Result<Info> {
    info_at(path, 0)
}

/// Tells what lies at byte `offset` of an image, in a partition say.
///
/// # Errors
/// As [`info`].
pub fn info_at(path: impl AsRef<Path>, offset: u64) -> Result<Info> {
    Look::at(path, offset)?.info()
}

/// An image that is open to be looked at, whoever else uses it, and of which nothing has been read: for
/// programs that give up rights before they interpret what somebody else has written, as
/// [`Image`](crate::Image) is for volumes.
#[derive(Debug)]
pub struct Look {
    device: FileDevice,
    path: PathBuf,
    offset: u64,
}

impl Look {
    /// Opens the image file or block device at `path`, for reading; the file system starts at byte `offset`.
    ///
    /// # Errors
    /// It can't be opened, or is no file and no block device.
    pub fn at(path: impl AsRef<Path>, offset: u64) -> Result<Self> {
        let path = path.as_ref();
        let device = Info::open(path, offset).map_err(|error| Error::open(Some(path), error))?;
        Ok(Self {
            device,
            path: path.to_owned(),
            offset,
        })
    }

    /// Tells what it is. Opens nothing.
    ///
    /// # Errors
    /// As [`info`].
    pub fn info(&self) -> Result<Info> {
        Info::of_opened(&self.device, self.offset)
            .map_err(|error| Error::open(Some(&self.path), error))
    }
}

/// Tells what `device` holds.
///
/// # Errors
/// As [`info`].
pub fn info_of_device(device: &dyn Device) -> Result<Info> {
    Info::of_device(device).map_err(|error| Error::open(None, error))
}
