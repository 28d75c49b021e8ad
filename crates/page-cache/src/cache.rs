//! One cache for all files of a process: its budget, its frames, its workers.

use std::time::Duration;

use pagefence_host_memory::{Arena, FrameMut};
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::Entry;
use pagefence_lock_order::primitives::Arc;

use crate::backing::PAGE_SIZE;
use crate::error_cursor::{ErrorCursor, ErrorLog};
use crate::flusher::{CanFlush, Flusher, Limits};
use crate::memory::Unused;
use crate::pages::PAGE_OVERHEAD;
use crate::readahead_worker::{Queue, Workers};
use crate::reclaim::Clock;
use crate::wait::{Events, PageQueues};
use crate::writeback::{BATCH_PAGES, Buffers};

/// Pages reclaimed at least when frames have run out, so that the next few allocations find some.
const RECLAIM_BATCH: usize = 32;

/// The smallest budget.
const LEAST_BYTES: u64 = 256 << 10;

/// How a [`PageCache`] is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes that cached pages and what is kept about them may take, ever. At least 256 KiB.
    pub budget_bytes: u64,
    /// Bytes of the first window of a sequential reader.
    pub readahead_initial_bytes: u64,
    /// Bytes that a window grows to; 0 for no readahead at all.
    pub readahead_max_bytes: u64,
    /// Threads that read ahead; with 0, windows wait for [`PageCache::run_readahead`].
    pub readahead_workers: usize,
    /// Windows that may wait for a worker; more are forgotten.
    pub readahead_queue: usize,
    /// Bytes of pages that may be dirty or under writeback before writers write back themselves;
    /// from half of it on, the flusher writes. At most half the budget counts.
    pub dirty_limit_bytes: u64,
    /// How long a file has dirty pages before the flusher writes them.
    pub dirty_expire: Duration,
    /// Threads that write dirty pages, started when first needed; with 0, pages are written by
    /// who asks for it, by writers over the limit, and by [`PageCache::run_flusher`].
    pub flusher_threads: usize,
}

impl Config {
    /// Windows from 128 KiB to 2 MiB and two workers; up to a fifth of `budget_bytes` dirty, for
    /// up to 5 seconds, and three flushers.
    #[must_use]
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            readahead_initial_bytes: 128 << 10,
            readahead_max_bytes: 2 << 20,
            readahead_workers: 2,
            readahead_queue: 64,
            dirty_limit_bytes: budget_bytes / 5,
            dirty_expire: Duration::from_secs(5),
            flusher_threads: 3,
        }
    }
}

impl Config {
    /// For files whose pages are the storage ([`crate::Backing::IS_STORAGE`]): they may all
    /// together have `pages` pages, and `in_hand` frames more are there for those who write, until
    /// a reservation is refused. Nothing runs in the background.
    #[must_use]
    pub fn for_storage(pages: u64, in_hand: u64) -> Self {
        let frames = pages.saturating_add(in_hand);
        let bytes = frames.saturating_mul(PAGE_SIZE as u64 + PAGE_OVERHEAD);
        Self {
            readahead_max_bytes: 0,
            readahead_workers: 0,
            flusher_threads: 0,
            // Of no effect but on how much is written under one hold of the locks.
            dirty_limit_bytes: u64::MAX,
            ..Self::new(bytes.max(LEAST_BYTES))
        }
    }
}

/// How full the cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that it may take.
    pub budget_bytes: u64,
    /// Bytes that pages take, what is kept about them included, at most.
    pub used_bytes: u64,
    /// Bytes of pages that are dirty.
    pub dirty_bytes: u64,
    /// Bytes of pages that are under writeback.
    pub writeback_bytes: u64,
}

/// The page cache of a process. Files join it by [`crate::Mapping::new`].
///
/// Owns the budget, the frames, the clock of reclaim, the readahead workers and the flushers; the
/// pages themselves belong to their mappings. Dropping it ends the threads (and waits for what
/// they read and write just now); mappings that are left go on without anything in the background.
/// What is dirty then is written by [`crate::Mapping::write_back`] only: a file system that ends
/// calls [`PageCache::sync_all`] first.
#[derive(Debug)]
pub struct PageCache {
    shared: Arc<Shared>,
    /// Dropped with the cache: ends the threads.
    _workers: Workers,
}

/// What mappings and pages know of their cache.
#[derive(Debug)]
pub(crate) struct Shared {
    arena: Arena,
    budget_bytes: u64,
    pub(crate) clock: Clock,
    pub(crate) page_queues: PageQueues,
    pub(crate) frame_events: Events,
    pub(crate) readahead: Queue,
    pub(crate) windows: crate::readahead::Windows,
    pub(crate) flusher: Flusher,
    pub(crate) buffers: Buffers,
    pub(crate) unused_memories: Unused,
    /// That writing back failed, in whichever file.
    pub(crate) errors: ErrorLog<()>,
    #[cfg(test)]
    pub(crate) mutants: crate::mutants::Mutants,
    #[cfg(any(test, feature = "mutants"))]
    pub(crate) probe: crate::probe::Probe,
}

impl PageCache {
    /// Reserves the budget and starts the workers.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the budget is under 256 KiB or over 16 TiB; else the operating system
    /// can't map memory or start a thread.
    pub fn new(config: Config) -> std::io::Result<Arc<Self>> {
        Self::with_shared(
            &config,
            Shared::new(
                &config,
                #[cfg(test)]
                crate::mutants::Mutants::default(),
            )?,
        )
    }

    /// The same with protections left out.
    #[cfg(test)]
    pub(crate) fn with_mutants(
        config: Config,
        mutants: crate::mutants::Mutants,
    ) -> std::io::Result<Arc<Self>> {
        Self::with_shared(&config, Shared::new(&config, mutants)?)
    }

    fn with_shared(config: &Config, shared: Shared) -> std::io::Result<Arc<Self>> {
        let shared = Arc::new(shared);
        Ok(Arc::new(Self {
            _workers: Workers::start(&shared, config.readahead_workers)?,
            shared,
        }))
    }

    /// How full the cache is, at about this moment. Costs a look at a bit per page of budget.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let used = self.shared.arena.frames() - self.shared.arena.free_frames();
        Usage {
            budget_bytes: self.shared.budget_bytes,
            used_bytes: page_cost(used),
            dirty_bytes: bytes_of(self.shared.flusher.dirty()),
            writeback_bytes: bytes_of(self.shared.flusher.writeback()),
        }
    }

    /// Writes every file that is dirty now and waits for what others write. Whether anything could
    /// not be written, [`PageCache::has_failed_since`] says; open files hear why
    /// ([`crate::Mapping::check_errors`]).
    ///
    /// Called with nothing held or with inode locks, of which writing back needs none. The data is
    /// with the devices then, and mapped; making it durable is the file systems' to do.
    pub fn sync_all<L: CanFlush>(&self, held: &mut Held<'_, L>) {
        self.shared.flusher.run_all(held);
    }

    /// A cursor for who syncs all files of the cache, a file system: it hears of every failure from
    /// now on, and of one that no other such cursor has heard of yet.
    #[must_use]
    pub fn error_cursor(&self) -> ErrorCursor {
        self.shared.errors.cursor()
    }

    /// Whether writing back failed since `cursor` was made or asked last, in whichever file and
    /// whoever asked for the writing. Independent of what the files' own cursors have heard.
    #[must_use]
    pub fn has_failed_since(&self, cursor: &ErrorCursor) -> bool {
        self.shared.errors.check(cursor).is_err()
    }

    /// Writes some pages of the file that has been dirty longest on the calling thread; false if
    /// there are none. For a cache without flushers of its own, and to make room.
    pub fn run_flusher<L: CanFlush>(&self, held: &mut Held<'_, L>) -> bool {
        self.shared.flusher.run_one(held)
    }

    /// Drops up to `bytes` of cached pages, least used first, none that is dirty, and gives all unused memory back
    /// to the operating system; says how many bytes of pages were dropped.
    pub fn shrink(&self, bytes: u64) -> u64 {
        let pages = usize::try_from(bytes.div_ceil(PAGE_SIZE as u64)).unwrap_or(usize::MAX);
        let dropped = if pages == 0 {
            0
        } else {
            self.shared.clock.reclaim(pages, true)
        };
        self.shared.arena.release_free();
        self.shared.frame_events.notify();
        page_cost(dropped)
    }

    /// Reads one queued window ahead on the calling thread, which holds no lock; false if none
    /// is queued. For a cache without workers of its own.
    pub fn run_readahead(&self, held: &mut Held<'_, Entry>) -> bool {
        self.shared.readahead.run_one(held)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for PageCache {
    fn drop(&mut self) {
        self.shared.flusher.close();
    }
}

impl Shared {
    fn new(
        config: &Config,
        #[cfg(test)] mutants: crate::mutants::Mutants,
    ) -> std::io::Result<Self> {
        if config.budget_bytes < LEAST_BYTES {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        let frames = usize::try_from(config.budget_bytes / (PAGE_SIZE as u64 + PAGE_OVERHEAD))
            .map_err(|_| std::io::ErrorKind::InvalidInput)?;
        Ok(Self {
            arena: Arena::new(frames)?,
            budget_bytes: config.budget_bytes,
            clock: Clock::new(frames),
            page_queues: PageQueues::new(),
            frame_events: Events::default(),
            readahead: Queue::new(config.readahead_queue),
            windows: crate::readahead::Windows::new(config, frames),
            flusher: Flusher::new(limits(config, frames)),
            buffers: Buffers::default(),
            unused_memories: Unused::default(),
            errors: ErrorLog::new(),
            #[cfg(test)]
            mutants,
            #[cfg(any(test, feature = "mutants"))]
            probe: crate::probe::Probe::default(),
        })
    }

    /// Takes up to `want` frames, reclaiming pages if too few are free. None if all are in the
    /// hands of fillers and readers: then [`Self::wait_for_frame`], with no lock held.
    ///
    /// Waits for nothing but, where there is no frame at all, for who maps a page, as [`Clock::reclaim`] does;
    /// so it may be called with the invalidate lock held shared. Whoever gets fewer than it wants goes on
    /// with those, so nobody holds frames while waiting for frames.
    pub(crate) fn allocate(&self, want: usize) -> Vec<FrameMut> {
        let mut frames = self.arena.allocate_batch(want);
        if frames.len() < want {
            let more = (want - frames.len()).max(RECLAIM_BATCH);
            self.clock.reclaim(more, frames.is_empty());
            frames.extend(self.arena.allocate_batch(want - frames.len()));
            frames.sort_unstable_by_key(FrameMut::number);
            if frames.len() < want {
                self.flusher.urge();
            }
        }
        frames
    }

    /// Pages that the cache has room for.
    pub(crate) fn frames(&self) -> usize {
        self.arena.frames()
    }

    /// Waits until a frame may be had. The caller holds no frame, no page lock, and the invalidate
    /// lock exclusively if at all; who has frames, and who writes pages, finishes without help
    /// from here and without the locks above those, so this ends.
    pub(crate) fn wait_for_frame(&self) {
        self.frame_events
            .wait_unless(|| !self.allocate(1).is_empty());
        // The look may have hidden that frame from another waiter's look: let that one look
        // again, should the frame not be needed here any more.
        self.frame_events.notify();
    }

    /// Every free frame, so that tests can starve the cache.
    #[cfg(test)]
    pub(crate) fn take_all_frames(&self) -> Vec<FrameMut> {
        self.arena.allocate_batch(self.arena.frames())
    }
}

fn limits(config: &Config, frames: usize) -> Limits {
    let most = usize::try_from(config.dirty_limit_bytes / PAGE_SIZE as u64).unwrap_or(usize::MAX);
    let dirty = most.min(frames / 2);
    Limits {
        dirty,
        background: dirty / 2,
        expire: config.dirty_expire,
        threads: config.flusher_threads,
        portion: (dirty as u64 / 2).clamp(1, BATCH_PAGES),
    }
}

fn bytes_of(pages: usize) -> u64 {
    u64::try_from(pages).map_or(u64::MAX, |pages| pages * PAGE_SIZE as u64)
}

fn page_cost(pages: usize) -> u64 {
    u64::try_from(pages).map_or(u64::MAX, |pages| pages * (PAGE_SIZE as u64 + PAGE_OVERHEAD))
}
