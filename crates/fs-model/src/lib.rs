//! Models that the file system is held against, and what holds it against them. For tests only: no
//! crate of the product uses it.
//!
//! [`files`], [`ledger`], [`write_protocol`] and [`fault_protocol`] know nothing but themselves. [`drive`] and [`races`] drive
//! anything that is a [`pagefence_vfs::FileSystem`].

pub mod drive;
pub mod fault_protocol;
pub mod files;
pub mod ledger;
pub mod races;
mod walk;
pub mod write_protocol;
