//! Checking a whole file system without changing it: an image, or a volume in use.

use std::ops::ControlFlow;
use std::path::Path;

use pagefence_lock_order::primitives::Arc;

use crate::device::Device;
use crate::volume::Volume;

pub use pagefence_ext4::check::{CheckError, Event, Finding, Progress, Stage, Subject, Summary};

/// Checks all of the image file or block device at `path`, whose file system starts at byte
/// `offset`: superblock, journal, groups, bitmaps, inodes, directories, attributes, links. Not a
/// byte of it changes; if it was not closed properly, its journal is replayed in memory first.
///
/// `event` is told each finding as it is made, and progress; if it breaks, the check ends there.
/// Memory and time are bounded by what is in the image, whatever it says of itself.
///
/// # Errors
/// The image can't be read, is in use, or holds no file system that is served: see [`CheckError`].
/// Damage is a finding and no error.
///
/// ```
/// # let image = pagefence::doc_image();
/// use pagefence::check::{Event, check};
/// use std::ops::ControlFlow;
/// let summary = check(&image, 0, |event| {
///     if let Event::Finding(finding) = event {
///         println!("{finding}");
///     }
///     ControlFlow::Continue(())
/// })?;
/// assert!(summary.is_complete && summary.findings == 0);
/// # Ok::<(), pagefence::check::CheckError>(())
/// ```
pub fn check(
    path: impl AsRef<Path>,
    offset: u64,
    mut event: impl FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Summary, CheckError> {
    pagefence_ext4::check::check_image(path.as_ref(), offset, &mut event)
}

/// Checks the file system on `device`, an image in memory or a device of one's own, as [`check`] does.
/// Nobody may write to it meanwhile.
///
/// # Errors
/// As [`check`].
pub fn check_device(
    device: Arc<dyn Device>,
    mut event: impl FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Summary, CheckError> {
    pagefence_ext4::check::check_device(device, &mut event)
}

impl Volume {
    /// Checks the whole volume while it is in use, as it is at one moment: the one at which the check
    /// begins, which waits for a commit. Others read and write meanwhile and do not wait for it.
    /// Nothing is changed. Only one check of a volume goes on at a time.
    ///
    /// `event` is told each finding as it is made, and progress; if it breaks, the check ends there.
    ///
    /// # Errors
    /// [`CheckError::InUse`] while another check goes on; [`CheckError::Snapshot`] if more than 256 MiB
    /// of metadata change meanwhile; the device failed. Damage is a finding and no error.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use pagefence::{Options, Volume};
    /// use std::ops::ControlFlow;
    /// let volume = Volume::open(&image, Options::new().write(true))?;
    /// let summary = volume.check(|_event| ControlFlow::Continue(()))?;
    /// assert!(summary.is_complete && summary.findings == 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn check(
        &self,
        mut event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Summary, CheckError> {
        self.fs.check(&mut event)
    }
}
