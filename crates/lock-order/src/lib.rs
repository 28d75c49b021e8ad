//! The only door to locks, atomics and threads, and the order in which locks are taken.
//!
//! - [`primitives`] names every lock, atomic and thread type that the workspace uses:
//!   parking_lot's, or shuttle's under `--cfg shuttle`, so that the same code runs under a
//!   scheduler that chooses interleavings.
//! - [`levels`] is the one chain of lock levels, top to bottom.
//! - [`held`] proves by a token which level is held; a lock of a level can be taken only with a
//!   token from a level above. Code that takes locks in a forbidden order does not compile.
//! - [`pair`] takes two locks of one level in the order of their numbers, and one lock once.
//! - [`forbidden`] shows what does not compile.
//! - `schedules` runs a scenario under that scheduler.
//! - [`rank`] checks in debug builds what the types cannot carry: the order actually met at run
//!   time, per thread.

pub mod forbidden;
pub mod held;
pub mod levels;
pub mod pair;
pub mod primitives;
pub mod rank;
#[cfg(shuttle)]
pub mod schedules;

pub use held::{Held, OrderedReadGuard, OrderedRwLock, OrderedWriteGuard};
pub use levels::{After, Level};
