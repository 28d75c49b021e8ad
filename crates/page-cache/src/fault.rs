//! Faults: a page is brought into the cache and mapped, under its page lock (S4).
//!
//! ```text
//! load, copy   missing: invalidate lock (s) over "look up → I/O → up to date", given up
//!              page lock → still in the index? inside the file? → mapped
//! store        invalidate lock (s) over all of it: the page as above
//!              → page lock → still in the index? inside the file? → space → dirty → mapped
//! ```
//!
//! An invalidator takes mappings away and removes the page under the same page lock, so it comes
//! before all of a fault's last line, or after it (S4.1, S4.2). The size is looked at under the page
//! lock (S4.5): a truncate changes it before it looks for pages. Locks of other pages are not
//! touched, so faults on different pages run side by side (S4.18).
//!
//! A load or a copy holds no invalidate lock while it locks a page that is up to date: a fence waits
//! for the page, not for a queue of faults, and where a fence has not been, nobody waits for it. A
//! store does, from before its page is looked up until it is dirty: a page never becomes dirty while
//! blocks are taken away or reservations punched (S1.10, S3.2, S3.3).
//!
//! Every block of the page that begins inside the file gets its space, as the store may hit any.
//! Stores past the end of the file get as far as memory (RACES B22): whatever moves the end over
//! them zeroes them and write-protects the page before.
//!
//! No fault waits for writeback: what is written is a copy, and a page that becomes dirty again
//! meanwhile is written again.

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Entry, Invalidate, PageLock};
use pagefence_lock_order::primitives::Arc;

use crate::backing::WriteBacking;
use crate::fill::Filled;
use crate::folio::{Folio, PageLockGuard};
use crate::mapping::{Filler, LARGEST, Looker, Mapping, PAGE_BYTES, pages_in};
use crate::readahead::Plan;
use crate::rmap::{Access, CannotMap, MapTarget, MappedPage, MappedRange};
use crate::write::ROOM_TRIES;
use crate::write_batch::blocks_touched;

/// Pages around a load's that are mapped along with it if they are cached, and read along with it
/// if they are not (Linux: `fault_around_bytes`). A power of two.
const AROUND: u64 = 16;

/// What was done to the memory that is not mapped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A load.
    Read,
    /// A store to a shared mapping.
    Write,
    /// A store to a private mapping: it gets a copy of the page.
    PrivateWrite,
}

/// Why a fault could not be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError<E> {
    /// The page lies past the end of the file, or outside what is mapped (SIGBUS).
    #[error("the page lies past the end of the file")]
    Beyond,
    /// The page could not be read (SIGBUS).
    #[error("the page could not be read: {0:?}")]
    Read(E),
    /// There is no space for what would be stored, or the file can't be given any; the page is as
    /// dirty as it was (SIGBUS).
    #[error("no space for the page: {0:?}")]
    NoSpace(E),
    /// The mapper could not map the page (out of memory).
    #[error(transparent)]
    CannotMap(#[from] CannotMap),
}

/// What came of one try.
enum Tried<E> {
    /// The page is mapped, or will never be.
    Done(Result<(), FaultError<E>>),
    /// The page left the cache meanwhile: try again.
    Changed,
    /// Another thread fills it: wait for that with nothing held (U7), then try again.
    Busy(Arc<Folio>),
    /// Wait for a frame with nothing held, then try again.
    NoFrame,
    /// There is no space: let some be made with nothing held, then try again.
    Full(E),
}

/// A page in the cache, or why it is not.
type Found<E> = Result<Arc<Folio>, Tried<E>>;

impl<B: WriteBacking> MappedRange<B> {
    /// Serves a fault at page `index` of the file: on return it was mapped for what `kind` wants,
    /// and may have been unmapped again since. Cached neighbours of a load are mapped along.
    ///
    /// Takes the invalidate lock shared, a page lock, and what [`WriteBacking::reserve`] takes; a
    /// store may have to write back first, as a write has. It needs no inode lock (S2.2), so a
    /// thread that holds one may touch mapped memory, if another one serves its faults.
    ///
    /// # Errors
    ///
    /// See [`FaultError`]. Nothing is locked or referred to then, and no failure is remembered.
    pub fn fault(
        &self,
        held: &mut Held<'_, Entry>,
        index: u64,
        kind: FaultKind,
    ) -> Result<(), FaultError<B::Error>> {
        if !self.pages.contains(&index) || index >= pages_in(LARGEST) {
            return Err(FaultError::Beyond);
        }
        let (mapping, target) = (&*self.mapping, &*self.target);
        let mut room_tries = 0;
        // Ends: what makes a try inconclusive is another thread's progress, or its failure, which
        // that thread reports. This one's failure to read ends it at once (S4.6, S4.D2).
        let served = loop {
            let tried = match kind {
                FaultKind::Write => mapping.try_store_fault(held, index, target),
                _ => mapping.try_load_fault(held, index, kind, target),
            };
            match tried {
                Tried::Done(served) => break served,
                Tried::Changed => {}
                Tried::Busy(folio) => mapping.shared().page_queues.wait_unlocked(&folio),
                Tried::NoFrame => mapping.shared().wait_for_frame(),
                Tried::Full(_) if mapping.give_back_unwritten(held) => {}
                Tried::Full(error) => {
                    let made_room = room_tries < ROOM_TRIES
                        && mapping.backing().make_room_for_fault(held, &error);
                    if !made_room {
                        break Err(FaultError::NoSpace(error));
                    }
                    room_tries += 1;
                }
            }
        };
        if served.is_ok() && kind == FaultKind::Read {
            mapping.map_around(index, &self.pages, target);
        }
        served
    }
}

impl<B: WriteBacking> Mapping<B> {
    fn try_load_fault(
        &self,
        held: &mut Held<'_, Entry>,
        index: u64,
        kind: FaultKind,
        target: &dyn MapTarget,
    ) -> Tried<B::Error> {
        let found = match self.cached(index) {
            Some(folio) => Ok(folio),
            None => {
                let (_section, mut held) = self.fill_section(held, Filler::Fault);
                self.bring_in(&mut held, index)
            }
        };
        let folio = match found {
            Ok(folio) => folio,
            Err(tried) => return tried,
        };
        let (_rank, held) = held.descend::<PageLock>(index);
        let guard = PageLockGuard::lock(&folio, &held);
        if self.has_gone(&folio, Looker::Load) {
            return Tried::Changed;
        }
        if self.is_beyond(index) {
            return Tried::Done(Err(FaultError::Beyond));
        }
        folio.state.note_use();
        let page = self.page_to_map(guard, false);
        let mapped = match kind {
            FaultKind::PrivateWrite => target.map_copy(page.page()),
            _ => target.map(page.page(), Access::Load),
        };
        Tried::Done(mapped.map_err(FaultError::CannotMap))
    }

    fn try_store_fault(
        &self,
        held: &mut Held<'_, Entry>,
        index: u64,
        target: &dyn MapTarget,
    ) -> Tried<B::Error> {
        self.shared().flusher.throttle(held, self);
        let mapped = {
            let (_section, mut held) = self.fill_section(held, Filler::Fault);
            let folio = match self.cached(index) {
                Some(folio) => folio,
                None => match self.bring_in(&mut held, index) {
                    Ok(folio) => folio,
                    Err(tried) => return tried,
                },
            };
            let (_rank, mut held) = held.descend::<PageLock>(index);
            let guard = PageLockGuard::lock(&folio, &held);
            if self.has_gone(&folio, Looker::Store) {
                return Tried::Changed;
            }
            if self.is_beyond(index) {
                return Tried::Done(Err(FaultError::Beyond));
            }
            let block_size = u64::from(self.backing().block_size());
            let start = index * PAGE_BYTES;
            let inside = self.size().saturating_sub(start).min(PAGE_BYTES);
            let bytes = start..start + inside.next_multiple_of(block_size);
            if let Err(error) = self.backing().reserve(&mut held, bytes) {
                return Tried::Full(error);
            }
            folio.state.note_use();
            let blocks = blocks_touched(0..inside, block_size);
            self.pages().set_dirty(std::iter::once((&folio, blocks)));
            // Should this fail, the page is dirty, with its space, and written back for nothing.
            self.backing().note_store(&mut held);
            let page = self.page_to_map(guard, true);
            target.map(page.page(), Access::Store)
        };
        self.tell_flusher();
        Tried::Done(mapped.map_err(FaultError::CannotMap))
    }

    /// The page at `index`, if it is up to date.
    fn cached(&self, index: u64) -> Option<Arc<Folio>> {
        self.pages().get(index).filter(|folio| folio.is_uptodate())
    }

    /// Whether page `index` lies past the end of the file now. Under its page lock (S4.5).
    fn is_beyond(&self, index: u64) -> bool {
        #[cfg(test)]
        if self.shared().mutants.size_unchecked {
            return false;
        }
        index >= pages_in(self.size())
    }

    /// Brings page `index` into the cache, one over a hole as well, and what follows it in its
    /// neighbourhood. Inside [`Mapping::fill_section`].
    fn bring_in(&self, held: &mut Held<'_, Invalidate>, index: u64) -> Found<B::Error> {
        let one = index..index + 1;
        let failed = |error| Tried::Done(Err(FaultError::Read(error)));
        let plan = Plan::up_to(around(index).end);
        let filled = match self.fill(held, one.clone(), &plan).map_err(failed)? {
            Filled::Hole { .. } => self.fill_data(held, one.clone(), one.end, None),
            filled => Ok(filled),
        };
        match filled.map_err(failed)? {
            Filled::Pages { pinned, .. } => pinned.into_iter().next().ok_or(Tried::Changed),
            Filled::Busy(folio) => Err(Tried::Busy(folio)),
            Filled::PastEnd => Err(Tried::Done(Err(FaultError::Beyond))),
            Filled::NoFrame => Err(Tried::NoFrame),
            Filled::Changed | Filled::Hole { .. } => Err(Tried::Changed),
        }
    }

    /// Maps the cached pages around page `index` for loads, as far as `range` goes and their locks
    /// are free.
    fn map_around(&self, index: u64, range: &Range<u64>, target: &dyn MapTarget) {
        let around = around(index);
        let around = around.start.max(range.start)..around.end.min(range.end);
        let mut found = Vec::with_capacity(usize::try_from(AROUND).expect("few"));
        self.pages().gather(around, found.capacity(), &mut found);
        for folio in found.iter().filter(|folio| folio.index != index) {
            let Some(guard) = PageLockGuard::try_lock(folio) else {
                continue;
            };
            let may_be_mapped =
                folio.is_uptodate() && !folio.state.is_detached() && !self.is_beyond(folio.index);
            if !may_be_mapped {
                continue;
            }
            let page = self.page_to_map(guard, false);
            if target.map(page.page(), Access::Load).is_err() {
                return;
            }
        }
    }

    /// The page under `guard`, which somebody is about to map, for stores if `writable`.
    fn page_to_map<'a>(&self, guard: PageLockGuard<'a>, writable: bool) -> PageToMap<'a> {
        let folio = guard.folio();
        folio.state.set_mapped(writable);
        let page = MappedPage::of(folio);
        #[cfg(test)]
        if self.shared().mutants.map_unlocked {
            drop(guard);
            return PageToMap { page, _guard: None };
        }
        PageToMap {
            page,
            _guard: Some(guard),
        }
    }
}

/// A page that is being mapped, and its lock.
struct PageToMap<'a> {
    page: MappedPage,
    /// Always, but for the mutant.
    _guard: Option<PageLockGuard<'a>>,
}

impl PageToMap<'_> {
    fn page(&self) -> &MappedPage {
        &self.page
    }
}

/// The neighbourhood of page `index`.
fn around(index: u64) -> Range<u64> {
    let start = index / AROUND * AROUND;
    start..start + AROUND
}

const _: () = assert!(AROUND.is_power_of_two());
