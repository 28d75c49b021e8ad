//! A mapping of a range of a file.

use std::io;
use std::ops::Range;

use pagefence_host_memory::{Userfault, UserfaultError, View, ViewKind};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, thread};
use pagefence_page_cache::{FileMemory, MapTarget, MappedRange, Mapping, WaitFor, WriteBacking};

use crate::bell::Bell;
use crate::fault_loop::{PAGE_BYTES, serve_faults};
use crate::fault_source::{FaultSource, RealSource};
use crate::service::{Job, Line, NoThread, Service};
use crate::shootdown::Entries;

/// Faults of a region that threads of its service may have at a time; more wait in line, so that a program
/// that tells of ever more faults fills no memory with them.
const MOST_IN_SERVICE: usize = 1024;

/// As many of a client in another process: more of them wait on its own thread, and hold up nobody else.
const MOST_OF_CLIENT: usize = 32;

/// What stores to a region do.
pub type Kind = ViewKind;

/// Whose faults a region serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Faults {
    /// Those of threads of the program. A system call that is given memory of the region which is not
    /// mapped fails with EFAULT. Anybody may have such regions.
    #[default]
    OfPrograms,
    /// Those of system calls as well, where the kernel allows that: to root, to who may open
    /// `/dev/userfaultfd`, or to everybody (`vm.unprivileged_userfaultfd`).
    OfSystemCalls,
}

/// Why a range of a file could not be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The kernel has no userfaultfd, or not for this process.
    #[error(transparent)]
    Userfault(#[from] UserfaultError),
    /// Memory or a thread can't be had.
    #[error("the file can't be mapped into memory: {0}")]
    System(#[from] io::Error),
}

/// A mapping of a range of a file in the memory of this process; unmapped when dropped.
///
/// - Owns: the view, its userfaultfd, the thread that serves its faults, its place on the file's list
///   of who maps it.
/// - Stays outside: the pages (the cache's), the memory that they are in, the threads that wait for
///   pages (a [`Service`]).
/// - Lifecycle: pages are mapped by faults only. Dropping it ends the thread and waits for the faults
///   that are being served, of which nobody needs the answer: who drops it has nobody left who
///   touches its memory.
pub struct Region<B: WriteBacking, S: FaultSource = RealSource> {
    pub(crate) shared: Arc<Shared<B, S>>,
    pub(crate) in_service: Arc<InService>,
    pub(crate) service: Arc<Service>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What faults of a region need.
pub(crate) struct Shared<B: WriteBacking, S: FaultSource> {
    /// Dropped first: takes away what is mapped.
    pub(crate) range: MappedRange<B>,
    pub(crate) entries: Arc<Entries<S>>,
    pub(crate) bell: Bell,
}

/// Faults of a region that its service has.
#[derive(Debug)]
pub(crate) struct InService {
    /// Where they stand.
    line: Arc<Line>,
    /// How many there may be before more are served by the fault loop itself.
    most: usize,
    count: Mutex<usize>,
    fewer: Condvar,
}

impl<B: WriteBacking> Region<B> {
    /// Maps `bytes` bytes of the file of `mapping` from page `first` on, which has its pages in
    /// `memory` ([`Mapping::share_memory`]). They may reach past the end of the file.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn map(
        mapping: &Arc<Mapping<B>>,
        memory: &Arc<FileMemory>,
        (first, bytes): (u64, usize),
        kind: Kind,
        faults: Faults,
        service: &Arc<Service>,
    ) -> Result<Self, MapError> {
        let userfault = match faults {
            Faults::OfPrograms => Userfault::open()?,
            Faults::OfSystemCalls => Userfault::open_for_kernel_faults()?,
        };
        let view = View::new(memory, first, bytes, kind)?;
        let source = RealSource::new(userfault, view)?;
        Ok(Self::of_source(mapping, source, service)?)
    }

    /// The memory.
    #[must_use]
    pub fn view(&self) -> &View {
        self.shared.entries.source.view()
    }
}

impl<B: WriteBacking, S: FaultSource> Region<B, S> {
    /// A region of the file of `mapping` whose faults come from `source`.
    ///
    /// # Errors
    /// A thread can't be had.
    pub fn of_source(
        mapping: &Arc<Mapping<B>>,
        source: S,
        service: &Arc<Service>,
    ) -> io::Result<Self> {
        let shared = Shared::new(mapping, source)?;
        let in_service = InService::of(service, &shared.entries.source);
        let thread = {
            let (shared, in_service) = (Arc::clone(&shared), Arc::clone(&in_service));
            let service = Arc::clone(service);
            thread::spawn("pagefence-faults", move || {
                serve_faults(&shared, &in_service, &service);
            })?
        };
        Ok(Self {
            shared,
            in_service,
            service: Arc::clone(service),
            thread: Some(thread),
        })
    }

    /// The pages of the file that it maps.
    #[must_use]
    pub fn pages(&self) -> Range<u64> {
        self.shared.range.pages()
    }

    /// Its place among those who map the file, for faults that are asked for and for advice.
    pub fn range(&self) -> &MappedRange<B> {
        &self.shared.range
    }

    /// Where its faults come from.
    #[must_use]
    pub fn source(&self) -> &S {
        &self.shared.entries.source
    }
}

/// Serves the faults of `source`, which maps a range of the file of `mapping`, until it is over; returns when
/// nothing is mapped there any more and nothing is being served.
///
/// # Errors
/// It can't be begun.
pub fn serve_until_over<B: WriteBacking, S: FaultSource>(
    mapping: &Arc<Mapping<B>>,
    source: S,
    service: &Arc<Service>,
) -> io::Result<()> {
    let shared = Shared::new(mapping, source)?;
    let in_service = InService::of(service, &shared.entries.source);
    serve_faults(&shared, &in_service, service);
    // For what they have begun to prepare.
    shared.bell.end();
    in_service.wait_for_none();
    // It fills no more holes, unless it has kept the descriptor.
    mapping.punch_strays(&mut Held::at_entry());
    if shared.entries.source.may_still_store() {
        // While it is told of pages that are written back it takes them out of the program's mapping,
        // whether they can be written or not: who writes them later hears of that.
        let bytes = |page: u64| page.saturating_mul(PAGE_BYTES);
        let pages = shared.range.pages();
        let range = bytes(pages.start)..bytes(pages.end);
        let written = mapping.write_back(&mut Held::at_entry(), range, WaitFor::All);
        if let Err(error) = written {
            tracing::warn!(
                ?error,
                "what a program stored that was cut off is not written yet"
            );
        }
    }
    Ok(())
}

impl<B: WriteBacking, S: FaultSource> Shared<B, S> {
    fn new(mapping: &Arc<Mapping<B>>, source: S) -> io::Result<Arc<Self>> {
        let bell = Bell::new()?;
        let entries = Arc::new(Entries::new(source));
        let target: Arc<dyn MapTarget> = Arc::<Entries<S>>::clone(&entries);
        Ok(Arc::new(Self {
            range: mapping.map_range(entries.source.pages(), target),
            entries,
            bell,
        }))
    }
}

impl InService {
    /// None of those of `source`.
    fn of(service: &Service, source: &impl FaultSource) -> Arc<Self> {
        let is_client = source.is_client();
        Arc::new(Self {
            line: service.line(is_client),
            most: if is_client {
                MOST_OF_CLIENT
            } else {
                MOST_IN_SERVICE
            },
            count: Mutex::new(0),
            fewer: Condvar::new(),
        })
    }

    /// Has `job`, which is one of [`Self::count_in`], done by a thread of `service` when it is its turn.
    ///
    /// # Errors
    /// Those of [`Service::submit`].
    pub(crate) fn submit(&self, service: &Service, job: Job) -> Result<(), NoThread> {
        service.submit(&self.line, job)
    }

    /// Whether there are as many as there may be.
    pub(crate) fn is_full(&self) -> bool {
        self.count() >= self.most
    }

    fn count(&self) -> usize {
        *self.count.lock()
    }

    /// `job`, which is counted until it is over and dropped.
    pub(crate) fn count_in(self: &Arc<Self>, job: Job) -> Job {
        *self.count.lock() += 1;
        let counted = Counted(Arc::clone(self));
        Box::new(move || {
            job();
            drop(counted);
        })
    }

    fn wait_for_none(&self) {
        let mut count = self.count.lock();
        while *count > 0 {
            self.fewer.wait(&mut count);
        }
    }
}

struct Counted(Arc<InService>);

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.fewer.notify_all();
    }
}

impl<B: WriteBacking, S: FaultSource> Drop for Region<B, S> {
    fn drop(&mut self) {
        self.shared.bell.end();
        if let Some(thread) = self.thread.take() {
            // It can't have panicked.
            let _ = thread.join();
        }
        self.in_service.wait_for_none();
    }
}

impl<B: WriteBacking, S: FaultSource> std::fmt::Debug for Region<B, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region")
            .field("range", &self.shared.range)
            .finish_non_exhaustive()
    }
}
