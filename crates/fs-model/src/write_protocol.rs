//! The life of a written byte as an exhaustive model: reserve, dirty, write the data, *then* map it.
//!
//! A [`Scenario`] is a few files of a few pages on a device of a few blocks, with a journal of a few
//! credits and some threads, each with a short list of operations. [`check`] walks every interleaving
//! of their steps with the commit thread's, and holds every state against the properties in
//! [`property`]. A step is what the design does without letting anybody else see the middle: up to a
//! lock, an I/O, a handle. A crash is not a step but a question asked of every state: whatever subset
//! of the unflushed writes survives, is what recovery makes of it allowed?
//!
//! Operations are finite and no step undoes another, so a run ends either with everything done or
//! stuck; being stuck is [`property::NO_DEADLOCK`]. [`is_acyclic`] checks the first half of that.
//!
//! A [`Mutant`] breaks the protocol in one place; it shows that the model can fail.

mod check;
mod config;
mod disk;
mod fence;
mod journal;
mod operation;
pub mod property;
mod reservation;
mod state;
mod writeback;

pub use check::{Outcome, WriteProtocol, check, find, is_acyclic};
pub use config::{Mutant, Op, Scenario};
