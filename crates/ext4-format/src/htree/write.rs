//! Writing the blocks of an index. Checksums are [`super::update_checksum`]'s matter, and come last.

use std::mem::offset_of;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::{
    ENTRY, NODE_ENTRIES, ROOT_ENTRIES, RawDxCountLimit, RawDxEntry, RawDxRootHead, RawDxRootInfo,
    entries_that_fit,
};
use crate::dir_entry::{FileKind, RawDirEntry};
use crate::{FileBlock, InodeNo};

/// Makes `block`, a directory's first, the root of an index without levels below whose only entry
/// leads to `leaf`. `filetype` and `checksums` are the file system's features. Returns whether it
/// did: not if the block has no room for that.
#[must_use]
pub fn init_root(
    block: &mut [u8],
    (this, parent): (InodeNo, InodeNo),
    (filetype, checksums): (bool, bool),
    hash_version: u8,
    leaf: FileBlock,
) -> bool {
    let size = block.len();
    block.fill(0);
    let kind = if filetype {
        FileKind::Directory.to_byte()
    } else {
        0
    };
    let Some(rest) = size.checked_sub(12).filter(|_| size > ROOT_ENTRIES) else {
        return false;
    };
    let head = RawDxRootHead {
        dot: RawDirEntry {
            inode: U32::new(this.0),
            rec_len: U16::new(12),
            name_len: 1,
            file_type: kind,
        },
        dot_name: *b".\0\0\0",
        dotdot: RawDirEntry {
            inode: U32::new(parent.0),
            rec_len: U16::new(u16::try_from(rest).unwrap_or(u16::MAX)),
            name_len: 2,
            file_type: kind,
        },
        dotdot_name: *b"..\0\0",
        info: RawDxRootInfo {
            reserved_zero: U32::new(0),
            hash_version,
            info_length: 8,
            indirect_levels: 0,
            unused_flags: 0,
        },
    };
    head.write_to_prefix(block).is_ok()
        && put_entries(
            block,
            ROOT_ENTRIES,
            entries_that_fit(size, ROOT_ENTRIES, checksums),
            &[(0, leaf)],
        )
}

/// Makes `block` a node of an index with these entries; the first one's hash is not kept. Returns
/// whether it did: not if they do not fit, or there are none.
#[must_use]
pub fn init_node(block: &mut [u8], checksums: bool, entries: &[(u32, FileBlock)]) -> bool {
    let size = block.len();
    block.fill(0);
    // An unused entry as long as the block, to those who do not know the index.
    let unused = RawDirEntry {
        inode: U32::new(0),
        rec_len: U16::new(u16::try_from(size).unwrap_or(u16::MAX)),
        name_len: 0,
        file_type: 0,
    };
    unused.write_to_prefix(block).is_ok()
        && put_entries(block, NODE_ENTRIES, node_limit(size, checksums), entries)
}

/// Entries that a node of a block of `size` bytes has room for.
#[must_use]
pub fn node_limit(size: usize, checksums: bool) -> u16 {
    entries_that_fit(size, NODE_ENTRIES, checksums)
}

/// Makes these the entries of an index block: a directory's first (`root`) or a node. Returns
/// whether it did: not if they do not fit, or there are none.
#[must_use]
pub fn set_entries(
    block: &mut [u8],
    root: bool,
    checksums: bool,
    entries: &[(u32, FileBlock)],
) -> bool {
    let start = if root { ROOT_ENTRIES } else { NODE_ENTRIES };
    let limit = entries_that_fit(block.len(), start, checksums);
    put_entries(block, start, limit, entries)
}

/// Sets how many levels of nodes lie below a root. Returns whether there was room for that.
#[must_use]
pub fn set_levels(block: &mut [u8], levels: u8) -> bool {
    let at =
        offset_of!(RawDxRootHead, info).saturating_add(offset_of!(RawDxRootInfo, indirect_levels));
    match block.get_mut(at) {
        Some(place) => {
            *place = levels;
            true
        }
        None => false,
    }
}

fn put_entries(block: &mut [u8], start: usize, limit: u16, entries: &[(u32, FileBlock)]) -> bool {
    let Ok(count) = u16::try_from(entries.len()) else {
        return false;
    };
    if count == 0 || count > limit {
        return false;
    }
    let Some(places) = block.get_mut(start..) else {
        return false;
    };
    for ((hash, leaf), place) in entries.iter().zip(places.chunks_exact_mut(ENTRY)) {
        let raw = RawDxEntry {
            hash: U32::new(*hash),
            block: U32::new(leaf.0),
        };
        if raw.write_to_prefix(place).is_err() {
            return false;
        }
    }
    let head = RawDxCountLimit {
        limit: U16::new(limit),
        count: U16::new(count),
    };
    head.write_to_prefix(places).is_ok()
}

#[cfg(test)]
mod tests;
