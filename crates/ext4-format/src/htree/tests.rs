//! Hashes as debugfs gives them, and index blocks by hand and by chance. Indexes that real tools
//! made are in `tests/e2fsprogs.rs`.

use proptest::prelude::*;

use super::*;

const FORMAT: HtreeFormat = HtreeFormat {
    checksums: true,
    large_dir: false,
    blocks: 100,
};

/// An index block of 1 KiB: the root if `levels` is given.
fn index(levels: Option<u8>, entries: &[(u32, u32)]) -> Vec<u8> {
    let mut block = vec![0; 1024];
    let (start, limit) = match levels {
        Some(levels) => {
            block[..12].copy_from_slice(b"\x0c\0\0\0\x0c\0\x01\x02.\0\0\0");
            block[12..24].copy_from_slice(b"\x02\0\0\0\xf4\x03\x02\x02..\0\0");
            block[24..32].copy_from_slice(&[0, 0, 0, 0, 1, 8, levels, 0]);
            (32, 123_u16)
        }
        None => {
            block[4..6].copy_from_slice(&1024_u16.to_le_bytes());
            (8, 126)
        }
    };
    for (at, (hash, to)) in entries.iter().enumerate() {
        block[start + 8 * at..][..4].copy_from_slice(&hash.to_le_bytes());
        block[start + 8 * at + 4..][..4].copy_from_slice(&to.to_le_bytes());
    }
    block[start..start + 2].copy_from_slice(&limit.to_le_bytes());
    block[start + 2..start + 4].copy_from_slice(&(entries.len() as u16).to_le_bytes());
    block
}

fn root_corruption(at: usize, value: u8) -> HtreeCorruption {
    let mut block = index(Some(1), &[(0, 1), (10, 2)]);
    block[at] = value;
    match DxRoot::parse(&block, &FORMAT) {
        Err(Corruption::Htree(corruption)) => corruption,
        other => panic!("expected a corrupt root, got {other:?}"),
    }
}

#[test]
fn hashes_as_debugfs_gives_them() {
    let hash = |version, unsigned, name: &[u8]| {
        let hasher = DirHasher::new(version, unsigned, &[0; 4]).unwrap();
        let DirHash { major, minor } = hasher.hash(name);
        (major, minor)
    };
    assert_eq!(hash(1, false, b"abc"), (0xD196_A868, 0xC420_EB28));
    assert_eq!(hash(1, true, b"abc"), (0xD196_A868, 0xC420_EB28));
    assert_eq!(hash(1, false, b"\xFF\xFEabc"), (0x96E1_3DAA, 0xA4DD_D918));
    assert_eq!(hash(1, true, b"\xFF\xFEabc"), (0xC401_72BE, 0x8F61_5C24));
    assert_eq!(hash(2, false, b"\xFF\xFEabc"), (0x0CD0_21B4, 0xDEEE_7DD2));
    assert_eq!(hash(0, false, b"\xFF\xFEabc"), (0x15B1_8D7C, 0));
    let bytes: [u8; 16] = std::array::from_fn(|at| at as u8 + 1);
    let seed =
        std::array::from_fn(|at| u32::from_le_bytes(bytes[at * 4..][..4].try_into().unwrap()));
    let seeded = DirHasher::new(1, false, &seed).unwrap().hash(b"abc");
    assert_eq!((seeded.major, seeded.minor), (0xF54F_014A, 0xD928_C19D));
}

#[test]
fn hashes_that_are_refused() {
    assert_eq!(
        DirHasher::new(6, false, &[0; 4]),
        Err(HtreeCorruption::SipHash)
    );
    for version in [3, 4, 5, 7, 255] {
        assert_eq!(
            DirHasher::new(version, false, &[0; 4]),
            Err(HtreeCorruption::HashVersion { version })
        );
    }
}

#[test]
fn a_root_leads_to_its_blocks() {
    let block = index(Some(0), &[(0, 1), (10, 2), (10, 3), (21, 0xF000_0004)]);
    let root = DxRoot::parse(&block, &FORMAT).unwrap();
    assert_eq!((root.hash_version, root.indirect_levels), (1, 0));
    assert_eq!(root.parent, InodeNo(2));
    let node = root.node;
    assert_eq!(node.len(), 4);
    for (major, at) in [(0, 0), (8, 0), (10, 2), (20, 2), (22, 3), (u32::MAX, 3)] {
        assert_eq!(node.find(major), at, "{major}");
    }
    assert_eq!(node.get(0), Some((0, FileBlock(1))));
    assert_eq!(
        node.get(3),
        Some((21, FileBlock(4))),
        "upper bits are reserved"
    );
    assert_eq!(node.get(4), None);
    // The names of hash 20 go on in the block of the entry 21, and only those.
    assert!(continues(21, 20));
    assert!(!continues(21, 22));
    assert!(!continues(21, 10));
}

#[test]
fn roots_are_checked() {
    assert!(matches!(root_corruption(4, 16), HtreeCorruption::Dots));
    assert!(matches!(root_corruption(8, b'x'), HtreeCorruption::Dots));
    assert!(matches!(root_corruption(16, 0), HtreeCorruption::Dots));
    assert!(matches!(root_corruption(21, b'x'), HtreeCorruption::Dots));
    assert_eq!(
        root_corruption(24, 1),
        HtreeCorruption::Reserved { found: 1 }
    );
    assert_eq!(
        root_corruption(28, 4),
        HtreeCorruption::HashVersion { version: 4 }
    );
    assert_eq!(root_corruption(28, 6), HtreeCorruption::SipHash);
    assert_eq!(
        root_corruption(29, 9),
        HtreeCorruption::InfoLength { length: 9 }
    );
    assert_eq!(
        root_corruption(30, 2),
        HtreeCorruption::Levels { levels: 2, most: 1 }
    );
    assert_eq!(root_corruption(31, 1), HtreeCorruption::Flags { flags: 1 });
    assert_eq!(root_corruption(31, 3), HtreeCorruption::Flags { flags: 3 });
    let mut others = index(Some(1), &[(0, 1), (10, 2)]);
    others[31] = 0x2E;
    assert!(DxRoot::parse(&others, &FORMAT).is_ok());
    assert_eq!(
        root_corruption(32, 124),
        HtreeCorruption::Limit {
            limit: 124,
            due: 123
        }
    );
    assert_eq!(
        root_corruption(34, 0),
        HtreeCorruption::Count {
            count: 0,
            limit: 123
        }
    );
    assert_eq!(
        root_corruption(34, 124),
        HtreeCorruption::Count {
            count: 124,
            limit: 123
        }
    );
    for block in [0, 100] {
        assert!(matches!(
            root_corruption(44, block),
            HtreeCorruption::Block { at: 1, .. }
        ));
    }
    let deep = index(Some(2), &[(0, 1)]);
    let large = HtreeFormat {
        large_dir: true,
        ..FORMAT
    };
    assert!(DxRoot::parse(&deep, &large).is_ok());
    assert!(DxRoot::parse(&index(Some(3), &[(0, 1)]), &large).is_err());
    let without = HtreeFormat {
        checksums: false,
        ..FORMAT
    };
    assert!(matches!(
        DxRoot::parse(&deep, &without),
        Err(Corruption::Htree(HtreeCorruption::Levels { .. }))
    ));
    assert!(matches!(
        DxRoot::parse(&index(Some(0), &[(0, 1)]), &without),
        Err(Corruption::Htree(HtreeCorruption::Limit { due: 124, .. }))
    ));
}

#[test]
fn nodes_are_checked() {
    let node = index(None, &[(0, 1), (50, 2), (60, 3)]);
    assert!(is_node(&node));
    let view = DxNode::parse(&node, &FORMAT, 40).unwrap();
    assert_eq!(view.get(0), Some((40, FileBlock(1))));
    assert_eq!(view.find(41), 0);
    assert_eq!(view.iter().count(), 3);
    assert_eq!(
        DxNode::parse(&node, &FORMAT, 51).unwrap_err(),
        HtreeCorruption::Order {
            at: 1,
            hash: 50,
            floor: 51
        }
        .into()
    );
    assert_eq!(
        DxNode::parse(&index(None, &[(0, 1), (60, 2), (58, 3)]), &FORMAT, 0).unwrap_err(),
        HtreeCorruption::Order {
            at: 2,
            hash: 58,
            floor: 60
        }
        .into()
    );
    let root = index(Some(0), &[(0, 1)]);
    assert!(!is_node(&root));
    assert_eq!(
        DxNode::parse(&root, &FORMAT, 0).unwrap_err(),
        HtreeCorruption::NotANode.into()
    );
}

#[test]
fn checksums_cover_what_is_used() {
    for levels in [Some(0), None] {
        let mut block = index(levels, &[(0, 1), (10, 2)]);
        update_checksum(&mut block, ChecksumSeed(9)).unwrap();
        verify_checksum(&block, ChecksumSeed(9)).unwrap();
        assert!(verify_checksum(&block, ChecksumSeed(8)).is_err());
        // Unused entries do not count.
        block[500] = 1;
        verify_checksum(&block, ChecksumSeed(9)).unwrap();
        block[if levels.is_some() { 40 } else { 16 }] ^= 1;
        assert!(matches!(
            verify_checksum(&block, ChecksumSeed(9)),
            Err(Corruption::Checksum { .. })
        ));
    }
    assert_eq!(
        verify_checksum(&[1; 1024], ChecksumSeed(0)),
        Err(HtreeCorruption::NotANode.into())
    );
}

proptest! {
    #[test]
    fn hashes_leave_bit_0_and_the_end_alone(
        name in proptest::collection::vec(any::<u8>(), 0..300),
        version in 0..3_u8,
        unsigned in any::<bool>(),
        seed in any::<[u32; 4]>(),
    ) {
        let hash = DirHasher::new(version, unsigned, &seed).unwrap().hash(&name);
        prop_assert_eq!(hash.major & 1, 0);
        prop_assert!(hash.major < 0xFFFF_FFFE);
        if name.is_ascii() {
            let other = DirHasher::new(version, !unsigned, &seed).unwrap().hash(&name);
            prop_assert_eq!(hash, other);
        }
    }

    #[test]
    fn a_search_finds_the_last_that_is_not_above(
        mut hashes in proptest::collection::vec(0..500_u32, 1..100),
        major in 0..600_u32,
    ) {
        hashes.sort_unstable();
        let entries: Vec<_> = hashes.iter().map(|hash| (*hash, 1)).collect();
        let block = index(None, &entries);
        let node = DxNode::parse(&block, &FORMAT, 0).unwrap();
        let expected = hashes.iter().skip(1).filter(|hash| **hash <= major).count();
        prop_assert_eq!(node.find(major), expected);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        count in 0..200_u16,
        as_root in any::<bool>(),
    ) {
        let mut block = index(as_root.then_some(0), &[(0, 1); 3]);
        let start = if as_root { 34 } else { 10 };
        block[start..start + 2].copy_from_slice(&count.to_le_bytes());
        for (place, byte) in block[start + 2..].iter_mut().zip(&bytes) {
            *place = *byte;
        }
        for mut block in [block, bytes] {
            let _ = update_checksum(&mut block, ChecksumSeed(1));
            let _ = verify_checksum(&block, ChecksumSeed(1));
            if let Ok(root) = DxRoot::parse(&block, &FORMAT) {
                prop_assert_eq!(root.node.iter().count(), root.node.len());
            }
            if let Ok(node) = DxNode::parse(&block, &FORMAT, 0) {
                prop_assert!(node.iter().all(|(_, block)| block.0 < 100));
                prop_assert!(node.find(u32::from(count)) < node.len());
            }
        }
    }
}
