//! Names, tried through the interface on file systems in memory, judged by `e2fsck -fn`.
#![cfg(not(shuttle))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests panic on purpose"
)]

mod inherit;
mod kit;
mod large;
mod links;
mod model;
mod operations;
mod orphans;
mod renames;
mod space;
mod threads;
