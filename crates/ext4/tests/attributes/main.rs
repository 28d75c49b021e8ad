//! Attributes that are set, tried from outside: on images that e2fsprogs makes, against a plain
//! map, judged by e2fsck and by the kernel where it may be asked.
#![cfg(not(shuttle))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests panic on purpose"
)]

mod against_kernel;
mod attributes;
mod flags;
#[path = "../images/common/kernel.rs"]
mod kernel;
mod large_values;
mod model;
mod support;
mod trim;
