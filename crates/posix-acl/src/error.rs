//! What can be wrong with an access control list.

/// A check that a list did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AclError {
    /// Another version.
    #[error("an access control list is of version {version}")]
    Version {
        /// As stored.
        version: u32,
    },
    /// Not made of whole entries.
    #[error("an access control list of {size} bytes ends within an entry")]
    Size {
        /// Bytes.
        size: usize,
    },
    /// An entry of an unknown kind.
    #[error("an access control list has an entry of the unknown kind {tag:#06x}")]
    Tag {
        /// As stored.
        tag: u16,
    },
    /// An entry that grants more than there is.
    #[error("an access control list has the permissions {perm:#06x}")]
    Perm {
        /// As stored.
        perm: u16,
    },
    /// A user or group that nobody is.
    #[error("entry {at} of an access control list is for the id -1")]
    Id {
        /// Number of the entry.
        at: usize,
    },
    /// Entries that are missing, repeated or out of order.
    #[error("entry {at} of an access control list is out of order, or the list is incomplete")]
    Order {
        /// Number of the entry, or how many there are.
        at: usize,
    },
}
