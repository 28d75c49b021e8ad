//! Paths against a walk of the whole tree, and pointers by chance.

use proptest::prelude::*;

use super::*;

const LIMITS: BlockLimits = BlockLimits {
    first_data_block: BlockNo(1),
    blocks_count: 10_000,
};

fn shape() -> MapShape {
    MapShape::new(1024).unwrap()
}

#[test]
fn paths_at_each_edge() {
    let path = |block| shape().path(FileBlock(block)).unwrap().slots().to_vec();
    assert_eq!(path(0), [0]);
    assert_eq!(path(11), [11]);
    assert_eq!(path(12), [12, 0]);
    assert_eq!(path(12 + 255), [12, 255]);
    assert_eq!(path(12 + 256), [13, 0, 0]);
    assert_eq!(path(12 + 256 + 65535), [13, 255, 255]);
    assert_eq!(path(12 + 256 + 65536), [14, 0, 0, 0]);
    assert_eq!(path(12 + 256 + 65536 + 65537), [14, 1, 0, 1]);
    let end = 12 + 256 + 65536 + 16_777_216;
    assert_eq!(shape().end(), FileBlock(end));
    assert_eq!(path(end - 1), [14, 255, 255, 255]);
    assert_eq!(shape().path(FileBlock(end)), None);
}

#[test]
fn the_reach_of_each_block_size() {
    let end = |size| MapShape::new(size).map(|shape| shape.end().0);
    assert_eq!(end(2048), Some(12 + 512 + 512 * 512 + 512 * 512 * 512));
    assert_eq!(
        end(4096),
        Some(12 + 1024 + 1024 * 1024 + 1024 * 1024 * 1024)
    );
    assert_eq!(end(8192), Some(u32::MAX));
    assert_eq!(end(65536), Some(u32::MAX));
    for size in [0, 512, 1025, 3072, 131_072] {
        assert_eq!(end(size), None);
    }
    assert!(
        MapShape::new(65536)
            .unwrap()
            .path(FileBlock(u32::MAX - 1))
            .is_some()
    );
    assert!(
        MapShape::new(65536)
            .unwrap()
            .path(FileBlock(u32::MAX))
            .is_none()
    );
}

#[test]
fn slots_cover_ranges() {
    let covers = |block, level| {
        let path = shape().path(FileBlock(block)).unwrap();
        path.covers(level).map(|(first, end)| (first.0, end.0))
    };
    assert_eq!(covers(3, 0), Some((3, 4)));
    assert_eq!(covers(3, 1), None);
    assert_eq!(covers(20, 0), Some((12, 268)));
    assert_eq!(covers(20, 1), Some((20, 21)));
    assert_eq!(covers(268 + 300, 0), Some((268, 65804)));
    assert_eq!(covers(268 + 300, 1), Some((268 + 256, 268 + 512)));
    assert_eq!(covers(65804 + 70000, 0), Some((65804, shape().end().0)));
    assert_eq!(
        covers(65804 + 70000, 1),
        Some((65804 + 65536, 65804 + 131_072))
    );
    assert_eq!(
        covers(65804 + 70000, 3),
        Some((65804 + 70000, 65804 + 70001))
    );
}

#[test]
fn runs_and_holes() {
    let mut block = vec![0; 1024];
    for (slot, to) in [
        (2, 100),
        (3, 101),
        (4, 102),
        (5, 200),
        (7, 1),
        (8, 10_000),
        (255, 9_999),
    ] {
        assert!(set_pointer(&mut block, slot, Some(BlockNo(to))));
    }
    assert!(!set_pointer(&mut block, 256, None));
    assert!(!set_pointer(&mut block, 0, Some(BlockNo(1 << 32))));
    let pointers = Pointers::block(&block, &LIMITS);
    let mapped = |start, len| {
        Ok(Some(Run::Mapped {
            start: BlockNo(start),
            len,
        }))
    };
    assert_eq!(pointers.run(0, 256), Ok(Some(Run::Hole { len: 2 })));
    assert_eq!(pointers.run(0, 1), Ok(Some(Run::Hole { len: 1 })));
    assert_eq!(pointers.run(2, 256), mapped(100, 3));
    assert_eq!(pointers.run(3, 1), mapped(101, 1));
    assert_eq!(pointers.run(5, 256), mapped(200, 1));
    assert_eq!(pointers.run(255, 9), mapped(9_999, 1), "blocks end there");
    assert_eq!(pointers.run(256, 9), Ok(None));
    assert_eq!(pointers.run(0, 0), Ok(None));
    // The superblock's block, and one past the last.
    for slot in [7, 8] {
        assert!(matches!(
            pointers.run(slot, 1),
            Err(Corruption::BlockMap(
                BlockMapCorruption::OutsideFileSystem { .. }
            ))
        ));
    }
    let listed: Vec<_> = pointers
        .iter()
        .map(|(slot, to)| (slot, to.is_ok()))
        .collect();
    assert_eq!(
        listed,
        [
            (2, true),
            (3, true),
            (4, true),
            (5, true),
            (7, false),
            (8, false),
            (255, true)
        ]
    );
    assert!(Pointers::root(&block[..59], &LIMITS).is_err());
    let root = Pointers::root(&block[..60], &LIMITS).unwrap();
    assert_eq!(root.get(14), Ok(None));
    assert_eq!(root.get(15), Ok(None));
}

proptest! {
    #[test]
    fn a_path_leads_back_to_its_block(size in 10..=16_u32, block in any::<u32>()) {
        let shape = MapShape::new(1 << size).unwrap();
        let per_block = u64::from(shape.per_block());
        let block = FileBlock(block % shape.end().0);
        let path = shape.path(block).unwrap();
        // Add up what each slot skips.
        let mut sum = match path.depth() {
            0 => 0,
            depth => 12 + (1..u32::from(depth)).map(|d| per_block.pow(d)).sum::<u64>(),
        };
        for (level, slot) in path.slots().iter().enumerate() {
            if level == 0 && path.depth() > 0 {
                prop_assert_eq!(*slot, 11 + u32::from(path.depth()));
                continue;
            }
            prop_assert!(u64::from(*slot) < per_block);
            sum += u64::from(*slot) * per_block.pow(u32::from(path.depth()) - level as u32);
            let (first, end) = path.covers(level as u8).unwrap();
            prop_assert_eq!(u64::from(first.0), sum);
            prop_assert!(first <= block && block < end);
        }
        prop_assert_eq!(sum, u64::from(block.0));
    }

    #[test]
    fn any_pointers_are_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        slot in 0..60_u32,
        most in any::<u32>(),
    ) {
        let pointers = Pointers::block(&bytes, &LIMITS);
        if let Ok(Some(Run::Mapped { start, len })) = pointers.run(slot, most) {
            prop_assert!(LIMITS.contains(start, len));
        }
        prop_assert!(pointers.iter().count() <= 50);
        let _ = Pointers::root(&bytes, &LIMITS);
    }
}
