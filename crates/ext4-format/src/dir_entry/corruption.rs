//! What can be wrong with an entry of a directory. Offsets count bytes as those of
//! [`DirEntry`](super::DirEntry) do.

/// A check that an entry of a directory did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirCorruption {
    /// `rec_len` is below the shortest entry's.
    #[error("the directory entry at {offset} is {rec_len} bytes long")]
    TooShort {
        /// Of the entry.
        offset: usize,
        /// In bytes.
        rec_len: usize,
    },
    /// `rec_len` is not a multiple of 4.
    #[error("the directory entry at {offset} is {rec_len} bytes long, not a multiple of 4")]
    Unaligned {
        /// Of the entry.
        offset: usize,
        /// In bytes.
        rec_len: usize,
    },
    /// The entry reaches past the end of what holds it.
    #[error("the directory entry at {offset}, {rec_len} bytes long, reaches past {size}")]
    PastBlock {
        /// Of the entry.
        offset: usize,
        /// In bytes.
        rec_len: usize,
        /// Bytes that hold entries.
        size: usize,
    },
    /// What is left behind the entry is too small for another.
    #[error("the directory entry at {offset}, {rec_len} bytes long, leaves too little behind it")]
    CloseToEnd {
        /// Of the entry.
        offset: usize,
        /// In bytes.
        rec_len: usize,
    },
    /// The name does not fit into its entry, or is longer than 255 bytes.
    #[error(
        "the directory entry at {offset}, {rec_len} bytes long, has a name of {name_len} bytes"
    )]
    NameLength {
        /// Of the entry.
        offset: usize,
        /// In bytes.
        name_len: usize,
        /// In bytes.
        rec_len: usize,
    },
    /// The inode does not exist.
    #[error("the directory entry at {offset} is for inode {inode} and the last is {last}")]
    Inode {
        /// Of the entry.
        offset: usize,
        /// As stored.
        inode: u32,
        /// Of the file system.
        last: u32,
    },
    /// The name is empty or contains `/` or NUL.
    #[error("the directory entry at {offset} has a name that no file can have")]
    Name {
        /// Of the entry.
        offset: usize,
    },
    /// `.` or `..` where it does not belong.
    #[error("the directory entry at {offset} is a . or .. out of its place")]
    MisplacedDots {
        /// Of the entry.
        offset: usize,
    },
    /// The directory does not begin with `.` and `..`.
    #[error("a directory does not begin with . and ..")]
    NoDots,
    /// No checksum where there must be one.
    #[error("a directory block has no room for its checksum")]
    NoTail,
}

impl DirCorruption {
    /// The same with `base` added to its offset.
    pub(super) fn at(mut self, base: usize) -> Self {
        match &mut self {
            Self::TooShort { offset, .. }
            | Self::Unaligned { offset, .. }
            | Self::PastBlock { offset, .. }
            | Self::CloseToEnd { offset, .. }
            | Self::NameLength { offset, .. }
            | Self::Inode { offset, .. }
            | Self::Name { offset }
            | Self::MisplacedDots { offset } => *offset = offset.saturating_add(base),
            Self::NoDots | Self::NoTail => {}
        }
        self
    }
}
