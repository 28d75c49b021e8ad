//! One kind of corruption per check, each with the values that failed it. Where it was found
//! (inode, block) is added by whoever read the bytes.

/// A check that bytes from disk did not pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corruption {
    /// A structure reaches past the bytes that hold it.
    #[error("{what} needs {needed} bytes and has {have}")]
    Truncated {
        /// The structure.
        what: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are.
        have: usize,
    },
    /// A stored checksum does not match the bytes.
    #[error("the checksum of {what} is {stored:#010x} and should be {computed:#010x}")]
    Checksum {
        /// The structure.
        what: &'static str,
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    // --- superblock, group descriptors, inodes, bitmaps ---

    // --- extents, block maps, directories, htrees, attributes ---
    /// A node of an extent tree.
    #[error(transparent)]
    Extent(#[from] crate::extent::ExtentCorruption),
    /// A pointer of a block map.
    #[error(transparent)]
    BlockMap(#[from] crate::indirect::BlockMapCorruption),
    /// An entry of a directory.
    #[error(transparent)]
    DirEntry(#[from] crate::dir_entry::DirCorruption),
    /// The index of a directory.
    #[error(transparent)]
    Htree(#[from] crate::htree::HtreeCorruption),
    /// Extended attributes.
    #[error(transparent)]
    Xattr(#[from] crate::xattr::XattrCorruption),
    // --- journal ---
}
