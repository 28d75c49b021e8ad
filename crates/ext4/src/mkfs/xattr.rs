//! Attributes of new files, in the inode behind its fields.

use std::collections::BTreeMap;

use pagefence_ext4_format::inode::Inode;
use pagefence_ext4_format::xattr::name::split;
use pagefence_ext4_format::xattr::{RawXattrEntry, XATTR_MAGIC, entry_len};
use zerocopy::{FromZeros, IntoBytes};

use super::error::EntryError;

/// Bytes of the magic number before the entries.
const HEADER_BYTES: usize = 4;
/// Bytes of zeros behind the last entry.
const END_BYTES: usize = 4;

/// Bytes that a value takes.
fn value_len(value: &[u8]) -> usize {
    value.len().next_multiple_of(4)
}

/// Stores attributes, whose names were checked: entries from the front, values from the back.
pub(super) fn store(
    inode: &mut Inode,
    xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
) -> Result<(), EntryError> {
    if xattrs.is_empty() {
        return Ok(());
    }
    let mut entries = Vec::with_capacity(xattrs.len());
    let mut needed = HEADER_BYTES + END_BYTES;
    for (name, value) in xattrs {
        let (index, rest) = split(name).ok_or(EntryError::XattrName)?;
        needed += entry_len(rest.len()) + value_len(value);
        entries.push((index, rest, value));
    }
    let region = inode.xattr_region_mut().unwrap_or_default();
    let room = region.len();
    if needed > room {
        return Err(EntryError::XattrRoom { needed, room });
    }
    let (magic, area) = region.split_at_mut(HEADER_BYTES);
    magic.copy_from_slice(&XATTR_MAGIC.to_le_bytes());
    let (mut front, mut back) = (0, area.len());
    for (index, name, value) in entries {
        back -= value_len(value);
        let mut raw = RawXattrEntry::new_zeroed();
        raw.e_name_len = u8::try_from(name.len()).map_err(|_| EntryError::XattrName)?;
        raw.e_name_index = index;
        if !value.is_empty() {
            raw.e_value_offs = (back as u16).into();
        }
        raw.e_value_size = (value.len() as u32).into();
        let head = raw.as_bytes();
        area[front..front + head.len()].copy_from_slice(head);
        area[front + head.len()..][..name.len()].copy_from_slice(name);
        area[back..back + value.len()].copy_from_slice(value);
        front += entry_len(name.len());
    }
    Ok(())
}
