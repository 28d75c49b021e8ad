//! The thread that serves a region's faults.

use std::ops::Range;
use std::time::{Duration, Instant};

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::Entry;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::thread::yield_now;
use pagefence_page_cache::{FaultError, FaultKind, WriteBacking};
use rustix::io::Errno;

use crate::fault_source::{Ask, Cause, FaultSource, Woken};
use crate::populate::{populate_for_program, will_need};
use crate::region::{InService, Shared};
use crate::service::{AbortOnPanic, NoThread, Service};
use crate::shootdown::Poison;
use crate::strays::Strays;

/// Bytes of a page.
pub(crate) const PAGE_BYTES: u64 = pagefence_page_cache::PAGE_SIZE as u64;

/// Turns of a loop that always has faults to serve, after which it looks for pages to cure, and for strays.
const CURE_TURNS: u64 = 64;

/// How long the loop looks out for the next fault before it sleeps: who has faulted goes on to the next page,
/// most often, and to wake a thread on an idle processor takes longer than all else that a fault does.
const LOOKOUT: Duration = Duration::from_micros(100);

/// Serves faults of the region of `shared` until its bell, or its source, says that it is over: at once what
/// is cached; what has to wait is handed to `service`, or else waits in line.
pub(crate) fn serve_faults<B: WriteBacking, S: FaultSource>(
    shared: &Arc<Shared<B, S>>,
    in_service: &Arc<InService>,
    service: &Arc<Service>,
) {
    let _panic = AbortOnPanic;
    let source = &shared.entries.source;
    let mut stopped = Vec::new();
    let mut strays = Strays::of(source, Instant::now());
    let mut next_look = strays.look(shared, in_service, service, Instant::now());
    let mut last_fault: Option<Instant> = None;
    let mut lookout = None;
    for turn in 1_u64.. {
        stopped.clear();
        if let Err(error) = source.read(&mut stopped) {
            panic!("faults of a mapped file can't be served any more: {error}");
        }
        for &cause in &stopped {
            if !shared.serve_at_once(cause) {
                let later = Arc::clone(shared);
                in_service.do_later(service, move || later.serve(cause));
            }
        }
        while let Some(ask) = source.next_ask() {
            answer(shared, in_service, service, ask);
        }
        if !stopped.is_empty() {
            last_fault = Some(Instant::now());
            if turn % CURE_TURNS != 0 {
                continue;
            }
        } else {
            let is_early = last_fault.is_some_and(|at| at.elapsed() < LOOKOUT);
            lookout = if is_early {
                lookout.or_else(|| service.look_out())
            } else {
                None
            };
            if lookout.is_some() {
                // Whoever has something to run here goes first.
                yield_now();
                continue;
            }
            match source.wait(shared.bell.fd(), next_look) {
                Ok(Woken::Rung) if shared.bell.hear() => return,
                Ok(Woken::Rung | Woken::Faults | Woken::Late) => {}
                Ok(Woken::Over) => return,
                Err(error) => panic!("faults of a mapped file can't be waited for: {error}"),
            }
        }
        let now = Instant::now();
        let next_cure = shared.entries.cure_failed(now);
        let next_stray = strays.look(shared, in_service, service, now);
        next_look = next_cure.into_iter().chain(next_stray).min();
    }
}

/// Does what the program of a region asks for besides faults.
fn answer<B: WriteBacking, S: FaultSource>(
    shared: &Arc<Shared<B, S>>,
    in_service: &Arc<InService>,
    service: &Arc<Service>,
    ask: Ask,
) {
    match ask {
        Ask::Populate(pages) => populate_for_program(shared, in_service, service, pages),
        Ask::WillNeed(pages) => {
            let pages = pages.start..pages.end.min(shared.pages_of_file());
            will_need(shared, in_service, service, pages);
        }
        Ask::Advise(hint) => shared.range.advise(hint),
    }
}

impl InService {
    /// Has `job` done by a thread of `service`, or by this one if there are too many already, or no
    /// thread.
    pub(crate) fn do_later(
        self: &Arc<Self>,
        service: &Service,
        job: impl FnOnce() + Send + 'static,
    ) {
        if self.is_full() {
            return job();
        }
        let job = self.count_in(Box::new(job));
        if let Err(NoThread { error, job }) = self.submit(service, job) {
            tracing::warn!(%error, "no thread for a fault: the others wait for it");
            job();
        }
    }
}

impl<B: WriteBacking, S: FaultSource> Shared<B, S> {
    fn kind_of(&self, cause: Cause) -> FaultKind {
        match (cause.is_store, self.entries.source.is_shared()) {
            (true, true) => FaultKind::Write,
            (true, false) => FaultKind::PrivateWrite,
            (false, _) => FaultKind::Read,
        }
    }

    /// False if it would have to wait, as for a page that may have lost its memory.
    fn serve_at_once(&self, cause: Cause) -> bool {
        if cause.met_hole {
            return false;
        }
        let (page, kind) = (cause.page, self.kind_of(cause));
        match self.range.try_fault(&mut Held::at_entry(), page, kind) {
            None | Some(Err(FaultError::CannotMap(_))) => false,
            Some(served) => {
                self.finish(page, served);
                true
            }
        }
    }

    fn serve(&self, cause: Cause) {
        let (page, kind) = (cause.page, self.kind_of(cause));
        let mut held = Held::at_entry();
        if cause.met_hole {
            // It need not be true, and if so the cache may have done it itself.
            self.range.mend_hole(&mut held, page);
        }
        match self.range.fault(&mut held, page, kind) {
            Err(FaultError::CannotMap(_)) if self.range.mend_hole(&mut held, page) => {
                self.entries.wake(page);
            }
            served => self.finish(page, served),
        }
    }

    /// Brings `page` in and maps it, as a fault there would; a second time if its memory was punched by
    /// hand, and no more often, should that go on.
    pub(crate) fn fault(
        &self,
        held: &mut Held<'_, Entry>,
        page: u64,
        kind: FaultKind,
    ) -> Result<(), FaultError<B::Error>> {
        match self.range.fault(held, page, kind) {
            Err(FaultError::CannotMap(_)) if self.range.mend_hole(held, page) => {
                self.range.fault(held, page, kind)
            }
            served => served,
        }
    }

    /// Pages that the file has now.
    pub(crate) fn pages_of_file(&self) -> u64 {
        self.range.mapping().backing().size().div_ceil(PAGE_BYTES)
    }

    /// Reads and maps those of `pages` that are inside the file.
    pub(crate) fn populate_file(&self, pages: Range<u64>) -> Result<(), Errno> {
        let pages = pages.start..pages.end.min(self.pages_of_file());
        match self.populate(&mut Held::at_entry(), pages) {
            // It has been cut off since.
            Ok(()) | Err(FaultError::Beyond) => Ok(()),
            Err(FaultError::NoSpace(_)) => Err(Errno::NOSPC),
            Err(FaultError::CannotMap(_)) => Err(Errno::NOMEM),
            Err(error) => {
                tracing::warn!(?error, "pages of a mapped file could not be had");
                Err(Errno::IO)
            }
        }
    }

    /// Who stopped at `page` goes on, if its fault was served; else gets SIGBUS.
    fn finish(&self, page: u64, served: Result<(), FaultError<B::Error>>) {
        let Err(error) = served else { return };
        let is_beyond = matches!(error, FaultError::Beyond);
        let could_not_be_read = matches!(error, FaultError::Read(_) | FaultError::CannotMap(_));
        if could_not_be_read && self.entries.is_mapped(page) {
            // Another thread's fault was luckier.
            self.entries.wake(page);
            return;
        }
        let why = if is_beyond {
            Poison::Beyond
        } else {
            tracing::warn!(page, ?error, "a page of a mapped file could not be had");
            Poison::failed(Instant::now())
        };
        self.entries.poison(page, why, || self.pages_of_file());
        if !is_beyond {
            // It is to be cured in time.
            self.bell.ring();
        }
    }
}
