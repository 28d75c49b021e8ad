//! To be filled: xattr.
