//! The fields of what is of varying length: lists of entries, in blocks and in inodes.

use crate::hostile::values::{Field, in_a_row};

/// Entries of a list that are looked at.
const ENTRIES: usize = 3;

pub(super) fn word16(bytes: &[u8], at: usize) -> usize {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map_or(0, |word| u16::from_le_bytes(*word).into())
}

/// A node of an extent tree in `bytes`, which begins at byte `at` of its structure.
pub(super) fn extent_fields(bytes: &[u8], at: usize) -> Vec<Field> {
    let header = [
        ("eh_magic", 2),
        ("eh_entries", 2),
        ("eh_max", 2),
        ("eh_depth", 2),
        ("eh_generation", 4),
    ];
    let mut fields = in_a_row("", at, &header);
    let entries = word16(bytes, 2);
    let is_leaf = word16(bytes, 6) == 0;
    for entry in (0..entries).filter(|entry| *entry < ENTRIES || *entry + 1 == entries) {
        let names: &[(&str, usize)] = if is_leaf {
            &[
                ("ee_block", 4),
                ("ee_len", 2),
                ("ee_start_hi", 2),
                ("ee_start_lo", 4),
            ]
        } else {
            &[
                ("ei_block", 4),
                ("ei_leaf_lo", 4),
                ("ei_leaf_hi", 2),
                ("ei_unused", 2),
            ]
        };
        fields.extend(in_a_row(&format!("{entry}."), at + 12 + 12 * entry, names));
    }
    fields
}

/// Pointers of a block map, of `length` bytes from byte `at` of its structure.
pub(super) fn pointer_fields(at: usize, length: usize) -> Vec<Field> {
    let count = length / 4;
    let slots = (0..count).filter(|slot| *slot < ENTRIES || *slot + 4 > count);
    slots
        .map(|slot| Field::new(format!("pointer {slot}"), at + 4 * slot, 4))
        .collect()
}

const DIR_ENTRY: [(&str, usize); 5] = [
    ("inode", 4),
    ("rec_len", 2),
    ("name_len", 1),
    ("file_type", 1),
    ("name", 1),
];

/// A block of directory entries.
pub(super) fn dir_fields(block: &[u8], has_tail: bool) -> Vec<Field> {
    let mut fields = Vec::new();
    let (mut at, mut number) = (0, 0);
    while at + 12 <= block.len() && number < 2 * ENTRIES {
        fields.extend(in_a_row(&format!("{number}."), at, &DIR_ENTRY));
        let length = word16(block, at + 4);
        number += 1;
        at += length.max(12);
    }
    if has_tail {
        let tail = [
            ("det_reserved_zero1", 4),
            ("det_rec_len", 2),
            ("det_reserved_zero2", 1),
            ("det_reserved_ft", 1),
        ];
        fields.extend(in_a_row("", block.len() - 12, &tail));
    }
    fields
}

/// A root of a directory's index, with its head, or a node, whose entries begin at byte `head` or
/// behind the root's description there.
pub(super) fn index_fields(block: &[u8], head: usize, is_root: bool) -> Vec<Field> {
    let mut fields = in_a_row("0.", 0, &DIR_ENTRY);
    let mut at = head;
    if is_root {
        fields.extend(in_a_row("1.", 12, &DIR_ENTRY));
        let description = [
            ("reserved_zero", 4),
            ("hash_version", 1),
            ("info_length", 1),
            ("indirect_levels", 1),
            ("unused_flags", 1),
        ];
        fields.extend(in_a_row("", head, &description));
        at += 8;
    }
    fields.extend(in_a_row(
        "",
        at,
        &[("limit", 2), ("count", 2), ("block", 4)],
    ));
    let count = word16(block, at + 2);
    for entry in (1..count).filter(|entry| *entry < ENTRIES || *entry + 1 == count) {
        let names = [("hash", 4), ("block", 4)];
        fields.extend(in_a_row(&format!("{entry}."), at + 8 * entry, &names));
    }
    let tail = at + 8 * word16(block, at);
    fields.push(Field::new("dt_reserved", tail, 4));
    fields
}

/// A block of attributes.
pub(super) fn xattr_fields(block: &[u8]) -> Vec<Field> {
    let header = [
        ("h_magic", 4),
        ("h_refcount", 4),
        ("h_blocks", 4),
        ("h_hash", 4),
    ];
    let mut fields = in_a_row("", 0, &header);
    fields.extend(xattr_entries(block, 32));
    fields
}

/// Entries of attributes from byte `at` on.
pub(super) fn xattr_entries(bytes: &[u8], at: usize) -> Vec<Field> {
    let mut fields = Vec::new();
    let (mut at, mut number) = (at, 0);
    while bytes.get(at..at + 4).is_some_and(|word| word != [0; 4]) && number < ENTRIES {
        let names = [
            ("e_name_len", 1),
            ("e_name_index", 1),
            ("e_value_offs", 2),
            ("e_value_inum", 4),
            ("e_value_size", 4),
            ("e_hash", 4),
            ("e_name", 1),
        ];
        fields.extend(in_a_row(&format!("{number}."), at, &names));
        at += (16 + usize::from(bytes[at])).next_multiple_of(4);
        number += 1;
    }
    // The end of the list, which may become an entry.
    fields.push(Field::new("end", at, 4));
    fields
}
