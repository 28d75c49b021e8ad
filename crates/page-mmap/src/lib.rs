//! Files of the page cache in a program's memory: real page faults, served from the cache.
//!
//! ```text
//! the program ── load, store ──► View (a mapping of the file's memory) ── page fault ──► the kernel
//!                                   ▲                                                       │ event
//!                                   │ map, protect, poison, wake                            ▼
//!                        fault_source (userfaultfd, or a simulated one)             fault_loop (a thread)
//!                                   ▲                                                       │
//!  page-cache ── MapTarget ──► shootdown (what is mapped, what is poisoned)                 │ what has to wait
//!      ▲                                                                                    ▼
//!      └──────────────── MappedRange::fault ◄─── region ◄──────────────────────────── service (a pool)
//! ```
//!
//! A [`Region`] is one mapping of a range of a file. The file's pages are in a memory of their own
//! ([`pagefence_page_cache::FileMemory`]) at their place in the file, and the region's view is a
//! mapping of that memory that is registered with a userfaultfd of the region's own. So every load
//! from a page that is not mapped, and every store to one that is not mapped for stores, stops the
//! thread in the kernel and comes here as an event; nobody but the cache's fault path ever maps a
//! page, and that does it under the page's lock (S4.1).
//!
//! # What is held where
//!
//! | who | holds | waits for |
//! |---|---|---|
//! | fault loop | nothing, or what [`MappedRange::try_fault`] takes without waiting | events; no page; for a store, what reserving its space waits for |
//! | service | what [`MappedRange::fault`] takes | whatever a fault waits for |
//! | [`MapTarget`] of a region, from either or an invalidator | page locks; below them the list of poisoned pages | the mmap lock of this process: held by its own `mmap`, `munmap`, `fork`, for bounded times |
//!
//! Client memory is touched by none of them. A thread that does touch a region's memory must hold no
//! lock of the cache and none that its faults may need (RACES T21): the library copies through a
//! buffer where a caller's memory may be such.
//!
//! # Invariants
//!
//! - A page is mapped for stores in a region only while it is dirty, with its space reserved: the
//!   ioctl that maps it runs under the page lock that makes it so, and writeback protects it under the
//!   same lock (S3.3, RACES 4.3.6).
//! - A page that leaves the cache is mapped in no region: its memory is taken, under its page lock.
//! - A poisoned page (past the end of the file, or one that could not be read) is on its region's list;
//!   one that the file has grown over since is not poisoned.
//!
//! # What the program may do to the memory
//!
//! The view belongs to its [`Region`]. A child of fork(2) does not inherit it (`MADV_DONTFORK`): it
//! maps the file itself. `madvise(MADV_DONTNEED)` unmaps pages, which fault again. Parts that were
//! unmapped or moved by hand (munmap, mremap) are the program's own business: their faults are not
//! served any more, and nothing else comes to harm. System calls that are given memory of a view find
//! what is mapped and fail with EFAULT otherwise, unless the region's userfaultfd may serve the kernel
//! ([`Faults`]).
//!
//! [`MappedRange::fault`]: pagefence_page_cache::MappedRange::fault
//! [`MappedRange::try_fault`]: pagefence_page_cache::MappedRange::try_fault
//! [`MapTarget`]: pagefence_page_cache::MapTarget

mod bell;
mod fault_loop;
mod fault_source;
mod mapped;
#[cfg(any(test, feature = "mutants"))]
pub mod mutants;
mod populate;
mod region;
#[cfg(not(shuttle))]
pub mod remote;
mod service;
mod shootdown;
mod strays;

pub use pagefence_host_memory::{RawBytes, UserfaultError, View, fuse_ioctl};
pub use pagefence_page_cache::{FaultError, Hint};

pub use fault_source::{Ask, Cause, FaultSource, Obstacle, RealSource, Why, Woken};
pub use region::{Faults, Kind, MapError, Region, serve_until_over};
pub use service::Service;

#[cfg(all(test, not(shuttle)))]
mod tests;
