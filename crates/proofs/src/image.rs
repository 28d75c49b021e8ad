//! The images that are tried: each type of file system with small and large blocks.

use std::time::{Duration, UNIX_EPOCH};

use pagefence::device::MemoryDevice;
use pagefence::{Kind, Mkfs, Uuid};
use pagefence_fs_model::files::Format;

/// A type of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The type of file system.
    pub kind: Kind,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of the device.
    pub size: u64,
    /// More features, as `mke2fs -O` takes them.
    pub features: &'static str,
}

impl std::fmt::Display for Setup {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.kind, self.block_size)?;
        if self.features.is_empty() {
            return Ok(());
        }
        write!(formatter, " {}", self.features)
    }
}

impl Setup {
    /// Without more features.
    #[must_use]
    pub const fn new(kind: Kind, block_size: u32, mib: u64) -> Self {
        Self {
            kind,
            block_size,
            size: mib << 20,
            features: "",
        }
    }

    /// With these features, too, or without those after a `^`.
    #[must_use]
    pub const fn with(self, features: &'static str) -> Self {
        Self { features, ..self }
    }

    /// Whether a crash is recovered from by a journal.
    #[must_use]
    pub fn has_journal(&self) -> bool {
        self.kind != Kind::Ext2 && !self.features.contains("^has_journal")
    }

    /// What the model has to know of it.
    #[must_use]
    pub fn format(&self) -> Format {
        Format {
            block_size: self.block_size,
            has_unwritten: self.kind == Kind::Ext4,
            // More than any of them, and less than what is tried as too large.
            size_limit: 1 << 45,
        }
    }

    /// The image, the same each time.
    ///
    /// # Panics
    /// It can't be made: a device that is too small for it.
    #[must_use]
    pub fn make(&self) -> MemoryDevice {
        let device = MemoryDevice::new(self.size);
        Mkfs::new(self.kind)
            .block_size(self.block_size)
            .inodes(1024)
            .features(self.features)
            .uuid(Uuid::from_u128(0x7061_6765_6665_6e63_6500))
            .hash_seed(Uuid::from_u128(0x6861_7368))
            .time(UNIX_EPOCH + Duration::from_secs(1_700_000_000))
            .format_device(&device)
            .expect("the image is made");
        device
    }
}
