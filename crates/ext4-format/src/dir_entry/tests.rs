//! Blocks by hand and by chance.

use proptest::prelude::*;

use super::*;

const FORMAT: DirFormat = DirFormat {
    filetype: true,
    checksums: true,
    last_inode: InodeNo(1000),
};
const PLAIN: DirFormat = DirFormat {
    checksums: false,
    ..FORMAT
};

fn raw_entry(block: &mut [u8], at: usize, inode: u32, rec_len: u16, name: &[u8], kind: u8) {
    let raw = RawDirEntry {
        inode: U32::new(inode),
        rec_len: U16::new(rec_len),
        name_len: name.len() as u8,
        file_type: kind,
    };
    raw.write_to_prefix(&mut block[at..]).unwrap();
    let room = block.len().min(at + 8 + name.len());
    block[at + 8..room].copy_from_slice(&name[..room - at - 8]);
}

fn name(bytes: &[u8]) -> EntryName<'_> {
    EntryName::new(bytes).unwrap()
}

fn list(block: &[u8], format: &DirFormat, first: bool) -> Vec<Vec<u8>> {
    DirBlock::new(block, format, first)
        .entries()
        .map(|entry| entry.unwrap().name.to_vec())
        .collect()
}

fn only_error(block: &[u8], format: &DirFormat, first: bool) -> DirCorruption {
    let errors: Vec<_> = DirBlock::new(block, format, first)
        .entries()
        .filter_map(Result::err)
        .collect();
    match errors[..] {
        [Corruption::DirEntry(corruption)] => corruption,
        _ => panic!("{errors:?}"),
    }
}

#[test]
fn a_new_directory_holds_dots() {
    for (size, checksums) in [
        (1024, false),
        (1024, true),
        (4096, true),
        (65536, false),
        (65536, true),
    ] {
        let format = DirFormat {
            checksums,
            ..FORMAT
        };
        let mut block = vec![0xAA; size];
        assert!(init_first_block(
            &mut block,
            &format,
            InodeNo(12),
            InodeNo(2)
        ));
        let view = DirBlock::new(&block, &format, true);
        assert_eq!(view.dots(), Ok((InodeNo(12), InodeNo(2))));
        let entries: Vec<_> = view.entries().map(Result::unwrap).collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].role, Role::Dot);
        assert_eq!(entries[1].role, Role::DotDot);
        assert_eq!(entries[1].offset, 12);
        assert_eq!(entries[1].kind, Some(FileKind::Directory));
        let errors = DirBlock::new(&block, &format, false).entries();
        assert!(errors.clone().all(|entry| matches!(
            entry,
            Err(Corruption::DirEntry(DirCorruption::MisplacedDots { .. }))
        )));
        assert_eq!(errors.count(), 2);
        assert!(init_block(&mut block, &format));
        assert!(list(&block, &format, false).is_empty());
        assert_eq!(
            DirBlock::new(&block, &format, true).dots(),
            Err(DirCorruption::NoDots.into())
        );
    }
}

#[test]
fn checksums_cover_the_block_before_the_tail() {
    let mut block = vec![0; 1024];
    assert!(init_block(&mut block, &FORMAT));
    update_checksum(&mut block, ChecksumSeed(77)).unwrap();
    verify_checksum(&block, ChecksumSeed(77)).unwrap();
    assert!(verify_checksum(&block, ChecksumSeed(78)).is_err());
    block[1011] ^= 1;
    assert!(matches!(
        verify_checksum(&block, ChecksumSeed(77)),
        Err(Corruption::Checksum { .. })
    ));
    assert!(init_block(&mut block, &PLAIN));
    assert_eq!(
        verify_checksum(&block, ChecksumSeed(77)),
        Err(DirCorruption::NoTail.into())
    );
    assert_eq!(
        insert(&mut block, &FORMAT, InodeNo(3), &name(b"a"), None),
        Err(DirCorruption::NoTail.into())
    );
}

#[test]
fn extents_of_entries_are_checked() {
    let with = |rec_len: u16, name_len: usize| {
        let mut block = vec![0; 1024];
        raw_entry(&mut block, 0, 5, rec_len, &vec![b'x'; name_len], 1);
        only_error(&block, &PLAIN, false)
    };
    assert!(matches!(with(0, 1), DirCorruption::TooShort { .. }));
    assert!(matches!(with(8, 0), DirCorruption::TooShort { .. }));
    assert!(matches!(with(1022, 1), DirCorruption::Unaligned { .. }));
    assert!(matches!(with(1028, 1), DirCorruption::PastBlock { .. }));
    assert!(matches!(with(1016, 1), DirCorruption::CloseToEnd { .. }));
    assert!(matches!(with(12, 5), DirCorruption::NameLength { .. }));
    assert!(matches!(with(1024, 0), DirCorruption::Name { .. }));
}

#[test]
fn a_bad_name_does_not_hide_what_follows() {
    for (bad, inode) in [
        (&b"a/b"[..], 5),
        (b"a\0b", 5),
        (b".", 5),
        (b"..", 5),
        (b"fine", 1001),
    ] {
        let mut block = vec![0; 1024];
        raw_entry(&mut block, 0, inode, 12, bad, 1);
        raw_entry(&mut block, 12, 6, 1012, b"next", 1);
        let entries: Vec<_> = DirBlock::new(&block, &PLAIN, false).entries().collect();
        assert_eq!(entries.len(), 2);
        assert!(entries[0].is_err());
        assert_eq!(entries[1].as_ref().unwrap().name, b"next");
        assert!(DirBlock::new(&block, &PLAIN, false).find(b"next").is_err());
    }
    // In the first block, too, the dots stand first and second or not at all.
    let mut block = vec![0; 1024];
    raw_entry(&mut block, 0, 5, 12, b"..", 2);
    raw_entry(&mut block, 12, 5, 1012, b".", 2);
    assert!(
        DirBlock::new(&block, &PLAIN, true)
            .entries()
            .all(|entry| entry.is_err())
    );
}

#[test]
fn without_the_feature_the_kind_is_a_part_of_the_length() {
    let format = DirFormat {
        filetype: false,
        ..PLAIN
    };
    let mut block = vec![0; 1024];
    raw_entry(&mut block, 0, 5, 1024, b"name", 0);
    assert_eq!(list(&block, &format, false), [b"name".to_vec()]);
    block[7] = 2;
    assert!(matches!(
        only_error(&block, &format, false),
        DirCorruption::NameLength { name_len: 516, .. }
    ));
    assert!(init_first_block(
        &mut block,
        &format,
        InodeNo(5),
        InodeNo(2)
    ));
    let at = insert(
        &mut block,
        &format,
        InodeNo(9),
        &name(b"f"),
        Some(FileKind::Fifo),
    );
    assert_eq!(at, Ok(Some(24)));
    let view = DirBlock::new(&block, &format, true);
    assert!(view.entries().all(|entry| entry.unwrap().kind.is_none()));
    assert_eq!(view.entries().count(), 3);
}

#[test]
fn kinds_that_the_format_does_not_know_are_unknown() {
    for byte in 0..=255 {
        match FileKind::from_byte(byte) {
            Some(kind) => assert_eq!(kind.to_byte(), byte),
            None => assert!(byte == 0 || byte > 7),
        }
    }
}

#[test]
fn lengths_in_large_blocks() {
    for (len, block_size, stored) in [
        (12, 1024, 12_u16),
        (32768, 32768, 32768),
        (65532, 65536, 65532),
        (65536, 65536, 65535),
        (65536, 0x2_0000, 1),
        (0x2_0000, 0x2_0000, 0),
        (0x3_0004, 0x4_0000, 7),
    ] {
        assert_eq!(write::encode_rec_len(len, block_size), Some(stored));
        assert_eq!(decode_rec_len(stored, block_size), len);
    }
    for (len, block_size) in [(13, 1024), (1028, 1024), (12, 0x8_0000)] {
        assert_eq!(write::encode_rec_len(len, block_size), None);
    }
}

#[test]
fn names_that_no_directory_may_hold() {
    for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        assert!(EntryName::new(bad).is_none(), "{bad:?}");
    }
    for good in [&b"..."[..], b".a", b"\xFF\xFE", &[b'x'; 255]] {
        assert_eq!(name(good).as_bytes(), good);
    }
}

#[test]
fn entries_come_and_go() {
    let mut block = vec![0; 1024];
    assert!(init_first_block(
        &mut block,
        &FORMAT,
        InodeNo(5),
        InodeNo(2)
    ));
    let put = |block: &mut [u8], text: &[u8]| {
        insert(
            block,
            &FORMAT,
            InodeNo(9),
            &name(text),
            Some(FileKind::Regular),
        )
        .unwrap()
    };
    let a = put(&mut block, b"aaaa").unwrap();
    let b = put(&mut block, b"bbbb").unwrap();
    let c = put(&mut block, &[b'c'; 200]).unwrap();
    assert_eq!((a, b, c), (24, 36, 48));
    assert_eq!(remove(&mut block, &FORMAT, b), Ok(true));
    assert_eq!(remove(&mut block, &FORMAT, b), Ok(false));
    assert_eq!(put(&mut block, b"dddd"), Some(b), "the gap is used again");
    assert_eq!(remove(&mut block, &FORMAT, a), Ok(true));
    assert_eq!(remove(&mut block, &FORMAT, b), Ok(true));
    assert_eq!(put(&mut block, &[b'e'; 16]), Some(a), "gaps join");
    assert_eq!(
        set_inode(&mut block, &FORMAT, c, InodeNo(77), Some(FileKind::Socket)),
        Ok(true)
    );
    assert_eq!(
        set_inode(&mut block, &FORMAT, b, InodeNo(77), None),
        Ok(false)
    );
    let found = DirBlock::new(&block, &FORMAT, true).find(&[b'c'; 200]);
    let found = found.unwrap().unwrap();
    assert_eq!(
        (found.inode, found.kind),
        (InodeNo(77), Some(FileKind::Socket))
    );
    while put(&mut block, b"zz").is_some() {}
    assert_eq!(put(&mut block, b"z"), None, "full");
    update_checksum(&mut block, ChecksumSeed(1)).unwrap();
    verify_checksum(&block, ChecksumSeed(1)).unwrap();
    // The first entry of a later block has none before it.
    assert!(init_block(&mut block, &FORMAT));
    assert_eq!(put(&mut block, b"first"), Some(0));
    assert_eq!(put(&mut block, b"second"), Some(16));
    assert_eq!(remove(&mut block, &FORMAT, 0), Ok(true));
    assert_eq!(list(&block, &FORMAT, false), [b"second".to_vec()]);
    assert_eq!(put(&mut block, b"again"), Some(0));
}

#[test]
fn inline_directories_have_two_parts() {
    let mut i_block = [0xAA; ROOT];
    assert!(init_inline(&mut i_block, InodeNo(2)));
    let entries = &mut i_block[4..];
    assert_eq!(
        insert(entries, &PLAIN, InodeNo(9), &name(b"one"), None),
        Ok(Some(0))
    );
    let mut more = [0; 32];
    assert!(init_block(&mut more, &PLAIN));
    insert(
        &mut more,
        &PLAIN,
        InodeNo(10),
        &name(b"two"),
        Some(FileKind::Regular),
    )
    .unwrap()
    .unwrap();
    let dir = InlineDir::parse(&i_block, &more, &FORMAT).unwrap();
    assert_eq!(dir.parent(), InodeNo(2));
    let listed: Vec<_> = dir
        .entries()
        .map(|entry| entry.map(|e| (e.offset, e.inode.0, e.name)).unwrap())
        .collect();
    assert_eq!(listed, [(4, 9, &b"one"[..]), (60, 10, b"two")]);
    assert_eq!(
        dir.find(b"two").unwrap().unwrap().kind,
        Some(FileKind::Regular)
    );
    assert_eq!(
        InlineDir::parse(&i_block, &[], &FORMAT)
            .unwrap()
            .entries()
            .count(),
        1
    );
    // Corruption in the second part counts from the inode.
    more[4] = 3;
    let dir = InlineDir::parse(&i_block, &more, &FORMAT).unwrap();
    assert_eq!(
        dir.entries().nth(1),
        Some(Err(DirCorruption::TooShort {
            offset: 60,
            rec_len: 3
        }
        .into()))
    );
    i_block[..4].fill(0);
    assert!(InlineDir::parse(&i_block, &[], &FORMAT).is_err());
    assert!(InlineDir::parse(&i_block[..59], &[], &FORMAT).is_err());
}

const ROOT: usize = crate::extent::ROOT_BYTES;

#[derive(Clone, Debug)]
enum Step {
    Insert(Vec<u8>),
    Remove(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let byte = prop_oneof![b'a'..=b'z', 0x80..=0xFF_u8];
    prop_oneof![
        2 => proptest::collection::vec(byte, 1..40).prop_map(Step::Insert),
        1 => any::<usize>().prop_map(Step::Remove),
    ]
}

proptest! {
    #[test]
    fn a_block_is_what_was_put_in(steps in proptest::collection::vec(any_step(), 0..80)) {
        let mut block = vec![0; 1024];
        prop_assert!(init_block(&mut block, &FORMAT));
        let mut model: Vec<Vec<u8>> = Vec::new();
        for step in steps {
            match step {
                Step::Insert(text) if !model.contains(&text) => {
                    let put = insert(&mut block, &FORMAT, InodeNo(9), &name(&text), None);
                    if put.unwrap().is_some() {
                        model.push(text);
                    } else {
                        prop_assert!(model.len() > 5, "not full yet");
                    }
                }
                Step::Remove(which) if !model.is_empty() => {
                    let gone = model.swap_remove(which % model.len());
                    let found = DirBlock::new(&block, &FORMAT, false).find(&gone);
                    let at = found.unwrap().unwrap().offset;
                    prop_assert_eq!(remove(&mut block, &FORMAT, at), Ok(true));
                }
                _ => {}
            }
            let mut listed = list(&block, &FORMAT, false);
            listed.sort();
            model.sort();
            prop_assert_eq!(&listed, &model);
        }
        update_checksum(&mut block, ChecksumSeed(3)).unwrap();
        verify_checksum(&block, ChecksumSeed(3)).unwrap();
    }

    #[test]
    fn any_bytes_end_without_a_panic(
        mut block in proptest::collection::vec(
            prop_oneof![Just(0_u8), Just(12), Just(b'.'), any::<u8>()],
            0..400,
        ),
        filetype in any::<bool>(),
        checksums in any::<bool>(),
        first in any::<bool>(),
        at in 0..400_usize,
    ) {
        let format = DirFormat { filetype, checksums, last_inode: InodeNo(u32::MAX) };
        let view = DirBlock::new(&block, &format, first);
        prop_assert!(view.entries().count() <= block.len() / 12 + 1);
        for entry in view.entries().flatten() {
            prop_assert!(entry.offset + 8 + entry.name.len() <= block.len());
            prop_assert!(entry.role != Role::Name || EntryName::new(entry.name).is_some());
        }
        let _ = view.dots();
        let _ = verify_checksum(&block, ChecksumSeed(0));
        if let Ok(dir) = InlineDir::parse(&block, &block, &format) {
            prop_assert!(dir.entries().count() <= block.len() / 12 + 8);
        }
        let _ = remove(&mut block, &format, at);
        let _ = set_inode(&mut block, &format, at, InodeNo(1), None);
        let _ = insert(&mut block, &format, InodeNo(1), &name(b"new"), None);
    }
}

#[test]
fn the_largest_gap_is_what_an_entry_fits_into() {
    for checksums in [false, true] {
        let format = DirFormat {
            checksums,
            ..FORMAT
        };
        let mut block = vec![0; 1024];
        assert!(init_block(&mut block, &format));
        for length in (1..=MAX_NAME_LEN).rev().cycle().take(400) {
            let name = vec![b'n'; length];
            let name = EntryName::new(&name).expect("a name");
            let gap = largest_gap(&block, &format).expect("sound");
            let put = insert(&mut block, &format, InodeNo(12), &name, None).expect("sound");
            assert_eq!(put.is_some(), gap >= entry_len(length), "{gap} {length}");
        }
        let gap = largest_gap(&block, &format).expect("sound");
        assert!(gap < entry_len(1));
    }
}
