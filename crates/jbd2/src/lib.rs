//! The journal of ext3 and ext4 (JBD2).
//!
//! - [`location`]: where the blocks of the journal lie on the device.
//! - [`recovery`]: what a journal that was not closed holds, found without a byte being changed.
//! - [`mod@write_back`]: brings that home and empties the journal.
//! - [`mod@commit_once`]: one transaction, written as a whole or not at all.

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

pub mod commit_once;
pub mod error;
pub mod location;
mod log;
pub mod recovery;
pub mod write_back;

pub use commit_once::commit_once;
pub use error::{JournalError, Result};
pub use location::{JournalLocation, JournalRun, LocationError};
pub use recovery::{FastCommits, Recovery, recover};
pub use write_back::{Emptied, set_errno, write_back};

#[cfg(test)]
mod tests;
