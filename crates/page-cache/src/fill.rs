//! Filling pages: look up the blocks, read them, make the pages up to date, in one unbroken
//! section under the invalidate lock, shared (S1.2). Read and readahead both come here.

use std::ops::Range;

use pagefence_host_memory::FrameMut;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Entry, Invalidate, PageLock};
use pagefence_lock_order::primitives::Arc;

use crate::backing::{Backing, Segment};
use crate::cache::Shared;
use crate::folio::Folio;
use crate::mapping::{Filler, Mapping, PAGE_BYTES, pages_in};
use crate::readahead::Plan;
use crate::readahead_worker::Target;

/// Pages read at a time, at most.
const BATCH_PAGES: u64 = 512;

/// What came of trying to fill the first page of a range.
#[derive(Debug)]
pub(crate) enum Filled {
    /// It and some after it were read, up to page `end`; here are those that were asked for,
    /// pinned, so that reclaim can't undo the progress.
    Pages { pinned: Vec<Arc<Folio>>, end: u64 },
    /// It and those after it, this many in all, read as zeros and are not in the cache.
    Hole { pages: u64 },
    /// It is in the cache by now, or was a moment ago: look again.
    Changed,
    /// Somebody else is filling it: wait with no lock held, then look again (U7).
    Busy(Arc<Folio>),
    /// It lies past the end of the file.
    PastEnd,
    /// No frame is to be had: wait with no lock held, then look again.
    NoFrame,
}

/// New pages, in the index and locked, and the private frames that they will get.
///
/// However it is left (I/O error and panic included), the pages that are not up to date go out of
/// the index before any is unlocked, and every one is unlocked (S1.8, S4.D2).
struct LockedRun<'a> {
    shared: &'a Shared,
    folios: Vec<Arc<Folio>>,
    frames: Vec<FrameMut>,
}

impl<B: Backing> Mapping<B> {
    /// Fills the first page of `request`, and what misses after it up to `plan.end`, if it
    /// holds data. The caller is inside [`Mapping::fill_section`].
    pub(crate) fn fill(
        &self,
        held: &mut Held<'_, Invalidate>,
        request: Range<u64>,
        plan: &Plan,
    ) -> Result<Filled, B::Error> {
        let first = request.start;
        let end = plan.end.min(pages_in(self.size()));
        if first >= end {
            return Ok(Filled::PastEnd);
        }
        if let Some(folio) = self.pages().get(first) {
            return Ok(if folio.is_uptodate() {
                Filled::Changed
            } else {
                Filled::Busy(folio)
            });
        }
        // The cache goes before the block map: a page may be cached over a hole.
        let absent = self.pages().absent_run(first, end - first);
        if absent == 0 {
            return Ok(Filled::Changed);
        }
        let found = self.classify(held, first, absent)?;
        #[cfg(any(test, feature = "mutants"))]
        self.shared().probe.stop(crate::probe::Stop::LookedUp);
        match found {
            (Segment::Hole, pages) => Ok(Filled::Hole { pages }),
            (Segment::Data, pages) => {
                self.fill_data(held, first..first + pages, request.end, plan.marker)
            }
        }
    }

    /// Whether page `first` is a hole in full or has data, and for how many pages, `most` at
    /// most, that goes on.
    pub(crate) fn classify(
        &self,
        held: &mut Held<'_, Invalidate>,
        first: u64,
        most: u64,
    ) -> Result<(Segment, u64), B::Error> {
        let start = first * PAGE_BYTES;
        let end = (first + most).saturating_mul(PAGE_BYTES);
        let (mut kind, mut at) = (None, start);
        // From here on, `start..at` is all of `kind` as far as whole pages go: data reaches to
        // the end of the page that it touches, a hole ends before it.
        while at < end {
            let (segment, len) = self.backing().segment(held, at)?;
            debug_assert_ne!(len, 0, "a segment of no bytes");
            let next = at.saturating_add(len.max(1)).min(end);
            match (kind, segment) {
                (None | Some(Segment::Hole), Segment::Hole) => at = next,
                (None, Segment::Data) => at = next.next_multiple_of(PAGE_BYTES),
                (Some(Segment::Hole), Segment::Data) if at - start < PAGE_BYTES => {
                    // The first page has both: data.
                    kind = Some(Segment::Data);
                    at = next.next_multiple_of(PAGE_BYTES);
                    continue;
                }
                (Some(Segment::Hole), Segment::Data) => break,
                (Some(Segment::Data), Segment::Data) => at = next.next_multiple_of(PAGE_BYTES),
                // `at` is a page boundary: a hole of a page or more ends the run of data, and a
                // smaller one leaves it to the next segment what the page is.
                (Some(Segment::Data), Segment::Hole) => break,
            }
            kind = kind.or(Some(segment));
        }
        let pages = match kind {
            Some(Segment::Data) => (at - start).div_ceil(PAGE_BYTES),
            _ => (at - start) / PAGE_BYTES,
        };
        debug_assert!((1..=most).contains(&pages), "a page is one or the other");
        Ok((kind.unwrap_or(Segment::Hole), pages))
    }

    /// Reads the absent pages `run`, as many as there are frames for; those from `asked_end` on
    /// are read ahead of need.
    pub(crate) fn fill_data(
        &self,
        held: &mut Held<'_, Invalidate>,
        run: Range<u64>,
        asked_end: u64,
        marker: Option<u64>,
    ) -> Result<Filled, B::Error> {
        let shared: &Shared = self.shared();
        let count = usize::try_from((run.end - run.start).min(BATCH_PAGES)).expect("few");
        let frames = shared.allocate(count);
        if frames.is_empty() {
            return Ok(Filled::NoFrame);
        }
        let folios = (run.start..)
            .take(frames.len())
            .map(|index| Arc::new(Folio::locked(self.pages(), index, index >= asked_end)))
            .collect();
        let Some(mut run) = LockedRun::insert(shared, folios, frames) else {
            return Ok(Filled::Changed);
        };
        let (first, end) = run.span();
        if let Some(marked) = marker
            .map(|marker| marker.max(first))
            .filter(|&at| at < end)
        {
            run.folio(marked - first).state.set_marker();
        }
        #[cfg(test)]
        let shadows = run.publish_first(shared);
        {
            let (_rank, mut held) = held.descend::<PageLock>(end - 1);
            self.backing()
                .read_pages(&mut held, first, &mut run.frames)?;
        }
        let asked = asked_end.clamp(first, end) - first;
        let pinned = run.folios[..usize::try_from(asked).expect("few")].to_vec();
        #[cfg(test)]
        if shadows {
            run.fill_published();
            return Ok(Filled::Pages { pinned, end });
        }
        run.publish();
        Ok(Filled::Pages { pinned, end })
    }
}

impl<B: Backing> Target for Mapping<B> {
    fn read_ahead(&self, held: &mut Held<'_, Entry>, range: Range<u64>, marker: Option<u64>) {
        let (_section, mut held) = self.fill_section(held, Filler::Readahead);
        let mut marker = marker;
        let mut at = range.start;
        loop {
            let end = range.end.min(pages_in(self.size()));
            if at >= end {
                return;
            }
            let absent = self.pages().absent_run(at, end - at);
            if absent == 0 {
                at += 1;
                continue;
            }
            let filled = match self.classify(&mut held, at, absent) {
                Ok((Segment::Hole, pages)) => {
                    at += pages;
                    continue;
                }
                Ok((Segment::Data, pages)) => self.fill_data(&mut held, at..at + pages, at, marker),
                Err(_) => return,
            };
            match filled {
                Ok(Filled::Pages { end, .. }) => {
                    marker = marker.filter(|&marker| marker >= end);
                    at = end;
                }
                Ok(Filled::Changed) => {}
                // Not worth a wait, nor a second try: nobody asked.
                _ => return,
            }
        }
    }
}

impl<'a> LockedRun<'a> {
    /// Inserts `folios` up to the first whose place is taken (EEXIST of S1.8); `None` if that is
    /// the first one.
    fn insert(
        shared: &'a Shared,
        mut folios: Vec<Arc<Folio>>,
        mut frames: Vec<FrameMut>,
    ) -> Option<Self> {
        let inserted = folios.first()?.pages.insert_absent(&folios);
        // What found its place taken was seen by nobody. Its frames go back before the others
        // are waited for.
        folios.truncate(inserted);
        frames.truncate(inserted);
        shared.frame_events.notify();
        (inserted != 0).then_some(Self {
            shared,
            folios,
            frames,
        })
    }

    /// First page, and the one after the last.
    fn span(&self) -> (u64, u64) {
        let ends = self.folios.first().zip(self.folios.last());
        ends.map_or((0, 0), |(first, last)| (first.index, last.index + 1))
    }

    fn folio(&self, at: u64) -> &Arc<Folio> {
        &self.folios[usize::try_from(at).expect("few")]
    }

    /// Makes every page up to date and unlocks them.
    fn publish(mut self) {
        Folio::publish_run(&self.folios, std::mem::take(&mut self.frames));
    }

    /// The mutant: readers see the pages, of zeros, before they are read.
    #[cfg(test)]
    fn publish_first(&self, shared: &Shared) -> bool {
        if !shared.mutants.publish_first {
            return false;
        }
        let mut early = shared.allocate(self.folios.len());
        assert_eq!(
            early.len(),
            self.folios.len(),
            "give the mutant more memory"
        );
        for (folio, mut frame) in self.folios.iter().zip(early.drain(..)) {
            frame.fill(0);
            folio.publish(frame);
        }
        true
    }

    #[cfg(test)]
    fn fill_published(self) {
        for (folio, frame) in self.folios.iter().zip(&self.frames) {
            folio
                .frame()
                .expect("published")
                .copy_in(0, frame.as_slice());
        }
    }
}

impl Drop for LockedRun<'_> {
    fn drop(&mut self) {
        self.frames.clear();
        let failed = || self.folios.iter().filter(|folio| !folio.is_uptodate());
        if let Some(folio) = failed().next() {
            folio.pages.remove(failed());
        }
        for folio in &self.folios {
            self.shared.page_queues.unlock(folio);
        }
        self.shared.frame_events.notify();
    }
}
