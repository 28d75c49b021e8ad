//! Filling and mapping a page against taking its blocks away, as an exhaustive model (S0, S1, S4).
//!
//! One page of one file, which has a block with old data; a second block is free. Threads read the
//! page, fault on it (a load, a store, a store into a private copy), punch it or cut the file off
//! before it; meanwhile reclaim may take the page, writeback may write it, and another file takes
//! blocks that become free and writes its own data there. [`check`] walks every interleaving of
//! their steps and holds every state against the properties in [`property`]. A step is what the
//! design does without letting anybody else see the middle: up to a lock, an I/O, the moment at
//! which a page table changes.
//!
//! The protocol: who fills a page holds the invalidate lock, shared, from the look at the block map
//! until the page is up to date (S1.2); who takes blocks away holds it exclusively, and drops the
//! page first (S0.14). A page is mapped, unmapped and removed under its lock (S4.1), so a fault on
//! a page that is in the cache needs nothing else. Reclaim and writeback know neither lock but the
//! page's.
//!
//! A [`Mutant`] leaves one protection out; it shows that the model can fail.

mod check;
mod fault;
mod invalidate;
pub mod property;
mod read;
mod state;
mod writeback;

pub use check::{Actor, FaultProtocol, Outcome, check, find};
pub use state::{Access, Cut, Mutant, Scenario, State};
