//! The page cache: the pages of files, and the locks that settle who fills them and who takes
//! their blocks away.
//!
//! # Layers
//!
//! ```text
//! Mapping::read        Mapping::write     flusher (when)        Mapping::fence → Fence::evict → Evicted
//!   read ─► readahead    write              │ Mapping::write_back   fence ─► truncate (drop a range,
//!   fill ◄─ readahead_     │ (lock, reserve,▼                         │       zero its edges)
//!     │     worker         │  copy, dirty)  writeback (gather, mark, ◄┘
//!     │ (look up → I/O →   │                │          write, unmark)
//!     ▼  up to date)       ▼                ▼
//!   pages (the index of one file), dirty (which of them are) ◄── reclaim (a clock over all frames)
//!     ▲                            rmap (who maps a range) ◄── fence, writeback, reclaim: unmap, protect
//!   fault (fill, lock, map) ◄── MappedRange::fault ◄── who maps the file (a MapTarget)
//!   direct (flush, lock, take out, write, map): a write that leaves nothing in the cache
//!   folio, folio_state, write_batch, wait (one page: its lock, what is dirty, who waits for it)
//!   host-memory (frames)              lock-order (every lock and thread)
//! ```
//!
//! Boundaries: a file system implements [`Backing`], and [`WriteBacking`] to be written, and is
//! called nowhere else; who maps files implements [`MapTarget`]; the cache knows no block, no inode, no extent. A reader's buffer is touched
//! with no lock held; a writer's with page locks held, so it is private memory.
//!
//! # What is held where
//!
//! | operation | inode lock | invalidate lock | writepages lock | page lock | index lock |
//! |---|---|---|---|---|---|
//! | read, cached | – | – | – | – | shared, to look up and pin |
//! | read, missing | – | shared, from the block query until up to date | – | of the new pages | exclusive, to insert |
//! | read, another fills | – | *dropped*, then a full retry | – | waits for it | – |
//! | readahead | – | shared, over the whole window | – | of the new pages | exclusive, to insert |
//! | fault, load or private store | none | shared, to fill; given up before the page is locked | – | of the page, until it is mapped; of its neighbours, tried | as a read |
//! | fault, store | none | shared, from the lookup until mapped | – | of the page, from its reservation until it is mapped | as a read |
//! | write | the caller's, exclusive | shared, from the lookup until dirty; exclusive if it leaves a gap behind the end | – | of a chunk of pages, ascending, waited for | exclusive, to insert |
//! | direct write | the caller's, shared or exclusive | shared, from the lock of its pages until its blocks are mapped; exclusive after some tries, or if it leaves a gap | shared, before, to write what is dirty | of a chunk of pages, ascending, waited for, until its blocks are mapped | exclusive, to insert, replace and remove |
//! | writeback, gathering | any or none | any or none | shared | the first waited for, the others tried | shared, to look up |
//! | writeback, writing | any or none | any or none | shared | *none*; the pages are under writeback | – |
//! | writeback, its end | any or none | any or none | shared | *none* | – |
//! | fence, evict | the caller's | exclusive, until the blocks are changed | – | tried, then waited for; writeback is waited for under it | exclusive, to remove |
//! | fence, punching delayed allocations | the caller's | exclusive | – | of one page at a time, waited for | shared, to look up |
//! | fence, edges | the caller's | exclusive | shared, to write them | of both, ascending | – |
//! | reclaim | any or none | any or none | any or none | tried only | exclusive, to remove |
//! | last drop of a mapping | any or none | nobody else is left | nobody else is left | – | exclusive |
//!
//! The index of dirty pages and the flusher's list have a lock each: leaves, that no reader takes.
//! Who maps a file is listed under a lock that is held while mappers are called ([`MapTarget`] says
//! what they may do), below page locks and above nothing of the cache's.
//!
//! # Operation against operation
//!
//! What keeps the row's operation from harming, or being harmed by, the column's. The tests are
//! listed in `docs/LOCKING.md`.
//!
//! | | read / readahead | write | writeback | fence, evict, change of blocks | reclaim |
//! |---|---|---|---|---|---|
//! | **read, cached** | pin | bytes before or after, a page at a time or mixed: the copies bear it | both only read | pin: it copies what was there when it began | pin: the frame stays until the copy is done |
//! | **read, missing** | one inserts, the other waits for its page lock | as between readers | a page being written is in the cache, so nobody looks for its blocks before they are mapped | invalidate lock (S1.2, S1.4) | page lock, tried; the filler pins what it read |
//! | **readahead** | as above | as above | as above | invalidate lock over the window (S1.3) | page lock, tried |
//! | **write** | as above | inode lock | page lock: dirty and size are set under it; dirtied while being written, a page is written again | invalidate lock: a page becomes dirty, and its space is reserved, in one section (S3.2, S3.3) | page lock; dirty before it is given up (K9) |
//! | **direct write** | its pages are locked and in the index until its blocks are mapped: who wants them waits, and looks again | inode lock | dirty pages are written before; under the page lock none is dirty or being written | inode lock; invalidate lock | its pages have no frame |
//! | **writeback** | as above | as above | one writer a page: the mark is set under the page lock, and is waited for with no page gathered | the mark: evict waits for it under the page lock (P7, S4.16); inside the fence nothing becomes dirty but its edges | the mark, which stays until the blocks are mapped |
//! | **fault, load** | as a missing read; the page lock until it is mapped | loads see what a cached read sees | both only read | page lock: mapped before the invalidator looks, or it finds no page, or the new size (S4.1, S4.5) | page lock, tried; unmapped under it |
//! | **fault, store** | as above | page lock; either makes it dirty | write-protected under the page lock before it is clean: the next store asks again | invalidate lock: space, dirty and mapped are one section (S3.2) | dirty under the page lock |
//! | **fence** | invalidate lock | invalidate lock | as above | invalidate lock | page lock, then "still in the index?" |
//! | **reclaim** | page lock, tried | page lock, tried, and then "dirty?" | page lock, tried, and then "under writeback?" | page lock, tried | page lock, tried |
//!
//! # Invariants
//!
//! - A folio that is in an index and not locked is up to date, and it is up to date if and only if
//!   it has a frame. Frames are private until they are.
//! - Inserting a page, and looking up its blocks, happens under the invalidate lock only.
//! - Pages are dropped for a change of blocks with the invalidate lock held exclusively only;
//!   asserted in debug builds (S1.11).
//! - A page becomes dirty under its page lock and the invalidate lock, with its blocks reserved or
//!   mapped; it leaves the cache clean and written, or by a fence.
//! - A page is under writeback from a moment under its page lock until its blocks are written *and
//!   mapped*; its end takes no page lock, no inode lock and no invalidate lock.
//! - Bytes of a cached page past the end of the file are zeros unless they were stored through a map,
//!   and those that are written back are zeros. Nobody reads them; whatever moves the end over them
//!   zeroes them first, and nobody stores to them from then on without a fault.
//! - A page is mapped under its page lock, and by who is listed as mapping it only; it is unmapped
//!   under its page lock before it leaves the index. It is mapped for stores only while it is dirty.
//! - Nobody waits for a page lock with the invalidate lock held shared but a writer, whose page
//!   locks ascend (a direct one's, too), and a store's fault, which takes one: those who hold them want no lock of theirs. Nobody waits for a frame with the
//!   invalidate lock held shared, with a page locked, or with frames in hand.
//! - Nobody waits for dirty pages to become fewer, or for space, with a page locked.
//! - There are never more pages with a frame than frames, and never more frames than the budget pays
//!   for. Beside them, each direct write in flight has up to 256 pages without one.

mod answer;
pub mod backing;
mod cache;
mod direct;
mod dirty;
mod error_cursor;
mod fault;
mod fence;
mod fill;
mod flusher;
mod folio;
mod folio_state;
mod mapping;
mod memory;
mod mend;
#[cfg(test)]
mod mutants;
mod pages;
#[cfg(any(test, feature = "mutants"))]
pub mod probe;
mod punch_delalloc;
mod read;
mod readahead;
mod readahead_worker;
mod reclaim;
mod rmap;
#[cfg(any(test, feature = "simulated"))]
pub mod simulated;
mod stray;
mod truncate;
mod wait;
mod will_need;
mod write;
mod write_batch;
mod writeback;

pub use answer::Answer;
pub use backing::{Backing, DirectBacking, PAGE_SIZE, Segment, WriteBacking};
pub use cache::{Config, PageCache, Usage};
pub use error_cursor::ErrorCursor;
pub use fault::{FaultError, FaultKind};
pub use fence::{Evict, Evicted, Fence, fence_both};
pub use flusher::CanFlush;
pub use mapping::Mapping;
pub use memory::ShareError;
pub use pagefence_host_memory::{FileMemory, FrameMut};
pub use read::ReadError;
pub use readahead::{Hint, Readahead};
pub use rmap::{Access, CannotMap, MapTarget, MappedPage, MappedRange, PageRun, Unmap};
pub use write_batch::WriteBatch;
pub use writeback::WaitFor;

#[cfg(test)]
mod tests;
