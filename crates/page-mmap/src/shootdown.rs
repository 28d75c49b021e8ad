//! What of a region is mapped and what is poisoned, and how either is taken away.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::RwLock;
use pagefence_page_cache::{Access, Answer, CannotMap, MapTarget, MappedPage, PageRun, Unmap};

use crate::fault_source::{FaultSource, Obstacle, Why};
use crate::mapped::MappedPages;
#[cfg(any(test, feature = "mutants"))]
use crate::mutants::Mutant;

/// How long a page stays poisoned that could not be read, or had no space: accesses try again then,
/// as they would at once in Linux.
const POISONED_FOR: Duration = Duration::from_secs(1);

/// Why accesses to a page end with SIGBUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Poison {
    /// It lies past the end of the file, until that has moved over it.
    Beyond,
    /// It could not be had, until then.
    Failed(Instant),
}

/// A region's entries: all that its faults and those who take pages away need to know of it.
#[derive(Debug)]
pub(crate) struct Entries<S> {
    pub(crate) source: S,
    mapped: MappedPages,
    /// Those of them that may be mapped for stores: a page is set under its page lock before it is, and cleared
    /// under that when it no longer is.
    stored: MappedPages,
    /// Held exclusively while pages are poisoned and cured, so that the list is what is so: what is
    /// cured has neither a page nor a private copy that would go with the poison. Held shared while
    /// pages are mapped, since who poisons one takes its protection off. Below page locks.
    poisoned: RwLock<BTreeMap<u64, Poison>>,
    #[cfg(any(test, feature = "mutants"))]
    pub(crate) mutants: crate::mutants::Mutants,
}

impl<S: FaultSource> Entries<S> {
    pub(crate) fn new(source: S) -> Self {
        Self {
            mapped: MappedPages::none_of(&source.pages()),
            stored: MappedPages::none_of(&source.pages()),
            source,
            poisoned: RwLock::new(BTreeMap::new()),
            #[cfg(any(test, feature = "mutants"))]
            mutants: crate::mutants::Mutants::default(),
        }
    }

    /// Has accesses to `page` end with SIGBUS because of `why`; past the end, unless the file, asked
    /// under the list's lock, has so many pages by now that it no longer is.
    pub(crate) fn poison(&self, page: u64, why: Poison, pages_of_file: impl FnOnce() -> u64) {
        let mut poisoned = self.poisoned.write();
        // Who makes the file longer says so after it is: either this sees the new size, or that
        // sees the entry.
        if why == Poison::Beyond && page < pages_of_file() {
            drop(poisoned);
            self.source.wake(page);
            return;
        }
        if self.source.poison(page) {
            poisoned.insert(page, why);
        }
    }

    /// Has accesses to pages try again that could not be had some time ago; says when the next ones
    /// are due.
    pub(crate) fn cure_failed(&self, now: Instant) -> Option<Duration> {
        let next_cure = || {
            let poisoned = self.poisoned.read();
            let times = poisoned.values().filter_map(|why| match why {
                Poison::Failed(until) => Some(*until),
                Poison::Beyond => None,
            });
            times.min()
        };
        let mut next = next_cure();
        #[cfg(any(test, feature = "mutants"))]
        if self.mutants.has(Mutant::Cure) {
            return None;
        }
        if next.is_some_and(|until| until <= now) {
            self.cure(
                0..u64::MAX,
                |why| matches!(why, Poison::Failed(until) if *until <= now),
            );
            next = next_cure();
        }
        next.map(|until| until.saturating_duration_since(now))
    }

    /// Whether `page` is mapped, as far as is known.
    pub(crate) fn is_mapped(&self, page: u64) -> bool {
        self.next_unmapped(page..page + 1).is_none()
    }

    /// Threads that stopped at `page` try again.
    pub(crate) fn wake(&self, page: u64) {
        self.source.wake(page);
    }

    /// The first of `pages` that is not mapped, as far as is known.
    pub(crate) fn next_unmapped(&self, pages: Range<u64>) -> Option<u64> {
        self.mapped.next_unmapped(pages)
    }

    /// The pages that were cured lie in what it gives, if any were.
    fn cure(&self, pages: Range<u64>, which: impl Fn(&Poison) -> bool) -> Option<Range<u64>> {
        let mut poisoned = self.poisoned.write();
        let cured = poisoned.extract_if(pages, |_, why| which(why));
        let cured: Vec<u64> = cured.map(|(page, _)| page).collect();
        let ends = cured.first().zip(cured.last());
        let ends = ends.map(|(&first, &last)| first..last + 1);
        if ends.is_some() {
            self.source.cure(&cured);
        }
        ends
    }

    /// Maps a page that has been mapped before for what `writable` says, or only wakes who stopped.
    fn allow(&self, page: u64, writable: bool) {
        if writable {
            self.source.unprotect(page..page + 1);
        } else {
            self.source.wake(page);
        }
    }

    fn map_run(&self, pages: Range<u64>, fault: u64, writable: bool) -> Result<(), CannotMap> {
        loop {
            let poisoned = self.poisoned.read();
            if poisoned.range(pages.clone()).next().is_none() {
                return self.map_unpoisoned(pages, fault, writable);
            }
            drop(poisoned);
            // A page would take the place of poison, and a copy that of the page.
            self.forget_poison(pages.clone());
        }
    }

    /// Takes the poison of `pages` off: of those on the list.
    fn forget_poison(&self, pages: Range<u64>) {
        let has_some = self.poisoned.read().range(pages.clone()).next().is_some();
        if has_some {
            self.cure(pages, |_| true);
        }
    }

    fn map_unpoisoned(
        &self,
        pages: Range<u64>,
        fault: u64,
        writable: bool,
    ) -> Result<(), CannotMap> {
        let Err(Obstacle { page, why }) = self.source.map(pages.clone(), writable) else {
            self.mapped.set(&pages);
            return Ok(());
        };
        let is_mapped = why == Why::MappedBefore;
        self.mapped.set(&(pages.start..page + u64::from(is_mapped)));
        match page.cmp(&fault) {
            // Its neighbours are extra.
            std::cmp::Ordering::Less => {
                return self.map_unpoisoned(fault..pages.end, fault, writable);
            }
            std::cmp::Ordering::Greater => {}
            std::cmp::Ordering::Equal => match why {
                Why::MappedBefore => self.allow(fault, writable),
                // Nobody looks at it any more.
                Why::Gone => self.source.wake(fault),
                Why::Failed => return Err(CannotMap),
            },
        }
        Ok(())
    }
}

impl Poison {
    /// Because of a failure at `now`.
    pub(crate) fn failed(now: Instant) -> Self {
        Self::Failed(now + POISONED_FOR)
    }
}

impl<S: FaultSource> MapTarget for Entries<S> {
    fn map(&self, run: &PageRun<'_>, access: Access) -> Result<(), CannotMap> {
        let writable = access == Access::Store;
        #[cfg(any(test, feature = "mutants"))]
        let writable = writable || self.mutants.has(Mutant::LoadProtection);
        if writable {
            self.stored.set(&run.pages());
        }
        self.map_run(run.pages(), run.fault(), writable)
    }

    /// The kernel makes the copy, at the store that is tried again when the page is mapped for loads:
    /// from the page that it finds then, under its own page table lock.
    fn map_copy(&self, page: &MappedPage) -> Result<(), CannotMap> {
        let page = page.index();
        self.map_run(page..page + 1, page, false)
    }

    /// The pages of the cache have gone from every view with their memory, by the time that the page
    /// locks are given up. Private copies are the view's own.
    fn unmap(&self, pages: Range<u64>, which: Unmap) -> Answer<'_> {
        self.mapped.clear(&pages);
        self.stored.clear(&pages);
        if which == Unmap::EvenPrivate && !self.source.is_shared() {
            self.source.zap(pages.clone());
            // Poison went as well, and a copy may come where it was. What is poisoned from now on has
            // its entry.
            self.forget_poison(pages.clone());
        }
        if which == Unmap::EvenPrivate {
            self.source.resized();
        }
        self.source.settle(pages)
    }

    fn write_protect(&self, pages: Range<u64>) -> Answer<'_> {
        #[cfg(any(test, feature = "mutants"))]
        if self.mutants.has(Mutant::WriteProtection) {
            return Answer::done();
        }
        // What was not mapped here for stores since it was protected is not asked for.
        match self.stored.next_mapped(pages.clone()) {
            Some(first) if self.source.is_shared() => {
                self.stored.clear(&pages);
                self.source.protect(first..pages.end)
            }
            _ => Answer::done(),
        }
    }

    fn is_free(&self, pages: Range<u64>) -> bool {
        self.source.is_settled(pages)
    }

    fn around(&self, page: u64) -> Range<u64> {
        self.mapped.around(page)
    }

    fn grown(&self, pages: u64) -> Answer<'_> {
        #[cfg(any(test, feature = "mutants"))]
        if self.mutants.has(Mutant::Cure) {
            return Answer::done();
        }
        // Who learns of the growth may load there at once.
        let cured = self.cure(0..pages, |why| *why == Poison::Beyond);
        let cured = cured.map(|cured| self.source.settle(cured));
        let resized = self.source.resized();
        let resized = resized.then(|| self.source.settle(0..u64::MAX));
        cured
            .unwrap_or_else(Answer::done)
            .and(resized.unwrap_or_else(Answer::done))
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
