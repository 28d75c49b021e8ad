//! Tests on real mounts of a file system in memory. They need root and /dev/fuse, and say so on
//! stderr where they are skipped.

mod changes;
mod common;
mod contents;
mod memory_fs;
mod requests;
