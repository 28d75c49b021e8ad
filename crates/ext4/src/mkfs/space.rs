//! Which blocks are in use, as runs: a new file system has few, however large it is.

use std::collections::BTreeMap;
use std::ops::Range;

/// The blocks in use. Invariant: runs are not empty, do not overlap and do not touch.
#[derive(Clone, Debug, Default)]
pub(super) struct UsedBlocks {
    /// Start of each run, and its end.
    runs: BTreeMap<u64, u64>,
    count: u64,
}

impl UsedBlocks {
    /// Blocks in use.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Takes blocks that are free.
    pub(super) fn mark(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        debug_assert_eq!(self.count_in(&blocks), 0, "blocks are taken once");
        self.count += blocks.end - blocks.start;
        let Range { mut start, mut end } = blocks;
        if let Some((before, before_end)) = self.run_before(start)
            && before_end == start
        {
            self.runs.remove(&before);
            start = before;
        }
        if let Some(after_end) = self.runs.remove(&end) {
            end = after_end;
        }
        self.runs.insert(start, end);
    }

    /// The runs in use within `range`, cut to it, in order.
    pub(super) fn runs_in(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let range = range.clone();
        let first = self
            .run_before(range.start)
            .map_or(range.start, |(start, _)| start);
        self.runs
            .range(first..range.end.max(first))
            .map(move |(start, end)| (*start).max(range.start)..(*end).min(range.end))
            .filter(|run| !run.is_empty())
    }

    /// Blocks in use within `range`.
    pub(super) fn count_in(&self, range: &Range<u64>) -> u64 {
        self.runs_in(range).map(|run| run.end - run.start).sum()
    }

    /// The first free run that starts within `range`, cut to it.
    pub(super) fn next_free(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let mut start = range.start;
        if let Some((_, end)) = self.run_before(start + 1) {
            start = start.max(end);
        }
        let end = self
            .runs
            .range(start..)
            .next()
            .map_or(range.end, |(next, _)| *next);
        let free = start..end.min(range.end);
        (!free.is_empty()).then_some(free)
    }

    /// The first place within `range` where `count` blocks in a row are free.
    pub(super) fn find(&self, range: &Range<u64>, count: u64) -> Option<u64> {
        let mut rest = range.clone();
        while let Some(free) = self.next_free(&rest) {
            if free.end - free.start >= count {
                return Some(free.start);
            }
            rest.start = free.end;
        }
        None
    }

    /// The run that starts last before `block`.
    fn run_before(&self, block: u64) -> Option<(u64, u64)> {
        let (start, end) = self.runs.range(..block).next_back()?;
        Some((*start, *end))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_agree_with_a_bitmap(
            marks in proptest::collection::vec((0_u64..200, 1_u64..20), 0..40),
            query in (0_u64..220, 0_u64..80),
            count in 1_u64..30,
        ) {
            let mut used = UsedBlocks::default();
            let mut bits = [false; 300];
            for (start, len) in marks {
                let range = start..start + len;
                if range.clone().any(|block| bits[block as usize]) {
                    continue;
                }
                range.clone().for_each(|block| bits[block as usize] = true);
                used.mark(range);
            }
            let range = query.0..query.0 + query.1;
            let set = |block: &u64| bits[*block as usize];
            prop_assert_eq!(used.count(), bits.iter().filter(|bit| **bit).count() as u64);
            let in_range: Vec<u64> = range.clone().filter(set).collect();
            let listed: Vec<u64> = used.runs_in(&range).flatten().collect();
            prop_assert_eq!(listed, in_range);
            let free = used.next_free(&range).map(|run| run.start);
            prop_assert_eq!(free, range.clone().find(|block| !set(block)));
            let place = range.clone().find(|start| {
                start + count <= range.end && (*start..start + count).all(|block| !set(&block))
            });
            prop_assert_eq!(used.find(&range, count), place);
        }
    }
}
