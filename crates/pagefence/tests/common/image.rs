//! The images that are tried: each type of file system with small and large blocks.

use std::time::{Duration, UNIX_EPOCH};

use pagefence::device::MemoryDevice;
use pagefence::{Kind, Mkfs, Uuid};
use pagefence_fs_model::files::Format;

/// A type of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) kind: Kind,
    pub(crate) block_size: u32,
    /// Bytes of the device.
    pub(crate) size: u64,
    /// More features, as `mke2fs -O` takes them.
    pub(crate) features: &'static str,
}

impl Setup {
    pub(crate) const fn new(kind: Kind, block_size: u32, mib: u64) -> Self {
        Self {
            kind,
            block_size,
            size: mib << 20,
            features: "",
        }
    }

    pub(crate) fn format(&self) -> Format {
        Format {
            block_size: self.block_size,
            has_unwritten: self.kind == Kind::Ext4,
            // More than any of them, and less than what is tried as too large.
            size_limit: 1 << 45,
        }
    }

    /// The image, the same each time.
    pub(crate) fn make(&self) -> MemoryDevice {
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
