//! Which leaf holds which block, and where a block of a leaf comes from.

use super::{Leaves, Move, Way};

const LEAVES: Leaves = Leaves {
    per_block: 256,
    end: 12 + 256 + 256 * 256 + 256 * 256 * 256,
};

#[test]
fn leaves_lie_one_behind_the_other() {
    for leaf in [0, 1, 2, 257, 258, 65_793] {
        let blocks = LEAVES.blocks(leaf);
        assert_eq!(LEAVES.holding(blocks.start), leaf);
        assert_eq!(LEAVES.holding(blocks.end - 1), leaf);
        assert_eq!(LEAVES.blocks(leaf + 1).start, blocks.end);
    }
    let above = [1, 2, 257, 258, 513, 514].map(|leaf| LEAVES.above(leaf));
    let due = [None, Some(0), Some(0), Some(1), Some(1), Some(2)];
    assert_eq!(above, due);
}

/// Every block of a leaf comes from where plain counting says.
#[test]
fn each_block_comes_from_one_place() {
    for (way, first, len) in [
        (Way::Down, 5, 3),
        (Way::Down, 300, 1000),
        (Way::Up, 5, 3),
        (Way::Up, 0, 12),
        (Way::Up, 20, 700),
        (Way::Up, 268, 256),
    ] {
        let shift = Move { way, first, len };
        for leaf in 0..6 {
            let blocks = LEAVES.blocks(leaf);
            let (stays, hole, moves) = shift.sources(&blocks);
            let mut found: Vec<_> = stays.map(Some).collect();
            found.extend((0..hole).map(|_| None));
            found.extend(moves.map(Some));
            let due: Vec<_> = blocks
                .map(|block| match way {
                    _ if block < first => Some(block),
                    Way::Down => Some(block + len),
                    Way::Up if block < first + len => None,
                    Way::Up => Some(block - len),
                })
                .collect();
            assert_eq!(found, due, "{shift:?} {leaf}");
        }
    }
}
