//! Tests of the journal's format: what is built reads back, what is damaged is told, and no
//! bytes do harm.

use proptest::prelude::*;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::checksum::{crc32_be, data_checksum, seed_of_uuid};
use super::descriptor::{self, TagChecksum, TagFlags};
use super::fast_commit::{FastCommitScan, tags as fast_tags, update_checksums};
use super::superblock::{RawJournalSuperblock, SuperblockUpdate};
use super::*;
use crate::checksum::crc32c;
use crate::ids::{BlockNo, InodeNo};

const REVOKE: u32 = 1;
const WIDE: u32 = 2;
const ASYNC: u32 = 4;
const V2: u32 = 8;
const V3: u32 = 0x10;
const FAST: u32 = 0x20;

fn format(block_size: u32, compat: u32, incompat: u32) -> LogFormat {
    LogFormat {
        block_size,
        features: JournalFeatures::new(compat, incompat).unwrap(),
        seed: seed_of_uuid(b"0123456789abcdef"),
    }
}

/// Every layout that tags can have.
fn formats() -> Vec<LogFormat> {
    let mut formats = Vec::new();
    for block_size in [1024, 4096] {
        for (compat, incompat) in [
            (0, 0),
            (1, 0),
            (0, WIDE),
            (1, WIDE | ASYNC),
            (0, V2),
            (0, V2 | WIDE),
            (0, V3),
            (0, V3 | WIDE),
        ] {
            formats.push(format(block_size, compat, incompat | REVOKE));
        }
    }
    formats
}

fn superblock(version_2: bool, compat: u32, incompat: u32) -> Vec<u8> {
    let mut raw = RawJournalSuperblock::new_zeroed();
    let kind = if version_2 {
        BlockKind::SuperblockV2
    } else {
        BlockKind::SuperblockV1
    };
    raw.s_header = RawHeader::new(kind, Sequence(0));
    raw.s_blocksize = 4096.into();
    raw.s_maxlen = 2048.into();
    raw.s_first = 1.into();
    raw.s_sequence = 77.into();
    raw.s_start = 9.into();
    raw.s_feature_compat = compat.into();
    raw.s_feature_incompat = incompat.into();
    raw.s_uuid = *b"0123456789abcdef";
    raw.s_checksum_type = 4;
    let mut bytes = raw.as_bytes().to_vec();
    let checksum = crc32c(!0, &bytes);
    bytes[0xfc..0x100].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

#[test]
fn checksums_are_the_ones_of_the_kernel() {
    // CRC-32/MPEG-2 is this polynomial, order and start.
    assert_eq!(crc32_be(!0, b"123456789"), 0x0376_e6e7);
    assert_eq!(crc32_be(crc32_be(!0, b"1234"), b"56789"), 0x0376_e6e7);
    assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
}

#[test]
fn sequences_wrap_around() {
    let last = Sequence(u32::MAX);
    assert_eq!(last.next(), Sequence(0));
    assert!(last.next().is_at_least(last));
    assert!(!last.is_at_least(last.next()));
    assert!(last.is_at_least(last));
    assert!(Sequence(5).is_at_least(Sequence(4)));
    assert!(!Sequence(0).is_at_least(Sequence((1 << 31) - 1)));
}

#[test]
fn tag_sizes_follow_the_features() {
    let bytes = |incompat| TagFormat::of(&format(4096, 0, incompat)).tag_bytes();
    assert_eq!(
        [0, WIDE, V2, V2 | WIDE, V3, V3 | WIDE].map(bytes),
        [8, 12, 10, 14, 16, 16]
    );
}

#[test]
fn a_full_descriptor_reads_back_in_every_layout() {
    for format in formats() {
        let sequence = Sequence(u32::MAX);
        let high = if format.features.is_64bit() {
            7 << 32
        } else {
            0
        };
        let mut builder = DescriptorBuilder::new(format, sequence, [0xff; 16]);
        let capacity = DescriptorBuilder::capacity(&format);
        let mut written = Vec::new();
        for number in 0..u64::from(capacity) {
            let mut data = vec![number as u8; format.block_size as usize];
            if number % 3 == 0 {
                data[..4].copy_from_slice(&MAGIC_BYTES);
            }
            assert!(builder.push(BlockNo(high + number), &mut data).unwrap());
            assert_eq!(data[..4] == [0; 4], number % 3 == 0 || number % 256 == 0);
            written.push(data);
        }
        assert_eq!(builder.count(), capacity);
        let mut extra = MAGIC_BYTES.to_vec();
        assert!(!builder.push(BlockNo(1), &mut extra).unwrap());
        assert_eq!(extra, MAGIC_BYTES, "not escaped if not added");
        let block = builder.finish();
        assert_eq!(block.len(), format.block_size as usize);
        assert_eq!(
            Header::parse(&block),
            Some(Header {
                kind: BlockKind::Descriptor,
                sequence
            })
        );
        descriptor::check(&format, &block).unwrap();
        let tags: Vec<Tag> = descriptor::tags(&format, &block).unwrap().collect();
        assert_eq!(tags.len(), capacity as usize);
        for (number, (tag, data)) in tags.iter().zip(&written).enumerate() {
            assert_eq!(tag.block, BlockNo(high + number as u64));
            assert_eq!(tag.flags.contains(TagFlags::ESCAPE), number % 3 == 0);
            assert_eq!(tag.flags.contains(TagFlags::SAME_UUID), number > 0);
            assert_eq!(
                tag.flags.contains(TagFlags::LAST_TAG),
                number + 1 == tags.len()
            );
            assert!(tag.checksum.matches(format.seed, sequence, data));
            assert_eq!(tag.checksum == TagChecksum::None, !format.has_checksums());
            if format.has_checksums() {
                assert!(!tag.checksum.matches(format.seed, Sequence(1), data));
            }
        }
    }
}

#[test]
fn the_low_half_of_a_checksum_is_stored_in_version_2() {
    let format = format(1024, 0, V2);
    let mut data = vec![3; 1024];
    let mut builder = DescriptorBuilder::new(format, Sequence(8), [0; 16]);
    builder.push(BlockNo(1), &mut data).unwrap();
    let block = builder.finish();
    let tag = descriptor::tags(&format, &block).unwrap().next().unwrap();
    let whole = data_checksum(format.seed, Sequence(8), &data);
    assert_eq!(tag.checksum, TagChecksum::Low(whole as u16));
}

#[test]
fn a_large_block_number_needs_64bit() {
    let mut data = vec![0; 1024];
    let narrow = format(1024, 0, V3);
    let mut builder = DescriptorBuilder::new(narrow, Sequence(1), [0; 16]);
    let large = BlockNo(1 << 32);
    assert_eq!(
        builder.push(large, &mut data),
        Err(Corruption::JournalBlockRange { block: large })
    );
    assert!(revoke::build(&narrow, Sequence(1), &[large]).is_err());
    let wide = format(1024, 0, V3 | WIDE);
    let block = revoke::build(&wide, Sequence(1), &[large]).unwrap();
    assert_eq!(
        revoke::records(&wide, &block).unwrap().collect::<Vec<_>>(),
        [large]
    );
}

#[test]
fn revoke_blocks_read_back_and_keep_to_their_count() {
    for format in formats() {
        let capacity = u64::from(revoke::capacity(&format));
        let blocks: Vec<BlockNo> = (0..capacity).map(BlockNo).collect();
        let mut block = revoke::build(&format, Sequence(3), &blocks).unwrap();
        revoke::check(&format, &block).unwrap();
        let read: Vec<BlockNo> = revoke::records(&format, &block).unwrap().collect();
        assert_eq!(read, blocks);
        let more: Vec<BlockNo> = (0..=capacity).map(BlockNo).collect();
        assert!(revoke::build(&format, Sequence(3), &more).is_err());
        let body = format.block_size - if format.has_checksums() { 4 } else { 0 };
        for (count, ok) in [
            (0, false),
            (15, false),
            (16, true),
            (17, true),
            (body, true),
            (body + 1, false),
            (u32::MAX, false),
        ] {
            block[12..16].copy_from_slice(&count.to_be_bytes());
            assert_eq!(revoke::records(&format, &block).is_ok(), ok, "{count}");
        }
    }
}

#[test]
fn commit_blocks_carry_the_checksum_of_their_version() {
    for format in formats() {
        let block = CommitBlock::build(&format, Sequence(3), 1 << 40, 5, 0xabcd);
        assert_eq!(Header::parse(&block).unwrap().kind, BlockKind::Commit);
        let commit = CommitBlock::parse(&format, &block).unwrap();
        assert_eq!(commit.seconds, 1 << 40);
        assert_eq!(
            commit.transaction_crc32,
            format.features.checksum_v1().then_some(0xabcd)
        );
    }
    let v1 = format(1024, 1, 0);
    let mut block = CommitBlock::build(&v1, Sequence(3), 0, 0, 1);
    block[12] = 9;
    assert_eq!(
        CommitBlock::parse(&v1, &block),
        Err(Corruption::JournalChecksumType { kind: 9 })
    );
    block[12..20].fill(0);
    let unused = CommitBlock::parse(&v1, &block).unwrap();
    assert_eq!(unused.transaction_crc32, None);
}

#[test]
fn every_bit_of_a_checksummed_block_counts() {
    let format = format(1024, 0, V3 | WIDE);
    let mut data = vec![1; 1024];
    let mut builder = DescriptorBuilder::new(format, Sequence(1), [0; 16]);
    builder.push(BlockNo(1), &mut data).unwrap();
    let blocks = [
        builder.finish(),
        revoke::build(&format, Sequence(1), &[BlockNo(4)]).unwrap(),
        CommitBlock::build(&format, Sequence(1), 1, 1, 0),
    ];
    let check = |at: usize, block: &[u8]| match at {
        0 => descriptor::check(&format, block),
        1 => revoke::check(&format, block),
        _ => CommitBlock::parse(&format, block).map(|_| ()),
    };
    for (at, block) in blocks.iter().enumerate() {
        check(at, block).unwrap();
        for bit in 0..block.len() * 8 {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(check(at, &flipped), Err(Corruption::Checksum { .. })),
                "block {at}, bit {bit}"
            );
        }
    }
}

#[test]
fn a_superblock_reads_and_its_fields_are_checked() {
    let bytes = superblock(true, 0, V3 | WIDE | REVOKE);
    let parsed = JournalSuperblock::parse(&bytes, 4096, 2048).unwrap();
    assert_eq!(
        (parsed.first, parsed.end, parsed.start, parsed.sequence),
        (1, 2048, 9, Sequence(77))
    );
    assert!(parsed.fast_commit.is_empty());
    assert_eq!(parsed.advance(2047, 1), 1);
    assert_eq!(parsed.advance(2000, 2047), 2000);
    assert_eq!(parsed.log_blocks(), 2047);
    // Version 1 has no features, whatever lies there.
    let old = superblock(false, 1, V3);
    let old = JournalSuperblock::parse(&old, 4096, 2048).unwrap();
    assert!(!old.version_2 && !old.format.has_checksums());

    let refused = |at: usize, value: u32| {
        let mut bytes = superblock(true, 0, REVOKE);
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        JournalSuperblock::parse(&bytes, 4096, 2048).unwrap_err()
    };
    assert_eq!(refused(0, 1), Corruption::JournalMagic { found: 1 });
    assert_eq!(refused(4, 1), Corruption::JournalSuperblockKind { kind: 1 });
    for (at, field, value) in [
        (0xc, "s_blocksize", 1024),
        (0x10, "s_maxlen", 2049),
        (0x10, "s_first", 2),
        (0x14, "s_first", 0),
        (0x14, "s_first", 2047),
        (0x14, "s_first", u32::MAX),
        (0x1c, "s_start", 2048),
    ] {
        let error = refused(at, value);
        assert!(
            matches!(error, Corruption::JournalSuperblockField { field: named, .. }
                if named == field),
            "{field} {value}: {error}"
        );
    }
    assert_eq!(
        refused(0x28, 0x41),
        Corruption::JournalFeatures {
            set: "incompatible",
            unknown: 0x40
        }
    );
    assert!(matches!(
        refused(0x2c, 1),
        Corruption::JournalFeatures { .. }
    ));
    assert!(matches!(
        refused(0x28, V2 | V3),
        Corruption::JournalChecksumVersions { .. }
    ));
    assert!(JournalFeatures::new(1, V3).is_err());
    assert!(JournalFeatures::new(0xfffe, 0).is_ok());
    assert!(JournalSuperblock::parse(&bytes[..1000], 4096, 2048).is_err());
}

#[test]
fn a_superblock_with_a_wrong_checksum_or_kind_of_checksum_is_refused() {
    for at in [0, 0x18, 0x1c, 0x20, 0x58, 0xfc, 0x3ff] {
        let mut bytes = superblock(true, 0, V3);
        bytes[at] ^= 0x80;
        assert!(
            JournalSuperblock::parse(&bytes, 4096, 2048).is_err(),
            "{at}"
        );
    }
    let mut bytes = superblock(true, 0, V3);
    bytes[0x50] = 1;
    assert_eq!(
        JournalSuperblock::parse(&bytes, 4096, 2048),
        Err(Corruption::JournalChecksumType { kind: 1 })
    );
}

#[test]
fn the_fast_commit_area_lies_behind_the_log() {
    let mut bytes = superblock(true, 0, FAST);
    let area = |bytes: &[u8]| {
        let parsed = JournalSuperblock::parse(bytes, 4096, 2048).unwrap();
        (parsed.end, parsed.fast_commit)
    };
    assert_eq!(area(&bytes), (1792, 1793..2048));
    bytes[0x54..0x58].copy_from_slice(&100_u32.to_be_bytes());
    assert_eq!(area(&bytes), (1948, 1949..2048));
    // Not if too little would be left of the log.
    bytes[0x54..0x58].copy_from_slice(&1025_u32.to_be_bytes());
    assert_eq!(area(&bytes), (2048, 2048..2048));
    bytes[0x54..0x58].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(area(&bytes), (2048, 2048..2048));
}

#[test]
fn an_update_changes_what_it_says_in_one_sector() {
    for (incompat, version_2) in [(V3, true), (REVOKE, true), (0, false)] {
        let before = superblock(version_2, 0, incompat);
        let mut after = before.clone();
        SuperblockUpdate {
            sequence: Some(Sequence(5)),
            start: Some(0),
            head: Some(44),
            errno: Some(-5),
            enable_revoke: true,
        }
        .apply(&mut after)
        .unwrap();
        let parsed = JournalSuperblock::parse(&after, 4096, 2048).unwrap();
        assert_eq!(
            (parsed.sequence, parsed.start, parsed.errno),
            (Sequence(5), 0, -5)
        );
        assert_eq!(parsed.format.features.revoke(), version_2);
        let raw = RawJournalSuperblock::read_from_bytes(&after).unwrap();
        assert_eq!(raw.s_head.get(), if version_2 { 44 } else { 0 });
        assert_eq!(before[512..], after[512..]);
    }
    let update = SuperblockUpdate::default();
    assert!(update.apply(&mut [0; 100]).is_err());
}

/// A tag of a fast commit.
pub(super) fn tag(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((value.len() as u16).to_le_bytes());
    bytes.extend(value);
    bytes
}

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Ends a block of fast commits that began with a checksum of `crc`.
pub(super) fn tailed(mut block: Vec<u8>, crc: u32, sequence: u32, block_size: usize) -> Vec<u8> {
    let length = block_size - block.len() - 4;
    block.extend(8_u16.to_le_bytes());
    block.extend((length as u16).to_le_bytes());
    block.extend(sequence.to_le_bytes());
    let crc = crc32c(crc, &block);
    block.extend(crc.to_le_bytes());
    block.resize(block_size, 0xee);
    block
}

#[test]
fn fast_commit_tags_read_back() {
    let name = [words(&[2, 12]), b"file".to_vec()].concat();
    let inode = [words(&[12]), vec![7; 160]].concat();
    let extent = [words(&[12]), vec![3; 12]].concat();
    let block = [
        tag(9, &words(&[0, 40])),
        tag(1, &extent),
        tag(2, &words(&[12, 5, 6])),
        tag(3, &name),
        tag(4, &name),
        tag(5, &name),
        tag(6, &inode),
        tag(7, &[0; 9]),
        tag(8, &words(&[40, 1, 0])),
    ]
    .concat();
    let tags: Vec<_> = fast_tags(&block).map(Result::unwrap).collect();
    let entry = fast_commit::FastCommitEntry {
        parent: InodeNo(2),
        ino: InodeNo(12),
        name: b"file",
    };
    assert_eq!(
        tags,
        [
            FastCommitTag::Head {
                features: 0,
                sequence: Sequence(40)
            },
            FastCommitTag::AddRange {
                ino: InodeNo(12),
                extent: [3; 12]
            },
            FastCommitTag::DelRange {
                ino: InodeNo(12),
                first: crate::FileBlock(5),
                count: 6
            },
            FastCommitTag::Creat(entry),
            FastCommitTag::Link(entry),
            FastCommitTag::Unlink(entry),
            FastCommitTag::Inode {
                ino: InodeNo(12),
                raw: &[7; 160]
            },
            FastCommitTag::Pad,
            FastCommitTag::Tail {
                sequence: Sequence(40),
                checksum: 1
            },
        ]
    );
    for bad in [
        tag(0, &[]),
        tag(10, &[]),
        tag(1, &[0; 15]),
        tag(2, &[0; 13]),
        tag(3, &[0; 8]),
        tag(3, &[0; 8 + 256]),
        tag(6, &[0; 100]),
        tag(8, &[0; 7]),
        tag(9, &[0; 9]),
        vec![7, 0, 1, 0],
    ] {
        let items: Vec<_> = fast_tags(&bad).collect();
        assert_eq!(items.len(), 1);
        assert!(matches!(items[0], Err(Corruption::FastCommitTag { .. })));
    }
}

#[test]
fn a_scan_of_fast_commits_ends_at_the_last_valid_tail() {
    let head = tag(9, &words(&[0, 40]));
    let first = tailed([head.clone(), tag(7, &[0; 5])].concat(), 0, 40, 1024);
    // The second fast commit takes two blocks.
    let full = tag(7, &[0; 1020]);
    let last = tailed(
        tag(5, &[&words(&[2, 3])[..], b"x"].concat()),
        crc32c(0, &full),
        40,
        1024,
    );
    let scan = |blocks: &[&Vec<u8>], expected| {
        let mut scan = FastCommitScan::new(Sequence(expected));
        for block in blocks {
            if !scan.block(block).unwrap() {
                break;
            }
        }
        scan.valid_tags()
    };
    assert_eq!(scan(&[&first, &full, &last], 40), 6);
    assert_eq!(scan(&[&first, &full, &last], 41), 0);
    assert_eq!(scan(&[&first, &last], 40), 3);
    assert_eq!(scan(&[&first, &full], 40), 3);
    assert_eq!(scan(&[&first, &full, &first], 40), 3);
    // Must begin with a head.
    assert_eq!(scan(&[&full, &last], 40), 0);
    let mut damaged = first.clone();
    damaged[18] ^= 1;
    assert_eq!(scan(&[&damaged, &full, &last], 40), 0);
    assert_eq!(scan(&[&vec![0; 1024]], 40), 0);
    let unknown = tag(9, &words(&[1, 40]));
    assert!(FastCommitScan::new(Sequence(40)).block(&unknown).is_err());
}

proptest! {
    /// Whatever the bytes, nothing panics and everything ends.
    #[test]
    fn any_bytes_are_safe(
        mut block in prop::collection::vec(any::<u8>(), 0..3000),
        which in 0_usize..16,
        header in any::<Option<(u8, u32)>>(),
    ) {
        if let Some((kind, sequence)) = header
            && block.len() >= 12
        {
            block[..4].copy_from_slice(&MAGIC_BYTES);
            block[4..8].copy_from_slice(&u32::from(kind % 6).to_be_bytes());
            block[8..12].copy_from_slice(&sequence.to_be_bytes());
        }
        let format = formats()[which];
        let _ = Header::parse(&block);
        let _ = descriptor::check(&format, &block);
        if let Ok(tags) = descriptor::tags(&format, &block) {
            prop_assert!(tags.count() <= block.len() / 8);
        }
        let _ = revoke::check(&format, &block);
        if let Ok(records) = revoke::records(&format, &block) {
            prop_assert!(records.count() <= block.len() / 4);
        }
        let _ = CommitBlock::parse(&format, &block);
        prop_assert!(fast_tags(&block).count() <= block.len() / 4 + 1);
        let _ = FastCommitScan::new(Sequence(1)).block(&block);
        update_checksums(&mut block.clone(), 1024);
        if let Ok(superblock) = JournalSuperblock::parse(&block, 1024, 4096) {
            prop_assert!(superblock.first < superblock.end);
        }
        let update = SuperblockUpdate { start: Some(1), ..Default::default() };
        let _ = update.apply(&mut block);
    }

    /// Fields of a superblock at random: what passes keeps its promises.
    #[test]
    fn a_superblock_that_passes_is_usable(
        maxlen in 0_u32..5000, first in 0_u32..5000, start in 0_u32..5000,
        fast in 0_u32..5000, incompat in 0_u32..64, step in any::<u32>(),
    ) {
        let mut bytes = superblock(true, 0, incompat & !(V2 | V3));
        for (at, value) in [(0x10, maxlen), (0x14, first), (0x1c, start), (0x54, fast)] {
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        if let Ok(superblock) = JournalSuperblock::parse(&bytes, 4096, 4000) {
            prop_assert!(superblock.end <= superblock.length_blocks);
            prop_assert!(superblock.length_blocks <= 4000);
            prop_assert!(superblock.fast_commit.end <= superblock.length_blocks);
            let log = superblock.first..superblock.end;
            prop_assert!(superblock.start == 0 || log.contains(&superblock.start));
            prop_assert!(log.contains(&superblock.advance(superblock.first, step)));
        }
    }
}
