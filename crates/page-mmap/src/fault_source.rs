//! Where a region's faults come from, and what its pages are mapped with: the kernel's userfaultfd
//! and a view, or a simulation of both.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use pagefence_host_memory::{Continue, RangeError, Userfault, View, ViewKind};
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{Answer, Hint};
use rustix::io::Errno;

/// Events that are read at a time.
const EVENTS: usize = 32;

/// A thread has stopped at a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The page, by its place in the file.
    pub page: u64,
    /// It is about to store.
    pub is_store: bool,
    /// It stopped there before, and the page could not be mapped for it: there was no memory.
    pub met_hole: bool,
}

/// Why a wait for faults is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// There may be some.
    Faults,
    /// The bell can be read.
    Rung,
    /// The time is over.
    Late,
    /// Nobody faults there any more: the program has gone.
    Over,
}

/// What the program of a view asks for besides faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// These pages are to be read and mapped for loads, and how that went to be told
    /// ([`FaultSource::populated`]).
    Populate(Range<u64>),
    /// These are to be read and mapped in the background, as far as they can be.
    WillNeed(Range<u64>),
    /// It is going to load like that.
    Advise(Hint),
}

/// Where mapping pages one after the other came to its end before the last, and why. Those before are
/// mapped, and threads that stopped at them go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The page.
    pub page: u64,
    /// What is with it.
    pub why: Why,
}

/// Why a page was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It had been before. Whoever stopped there stands still.
    MappedBefore,
    /// It has no memory (as somebody has punched it by hand), or is broken, or the kernel has no memory for
    /// its entry.
    Failed,
    /// The program has taken this part of the view away.
    Gone,
}

/// A mapping of a range of a file in a program, whose faults are served by somebody else.
///
/// Pages are named by their place in the file. Methods may be called with page locks held; they
/// return after bounded times.
pub trait FaultSource: Send + Sync + 'static {
    /// The pages of the file that the view maps.
    fn pages(&self) -> Range<u64>;

    /// Whether stores go to the file.
    fn is_shared(&self) -> bool;

    /// Whether the view is in another process, whose faults are to leave threads to those of others.
    fn is_client(&self) -> bool {
        false
    }

    /// Appends the threads that have stopped since the last call, some of them at least if there are
    /// any.
    ///
    /// # Errors
    /// No fault can be served any more.
    fn read(&self, stopped: &mut Vec<Cause>) -> io::Result<()>;

    /// Waits until there are faults to be read, `bell` can be read, or `most` is over.
    ///
    /// # Errors
    /// No fault can be served any more.
    fn wait(&self, bell: BorrowedFd<'_>, most: Option<Duration>) -> io::Result<Woken>;

    /// Maps `pages`, which have memory, from the first to the last, for stores if `writable`. Threads
    /// that stopped at those mapped go on.
    ///
    /// # Errors
    /// What it did not get over.
    fn map(&self, pages: Range<u64>, writable: bool) -> Result<(), Obstacle>;

    /// Makes those of `pages` that are mapped read-only.
    fn protect(&self, pages: Range<u64>) -> Answer<'_>;

    /// Lets those of `pages` that are mapped be stored to again; threads that stopped at them go on.
    fn unprotect(&self, pages: Range<u64>);

    /// Has accesses to `page` end with SIGBUS; threads that stopped there go on, and meet it. False if
    /// something stays mapped there, in a view that is not shared: it may be a copy.
    fn poison(&self, page: u64) -> bool;

    /// Threads that stopped at `page` try again.
    fn wake(&self, page: u64);

    /// Forgets what is mapped at `pages`, private copies and poison as well.
    fn zap(&self, pages: Range<u64>);

    /// When this is answered, nothing that was asked for `pages` before can take effect any more: they are
    /// mapped as they were to be, or not at all.
    fn settle(&self, pages: Range<u64>) -> Answer<'_> {
        // What takes effect at once is settled.
        let _ = pages;
        Answer::done()
    }

    /// Whether it is so already, or will be without anybody who has to be waited for.
    fn is_settled(&self, pages: Range<u64>) -> bool {
        let _ = pages;
        true
    }

    /// Forgets the poison of `pages`, of which those between the first and the last that are not among them may
    /// be poisoned or not; a page that is mapped there by now stays.
    fn cure(&self, pages: &[u64]) {
        pages.iter().for_each(|&page| self.zap(page..page + 1));
    }

    /// The file may have another size than before, for a program that is told; whether it was told of a
    /// smaller one, which is so when its pages are settled.
    fn resized(&self) -> bool {
        false
    }

    /// Waits a little if the program has much to do that it was told already. For who tells it what nobody
    /// waits for, with nothing held.
    fn breathe(&self) {}

    /// Whether the program may go on to store to what it has mapped when this is over ([`Woken::Over`]): what
    /// it may store to is then taken from it by writing it back.
    fn may_still_store(&self) -> bool {
        false
    }

    /// What else the program asks for, one thing after the other.
    fn next_ask(&self) -> Option<Ask> {
        None
    }

    /// The oldest [`Ask::Populate`] that was not answered is done; an error of the operating system says how
    /// it failed.
    fn populated(&self, outcome: Result<(), Errno>) {
        let _ = outcome;
    }
}

/// One that is also somebody else's, who may end it.
impl<S: FaultSource> FaultSource for Arc<S> {
    fn pages(&self) -> Range<u64> {
        (**self).pages()
    }

    fn is_shared(&self) -> bool {
        (**self).is_shared()
    }

    fn is_client(&self) -> bool {
        (**self).is_client()
    }

    fn read(&self, stopped: &mut Vec<Cause>) -> io::Result<()> {
        (**self).read(stopped)
    }

    fn wait(&self, bell: BorrowedFd<'_>, most: Option<Duration>) -> io::Result<Woken> {
        (**self).wait(bell, most)
    }

    fn map(&self, pages: Range<u64>, writable: bool) -> Result<(), Obstacle> {
        (**self).map(pages, writable)
    }

    fn protect(&self, pages: Range<u64>) -> Answer<'_> {
        (**self).protect(pages)
    }

    fn unprotect(&self, pages: Range<u64>) {
        (**self).unprotect(pages);
    }

    fn poison(&self, page: u64) -> bool {
        (**self).poison(page)
    }

    fn wake(&self, page: u64) {
        (**self).wake(page);
    }

    fn zap(&self, pages: Range<u64>) {
        (**self).zap(pages);
    }

    fn settle(&self, pages: Range<u64>) -> Answer<'_> {
        (**self).settle(pages)
    }

    fn is_settled(&self, pages: Range<u64>) -> bool {
        (**self).is_settled(pages)
    }

    fn cure(&self, pages: &[u64]) {
        (**self).cure(pages);
    }

    fn resized(&self) -> bool {
        (**self).resized()
    }

    fn breathe(&self) {
        (**self).breathe();
    }

    fn next_ask(&self) -> Option<Ask> {
        (**self).next_ask()
    }

    fn may_still_store(&self) -> bool {
        (**self).may_still_store()
    }

    fn populated(&self, outcome: Result<(), Errno>) {
        (**self).populated(outcome);
    }
}

/// The kernel's.
#[derive(Debug)]
pub struct RealSource {
    /// Dropped first: without its userfaultfd a view fills holes with zeros.
    view: View,
    userfault: Userfault,
}

impl RealSource {
    /// `view`, whose faults come from `userfault` from now on.
    ///
    /// # Errors
    /// Those of [`Userfault::register`].
    pub fn new(mut userfault: Userfault, view: View) -> io::Result<Self> {
        userfault.register(&view)?;
        Ok(Self { view, userfault })
    }

    /// The memory.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }
}

impl FaultSource for RealSource {
    fn pages(&self) -> Range<u64> {
        self.view.pages()
    }

    fn is_shared(&self) -> bool {
        self.view.kind() != ViewKind::Private
    }

    fn read(&self, stopped: &mut Vec<Cause>) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        self.userfault.read_events(&mut events)?;
        stopped.extend(events.iter().map(|event| Cause {
            page: event.page,
            is_store: event.write,
            // Known when the page is mapped ([`Why::Failed`]).
            met_hole: false,
        }));
        Ok(())
    }

    fn wait(&self, bell: BorrowedFd<'_>, most: Option<Duration>) -> io::Result<Woken> {
        let woken = self.userfault.wait(Some(bell), most)?;
        Ok(match (woken.until, woken.faults) {
            (true, _) => Woken::Rung,
            (false, true) => Woken::Faults,
            (false, false) => Woken::Late,
        })
    }

    fn map(&self, pages: Range<u64>, writable: bool) -> Result<(), Obstacle> {
        let continued = self.userfault.continue_pages(&self.view, pages, !writable);
        continued.map_err(|error| match error {
            Continue::AlreadyMapped { page } => Obstacle {
                page,
                why: Why::MappedBefore,
            },
            Continue::Gone { page } => Obstacle {
                page,
                why: Why::Gone,
            },
            // Somebody has punched it by hand.
            Continue::Hole { page } => Obstacle {
                page,
                why: Why::Failed,
            },
            Continue::Refused { page, .. } => {
                tracing::error!(?error, "a page of a mapped file can't be mapped");
                Obstacle {
                    page,
                    why: Why::Failed,
                }
            }
        })
    }

    fn protect(&self, pages: Range<u64>) -> Answer<'_> {
        must_end(self.userfault.protect(&self.view, pages, true));
        Answer::done()
    }

    fn unprotect(&self, pages: Range<u64>) {
        let done = must_end(self.userfault.protect(&self.view, pages.clone(), false));
        if done.is_none() {
            pages.for_each(|page| self.wake(page));
        }
    }

    fn poison(&self, page: u64) -> bool {
        let poisoned = must_end(self.userfault.poison(&self.view, page..page + 1));
        if poisoned.is_none() {
            self.wake(page);
        }
        poisoned.unwrap_or(false)
    }

    fn wake(&self, page: u64) {
        let _ = must_end(self.userfault.wake(&self.view, page..page + 1));
    }

    fn zap(&self, pages: Range<u64>) {
        self.view.zap(pages);
    }
}

/// `None` if the program has taken some of it away, which needs nothing more than that nobody sleeps there.
/// Memory for page tables that the kernel refuses leaves stores that nobody would know of, or a thread that
/// nobody wakes: as where memory is refused elsewhere, the process can't go on.
pub(crate) fn must_end<T>(done: Result<T, RangeError>) -> Option<T> {
    match done {
        Ok(done) => Some(done),
        Err(RangeError::Gone) => None,
        Err(error) => {
            tracing::error!(?error, "the memory of a mapped file can't be changed");
            std::process::abort();
        }
    }
}
