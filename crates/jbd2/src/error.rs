//! Why a journal can't be used.

use pagefence_block_io::DeviceError;
use pagefence_ext4_format::{BlockNo, Corruption};

/// Why an operation on the journal failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The journal is damaged.
    #[error("block {block} of the journal: {source}")]
    Corrupt {
        /// Block of the journal.
        block: u32,
        /// What is wrong with it.
        #[source]
        source: Corruption,
    },
    /// A transaction needs more blocks than the log has free.
    #[error("a transaction of {needed} blocks does not fit in {free} free blocks of the log")]
    LogFull {
        /// Blocks of the log that it needs.
        needed: u64,
        /// Blocks that are free.
        free: u32,
    },
    /// A transaction changes a block that it must not: past the end of the device, of the journal
    /// itself, too large a number for this journal, or not one block of bytes.
    #[error("block {block} can't be changed by a transaction")]
    Block {
        /// The block.
        block: BlockNo,
    },
    /// A transaction can't be added behind one that is damaged: the log has to be written back
    /// first.
    #[error("transaction {sequence} in the log is damaged")]
    DamagedLog {
        /// The damaged transaction.
        sequence: u32,
    },
    /// A journal of version 1 can't revoke blocks.
    #[error("a journal of version 1 can't revoke blocks")]
    RevokeUnsupported,
    /// A running journal begins with an empty log: recovery comes first.
    #[error("the log is not empty")]
    NotEmpty,
    /// A block that was deferred has no contents: the client did not give any when the
    /// transaction was sealed.
    #[error("deferred block {block} was given no contents")]
    Unsealed {
        /// The block.
        block: BlockNo,
    },
    /// The journal's thread can't be started.
    #[error("the journal's thread can't be started: {0}")]
    Thread(#[source] std::io::Error),
    /// There is a snapshot, and there can't be two.
    #[error("there is a snapshot already")]
    SnapshotInUse,
    /// The journal was aborted: nothing is written any more.
    #[error("the journal was aborted with error {errno}")]
    Aborted {
        /// Why, as a number of Linux (positive).
        errno: i32,
    },
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
}

/// `EIO`.
const EIO: i32 = 5;
/// `EUCLEAN`, which Linux returns for damaged file systems.
const EUCLEAN: i32 = 117;

impl JournalError {
    /// The error as a number of Linux (positive), for the journal's superblock.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Aborted { errno } => *errno,
            Self::Device(error) => error.source.raw_os_error().unwrap_or(EIO),
            Self::Corrupt { .. } | Self::DamagedLog { .. } | Self::Block { .. } => EUCLEAN,
            _ => EIO,
        }
    }
}

/// Result of an operation on the journal.
pub type Result<T> = std::result::Result<T, JournalError>;
