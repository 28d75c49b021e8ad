//! The page cache: the pages of files, and the locks that settle who fills them and who takes
//! their blocks away.
//!
//! # Layers
//!
//! ```text
//! Mapping::read                     Mapping::fence → Fence::evict → Evicted
//!   read ──► readahead (how far)      fence ──► truncate (drop a range)
//!   fill ◄── readahead_worker                       │
//!     │   (look up → I/O → up to date)              │
//!     ▼                                             ▼
//!   pages (the index of one file) ◄── reclaim (a clock over all frames)
//!   folio, folio_state, wait (one page, its lock, who waits for it)
//!   host-memory (frames)              lock-order (every lock and thread)
//! ```
//!
//! Boundaries: a file system implements [`Backing`] and is called nowhere else; the cache knows
//! no block, no inode, no extent. It holds no lock while it touches a caller's buffer.
//!
//! # What is held where
//!
//! | operation | inode lock | invalidate lock | page lock | index lock |
//! |---|---|---|---|---|
//! | read, cached | – | – | – | shared, to look up and pin |
//! | read, missing | – | shared, from the block query until up to date | of the new pages | exclusive, to insert |
//! | read, another fills | – | *dropped*, then a full retry | waits for it | – |
//! | readahead | – | shared, over the whole window | of the new pages | exclusive, to insert |
//! | fence, evict | the caller's | exclusive, until the blocks are changed | tried, then waited for | exclusive, to remove |
//! | reclaim | any or none | any or none | tried only | exclusive, to remove |
//! | last drop of a mapping | any or none | nobody else is left | – | exclusive |
//!
//! # Operation against operation
//!
//! What keeps the row's operation from harming, or being harmed by, the column's. The tests are
//! listed in `docs/LOCKING.md`.
//!
//! | | read / readahead | fence, evict, change of blocks | reclaim |
//! |---|---|---|---|
//! | **read, cached** | pin | pin: it copies what was there when it began | pin: the frame stays until the copy is done |
//! | **read, missing** | one inserts, the other waits for its page lock | invalidate lock (S1.2, S1.4) | page lock, tried; the filler pins what it read |
//! | **readahead** | as above | invalidate lock over the window (S1.3) | page lock, tried |
//! | **fence** | invalidate lock | invalidate lock | page lock, then "still in the index?" |
//! | **reclaim** | page lock, tried | page lock, tried | page lock, tried |
//!
//! # Invariants
//!
//! - A folio that is in an index and not locked is up to date, and it is up to date if and only if
//!   it has a frame. Frames are private until they are.
//! - Inserting a page, and looking up its blocks, happens under the invalidate lock only.
//! - Pages are dropped for a change of blocks with the invalidate lock held exclusively only;
//!   asserted in debug builds (S1.11).
//! - Nobody waits for a page lock or a frame with the invalidate lock held shared, nor for a frame
//!   with frames in hand.
//! - There are never more pages than frames, and never more frames than the budget pays for.

pub mod backing;
mod cache;
mod dirty;
mod error_cursor;
mod fence;
mod fill;
mod flusher;
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
mod write;
mod write_batch;
mod writeback;

pub use backing::{Backing, PAGE_SIZE, Segment, WriteBacking};
pub use cache::{Config, PageCache, Usage};
pub use error_cursor::ErrorCursor;
pub use fence::{Evict, Evicted, Fence};
pub use flusher::CanFlush;
pub use mapping::Mapping;
pub use pagefence_host_memory::FrameMut;
pub use read::ReadError;
pub use readahead::{Hint, Readahead};
pub use write_batch::WriteBatch;
pub use writeback::WaitFor;

#[cfg(test)]
mod tests;
