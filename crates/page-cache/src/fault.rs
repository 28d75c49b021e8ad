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
use crate::mapping::{Filler, Looker, Mapping, PAGE_BYTES, pages_in};
use crate::readahead::{Hint, Plan};
use crate::rmap::{Access, CannotMap, MapTarget, MappedPage, MappedRange, PageRun};
use crate::write::ROOM_TRIES;
use crate::write_batch::blocks_touched;

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

/// A page in the cache, and where ends what came with it; or why it is not.
type Found<E> = Result<(Arc<Folio>, u64), Tried<E>>;

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
        if self.is_outside(index) {
            return Err(FaultError::Beyond);
        }
        let (mapping, target) = (&*self.mapping, &*self.target);
        let mut room_tries = 0;
        // Ends: what makes a try inconclusive is another thread's progress, or its failure, which
        // that thread reports. This one's failure to read ends it at once (S4.6, S4.D2).
        loop {
            let tried = match kind {
                FaultKind::Write => mapping.try_store_fault(held, index, target),
                _ => mapping.try_load_fault(held, index, kind, self),
            };
            match tried {
                Tried::Done(served) => return served,
                Tried::Changed => {}
                Tried::Busy(folio) => mapping.shared().page_queues.wait_unlocked(&folio),
                Tried::NoFrame => mapping.shared().wait_for_frame(),
                Tried::Full(_) if mapping.give_back_unwritten(held) => {}
                Tried::Full(error) => {
                    let made_room = room_tries < ROOM_TRIES
                        && mapping.backing().make_room_for_fault(held, &error);
                    if !made_room {
                        return Err(FaultError::NoSpace(error));
                    }
                    room_tries += 1;
                }
            }
        }
    }

    /// As [`Self::fault`], if the page is cached and nothing has to be waited for but, by a store,
    /// what [`WriteBacking::reserve`] waits for: no page lock, no fence, no frame, no space. `None` if
    /// something has to, or nothing came of it: then [`Self::fault`] serves it, on a thread that may
    /// wait.
    ///
    /// # Errors
    ///
    /// See [`FaultError`].
    pub fn try_fault(
        &self,
        held: &mut Held<'_, Entry>,
        index: u64,
        kind: FaultKind,
    ) -> Option<Result<(), FaultError<B::Error>>> {
        if self.is_outside(index) {
            return Some(Err(FaultError::Beyond));
        }
        let tried = match kind {
            FaultKind::Write => self.mapping.store_cached(held, index, &*self.target),
            _ => self.mapping.load_cached(index, kind, self),
        };
        match tried? {
            Tried::Done(served) => Some(served),
            _ => None,
        }
    }

    /// Whether no page `index` can be mapped, whatever the file's size.
    fn is_outside(&self, index: u64) -> bool {
        !self.pages.contains(&index) || index >= pages_in(self.mapping.pages().largest())
    }

    /// The pages that are worth mapping along with page `index`.
    fn around(&self, index: u64, kind: FaultKind) -> Range<u64> {
        if kind != FaultKind::Read || self.readahead.hint() == Hint::Random {
            return index..index + 1;
        }
        let around = self.target.around(index);
        debug_assert!(around.contains(&index), "around something else");
        let most = PageRun::MOST;
        let start = around.start.max((index + 1).saturating_sub(most));
        let end = around.end.min(start.saturating_add(most));
        start.max(self.pages.start)..end.min(self.pages.end)
    }
}

impl<B: WriteBacking> Mapping<B> {
    fn try_load_fault(
        &self,
        held: &mut Held<'_, Entry>,
        index: u64,
        kind: FaultKind,
        range: &MappedRange<B>,
    ) -> Tried<B::Error> {
        let around = range.around(index, kind);
        let request = index..around.end;
        // Where pages up to this one are mapped already, or a block begins: who goes on from page to
        // page comes by there.
        let is_sequential = range.readahead.observe(&request) && around.start == index;
        let found = match self.cached(index) {
            Some(folio) => Ok(folio),
            None => {
                let plan =
                    range
                        .readahead
                        .on_miss(&self.shared().windows, &request, index, is_sequential);
                let found = {
                    let (_section, mut held) = self.fill_section(held, Filler::Fault);
                    self.bring_in(&mut held, request.clone(), &plan)
                };
                found.map(|(folio, end)| {
                    self.note_filled(&range.readahead, &plan, request.end, end);
                    folio
                })
            }
        };
        let folio = match found {
            Ok(folio) => folio,
            Err(tried) => return tried,
        };
        let (_rank, held) = held.descend::<PageLock>(index);
        let guard = PageLockGuard::lock(&folio, &held);
        self.map_for_load(guard, kind, range, &around)
    }

    /// Maps the page under `guard` for loads, or a copy of it, and with it those of `around` that
    /// can be had.
    fn map_for_load(
        &self,
        guard: PageLockGuard<'_>,
        kind: FaultKind,
        range: &MappedRange<B>,
        around: &Range<u64>,
    ) -> Tried<B::Error> {
        let folio = guard.folio();
        let index = folio.index;
        if self.has_gone(folio, Looker::Load) {
            return Tried::Changed;
        }
        if self.is_beyond(index) {
            return Tried::Done(Err(FaultError::Beyond));
        }
        folio.state.note_use();
        let target = &*range.target;
        let mapped = if kind == FaultKind::PrivateWrite {
            let _locked = self.pages_to_map(vec![guard], false);
            target.map_copy(&MappedPage::of(folio))
        } else {
            let neighbours = self.cached_around(index, around);
            let guards = self.lock_around(guard, &neighbours);
            let run = self.pages_to_map(guards, false);
            let mapped = target.map(&run.seen_from(index), Access::Load);
            let marked = run.find_marker();
            drop(run);
            if let Some(marked) = marked {
                let request = index..around.end;
                self.note_marker(&range.readahead, &request, marked);
            }
            mapped
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
        let tried = {
            let (_section, mut held) = self.fill_section(held, Filler::Fault);
            let folio = match self.cached(index) {
                Some(folio) => folio,
                None => match self.bring_in(&mut held, index..index + 1, &Plan::up_to(index + 1)) {
                    Ok((folio, _)) => folio,
                    Err(tried) => return tried,
                },
            };
            let (_rank, mut held) = held.descend::<PageLock>(index);
            let guard = PageLockGuard::lock(&folio, &held);
            self.map_for_store(&mut held, guard, target)
        };
        self.shared().flusher.wake_if_needed();
        tried
    }

    /// Reserves space for the page under `guard`, makes it dirty, and maps it for stores. Inside
    /// [`Mapping::fill_section`].
    fn map_for_store(
        &self,
        held: &mut Held<'_, PageLock>,
        guard: PageLockGuard<'_>,
        target: &dyn MapTarget,
    ) -> Tried<B::Error> {
        let folio = guard.folio();
        let index = folio.index;
        if self.has_gone(folio, Looker::Store) {
            return Tried::Changed;
        }
        if self.is_beyond(index) {
            return Tried::Done(Err(FaultError::Beyond));
        }
        let block_size = u64::from(self.backing().block_size());
        let start = index * PAGE_BYTES;
        let inside = self.size().saturating_sub(start).min(PAGE_BYTES);
        let bytes = start..start + inside.next_multiple_of(block_size);
        if let Err(error) = self.backing().reserve(held, bytes) {
            return Tried::Full(error);
        }
        folio.state.note_use();
        let blocks = blocks_touched(0..inside, block_size);
        self.pages().set_dirty(std::iter::once((folio, blocks)));
        // Who stores may be another thread, which goes on as soon as the page is mapped, and syncs.
        self.enlist_dirty();
        // Should this fail, the page is dirty, with its space, and written back for nothing.
        self.backing().note_store(held);
        let page = self.pages_to_map(vec![guard], true);
        let mapped = target.map(&page.seen_from(index), Access::Store);
        Tried::Done(mapped.map_err(FaultError::CannotMap))
    }

    /// As [`Self::try_load_fault`], if the page is cached and its lock is free.
    fn load_cached(
        &self,
        index: u64,
        kind: FaultKind,
        range: &MappedRange<B>,
    ) -> Option<Tried<B::Error>> {
        let folio = self.cached(index)?;
        let guard = PageLockGuard::try_lock(&folio)?;
        let around = range.around(index, kind);
        range.readahead.observe(&(index..around.end));
        Some(self.map_for_load(guard, kind, range, &around))
    }

    /// As [`Self::try_store_fault`], if the page is cached and no lock is to be waited for, nor for
    /// dirty pages to become fewer.
    fn store_cached(
        &self,
        held: &mut Held<'_, Entry>,
        index: u64,
        target: &dyn MapTarget,
    ) -> Option<Tried<B::Error>> {
        if self.shared().flusher.is_over_limit() {
            return None;
        }
        let folio = self.cached(index)?;
        let tried = {
            let (_section, mut held) = self.invalidate_lock().try_read(held)?;
            let (_rank, mut held) = held.descend::<PageLock>(index);
            let guard = PageLockGuard::try_lock(&folio)?;
            self.map_for_store(&mut held, guard, target)
        };
        self.shared().flusher.wake_if_needed();
        Some(tried)
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

    /// Brings the first page of `request` into the cache, one over a hole as well, and what follows
    /// it up to the end of `plan`; over a hole, up to that of `request`. The page, and where what
    /// came with it ends. Inside [`Mapping::fill_section`].
    fn bring_in(
        &self,
        held: &mut Held<'_, Invalidate>,
        request: Range<u64>,
        plan: &Plan,
    ) -> Found<B::Error> {
        let index = request.start;
        let failed = |error| Tried::Done(Err(FaultError::Read(error)));
        let filled = match self.fill(held, index..index + 1, plan).map_err(failed)? {
            Filled::Hole { pages } => {
                let end = request.end.min(index + pages).min(pages_in(self.size()));
                self.fill_data(held, index..end.max(index + 1), index + 1, None)
            }
            filled => Ok(filled),
        };
        match filled.map_err(failed)? {
            Filled::Pages { pinned, end } => {
                let folio = pinned.into_iter().next().ok_or(Tried::Changed)?;
                Ok((folio, end))
            }
            Filled::Busy(folio) => Err(Tried::Busy(folio)),
            Filled::PastEnd => Err(Tried::Done(Err(FaultError::Beyond))),
            Filled::NoFrame => Err(Tried::NoFrame),
            Filled::Changed | Filled::Hole { .. } => Err(Tried::Changed),
        }
    }

    /// The pages in the index of `around`, but for page `index`.
    fn cached_around(&self, index: u64, around: &Range<u64>) -> Vec<Arc<Folio>> {
        let count = around.end - around.start;
        let mut found = Vec::new();
        if count > 1 {
            let count = usize::try_from(count).expect("few");
            found.reserve(count);
            self.pages().gather(around.clone(), count, &mut found);
            found.retain(|folio| folio.index != index);
        }
        found
    }

    /// The pages of `neighbours`, ascending, that follow each other up to the page under `guard` and
    /// from it on, as far as their locks are free and they may be mapped; with that page, locked,
    /// ascending.
    fn lock_around<'a>(
        &self,
        guard: PageLockGuard<'a>,
        neighbours: &'a [Arc<Folio>],
    ) -> Vec<PageLockGuard<'a>> {
        let index = guard.folio().index;
        let at = neighbours.partition_point(|folio| folio.index < index);
        let (before, after) = neighbours.split_at(at);
        let lock = |(folio, expected): (&'a Arc<Folio>, u64)| {
            if folio.index != expected {
                return None;
            }
            let guard = PageLockGuard::try_lock(folio)?;
            let may_be_mapped =
                folio.is_uptodate() && !folio.state.is_detached() && !self.is_beyond(folio.index);
            may_be_mapped.then_some(guard)
        };
        let mut guards: Vec<_> = before
            .iter()
            .rev()
            .zip((0..index).rev())
            .map_while(lock)
            .collect();
        guards.reverse();
        guards.push(guard);
        guards.extend(after.iter().zip(index + 1..).map_while(lock));
        guards
    }

    /// The pages under `guards`, which somebody is about to map, for stores if `writable`.
    fn pages_to_map<'a>(&self, guards: Vec<PageLockGuard<'a>>, writable: bool) -> PagesToMap<'a> {
        for guard in &guards {
            guard.folio().state.set_mapped(writable);
        }
        #[cfg(test)]
        let guards = if self.shared().mutants.map_unlocked {
            guards
                .into_iter()
                .map(PageLockGuard::unlock_early)
                .collect()
        } else {
            guards
        };
        PagesToMap { guards }
    }
}

/// Pages that are being mapped, and their locks.
struct PagesToMap<'a> {
    guards: Vec<PageLockGuard<'a>>,
}

impl PagesToMap<'_> {
    /// As who maps them sees them; page `fault` is one of them.
    fn seen_from(&self, fault: u64) -> PageRun<'_> {
        PageRun::new(&self.guards, fault)
    }

    /// The last page with the mark of readahead on it, which is taken off.
    fn find_marker(&self) -> Option<u64> {
        let marked = |guard: &PageLockGuard<'_>| {
            let folio = guard.folio();
            folio.state.take_marker().then_some(folio.index)
        };
        self.guards.iter().rev().find_map(marked)
    }
}
