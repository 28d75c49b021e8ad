//! Which pages of a file are dirty or under writeback: an index for those who look for them.
//!
//! The truth about one page is in its state word; this says where to look. Both change under the
//! page lock, except at the end of writeback, when the index goes first. The lock is a leaf, and
//! only who writes takes it: readers never come here.

use std::collections::BTreeMap;
use std::ops::Range;

use pagefence_lock_order::primitives::Mutex;

/// Pages of one word of the index.
const WORD: u64 = 64;

/// The dirty pages of one mapping.
#[derive(Debug, Default)]
pub(crate) struct DirtyIndex(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By page / 64; no entry without a bit.
    words: BTreeMap<u64, Word>,
    dirty: usize,
    writeback: usize,
    /// The flusher knows of this mapping.
    listed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Word {
    dirty: u64,
    writeback: u64,
}

/// Bytes of an entry.
#[cfg(not(shuttle))]
pub(crate) const ENTRY: usize = size_of::<(u64, Word)>();

/// How many pages a mapping has of each kind. A page may be both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) dirty: usize,
    pub(crate) writeback: usize,
}

impl DirtyIndex {
    /// Pages `pages` became dirty, each of which was not.
    pub(crate) fn add(&self, pages: impl Iterator<Item = u64>) {
        let state = &mut *self.0.lock();
        for page in pages {
            let (key, bit) = split(page);
            let word = state.words.entry(key).or_default();
            debug_assert_eq!(word.dirty & bit, 0, "page {page} was dirty");
            word.dirty |= bit;
            state.dirty += 1;
        }
    }

    /// Page `page` is no longer dirty, though nobody wrote it.
    pub(crate) fn remove(&self, page: u64) {
        let state = &mut *self.0.lock();
        let (key, bit) = split(page);
        if let Some(word) = state.words.get_mut(&key) {
            debug_assert_ne!(word.dirty & bit, 0, "page {page} was not dirty");
            word.dirty &= !bit;
            state.dirty -= 1;
        }
        state.prune(key..=key);
    }

    /// The dirty pages `pages` are under writeback from now on.
    pub(crate) fn begin_writeback(&self, pages: Range<u64>) {
        let state = &mut *self.0.lock();
        for (key, bits) in words(pages) {
            let word = state.words.entry(key).or_default();
            debug_assert_eq!((word.dirty & bits, word.writeback & bits), (bits, 0));
            word.dirty &= !bits;
            word.writeback |= bits;
            let count = usize::try_from(bits.count_ones()).expect("at most 64");
            state.dirty -= count;
            state.writeback += count;
        }
    }

    /// Pages `pages` are written.
    pub(crate) fn end_writeback(&self, pages: Range<u64>) {
        let state = &mut *self.0.lock();
        for (key, bits) in words(pages.clone()) {
            if let Some(word) = state.words.get_mut(&key) {
                debug_assert_eq!(word.writeback & bits, bits);
                word.writeback &= !bits;
            }
            state.writeback -= usize::try_from(bits.count_ones()).expect("at most 64");
        }
        if !pages.is_empty() {
            state.prune(split(pages.start).0..=split(pages.end - 1).0);
        }
    }

    /// The first run of dirty pages in `range`, `most` pages at most.
    pub(crate) fn next_dirty(&self, range: Range<u64>, most: u64) -> Option<Range<u64>> {
        let state = self.0.lock();
        let start = state.next(range.clone(), |word| word.dirty)?;
        let limit = range.end.min(start.saturating_add(most));
        let mut end = start + 1;
        while end < limit {
            let (key, bit) = split(end);
            let dirty = state.words.get(&key).map_or(0, |word| word.dirty);
            // From `end` on to the end of its word.
            let run = u64::from((dirty >> bit.trailing_zeros()).trailing_ones());
            end = (end + run).min(limit);
            if run == 0 || end % WORD != 0 {
                break;
            }
        }
        Some(start..end)
    }

    /// The first page in `range` that is under writeback.
    pub(crate) fn next_writeback(&self, range: Range<u64>) -> Option<u64> {
        self.0.lock().next(range, |word| word.writeback)
    }

    /// The first page in `range` that is dirty or under writeback.
    pub(crate) fn next_unclean(&self, range: Range<u64>) -> Option<u64> {
        self.0
            .lock()
            .next(range, |word| word.dirty | word.writeback)
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = self.0.lock();
        Counts {
            dirty: state.dirty,
            writeback: state.writeback,
        }
    }

    /// Whether the flusher is to be told of this mapping: it has dirty pages, and the flusher
    /// doesn't know.
    pub(crate) fn is_unknown(&self) -> bool {
        self.0.lock().is_unknown()
    }

    /// The same, and if so the flusher knows from now on: it asks, with its list locked.
    pub(crate) fn enlist(&self) -> bool {
        let mut state = self.0.lock();
        let enlist = state.is_unknown();
        state.listed |= enlist;
        enlist
    }

    /// Whether the flusher may forget this mapping: all of it is clean.
    pub(crate) fn delist(&self) -> bool {
        let mut state = self.0.lock();
        state.listed = state.dirty + state.writeback > 0;
        !state.listed
    }

    /// Forgets everything; says what there was.
    pub(crate) fn clear(&self) -> Counts {
        let state = std::mem::take(&mut *self.0.lock());
        Counts {
            dirty: state.dirty,
            writeback: state.writeback,
        }
    }
}

impl State {
    fn is_unknown(&self) -> bool {
        self.dirty > 0 && !self.listed
    }

    fn next(&self, range: Range<u64>, kind: impl Fn(&Word) -> u64) -> Option<u64> {
        if range.is_empty() {
            return None;
        }
        let (first, last) = (split(range.start).0, split(range.end - 1).0);
        self.words.range(first..=last).find_map(|(&key, word)| {
            let skipped = range.start.saturating_sub(key * WORD).min(WORD - 1);
            let bits = kind(word) & u64::MAX << skipped;
            let page = key * WORD + u64::from(bits.trailing_zeros());
            (bits != 0 && page < range.end).then_some(page)
        })
    }

    /// Drops the words among `keys` that say nothing.
    fn prune(&mut self, keys: std::ops::RangeInclusive<u64>) {
        for key in keys {
            if let Some(word) = self.words.get(&key)
                && word.dirty | word.writeback == 0
            {
                self.words.remove(&key);
            }
        }
    }
}

/// The word of a page and its bit there.
fn split(page: u64) -> (u64, u64) {
    (page / WORD, 1 << (page % WORD))
}

/// The words that `pages` lie in, each with their bits there.
fn words(pages: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let (first, last) = (pages.start / WORD, pages.end.div_ceil(WORD));
    let last = if pages.is_empty() { first } else { last };
    (first..last).map(move |key| {
        let from = pages.start.max(key * WORD) - key * WORD;
        let count = pages.end.min((key + 1) * WORD) - key * WORD - from;
        (key, u64::MAX >> (WORD - count) << from)
    })
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::{Counts, DirtyIndex, words};

    #[test]
    fn words_of_a_range() {
        assert_eq!(words(3..3).count(), 0);
        assert_eq!(words(0..64).collect::<Vec<_>>(), [(0, u64::MAX)]);
        assert_eq!(words(63..66).collect::<Vec<_>>(), [(0, 1 << 63), (1, 3)]);
        assert_eq!(words(70..71).collect::<Vec<_>>(), [(1, 1 << 6)]);
    }

    #[test]
    fn runs_are_found_across_words_and_bounded() {
        let index = DirtyIndex::default();
        index.add((60..130).chain([200]));
        assert_eq!(index.next_dirty(0..1000, 1000), Some(60..130));
        assert_eq!(index.next_dirty(0..1000, 5), Some(60..65));
        assert_eq!(index.next_dirty(62..100, 1000), Some(62..100));
        assert_eq!(index.next_dirty(0..60, 1000), None);
        assert_eq!(index.next_dirty(130..u64::MAX, 1000), Some(200..201));
        assert_eq!(index.next_dirty(201..u64::MAX, 1000), None);
        assert_eq!(index.next_dirty(9..9, 1000), None);
    }

    #[test]
    fn pages_go_from_dirty_to_writeback_to_clean() {
        let index = DirtyIndex::default();
        index.add(10..20);
        index.begin_writeback(12..15);
        assert_eq!(index.next_dirty(10..20, 100), Some(10..12));
        assert_eq!(index.next_dirty(12..20, 100), Some(15..20));
        assert_eq!(index.next_writeback(0..100), Some(12));
        assert_eq!(index.next_unclean(11..100), Some(11));
        index.add([13].into_iter());
        let counts = |dirty, writeback| Counts { dirty, writeback };
        assert_eq!(index.counts(), counts(8, 3));
        index.end_writeback(12..15);
        assert_eq!(index.next_writeback(0..100), None);
        assert_eq!(index.next_dirty(12..15, 100), Some(13..14));
        (10..12)
            .chain([13])
            .chain(15..20)
            .for_each(|page| index.remove(page));
        assert_eq!(index.counts(), counts(0, 0));
        assert!(index.0.lock().words.is_empty(), "nothing is kept");
    }

    #[test]
    fn the_flusher_is_told_once() {
        let index = DirtyIndex::default();
        assert!(!index.enlist(), "clean");
        index.add(0..1);
        assert!(index.enlist());
        assert!(!index.enlist(), "known");
        assert!(!index.delist(), "dirty");
        index.begin_writeback(0..1);
        assert!(!index.delist(), "not written yet");
        index.end_writeback(0..1);
        assert!(index.delist());
        index.add(0..1);
        assert!(index.enlist());
    }
}
