//! The one error type of the file system interface. Error numbers exist in `fuse-front` alone.

/// Result of an operation of a file system.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where damage was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// The inode, if one is concerned.
    pub inode: Option<u64>,
    /// The block of the file system, if one is concerned.
    pub block: Option<u64>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.inode, self.block) {
            (Some(inode), Some(block)) => write!(f, "inode {inode}, block {block}"),
            (Some(inode), None) => write!(f, "inode {inode}"),
            (None, Some(block)) => write!(f, "block {block}"),
            (None, None) => f.write_str("the file system"),
        }
    }
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No entry of that name, or no such inode.
    #[error("no such file or directory")]
    NotFound,
    /// The inode was deleted, and its number may have been used again.
    #[error("the file is gone")]
    Stale,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory was met where it can't serve.
    #[error("is a directory")]
    IsDirectory,
    /// The name is taken.
    #[error("the file exists")]
    Exists,
    /// The directory still has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// An argument is out of range or of the wrong kind.
    #[error("invalid argument")]
    InvalidArgument,
    /// The name is longer than 255 bytes.
    #[error("the name is too long")]
    NameTooLong,
    /// More than 40 symbolic links were met on one path.
    #[error("too many levels of symbolic links")]
    TooManySymlinks,
    /// No extended attribute of that name.
    #[error("no such attribute")]
    NoAttribute,
    /// The position is past the last data or hole (lseek).
    #[error("no data past this offset")]
    NoData,
    /// The caller has no right to do this.
    #[error("permission denied")]
    PermissionDenied,
    /// Nobody may do this to this inode.
    #[error("operation not permitted")]
    NotPermitted,
    /// What is moved or linked would come to where it can't be as it is; copied, it can.
    #[error("it can only be copied to there")]
    CrossesDevices,
    /// The file system, its image or the mount is read-only.
    #[error("the file system is read-only")]
    ReadOnly,
    /// This file system or this kind of file can't do that.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// The file is encrypted, and there is no key.
    #[error("the file is encrypted and no key is at hand")]
    NoKey,
    /// No space is left, or none but what is kept for root.
    #[error("no space is left on the file system")]
    NoSpace,
    /// The file would be larger than the format allows.
    #[error("the file would be too large")]
    FileTooLarge,
    /// The inode has as many names as the format allows.
    #[error("too many links")]
    TooManyLinks,
    /// The value is larger than an attribute may be.
    #[error("the value is too large")]
    TooLarge,
    /// It is in use in a way that excludes this.
    #[error("it is busy")]
    Busy,
    /// Somebody changed it meanwhile; nothing was done, and it may go well the next time.
    #[error("it changed meanwhile: try again")]
    Again,
    /// No memory within the budget.
    #[error("out of memory")]
    OutOfMemory,
    /// The structure on disk is damaged. What and where was logged once.
    #[error("the file system is damaged at {place}: {what}")]
    Corrupt {
        /// What is wrong with it.
        what: String,
        /// Where it was found.
        place: Place,
    },
    /// The device failed.
    #[error("input/output error: {0}")]
    Io(#[from] std::io::Error),
}
