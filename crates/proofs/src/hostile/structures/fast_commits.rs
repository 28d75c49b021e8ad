//! Fast commits: what each tag says, in the area behind the log.

use std::mem::offset_of;

use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::inode::RawInode;
use pagefence_ext4_format::journal::JournalSuperblock;

use super::fields::{pointer_fields, word16, xattr_entries};
use super::{Seal, Survey, record_fields};
use crate::hostile::values::{Field, in_a_row};

/// The kind of tag that ends a fast commit.
const TAIL: usize = 8;
/// Bytes of a tag before its value.
const HEAD_BYTES: usize = 4;
/// Bytes of an INODE's value before the record.
const INODE_BYTES: usize = 4;
/// Where a TAIL's checksum begins in its tag.
const CRC: usize = 8;

/// Where attributes begin in a record with the usual fields.
const ATTRIBUTES: usize = 160;

/// One fast commit in bytes of an area.
struct Commit {
    length: usize,
    fields: Vec<Field>,
    /// Where its checksum lies.
    crc: usize,
}

impl Survey<'_> {
    /// Each fast commit of the journal that has these blocks, and its checksum by itself, which is
    /// mended in all other cases.
    pub(super) fn fast_commits(&mut self, journal: &[u8], blocks: &[BlockNo]) {
        let layout = self.layout;
        let block_size = layout.superblock.block_size();
        let length = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        let Ok(superblock) = JournalSuperblock::parse(journal, block_size, length) else {
            return;
        };
        let area = superblock.fast_commit;
        let Some(blocks) = blocks.get(area.start as usize..area.end as usize) else {
            return;
        };
        let Some(first) = blocks.first() else {
            return;
        };
        // What lies in one piece: where it does not, an image has nothing to try here.
        let pieces = (first.0..).zip(blocks).take_while(|(at, it)| *at == it.0);
        let bytes = layout.block_size() * pieces.count();
        let area = layout
            .read(layout.offset(*first), bytes)
            .unwrap_or_default();
        let (mut start, mut number) = (0, 0);
        while let Some(commit) = commit_at(&area[start..], layout.block_size()) {
            number += 1;
            let offset = layout.offset(*first) + start as u64;
            // An inode number that leads back to it is the journal's.
            let own = layout
                .superblock
                .journal_inode()
                .map_or(8, |it| it.0.into());
            let place = (offset, commit.length);
            let what = format!("fast commit {number}");
            self.push(what, place, Seal::FastCommit, commit.fields, own);
            let what = format!("checksum of fast commit {number}");
            let fields = in_a_row("", 0, &[("fc_crc", 4)]);
            let place = (offset + commit.crc as u64, 4);
            self.push(what, place, Seal::Plain, fields, own);
            start += commit.length;
        }
    }
}

/// The fast commit that begins here, if it has an end.
fn commit_at(bytes: &[u8], block_size: usize) -> Option<Commit> {
    let mut fields = Vec::new();
    let mut at = 0;
    for number in 0.. {
        let left = block_size - at % block_size;
        if left < HEAD_BYTES {
            at += left;
        }
        let kind = word16(bytes, at);
        let names = names_of(kind)?;
        let prefix = format!("{number}.{}.", names.kind);
        let head = [("fc_tag", 2), ("fc_len", 2)];
        fields.extend(in_a_row(&prefix, at, &head));
        fields.extend(in_a_row(&prefix, at + HEAD_BYTES, names.value));
        let length = HEAD_BYTES + word16(bytes, at + 2);
        if names.kind == "INODE" {
            let base = at + HEAD_BYTES + INODE_BYTES;
            let record = bytes.get(base..at + length)?;
            let of_record = fields_of(record).into_iter().map(|field| Field {
                name: format!("{prefix}{}", field.name),
                at: base + field.at,
                ..field
            });
            fields.extend(of_record);
        }
        let tag = at;
        at += length;
        if kind == TAIL {
            return Some(Commit {
                length: at,
                fields,
                crc: tag + CRC,
            });
        }
    }
    None
}

/// The fields of a record, which may end before its attributes.
fn fields_of(record: &[u8]) -> Vec<Field> {
    let mut fields = record_fields();
    fields.extend(pointer_fields(offset_of!(RawInode, i_block), 60));
    if record.len() > ATTRIBUTES {
        fields.push(Field::new("h_magic", ATTRIBUTES, 4));
        fields.extend(xattr_entries(record, ATTRIBUTES + 4));
    }
    fields.retain(|field| field.at + field.width <= record.len());
    fields
}

struct Names {
    kind: &'static str,
    /// Fields of the value, and their bytes.
    value: &'static [(&'static str, usize)],
}

fn names_of(kind: usize) -> Option<Names> {
    const ENTRY: &[(&str, usize)] = &[("fc_parent_ino", 4), ("fc_ino", 4), ("fc_dname", 1)];
    let (kind, value): (_, &[_]) = match kind {
        1 => (
            "ADD_RANGE",
            &[
                ("fc_ino", 4),
                ("ee_block", 4),
                ("ee_len", 2),
                ("ee_start_hi", 2),
                ("ee_start_lo", 4),
            ],
        ),
        2 => (
            "DEL_RANGE",
            &[("fc_ino", 4), ("fc_lblk", 4), ("fc_len of blocks", 4)],
        ),
        3 => ("CREAT", ENTRY),
        4 => ("LINK", ENTRY),
        5 => ("UNLINK", ENTRY),
        6 => ("INODE", &[("fc_ino", 4)]),
        7 => ("PAD", &[]),
        TAIL => ("TAIL", &[("fc_tid", 4)]),
        9 => ("HEAD", &[("fc_features", 4), ("fc_tid", 4)]),
        _ => return None,
    };
    Some(Names { kind, value })
}
