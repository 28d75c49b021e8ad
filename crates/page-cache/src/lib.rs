//! The page cache: the pages of files, and the locks that settle who fills them and who takes
//! their blocks away.

pub mod backing;
mod cache;
mod fence;
mod fill;
mod folio;
mod folio_state;
mod mapping;
#[cfg(test)]
mod mutants;
mod pages;
mod read;
mod readahead;
mod readahead_worker;
mod reclaim;
mod truncate;
mod wait;

pub use backing::{Backing, PAGE_SIZE, Segment};
pub use cache::{Config, PageCache, Usage};
pub use fence::{Evict, Evicted, Fence};
pub use mapping::Mapping;
pub use pagefence_host_memory::FrameMut;
pub use read::ReadError;
pub use readahead::{Hint, Readahead};
