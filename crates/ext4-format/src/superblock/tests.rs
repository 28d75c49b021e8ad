//! Tests of the superblock: each check, and any bytes. Real ones are in `image_tests`.

use proptest::prelude::*;

use super::*;
use crate::ids::GroupNo;
use crate::test_superblock::{edit_features, sample, sample_bytes, sample_raw};

fn parse_with(change: impl FnOnce(&mut RawSuperblock)) -> Result<Superblock, Corruption> {
    Superblock::parse(&sample_bytes(change), None)
}

#[test]
fn what_is_no_file_system_is_told_from_what_is_damaged() {
    assert_eq!(
        Superblock::parse(&[0; 1024], None),
        Err(Corruption::NotExt { magic: 0 })
    );
    let have = Corruption::Truncated {
        what: "superblock",
        needed: 1024,
        have: 1023,
    };
    assert_eq!(
        Superblock::parse(&sample_bytes(|_| ())[..1023], None),
        Err(have)
    );
    let mut bytes = sample_bytes(|_| ());
    bytes[0x70] ^= 1;
    let error = Superblock::parse(&bytes, None).unwrap_err();
    assert!(
        matches!(
            error,
            Corruption::Checksum {
                what: "superblock",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_cut_off_image_is_reported_with_both_sizes() {
    let bytes = sample_bytes(|_| ());
    let needed_bytes = 65536 * 1024;
    assert!(Superblock::parse(&bytes, Some(needed_bytes)).is_ok());
    let device_bytes = needed_bytes - 1;
    let error = Superblock::parse(&bytes, Some(device_bytes)).unwrap_err();
    assert_eq!(
        error,
        Corruption::ImageTruncated {
            needed_bytes,
            device_bytes
        }
    );
    assert!(error.to_string().contains("67108864") && error.to_string().contains("67108863"));
}

/// A change of one field and the check that it must fail.
type Hostile = (fn(&mut RawSuperblock), Corruption);

#[test]
fn every_check_rejects_what_it_is_for() {
    let group = |blocks_per_group, clusters_per_group| Corruption::BlocksPerGroup {
        blocks_per_group,
        clusters_per_group,
    };
    let inodes = |inodes_per_group| Corruption::InodesPerGroup { inodes_per_group };
    let record = |inode_size| Corruption::InodeRecordSize {
        inode_size,
        block_size: 1024,
    };
    let cases: Vec<Hostile> = vec![
        (
            |raw| raw.s_log_block_size = 7.into(),
            Corruption::BlockSize { log_block_size: 7 },
        ),
        (
            |raw| raw.s_log_block_size = u32::MAX.into(),
            Corruption::BlockSize {
                log_block_size: u32::MAX,
            },
        ),
        (
            |raw| raw.s_log_cluster_size = 1.into(),
            Corruption::ClusterSize {
                log_cluster_size: 1,
                log_block_size: 0,
            },
        ),
        (
            |raw| {
                edit_features(raw, "bigalloc");
                raw.s_log_block_size = 2.into();
                raw.s_log_cluster_size = 1.into();
            },
            Corruption::ClusterSize {
                log_cluster_size: 1,
                log_block_size: 2,
            },
        ),
        (
            |raw| {
                edit_features(raw, "bigalloc");
                raw.s_log_cluster_size = 21.into();
            },
            Corruption::ClusterSize {
                log_cluster_size: 21,
                log_block_size: 0,
            },
        ),
        (|raw| raw.s_blocks_per_group = 0.into(), group(0, 0)),
        (
            |raw| raw.s_blocks_per_group = 8200.into(),
            group(8200, 8200),
        ),
        (
            |raw| raw.s_blocks_per_group = 8191.into(),
            group(8191, 8191),
        ),
        (
            |raw| {
                edit_features(raw, "bigalloc");
                raw.s_log_cluster_size = 2.into();
                raw.s_clusters_per_group = 4096.into();
            },
            group(8192, 4096),
        ),
        (|raw| raw.s_inodes_per_group = 0.into(), inodes(0)),
        (|raw| raw.s_inodes_per_group = 2047.into(), inodes(2047)),
        (|raw| raw.s_inodes_per_group = 8200.into(), inodes(8200)),
        (|raw| raw.s_inode_size = 64.into(), record(64)),
        (|raw| raw.s_inode_size = 192.into(), record(192)),
        (|raw| raw.s_inode_size = 2048.into(), record(2048)),
        (|raw| raw.s_inode_size = 0.into(), record(0)),
        (
            |raw| raw.s_desc_size = 32.into(),
            Corruption::DescriptorSize { desc_size: 32 },
        ),
        (
            |raw| raw.s_desc_size = 96.into(),
            Corruption::DescriptorSize { desc_size: 96 },
        ),
        (
            |raw| raw.s_desc_size = 2048.into(),
            Corruption::DescriptorSize { desc_size: 2048 },
        ),
        (
            |raw| raw.s_first_data_block = 0.into(),
            Corruption::FirstDataBlock {
                first_data_block: 0,
                expected: 1,
            },
        ),
        (
            |raw| raw.s_first_data_block = u32::MAX.into(),
            Corruption::FirstDataBlock {
                first_data_block: u32::MAX,
                expected: 1,
            },
        ),
        (
            |raw| raw.s_blocks_count_lo = 0.into(),
            Corruption::BlocksCount { blocks_count: 0 },
        ),
        (
            |raw| raw.s_blocks_count_lo = 1.into(),
            Corruption::BlocksCount { blocks_count: 1 },
        ),
        (
            |raw| raw.s_blocks_count_hi = 0x1_0000.into(),
            Corruption::BlocksCount {
                blocks_count: (1 << 48) + 65536,
            },
        ),
        (
            |raw| {
                edit_features(raw, "^64bit");
                raw.s_blocks_count_hi = 1.into();
            },
            Corruption::BlocksCount {
                blocks_count: (1 << 32) + 65536,
            },
        ),
        (
            |raw| {
                raw.s_blocks_count_hi = 0xFFFF.into();
                raw.s_blocks_per_group = 8.into();
            },
            Corruption::GroupCount {
                groups: ((0xFFFF_u64 << 32) + 65535).div_ceil(8),
            },
        ),
        (
            |raw| raw.s_inodes_count = 12.into(),
            Corruption::InodesCount {
                inodes_count: 12,
                groups: 8,
                inodes_per_group: 2048,
            },
        ),
        (
            |raw| raw.s_first_ino = 10.into(),
            Corruption::FirstInode {
                first_ino: 10,
                inodes_count: 16384,
            },
        ),
        (
            |raw| raw.s_first_ino = 16385.into(),
            Corruption::FirstInode {
                first_ino: 16385,
                inodes_count: 16384,
            },
        ),
        (
            |raw| raw.s_reserved_gdt_blocks = 257.into(),
            Corruption::ReservedGdtBlocks {
                reserved_gdt_blocks: 257,
            },
        ),
        (
            |raw| {
                edit_features(raw, "meta_bg");
                raw.s_first_meta_bg = 2.into();
            },
            Corruption::FirstMetaBg {
                first_meta_bg: 2,
                gdt_blocks: 1,
            },
        ),
        (
            |raw| raw.s_checksum_type = 2,
            Corruption::ChecksumType { checksum_type: 2 },
        ),
        (
            |raw| {
                raw.s_blocks_per_group = 8.into();
                raw.s_blocks_count_lo = 65.into();
                raw.s_inodes_per_group = 32.into();
                raw.s_inodes_count = 256.into();
            },
            Corruption::Overhead {
                needed: 80,
                blocks_count: 65,
            },
        ),
        (
            |raw| {
                raw.s_blocks_count_lo = 2.into();
                raw.s_inodes_per_group = 16.into();
                raw.s_inodes_count = 16.into();
            },
            Corruption::DescriptorTable {
                gdt_blocks: 1,
                blocks_count: 2,
            },
        ),
    ];
    for (index, (change, expected)) in cases.into_iter().enumerate() {
        assert_eq!(parse_with(change), Err(expected), "case {index}");
    }
}

#[test]
fn revision_0_has_fixed_inodes() {
    let sb = sample(|raw| {
        raw.s_rev_level = 0.into();
        raw.s_inode_size = 7.into();
        raw.s_first_ino = 0.into();
    });
    assert_eq!((sb.inode_size(), sb.first_inode()), (128, InodeNo(11)));
}

#[test]
fn backups_are_in_group_1_and_powers_of_3_5_and_7() {
    let sb = sample(|_| ());
    let with = |sb: &Superblock| {
        (0..400)
            .filter(|group| sb.has_super(GroupNo(*group)))
            .collect::<Vec<_>>()
    };
    assert_eq!(with(&sb), [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343]);
    let sb = sample(|raw| edit_features(raw, "^sparse_super"));
    assert_eq!(with(&sb).len(), 400);
    let sb = sample(|raw| {
        edit_features(raw, "sparse_super2");
        raw.s_backup_bgs = [1.into(), 6.into()];
    });
    assert_eq!(with(&sb), [0, 1, 6]);
    let sb = sample(|_| ());
    assert!(
        !sb.has_super(GroupNo(u32::MAX)),
        "the search for a power ends"
    );
}

#[test]
fn spread_descriptors_lie_in_the_first_second_and_last_group() {
    // 64-byte descriptors in blocks of 1 KiB: 16 groups in a meta group.
    let sb = sample(|raw| {
        edit_features(raw, "meta_bg,^resize_inode");
        raw.s_reserved_gdt_blocks = 0.into();
        raw.s_blocks_count_lo = (40 * 8192 + 1).into();
        raw.s_inodes_count = (40 * 2048).into();
        raw.s_first_meta_bg = 1.into();
    });
    let first = |group: u64| group * 8192 + 1;
    assert_eq!(
        sb.descriptor_block(0),
        Ok(BlockNo(2)),
        "before the first meta group"
    );
    assert_eq!(
        sb.descriptor_block(1),
        Ok(BlockNo(first(16))),
        "no superblock in group 16"
    );
    assert_eq!(sb.descriptor_block(2), Ok(BlockNo(first(32))));
    let copies = sb.backup_descriptor_blocks(1).unwrap();
    assert_eq!(copies, [BlockNo(first(17)), BlockNo(first(31))]);
    assert_eq!(
        sb.backup_descriptor_blocks(2).unwrap(),
        [BlockNo(first(33))],
        "the last is not there"
    );
    let base = |group| {
        let base = sb.base_metadata(GroupNo(group));
        base.end.0 - base.start.0
    };
    assert_eq!(
        [0, 1, 2, 3, 16, 17, 18, 25, 31].map(base),
        [2, 2, 0, 2, 1, 1, 0, 1, 1]
    );
    assert!(sb.descriptor_block(3).is_err());
}

#[test]
fn groups_blocks_and_inodes_find_each_other() {
    let sb = sample(|raw| raw.s_blocks_count_lo = 65000.into());
    assert_eq!(sb.group_of_block(BlockNo(1)), Ok((GroupNo(0), 0)));
    assert_eq!(sb.group_of_block(BlockNo(8192)), Ok((GroupNo(0), 8191)));
    assert_eq!(sb.group_of_block(BlockNo(8193)), Ok((GroupNo(1), 0)));
    assert_eq!(sb.blocks_in_group(GroupNo(7)), 65000 - 1 - 7 * 8192);
    assert_eq!(sb.blocks_in_group(GroupNo(8)), 0);
    for outside in [0, 65000, u64::MAX] {
        assert!(sb.group_of_block(BlockNo(outside)).is_err());
    }
    let place = sb.locate_inode(InodeNo(2048 + 6)).unwrap();
    let expected = InodeLocation {
        group: GroupNo(1),
        index: 5,
        table_block: 1,
        offset: 256,
    };
    assert_eq!(place, expected);
    assert!(sb.locate_inode(InodeNo(0)).is_err() && sb.locate_inode(InodeNo(16385)).is_err());
    assert_eq!(sb.inode_of_group(GroupNo(7), 2047), Some(InodeNo(16384)));
    assert_eq!(sb.inode_of_group(GroupNo(8), 0), None);
}

#[test]
fn fields_go_in_and_come_out() {
    let mut sb = sample(|raw| {
        raw.s_volume_name[..4].copy_from_slice(b"disk");
        raw.s_last_mounted[..2].copy_from_slice(b"/\xFF");
        raw.s_flags = 2.into();
        raw.s_errors = 2.into();
        raw.s_jnl_backup_type = 1;
        raw.s_jnl_blocks[0] = 0xF30A.into();
        raw.s_jnl_blocks[15] = 1.into();
        raw.s_jnl_blocks[16] = 5.into();
        raw.s_journal_inum = 8.into();
    });
    assert_eq!(
        (sb.volume_name(), sb.last_mounted()),
        (&b"disk"[..], &b"/\xFF"[..])
    );
    assert!(sb.hash_is_unsigned());
    assert_eq!(sb.error_behaviour(), ErrorBehaviour::RemountReadOnly);
    let (map, size) = sb.journal_backup().unwrap();
    assert_eq!((map[0], size), (0xF30A, (1 << 32) + 5));
    assert_eq!(sb.journal_inode(), Some(InodeNo::JOURNAL));
    assert_eq!((sb.orphan_file_inode(), sb.mmp_block()), (None, None));

    let late = (1 << 33) + 77;
    sb.set_mount_time(late);
    sb.set_write_time(late + 1);
    sb.set_free_blocks_count(1 << 40);
    sb.set_free_inodes_count(7);
    sb.set_reserved_blocks_count((1 << 33) + 1);
    sb.set_state(State::VALID | State::ERROR);
    sb.set_last_orphan(Some(InodeNo(12)));
    let mut features = sb.features();
    features.incompat |= Incompat::RECOVER;
    sb.set_features(features);
    let error = |line| ErrorRecord {
        time_seconds: late,
        ino: 12,
        block: 1 << 40,
        function: "lookup".into(),
        line,
        code: 3,
    };
    assert_eq!(sb.error_records(), None);
    sb.record_error(&error(1));
    sb.record_error(&error(2));
    assert!(
        Superblock::parse(sb.as_bytes(), None).is_err(),
        "the checksum is old"
    );
    sb.update_checksum();
    let again = Superblock::parse(sb.as_bytes(), None).unwrap();
    assert_eq!(again, sb);
    assert_eq!((again.mount_time(), again.write_time()), (late, late + 1));
    assert_eq!(
        (again.free_blocks_count(), again.free_inodes_count()),
        (1 << 40, 7)
    );
    assert_eq!(again.reserved_blocks_count(), (1 << 33) + 1);
    assert_eq!(again.state(), State::VALID | State::ERROR);
    assert_eq!(again.last_orphan(), Some(InodeNo(12)));
    assert!(again.has_incompat(Incompat::RECOVER));
    assert_eq!(again.error_records(), Some((error(1), error(2))));
    assert_eq!(again.raw().s_error_count, 2);
}

#[test]
fn the_stored_seed_survives_a_new_uuid() {
    let sb = sample(|raw| {
        edit_features(raw, "metadata_csum_seed");
        raw.s_checksum_seed = 0x1234_5678.into();
    });
    assert_eq!(sb.checksum_seed(), ChecksumSeed(0x1234_5678));
    assert_eq!(
        sample(|_| ()).checksum_seed(),
        ChecksumSeed::of_uuid(b"0123456789abcdef")
    );
}

/// Calls everything that computes something, and checks what must hold of it.
fn exercise(sb: &Superblock) {
    let last = GroupNo(sb.group_count() - 1);
    assert!(sb.blocks_in_group(last) > 0 && sb.blocks_in_group(last) <= sb.blocks_per_group());
    assert_eq!(
        sb.first_block_of_group(last).0 + u64::from(sb.blocks_in_group(last)),
        sb.blocks_count(),
        "groups fill the file system"
    );
    let block = BlockNo(sb.blocks_count() - 1);
    assert_eq!(
        sb.group_of_block(block),
        Ok((last, sb.blocks_in_group(last) - 1))
    );
    let place = sb.locate_inode(InodeNo(sb.inodes_count())).unwrap();
    assert_eq!(place.group, last);
    assert!(place.table_block < sb.inode_table_blocks());
    assert!(place.offset + sb.inode_size() <= sb.block_size() as usize);
    assert!(sb.locate_inode(sb.first_inode()).is_ok());
    for group in [GroupNo(0), GroupNo(1), last, GroupNo(u32::MAX)] {
        let base = sb.base_metadata(group);
        assert!(base.start <= base.end);
        let reserved = sb.reserved_descriptor_blocks(group);
        assert!(base.start <= reserved.start && reserved.end == base.end);
        let _ = sb.has_super(group);
        if let Ok((index, offset)) = sb.locate_descriptor(group) {
            assert!(offset + sb.desc_size() <= sb.block_size() as usize);
            assert!(
                sb.descriptor_block(index)
                    .is_ok_and(|block| sb.contains_block(block))
                    || index > 0
            );
            if sb.group_count() < 10_000 {
                let copies = sb.backup_descriptor_blocks(index).unwrap();
                assert!(copies.iter().all(|block| sb.contains_block(*block)));
            }
        }
    }
    assert!(sb.cluster_size() >= sb.block_size() && sb.groups_per_flex().is_power_of_two());
    let _ = (
        sb.features().to_string(),
        sb.error_records(),
        sb.journal_backup(),
        sb.quota_inodes(),
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_parsed_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..1100), magic in any::<bool>()) {
        if magic && bytes.len() > 0x3A {
            bytes[0x38..0x3A].copy_from_slice(&MAGIC.to_le_bytes());
        }
        if let Ok(sb) = Superblock::parse(&bytes, None) {
            exercise(&sb);
        }
    }

    /// One to three fields of a valid superblock are changed to numbers that tend to break
    /// things, and the checksum is mended.
    #[test]
    fn near_misses_are_parsed_or_refused(
        changes in proptest::collection::vec((0..0xFF_usize, hostile_number()), 1..4),
        device in proptest::option::of(any::<u64>()),
    ) {
        let mut bytes = sample_raw().as_bytes().to_vec();
        for (word, number) in changes {
            bytes[word * 4..word * 4 + 4].copy_from_slice(&number.to_le_bytes());
        }
        let raw = RawSuperblock::read(&bytes);
        prop_assume!(raw.is_ok());
        let mut raw = raw.unwrap();
        raw.s_checksum = raw.compute_checksum().into();
        if let Ok(sb) = Superblock::parse(raw.as_bytes(), device) {
            exercise(&sb);
            prop_assert_eq!(sb.as_bytes(), raw.as_bytes());
        }
    }
}

fn hostile_number() -> impl Strategy<Value = u32> {
    let power = (0..32_u32).prop_map(|bit| 1 << bit);
    let near =
        (0..32_u32, 0..3_u32).prop_map(|(bit, by)| (1_u32 << bit).wrapping_add(by).wrapping_sub(1));
    prop_oneof![power, near, any::<u32>(), Just(0), Just(u32::MAX)]
}
