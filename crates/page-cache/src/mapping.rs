//! The pages of one file, and its invalidate lock.

use std::ops::Range;

use pagefence_lock_order::levels::{Invalidate, Level, PageLock, Writepages};
use pagefence_lock_order::primitives::atomic::AtomicBool;
use pagefence_lock_order::primitives::{Arc, Weak};
#[cfg(test)]
use pagefence_lock_order::rank::RankGuard;
use pagefence_lock_order::{After, Held, OrderedReadGuard, OrderedRwLock, OrderedWriteGuard};

use crate::backing::{Backing, PAGE_SIZE, WriteBacking};
use crate::cache::{PageCache, Shared};
use crate::error_cursor::{ErrorCursor, ErrorLog};
use crate::folio::Folio;
use crate::pages::Pages;
use crate::readahead::Ahead;
use crate::readahead_worker::{Job, Target};

/// [`PAGE_SIZE`] as a file offset.
pub(crate) const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// Where every file ends.
pub(crate) const LARGEST: u64 = u64::MAX >> 1;

/// The cached pages of one file.
///
/// - Owns: the index of the pages and, through it, the pages; the invalidate lock and the lock of
///   writeback; the errors of writing back; the backing.
/// - Stays outside: the inode lock, the size, the block map (the backing's), how it is read (one
///   [`crate::Readahead`] per open file).
/// - Lifecycle: made with the inode in memory, dropped with it. Its pages go with it, those that
///   somebody still copies from a moment later. Readahead that is queued does not keep it;
///   readahead that is being read does, until the read is over; so with writing back in the
///   background. What is dirty when it is dropped is lost: who wants it asks [`Mapping::is_idle`]
///   first. (Nobody wants the pages of a file that is deleted.)
///
/// Without pages it is a small thing (under 300 bytes beside its backing).
#[derive(Debug)]
pub struct Mapping<B: Backing> {
    backing: B,
    pages: Arc<Pages>,
    invalidate_lock: OrderedRwLock<Invalidate, ()>,
    writepages_lock: OrderedRwLock<Writepages, ()>,
    pub(crate) errors: ErrorLog<B::Error>,
    /// Blocks may have kept space that they do not need: writing them back failed.
    pub(crate) unwritten: AtomicBool,
    this: Weak<Mapping<B>>,
}

/// Who fills pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filler {
    Read,
    Readahead,
    Write,
    /// It fills nothing: its pages are in the cache while they must not be filled.
    Direct,
    Fault,
}

/// Who looks a page up, locks it, and has to look again whether it is still the file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looker {
    /// A fault that maps what is there: a load, or a private store.
    Load,
    Store,
    Write,
    /// An invalidator, at an edge of its range.
    Edge,
}

/// The invalidate lock, held by a filler.
#[derive(Debug)]
pub(crate) enum Section<'a> {
    Locked {
        _guard: OrderedReadGuard<'a, ()>,
    },
    /// Nobody else fills, and nobody stores to what was write-protected since.
    Alone {
        _guard: OrderedWriteGuard<'a, ()>,
    },
    #[cfg(test)]
    Mutant {
        _rank: RankGuard,
    },
}

impl<B: Backing> Mapping<B> {
    /// The mapping of the file with number `number` in `cache`. The number is the invalidate
    /// lock's place among its kind: no two live mappings of one file system share one.
    #[must_use]
    pub fn new(cache: &PageCache, number: u64, backing: B) -> Arc<Self> {
        let shared = Arc::clone(cache.shared());
        Arc::new_cyclic(|this| Self {
            backing,
            pages: Arc::new(Pages::new(shared, number, B::IS_STORAGE)),
            invalidate_lock: OrderedRwLock::new(number, ()),
            writepages_lock: OrderedRwLock::new(number, ()),
            errors: ErrorLog::new(),
            unwritten: AtomicBool::new(false),
            this: Weak::clone(this),
        })
    }

    /// What is behind the pages.
    #[must_use]
    pub fn backing(&self) -> &B {
        &self.backing
    }

    /// The number given to [`Mapping::new`].
    #[must_use]
    pub fn number(&self) -> u64 {
        self.pages.number()
    }

    /// Pages in the cache now.
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        self.pages.count()
    }

    /// Where the first page begins that is in the cache and ends behind byte `offset`: what lies
    /// before it is nowhere but in the backing, unless somebody reads it just now.
    #[must_use]
    pub fn next_cached(&self, offset: u64) -> Option<u64> {
        let mut found = Vec::with_capacity(1);
        self.pages
            .gather(offset / PAGE_BYTES..u64::MAX, 1, &mut found);
        found.first().map(|folio| folio.index * PAGE_BYTES)
    }

    /// The invalidate lock (S1.1), for queries of the block map that want neither fillers nor
    /// the inode lock (U6): held shared, blocks stay. To take blocks away, [`Mapping::fence`].
    #[must_use]
    pub fn invalidate_lock(&self) -> &OrderedRwLock<Invalidate, ()> {
        &self.invalidate_lock
    }

    /// The lock of writeback (S2, RACES B7): held shared from looking for dirty pages until they
    /// are written and mapped. Held exclusively, none of this file's is in flight: for a change of
    /// the block map's format.
    #[must_use]
    pub fn writepages_lock(&self) -> &OrderedRwLock<Writepages, ()> {
        &self.writepages_lock
    }

    /// Whether no page is dirty or under writeback: then dropping the mapping loses nothing.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let counts = self.pages.dirty().counts();
        counts.dirty + counts.writeback == 0
    }

    /// Pages that are dirty now, those not counted that are being written.
    #[must_use]
    pub fn dirty_pages(&self) -> usize {
        self.pages.dirty().counts().dirty
    }

    /// A cursor for a file that is being opened.
    #[must_use]
    pub fn error_cursor(&self) -> ErrorCursor {
        self.errors.cursor()
    }

    /// Tells the open file whose cursor this is of the last error of writing back, once.
    ///
    /// # Errors
    ///
    /// What [`crate::WriteBacking::write_pages`] failed with since the cursor was made or asked
    /// last, whoever had asked for the writing.
    pub fn check_errors(&self, cursor: &ErrorCursor) -> Result<(), B::Error> {
        self.errors.check(cursor)
    }

    /// The file's size in bytes now. A file ends at 2^63 - 1, so that no sum of an offset and a
    /// length inside it overflows; one that is mapped a page before.
    pub(crate) fn size(&self) -> u64 {
        self.backing.size().min(self.pages.largest())
    }

    pub(crate) fn this(&self) -> &Weak<Self> {
        &self.this
    }

    pub(crate) fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.pages.shared()
    }

    /// Whether `folio`, which `looker` found and has locked, has left the cache in between (S4.3).
    pub(crate) fn has_gone(&self, folio: &Folio, looker: Looker) -> bool {
        #[cfg(test)]
        if self.shared().mutants.unrevalidated == Some(looker) {
            return false;
        }
        let _ = looker;
        folio.state.is_detached()
    }

    /// Enters the section in which `filler` may look up blocks and fill pages (S1.2). It spans
    /// the query of the block map, the I/O, and making the pages up to date.
    pub(crate) fn fill_section<'a, P: Level>(
        &'a self,
        held: &'a mut Held<'_, P>,
        filler: Filler,
    ) -> (Section<'a>, Held<'a, Invalidate>)
    where
        Invalidate: After<P>,
    {
        #[cfg(test)]
        if self.shared().mutants.unfenced == Some(self.number()) {
            let (rank, held) = held.descend(self.number());
            return (Section::Mutant { _rank: rank }, held);
        }
        #[cfg(test)]
        if match filler {
            Filler::Read => self.shared().mutants.read_unlocked,
            Filler::Readahead => self.shared().mutants.readahead_unlocked,
            Filler::Fault => self.shared().mutants.fault_unlocked,
            Filler::Direct => self.shared().mutants.direct_unfenced,
            Filler::Write => self.shared().mutants.write_unlocked,
        } {
            let (rank, held) = held.descend(self.number());
            return (Section::Mutant { _rank: rank }, held);
        }
        let _ = filler;
        let (guard, held) = self.invalidate_lock.read(held);
        (Section::Locked { _guard: guard }, held)
    }

    /// As [`Self::fill_section`], keeping out everybody else who wants to be in one.
    pub(crate) fn fill_section_alone<'a, P: Level>(
        &'a self,
        held: &'a mut Held<'_, P>,
    ) -> (Section<'a>, Held<'a, Invalidate>)
    where
        Invalidate: After<P>,
    {
        let (guard, held) = self.invalidate_lock.write(held);
        (Section::Alone { _guard: guard }, held)
    }

    /// Has `range` read in the background; false if that was not possible.
    pub(crate) fn queue_readahead(&self, range: Range<u64>, marker: Option<u64>) -> bool {
        if range.start >= pages_in(self.size()) {
            return false;
        }
        let this: Weak<dyn Target> = Weak::<Self>::clone(&self.this);
        self.shared().readahead.push(Job {
            target: this,
            range,
            marker,
        })
    }

    /// As [`Self::queue_readahead`], for the window after a marker.
    pub(crate) fn queue_window(&self, readahead: &crate::Readahead, ahead: &Ahead) {
        if !self.queue_readahead(ahead.range.clone(), Some(ahead.range.start)) {
            readahead.forget(ahead);
        }
    }
}

impl<B: Backing> Drop for Mapping<B> {
    fn drop(&mut self) {
        // Pages know their index, the index its pages: this opens the circle. Nobody fills or
        // looks up any more; reclaim may be about to take a page out and will find it gone.
        self.pages.clear();
    }
}

impl<B: WriteBacking> Mapping<B> {
    /// The file has bytes up to `end`, in the cache or written: see [`WriteBacking::grow`]. Who maps
    /// what it has gained is told.
    pub(crate) fn grow(&self, held: &mut Held<'_, PageLock>, end: u64) {
        let before = pages_in(self.size());
        self.backing.grow(held, end);
        self.pages.rmap().grown(before, pages_in(self.size()));
    }
}

/// Pages that `bytes` from the front of a file touch.
pub(crate) fn pages_in(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_BYTES)
}
