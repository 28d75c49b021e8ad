//! ext2, ext3 and ext4.

pub mod mkfs;
