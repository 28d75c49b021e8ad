//! Why a file system could not be made.

use std::io;

use pagefence_block_io::DeviceError;
use pagefence_ext4_format::Corruption;
use pagefence_ext4_format::features::UnknownFeature;

use crate::mount::MountError;

/// Why a file system could not be made. The text of each is one sentence without the name of the
/// image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MkfsError {
    /// The device can't hold the metadata, the root directory and `lost+found`.
    #[error(
        "{size_bytes} bytes are too small for this file system: at least {needed_bytes} are needed"
    )]
    TooSmall {
        /// Bytes of the device.
        size_bytes: u64,
        /// Bytes that would be enough for what did not fit.
        needed_bytes: u64,
    },
    /// More blocks than the block numbers reach.
    #[error(
        "{blocks} blocks of {block_size} bytes are too many: at most {most} are possible \
         with these features and this block size"
    )]
    TooLarge {
        /// Blocks of the device.
        blocks: u64,
        /// Bytes of a block.
        block_size: u32,
        /// Most blocks.
        most: u64,
    },
    /// The block size is none that Linux mounts everywhere.
    #[error("blocks of {block_size} bytes can't be made: 1024, 2048 and 4096 can")]
    BlockSize {
        /// Asked for, in bytes.
        block_size: u32,
    },
    /// The inode size is no power of two from 128 to the block size.
    #[error("inodes of {inode_size} bytes do not go with blocks of {block_size}")]
    InodeSize {
        /// Asked for, in bytes.
        inode_size: u16,
        /// Bytes of a block.
        block_size: u32,
    },
    /// More inodes than the groups can hold.
    #[error("{inodes} inodes are too many for {blocks} blocks of {block_size} bytes")]
    TooManyInodes {
        /// Asked for.
        inodes: u64,
        /// Blocks.
        blocks: u64,
        /// Bytes of a block.
        block_size: u32,
    },
    /// More than half of the blocks would be reserved.
    #[error("{percent} % of the blocks can't be reserved: 50 % is the most")]
    Reserved {
        /// Asked for.
        percent: u8,
    },
    /// A label of more than 16 bytes, or with a NUL byte.
    #[error("a label has at most 16 bytes and no NUL byte, this one has {bytes} bytes")]
    Label {
        /// Bytes of the label.
        bytes: usize,
    },
    /// No feature has this name.
    #[error(transparent)]
    UnknownFeature(#[from] UnknownFeature),
    /// The feature is known, but can't be made.
    #[error("the feature {name} can't be made: {reason}")]
    UnsupportedFeature {
        /// Its name.
        name: String,
        /// What is missing.
        reason: &'static str,
    },
    /// A feature lacks another one.
    #[error("the feature {name} needs {needs}")]
    FeatureNeeds {
        /// The feature.
        name: &'static str,
        /// What it needs.
        needs: &'static str,
    },
    /// Two features exclude each other.
    #[error("the features {first} and {second} exclude each other")]
    FeatureConflict {
        /// One.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// All blocks are used.
    #[error("the file system is full: {needed} more blocks are needed and {free} are free")]
    NoSpace {
        /// Blocks asked for.
        needed: u64,
        /// Blocks free.
        free: u64,
    },
    /// All inodes are used.
    #[error("all {inodes} inodes are used")]
    NoInodes {
        /// Inodes of the file system.
        inodes: u32,
    },
    /// A file that can't be put where it was asked to be, or whose contents do not fit.
    #[error("{}: {reason}", path.escape_ascii())]
    Entry {
        /// Path in the file system.
        path: Vec<u8>,
        /// What is wrong.
        reason: EntryError,
    },
    /// The target holds something that would be lost.
    #[error(
        "it holds {what}, which would be lost: have it overwritten (-F) if that is no longer needed"
    )]
    Holds {
        /// What it holds.
        what: &'static str,
    },
    /// The target is new or empty, and no size was given.
    #[error("it has no size yet: say how large the file system is to be (--size)")]
    NoSize,
    /// The target is a device, which is not of the size asked for and can't become so.
    #[error("it has {have_bytes} bytes, and {asked_bytes} were asked for")]
    DeviceSize {
        /// Bytes of the device.
        have_bytes: u64,
        /// Bytes asked for.
        asked_bytes: u64,
    },
    /// The target can't be opened, or is in use.
    #[error(transparent)]
    Open(#[from] MountError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What was made does not pass the checks of the format. A bug, found before it does harm.
    #[error("what was made is not valid: {0}")]
    Invalid(#[from] Corruption),
}

impl MkfsError {
    /// The kind of the error, as `std::io` sorts them.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::TooSmall { .. } | Self::NoSpace { .. } | Self::NoInodes { .. } => {
                io::ErrorKind::StorageFull
            }
            Self::UnsupportedFeature { .. } => io::ErrorKind::Unsupported,
            Self::Entry { reason, .. } if *reason == EntryError::Exists => {
                io::ErrorKind::AlreadyExists
            }
            Self::Entry { reason, .. } if *reason == EntryError::NotDirectory => {
                io::ErrorKind::NotADirectory
            }
            Self::Holds { .. } => io::ErrorKind::AlreadyExists,
            Self::Open(error) => error.kind(),
            Self::Device(error) => error.source.kind(),
            Self::Invalid(_) => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::InvalidInput,
        }
    }
}

/// What is wrong with a file to be put into the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// Not absolute, or with `.` or `..` in it.
    #[error("the path must start with a slash and have no . or .. in it")]
    Path,
    /// More than 4095 bytes.
    #[error("a path has at most 4095 bytes")]
    PathLength,
    /// A name that no directory can hold.
    #[error("a name has 1 to 255 bytes and no NUL byte")]
    Name,
    /// Something is there already.
    #[error("there is a file of that name already")]
    Exists,
    /// What leads there is no directory.
    #[error("what should be its directory is a file or a link")]
    NotDirectory,
    /// A target that no symbolic link can hold.
    #[error("a symbolic link has a target of 1 to {most} bytes without a NUL byte")]
    Target {
        /// Most bytes in this file system.
        most: usize,
    },
    /// More data than a file of this file system can have.
    #[error("a file of {bytes} bytes is too large for this file system")]
    FileTooLarge {
        /// Bytes of the file.
        bytes: u64,
    },
    /// An attribute whose name has no prefix that the format knows, or that has its own rules.
    #[error("attributes have names that start with user., trusted. or security.")]
    XattrName,
    /// Attributes that do not fit into the inode.
    #[error("its attributes need {needed} bytes in the inode, and there are {room}")]
    XattrRoom {
        /// Bytes needed.
        needed: usize,
        /// Bytes there are.
        room: usize,
    },
    /// More directories in a directory than links can count.
    #[error("a directory without the feature dir_nlink holds at most 64998 directories")]
    Links,
}

impl EntryError {
    /// Names the path.
    pub(super) fn at(self, path: &[u8]) -> MkfsError {
        MkfsError::Entry {
            path: path.to_vec(),
            reason: self,
        }
    }
}
