//! The index of a group's runs of free blocks: an allocation is one search in it.
//!
//! A bitmap of what is not to be had, and above it a tree: each node knows the longest free run
//! in its part of the group, and how much is free at both ends of that part. A search descends
//! only where a run that is long enough can be; a change renews one path. Both are logarithmic,
//! and the size is fixed (7 KiB for 32,768 blocks), however torn the space is.

#[cfg(test)]
mod tests;

use std::ops::Range;

use pagefence_ext4_format::bitmap;

/// Blocks that one leaf of the tree stands for.
const LEAF_BLOCKS: u32 = 256;

/// What is free in one part of the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Node {
    /// Free blocks at its start.
    prefix: u32,
    /// Free blocks at its end.
    suffix: u32,
    /// The longest run that lies in it.
    best: u32,
}

impl Node {
    /// Of two neighbours of `span` blocks each.
    fn merged(left: Self, right: Self, span: u32) -> Self {
        let joined = left.suffix + right.prefix;
        Self {
            prefix: if left.prefix == span {
                joined
            } else {
                left.prefix
            },
            suffix: if right.suffix == span {
                joined
            } else {
                right.suffix
            },
            best: left.best.max(right.best).max(joined),
        }
    }
}

/// The free runs of a group. Blocks are numbered from the group's start.
#[derive(Debug)]
pub(super) struct FreeRuns {
    /// A set bit is not to be had. As long as all leaves: what is past the group is set.
    taken: Vec<u8>,
    free: u32,
    /// A power of two.
    leaves: u32,
    /// A heap: the root at 1, the children of n at 2n and 2n + 1, leaf n at `leaves` + n.
    nodes: Vec<Node>,
}

impl FreeRuns {
    /// The clear bits of the first `blocks` bits of `taken`.
    pub(super) fn new(taken: &[u8], blocks: u32) -> Self {
        let leaves = blocks.div_ceil(LEAF_BLOCKS).max(1).next_power_of_two();
        let bits = leaves * LEAF_BLOCKS;
        let mut taken = taken.to_vec();
        taken.resize(bits as usize / 8, 0);
        bitmap::set_range(&mut taken, blocks..bits);
        let mut runs = Self {
            free: bitmap::count_zeros(&taken, 0..blocks),
            taken,
            leaves,
            nodes: vec![Node::default(); 2 * leaves as usize],
        };
        runs.renew(0..bits);
        runs
    }

    /// Free blocks.
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    /// The length of the longest run.
    pub(super) fn longest(&self) -> u32 {
        self.nodes[1].best
    }

    /// Takes a run out of the index. All of it was free.
    pub(super) fn take(&mut self, run: Range<u32>) {
        let changed = bitmap::set_range(&mut self.taken, run.clone());
        debug_assert_eq!(changed, run.end - run.start, "taken twice");
        self.free -= changed;
        self.renew(run);
    }

    /// Puts a run into the index. None of it was free.
    pub(super) fn give(&mut self, run: Range<u32>) {
        let changed = bitmap::clear_range(&mut self.taken, run.clone());
        debug_assert_eq!(changed, run.end - run.start, "given back twice");
        self.free += changed;
        self.renew(run);
    }

    /// How many blocks from `start` on are free, counted up to `most`.
    pub(super) fn free_at(&self, start: u32, most: u32) -> u32 {
        let end = start.saturating_add(most).min(self.leaves * LEAF_BLOCKS);
        if bitmap::test(&self.taken, start) {
            return 0;
        }
        bitmap::next_one(&self.taken, start..end).unwrap_or(end) - start
    }

    /// The first `want` free blocks in a row that begin at `from` or later.
    pub(super) fn first_fit(&self, from: u32, want: u32) -> Option<Range<u32>> {
        if want == 0 || self.longest() < want {
            return None;
        }
        let mut search = Search {
            from,
            want,
            open: from..from,
        };
        let start = self.search(&mut search, 1, 0, self.leaves * LEAF_BLOCKS)?;
        Some(start..start + want)
    }

    /// The free run that begins at `from` or later, or that `from` is in, from there on.
    pub(super) fn next_run(&self, from: u32) -> Option<Range<u32>> {
        bitmap::zero_runs(&self.taken, from..self.leaves * LEAF_BLOCKS).next()
    }

    /// Looks through the part of `span` blocks at `start` that `node` stands for.
    fn search(&self, search: &mut Search, node: usize, start: u32, span: u32) -> Option<u32> {
        let end = start + span;
        if end <= search.from {
            return None;
        }
        let here = self.nodes[node];
        let is_whole = start >= search.from;
        if is_whole && search.open.len_u32() + here.prefix >= search.want {
            return Some(search.open.start);
        }
        if here.best < search.want {
            // What matters of it is how much is free up to its end.
            if !is_whole || here.prefix < span {
                search.open.start = (end - here.suffix).max(search.from);
            }
            search.open.end = end;
            return None;
        }
        if node >= self.leaves as usize {
            return self.search_leaf(search, start.max(search.from)..end);
        }
        self.search(search, 2 * node, start, span / 2)
            .or_else(|| self.search(search, 2 * node + 1, start + span / 2, span / 2))
    }

    fn search_leaf(&self, search: &mut Search, part: Range<u32>) -> Option<u32> {
        for run in bitmap::zero_runs(&self.taken, part.clone()) {
            if run.start != search.open.end {
                search.open.start = run.start;
            }
            search.open.end = run.end;
            if search.open.len_u32() >= search.want {
                return Some(search.open.start);
            }
        }
        if search.open.end != part.end {
            search.open = part.end..part.end;
        }
        None
    }

    /// Brings the tree up to date with a changed run of bits.
    fn renew(&mut self, run: Range<u32>) {
        if run.is_empty() {
            return;
        }
        let (first, last) = (run.start / LEAF_BLOCKS, (run.end - 1) / LEAF_BLOCKS);
        for leaf in first..=last {
            self.nodes[(self.leaves + leaf) as usize] = self.leaf(leaf);
        }
        let (mut first, mut last) = (self.leaves + first, self.leaves + last);
        let mut span = LEAF_BLOCKS;
        while first > 1 {
            first /= 2;
            last /= 2;
            for node in first as usize..=last as usize {
                let (left, right) = (self.nodes[2 * node], self.nodes[2 * node + 1]);
                self.nodes[node] = Node::merged(left, right, span);
            }
            span *= 2;
        }
    }

    fn leaf(&self, leaf: u32) -> Node {
        let part = leaf * LEAF_BLOCKS..(leaf + 1) * LEAF_BLOCKS;
        let mut node = Node::default();
        for run in bitmap::zero_runs(&self.taken, part.clone()) {
            let len = run.len_u32();
            if run.start == part.start {
                node.prefix = len;
            }
            if run.end == part.end {
                node.suffix = len;
            }
            node.best = node.best.max(len);
        }
        node
    }
}

/// A search under way, from left to right.
struct Search {
    from: u32,
    want: u32,
    /// The free run that ends where the search has come to; empty if the last block is taken.
    open: Range<u32>,
}

/// The length of a run.
trait Length {
    fn len_u32(&self) -> u32;
}

impl Length for Range<u32> {
    fn len_u32(&self) -> u32 {
        self.end.saturating_sub(self.start)
    }
}
