//! What can be wrong with a node of an extent tree.

use crate::{BlockNo, FileBlock};

/// A check that a node of an extent tree did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtentCorruption {
    /// `eh_magic` is another.
    #[error("the magic of an extent node is {found:#06x}")]
    Magic {
        /// As stored.
        found: u16,
    },
    /// `eh_max` is 0 or more than the bytes hold.
    #[error("an extent node says that {max} entries fit, and {fits} do")]
    Max {
        /// As stored.
        max: u16,
        /// As the size gives.
        fits: u16,
    },
    /// `eh_entries` is above `eh_max`.
    #[error("an extent node has {entries} entries of at most {max}")]
    Entries {
        /// As stored.
        entries: u16,
        /// As stored.
        max: u16,
    },
    /// The tree is deeper than Linux makes any.
    #[error("an extent tree is {depth} levels deep")]
    TooDeep {
        /// `eh_depth` of the root.
        depth: u16,
    },
    /// `eh_depth` is not one below the parent's.
    #[error("an extent node is of depth {found} where {expected} is due")]
    Depth {
        /// As stored.
        found: u16,
        /// As the parent gives.
        expected: u16,
    },
    /// An index node without entries.
    #[error("an extent index node of depth {depth} is empty")]
    EmptyIndex {
        /// Its `eh_depth`.
        depth: u16,
    },
    /// A node does not start where its parent says.
    #[error("an extent node starts at file block {found} and its parent says {expected}")]
    FirstBlock {
        /// Of the first entry.
        found: FileBlock,
        /// As the parent gives.
        expected: FileBlock,
    },
    /// An entry starts before the end of the one before it, or before the node's range.
    #[error("an extent starts at file block {first}, before {floor}")]
    Order {
        /// Start of the entry.
        first: FileBlock,
        /// The least that it may be.
        floor: FileBlock,
    },
    /// An entry reaches past the node's range, or past the last block that a file can have.
    #[error("{len} blocks from file block {first} on reach past {end}")]
    PastEnd {
        /// Start of the entry.
        first: FileBlock,
        /// Its blocks.
        len: u16,
        /// One past the last block that it may cover.
        end: FileBlock,
    },
    /// An extent of no blocks.
    #[error("the extent at file block {first} is empty")]
    ZeroLength {
        /// Start of the extent.
        first: FileBlock,
    },
    /// Blocks that a file cannot own.
    #[error(
        "file block {first} is said to lie in {len} blocks from {start} on, outside the file system"
    )]
    OutsideFileSystem {
        /// Start of the entry.
        first: FileBlock,
        /// Its first block.
        start: BlockNo,
        /// Its blocks.
        len: u16,
    },
}
