//! The on-disk format of ext2, ext3 and ext4: bytes in, validated values out, and back. No I/O
//! and no locks.
//!
//! Each structure comes as a pair: a raw one, laid out as on disk and named with the kernel's
//! field names, and a validated one with names of the domain. Sources: the kernel's
//! `Documentation/filesystems/ext4` and the headers that it describes.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]
#![cfg_attr(
    test,
    expect(
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        reason = "tests panic on purpose"
    )
)]

pub mod bitmap;
pub mod checksum;
pub mod dir_entry;
pub mod error;
pub mod extent;
pub mod features;
pub mod group_desc;
pub mod htree;
pub mod ids;
#[cfg(test)]
mod image_tests;
pub mod indirect;
pub mod inode;
pub mod journal;
pub mod mmp;
mod num;
pub mod quota;
pub mod superblock;
#[cfg(test)]
mod test_image;
#[cfg(test)]
mod test_superblock;
pub mod xattr;

pub use error::Corruption;
pub use ids::{BlockNo, FileBlock, GroupNo, InodeNo};
