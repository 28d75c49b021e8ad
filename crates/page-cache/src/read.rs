//! Reading a file through the cache.

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::Entry;
use pagefence_lock_order::primitives::Arc;

use crate::backing::{Backing, PAGE_SIZE};
use crate::fill::Filled;
use crate::folio::Folio;
use crate::mapping::{Filler, Mapping, PAGE_BYTES};
use crate::memory::have_lost_memory;
use crate::readahead::{Plan, Readahead};

/// Cached pages looked up, pinned and copied at a time.
const LOOKUP_PAGES: u64 = 64;

/// Why a read failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError<E> {
    /// The file system could not read the file's block map or its data.
    #[error("the file's data could not be read: {0:?}")]
    Backing(E),
}

/// What one step of a read found for the bytes at its position.
enum Step {
    /// Pages that are up to date, consecutive, the first one that of the position.
    Pinned,
    /// Zeros, for this many pages.
    Hole(u64),
    /// Nothing: the file ends before.
    End,
}

impl<B: Backing> Mapping<B> {
    /// Reads from byte `offset` into `buffer`; says how many bytes, which is less than asked for
    /// only at the end of the file or before an error. At or past the end it is 0.
    ///
    /// What is cached is copied with no lock held. What is missing is read under the invalidate
    /// lock, shared, from the query of the block map until the pages are up to date (S1.2), as
    /// far as `readahead` says. Holes give zeros and take no memory. Concurrent changes show up
    /// page by page: each page is what it was at some moment during the call.
    ///
    /// `buffer` is touched with no lock held, so faults in it may need this cache (RACES U1, U2). But
    /// a mapped file's bytes are copied by a system call, which finds in such a buffer only what is
    /// mapped: who reads into a map goes through a buffer of his own.
    ///
    /// # Errors
    ///
    /// [`ReadError::Backing`] if nothing could be read before the backing failed. A failure is
    /// not remembered: the next read tries again.
    pub fn read(
        &self,
        held: &mut Held<'_, Entry>,
        readahead: &Readahead,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, ReadError<B::Error>> {
        let size = self.size();
        if offset >= size || buffer.is_empty() {
            return Ok(0);
        }
        let len = buffer
            .len()
            .min(usize::try_from(size - offset).unwrap_or(usize::MAX));
        let end = offset + u64::try_from(len).expect("not more than the size");
        let request = offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES);
        let sequential = readahead.observe(&request);

        let most = (request.end - request.start).min(LOOKUP_PAGES);
        let mut pinned = Vec::with_capacity(usize::try_from(most).expect("few"));
        let mut position = offset;
        while position < end {
            let at = position / PAGE_BYTES;
            let missing = at..request.end;
            pinned.clear();
            let step = match self.find(held, readahead, &request, missing, sequential, &mut pinned)
            {
                Ok(step) => step,
                Err(_) if position > offset => break,
                Err(error) => return Err(ReadError::Backing(error)),
            };
            // The size as it is now that the pages are up to date (S0.12): a file truncated
            // since must not give bytes past its end, and pages past it mean nothing.
            let end = end.min(self.size());
            let pages = match step {
                Step::Pinned => u64::try_from(pinned.len()).expect("few"),
                Step::Hole(pages) => pages,
                Step::End => break,
            };
            let step_end = (at + pages).saturating_mul(PAGE_BYTES).min(end);
            if step_end <= position {
                break;
            }
            let done = usize::try_from(position - offset).expect("inside the buffer");
            let step_len = usize::try_from(step_end - position).expect("inside the buffer");
            let target = &mut buffer[done..done + step_len];
            #[cfg(any(test, feature = "mutants"))]
            self.shared().probe.stop(crate::probe::Stop::Copying);
            match step {
                Step::Pinned => {
                    copy_out(&pinned, position, target);
                    if have_lost_memory(&pinned) {
                        continue;
                    }
                }
                Step::Hole(_) => target.fill(0),
                Step::End => {}
            }
            position = step_end;
        }
        Ok(usize::try_from(position - offset).expect("inside the buffer"))
    }

    /// Finds the first page of `missing`, a part of `request`, and those after it as they come;
    /// in the cache if it is there, else by filling it.
    fn find(
        &self,
        held: &mut Held<'_, Entry>,
        readahead: &Readahead,
        request: &Range<u64>,
        missing: Range<u64>,
        sequential: bool,
        pinned: &mut Vec<Arc<Folio>>,
    ) -> Result<Step, B::Error> {
        // Ends: each turn some filler makes progress or fails, and one that fails reports to its
        // own caller. This one's failure is reported at once (S4.D2).
        loop {
            let limit = (missing.end - missing.start).min(LOOKUP_PAGES);
            let limit = usize::try_from(limit).expect("few");
            self.pages().uptodate_run(missing.start, limit, pinned);
            if !pinned.is_empty() {
                self.note_hits(readahead, request, pinned);
                return Ok(Step::Pinned);
            }
            let plan =
                readahead.on_miss(&self.shared().windows, request, missing.start, sequential);
            let filled = {
                let (_section, mut held) = self.fill_section(held, Filler::Read);
                self.fill(&mut held, missing.clone(), &plan)?
            };
            match filled {
                Filled::Pages { pinned: pages, end } => {
                    self.note_filled(readahead, &plan, request.end, end);
                    *pinned = pages;
                    return Ok(Step::Pinned);
                }
                Filled::Hole { pages } => return Ok(Step::Hole(pages)),
                Filled::PastEnd => return Ok(Step::End),
                Filled::Changed => {}
                Filled::Busy(folio) => self.shared().page_queues.wait_unlocked(&folio),
                Filled::NoFrame => self.shared().wait_for_frame(),
            }
        }
    }

    /// A miss of a request up to page `asked` was filled up to page `end`, as `plan` says; has the
    /// rest of its window read.
    pub(crate) fn note_filled(&self, readahead: &Readahead, plan: &Plan, asked: u64, end: u64) {
        readahead.commit(plan);
        if end < plan.end && end >= asked {
            // The window goes on behind a hole or a page that was there.
            let marker = plan.marker.filter(|&marker| marker >= end);
            self.queue_readahead(end..plan.end, marker);
        }
    }

    /// Tells reclaim that `folios` are in use, and has the next window read if one of them
    /// carries the marker.
    fn note_hits(&self, readahead: &Readahead, request: &Range<u64>, folios: &[Arc<Folio>]) {
        for folio in folios {
            folio.state.note_use();
            if folio.state.take_marker() {
                self.note_marker(readahead, request, folio.index);
            }
        }
    }

    /// `request` came to the marker on page `at`: has the next window read.
    pub(crate) fn note_marker(&self, readahead: &Readahead, request: &Range<u64>, at: u64) {
        if let Some(ahead) = readahead.on_marker(&self.shared().windows, request, at) {
            self.queue_window(readahead, &ahead);
        }
    }
}

/// Copies from `folios`, which are consecutive and start with the page of `position`.
fn copy_out(folios: &[Arc<Folio>], position: u64, target: &mut [u8]) {
    let mut skip = usize::try_from(position % PAGE_BYTES).expect("below the page size");
    let mut rest = target;
    for folio in folios {
        let len = rest.len().min(PAGE_SIZE - skip);
        let (part, after) = rest.split_at_mut(len);
        if let Some(frame) = folio.frame() {
            frame.copy_out(skip, part);
        } else {
            debug_assert!(
                false,
                "only pages that are up to date are pinned for copying"
            );
        }
        rest = after;
        skip = 0;
    }
    debug_assert!(rest.is_empty(), "as many pages as bytes");
}
