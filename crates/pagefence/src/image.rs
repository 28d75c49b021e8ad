//! An image that is open, and of which nothing has been read.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pagefence_ext4::FileSystem;

use crate::check::{CheckError, Event, Summary};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::volume::Volume;

/// An image that is open and locked against other users, but not yet understood: for programs that give up
/// rights before they interpret what somebody else has written. [`Volume::open`] does both in one.
///
/// ```
/// # let image = pagefence::doc_image();
/// use pagefence::{Image, Options};
/// let image = Image::open(&image, Options::new())?;
/// // From here on the program may do without the right to open files.
/// let volume = image.into_volume()?;
/// assert!(volume.exists("/etc")?);
/// # Ok::<(), pagefence::Error>(())
/// ```
#[derive(Debug)]
pub struct Image {
    device: pagefence_block_io::FileDevice,
    path: PathBuf,
    options: Options,
}

impl Image {
    /// Opens the file or block device at `path`, as `options` say, and makes sure that nobody else writes to
    /// it. Threads are not started.
    ///
    /// # Errors
    /// It can't be opened, is no file and no block device, or is in use by somebody who writes to it.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        let path = path.as_ref();
        let device = FileSystem::open_device(path, &options.mount())
            .map_err(|error| Error::open(Some(path), error))?;
        Ok(Self {
            device,
            path: path.to_owned(),
            options,
        })
    }

    /// Reads what it holds. Opens no image and no other file but the kernel's figures on memory, which may be
    /// missing.
    ///
    /// # Errors
    /// It holds no file system of these types, or one that is damaged or needs a feature that is not
    /// supported: the error's text says which.
    pub fn into_volume(self) -> Result<Volume> {
        FileSystem::open(Arc::new(self.device), &self.options.mount())
            .map(Volume::new)
            .map_err(|error| Error::open(Some(&self.path), error))
    }

    /// Checks all of it, as [`check`](crate::check::check) does. Opens nothing.
    ///
    /// # Errors
    /// As [`check`](crate::check::check), but that it is open already.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use pagefence::{Image, Options};
    /// use std::ops::ControlFlow;
    /// let summary = Image::open(&image, Options::new())?.check(|_| ControlFlow::Continue(()))?;
    /// assert!(summary.is_complete && summary.findings == 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn check(
        self,
        mut event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> std::result::Result<Summary, CheckError> {
        pagefence_ext4::check::check_opened(self.device, self.options.offset, &mut event)
    }
}
