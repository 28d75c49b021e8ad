//! Maps of files in other processes (ADR 17).
//!
//! ```text
//! the program ── load, store ──► View ── page fault ──► its own userfaultfd
//!                                  ▲                          │ event
//!                                  └────────── guard ◄────────┘        a thread of the library in the program
//!                                                │ ▲
//!                                 Fault, Done, … │ │ Map, Protect, Poison, Zap, …      a socket, packet by packet
//!                                                ▼ │
//!                                          RemoteSource ◄── shootdown ◄── page-cache         the daemon
//!                                                │                              ▲
//!                                                └──► fault_loop ───────────────┘
//! ```
//!
//! The daemon hands out the memfd in which the file's pages lie and says which of them may be mapped
//! and how; the program's own guard does it. So nothing in the daemon ever waits for a lock of the
//! program, and who ends, is stopped or says nothing more holds up nobody for longer than
//! [`PATIENCE`].
//!
//! # Invariants
//!
//! - A program does one packet after the other, and acknowledges how many it has done: what was said
//!   before is in force when what was said later is acknowledged.
//! - A page that leaves the cache, or is written back, is one that no program has a right to which it
//!   has not made use of yet: [`RemoteSource`] waits for the acknowledgement, or for the right to be
//!   too old. A guard makes no use of one that is older than half of that.
//! - A page is written back from what no program stores to any more: its guard says that it is
//!   protected, or else the page itself is taken out of every mapping first.
//! - Nobody is waited for before all who are concerned were asked, and each has his time from the question
//!   on: so the waits for many take as long as one.
//! - A program costs others no more than a share of the time, however late it answers ([`Account`]).
//! - The end of the daemon is the end of accesses: from then on each fault ends with SIGBUS.

mod account;
mod greeting;
mod guard;
mod source;
pub(crate) mod wire;

use std::io;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub use account::Account;
pub use guard::{Guard, GuardError};
pub use source::RemoteSource;
pub use wire::{Advised, Open, Opened, RemoteKind, Ticket, Wire};

/// How long anything in the daemon waits for a program, at most, and how long a right to map a page lasts
/// that was given and not made use of.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Nanoseconds by a clock that only goes on. Processes may see it shifted against each other.
pub(crate) fn clock() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).expect("it starts at 0");
    let nanoseconds = u64::try_from(now.tv_nsec).expect("part of a second");
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

/// Whether what was to be sent or received failed because the other end is closed.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}
