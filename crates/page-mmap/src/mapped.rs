//! Which pages of a view may be mapped: for how much to map along with a fault, and for whom to ask.

use std::ops::Range;

use pagefence_lock_order::primitives::RwLock;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_page_cache::PageRun;

const BITS: u64 = 64;

/// Pages after one that follows mapped ones.
const STEP: u64 = 64;

/// Words that are made together, when the first of their pages is mapped: a view may be of a file of holes
/// that is larger than any memory.
const LEAF_WORDS: usize = 512;

/// Pages of a leaf.
const LEAF: u64 = LEAF_WORDS as u64 * BITS;

/// A bit a page of the view. The kernel may unmap what is set here, which costs no more than a fault; what is not
/// set is not mapped.
#[derive(Debug)]
pub(crate) struct MappedPages {
    first: u64,
    end: u64,
    leaves: Box<[Leaf]>,
}

/// The words of a part of the view; none while nothing of it was ever mapped.
type Leaf = RwLock<Option<Box<[AtomicU64; LEAF_WORDS]>>>;

impl MappedPages {
    /// None of `pages` is mapped.
    pub(crate) fn none_of(pages: &Range<u64>) -> Self {
        let leaves = (pages.end - pages.start).div_ceil(LEAF);
        Self {
            first: pages.start,
            end: pages.end,
            leaves: (0..leaves).map(|_| Leaf::default()).collect(),
        }
    }

    pub(crate) fn set(&self, pages: &Range<u64>) {
        self.each_leaf(pages, |leaf, pages| {
            if leaf.read().is_none() {
                let new = || Box::new([const { AtomicU64::new(0) }; LEAF_WORDS]);
                leaf.write().get_or_insert_with(new);
            }
            if let Some(words) = &*leaf.read() {
                each_word(words, pages, |word, bits| {
                    word.fetch_or(bits, Ordering::Relaxed);
                });
            }
        });
    }

    pub(crate) fn clear(&self, pages: &Range<u64>) {
        self.each_leaf(pages, |leaf, pages| {
            if let Some(words) = &*leaf.read() {
                each_word(words, pages, |word, bits| {
                    // Look first: most ranges that are unmapped have nothing mapped.
                    if word.load(Ordering::Relaxed) & bits != 0 {
                        word.fetch_and(!bits, Ordering::Relaxed);
                    }
                });
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
            let start = page / PageRun::BLOCK * PageRun::BLOCK;
            (start, start.saturating_add(PageRun::BLOCK))
        };
        let (low, high) = (start.max(self.first), end.min(self.end));
        let start = (low..page).rev().take_while(|&at| !self.has(at)).last();
        let end = self.next_mapped(page + 1..high).unwrap_or(high);
        start.unwrap_or(page)..end.max(page + 1)
    }

    fn has(&self, page: u64) -> bool {
        self.word(page) & 1 << ((page - self.first) % BITS) != 0
    }

    /// The first of `pages` that is not mapped; none of those that are not of the view.
    pub(crate) fn next_unmapped(&self, pages: Range<u64>) -> Option<u64> {
        self.next(pages, |word| !word)
    }

    /// The first of `pages` that is mapped.
    pub(crate) fn next_mapped(&self, pages: Range<u64>) -> Option<u64> {
        self.next(pages, |word| word)
    }

    /// The first of `pages` whose bit is set in what `look` makes of its word.
    fn next(&self, pages: Range<u64>, look: impl Fn(u64) -> u64) -> Option<u64> {
        let mut at = pages.start.max(self.first);
        let end = pages.end.min(self.end);
        while at < end {
            let bit = (at - self.first) % BITS;
            let rest = look(self.word(at)) & u64::MAX << bit;
            if rest != 0 {
                let found = at - bit + u64::from(rest.trailing_zeros());
                return (found < end).then_some(found);
            }
            at += BITS - bit;
        }
        None
    }

    /// The word of `page`.
    fn word(&self, page: u64) -> u64 {
        let (leaf, word) = place(page - self.first);
        let words = self.leaves[leaf].read();
        words
            .as_ref()
            .map_or(0, |words| words[word].load(Ordering::Relaxed))
    }

    /// Calls `what` for each leaf that `pages` touch, with those of its pages, counted from its first.
    fn each_leaf(&self, pages: &Range<u64>, what: impl Fn(&Leaf, Range<u64>)) {
        let start = pages.start.clamp(self.first, self.end) - self.first;
        let end = pages.end.clamp(self.first, self.end) - self.first;
        let mut at = start;
        while at < end {
            let base = at / LEAF * LEAF;
            let stop = end.min(base + LEAF);
            let (leaf, _) = place(at);
            what(&self.leaves[leaf], at - base..stop - base);
            at = stop;
        }
    }
}

/// Calls `what` for each of `words` that `pages` touch, with their bits.
fn each_word(words: &[AtomicU64; LEAF_WORDS], pages: Range<u64>, what: impl Fn(&AtomicU64, u64)) {
    let mut at = pages.start;
    while at < pages.end {
        let bit = at % BITS;
        let count = (BITS - bit).min(pages.end - at);
        let (_, word) = place(at);
        what(&words[word], u64::MAX >> (BITS - count) << bit);
        at += count;
    }
}

/// The leaf of page `at` of a view, and its word there.
fn place(at: u64) -> (usize, usize) {
    let index = |value: u64| usize::try_from(value).expect("a view fits into the address space");
    (index(at / LEAF), index(at % LEAF / BITS))
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
    fn a_view_of_holes_costs_next_to_nothing_and_leaves_meet() {
        let pages = MappedPages::none_of(&(0..1 << 32));
        pages.clear(&(0..u64::MAX));
        pages.set(&(LEAF - 2..LEAF + 3));
        assert_eq!(pages.next_mapped(0..u64::MAX), Some(LEAF - 2));
        assert_eq!(pages.next_unmapped(LEAF - 2..u64::MAX), Some(LEAF + 3));
        let made = pages.leaves.iter().filter(|leaf| leaf.read().is_some());
        assert_eq!(made.count(), 2);
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
