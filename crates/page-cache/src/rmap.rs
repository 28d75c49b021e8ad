//! Who maps a range of a file: those whose mappings are shot down before a page goes, and made
//! read-only before it is written back (Linux: `i_mmap`, `unmap_mapping_range`, `folio_mkclean`).
//!
//! A mapper registers the range that it maps ([`crate::Mapping::map_range`]), and its pages become
//! mapped by faults only, each under its page lock. So whoever holds the page lock, takes the
//! mappings away and then removes the page knows that nobody maps it (S4.1): the page lock, and no
//! sequence count, keeps a fault from coming in between (S4.13). A page remembers whether it may
//! be mapped, and whether it may be stored to; for pages that nobody maps all of this costs a look
//! at a bit.

use std::ops::Range;

use pagefence_lock_order::primitives::{Arc, RwLock};

use crate::answer::{Answer, Round};
use crate::backing::WriteBacking;
use crate::folio::{Folio, PageLockGuard};
use crate::mapping::Mapping;
use crate::pages::Pages;
use crate::readahead::{Hint, Readahead};
use crate::will_need::Advised;

/// What a mapping of a page allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads. A store is to fault.
    Load,
    /// Loads and stores.
    Store,
}

/// Which mappings are taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// Those of pages of the cache. Private copies stay: they belong to who made them, a hole
    /// punched below them is none of theirs.
    Shared,
    /// Private copies as well: they lie past the end of the file from now on (S4.14).
    EvenPrivate,
}

/// A page could not be mapped: its mapper has no memory for the entry or the copy, say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("the page could not be mapped")]
pub struct CannotMap;

/// Who maps pages of a file: the page table of a process, as far as it maps this file.
///
/// Pages are named by their position in the file, in pages.
///
/// # What an implementor may do
///
/// Every method may be called with page locks held, so whatever it waits for must come to an end
/// without them: it may take locks of its own that are held for short times only, below which none
/// of this cache's is taken, and make system calls that finish by themselves (punching a memfd). It
/// must not touch memory that is mapped through this cache or belongs to a client, issue a
/// `UFFDIO_*` on mappings of another process (which waits for its mmap lock, for ever if it
/// likes), wait for an answer of the kernel's FUSE client, or call this cache: none of these ends
/// without page locks for certain. Who can reach a page table by such means only notes here what is
/// to be done, does it from a thread that holds nothing, and maps nothing until it is done; that
/// pages it did not get hold of stay mapped meanwhile is what it must rule out.
///
/// Who has to wait for another process says so by the [`Answer`] that it gives: nothing waits for that before
/// all who map the pages were asked, so that their times do not add up.
///
/// When the answer to [`Self::unmap`] or [`Self::write_protect`] was waited for, it is done: no load or store
/// goes through the old entry any more; that of a page whose bytes lie in a mapped file's memory
/// ([`crate::FileMemory`]) may go with that memory, which the cache takes before it gives the page lock
/// up. Both may be called at any time, several at once, for pages that are not
/// mapped.
pub trait MapTarget: Send + Sync + 'static {
    /// Maps the pages of `run`, whose locks are held, for `access` (S4.7): the one that the fault is
    /// at ([`PageRun::fault`]) for certain, its neighbours as far as that is cheap. Where a page is
    /// mapped already, by another thread's fault, the entry stays; that of the fault's page allows
    /// `access` from now on. It never allows less than before. Where there is a private copy, that
    /// stays (S4.11).
    ///
    /// # Errors
    /// The fault fails; nothing has changed.
    fn map(&self, run: &PageRun<'_>, access: Access) -> Result<(), CannotMap>;

    /// Makes a private copy of `page`, whose lock is held until the copy is mapped in its place
    /// (S4.9). Where there is one already, that stays.
    ///
    /// # Errors
    /// The fault fails; nothing has changed.
    fn map_copy(&self, page: &MappedPage) -> Result<(), CannotMap>;

    /// Takes the mappings of `pages` away.
    fn unmap(&self, pages: Range<u64>, which: Unmap) -> Answer<'_>;

    /// Makes the mappings of `pages` read-only: the next store to each is a fault. Private copies
    /// are left alone.
    fn write_protect(&self, pages: Range<u64>) -> Answer<'_>;

    /// Whether [`Self::unmap`] of `pages`, whose locks are held, has nobody to wait for.
    fn is_free(&self, pages: Range<u64>) -> bool {
        let _ = pages;
        true
    }

    /// The pages that are worth mapping along with `page`, where a load faults: it, and neighbours
    /// that are not mapped (Linux: `fault_around_bytes`). As many of them as the cache has are
    /// mapped, [`PageRun::MOST`] at most; those after `page` that it has not are read.
    fn around(&self, page: u64) -> Range<u64> {
        let start = page / PageRun::BLOCK * PageRun::BLOCK;
        start..start.saturating_add(PageRun::BLOCK)
    }

    /// The file ends behind `pages` pages from now on, and did before: faults that found no file at
    /// their page would find some.
    fn grown(&self, pages: u64) -> Answer<'_> {
        let _ = pages;
        Answer::done()
    }
}

/// Pages of a file that follow each other, all of them locked, as who maps them sees them.
pub struct PageRun<'a> {
    folios: &'a [PageLockGuard<'a>],
    fault: u64,
}

impl<'a> PageRun<'a> {
    /// Pages in a run, at most.
    pub const MOST: u64 = 512;

    /// Neighbours, from a multiple of so many on, that are mapped along where nobody knows better.
    pub const BLOCK: u64 = 16;

    /// Of `folios`, not none, that follow each other; page `fault` is one of them.
    pub(crate) fn new(folios: &'a [PageLockGuard<'a>], fault: u64) -> Self {
        let run = Self { folios, fault };
        debug_assert!(run.pages().contains(&fault), "a run without its fault");
        run
    }

    /// Their positions in the file, in pages.
    #[must_use]
    pub fn pages(&self) -> Range<u64> {
        let ends = self.folios.first().zip(self.folios.last());
        ends.map_or(0..0, |(first, last)| {
            first.folio().index..last.folio().index + 1
        })
    }

    /// The one that the fault is at.
    #[must_use]
    pub fn fault(&self) -> u64 {
        self.fault
    }

    /// The pages themselves.
    pub fn iter(&self) -> impl Iterator<Item = MappedPage> {
        self.folios
            .iter()
            .map(|guard| MappedPage::of(guard.folio()))
    }
}

impl std::fmt::Debug for PageRun<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageRun")
            .field("pages", &self.pages())
            .field("fault", &self.fault)
            .finish()
    }
}

/// A page of a file, as who maps it sees it.
///
/// It keeps the page's memory, not the page in the cache; who still has it after
/// [`MapTarget::unmap`] looks at something that is no longer the file.
#[derive(Clone, Debug)]
pub struct MappedPage {
    folio: Arc<Folio>,
}

impl MappedPage {
    pub(crate) fn of(folio: &Arc<Folio>) -> Self {
        Self {
            folio: Arc::clone(folio),
        }
    }

    /// Its position in the file, in pages.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.folio.index
    }

    /// Copies from byte `offset` of the page on: the loads of who maps it.
    ///
    /// # Panics
    ///
    /// If that reaches past the page.
    pub fn copy_out(&self, offset: usize, target: &mut [u8]) {
        if let Some(frame) = self.folio.frame() {
            frame.copy_out(offset, target);
        }
    }

    /// Copies to byte `offset` of the page on: the stores of who maps it, for which it is mapped
    /// with [`Access::Store`].
    ///
    /// # Panics
    ///
    /// If that reaches past the page.
    pub fn copy_in(&self, offset: usize, source: &[u8]) {
        if let Some(frame) = self.folio.frame() {
            frame.copy_in(offset, source);
        }
    }

    /// Whether both are the same page of the cache, not just the same place of the file.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.folio, &other.folio)
    }

    /// Whether the page is in the cache, at the moment of asking. Always so while it is mapped.
    #[must_use]
    pub fn is_current(&self) -> bool {
        !self.folio.state.is_detached()
    }

    /// Whether something of the page is dirty, at the moment of asking. Always so while it is
    /// mapped for stores (S3.3).
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.folio.state.dirty() != 0
    }
}

/// The mappers of one file.
#[derive(Default)]
pub(crate) struct Rmap {
    mappers: RwLock<Option<Box<Mappers>>>,
    /// The mutant: they are asked one after the other.
    #[cfg(test)]
    in_turn: bool,
}

/// Few: one for each mapping of the file in a process.
#[derive(Default)]
struct Mappers {
    list: Vec<Mapper>,
    last: u64,
}

struct Mapper {
    id: u64,
    pages: Range<u64>,
    target: Arc<dyn MapTarget>,
}

impl Rmap {
    /// The mutants of a test's cache.
    #[cfg(test)]
    pub(crate) fn with(mutants: crate::mutants::Mutants) -> Self {
        Self {
            mappers: RwLock::default(),
            in_turn: mutants.asks_in_turn,
        }
    }

    fn round(&self) -> Round<'_> {
        #[cfg(test)]
        return Round::new(self.in_turn);
        #[cfg(not(test))]
        Round::new(false)
    }

    fn add(&self, pages: Range<u64>, target: Arc<dyn MapTarget>) -> u64 {
        let mut mappers = self.mappers.write();
        let mappers = mappers.get_or_insert_default();
        mappers.last += 1;
        let id = mappers.last;
        mappers.list.push(Mapper { id, pages, target });
        id
    }

    /// Whether nobody maps the file. Looked at below the lock of the file's memory, too.
    pub(crate) fn is_empty(&self) -> bool {
        let mappers = self.mappers.read();
        mappers
            .as_ref()
            .is_none_or(|mappers| mappers.list.is_empty())
    }

    fn remove(&self, id: u64) {
        let removed = {
            let mut mappers = self.mappers.write();
            mappers.as_mut().and_then(|mappers| {
                let at = mappers.list.iter().position(|mapper| mapper.id == id)?;
                Some(mappers.list.swap_remove(at))
            })
        };
        debug_assert!(removed.is_some(), "registered once, removed once");
    }

    /// Takes the mappings of `pages` away, whoever has some.
    pub(crate) fn unmap(&self, pages: &Range<u64>, which: Unmap) {
        self.unmap_all(std::slice::from_ref(pages), which);
    }

    fn unmap_all(&self, runs: &[Range<u64>], which: Unmap) {
        self.ask_each(runs, |target, part| target.unmap(part, which));
    }

    fn write_protect_all(&self, runs: &[Range<u64>]) {
        self.ask_each(runs, |target, part| target.write_protect(part));
    }

    /// Whether nobody who maps `page`, whose lock is held, has to be waited for when it is unmapped.
    pub(crate) fn is_free(&self, page: u64) -> bool {
        let mappers = self.mappers.read();
        let mut list = mappers.iter().flat_map(|mappers| &mappers.list);
        list.all(|mapper| !mapper.pages.contains(&page) || mapper.target.is_free(page..page + 1))
    }

    /// Tells who maps pages behind `before` that the file has `after` pages now.
    pub(crate) fn grown(&self, before: u64, after: u64) {
        if before < after {
            let gained = before..after;
            self.ask_each(std::slice::from_ref(&gained), |target, _| {
                target.grown(after)
            });
        }
    }

    /// Asks those who map some of `runs`, each of them for each run, and waits for them then. One that
    /// registers meanwhile has none of the pages that are locked.
    ///
    /// Invariant: nobody is waited for before all were asked.
    fn ask_each(
        &self,
        runs: &[Range<u64>],
        what: impl for<'t> Fn(&'t dyn MapTarget, Range<u64>) -> Answer<'t>,
    ) {
        if runs.is_empty() {
            return;
        }
        let mappers = self.mappers.read();
        let mut round = self.round();
        for mapper in mappers.iter().flat_map(|mappers| &mappers.list) {
            for pages in runs {
                let part = pages.start.max(mapper.pages.start)..pages.end.min(mapper.pages.end);
                if !part.is_empty() {
                    round.add(what(&*mapper.target, part));
                }
            }
        }
        round.wait();
    }
}

impl std::fmt::Debug for Rmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mappers = self.mappers.read();
        let ranges = mappers.iter().flat_map(|mappers| &mappers.list);
        f.debug_list()
            .entries(ranges.map(|mapper| &mapper.pages))
            .finish()
    }
}

impl Pages {
    /// Takes the mappings of `folios`, locked and ascending, away: nobody maps them until they are
    /// unlocked. Those that follow each other go in one call, and all are waited for at once.
    pub(crate) fn unmap_locked<'a>(&self, folios: impl Iterator<Item = &'a Arc<Folio>>) {
        let mapped = folios.filter(|folio| {
            debug_assert!(folio.state.is_locked(), "unmapped without its lock");
            folio.state.take_mapped()
        });
        let mut runs = Vec::new();
        runs_of(mapped.map(|folio| folio.index), |run| runs.push(run));
        self.rmap().unmap_all(&runs, Unmap::Shared);
    }

    /// Makes the mappings of `folios`, locked and ascending, read-only: until they are unlocked
    /// nobody stores to them.
    pub(crate) fn write_protect_locked<'a>(&self, folios: impl Iterator<Item = &'a Arc<Folio>>) {
        let writable = folios.filter(|folio| {
            debug_assert!(folio.state.is_locked(), "protected without its lock");
            folio.state.take_writable()
        });
        let mut runs = Vec::new();
        runs_of(writable.map(|folio| folio.index), |run| runs.push(run));
        self.rmap().write_protect_all(&runs);
    }
}

/// Calls `what` for each run of numbers that follow each other.
pub(crate) fn runs_of(numbers: impl Iterator<Item = u64>, mut what: impl FnMut(Range<u64>)) {
    let mut run: Option<Range<u64>> = None;
    for number in numbers {
        match &mut run {
            Some(run) if run.end == number => run.end += 1,
            _ => {
                if let Some(run) = run.replace(number..number + 1) {
                    what(run);
                }
            }
        }
    }
    if let Some(run) = run {
        what(run);
    }
}

/// A range of a file that is mapped; no longer when dropped.
///
/// Only who has one can fault pages in ([`MappedRange::fault`]), so no page is mapped by one who
/// would not be told that it goes. It keeps the file's mapping in memory.
#[must_use]
pub struct MappedRange<B: WriteBacking> {
    pub(crate) mapping: Arc<Mapping<B>>,
    pub(crate) pages: Range<u64>,
    pub(crate) target: Arc<dyn MapTarget>,
    /// How loads go through it.
    pub(crate) readahead: Readahead,
    pub(crate) advised: Advised,
    id: u64,
}

impl<B: WriteBacking> Mapping<B> {
    /// Registers `target` as one who maps `pages` of the file from now on; it maps none yet. The
    /// range may reach past the end of the file: faults there fail until the file is longer.
    pub fn map_range(
        self: &Arc<Self>,
        pages: Range<u64>,
        target: Arc<dyn MapTarget>,
    ) -> MappedRange<B> {
        let id = self.pages().rmap().add(pages.clone(), Arc::clone(&target));
        MappedRange {
            mapping: Arc::clone(self),
            pages,
            target,
            readahead: Readahead::new(),
            advised: Advised::default(),
            id,
        }
    }
}

impl<B: WriteBacking> MappedRange<B> {
    /// The file.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping<B>> {
        &self.mapping
    }

    /// The range, in pages.
    #[must_use]
    pub fn pages(&self) -> Range<u64> {
        self.pages.clone()
    }

    /// Notes how the program says that it will load (`madvise`): after [`Hint::Random`] nothing is
    /// read or mapped along with a page.
    pub fn advise(&self, hint: Hint) {
        self.readahead.set_hint(hint);
    }
}

impl<B: WriteBacking> Drop for MappedRange<B> {
    fn drop(&mut self) {
        // Faults borrow this, so none is under way. First the entries: who is not on the list is
        // not told of pages that go.
        self.target
            .unmap(self.pages.clone(), Unmap::EvenPrivate)
            .wait();
        self.mapping.pages().rmap().remove(self.id);
        self.mapping.note_unmapped();
    }
}

impl<B: WriteBacking> std::fmt::Debug for MappedRange<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MappedRange")
            .field("file", &self.mapping.number())
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::runs_of;

    #[test]
    fn neighbours_go_together() {
        let runs = |numbers: &[u64]| {
            let mut runs = Vec::new();
            runs_of(numbers.iter().copied(), |run| runs.push(run));
            runs
        };
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[7, 9]), [7..8, 9..10]);
        assert_eq!(runs(&[1, 2, 3, 5, 8, 9]), [1..4, 5..6, 8..10]);
    }
}
