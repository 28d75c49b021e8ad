//! What programs can change through a mount: a file system in memory is mounted, with and without
//! the kernel's writeback cache. Needs root and /dev/fuse, and says so where they are missing.

mod attributes;
#[path = "../mounted/common.rs"]
mod common;
mod contents;
mod counts;
mod direct;
mod maps;
mod memory_fs;
mod moved;
mod names;
mod support;
mod tree;
