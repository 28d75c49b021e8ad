//! Making file systems.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use pagefence_block_io::Device;
use pagefence_ext4::mkfs::{
    Contents, Made, MkfsError, NodeMeta, Parameters, Target, Timestamp, Tree, format, format_path,
};

pub use pagefence_ext4::mkfs::Kind;
pub use uuid::Uuid;

use crate::error::{Error, Result};

/// Makes a file system in a file, on a block device or in memory, empty or with files in it. No
/// mount and no root is needed.
///
/// The defaults are those of mke2fs 1.47: features by [`Kind`], sizes of blocks, inodes and
/// journal by the size of the file system. What is wrong with an option or a path is told by
/// [`Mkfs::format`].
///
/// ```
/// use pagefence::{Kind, Mkfs, Options, Volume};
/// # let image = std::env::temp_dir().join(format!("pagefence-doc-{}", pagefence::Uuid::new_v4()));
/// Mkfs::new(Kind::Ext4)
///     .size(16 << 20)
///     .label("greeting")
///     .file("/etc/motd", "hello, world\n")
///     .symlink("/motd", "etc/motd")
///     .format(&image)?;
/// let volume = Volume::open(&image, Options::new())?;
/// assert_eq!(volume.read("/motd")?, b"hello, world\n");
/// # std::fs::remove_file(&image).expect("it is there");
/// # Ok::<(), pagefence::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is made before `format`"]
pub struct Mkfs {
    parameters: Parameters,
    size_bytes: Option<u64>,
    overwrite: bool,
    tree: Tree,
    /// The first thing that was wrong; told by `format`.
    error: Option<MkfsError>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Formatted {
    /// UUID.
    pub uuid: Uuid,
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks.
    pub blocks: u64,
    /// Blocks free.
    pub blocks_free: u64,
    /// Inodes.
    pub inodes: u32,
    /// Features, by name.
    pub features: Vec<String>,
    /// Default features that were left out, as the file system is too small for a journal.
    pub left_out: Vec<String>,
}

impl Mkfs {
    /// A file system of that kind, with a random UUID and the time of now.
    pub fn new(kind: Kind) -> Self {
        Self {
            parameters: Parameters::new(kind),
            size_bytes: None,
            overwrite: false,
            tree: Tree::new(),
            error: None,
        }
    }

    /// Bytes of the file system. A file becomes so large; without it, it must exist, and keeps
    /// its size. A block device is used whole by default.
    pub fn size(mut self, bytes: u64) -> Self {
        self.size_bytes = Some(bytes);
        self
    }

    /// Bytes of a block: 1024, 2048 or 4096. Default: 1024 below 512 MiB, else 4096.
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.parameters.block_size = Some(bytes);
        self
    }

    /// Bytes of an inode: a power of two from 128 to the block size. Default 256.
    pub fn inode_size(mut self, bytes: u16) -> Self {
        self.parameters.inode_size = Some(bytes);
        self
    }

    /// Inodes, rounded up to whole blocks of them. By default by the size.
    pub fn inodes(mut self, count: u32) -> Self {
        self.parameters.inodes = Some(count);
        self
    }

    /// Share of the blocks that only root gets, up to 50 percent. Default 5.
    pub fn reserved_percent(mut self, percent: u8) -> Self {
        self.parameters.reserved_percent = percent;
        self
    }

    /// Label, up to 16 bytes.
    pub fn label(mut self, label: impl AsRef<[u8]>) -> Self {
        self.parameters.label = label.as_ref().to_vec();
        self
    }

    /// Edits the features, as `mke2fs -O` does: names parted by commas, each added, or taken
    /// away after `^`; `none` takes all away. Names are as [`Info::features`](crate::Info) shows
    /// them.
    ///
    /// A default that lacks what it needs is dropped; what is asked for by name is made or
    /// refused.
    ///
    /// ```
    /// use pagefence::{Kind, Mkfs};
    /// # let image = std::env::temp_dir().join(format!("pagefence-doc-{}", pagefence::Uuid::new_v4()));
    /// let made = Mkfs::new(Kind::Ext4)
    ///     .size(8 << 20)
    ///     .features("^has_journal,sparse_super2")
    ///     .format(&image)?;
    /// assert!(!made.features.iter().any(|name| name == "has_journal"));
    /// # std::fs::remove_file(&image).expect("it is there");
    /// let error = Mkfs::new(Kind::Ext4)
    ///     .size(8 << 20)
    ///     .features("bigalloc")
    ///     .format(&image)
    ///     .expect_err("it is refused by name");
    /// assert!(error.to_string().contains("the feature bigalloc can't be made"));
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    pub fn features(mut self, list: &str) -> Self {
        let edited = self.parameters.features.edit(list);
        self.note(edited)
    }

    /// UUID. Default: a random one.
    pub fn uuid(mut self, uuid: Uuid) -> Self {
        self.parameters.uuid = uuid.into_bytes();
        self
    }

    /// Seed of the hash by which directories are sorted. Default: a random one.
    pub fn hash_seed(mut self, seed: Uuid) -> Self {
        self.parameters.hash_seed = seed.into_bytes();
        self
    }

    /// Time of creation of the file system and of the files that have no time of their own.
    /// Default: now. With [`Mkfs::uuid`], [`Mkfs::hash_seed`] and this the image is the same byte
    /// for byte each time.
    pub fn time(mut self, time: SystemTime) -> Self {
        self.parameters.time_seconds = timestamp(time).seconds;
        self
    }

    /// Overwrites a file system or the like that is there. Default: that is an error.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Adds a directory, and those that lead there.
    pub fn directory(self, path: impl AsRef<Path>) -> Self {
        self.directory_with(path, Attributes::new())
    }

    /// Adds a directory with these attributes; `/` is the root directory.
    pub fn directory_with(mut self, path: impl AsRef<Path>, attributes: Attributes) -> Self {
        let added = self.tree.directory(bytes(path.as_ref()), attributes.meta);
        self.note(added)
    }

    /// Adds a regular file, and the directories that lead there. The contents are kept in memory
    /// until the file system is made.
    pub fn file(self, path: impl AsRef<Path>, contents: impl Into<Vec<u8>>) -> Self {
        self.file_with(path, contents, Attributes::new())
    }

    /// Adds a regular file with these attributes.
    ///
    /// ```
    /// use std::time::{Duration, UNIX_EPOCH};
    /// use pagefence::{Attributes, Kind, Mkfs, Options, Volume};
    /// # let image = std::env::temp_dir().join(format!("pagefence-doc-{}", pagefence::Uuid::new_v4()));
    /// let attributes = Attributes::new()
    ///     .permissions(0o600)
    ///     .owner(1000, 1000)
    ///     .modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000))
    ///     .xattr("user.comment", "for nobody else");
    /// Mkfs::new(Kind::Ext4)
    ///     .size(8 << 20)
    ///     .file_with("/home/me/diary", "Dear diary,", attributes)
    ///     .format(&image)?;
    /// let volume = Volume::open(&image, Options::new())?;
    /// let comment = volume.xattr("/home/me/diary", "user.comment")?;
    /// assert_eq!(comment.as_deref(), Some(&b"for nobody else"[..]));
    /// # std::fs::remove_file(&image).expect("it is there");
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    pub fn file_with(
        mut self,
        path: impl AsRef<Path>,
        contents: impl Into<Vec<u8>>,
        attributes: Attributes,
    ) -> Self {
        let Attributes { meta, holes } = attributes;
        let path = bytes(path.as_ref());
        let added = self.tree.file(path, contents.into(), holes, meta);
        self.note(added)
    }

    /// Adds a symbolic link, and the directories that lead there.
    pub fn symlink(self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        self.symlink_with(path, target, Attributes::new())
    }

    /// Adds a symbolic link with these attributes, but for the permissions, which links have
    /// not.
    pub fn symlink_with(
        mut self,
        path: impl AsRef<Path>,
        target: impl AsRef<Path>,
        attributes: Attributes,
    ) -> Self {
        let target = bytes(target.as_ref());
        let added = self
            .tree
            .symlink(bytes(path.as_ref()), target, attributes.meta);
        self.note(added)
    }

    /// Makes the file system in the file `path`, which becomes a sparse one and is made if it
    /// does not exist, or on the block device `path`. Everything is on disk when it returns.
    ///
    /// # Errors
    /// An option, a path or a size that can't be; the file system is too small for its files;
    /// there is a file system already; the file or device is in use, or fails.
    pub fn format(self, path: impl AsRef<Path>) -> Result<Formatted> {
        let path = path.as_ref();
        let target = Target {
            path,
            size_bytes: self.size_bytes,
            overwrite: self.overwrite,
        };
        let made = match self.error {
            Some(error) => Err(error),
            None => format_path(&target, &self.parameters, &self.tree),
        };
        made.map(|made| Formatted::of(&made))
            .map_err(|error| Error::make(Some(path), error))
    }

    /// Makes the file system on all of `device`, whatever it holds.
    ///
    /// # Errors
    /// As [`Mkfs::format`]; a [`Mkfs::size`] that is not the device's.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use pagefence::device::MemoryDevice;
    /// use pagefence::{Kind, Mkfs, Options, Volume};
    /// let device = Arc::new(MemoryDevice::new(4 << 20));
    /// Mkfs::new(Kind::Ext2).file("/a", "b").format_device(&*device)?;
    /// let volume = Volume::open_device(device, Options::new())?;
    /// assert_eq!(volume.read("/a")?, b"b");
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    pub fn format_device(mut self, device: &dyn Device) -> Result<Formatted> {
        self.parameters.contents = Contents::Unknown;
        let wrong_size = self.size_bytes.filter(|asked| *asked != device.size());
        let made = match (self.error, wrong_size) {
            (Some(error), _) => Err(error),
            (None, Some(asked_bytes)) => Err(MkfsError::DeviceSize {
                have_bytes: device.size(),
                asked_bytes,
            }),
            (None, None) => format(device, &self.parameters, &self.tree),
        };
        made.map(|made| Formatted::of(&made))
            .map_err(|error| Error::make(None, error))
    }

    fn note(mut self, result: std::result::Result<(), MkfsError>) -> Self {
        self.error = self.error.or(result.err());
        self
    }
}

impl Formatted {
    fn of(made: &Made) -> Self {
        let superblock = &made.superblock;
        Self {
            uuid: Uuid::from_bytes(superblock.uuid()),
            block_size: superblock.block_size(),
            blocks: superblock.blocks_count(),
            blocks_free: superblock.free_blocks_count(),
            inodes: superblock.inodes_count(),
            features: superblock.features().names(),
            left_out: made.left_out.names(),
        }
    }
}

/// Attributes of a file to be made by [`Mkfs`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Attributes {
    meta: NodeMeta,
    holes: bool,
}

impl Attributes {
    /// Owned by root, with permissions 0755 for directories and 0644 for files, and the time of
    /// the file system.
    pub fn new() -> Self {
        Self::default()
    }

    /// The low twelve bits of the mode.
    pub fn permissions(mut self, permissions: u16) -> Self {
        self.meta.permissions = Some(permissions);
        self
    }

    /// Owner and group.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.meta.uid = uid;
        self.meta.gid = gid;
        self
    }

    /// Time of the last change of the contents, from 1901 to 2446; also of the last access.
    pub fn modified(mut self, time: SystemTime) -> Self {
        self.meta.mtime = Some(timestamp(time));
        self
    }

    /// An extended attribute `user.…`, `trusted.…` or `security.…`. All of a file's must fit
    /// into its inode: about 90 bytes unless [`Mkfs::inode_size`] is larger.
    pub fn xattr(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let (name, value) = (name.as_ref().to_vec(), value.as_ref().to_vec());
        self.meta.xattrs.insert(name, value);
        self
    }

    /// Whole blocks of zeros in a file take no space. Default: they do.
    pub fn holes(mut self, holes: bool) -> Self {
        self.holes = holes;
        self
    }
}

fn bytes(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes()
}

fn timestamp(time: SystemTime) -> Timestamp {
    let seconds = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            seconds: seconds(after.as_secs()),
            nanoseconds: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            let nanoseconds = before.subsec_nanos();
            // Seconds count down to the one before, nanoseconds up from there.
            let down = i64::from(nanoseconds > 0);
            Timestamp {
                seconds: -seconds(before.as_secs()) - down,
                nanoseconds: if nanoseconds > 0 {
                    1_000_000_000 - nanoseconds
                } else {
                    0
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_before_the_epoch_count_up_too() {
        let half_before = timestamp(UNIX_EPOCH - Duration::from_millis(1500));
        assert_eq!(
            (half_before.seconds, half_before.nanoseconds),
            (-2, 500_000_000)
        );
        let before = timestamp(UNIX_EPOCH - Duration::from_secs(3));
        assert_eq!((before.seconds, before.nanoseconds), (-3, 0));
    }

    #[test]
    fn the_first_thing_wrong_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        let error = Mkfs::new(Kind::Ext4)
            .file("relative", "x")
            .features("bogus")
            .format(&path)
            .expect_err("the path is relative");
        assert!(
            error
                .to_string()
                .contains("relative: the path must start with a slash"),
            "{error}"
        );
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(!path.exists());
    }

    #[test]
    fn files_keep_their_size_and_are_not_overwritten_unasked() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        let error = Mkfs::new(Kind::Ext2)
            .format(&path)
            .expect_err("it has no size");
        assert!(error.to_string().contains("has no size"), "{error}");
        std::fs::write(&path, vec![0xA5; 3 << 20]).expect("a file");
        let made = Mkfs::new(Kind::Ext2)
            .format(&path)
            .expect("it holds nothing known");
        assert_eq!(made.blocks, 3 << 10);
        let length = || std::fs::metadata(&path).expect("it is there").len();
        assert_eq!(length(), 3 << 20);

        let error = Mkfs::new(Kind::Ext3).size(8 << 20).format(&path);
        let error = error.expect_err("it holds a file system");
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists, "{error}");
        assert_eq!(length(), 3 << 20, "it was not touched");
        let other = Mkfs::new(Kind::Ext3)
            .size(8 << 20)
            .block_size(512)
            .overwrite(true);
        other.format(&path).expect_err("there are no such blocks");
        assert_eq!(length(), 3 << 20, "it was not touched");
        let other = Mkfs::new(Kind::Ext3).size(8 << 20).overwrite(true);
        other.format(&path).expect("it may be overwritten");
        assert_eq!(length(), 8 << 20);

        let gone = dir.path().join("gone");
        let full = Mkfs::new(Kind::Ext2)
            .size(1 << 20)
            .file("/f", vec![1; 2 << 20]);
        let error = full.format(&gone).expect_err("it does not fit");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
        assert!(!gone.exists(), "a file that holds nothing is not left");
    }

    #[test]
    fn a_device_is_used_whole() {
        let device = pagefence_block_io::MemoryDevice::new(2 << 20);
        let error = Mkfs::new(Kind::Ext2).size(1 << 20).format_device(&device);
        let error = error.expect_err("it is larger");
        assert!(error.to_string().contains("2097152"), "{error}");
        let made = Mkfs::new(Kind::Ext2).size(2 << 20).format_device(&device);
        assert_eq!(made.expect("it fits").blocks, 2048);
    }
}
