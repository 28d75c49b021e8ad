//! Nodes by hand, nodes by chance, and nodes that mke2fs and debugfs made.

use proptest::prelude::*;

use super::*;
use crate::checksum::ChecksumSeed;

const LIMITS: BlockLimits = BlockLimits {
    first_data_block: BlockNo(0),
    blocks_count: 1 << 40,
};

fn extent(first: u32, len: u16, start: u64) -> Extent {
    Extent {
        first: FileBlock(first),
        len,
        start: BlockNo(start),
        unwritten: false,
    }
}

fn leaf(extents: &[Extent]) -> [u8; ROOT_BYTES] {
    let mut bytes = [0xFF; ROOT_BYTES];
    let mut node = ExtentNodeMut::init(&mut bytes, 0).unwrap();
    for (at, extent) in extents.iter().enumerate() {
        assert!(node.insert_extent(at, extent));
    }
    bytes
}

fn child(first: u32, end: u32, block: u64, depth: u16) -> Child {
    Child {
        first: FileBlock(first),
        end: FileBlock(end),
        block: BlockNo(block),
        depth,
    }
}

fn corruption(bytes: &[u8], place: &Place) -> ExtentCorruption {
    match ExtentNode::parse(bytes, place, &LIMITS) {
        Err(Corruption::Extent(corruption)) => corruption,
        other => panic!("expected a corrupt node, got {other:?}"),
    }
}

#[test]
fn entries_fit_as_the_format_says() {
    for (bytes, entries) in [(60, 4), (1024, 84), (2048, 169), (4096, 340), (65536, 5460)] {
        assert_eq!(entries_that_fit(bytes), entries);
    }
    assert_eq!(entries_that_fit(5), 0);
}

#[test]
fn a_leaf_finds_extents_and_holes() {
    let bytes = leaf(&[
        extent(5, 10, 100),
        extent(15, 1, 50),
        extent(100, 32768, 7000),
    ]);
    let node = ExtentNode::parse(&bytes, &Place::Root, &LIMITS).unwrap();
    let hole = |until| Found::Hole {
        until: FileBlock(until),
    };
    assert_eq!(node.find(FileBlock(0)), hole(5));
    assert_eq!(node.find(FileBlock(5)), Found::Extent(extent(5, 10, 100)));
    assert_eq!(node.find(FileBlock(14)), Found::Extent(extent(5, 10, 100)));
    assert_eq!(node.find(FileBlock(15)), Found::Extent(extent(15, 1, 50)));
    assert_eq!(node.find(FileBlock(16)), hole(100));
    assert_eq!(
        node.find(FileBlock(32867)),
        Found::Extent(extent(100, 32768, 7000))
    );
    assert_eq!(node.find(FileBlock(32868)), hole(u32::MAX));
    assert_eq!(
        extent(5, 10, 100).block_at(FileBlock(14)),
        Some(BlockNo(109))
    );
    assert_eq!(extent(5, 10, 100).block_at(FileBlock(15)), None);
    assert_eq!(extent(5, 10, 100).block_at(FileBlock(4)), None);
    assert_eq!(node.extents().len(), 3);
    assert_eq!(node.children().count(), 0);
}

#[test]
fn a_length_above_32768_means_unwritten() {
    for (len, unwritten, stored) in [
        (1, false, 1),
        (32768, false, 32768),
        (1, true, 32769),
        (32767, true, 65535),
    ] {
        let made = Extent {
            unwritten,
            ..extent(0, len, 10)
        };
        let raw = made.to_raw().unwrap();
        assert_eq!(raw.ee_len.get(), stored);
        assert_eq!(Extent::from(&raw), made);
    }
    for (len, unwritten) in [(0, false), (0, true), (32768, true), (32769, false)] {
        let made = Extent {
            unwritten,
            ..extent(0, len, 10)
        };
        assert!(made.to_raw().is_none(), "{made:?}");
    }
    assert!(extent(0, 1, 1 << 48).to_raw().is_none());
}

#[test]
fn an_index_finds_children_with_their_ranges() {
    let mut bytes = [0; ROOT_BYTES];
    let mut node = ExtentNodeMut::init(&mut bytes, 2).unwrap();
    assert!(node.insert_child(0, &child(1000, 0, (7 << 32) | 9, 1)));
    assert!(node.insert_child(0, &child(10, 0, 200, 1)));
    assert!(!node.insert_child(0, &child(0, 0, 200, 0)), "wrong depth");
    assert!(!node.insert_extent(0, &extent(0, 1, 1)), "no leaf");
    let node = ExtentNode::parse(&bytes, &Place::Root, &LIMITS).unwrap();
    assert_eq!(
        node.find(FileBlock(9)),
        Found::Hole {
            until: FileBlock(10)
        }
    );
    assert_eq!(
        node.find(FileBlock(999)),
        Found::Child(child(10, 1000, 200, 1))
    );
    let last = child(1000, u32::MAX, (7 << 32) | 9, 1);
    assert_eq!(node.find(FileBlock(1000)), Found::Child(last));
    assert_eq!(node.find(FileBlock(u32::MAX - 1)), Found::Child(last));
    assert_eq!(node.children().count(), 2);
}

#[test]
fn headers_are_checked() {
    let good = leaf(&[extent(0, 1, 10)]);
    let with = |at: usize, value: u16| {
        let mut bytes = good;
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        corruption(&bytes, &Place::Root)
    };
    assert_eq!(with(0, 0xF30B), ExtentCorruption::Magic { found: 0xF30B });
    assert_eq!(with(2, 5), ExtentCorruption::Entries { entries: 5, max: 4 });
    assert_eq!(with(4, 0), ExtentCorruption::Max { max: 0, fits: 4 });
    assert_eq!(with(4, 5), ExtentCorruption::Max { max: 5, fits: 4 });
    assert_eq!(with(6, 6), ExtentCorruption::TooDeep { depth: 6 });
    let mut empty = leaf(&[]);
    assert!(ExtentNode::parse(&empty, &Place::Root, &LIMITS).is_ok());
    empty[6] = 1;
    assert_eq!(
        corruption(&empty, &Place::Root),
        ExtentCorruption::EmptyIndex { depth: 1 }
    );
    assert_eq!(
        corruption(&good, &Place::Block(child(0, 100, 5, 1))),
        ExtentCorruption::Depth {
            found: 0,
            expected: 1
        }
    );
    assert!(matches!(
        ExtentNode::parse(&good[..11], &Place::Root, &LIMITS),
        Err(Corruption::Truncated { .. })
    ));
}

#[test]
fn entries_are_checked() {
    let root = |extents: &[Extent]| corruption(&leaf(extents), &Place::Root);
    assert_eq!(
        root(&[extent(0, 5, 10), extent(4, 1, 20)]),
        ExtentCorruption::Order {
            first: FileBlock(4),
            floor: FileBlock(5)
        }
    );
    assert!(matches!(
        root(&[extent(u32::MAX - 1, 2, 10)]),
        ExtentCorruption::PastEnd { .. }
    ));
    ExtentNode::parse(&leaf(&[extent(u32::MAX - 2, 2, 10)]), &Place::Root, &LIMITS).unwrap();
    for start in [0, 1 << 40, (1 << 40) - 1] {
        assert!(matches!(
            root(&[extent(0, 2, start)]),
            ExtentCorruption::OutsideFileSystem { .. }
        ));
    }
    let mut zero = leaf(&[extent(0, 1, 10)]);
    zero[16] = 0;
    assert!(matches!(
        corruption(&zero, &Place::Root),
        ExtentCorruption::ZeroLength { .. }
    ));
    let below = leaf(&[extent(7, 5, 10)]);
    let place = |first, end| Place::Block(child(first, end, 5, 0));
    ExtentNode::parse(&below, &place(7, 12), &LIMITS).unwrap();
    assert!(matches!(
        corruption(&below, &place(6, 12)),
        ExtentCorruption::FirstBlock { .. }
    ));
    assert!(matches!(
        corruption(&below, &place(7, 11)),
        ExtentCorruption::PastEnd { .. }
    ));
}

#[test]
fn indexes_are_checked() {
    let index = |children: &[Child]| {
        let mut bytes = [0; ROOT_BYTES];
        let mut node = ExtentNodeMut::init(&mut bytes, 1).unwrap();
        for (at, child) in children.iter().enumerate() {
            assert!(node.insert_child(at, child));
        }
        corruption(&bytes, &Place::Root)
    };
    assert!(matches!(
        index(&[child(5, 0, 10, 0), child(5, 0, 11, 0)]),
        ExtentCorruption::Order { .. }
    ));
    assert!(matches!(
        index(&[child(u32::MAX, 0, 10, 0)]),
        ExtentCorruption::PastEnd { .. }
    ));
    assert!(matches!(
        index(&[child(0, 0, 0, 0)]),
        ExtentCorruption::OutsideFileSystem { .. }
    ));
}

#[test]
fn checksums_lie_behind_the_last_entry_that_fits() {
    for size in [1024_usize, 2048, 4096] {
        let mut block = vec![0; size];
        let mut node = ExtentNodeMut::init(&mut block, 0).unwrap();
        assert!(node.insert_extent(0, &extent(3, 4, 5)));
        let before = block.clone();
        update_checksum(&mut block, ChecksumSeed(0x1234_5678)).unwrap();
        let tail = 12 + 12 * usize::from(entries_that_fit(size));
        assert_eq!(block[..tail], before[..tail]);
        assert_eq!(block[tail + 4..], before[tail + 4..]);
        verify_checksum(&block, ChecksumSeed(0x1234_5678)).unwrap();
        assert!(verify_checksum(&block, ChecksumSeed(0x1234_5679)).is_err());
        block[13] ^= 1;
        assert!(matches!(
            verify_checksum(&block, ChecksumSeed(0x1234_5678)),
            Err(Corruption::Checksum { .. })
        ));
    }
    // The root has no room for one.
    assert!(matches!(
        verify_checksum(&leaf(&[]), ChecksumSeed(0)),
        Err(Corruption::Truncated { .. })
    ));
}

#[test]
fn entries_move_between_nodes() {
    let mut left_bytes = vec![0; 1024];
    let mut right_bytes = vec![0; 1024];
    let mut left = ExtentNodeMut::init(&mut left_bytes, 0).unwrap();
    let mut right = ExtentNodeMut::init(&mut right_bytes, 0).unwrap();
    for at in 0..84_u16 {
        assert!(!left.is_full());
        assert!(left.insert_extent(at.into(), &extent(u32::from(at) * 2, 1, 10)));
    }
    assert!(left.is_full());
    assert!(!left.insert_extent(0, &extent(0, 1, 1)));
    assert!(left.move_tail(40, &mut right));
    assert_eq!((left.len(), right.len()), (40, 44));
    left.remove(38..1000);
    left.remove(0..1);
    left.remove(5..5);
    assert!(left.set_extent(0, &extent(1, 2, 30)));
    assert!(!left.set_extent(37, &extent(1, 2, 30)));
    let left = ExtentNode::parse(&left_bytes, &Place::Root, &LIMITS).unwrap();
    assert_eq!(left.extent(0), Some(extent(1, 2, 30)));
    assert_eq!(left.extents().next_back(), Some(extent(74, 1, 10)));
    assert_eq!(left.len(), 37);
    assert!(left_bytes[12 + 37 * 12..].iter().all(|byte| *byte == 0));
    let place = Place::Block(child(80, 10000, 5, 0));
    let right = ExtentNode::parse(&right_bytes, &place, &LIMITS).unwrap();
    assert_eq!(right.extents().count(), 44);
}

/// Disjoint extents in order, for a leaf of up to 84.
fn any_extents() -> impl Strategy<Value = Vec<Extent>> {
    proptest::collection::vec(
        (0..5000_u32, 1..=32767_u16, 1..(1_u64 << 39), any::<bool>()),
        0..84,
    )
    .prop_map(|parts| {
        let mut next = 0;
        let mut extents = Vec::new();
        for (gap, len, start, unwritten) in parts {
            let first = next + gap;
            next = first + u32::from(len);
            extents.push(Extent {
                unwritten,
                ..extent(first, len, start)
            });
        }
        extents
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(extents in any_extents(), probe in any::<u32>()) {
        let mut block = vec![0; 1024];
        let mut node = ExtentNodeMut::init(&mut block, 0).unwrap();
        // Back to front: each one moves the others.
        for extent in extents.iter().rev() {
            prop_assert!(node.insert_extent(0, extent));
        }
        let node = ExtentNode::parse(&block, &Place::Root, &LIMITS).unwrap();
        prop_assert_eq!(node.extents().collect::<Vec<_>>(), extents.clone());
        let reach = extents.last().map_or(1, |last| last.end().0 + 10);
        let probe = FileBlock(probe % reach);
        let expected = extents.iter().find(|e| e.block_at(probe).is_some());
        match (node.find(probe), expected) {
            (Found::Extent(found), Some(expected)) => prop_assert_eq!(&found, expected),
            (Found::Hole { until }, None) => {
                let next = extents.iter().map(|e| e.first).find(|first| *first > probe);
                prop_assert_eq!(until, next.unwrap_or(FILE_BLOCKS_END));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        fix in any::<bool>(),
        depth in 0..7_u16,
        count in 0..30_u16,
        block in any::<u32>(),
    ) {
        if fix && bytes.len() >= 12 {
            bytes[..2].copy_from_slice(&EXTENT_MAGIC.to_le_bytes());
            bytes[2..4].copy_from_slice(&count.to_le_bytes());
            bytes[4..6].copy_from_slice(&count.max(1).to_le_bytes());
            bytes[6..8].copy_from_slice(&depth.to_le_bytes());
        }
        for place in [Place::Root, Place::Block(child(0, u32::MAX, 5, depth))] {
            if let Ok(node) = ExtentNode::parse(&bytes, &place, &LIMITS) {
                prop_assert!(node.extents().all(|e| e.len > 0));
            }
            if let Ok(node) = ExtentNode::reopen(&bytes, &place) {
                let _ = node.find(FileBlock(block));
                prop_assert!(node.extents().count() + node.children().count() == node.len());
                for extent in node.extents() {
                    let _ = (extent.end(), extent.block_at(FileBlock(block)));
                }
            }
        }
        let _ = verify_checksum(&bytes, ChecksumSeed(block));
        let _ = update_checksum(&mut bytes, ChecksumSeed(block));
        if let Ok(mut node) = ExtentNodeMut::open(&mut bytes) {
            let _ = node.insert_extent(usize::from(count), &extent(1, 1, 1));
            node.remove(usize::from(depth)..usize::from(count));
        }
    }
}
