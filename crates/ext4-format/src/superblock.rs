//! To be filled: superblock.
