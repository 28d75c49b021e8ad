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

/// Pages in which one run of a hint looks for something to read: 4 GiB. A file may be a hole that is larger
/// than any memory.
const LOOK: u64 = 1 << 20;

impl<B: WriteBacking, S: FaultSource> Region<B, S> {
    /// Brings those of `pages` that it maps into the cache, and maps them for loads, many at a time, as
    /// if they were loaded from one after the other: holes as well, as pages of zeros, each of which is a
    /// page of the cache. Where that has not enough of them, the first have gone again when the last come.
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
    ///
    /// Holes are left out, as there is nothing to read. It is not followed any further when half the cache
    /// has gone to it, nor at all while four others are being followed for this region.
    pub fn will_need(&self, pages: Range<u64>) {
        will_need(&self.shared, &self.in_service, &self.service, pages);
    }
}

/// As [`Region::will_need`].
pub(crate) fn will_need<B: WriteBacking, S: FaultSource>(
    shared: &Arc<Shared<B, S>>,
    in_service: &Arc<InService>,
    service: &Arc<Service>,
    pages: Range<u64>,
) {
    if let Some(strand) = Strand::begin(shared, in_service) {
        strand.go_on(service, pages);
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
            self.entries.source.breathe();
            self.fault(held, page, FaultKind::Read)?;
            // Even if it has been unmapped again since: this ends.
            at = page + 1;
        }
        Ok(())
    }

    /// Populates the first run of `pages` that has data; where to go on. `None` if that is not worth it,
    /// or no use.
    fn populate_data(&self, held: &mut Held<'_, Entry>, pages: Range<u64>) -> Option<u64> {
        let look = pages.start..pages.end.min(pages.start.saturating_add(LOOK));
        let Some(first) = self.range.next_data(held, look.clone()).ok()? else {
            return Some(look.end);
        };
        let end = look.end.min(first.saturating_add(PageRun::MOST));
        let mut at = first;
        while let Some(page) = self.entries.next_unmapped(at..end) {
            let data = self.range.next_data(held, page..end).ok()?;
            if data != Some(page) {
                at = data.unwrap_or(end);
                continue;
            }
            if !self.range.may_follow_advice() {
                return None;
            }
            self.entries.source.breathe();
            self.fault(held, page, FaultKind::Read).ok()?;
            at = page + 1;
            let next = self.entries.next_unmapped(at..end).unwrap_or(end);
            self.range.note_advised(next - page);
        }
        Some(end)
    }
}

/// A hint that is being followed, a run at a time, each behind what waits already: no fault waits for more
/// than one of it.
struct Strand<B: WriteBacking, S: FaultSource> {
    shared: Arc<Shared<B, S>>,
    in_service: Arc<InService>,
}

impl<B: WriteBacking, S: FaultSource> Strand<B, S> {
    fn begin(shared: &Arc<Shared<B, S>>, in_service: &Arc<InService>) -> Option<Self> {
        shared.range.begin_advice().then(|| Self {
            shared: Arc::clone(shared),
            in_service: Arc::clone(in_service),
        })
    }

    fn go_on(self, service: &Arc<Service>, pages: Range<u64>) {
        let next_service = Arc::downgrade(service);
        let in_service = Arc::clone(&self.in_service);
        let job: Job = Box::new(move || {
            if self.shared.bell.is_over() || pages.is_empty() {
                return;
            }
            let next = self
                .shared
                .populate_data(&mut Held::at_entry(), pages.clone());
            // The region, which waits for this job, has its service until then: this is not the last.
            if let Some(next) = next
                && let Some(service) = next_service.upgrade()
            {
                self.go_on(&service, next..pages.end);
            }
        });
        // Without a thread there is no hint.
        let _ = in_service.submit(service, in_service.count_in(job));
    }
}

impl<B: WriteBacking, S: FaultSource> Drop for Strand<B, S> {
    fn drop(&mut self) {
        self.shared.range.end_advice();
    }
}

/// Has `pages` read and mapped, and the program told how that went: a run at a time, each behind what waits
/// already, as far as the file goes, until the region ends.
pub(crate) fn populate_for_program<B: WriteBacking, S: FaultSource>(
    shared: &Arc<Shared<B, S>>,
    in_service: &Arc<InService>,
    service: &Arc<Service>,
    pages: Range<u64>,
) {
    let (own, again) = (Arc::clone(shared), Arc::clone(in_service));
    let next_service = Arc::downgrade(service);
    let job: Job = Box::new(move || {
        let end = pages.end.min(pages.start.saturating_add(PageRun::MOST));
        let outcome = if own.bell.is_over() {
            Err(Errno::NOTCONN)
        } else {
            own.populate_file(pages.start..end)
        };
        let rest = end..pages.end.min(own.pages_of_file());
        // The region, which waits for this job, has its service until then: this is not the last.
        match next_service.upgrade() {
            Some(service) if outcome.is_ok() && !rest.is_empty() => {
                populate_for_program(&own, &again, &service, rest);
            }
            _ => own.entries.source.populated(outcome),
        }
    });
    if let Err(NoThread { error, job }) = in_service.submit(service, in_service.count_in(job)) {
        drop(job);
        tracing::warn!(%error, "no thread to populate a map");
        shared.entries.source.populated(Err(Errno::AGAIN));
    }
}
