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
        .and_then(|xattrs| {
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
        });
    let Some((place, length)) = found else {
        return Ok(());
    };
    if usize::try_from(kept).is_ok_and(|kept| kept < length)
        && let Some(region) = record.xattr_region_mut()
    {
        shorten_value(region, place, kept);
    }
    Ok(())
}

/// Shortens the value of the entry at `place` to `kept` bytes, where it lies. The hash of a value
/// in an inode may be 0: then nobody checks it.
fn shorten_value(region: &mut [u8], place: usize, kept: u32) {
    let field = |region: &[u8], at: usize| -> u32 {
        region
            .get(place + at..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |word| u32::from_le_bytes(*word))
    };
    // Offset (16 bits) behind the length of the name and its prefix; offsets count from the first
    // entry.
    let offset = (field(region, 0) >> 16) as usize + START;
    let length = field(region, offset_of!(RawXattrEntry, e_value_size)) as usize;
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
