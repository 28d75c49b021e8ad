//! The worst case of a map is not passed, whatever is done in whatever order.

use proptest::prelude::*;

use super::*;

fn amount(holes: u64, hole_ranges: u64) -> Amount {
    Amount {
        holes,
        hole_ranges,
        last: 1 << 20,
        ..Amount::default()
    }
}

#[test]
fn small_files_take_no_blocks_for_their_maps() {
    let root = MapShapeNow::Extents {
        depth: 0,
        in_root: 0,
        per_node: 340,
    };
    assert_eq!(root.worst_case(&amount(4, 1)), 0);
    assert_eq!(root.worst_case(&amount(5, 1)), 1);
    assert_eq!(root.worst_case(&amount(100, 1)), 1);
    let pointers = MapShapeNow::Pointers { per_block: 256 };
    let direct = Amount {
        last: 11,
        ..amount(12, 1)
    };
    assert_eq!(pointers.worst_case(&direct), 0);
    let single = Amount {
        last: 12,
        ..amount(13, 1)
    };
    assert_eq!(pointers.worst_case(&single), 1);
    let double = Amount {
        last: 268,
        ..amount(2, 1)
    };
    assert_eq!(pointers.worst_case(&double), 3);
}

#[test]
fn nothing_delayed_takes_nothing() {
    for depth in 0..=5 {
        let shape = MapShapeNow::Extents {
            depth,
            in_root: 4,
            per_node: 84,
        };
        assert_eq!(shape.worst_case(&Amount::default()), 0);
    }
}

/// A tree of extents that splits as [`crate::change::extent_tree`] does; entries are single
/// blocks that never join.
#[derive(Clone, Debug)]
struct Tree {
    /// Entries that fit into a node below the root.
    capacity: usize,
    root: Node,
    blocks: u64,
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(Vec<u32>),
    Index(Vec<(u32, Node)>),
}

impl Node {
    fn len(&self) -> usize {
        match self {
            Node::Leaf(keys) => keys.len(),
            Node::Index(children) => children.len(),
        }
    }

    fn split(&mut self, at: usize) -> (u32, Node) {
        match self {
            Node::Leaf(keys) => {
                let right = keys.split_off(at);
                (right[0], Node::Leaf(right))
            }
            Node::Index(children) => {
                let right = children.split_off(at);
                (right[0].0, Node::Index(right))
            }
        }
    }

    fn depth(&self) -> u16 {
        match self {
            Node::Leaf(_) => 0,
            Node::Index(children) => 1 + children[0].1.depth(),
        }
    }

    /// Puts a key in. False if something had to be split first, and then it was.
    fn insert(
        &mut self,
        key: u32,
        (max, capacity): (usize, usize),
        is_last: bool,
        blocks: &mut u64,
    ) -> Option<bool> {
        match self {
            Node::Leaf(keys) => {
                if keys.len() == max {
                    return None;
                }
                let at = keys.partition_point(|other| *other <= key);
                keys.insert(at, key);
                Some(true)
            }
            Node::Index(children) => {
                let at = children
                    .partition_point(|(first, _)| *first <= key)
                    .saturating_sub(1);
                let is_last = is_last && at + 1 == children.len();
                let child = &mut children[at].1;
                match child.insert(key, (capacity, capacity), is_last, blocks) {
                    Some(done) => {
                        children[at].0 = children[at].0.min(key);
                        Some(done)
                    }
                    None if children.len() == max => None,
                    None => {
                        let at_end = is_last && goes_last(&children[at].1, key);
                        let len = children[at].1.len();
                        let mid = if at_end { len - 1 } else { len / 2 };
                        let right = children[at].1.split(mid);
                        *blocks += 1;
                        children.insert(at + 1, right);
                        Some(false)
                    }
                }
            }
        }
    }
}

fn goes_last(node: &Node, key: u32) -> bool {
    match node {
        Node::Leaf(keys) => keys.last().is_none_or(|last| *last <= key),
        Node::Index(children) => children
            .last()
            .is_some_and(|(_, last)| goes_last(last, key)),
    }
}

impl Tree {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            root: Node::Leaf(Vec::new()),
            blocks: 0,
        }
    }

    fn insert(&mut self, key: u32) {
        loop {
            let room = (ROOT_EXTENTS as usize, self.capacity);
            match self.root.insert(key, room, true, &mut self.blocks) {
                Some(true) => return,
                Some(false) => {}
                None => {
                    let below = std::mem::replace(&mut self.root, Node::Leaf(Vec::new()));
                    let first = match &below {
                        Node::Leaf(keys) => keys[0],
                        Node::Index(children) => children[0].0,
                    };
                    self.root = Node::Index(vec![(first, below)]);
                    self.blocks += 1;
                }
            }
        }
    }

    fn shape(&self) -> MapShapeNow {
        MapShapeNow::Extents {
            depth: self.root.depth(),
            in_root: self.root.len() as u64,
            per_node: self.capacity as u64,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Some blocks are mapped, in any order; then some become delayed, and are mapped in any order
    /// and in any grouping, each apart from the others: the map takes no more than was reserved,
    /// neither at once nor with what was counted in between.
    #[test]
    fn trees_stay_within_the_worst_case(
        capacity in prop_oneof![Just(10usize), Just(24), Just(84)],
        in_order in prop_oneof![(0..300u32).prop_map(Ok), (0..6u32).prop_map(Err)],
        before in proptest::collection::vec(0..2000u32, 0..400),
        few in any::<bool>(),
        ranges in proptest::collection::vec((0..2000u32, 1..60u32), 0..12),
        singles in proptest::collection::vec(0..1000u32, 0..20),
        order in any::<u64>(),
        sorted in any::<bool>(),
    ) {
        // Often about as many as one node holds.
        let in_order = in_order.unwrap_or_else(|more| capacity as u32 + more - 3);
        let mut tree = Tree::new(capacity);
        let mut mapped = std::collections::BTreeSet::new();
        // A file that was written in order, every third block, which leaves full nodes.
        let before = (0..in_order).map(|key| 3 * key).chain(if few { Vec::new() } else { before });
        for key in before {
            if mapped.insert(key) {
                tree.insert(key);
            }
        }
        let mut delayed = BlockRanges::default();
        // About where the file ends, too.
        let singles = singles.into_iter().map(|key| ((3 * in_order + 20).saturating_sub(key % 60), 1));
        for (start, len) in ranges.into_iter().chain(singles) {
            for key in start..start + len {
                if !mapped.contains(&key) {
                    delayed.insert(key..key + 1);
                }
            }
        }
        let mut keys: Vec<u32> = (0..2100).filter(|key| delayed.run_at(FileBlock(*key)).0).collect();
        if !sorted {
            let mut state = order | 1;
            for at in (1..keys.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                keys.swap(at, (state >> 33) as usize % (at + 1));
            }
        }
        let mut reserved = tree.shape().worst_case(&Amount {
            holes: delayed.len(),
            hole_ranges: delayed.count(),
            ..Amount::default()
        });
        for (at, key) in keys.iter().enumerate() {
            let had = tree.blocks;
            tree.insert(*key);
            delayed.remove(*key..*key + 1);
            let taken = tree.blocks - had;
            prop_assert!(taken <= reserved, "{taken} of {reserved} at {at}: {:?}", tree.shape());
            reserved -= taken;
            // As `settle` does.
            let now = tree.shape().worst_case(&Amount {
                holes: delayed.len(),
                hole_ranges: delayed.count(),
                ..Amount::default()
            });
            reserved = reserved.min(now);
        }
    }
}
