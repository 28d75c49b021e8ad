//! To be filled: inode.
