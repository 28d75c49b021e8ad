//! The file system on images that mke2fs, debugfs and the kernel made, sound and damaged.

mod attributes;
mod common;
mod contents;
mod directories;
mod exploits;
mod exploits_names;
mod legacy_names;
mod opening;
mod permissions;
mod sweep;
