//! Names of extended attributes as users see them.

/// A full attribute name: namespace prefix, dot, name (`user.comment`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XattrName(pub Vec<u8>);

/// Access ACL, in the kernel's `posix_acl_xattr` form (version 2, little-endian).
pub const POSIX_ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// Default ACL, in the kernel's `posix_acl_xattr` form (version 2, little-endian).
pub const POSIX_ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
