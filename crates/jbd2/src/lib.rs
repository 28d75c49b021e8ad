//! The journal of ext3 and ext4 (JBD2).
//!
//! - [`location`]: where the blocks of the journal lie on the device.
//! - [`recovery`]: what a journal that was not closed holds, found without a byte being changed.
//! - [`mod@write_back`]: brings that home and empties the journal.
//! - [`mod@commit_once`]: one transaction, written as a whole or not at all.
//! - [`journal`]: the journal of a file system in use. [`handle`] is what an operation holds while
//!   it changes blocks, [`transaction`] what the handles of a few seconds have in common;
//!   `commit` makes a transaction durable in the log, `checkpoint` brings it home later, and
//!   `without_log` does both at once for a file system that has no journal.
//! - [`snapshot`]: the metadata as of one commit, readable while everything goes on.

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

mod checkpoint;
mod commit;
pub mod commit_once;
pub mod error;
mod flush_group;
pub mod handle;
mod home;
pub mod journal;
pub mod location;
mod log;
mod log_writer;
mod mutant;
pub mod recovery;
mod revoke;
mod running_log;
mod shared;
pub mod snapshot;
pub mod transaction;
mod without_log;
pub mod write_back;

pub use commit_once::commit_once;
pub use error::{JournalError, Result};
pub use handle::Handle;
pub use journal::{Client, Journal, Options};
pub use location::{JournalLocation, JournalRun, LocationError};
pub use log::read_superblock;
pub use recovery::{FastCommits, Recovery, recover};
pub use snapshot::{Snapshot, SnapshotLost};
pub use transaction::{Sealing, Tid, Turn};
pub use write_back::{Emptied, set_errno, write_back};

#[cfg(test)]
mod tests;
