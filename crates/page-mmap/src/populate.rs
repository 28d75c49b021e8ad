//! Pages that are mapped before anybody touches them.

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::Entry;
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{FaultError, FaultKind, PageRun, WriteBacking};
use rustix::io::Errno;

use crate::fault_source::FaultSource;
use crate::region::{InService, Region, Shared};
use crate::service::{Job, NoThread, Service};

impl<B: WriteBacking, S: FaultSource> Region<B, S> {
    /// Brings those of `pages` that it maps into the cache, and maps them for loads, many at a time, as
    /// if they were loaded from one after the other.
    ///
    /// Takes what [`pagefence_page_cache::MappedRange::fault`] takes.
    ///
    /// # Errors
    /// As that of the first page that could not be had; those before it are mapped.
    pub fn populate(
        &self,
        held: &mut Held<'_, Entry>,
        pages: Range<u64>,
    ) -> Result<(), FaultError<B::Error>> {
        self.shared.populate(held, pages)
    }

    /// Has `pages` populated by the threads of its service, as far as they can be had: a hint, of which
    /// nobody hears how it went, and which the end of the region ends.
    pub fn will_need(&self, pages: Range<u64>) {
        will_need(&self.shared, &self.in_service, &self.service, pages);
    }
}

impl<B: WriteBacking, S: FaultSource> Shared<B, S> {
    pub(crate) fn populate(
        &self,
        held: &mut Held<'_, Entry>,
        pages: Range<u64>,
    ) -> Result<(), FaultError<B::Error>> {
        let mut at = pages.start;
        while let Some(page) = self.entries.next_unmapped(at..pages.end) {
            self.range.fault(held, page, FaultKind::Read)?;
            // Even if it has been unmapped again since: this ends.
            at = page + 1;
        }
        Ok(())
    }
}

/// A run at a time, each behind what waits already: no fault waits for more than one.
pub(crate) fn will_need<B: WriteBacking, S: FaultSource>(
    shared: &Arc<Shared<B, S>>,
    in_service: &Arc<InService>,
    service: &Arc<Service>,
    pages: Range<u64>,
) {
    let (shared, again) = (Arc::clone(shared), Arc::clone(in_service));
    let next_service = Arc::downgrade(service);
    let job: Job = Box::new(move || {
        let end = pages.end.min(pages.start.saturating_add(PageRun::MOST));
        if shared.bell.is_over() || pages.is_empty() {
            return;
        }
        let populated = shared.populate(&mut Held::at_entry(), pages.start..end);
        // The region, which waits for this job, has its service until then: this is not the last.
        if populated.is_ok()
            && let Some(service) = next_service.upgrade()
        {
            will_need(&shared, &again, &service, end..pages.end);
        }
    });
    // Without a thread there is no hint.
    let _ = service.submit(in_service.count_in(job));
}

/// Has `pages` read and mapped, and the program told how that went: a run at a time, each behind what waits
/// already, as far as the file goes, until the region ends.
pub(crate) fn populate_for_program<B: WriteBacking, S: FaultSource>(
    shared: &Arc<Shared<B, S>>,
    in_service: &Arc<InService>,
    service: &Arc<Service>,
    pages: Range<u64>,
) {
    let (shared, again) = (Arc::clone(shared), Arc::clone(in_service));
    let next_service = Arc::downgrade(service);
    let job: Job = Box::new(move || {
        let end = pages.end.min(pages.start.saturating_add(PageRun::MOST));
        let outcome = if shared.bell.is_over() {
            Err(Errno::NOTCONN)
        } else {
            shared.populate_file(pages.start..end)
        };
        let rest = end..pages.end.min(shared.pages_of_file());
        // The region, which waits for this job, has its service until then: this is not the last.
        match next_service.upgrade() {
            Some(service) if outcome.is_ok() && !rest.is_empty() => {
                populate_for_program(&shared, &again, &service, rest);
            }
            _ => shared.entries.source.populated(outcome),
        }
    });
    if let Err(NoThread { job, .. }) = service.submit(in_service.count_in(job)) {
        job();
    }
}
