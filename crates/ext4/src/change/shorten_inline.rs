//! Cutting data that lies in the inode to the file's size.

use std::mem::{offset_of, size_of};

use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord};
use pagefence_ext4_format::xattr::name::{INLINE_DATA, SYSTEM};
use pagefence_ext4_format::xattr::{
    RawXattrEntry, RawXattrInodeHeader, Value, XattrLimits, Xattrs, entry_len,
};
use pagefence_vfs::Result;

use crate::error::At;
use crate::instance::Instance;

/// Bytes of data in the inode's block area; what is longer goes on in an attribute.
const IN_BLOCK_AREA: u64 = 60;
/// Bytes before the entries.
const START: usize = size_of::<RawXattrInodeHeader>();

/// Zeroes the inline data of a regular file past its size, and shortens the attribute that holds
/// its end. The caller writes the record.
///
/// # Errors
/// `Corrupt` if the attributes of the inode are damaged.
pub(crate) fn shorten_inline(instance: &Instance, record: &mut InodeRecord) -> Result<()> {
    if record.kind() != Some(FileKind::Regular) {
        return Ok(());
    }
    let size = record.size();
    let kept = usize::try_from(size).unwrap_or(usize::MAX);
    if let Some(tail) = record.block_area_mut().get_mut(kept..) {
        tail.fill(0);
    }
    let kept = u32::try_from(size.saturating_sub(IN_BLOCK_AREA)).unwrap_or(u32::MAX);
    let Some(region) = record.xattr_region() else {
        return Ok(());
    };
    let limits = XattrLimits::from(&instance.superblock);
    let found = Xattrs::in_inode(region, &limits)
        .at(&instance.damage, Some(record.ino()), None)?
        .and_then(|xattrs| find_value(&xattrs));
    let Some((place, length)) = found else {
        return Ok(());
    };
    if usize::try_from(kept).is_ok_and(|kept| kept < length)
        && let Some(region) = record.xattr_region_mut()
    {
        shorten_value(region, place, length, kept);
    }
    Ok(())
}

/// The value that holds the end of an inode's inline data, to be changed.
pub(crate) fn inline_value_mut<'a>(
    limits: &XattrLimits,
    record: &'a mut InodeRecord,
) -> Option<&'a mut [u8]> {
    let region = record.xattr_region()?;
    let xattrs = Xattrs::in_inode(region, limits).ok()??;
    let (place, length) = find_value(&xattrs)?;
    let start = value_start(region, place);
    record.xattr_region_mut()?.get_mut(start..start + length)
}

/// Where the entry of inline data is in the region, and how long its value.
fn find_value(xattrs: &Xattrs<'_>) -> Option<(usize, usize)> {
    let mut place = START;
    for entry in xattrs.entries() {
        if (entry.index, entry.name) == (SYSTEM, INLINE_DATA)
            && let Value::Bytes(value) = entry.value
        {
            return Some((place, value.len()));
        }
        place += entry_len(entry.name.len());
    }
    None
}

/// Where the value of the entry at `place` starts in the region.
fn value_start(region: &[u8], place: usize) -> usize {
    let offset = region
        .get(place + offset_of!(RawXattrEntry, e_value_offs)..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |offset| u16::from_le_bytes(*offset));
    // Offsets count from the first entry.
    START + usize::from(offset)
}

/// Shortens the value of the entry at `place` to `kept` bytes, where it lies. The hash of a value
/// in an inode may be 0: then nobody checks it.
fn shorten_value(region: &mut [u8], place: usize, length: usize, kept: u32) {
    let offset = value_start(region, place);
    if let Some(gone) = region.get_mut(offset + kept as usize..offset + length) {
        gone.fill(0);
    }
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = region.get_mut(place + at..place + at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(offset_of!(RawXattrEntry, e_value_size), &kept.to_le_bytes());
    put(offset_of!(RawXattrEntry, e_hash), &[0; 4]);
    if kept == 0 {
        put(offset_of!(RawXattrEntry, e_value_offs), &[0; 2]);
    }
}
