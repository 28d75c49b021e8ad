//! Sets of file blocks, as ranges.

use std::collections::BTreeMap;
use std::ops::Range;

use pagefence_ext4_format::FileBlock;

/// A set of file blocks, kept as ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockRanges {
    /// End by start.
    ranges: BTreeMap<u32, u32>,
    len: u64,
}

impl BlockRanges {
    /// Blocks in the set.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Ranges in the set.
    pub(crate) fn count(&self) -> u64 {
        self.ranges.len() as u64
    }

    /// The highest block.
    pub(crate) fn last(&self) -> Option<FileBlock> {
        let (_, end) = self.ranges.last_key_value()?;
        Some(FileBlock(end - 1))
    }

    /// The first range that ends behind `block`: it holds the block, or comes after it.
    pub(crate) fn next(&self, block: FileBlock) -> Option<Range<u32>> {
        let holds = self
            .ranges
            .range(..=block.0)
            .next_back()
            .filter(|(_, end)| **end > block.0);
        let (start, end) = holds.or_else(|| self.ranges.range(block.0..).next())?;
        Some(*start..*end)
    }

    /// Whether `block` is in the set, and for how many blocks from there that stays so.
    pub(crate) fn run_at(&self, block: FileBlock) -> (bool, u32) {
        match self.next(block) {
            Some(range) if range.start <= block.0 => (true, range.end - block.0),
            Some(range) => (false, range.start - block.0),
            None => (false, u32::MAX - block.0),
        }
    }

    /// Adds a range; says how many blocks of it are new.
    pub(crate) fn insert(&mut self, range: Range<u32>) -> u64 {
        if range.start >= range.end {
            return 0;
        }
        let before = self.len;
        let (mut start, mut end) = (range.start, range.end);
        // Those that overlap or touch become one with it.
        while let Some((&at, &until)) = self
            .ranges
            .range(..=end)
            .next_back()
            .filter(|(_, until)| **until >= start)
        {
            self.ranges.remove(&at);
            self.len -= u64::from(until - at);
            start = start.min(at);
            end = end.max(until);
        }
        self.ranges.insert(start, end);
        self.len += u64::from(end - start);
        self.len - before
    }

    /// Takes a range out; says how many blocks of it were in the set.
    pub(crate) fn remove(&mut self, range: Range<u32>) -> u64 {
        if range.start >= range.end {
            return 0;
        }
        let before = self.len;
        while let Some((&at, &until)) = self
            .ranges
            .range(..range.end)
            .next_back()
            .filter(|(_, until)| **until > range.start)
        {
            self.ranges.remove(&at);
            self.len -= u64::from(until - at);
            for rest in [at..range.start, range.end..until] {
                if rest.start < rest.end {
                    self.len += u64::from(rest.end - rest.start);
                    self.ranges.insert(rest.start, rest.end);
                }
            }
        }
        before - self.len
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The same as a set of numbers, whatever is done to it.
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0..64u32, 0..20u32), 1..60)) {
            let mut ranges = BlockRanges::default();
            let mut model = BTreeSet::new();
            for (adds, start, len) in steps {
                let range = start..start + len;
                let before = model.len();
                if adds {
                    let new = ranges.insert(range.clone());
                    model.extend(range);
                    prop_assert_eq!(new, (model.len() - before) as u64);
                } else {
                    let gone = ranges.remove(range.clone());
                    model.retain(|block| !range.contains(block));
                    prop_assert_eq!(gone, (before - model.len()) as u64);
                }
                prop_assert_eq!(ranges.len(), model.len() as u64);
                prop_assert_eq!(ranges.is_empty(), model.is_empty());
                prop_assert_eq!(ranges.last().map(|block| block.0), model.last().copied());
                let starts = model.iter().filter(|block| **block == 0 || !model.contains(&(*block - 1)));
                prop_assert_eq!(ranges.count(), starts.count() as u64);
                for block in 0..90 {
                    let (is_in, run) = ranges.run_at(FileBlock(block));
                    prop_assert_eq!(is_in, model.contains(&block));
                    let end = block + run.min(100);
                    prop_assert!((block..end).all(|other| model.contains(&other) == is_in));
                    if run < 100 {
                        prop_assert_ne!(model.contains(&end), is_in);
                    }
                }
            }
        }
    }
}
