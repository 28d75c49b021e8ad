//! Files that are written, tried from outside: on images that e2fsprogs makes, against plain bytes,
//! judged by e2fsck.
#![cfg(not(shuttle))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests panic on purpose"
)]

mod crash;
mod damaged_directories;
mod exchange;
mod full;
#[path = "../images/common/kernel.rs"]
mod kernel;
mod maps;
mod migrate;
mod migrate_crash;
mod migrate_dirs;
mod order;
mod owned_twice;
mod races;
mod ranges;
mod rules;
mod shift;
mod support;
mod traces;
