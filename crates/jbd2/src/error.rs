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
}

/// Result of an operation on the journal.
pub type Result<T> = std::result::Result<T, JournalError>;
