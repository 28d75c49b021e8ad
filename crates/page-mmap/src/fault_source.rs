//! Where a region's faults come from, and what its pages are mapped with: the kernel's userfaultfd
//! and a view, or a simulation of both.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use pagefence_host_memory::{Continue, FaultKind, RangeError, Userfault, View, ViewKind};

/// Events that are read at a time.
const EVENTS: usize = 32;

/// A thread has stopped at a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The page, by its place in the file.
    pub page: u64,
    /// It is about to store.
    pub is_store: bool,
    /// The page is mapped, for loads.
    pub is_protected: bool,
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
}

/// What came of mapping pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// All are mapped; threads that stopped at them go on.
    All,
    /// Those before this page are; it had been mapped before, and whoever stopped there stands still.
    Up {
        /// The page.
        to: u64,
    },
    /// The page that was to be mapped has no memory; or the kernel has none for its entry.
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

    /// Maps `pages`, which have memory, from the first to the last, until one is mapped already; for
    /// stores if `writable`. Threads that stopped at those mapped go on.
    fn map(&self, pages: Range<u64>, writable: bool) -> Mapped;

    /// Makes those of `pages` that are mapped read-only, or lets them be stored to again; then, threads
    /// that stopped at them go on.
    fn protect(&self, pages: Range<u64>, protected: bool);

    /// Has accesses to `page`, which is not mapped, end with SIGBUS; threads that stopped there go on,
    /// and meet it.
    fn poison(&self, page: u64);

    /// Threads that stopped at `page` try again.
    fn wake(&self, page: u64);

    /// Forgets what is mapped at `pages`, private copies and poison as well.
    fn zap(&self, pages: Range<u64>);
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
            is_protected: event.kind == FaultKind::WriteProtected,
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

    fn map(&self, pages: Range<u64>, writable: bool) -> Mapped {
        match self.userfault.continue_pages(&self.view, pages, !writable) {
            Ok(()) => Mapped::All,
            Err(Continue::AlreadyMapped { page }) => Mapped::Up { to: page },
            Err(Continue::Gone { .. }) => Mapped::Gone,
            Err(error @ (Continue::Hole { .. } | Continue::Refused { .. })) => {
                tracing::error!(?error, "a page of a mapped file can't be mapped");
                Mapped::Failed
            }
        }
    }

    fn protect(&self, pages: Range<u64>, protected: bool) {
        must_end(self.userfault.protect(&self.view, pages, protected));
    }

    fn poison(&self, page: u64) {
        must_end(self.userfault.poison(&self.view, page..page + 1));
    }

    fn wake(&self, page: u64) {
        must_end(self.userfault.wake(&self.view, page..page + 1));
    }

    fn zap(&self, pages: Range<u64>) {
        self.view.zap(pages);
    }
}

/// What the program has taken away needs nothing. Memory for page tables that the kernel refuses
/// leaves stores that nobody would know of, or a thread that nobody wakes: as with any memory that is
/// refused, the process can't go on.
fn must_end(done: Result<(), RangeError>) {
    match done {
        Ok(()) | Err(RangeError::Gone) => {}
        Err(error) => panic!("the memory of a mapped file can't be changed: {error:?}"),
    }
}
