//! Recovery, tried from outside: images that e2fsprogs makes and makes dirty, recovered by
//! opening them, judged by e2fsck.
#![cfg(not(shuttle))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests panic on purpose"
)]

mod crashes;
mod fast_commits;
mod images;
mod journal;
mod orphans;
mod walk;
