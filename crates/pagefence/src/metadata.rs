//! What a file is, apart from its data.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pagefence_vfs::{Attr, FileKind, Timestamp};

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileType(pub(crate) FileKind);

impl FileType {
    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(self) -> bool {
        self.0 == FileKind::Directory
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(self) -> bool {
        self.0 == FileKind::Regular
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub fn is_symlink(self) -> bool {
        self.0 == FileKind::Symlink
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_block_device(self) -> bool {
        self.0 == FileKind::BlockDevice
    }

    /// Whether it is a character device.
    #[must_use]
    pub fn is_char_device(self) -> bool {
        self.0 == FileKind::CharDevice
    }

    /// Whether it is a named pipe.
    #[must_use]
    pub fn is_fifo(self) -> bool {
        self.0 == FileKind::Fifo
    }

    /// Whether it is a socket.
    #[must_use]
    pub fn is_socket(self) -> bool {
        self.0 == FileKind::Socket
    }
}

/// Attributes of a file, as they were when asked for.
///
/// ```
/// # let image = pagefence::doc_image();
/// let volume = pagefence::Volume::open(&image, pagefence::Options::new())?;
/// let root = volume.metadata("/")?;
/// assert!(root.is_dir());
/// assert_eq!(root.ino(), 2);
/// # Ok::<(), pagefence::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata(pub(crate) Attr);

impl Metadata {
    /// The kind of the file.
    #[must_use]
    pub fn file_type(&self) -> FileType {
        FileType(self.0.kind)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.file_type().is_dir()
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.file_type().is_file()
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.file_type().is_symlink()
    }

    /// Length in bytes.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "the name and shape of std::fs::Metadata"
    )]
    pub fn len(&self) -> u64 {
        self.0.size
    }

    /// Permissions, set-uid, set-gid and sticky bits: the low 12 bits of the mode.
    #[must_use]
    pub fn permissions(&self) -> u16 {
        self.0.permissions
    }

    /// Number of its inode.
    #[must_use]
    pub fn ino(&self) -> u64 {
        self.0.id.0
    }

    /// Tells apart two files that used the same inode one after the other.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.0.generation
    }

    /// Number of hard links.
    #[must_use]
    pub fn nlink(&self) -> u32 {
        self.0.links
    }

    /// Owner.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.0.uid
    }

    /// Group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.0.gid
    }

    /// Space used, in units of 512 bytes.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.0.blocks_512
    }

    /// Major and minor number of a device.
    #[must_use]
    pub fn device(&self) -> (u32, u32) {
        (self.0.device_major, self.0.device_minor)
    }

    /// Inode flags, as `lsattr` shows them (`FS_*_FL`).
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.0.flags
    }

    /// When the data was last changed.
    #[must_use]
    pub fn modified(&self) -> SystemTime {
        system_time(self.0.modified)
    }

    /// When the data was last read, as far as the image keeps it.
    #[must_use]
    pub fn accessed(&self) -> SystemTime {
        system_time(self.0.accessed)
    }

    /// When the inode was last changed.
    #[must_use]
    pub fn changed(&self) -> SystemTime {
        system_time(self.0.changed)
    }

    /// When the file was created; nothing on images with inodes of 128 bytes.
    #[must_use]
    pub fn created(&self) -> Option<SystemTime> {
        self.0.created.map(system_time)
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        UNIX_EPOCH - seconds
    } else {
        UNIX_EPOCH + seconds
    };
    whole + Duration::from_nanos(u64::from(time.nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch() {
        let time = Timestamp {
            seconds: -2,
            nanoseconds: 250_000_000,
        };
        assert_eq!(
            UNIX_EPOCH
                .duration_since(system_time(time))
                .expect("earlier"),
            Duration::from_millis(1750)
        );
    }
}
