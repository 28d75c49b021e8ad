//! Sets by hand and by chance, against a plain list.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::xattr::{ea_inode_hash, name, stored_hash};

const LIMITS: XattrLimits = XattrLimits {
    ea_inode: true,
    first_inode: InodeNo(11),
    last_inode: InodeNo(1000),
};
const NO_INODES: XattrLimits = XattrLimits {
    ea_inode: false,
    ..LIMITS
};

fn written(set: &XattrSet) -> Vec<u8> {
    let mut bytes = vec![0xFF; set.room];
    set.write_to(&mut bytes).unwrap();
    bytes
}

fn bytes(value: &[u8]) -> NewValue<'_> {
    NewValue::Bytes(value)
}

/// Byte for byte, as Linux wrote it: `user.b` = "22222", `user.a` = "1", then `trusted.c` = "".
#[test]
fn a_block_as_linux_lays_it_out() {
    let mut set = XattrSet::new_block(1024, &NO_INODES);
    set.set(name::USER, b"b", bytes(b"22222")).unwrap();
    set.set(name::USER, b"a", bytes(b"1")).unwrap();
    set.set(name::TRUSTED, b"c", bytes(b"")).unwrap();
    let block = written(&set);
    let mut due = vec![0_u8; 1024];
    due[..4].copy_from_slice(&[0, 0, 2, 0xEA]);
    due[4] = 1;
    due[8] = 1;
    due[1016..1021].copy_from_slice(b"22222");
    due[1012] = b'1';
    let hashes = [
        XattrEntry::hash_of(b"a", b"1"),
        XattrEntry::hash_of(b"b", b"22222"),
        XattrEntry::hash_of(b"c", b""),
    ];
    let mut entry = |at: usize, index: u8, name: u8, offset: u16, size: u8, hash: u32| {
        due[at] = 1;
        due[at + 1] = index;
        due[at + 2..at + 4].copy_from_slice(&offset.to_le_bytes());
        due[at + 8] = size;
        due[at + 12..at + 16].copy_from_slice(&hash.to_le_bytes());
        due[at + 16] = name;
    };
    entry(32, 1, b'a', 1012, 1, hashes[0]);
    entry(52, 1, b'b', 1016, 5, hashes[1]);
    entry(72, 4, b'c', 0, 0, hashes[2]);
    let of_all = hashes
        .iter()
        .fold(0_u32, |all, hash| all.rotate_left(16) ^ hash);
    due[12..16].copy_from_slice(&of_all.to_le_bytes());
    assert_eq!(block, due);
}

#[test]
fn an_inode_keeps_the_order_of_coming_and_has_no_hashes() {
    let region = [0_u8; 96];
    let mut set = XattrSet::of_inode(&region, &NO_INODES).unwrap().unwrap();
    set.set(name::USER, b"b", bytes(b"22222")).unwrap();
    set.set(name::USER, b"a", bytes(b"1")).unwrap();
    let region = written(&set);
    let found = Xattrs::in_inode(&region, &NO_INODES).unwrap().unwrap();
    let names: Vec<_> = found
        .entries()
        .map(|entry| (entry.name, entry.hash))
        .collect();
    assert_eq!(names, [(&b"b"[..], 0), (&b"a"[..], 0)]);
    assert!(set.remove(name::USER, b"b"));
    assert!(!set.remove(name::USER, b"b"));
    assert!(set.remove(name::USER, b"a"));
    assert_eq!(written(&set), [0; 96], "no magic without attributes");
}

#[test]
fn a_value_of_the_same_length_keeps_its_place_and_another_goes_to_the_front() {
    let mut set = XattrSet::new_block(1024, &NO_INODES);
    set.set(name::USER, b"a", bytes(b"1111")).unwrap();
    set.set(name::USER, b"b", bytes(b"2222")).unwrap();
    set.set(name::USER, b"a", bytes(b"333")).unwrap();
    let block = written(&set);
    assert_eq!(&block[1016..], b"2222333\0");
    let mut set = XattrSet::of_block(&block, &NO_INODES).unwrap();
    set.set(name::USER, b"a", bytes(b"44444")).unwrap();
    assert_eq!(&written(&set)[1012..], b"44444\0\0\x002222");
}

#[test]
fn what_does_not_fit_changes_nothing() {
    // 4 of header, 20 of an entry, 4 of end, 4 of value.
    let mut set = XattrSet::of_inode(&[0; 32], &NO_INODES).unwrap().unwrap();
    assert_eq!(set.set(name::USER, b"a", bytes(b"55555")), Err(NoRoom));
    assert!(set.is_empty());
    set.set(name::USER, b"a", bytes(b"4444")).unwrap();
    assert_eq!(set.free(), 0);
    let before = set.clone();
    assert_eq!(set.set(name::USER, b"b", bytes(b"")), Err(NoRoom));
    assert_eq!(set.set(name::USER, b"a", bytes(b"55555")), Err(NoRoom));
    assert!(!set.resize(31));
    assert_eq!(set, before);
    assert_eq!(
        XattrSet::of_inode(&[0; 20], &NO_INODES).unwrap(),
        None,
        "no room for the shortest entry"
    );
}

#[test]
fn with_inodes_for_values_a_block_keeps_room_for_entries() {
    let value = vec![7; 880];
    let mut set = XattrSet::new_block(1024, &NO_INODES);
    set.set(name::USER, b"a", bytes(&value)).unwrap();
    let mut set = XattrSet::new_block(1024, &LIMITS);
    // 1024 - 880 is 144, of which 128 are kept.
    set.set(name::USER, b"a", bytes(&value)).unwrap();
    set.remove(name::USER, b"a");
    assert_eq!(
        set.set(name::USER, b"a", bytes(&[7; 900])),
        Err(NoRoom),
        "900 bytes leave 124"
    );
    let large = NewValue::Inode {
        inode: InodeNo(12),
        len: 900,
        hash: ea_inode_hash(&[7; 900], crate::checksum::ChecksumSeed(1)),
    };
    set.set(name::USER, b"a", large).unwrap();
    assert_eq!(least_large_value(1024), 1024 - 20 - 32 - 4);
}

#[test]
fn a_value_that_moves_into_a_block_gets_its_hash_and_one_elsewhere_keeps_it() {
    let mut inode = XattrSet::of_inode(&[0; 96], &LIMITS).unwrap().unwrap();
    let mut block = XattrSet::new_block(1024, &LIMITS);
    let large = NewValue::Inode {
        inode: InodeNo(u32::MAX),
        len: 70,
        hash: 5,
    };
    inode.set(name::USER, b"here", bytes(b"x")).unwrap();
    inode.set(name::USER, b"there", large).unwrap();
    inode.rename_inode(InodeNo(u32::MAX), InodeNo(13));
    assert!(inode.move_to(&mut block, name::USER, b"here"));
    assert!(inode.move_to(&mut block, name::USER, b"there"));
    assert!(!inode.move_to(&mut block, name::USER, b"there"));
    assert!(inode.is_empty());
    let bytes = written(&block);
    let found = Xattrs::in_block(&bytes, &LIMITS).unwrap();
    let here = found.find(name::USER, b"here").unwrap();
    here.verify_hash(false).unwrap();
    let there = found.find(name::USER, b"there").unwrap();
    assert_eq!(there.hash, XattrEntry::hash_of(b"there", &[5, 0, 0, 0]));
    let value = Value::Inode {
        inode: InodeNo(13),
        len: 70,
    };
    assert_eq!(there.value, value);
    let mut full = XattrSet::of_inode(&[0; 24], &LIMITS).unwrap().unwrap();
    let before = block.clone();
    assert!(!block.move_to(&mut full, name::USER, b"here"));
    assert_eq!(block, before);
}

#[test]
fn a_place_of_another_size_is_not_written() {
    let set = XattrSet::new_block(1024, &LIMITS);
    assert!(set.write_to(&mut [0; 1023]).is_err());
    assert!(set.write_to(&mut [0; 1025]).is_err());
}

/// Values that lie on each other, as no system writes them, take more room than there is once
/// they are apart: that is an error, and no panic.
#[test]
fn values_on_each_other_do_not_fit_apart() {
    let mut set = XattrSet::new_block(1024, &NO_INODES);
    set.set(name::USER, b"a", bytes(&[1; 600])).unwrap();
    set.set(name::USER, b"b", bytes(b"")).unwrap();
    let mut block = written(&set);
    let (offset, size) = (&(1024_u16 - 600).to_le_bytes(), &600_u32.to_le_bytes());
    block[54..56].copy_from_slice(offset);
    block[60..64].copy_from_slice(size);
    let mut set = XattrSet::of_block(&block, &NO_INODES).unwrap();
    assert_eq!(set.free(), 0);
    assert!(!set.is_sound());
    assert!(set.write_to(&mut block.clone()).is_err());
    assert_eq!(set.set(name::USER, b"c", bytes(b"")), Err(NoRoom));
    assert!(set.remove(name::USER, b"a"));
    assert!(set.is_sound());
    set.write_to(&mut block).unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Set(u8, Vec<u8>, Vec<u8>),
    Large(u8, Vec<u8>, u32),
    Remove(u8, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let index = prop_oneof![Just(name::USER), Just(name::TRUSTED), Just(name::SECURITY)];
    let short = proptest::collection::vec(b'a'..=b'c', 1..4);
    let value = proptest::collection::vec(any::<u8>(), 0..90);
    prop_oneof![
        4 => (index.clone(), short.clone(), value).prop_map(|(i, n, v)| Step::Set(i, n, v)),
        1 => (index.clone(), short.clone(), 11_u32..1000).prop_map(|(i, n, v)| Step::Large(i, n, v)),
        2 => (index, short).prop_map(|(i, n)| Step::Remove(i, n)),
    ]
}

type Model = BTreeMap<(u8, usize, Vec<u8>), Result<Vec<u8>, u32>>;

fn read(place: &Xattrs<'_>) -> Model {
    place
        .entries()
        .map(|entry| {
            let value = match entry.value {
                Value::Bytes(bytes) => Ok(bytes.to_vec()),
                Value::Inode { inode, .. } => Err(inode.0),
            };
            ((entry.index, entry.name.len(), entry.name.to_vec()), value)
        })
        .collect()
}

fn apply(set: &mut XattrSet, model: &mut Model, step: &Step) {
    let (key, value, new) = match step {
        Step::Set(index, name, value) => (
            (*index, name.len(), name.clone()),
            Some(Ok(value.clone())),
            Some(NewValue::Bytes(value)),
        ),
        Step::Large(index, name, inode) => (
            (*index, name.len(), name.clone()),
            Some(Err(*inode)),
            Some(NewValue::Inode {
                inode: InodeNo(*inode),
                len: 5,
                hash: 6,
            }),
        ),
        Step::Remove(index, name) => ((*index, name.len(), name.clone()), None, None),
    };
    match (value, new) {
        (Some(value), Some(new)) => {
            let before = set.clone();
            match set.set(key.0, &key.2, new) {
                Ok(()) => {
                    model.insert(key, value);
                }
                Err(NoRoom) => assert_eq!(*set, before),
            }
        }
        _ => assert_eq!(set.remove(key.0, &key.2), model.remove(&key).is_some()),
    }
}

proptest! {
    #[test]
    fn a_block_reads_as_it_was_set(steps in proptest::collection::vec(step(), 0..40)) {
        let mut set = XattrSet::new_block(1024, &LIMITS);
        let mut model = Model::new();
        for step in &steps {
            apply(&mut set, &mut model, step);
            let block = written(&set);
            let found = Xattrs::in_block(&block, &LIMITS).unwrap();
            prop_assert_eq!(read(&found), model.clone());
            let keys: Vec<_> = found
                .entries()
                .map(|entry| (entry.index, entry.name.len(), entry.name.to_vec()))
                .collect();
            prop_assert!(keys.is_sorted());
            for entry in found.entries() {
                prop_assert!(entry.verify_hash(false).is_ok());
            }
            prop_assert_eq!(stored_hash(&block), Ok(block_hash(&found)));
            // What is read is written the same.
            set = XattrSet::of_block(&block, &LIMITS).unwrap();
            prop_assert_eq!(written(&set), block);
        }
    }

    #[test]
    fn an_inode_reads_as_it_was_set(
        steps in proptest::collection::vec(step(), 0..40),
        words in 6_usize..60,
    ) {
        let region = vec![0; words * 4];
        let mut set = XattrSet::of_inode(&region, &LIMITS).unwrap().unwrap();
        let mut model = Model::new();
        for step in &steps {
            apply(&mut set, &mut model, step);
            let region = written(&set);
            let found = Xattrs::in_inode(&region, &LIMITS).unwrap();
            prop_assert_eq!(found.map_or_else(Model::new, |found| read(&found)), model.clone());
            set = XattrSet::of_inode(&region, &LIMITS).unwrap().unwrap();
            prop_assert_eq!(written(&set), region);
        }
    }

    /// Whatever a place holds that passes the checks can be taken over, or is refused.
    #[test]
    fn any_place_is_taken_over_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..128),
        steps in proptest::collection::vec(step(), 1..4),
    ) {
        let mut region = XATTR_MAGIC.to_le_bytes().to_vec();
        region.extend(bytes);
        if let Ok(Some(mut set)) = XattrSet::of_inode(&region, &LIMITS) {
            let mut model = BTreeMap::new();
            for step in steps {
                if let Step::Remove(index, name) = &step {
                    while set.remove(*index, name) {}
                    model.clear();
                } else {
                    apply(&mut set, &mut model, &step);
                }
            }
            let mut out = vec![0; region.len()];
            let _ = set.write_to(&mut out);
        }
    }
}
