//! What can be wrong with the index of a directory.

use crate::FileBlock;

/// A check that an index block of a directory did not pass, or a hash that cannot be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HtreeCorruption {
    /// `hash_version` is not defined.
    #[error("a directory is hashed by the unknown version {version}")]
    HashVersion {
        /// As stored.
        version: u8,
    },
    /// The hash takes the directory's encryption key.
    #[error("a directory is hashed by siphash, which takes its encryption key")]
    SipHash,
    /// The root does not begin with `.` and `..` of the lengths that hide the index.
    #[error("the root of a directory index does not begin with . and ..")]
    Dots,
    /// `reserved_zero` is not.
    #[error("the root of a directory index has {found:#x} where zero is due")]
    Reserved {
        /// As stored.
        found: u32,
    },
    /// `info_length` is not 8.
    #[error("the root of a directory index says that its header has {length} bytes")]
    InfoLength {
        /// As stored.
        length: u8,
    },
    /// `unused_flags` are used.
    #[error("the root of a directory index has the unknown flags {flags:#x}")]
    Flags {
        /// As stored.
        flags: u8,
    },
    /// The index is deeper than its features allow.
    #[error("a directory index has {levels} levels below its root and may have {most}")]
    Levels {
        /// As stored.
        levels: u8,
        /// 1, or 2 with `large_dir`.
        most: u8,
    },
    /// No node where an index entry points.
    #[error("a block of a directory is no node of its index")]
    NotANode,
    /// `limit` is not what the size gives.
    #[error("a directory index block says that {limit} entries fit, and {due} do")]
    Limit {
        /// As stored.
        limit: u16,
        /// As the size gives.
        due: u16,
    },
    /// `count` is 0 or above `limit`.
    #[error("a directory index block has {count} entries of at most {limit}")]
    Count {
        /// As stored.
        count: u16,
        /// As stored.
        limit: u16,
    },
    /// The hashes of an index block go down.
    #[error("entry {at} of a directory index block has the hash {hash:#010x}, below {floor:#010x}")]
    Order {
        /// Number of the entry.
        at: usize,
        /// As stored.
        hash: u32,
        /// The least that it may be.
        floor: u32,
    },
    /// An entry points to the root or past the directory's end.
    #[error("entry {at} of a directory index block points to block {block} of {blocks}")]
    Block {
        /// Number of the entry.
        at: usize,
        /// As stored.
        block: FileBlock,
        /// Blocks of the directory.
        blocks: u32,
    },
}
