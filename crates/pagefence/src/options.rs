//! How an image is opened.

use std::time::Duration;

/// Options of [`Volume::open`](crate::Volume::open), each with its default.
///
/// ```
/// # let image = pagefence::doc_image();
/// use pagefence::{Options, Volume};
/// let volume = Volume::open(&image, Options::new().cache(64 << 20))?;
/// # Ok::<(), pagefence::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    pub(crate) write: bool,
    pub(crate) offset: u64,
    pub(crate) cache: Option<u64>,
    pub(crate) superblock: Option<u64>,
    pub(crate) read_ahead: bool,
    pub(crate) commit_interval: Option<Duration>,
    pub(crate) discard: bool,
    pub(crate) access_times: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

impl Options {
    /// Read-only, the whole file, a cache of a quarter of memory.
    pub fn new() -> Self {
        Self {
            write: false,
            offset: 0,
            cache: None,
            superblock: None,
            read_ahead: true,
            commit_interval: None,
            discard: false,
            access_times: true,
        }
    }

    /// Opens the image for writing. An image that was not closed properly is then recovered on
    /// disk; without it, in memory, and not a byte of the image changes.
    pub fn write(mut self, write: bool) -> Self {
        self.write = write;
        self
    }

    /// The file system starts at this byte of the image (a partition). Default 0.
    pub fn offset(mut self, bytes: u64) -> Self {
        self.offset = bytes;
        self
    }

    /// The most memory that cached pages and metadata may take, in bytes. Default: a quarter of
    /// memory, or of the control group's limit. At least 16 MiB are used.
    pub fn cache(mut self, bytes: u64) -> Self {
        self.cache = Some(bytes);
        self
    }

    /// Uses the backup superblock at this block (in units of 1,024 bytes, as `mount -o sb=`
    /// takes it) instead of the first. The volume is then read-only.
    pub fn superblock(mut self, block: u64) -> Self {
        self.superblock = Some(block);
        self
    }

    /// How long a change may wait until it is durable, if nobody asks for it. Default: 5 seconds.
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = Some(interval);
        self
    }

    /// Whether the device is told of space that became free, so that it may give it back.
    /// Default: no.
    pub fn discard(mut self, discard: bool) -> Self {
        self.discard = discard;
        self
    }

    /// Whether reading updates the time of access, as Linux does with `relatime`: where it is not
    /// after the last change, or a day old. Default: yes.
    pub fn access_times(mut self, access_times: bool) -> Self {
        self.access_times = access_times;
        self
    }

    /// Whether sequential reads read ahead in the background. Default: yes.
    pub fn read_ahead(mut self, read_ahead: bool) -> Self {
        self.read_ahead = read_ahead;
        self
    }
}

impl Options {
    pub(crate) fn mount(&self) -> pagefence_ext4::MountOptions {
        pagefence_ext4::MountOptions {
            write: self.write,
            offset: self.offset,
            cache: self.cache,
            superblock: self.superblock,
            read_ahead: self.read_ahead,
            commit_interval: self.commit_interval,
            discard: self.discard,
            access_times: self.access_times,
        }
    }
}
