//! What pagefence promises, tried: power cuts, failing devices, full disks, hostile images. Tests run
//! each for seconds, `cargo xtask prove` for as long as one likes.
//!
//! Invariant: what is tried follows from a seed, and a failure prints the seed that gives it again.
//! Nothing is skipped in silence: what can't be tried is a [`Row`] that says so.

mod beliefs;
pub mod budget;
pub mod crash;
pub mod devices;
pub mod e2fsck;
mod guarded;
pub mod hostile;
pub mod image;
pub mod library;
mod row;
pub mod space;

pub use budget::Budget;
pub use row::{Plan, Row};
