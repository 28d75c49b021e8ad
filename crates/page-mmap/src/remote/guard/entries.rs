//! What a guard does to its view.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use pagefence_host_memory::{Continue, Userfault, View, ViewKind};

use crate::fault_source::must_end;

/// How long a page stays poisoned that the kernel did not map.
const POISONED_FOR: Duration = Duration::from_secs(1);

/// The view's entries. The guard's thread alone changes them.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    view: &'a View,
    userfault: &'a Userfault,
    /// Where threads stand, as far as was read and not answered yet.
    standing: BTreeSet<u64>,
    /// Where somebody stood whose page was to be mapped and had no memory: what the daemon is told of when
    /// he stops there again. It was taken by the daemon meanwhile, or by hand.
    holes: BTreeSet<u64>,
    /// What is poisoned here; until when, if the daemon does not know.
    poisoned: BTreeMap<u64, Option<Instant>>,
}

impl<'a> Entries<'a> {
    pub(super) fn of(view: &'a View, userfault: &'a Userfault) -> Self {
        Self {
            view,
            userfault,
            standing: BTreeSet::new(),
            holes: BTreeSet::new(),
            poisoned: BTreeMap::new(),
        }
    }

    /// A thread has stopped at `page`.
    pub(super) fn stands_at(&mut self, page: u64) {
        self.standing.insert(page);
    }

    /// Whether somebody stood at `page` who met a hole; he is forgotten.
    pub(super) fn take_hole(&mut self, page: u64) -> bool {
        self.holes.remove(&page)
    }

    /// Maps what of `pages` there is memory for, and wakes who stopped there. False if the right is too
    /// old: nothing is mapped by it, but that a private view keeps what was mapped the moment before
    /// (since somebody may have stored to it, and nobody else has that).
    pub(super) fn map(
        &mut self,
        pages: Range<u64>,
        writable: bool,
        is_too_old: impl Fn() -> bool,
    ) -> bool {
        let mut is_good = !is_too_old();
        if is_good {
            self.map_now(pages.clone(), writable);
            is_good = !is_too_old();
            if !is_good && self.view.kind() != ViewKind::Private {
                self.zap(pages.clone());
            }
        }
        self.wake(pages);
        is_good
    }

    fn map_now(&mut self, pages: Range<u64>, writable: bool) {
        let mut at = pages.start;
        while at < pages.end {
            let continued = self
                .userfault
                .continue_quietly(self.view, at..pages.end, !writable);
            let page = match continued {
                Ok(()) => pages.end,
                Err(Continue::AlreadyMapped { page }) => {
                    if writable {
                        let done = self.userfault.unprotect_quietly(self.view, page..page + 1);
                        must_end(done);
                    }
                    page
                }
                // It was taken. Who stopped there asks again, and says so; its neighbours were extra.
                Err(Continue::Hole { page }) => {
                    if self.standing.contains(&page) {
                        self.holes.insert(page);
                    }
                    page
                }
                // The program does not look there any more. Who stopped there asks again.
                Err(Continue::Gone { page }) => page,
                Err(Continue::Refused { page, source }) => {
                    self.could_not_map(page, &source);
                    page
                }
            };
            // Poison gave way to what was mapped.
            forget(&mut self.poisoned, at..page);
            at = page.saturating_add(1);
        }
    }

    /// The kernel has no memory for the entry, or the page is broken: nobody is left to hang there, and
    /// nobody is to ask without end.
    fn could_not_map(&mut self, page: u64, why: &std::io::Error) {
        // Its neighbours were extra.
        if self.standing.contains(&page) {
            self.poison_until(page, Some(Instant::now() + POISONED_FOR));
            // Who stood there goes on by now, whatever lock this takes.
            tracing::error!(page, error = %why, "a page of a mapped file can't be mapped");
        }
    }

    /// Makes what is mapped of `pages` read-only.
    pub(super) fn protect(&mut self, pages: Range<u64>) {
        must_end(self.userfault.protect(self.view, pages, true));
    }

    /// Accesses to `page` give SIGBUS, unless a private view has it mapped.
    pub(super) fn poison(&mut self, page: u64) {
        self.poison_until(page, None);
    }

    fn poison_until(&mut self, page: u64, until: Option<Instant>) {
        let poisoned = must_end(self.userfault.poison(self.view, page..page + 1));
        if poisoned == Some(true) {
            self.poisoned.insert(page, until);
        }
        self.wake(page..page + 1);
    }

    /// Who stopped at `pages` tries again.
    pub(super) fn wake(&mut self, pages: Range<u64>) {
        while let Some(&page) = self.standing.range(pages.clone()).next() {
            self.standing.remove(&page);
        }
        must_end(self.userfault.wake(self.view, pages));
    }

    /// Takes what is mapped of `pages`, and poison.
    pub(super) fn zap(&mut self, pages: Range<u64>) {
        self.view.zap(pages.clone());
        forget(&mut self.poisoned, pages);
    }

    /// Takes the poison of `pages` off, and nothing else.
    pub(super) fn cure(&mut self, pages: Range<u64>) {
        while let Some((&page, _)) = self.poisoned.range(pages.clone()).next() {
            self.zap(page..page + 1);
        }
    }

    /// Has pages tried again that could not be mapped some time ago; says when the next ones are due.
    pub(super) fn cure_failed(&mut self, now: Instant) -> Option<Duration> {
        let due: Vec<u64> = self
            .poisoned
            .iter()
            .filter(|(_, until)| until.is_some_and(|until| until <= now))
            .map(|(&page, _)| page)
            .collect();
        for page in due {
            self.cure(page..page + 1);
        }
        let next = self.poisoned.values().flatten().min();
        next.map(|until| until.saturating_duration_since(now))
    }

    /// Takes everything away for good, but for what a private view has; who stands somewhere gets SIGBUS.
    pub(super) fn take_all(&mut self) {
        for page in std::mem::take(&mut self.standing) {
            self.poison(page);
        }
        if self.view.kind() == ViewKind::Private {
            return;
        }
        let pages = self.view.pages();
        self.zap(pages.clone());
        // What is gone leaves marks where it was protected, in place of which no poison goes.
        must_end(self.userfault.unprotect_quietly(self.view, pages));
    }
}

fn forget(poisoned: &mut BTreeMap<u64, Option<Instant>>, pages: Range<u64>) {
    if !pages.is_empty() {
        poisoned.extract_if(pages, |_, _| true).for_each(drop);
    }
}
