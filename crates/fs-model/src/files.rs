//! A file system as its users see it: names, links, kinds, bytes with holes, modes, owners,
//! extended attributes, and the error of every operation that can't be done.
//!
//! A [`Tree`] is driven by [`Operation`]s, one at a time; the real thing is driven beside it and
//! compared. Everybody is root. Times, and sizes of directories, are left out.

mod bytes;
mod names;
mod operation;
mod path;
mod ranges;
mod tree;

pub use bytes::{Bytes, RECORD_BYTES, contents};
pub use operation::{Answer, Failure, Operation, RangeChange, RenameHow};
pub use tree::{Format, Kind, Node, NodeNo, Tree};

#[cfg(test)]
mod tests;
