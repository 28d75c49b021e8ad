//! The thread that serves a region's faults.

use std::io;
use std::time::Instant;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{FaultError, FaultKind, WriteBacking};

use crate::fault_source::{Cause, FaultSource, Woken};
use crate::region::Shared;
use crate::service::{AbortOnPanic, Job};
use crate::shootdown::Poison;

/// Bytes of a page.
const PAGE_BYTES: u64 = pagefence_page_cache::PAGE_SIZE as u64;

/// Turns of a loop that always has faults to serve, after which it looks for pages to cure.
const CURE_TURNS: u64 = 64;

/// Serves faults of the region of `shared` until its bell says that it is over: at once what is cached;
/// what has to wait is handed to `serve_later`, or else waits in line.
pub(crate) fn serve_faults<B: WriteBacking, S: FaultSource>(
    shared: &Arc<Shared<B, S>>,
    serve_later: impl Fn(Job) -> io::Result<()>,
) {
    let _panic = AbortOnPanic;
    let source = &shared.entries.source;
    let mut stopped = Vec::new();
    let mut next_cure = None;
    for turn in 1_u64.. {
        stopped.clear();
        if let Err(error) = source.read(&mut stopped) {
            panic!("faults of a mapped file can't be served any more: {error}");
        }
        for &cause in &stopped {
            if !shared.serve_at_once(cause) {
                let later = Arc::clone(shared);
                let job = Box::new(move || later.serve(cause));
                if let Err(error) = serve_later(job) {
                    tracing::warn!(%error, "no thread for a fault: the others wait for it");
                    shared.serve(cause);
                }
            }
        }
        if stopped.is_empty() {
            match source.wait(shared.bell.fd(), next_cure) {
                Ok(Woken::Rung) if shared.bell.hear() => return,
                Ok(Woken::Rung | Woken::Faults | Woken::Late) => {}
                Err(error) => panic!("faults of a mapped file can't be waited for: {error}"),
            }
        } else if turn % CURE_TURNS != 0 {
            continue;
        }
        next_cure = shared.entries.cure_failed(Instant::now());
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

    /// False if it would have to wait.
    fn serve_at_once(&self, cause: Cause) -> bool {
        let (page, kind) = (cause.page, self.kind_of(cause));
        let served = self.range.try_fault(&mut Held::at_entry(), page, kind);
        served.is_some_and(|served| {
            self.finish(page, served);
            true
        })
    }

    fn serve(&self, cause: Cause) {
        let (page, kind) = (cause.page, self.kind_of(cause));
        let served = self.range.fault(&mut Held::at_entry(), page, kind);
        self.finish(page, served);
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
        self.entries.poison(page, why, || {
            self.range.mapping().backing().size().div_ceil(PAGE_BYTES)
        });
        if !is_beyond {
            // It is to be cured in time.
            self.bell.ring();
        }
    }
}
