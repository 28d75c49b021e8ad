//! Tests of group descriptors by hand-made ones. Real ones are in `image_tests`.

use proptest::prelude::*;

use super::*;
use crate::test_superblock::{edit_features, sample};

/// A descriptor of group 2 of the sample, valid, with a right checksum.
fn sample_desc(sb: &Superblock) -> GroupDesc {
    let mut desc = GroupDesc::read(&vec![0; sb.desc_size()], GroupNo(2), sb).unwrap();
    desc.set_locations(BlockNo(300), BlockNo(301), BlockNo(400));
    desc.set_free_clusters(100);
    desc.update_checksum(sb);
    desc
}

fn parse(desc: &GroupDesc, sb: &Superblock) -> Result<GroupDesc, Corruption> {
    let mut bytes = vec![0; sb.desc_size()];
    desc.write_to(&mut bytes).unwrap();
    GroupDesc::parse(&bytes, desc.group(), sb)
}

#[test]
fn a_changed_bit_fails_the_checksum_of_either_kind() {
    for list in [
        "metadata_csum",
        "^metadata_csum,uninit_bg",
        "^metadata_csum,uninit_bg,^64bit,^flex_bg,flex_bg",
    ] {
        let sb = sample(|raw| edit_features(raw, list));
        let desc = sample_desc(&sb);
        assert_eq!(parse(&desc, &sb), Ok(desc.clone()), "{list}");
        for bit in 0..sb.desc_size() * 8 {
            let mut bytes = vec![0; sb.desc_size()];
            desc.write_to(&mut bytes).unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = GroupDesc::parse(&bytes, desc.group(), &sb).unwrap_err();
            assert!(
                matches!(error, Corruption::Checksum { .. }),
                "{list}: bit {bit}: {error}"
            );
        }
        let mut bytes = vec![0; sb.desc_size()];
        desc.write_to(&mut bytes).unwrap();
        let other = GroupDesc::parse(&bytes, GroupNo(3), &sb).unwrap_err();
        assert!(
            matches!(other, Corruption::Checksum { .. }),
            "it belongs to its group: {other}"
        );
    }
}

#[test]
fn bytes_behind_the_known_fields_are_summed_and_kept() {
    for list in ["metadata_csum", "^metadata_csum,uninit_bg"] {
        let sb = sample(|raw| {
            edit_features(raw, list);
            raw.s_desc_size = 128.into();
        });
        let mut bytes = vec![0xA5; 128];
        sample_desc(&sb).write_to(&mut bytes).unwrap();
        bytes[64..].fill(0xA5);
        let mut desc = GroupDesc::read(&bytes, GroupNo(2), &sb).unwrap();
        desc.update_checksum(&sb);
        let mut written = vec![0; 128];
        desc.write_to(&mut written).unwrap();
        assert_eq!(written[64..], [0xA5; 64]);
        assert!(GroupDesc::parse(&written, GroupNo(2), &sb).is_ok());
        written[127] ^= 1;
        assert!(GroupDesc::parse(&written, GroupNo(2), &sb).is_err());
    }
}

#[test]
fn locations_must_lie_in_the_file_system_or_the_group() {
    let sb = sample(|_| ());
    let range = |what, block, last| Corruption::GroupBlockRange {
        what,
        group: GroupNo(2),
        block,
        first: 1,
        last,
    };
    let mut desc = sample_desc(&sb);
    let mut check = |bitmap, inodes, table, expected| {
        desc.set_locations(BlockNo(bitmap), BlockNo(inodes), BlockNo(table));
        desc.update_checksum(&sb);
        assert_eq!(parse(&desc, &sb).map(|_| ()), expected);
    };
    let overlap = |what, block, other| Corruption::GroupBlockOverlap {
        what,
        group: GroupNo(2),
        block,
        other,
    };
    check(300, 301, 400, Ok(()));
    check(65535, 301, 400, Ok(()));
    // Where a group without a copy of the superblock begins, nothing is taken.
    let start = sb.first_block_of_group(GroupNo(2)).0;
    check(300, 301, start - 100, Ok(()));
    check(65536, 301, 400, Err(range("block bitmap", 65536, 65535)));
    check(0, 301, 400, Err(range("block bitmap", 0, 65535)));
    check(
        300,
        u64::MAX,
        400,
        Err(range("inode bitmap", u64::MAX, 65535)),
    );
    // The table has 512 blocks.
    check(300, 301, 65536 - 512, Ok(()));
    check(
        300,
        301,
        65536 - 511,
        Err(range("inode table", 65536 - 511, 65535)),
    );
    check(
        300,
        301,
        u64::MAX,
        Err(range("inode table", u64::MAX, 65535)),
    );
    check(
        1,
        301,
        400,
        Err(overlap("block bitmap", 1, "the superblock")),
    );
    check(
        300,
        2,
        400,
        Err(overlap("inode bitmap", 2, "the superblock")),
    );
    check(
        300,
        300,
        400,
        Err(overlap("inode bitmap", 300, "block bitmap")),
    );
    check(
        911,
        301,
        400,
        Err(overlap("inode table", 400, "block bitmap")),
    );
    check(912, 301, 400, Ok(()));

    let sb = sample(|raw| edit_features(raw, "^flex_bg"));
    let first = sb.first_block_of_group(GroupNo(2)).0;
    let mut desc = sample_desc(&sb);
    desc.set_locations(BlockNo(first), BlockNo(first + 1), BlockNo(first + 2));
    desc.update_checksum(&sb);
    assert!(parse(&desc, &sb).is_ok());
    desc.set_locations(BlockNo(first - 1), BlockNo(first + 1), BlockNo(first + 2));
    desc.update_checksum(&sb);
    assert!(
        matches!(parse(&desc, &sb), Err(Corruption::GroupBlockRange { .. })),
        "not in its group"
    );
}

#[test]
fn counts_are_compared_with_the_group() {
    let sb = sample(|_| ());
    let mut desc = sample_desc(&sb);
    assert_eq!(desc.check_counts(&sb), Ok(()));
    desc.set_free_clusters(8193);
    let wrong = Corruption::GroupCounter {
        what: "free clusters",
        group: GroupNo(2),
        count: 8193,
        max: 8192,
    };
    assert_eq!(desc.check_counts(&sb), Err(wrong));
    desc.set_free_clusters(8192);
    desc.set_free_inodes(2048);
    desc.set_used_dirs(1);
    assert!(
        desc.check_counts(&sb).is_err(),
        "a directory, and every inode free"
    );
    desc.set_used_dirs(0);
    desc.set_itable_unused(2049);
    assert!(desc.check_counts(&sb).is_err());
}

#[test]
fn short_descriptors_hold_low_halves_only() {
    let sb = sample(|raw| edit_features(raw, "^64bit"));
    let mut desc = sample_desc(&sb);
    desc.set_block_bitmap_checksum(0x1234_5678);
    let stored = desc.block_bitmap_checksum();
    assert_eq!(
        stored,
        StoredChecksum {
            value: 0x5678,
            mask: 0xFFFF
        }
    );
    assert!(stored.verify("block bitmap", 0x1234_5678).is_ok());
    assert!(stored.verify("block bitmap", 0x1234_5679).is_err());
    let sb = sample(|_| ());
    let mut desc = sample_desc(&sb);
    desc.set_inode_bitmap_checksum(0x1234_5678);
    assert!(
        desc.inode_bitmap_checksum()
            .verify("inode bitmap", 0x1235_5678)
            .is_err()
    );
    assert!(
        desc.inode_bitmap_checksum()
            .verify("inode bitmap", 0x1234_5678)
            .is_ok()
    );
}

#[test]
fn flags_mean_nothing_without_checksums() {
    let sb = sample(|raw| edit_features(raw, "^metadata_csum"));
    let mut desc = sample_desc(&sb);
    desc.set_flags(GroupFlags::BLOCK_UNINIT);
    assert!(desc.flags(&sb).is_empty());
    let sb = sample(|_| ());
    assert_eq!(desc.flags(&sb), GroupFlags::BLOCK_UNINIT);
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        group in any::<u32>(),
        list in prop_oneof!["metadata_csum", "\\^metadata_csum", "\\^64bit", "bigalloc", "\\^flex_bg"],
    ) {
        let sb = sample(|raw| edit_features(raw, &list));
        let _ = GroupDesc::parse(&bytes, GroupNo(group), &sb);
        if let Ok(mut desc) = GroupDesc::read(&bytes, GroupNo(group), &sb) {
            let _ = desc.check_counts(&sb);
            let mut written = vec![0; sb.desc_size()];
            desc.write_to(&mut written).unwrap();
            prop_assert_eq!(&written[..], &bytes[..sb.desc_size()]);
            desc.update_checksum(&sb);
            desc.write_to(&mut written).unwrap();
            let again = GroupDesc::parse(&written, GroupNo(group), &sb);
            let mended = !matches!(again, Err(Corruption::Checksum { .. }));
            prop_assert!(mended);
            let _ = crate::bitmap::verify_block_bitmap(&written, &desc, &sb);
            let bits = crate::bitmap::uninit_block_bitmap(GroupNo(group), [&desc], &sb);
            prop_assert_eq!(bits.len(), 1024);
        }
    }
}
