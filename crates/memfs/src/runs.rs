//! A set of page numbers, kept as runs.

use std::collections::BTreeMap;
use std::ops::Range;

/// The set. No two runs touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    /// Start of a run to its end.
    runs: BTreeMap<u64, u64>,
}

impl Runs {
    /// The first run that overlaps `range`.
    fn overlapping(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let before = self.runs.range(..range.start).next_back();
        let before = before.filter(|(_, end)| **end > range.start);
        let run = before.or_else(|| self.runs.range(range.clone()).next());
        run.map(|(start, end)| *start..*end)
    }

    /// How many of `range` are not in the set.
    pub(crate) fn missing(&self, range: &Range<u64>) -> u64 {
        let mut missing = 0;
        let mut at = range.start;
        while at < range.end {
            let run = self.overlapping(&(at..range.end));
            let (start, end) = run.map_or((range.end, range.end), |run| {
                (run.start.max(at), run.end.min(range.end))
            });
            missing += start - at;
            at = end;
        }
        missing
    }

    /// Puts all of `range` in.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &its_end)) = self.runs.range(..start).next_back()
            && its_end >= start
        {
            start = before;
            end = end.max(its_end);
        }
        // What begins inside it or where it ends.
        while let Some((&next, &its_end)) = self.runs.range(start..=end).next() {
            end = end.max(its_end);
            self.runs.remove(&next);
        }
        self.runs.insert(start, end);
    }

    /// Takes all of `range` out; says how many there were.
    pub(crate) fn remove(&mut self, range: Range<u64>) -> u64 {
        let mut removed = 0;
        while let Some(run) = self.overlapping(&range).filter(|_| !range.is_empty()) {
            self.runs.remove(&run.start);
            let inside = run.start.max(range.start)..run.end.min(range.end);
            removed += inside.end - inside.start;
            if run.start < inside.start {
                self.runs.insert(run.start, inside.start);
            }
            if inside.end < run.end {
                self.runs.insert(inside.end, run.end);
            }
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::Runs;

    #[test]
    fn runs_that_touch_are_one() {
        let mut runs = Runs::default();
        runs.insert(0..4);
        runs.insert(8..12);
        runs.insert(4..8);
        assert_eq!(runs.runs.len(), 1);
        assert_eq!(runs.remove(2..3), 1);
        assert_eq!(runs.runs.len(), 2);
        assert_eq!(runs.missing(&(0..20)), 9);
    }

    proptest! {
        #[test]
        fn is_a_set(steps in prop::collection::vec((any::<bool>(), 0_u64..60, 0_u64..20), 0..40)) {
            let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
            for (is_insert, start, length) in steps {
                let range = start..start + length;
                let present = set.range(range.clone()).count() as u64;
                prop_assert_eq!(runs.missing(&range), length - present);
                if is_insert {
                    runs.insert(range.clone());
                    set.extend(range);
                } else {
                    prop_assert_eq!(runs.remove(range.clone()), present);
                    set.retain(|page| !range.contains(page));
                }
                let flat: Vec<u64> = runs.runs.iter().flat_map(|(start, end)| *start..*end).collect();
                prop_assert_eq!(flat, set.iter().copied().collect::<Vec<_>>());
                let touch = runs.runs.iter().zip(runs.runs.keys().skip(1));
                prop_assert!(touch.into_iter().all(|((_, end), next)| end < next));
            }
        }
    }
}
