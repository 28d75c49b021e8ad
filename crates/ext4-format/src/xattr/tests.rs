//! Attributes by hand and by chance. Those that real tools made are in `tests/e2fsprogs.rs`.

use proptest::prelude::*;

use super::*;

const LIMITS: XattrLimits = XattrLimits {
    ea_inode: true,
    first_inode: InodeNo(11),
    last_inode: InodeNo(1000),
};

/// Entries from the front, values from the back, as Linux lays them out. Offsets count from
/// `from`.
fn fill(place: &mut [u8], start: usize, attributes: &[(u8, &[u8], &[u8])]) {
    let (mut at, mut end) = (start, place.len());
    for (index, name, value) in attributes {
        let padded = value.len().next_multiple_of(4);
        end -= padded;
        place[end..end + value.len()].copy_from_slice(value);
        let raw = RawXattrEntry {
            e_name_len: name.len() as u8,
            e_name_index: *index,
            e_value_offs: U16::new(if value.is_empty() { 0 } else { end as u16 }),
            e_value_inum: U32::new(0),
            e_value_size: U32::new(value.len() as u32),
            e_hash: U32::new(XattrEntry::hash_of(name, value)),
        };
        raw.write_to_prefix(&mut place[at..]).unwrap();
        place[at + 16..at + 16 + name.len()].copy_from_slice(name);
        at += entry_len(name.len());
    }
}

fn block(attributes: &[(u8, &[u8], &[u8])]) -> Vec<u8> {
    let mut block = vec![0; 1024];
    block[..4].copy_from_slice(&XATTR_MAGIC.to_le_bytes());
    block[4] = 3;
    block[8] = 1;
    fill(&mut block, 32, attributes);
    block
}

fn region(attributes: &[(u8, &[u8], &[u8])]) -> Vec<u8> {
    let mut region = vec![0; 96];
    region[..4].copy_from_slice(&XATTR_MAGIC.to_le_bytes());
    fill(&mut region[4..], 0, attributes);
    region
}

fn corruption(block: &[u8]) -> XattrCorruption {
    match Xattrs::in_block(block, &LIMITS) {
        Err(Corruption::Xattr(corruption)) => corruption,
        other => panic!("expected corrupt attributes, got {other:?}"),
    }
}

#[test]
fn a_block_gives_what_it_holds() {
    let bytes = block(&[
        (1, b"a", b"value"),
        (1, b"b\xFF", b""),
        (6, b"selinux", b"12345678"),
    ]);
    let view = Xattrs::in_block(&bytes, &LIMITS).unwrap();
    assert_eq!(refcount(&bytes), Ok(3));
    assert_eq!(view.entries().count(), 3);
    assert_eq!(view.find(1, b"a").unwrap().value, Value::Bytes(b"value"));
    assert_eq!(view.find(1, b"b\xFF").unwrap().value, Value::Bytes(b""));
    assert_eq!(view.find(6, b"a"), None);
    for entry in view.entries() {
        entry.verify_hash(false).unwrap();
    }
    let hashes: Vec<u32> = view.entries().map(|entry| entry.hash).collect();
    let [first, second, third] = hashes[..] else {
        panic!("three entries");
    };
    let expected = (first.rotate_left(16) ^ second).rotate_left(16) ^ third;
    assert_eq!(block_hash(&view), expected);
    let mut unshared = bytes.clone();
    unshared[44..48].fill(0);
    let view = Xattrs::in_block(&unshared, &LIMITS).unwrap();
    assert_eq!(block_hash(&view), 0);
}

#[test]
fn a_region_is_there_only_with_its_magic() {
    let mut bytes = region(&[(7, b"data", b"xyz")]);
    let view = Xattrs::in_inode(&bytes, &LIMITS).unwrap().unwrap();
    let entry = view.find(name::SYSTEM, name::INLINE_DATA).unwrap();
    assert_eq!(entry.value, Value::Bytes(b"xyz"));
    bytes[0] = 1;
    assert!(Xattrs::in_inode(&bytes, &LIMITS).unwrap().is_none());
    assert!(Xattrs::in_inode(&[0, 0], &LIMITS).unwrap().is_none());
    for room in 0..4 {
        let small = &region(&[])[..4 + room];
        assert!(Xattrs::in_inode(small, &LIMITS).is_err());
    }
    assert!(
        Xattrs::in_inode(&region(&[])[..8], &LIMITS)
            .unwrap()
            .is_some()
    );
}

#[test]
fn places_are_checked() {
    let good = block(&[(1, b"name", b"value")]);
    let with = |at: usize, value: u32, bytes: usize| {
        let mut block = good.clone();
        block[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        corruption(&block)
    };
    assert!(matches!(with(0, 1, 4), XattrCorruption::Magic { .. }));
    assert!(matches!(
        with(8, 2, 4),
        XattrCorruption::Blocks { blocks: 2 }
    ));
    assert!(matches!(with(48, 0, 1), XattrCorruption::Name));
    assert!(matches!(with(34, 1020, 2), XattrCorruption::Value { .. }));
    assert!(matches!(
        with(34, 55, 2),
        XattrCorruption::Value { floor: 56, .. }
    ));
    assert!(matches!(with(40, 1024, 4), XattrCorruption::Value { .. }));
    assert!(matches!(
        with(40, 65537, 4),
        XattrCorruption::ValueSize { .. }
    ));
    assert!(matches!(with(36, 10, 4), XattrCorruption::Inode { .. }));
    assert!(matches!(with(36, 1001, 4), XattrCorruption::Inode { .. }));
    let mut full = vec![1; 1024];
    full[..12].copy_from_slice(&good[..12]);
    assert!(matches!(
        corruption(&full),
        XattrCorruption::Unfinished { .. }
    ));
    assert!(matches!(
        Xattrs::in_block(&good[..31], &LIMITS),
        Err(Corruption::Truncated { .. })
    ));
}

#[test]
fn values_collide_by_whole_words() {
    let sound = block(&[(1, b"one", b"12345"), (1, b"two", b"123")]);
    let collide = |bytes: &[u8]| Xattrs::in_block(bytes, &LIMITS).unwrap().values_collide();
    assert!(!collide(&sound));
    let offset = 32 + 2;
    let moved = |at: usize, by: i16| {
        let mut bytes = sound.clone();
        let old = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let new = old.checked_add_signed(by).unwrap();
        bytes[at..at + 2].copy_from_slice(&new.to_le_bytes());
        bytes
    };
    // The first ends with the block, its last word past it; the second ends where the first begins.
    assert!(collide(&moved(offset, 3)));
    assert!(collide(&moved(offset + 20, 1)));
    // Past the other.
    assert!(!collide(&moved(offset + 20, -4)));
    let region = region(&[(1, b"one", b"1234"), (1, b"none", b"")]);
    let xattrs = |bytes| Xattrs::in_inode(bytes, &LIMITS).unwrap().unwrap();
    assert!(!xattrs(&region).values_collide());
    assert!(!xattrs(&region).has_value_outside());
    let mut outside = region.clone();
    outside[4 + 20 + 2..][..2].copy_from_slice(&500_u16.to_le_bytes());
    assert!(xattrs(&outside).has_value_outside());
}

#[test]
fn values_in_inodes_need_the_feature() {
    let mut bytes = block(&[(1, b"name", b"")]);
    bytes[36] = 12;
    bytes[40..44].copy_from_slice(&100_000_u32.to_le_bytes());
    let view = Xattrs::in_block(&bytes, &LIMITS).unwrap();
    assert_eq!(
        view.find(1, b"name").unwrap().value,
        Value::Inode {
            inode: InodeNo(12),
            len: 100_000
        }
    );
    let off = XattrLimits {
        ea_inode: false,
        ..LIMITS
    };
    assert_eq!(
        Xattrs::in_block(&bytes, &off).unwrap_err(),
        XattrCorruption::NoEaInodes { inode: 12 }.into()
    );
    bytes[43] = 2;
    assert!(matches!(
        corruption(&bytes),
        XattrCorruption::ValueSize { .. }
    ));
}

#[test]
fn hashes_accept_both_kinds_of_char() {
    let name = b"\xC3\xA9t\xC3\xA9";
    let entry = |hash| XattrEntry {
        index: 1,
        name,
        value: Value::Bytes(b"value"),
        hash,
    };
    let unsigned = XattrEntry::hash_of(name, b"value");
    // By hand, as the kernel did where char is signed.
    let signed = name.iter().fold(0_u32, |hash, byte| {
        hash.rotate_left(5) ^ (*byte as i8 as i32 as u32)
    });
    let words = [u32::from_le_bytes(*b"valu"), u32::from(b'e')];
    let signed = words
        .iter()
        .fold(signed, |hash, word| hash.rotate_left(16) ^ word);
    assert_ne!(unsigned, signed);
    assert_eq!(entry(unsigned).verify_hash(false), Ok(()));
    assert_eq!(entry(signed).verify_hash(false), Ok(()));
    assert!(entry(1).verify_hash(false).is_err());
    assert!(entry(0).verify_hash(false).is_err());
    assert_eq!(entry(0).verify_hash(true), Ok(()));
    // A value in an inode: its hash stands for it.
    let value = ea_inode_hash(b"long", ChecksumSeed(5));
    let in_inode = XattrEntry {
        value: Value::Inode {
            inode: InodeNo(12),
            len: 4,
        },
        ..entry(XattrEntry::hash_of(name, &value.to_le_bytes()))
    };
    assert_eq!(
        in_inode.verify_ea_inode(b"long", value, ChecksumSeed(5)),
        Ok(())
    );
    assert!(
        in_inode
            .verify_ea_inode(b"lung", value, ChecksumSeed(5))
            .is_err()
    );
    assert!(
        entry(3)
            .verify_ea_inode(b"long", value, ChecksumSeed(5))
            .is_err()
    );
}

#[test]
fn checksums_cover_number_and_block() {
    let mut bytes = block(&[(1, b"a", b"b")]);
    update_checksum(&mut bytes, BlockNo(77), ChecksumSeed(1)).unwrap();
    verify_checksum(&bytes, BlockNo(77), ChecksumSeed(1)).unwrap();
    assert!(verify_checksum(&bytes, BlockNo(78), ChecksumSeed(1)).is_err());
    assert!(verify_checksum(&bytes, BlockNo(77), ChecksumSeed(2)).is_err());
    bytes[1023] ^= 1;
    assert!(verify_checksum(&bytes, BlockNo(77), ChecksumSeed(1)).is_err());
}

#[test]
fn names_are_split_and_joined() {
    for (whole, index, rest) in [
        (&b"user.x"[..], 1, &b"x"[..]),
        (b"system.posix_acl_access", 2, b""),
        (b"system.posix_acl_default", 3, b""),
        (b"trusted.overlay.opaque", 4, b"overlay.opaque"),
        (b"security.selinux", 6, b"selinux"),
        (b"system.data", 7, b"data"),
        (b"system.richacl", 8, b""),
        (b"gnu.translator", 10, b"translator"),
    ] {
        assert_eq!(name::split(whole), Some((index, rest)));
        assert_eq!(name::join(index, rest).as_deref(), Some(whole));
    }
    for none in [&b""[..], b"user", b"user.", b"other.x", b"system."] {
        assert_eq!(name::split(none), None);
    }
    for (index, rest) in [
        (0, &b"x"[..]),
        (1, b""),
        (2, b"x"),
        (5, b"x"),
        (9, b"c"),
        (11, b"x"),
    ] {
        assert_eq!(name::join(index, rest), None);
    }
    assert!(!name::is_exposed(name::SYSTEM) && name::is_exposed(name::USER));
}

fn any_attributes() -> impl Strategy<Value = Vec<(u8, Vec<u8>, Vec<u8>)>> {
    let attribute = (
        1..11_u8,
        proptest::collection::vec(1..=255_u8, 1..20),
        proptest::collection::vec(any::<u8>(), 0..60),
    );
    proptest::collection::vec(attribute, 0..9)
}

proptest! {
    #[test]
    fn what_is_laid_out_is_read_back(attributes in any_attributes()) {
        let parts: Vec<_> = attributes.iter().map(|(i, n, v)| (*i, &n[..], &v[..])).collect();
        let bytes = block(&parts);
        let view = Xattrs::in_block(&bytes, &LIMITS).unwrap();
        let read: Vec<_> = view
            .entries()
            .map(|entry| match entry.value {
                Value::Bytes(value) => (entry.index, entry.name, value),
                Value::Inode { .. } => panic!("no such value"),
            })
            .collect();
        prop_assert_eq!(read, parts);
    }

    #[test]
    fn any_bytes_end_without_a_panic(
        head in any::<bool>(),
        mut bytes in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..300),
    ) {
        if head && bytes.len() > 12 {
            bytes[..4].copy_from_slice(&XATTR_MAGIC.to_le_bytes());
            bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
        }
        let places = [
            Xattrs::in_block(&bytes, &LIMITS).ok(),
            Xattrs::in_inode(&bytes, &LIMITS).ok().flatten(),
        ];
        for place in places.into_iter().flatten() {
            prop_assert!(place.entries().count() <= bytes.len() / 16);
            let _ = block_hash(&place);
        }
        let _ = verify_checksum(&bytes, BlockNo(1), ChecksumSeed(1));
        let _ = update_checksum(&mut bytes, BlockNo(1), ChecksumSeed(1));
    }
}
