//! Models that the file system is held against. For tests only: no crate of the product uses it.

pub mod files;
pub mod write_protocol;
