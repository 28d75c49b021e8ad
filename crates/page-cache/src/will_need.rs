//! Advice that pages of a mapping will be needed (`MADV_WILLNEED`): where there is something to read, and
//! how much of the cache may go to it.
//!
//! A hole has nothing to read, and a page of zeros takes as much of the budget as one of data: it is left
//! to who touches it. Whoever follows advice for a mapping, in a few strands at most, stops when what was
//! brought into the cache so is half of it: more would take the first of these pages out again.

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::Entry;
use pagefence_lock_order::primitives::Mutex;

use crate::backing::{Segment, WriteBacking};
use crate::mapping::{Filler, pages_in};
use crate::rmap::MappedRange;

/// Strands of advice that are followed at once for a mapping.
const MOST: u32 = 4;

/// Advice that is being followed for a mapping.
#[derive(Debug, Default)]
pub(crate) struct Advised(Mutex<Followed>);

#[derive(Debug, Default)]
struct Followed {
    strands: u32,
    /// Brought into the cache since there was none.
    pages: u64,
}

impl Advised {
    fn begin(&self) -> bool {
        let mut followed = self.0.lock();
        if followed.strands == 0 {
            followed.pages = 0;
        }
        let may_begin = followed.strands < MOST;
        followed.strands += u32::from(may_begin);
        may_begin
    }

    fn pages(&self) -> u64 {
        self.0.lock().pages
    }

    fn note(&self, pages: u64) {
        let mut followed = self.0.lock();
        followed.pages = followed.pages.saturating_add(pages);
    }

    fn end(&self) {
        let mut followed = self.0.lock();
        debug_assert!(followed.strands > 0, "ended without a beginning");
        followed.strands = followed.strands.saturating_sub(1);
    }
}

impl<B: WriteBacking> MappedRange<B> {
    /// Whether somebody may begin to follow advice for this mapping: a few at once may. Who was told so
    /// calls [`Self::end_advice`] in the end.
    #[must_use]
    pub fn begin_advice(&self) -> bool {
        self.advised.begin()
    }

    /// Whether who follows advice may have more pages mapped: half the cache is enough, for all who follow
    /// some at the same time.
    #[must_use]
    pub fn may_follow_advice(&self) -> bool {
        let frames = self.mapping.shared().frames();
        let half = u64::try_from(frames / 2).unwrap_or(u64::MAX);
        self.advised.pages() < half
    }

    /// Who follows advice has had `pages` pages mapped.
    pub fn note_advised(&self, pages: u64) {
        self.advised.note(pages);
    }

    /// Who was allowed to follow advice ([`Self::begin_advice`]) has done so.
    pub fn end_advice(&self) {
        self.advised.end();
    }

    /// The first of `pages`, as far as they are of this mapping and of the file, that is in the cache or
    /// has data. Takes the invalidate lock shared, for as long as it takes to look at the holes before it.
    ///
    /// # Errors
    /// The block map can't be read.
    pub fn next_data(
        &self,
        held: &mut Held<'_, Entry>,
        pages: Range<u64>,
    ) -> Result<Option<u64>, B::Error> {
        let mapping = &*self.mapping;
        let (_section, mut held) = mapping.fill_section(held, Filler::Fault);
        let end = pages.end.min(self.pages.end).min(pages_in(mapping.size()));
        let mut at = pages.start.max(self.pages.start);
        while at < end {
            let absent = mapping.pages().absent_run(at, end - at);
            if absent == 0 {
                return Ok(Some(at));
            }
            match mapping.classify(&mut held, at, absent)? {
                (Segment::Data, _) => return Ok(Some(at)),
                (Segment::Hole, pages) => at += pages,
            }
        }
        Ok(None)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn few_follow_advice_at_once_and_share_what_it_may_take() {
        let advised = Advised::default();
        assert!((0..MOST).all(|_| advised.begin()));
        assert!(!advised.begin());
        advised.note(60);
        advised.note(40);
        advised.end();
        assert!(advised.begin(), "one has ended");
        assert_eq!(advised.pages(), 100, "it shares what there is");
        (0..MOST).for_each(|_| advised.end());
        assert!(advised.begin());
        assert_eq!(advised.pages(), 0, "that was another time");
    }
}
