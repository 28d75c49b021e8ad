//! Which pages of a view are mapped: a hint, for how much to map along with a fault.

use std::ops::Range;

use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_page_cache::PageRun;

const BITS: u64 = 64;

/// Neighbours that are mapped along with a page that nothing hints at. A power of two.
const BLOCK: u64 = 16;

/// Pages after one that follows mapped ones.
const STEP: u64 = 64;

/// A bit a page of the view. The kernel may unmap what is set here, which costs no more than a fault.
#[derive(Debug)]
pub(crate) struct MappedPages {
    first: u64,
    end: u64,
    words: Box<[AtomicU64]>,
}

impl MappedPages {
    /// None of `pages` is mapped.
    pub(crate) fn none_of(pages: &Range<u64>) -> Self {
        let words = (pages.end - pages.start).div_ceil(BITS);
        Self {
            first: pages.start,
            end: pages.end,
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(crate) fn set(&self, pages: &Range<u64>) {
        self.each_word(pages, |word, bits| {
            _ = word.fetch_or(bits, Ordering::Relaxed)
        });
    }

    pub(crate) fn clear(&self, pages: &Range<u64>) {
        self.each_word(pages, |word, bits| {
            // Look first: most ranges that are unmapped have nothing mapped.
            if word.load(Ordering::Relaxed) & bits != 0 {
                word.fetch_and(!bits, Ordering::Relaxed);
            }
        });
    }

    /// The pages that are worth mapping along with `page`, which is not mapped: where pages were mapped
    /// up to it, those that follow it; else its block. None that is mapped.
    pub(crate) fn around(&self, page: u64) -> Range<u64> {
        let is_mapped = |before: u64| {
            let at = page.checked_sub(before);
            at.is_some_and(|at| at >= self.first && self.has(at))
        };
        let (start, end) = if is_mapped(1) {
            let step = if is_mapped(STEP) { PageRun::MOST } else { STEP };
            (page, page.saturating_add(step))
        } else {
            let start = page / BLOCK * BLOCK;
            (start, start.saturating_add(BLOCK))
        };
        let (low, high) = (start.max(self.first), end.min(self.end));
        let start = (low..page).rev().take_while(|&at| !self.has(at)).last();
        let end = self.next_mapped(page + 1..high).unwrap_or(high);
        start.unwrap_or(page)..end.max(page + 1)
    }

    fn has(&self, page: u64) -> bool {
        let (word, bit) = self.place(page);
        self.words[word].load(Ordering::Relaxed) & bit != 0
    }

    /// The first of `pages` that is not mapped; none of those that are not of the view.
    pub(crate) fn next_unmapped(&self, pages: Range<u64>) -> Option<u64> {
        let mut at = pages.start.max(self.first);
        let end = pages.end.min(self.end);
        while at < end {
            let (word, bit) = self.place(at);
            let free = !self.words[word].load(Ordering::Relaxed) & !(bit - 1);
            if free != 0 {
                let found = at - (at - self.first) % BITS + u64::from(free.trailing_zeros());
                return (found < end).then_some(found);
            }
            at += BITS - (at - self.first) % BITS;
        }
        None
    }

    /// The first of `pages` that is mapped.
    fn next_mapped(&self, pages: Range<u64>) -> Option<u64> {
        let mut at = pages.start;
        while at < pages.end {
            let (word, bit) = self.place(at);
            let rest = self.words[word].load(Ordering::Relaxed) & !(bit - 1);
            if rest != 0 {
                let found = at - (at - self.first) % BITS + u64::from(rest.trailing_zeros());
                return (found < pages.end).then_some(found);
            }
            at += BITS - (at - self.first) % BITS;
        }
        None
    }

    fn each_word(&self, pages: &Range<u64>, what: impl Fn(&AtomicU64, u64)) {
        let mut at = pages.start.max(self.first);
        let end = pages.end.min(self.end);
        while at < end {
            let offset = (at - self.first) % BITS;
            let count = (BITS - offset).min(end - at);
            let (word, _) = self.place(at);
            what(&self.words[word], u64::MAX >> (BITS - count) << offset);
            at += count;
        }
    }

    fn place(&self, page: u64) -> (usize, u64) {
        let at = page - self.first;
        let word = usize::try_from(at / BITS).expect("a view fits into memory");
        (word, 1 << (at % BITS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pages: Range<u64>, mapped: &[(u64, u64)]) -> MappedPages {
        let of = MappedPages::none_of(&pages);
        mapped
            .iter()
            .for_each(|&(start, end)| of.set(&(start..end)));
        of
    }

    #[test]
    fn a_lone_fault_takes_its_block() {
        assert_eq!(of(0..100, &[]).around(20), 16..32);
        assert_eq!(of(0..100, &[]).around(99), 96..100);
        assert_eq!(of(18..30, &[]).around(20), 18..30);
        assert_eq!(of(0..1, &[]).around(0), 0..1);
    }

    #[test]
    fn what_is_mapped_is_left_out() {
        assert_eq!(of(0..100, &[(16, 18), (25, 26)]).around(20), 18..25);
        assert_eq!(of(0..100, &[(21, 22), (40, 50)]).around(20), 16..21);
    }

    #[test]
    fn who_goes_on_takes_ever_more() {
        assert_eq!(of(0..10_000, &[(0, 16)]).around(16), 16..80);
        assert_eq!(of(0..10_000, &[(0, 80)]).around(80), 80..592);
        assert_eq!(of(0..100, &[(0, 80)]).around(80), 80..100);
        assert_eq!(of(0..10_000, &[(0, 80), (300, 301)]).around(80), 80..300);
        assert_eq!(of(64..10_000, &[(64, 128)]).around(128), 128..640);
    }

    #[test]
    fn bits_are_set_and_cleared_across_words() {
        let pages = of(3..1000, &[(10, 500)]);
        pages.clear(&(0..200));
        pages.clear(&(300..u64::MAX));
        let mapped: Vec<u64> = (3..1000).filter(|&page| pages.has(page)).collect();
        assert_eq!(mapped, (200..300).collect::<Vec<_>>());
        assert_eq!(pages.next_unmapped(0..u64::MAX), Some(3));
        assert_eq!(pages.next_unmapped(200..300), None);
        assert_eq!(pages.next_unmapped(200..301), Some(300));
        assert_eq!(pages.next_unmapped(1000..2000), None);
        assert_eq!(pages.next_mapped(3..200), None);
        assert_eq!(pages.next_mapped(3..201), Some(200));
        assert_eq!(pages.next_mapped(250..1000), Some(250));
        assert_eq!(pages.next_mapped(300..1000), None);
    }
}
