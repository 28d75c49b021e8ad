//! Models that the file system is held against. For tests only: no crate of the product uses it.

pub mod fault_protocol;
pub mod files;
mod walk;
pub mod write_protocol;
