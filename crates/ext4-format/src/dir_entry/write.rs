//! Writing directory entries in place. A part of an inline directory is written as a block of its
//! own whose format has no checksums.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::inline::PARENT;
use super::{
    DirCorruption, DirFormat, EntryName, FileKind, HEAD, RawDirEntry, RawDirEntryTail, Slot, TAIL,
    TAIL_FILE_TYPE, Walk, entry_len, split_tail,
};
use crate::checksum::ChecksumSeed;
use crate::extent::ROOT_BYTES;
use crate::{Corruption, InodeNo};

/// Makes `block` one without entries, with a tail (its checksum still 0) if the format has one.
/// Returns whether it did: not if an entry and the tail do not fit, or the size cannot be encoded.
#[must_use]
pub fn init_block(block: &mut [u8], format: &DirFormat) -> bool {
    let block_size = block.len();
    block.fill(0);
    let Some(area) = init_tail(block, format) else {
        return false;
    };
    let Some(rec_len) = encode_rec_len(area.len(), block_size) else {
        return false;
    };
    write_head(area, 0, rec_len, 0, 0)
}

/// Makes `block` the first of a directory: `.` and `..`, nothing else. Returns whether it did, as
/// [`init_block`].
#[must_use]
pub fn init_first_block(
    block: &mut [u8],
    format: &DirFormat,
    this: InodeNo,
    parent: InodeNo,
) -> bool {
    let block_size = block.len();
    block.fill(0);
    let Some(area) = init_tail(block, format) else {
        return false;
    };
    let dot_len = entry_len(1);
    let Some((dot, dot_dot)) = area.split_at_mut_checked(dot_len) else {
        return false;
    };
    let Some(rest) = encode_rec_len(dot_dot.len(), block_size) else {
        return false;
    };
    let Some(dot_rec_len) = encode_rec_len(dot_len, block_size) else {
        return false;
    };
    let kind = kind_byte(format, Some(FileKind::Directory));
    write_head(dot, this.0, dot_rec_len, 1, kind)
        && write_name(dot, b".")
        && write_head(dot_dot, parent.0, rest, 2, kind)
        && write_name(dot_dot, b"..")
}

/// Makes the 60 bytes of `i_block` an inline directory without entries. Returns whether it did:
/// not if there are other than 60.
#[must_use]
pub fn init_inline(i_block: &mut [u8], parent: InodeNo) -> bool {
    if i_block.len() != ROOT_BYTES {
        return false;
    }
    let no_tail = DirFormat {
        filetype: true,
        checksums: false,
        last_inode: InodeNo(u32::MAX),
    };
    match i_block.split_at_mut_checked(PARENT) {
        Some((number, entries)) => {
            number.copy_from_slice(U32::new(parent.0).as_bytes());
            init_block(entries, &no_tail)
        }
        None => false,
    }
}

/// Writes an entry into the first gap that is large enough and returns its offset, or nothing if
/// there is no such gap. Whether the name is there already is for the caller to know.
///
/// # Errors
///
/// A corrupt entry met on the way; [`DirCorruption::NoTail`] if the format asks for a tail and
/// there is none. The block is not changed then.
pub fn insert(
    block: &mut [u8],
    format: &DirFormat,
    inode: InodeNo,
    name: &EntryName<'_>,
    kind: Option<FileKind>,
) -> Result<Option<usize>, Corruption> {
    let needed = entry_len(name.as_bytes().len());
    let mut gap = None;
    for slot in writable(block, format)? {
        let slot = slot?;
        if gap.is_none() && slot.room() >= needed {
            gap = Some((slot.offset, slot.len, slot.used()));
        }
    }
    match gap {
        Some(gap) => Ok(put(block, format, gap, inode, name, kind)),
        None => Ok(None),
    }
}

/// As [`insert`], behind the entry at `gap`, which [`DirBlock::search`](super::DirBlock::search)
/// has found in these very contents: the others are not looked at again. Nothing if it has no room
/// for the name.
///
/// # Errors
///
/// As [`insert`], of the entry at `gap`.
pub fn insert_at(
    block: &mut [u8],
    format: &DirFormat,
    gap: usize,
    inode: InodeNo,
    name: &EntryName<'_>,
    kind: Option<FileKind>,
) -> Result<Option<usize>, Corruption> {
    if format.checksums && split_tail(block).is_none() {
        return Err(DirCorruption::NoTail.into());
    }
    let mut walk = Walk::new(block, format);
    walk.offset = gap;
    let slot = walk.slot()?;
    if slot.room() < entry_len(name.as_bytes().len()) {
        return Ok(None);
    }
    let gap = (slot.offset, slot.len, slot.used());
    Ok(put(block, format, gap, inode, name, kind))
}

/// Puts an entry behind the one at offset, of a length, of which so much is used; that leaves room.
fn put(
    block: &mut [u8],
    format: &DirFormat,
    (offset, len, used): (usize, usize, usize),
    inode: InodeNo,
    name: &EntryName<'_>,
    kind: Option<FileKind>,
) -> Option<usize> {
    let name = name.as_bytes();
    let block_size = block.len();
    let place = offset.saturating_add(used);
    let rec_len = encode_rec_len(len.saturating_sub(used), block_size)?;
    let name_len = u8::try_from(name.len()).ok()?;
    if used != 0 && !set_rec_len(block, offset, used) {
        return None;
    }
    let kind = kind_byte(format, kind);
    let written = block.get_mut(place..).is_some_and(|rest| {
        write_head(rest, inode.0, rec_len, name_len, kind) && write_name(rest, name)
    });
    debug_assert!(written, "the walk has shown that the entry fits");
    written.then_some(place)
}

/// Takes the entry in use at `offset` out: its room goes to the one before it, or it stays as an
/// unused one if it is the first. Returns whether there was such an entry.
///
/// # Errors
///
/// As [`insert`].
pub fn remove(block: &mut [u8], format: &DirFormat, offset: usize) -> Result<bool, Corruption> {
    let block_size = block.len();
    let mut before = None;
    let mut found = None;
    for slot in writable(block, format)? {
        let slot = slot?;
        if slot.offset == offset && slot.inode != 0 {
            found = Some((slot.len, before));
        }
        before = Some((slot.offset, slot.len));
    }
    let Some((len, before)) = found else {
        return Ok(false);
    };
    match before {
        Some((start, start_len)) => {
            if !set_rec_len_encoded(block, start, start_len.saturating_add(len), block_size) {
                return Ok(false);
            }
            if let Some(gone) = block.get_mut(offset..offset.saturating_add(len)) {
                gone.fill(0);
            }
        }
        None => {
            // The length stays; inode, name and kind go.
            if let Some(entry) = block.get_mut(offset..offset.saturating_add(len))
                && let Some(name) = entry.get_mut(HEAD..)
            {
                name.fill(0);
                let raw = RawDirEntry::mut_from_prefix(entry).map(|(raw, _)| raw);
                if let Ok(raw) = raw {
                    raw.inode.set(0);
                    raw.name_len = 0;
                    raw.file_type = 0;
                }
            }
        }
    }
    Ok(true)
}

/// Bytes of the largest gap in a block: the longest entry ([`entry_len`]) that [`insert`] finds room
/// for.
///
/// # Errors
///
/// As [`insert`].
pub fn largest_gap(block: &[u8], format: &DirFormat) -> Result<usize, Corruption> {
    let mut largest = 0;
    for slot in writable(block, format)? {
        let slot = slot?;
        largest = slot.room().max(largest);
    }
    Ok(largest)
}

/// Points the entry in use at `offset` to another inode. Returns whether there was such an entry.
///
/// # Errors
///
/// As [`insert`].
pub fn set_inode(
    block: &mut [u8],
    format: &DirFormat,
    offset: usize,
    inode: InodeNo,
    kind: Option<FileKind>,
) -> Result<bool, Corruption> {
    let mut found = false;
    for slot in writable(block, format)? {
        let slot = slot?;
        found |= slot.offset == offset && slot.inode != 0;
    }
    if found
        && let Some(entry) = block.get_mut(offset..)
        && let Ok((raw, _)) = RawDirEntry::mut_from_prefix(entry)
    {
        raw.inode.set(inode.0);
        raw.file_type = kind_byte(format, kind);
    }
    Ok(found)
}

/// Stores the checksum at the end of a block of entries. `seed` is the inode's.
///
/// # Errors
///
/// [`DirCorruption::NoTail`] if there is no place for it.
pub fn update_checksum(block: &mut [u8], seed: ChecksumSeed) -> Result<(), Corruption> {
    let (covered, _) = split_tail(block).ok_or(DirCorruption::NoTail)?;
    let computed = seed.checksum(covered);
    if let Ok((_, tail)) = RawDirEntryTail::mut_from_suffix(block) {
        tail.det_checksum.set(computed);
    }
    Ok(())
}

/// A walk over a block that will be written: where a tail is due, there is one.
fn writable<'a>(
    block: &'a [u8],
    format: &DirFormat,
) -> Result<impl Iterator<Item = Result<Slot<'a>, DirCorruption>> + use<'a>, DirCorruption> {
    if format.checksums && split_tail(block).is_none() {
        return Err(DirCorruption::NoTail);
    }
    Ok(Walk::new(block, format))
}

/// Writes the tail, if the format has one, and returns what is left for entries.
fn init_tail<'a>(block: &'a mut [u8], format: &DirFormat) -> Option<&'a mut [u8]> {
    if !format.checksums {
        return Some(block);
    }
    let (area, tail) = RawDirEntryTail::mut_from_suffix(block).ok()?;
    tail.det_rec_len = U16::new(u16::try_from(TAIL).ok()?);
    tail.det_reserved_ft = TAIL_FILE_TYPE;
    Some(area)
}

/// Without the feature `filetype` the byte is a part of the name's length.
fn kind_byte(format: &DirFormat, kind: Option<FileKind>) -> u8 {
    match kind {
        Some(kind) if format.filetype => kind.to_byte(),
        _ => 0,
    }
}

fn write_head(entry: &mut [u8], inode: u32, rec_len: u16, name_len: u8, file_type: u8) -> bool {
    let raw = RawDirEntry {
        inode: U32::new(inode),
        rec_len: U16::new(rec_len),
        name_len,
        file_type,
    };
    raw.write_to_prefix(entry).is_ok()
}

/// Writes the name behind the head and zeroes up to the end of its padding.
fn write_name(entry: &mut [u8], name: &[u8]) -> bool {
    match entry.get_mut(HEAD..entry_len(name.len())) {
        Some(place) => {
            place.fill(0);
            name.write_to_prefix(place).is_ok()
        }
        None => false,
    }
}

fn set_rec_len(block: &mut [u8], offset: usize, len: usize) -> bool {
    let block_size = block.len();
    set_rec_len_encoded(block, offset, len, block_size)
}

fn set_rec_len_encoded(block: &mut [u8], offset: usize, len: usize, block_size: usize) -> bool {
    let Some(rec_len) = encode_rec_len(len, block_size) else {
        return false;
    };
    match block.get_mut(offset..).map(RawDirEntry::mut_from_prefix) {
        Some(Ok((raw, _))) => {
            raw.rec_len.set(rec_len);
            true
        }
        _ => false,
    }
}

/// The inverse of [`decode_rec_len`](super::decode_rec_len): nothing if the length is no multiple
/// of 4, or is too long for an entry of that block.
pub(super) fn encode_rec_len(len: usize, block_size: usize) -> Option<u16> {
    if !len.is_multiple_of(4) || len > block_size || block_size > 0x4_0000 {
        return None;
    }
    if len == 0x1_0000 && block_size == 0x1_0000 {
        return Some(0xFFFF);
    }
    if len == block_size && len > 0x1_0000 {
        return Some(0);
    }
    u16::try_from((len & 0xFFFC) | (len >> 16)).ok()
}
