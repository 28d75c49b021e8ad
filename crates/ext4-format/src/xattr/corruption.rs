//! What can be wrong with extended attributes.

use pagefence_posix_acl::AclError;

/// A check that attributes, or an access control list in one, did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XattrCorruption {
    /// `h_magic` is another.
    #[error("the magic of an attribute block is {found:#010x}")]
    Magic {
        /// As stored.
        found: u32,
    },
    /// `h_blocks` is not 1.
    #[error("an attribute block says that it is {blocks} blocks")]
    Blocks {
        /// As stored.
        blocks: u32,
    },
    /// The entries reach the end without the zeroes that end them.
    #[error("the attribute entries do not end: {left} bytes are left")]
    Unfinished {
        /// Bytes from the last entry on.
        left: usize,
    },
    /// A name contains NUL.
    #[error("the name of an attribute contains NUL")]
    Name,
    /// A value is longer than any.
    #[error("the value of an attribute has {size} bytes")]
    ValueSize {
        /// As stored.
        size: u32,
    },
    /// A value that does not lie between the entries and the end.
    #[error("an attribute value of {size} bytes at {offset} is not between {floor} and {end}")]
    Value {
        /// As stored.
        offset: u16,
        /// As stored.
        size: u32,
        /// Where values may start.
        floor: usize,
        /// Where they must end.
        end: usize,
    },
    /// A value in an inode, which needs the feature `ea_inode`.
    #[error("an attribute value is said to be in inode {inode}, and ea_inode is not on")]
    NoEaInodes {
        /// As stored.
        inode: u32,
    },
    /// A value in an inode that is reserved or does not exist.
    #[error("an attribute value is said to be in inode {inode}, reserved or above {last}")]
    Inode {
        /// As stored.
        inode: u32,
        /// Of the file system.
        last: u32,
    },
    /// `e_hash` does not fit name and value.
    #[error("the hash of an attribute is {stored:#010x} and should be {computed:#010x}")]
    Hash {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    /// The hash that an inode of attribute values carries does not fit its contents.
    #[error("the hash of an attribute inode is {stored:#010x} and should be {computed:#010x}")]
    EaInodeHash {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    /// An access control list.
    #[error(transparent)]
    Acl(#[from] AclError),
}

impl From<AclError> for crate::Corruption {
    fn from(error: AclError) -> Self {
        XattrCorruption::from(error).into()
    }
}
