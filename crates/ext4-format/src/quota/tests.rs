//! Headers, references and entries of quota files.

use zerocopy::{FromZeros, IntoBytes};

use super::{
    BLOCK_BYTES, QuotaCorruption, QuotaKind, RawEntriesHeader, RawEntry, RawHeader, Used, blocks,
    count_of, entries, references,
};
use crate::Corruption;

const SIZE: u64 = 6 * BLOCK_BYTES;

fn block(head: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 1024];
    block[..head.len()].copy_from_slice(head);
    block
}

fn header() -> RawHeader {
    let mut header = RawHeader::new_zeroed();
    header.dqh_magic = 0xD9C0_1927.into();
    header.dqh_version = 1.into();
    header.dqi_blocks = 6.into();
    header.dqi_free_entry = 5.into();
    header
}

fn wrong(change: impl FnOnce(&mut RawHeader)) -> QuotaCorruption {
    let mut header = header();
    change(&mut header);
    match blocks(&block(header.as_bytes()), QuotaKind::Group, SIZE) {
        Err(Corruption::Quota(what)) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn headers() {
    let sound = block(header().as_bytes());
    assert_eq!(blocks(&sound, QuotaKind::Group, SIZE), Ok(6));
    assert_eq!(blocks(&sound, QuotaKind::Group, SIZE - 1000), Ok(6));
    assert!(blocks(&sound, QuotaKind::User, SIZE).is_err());
    assert!(blocks(&sound, QuotaKind::Group, SIZE - 1024).is_err());
    assert!(blocks(&sound[..31], QuotaKind::Group, SIZE).is_err());
    let found = wrong(|header| header.dqh_version = 0.into());
    assert_eq!(found, QuotaCorruption::Revision { found: 0 });
    let found = wrong(|header| header.dqi_blocks = 1.into());
    let expected = QuotaCorruption::Blocks {
        blocks: 1,
        size: SIZE,
    };
    assert_eq!(found, expected);
    let long = blocks(&sound, QuotaKind::Group, (1 << 31) + 1);
    assert!(matches!(
        long,
        Err(Corruption::Quota(QuotaCorruption::Size { .. }))
    ));
    for list in 0..2 {
        let found = wrong(|header| match list {
            0 => header.dqi_free_blk = 6.into(),
            _ => header.dqi_free_entry = 6.into(),
        });
        let (first, blocks) = (6, 6);
        assert_eq!(found, QuotaCorruption::FreeList { first, blocks });
    }
}

#[test]
fn references_are_chosen_by_a_byte() {
    let mut node = block(&[]);
    node[4 * 3] = 7;
    node[4 * 255 + 3] = 1;
    let found: Vec<(u8, u32)> = references(&node).collect();
    assert_eq!(found, [(3, 7), (255, 1 << 24)]);
}

#[test]
fn entries_in_use_are_not_all_zeros() {
    let mut head = RawEntriesHeader::new_zeroed();
    head.dqdh_entries = 2.into();
    let mut leaf = block(head.as_bytes());
    let mut entry = RawEntry::new_zeroed();
    entry.dqb_itime = 1.into();
    leaf[16..88].copy_from_slice(entry.as_bytes());
    entry.dqb_id = 1000.into();
    entry.dqb_curspace = 8192.into();
    entry.dqb_curinodes = 3.into();
    leaf[16 + 13 * 72..].copy_from_slice(entry.as_bytes());
    assert_eq!(count_of(&leaf), 2);
    let used = Used {
        bytes: 8192,
        inodes: 3,
    };
    let found: Vec<(u32, Used)> = entries(&leaf).collect();
    assert_eq!(found, [(0, Used::default()), (1000, used)]);
    // Of what is cut off, nothing is made up.
    assert_eq!(entries(&leaf[..1000]).count(), 1);
    assert_eq!((count_of(&[]), entries(&[]).count()), (0, 0));
}
