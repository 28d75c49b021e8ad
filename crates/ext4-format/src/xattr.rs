//! Extended attributes: in the inode behind its extra fields, and in a block of their own. Source:
//! the kernel's `Documentation/filesystems/ext4/attributes.rst`.
//!
//! Both places hold entries from the front, four zero bytes, and values from the back. They are
//! checked as a whole when opened; what is handed out then are views of the bytes.

mod corruption;
mod hash;
pub mod name;
mod write;

#[cfg(test)]
mod image_tests;
#[cfg(test)]
mod tests;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::ChecksumSeed;
use crate::features::Incompat;
use crate::superblock::Superblock;
use crate::{BlockNo, Corruption, InodeNo};

pub use corruption::XattrCorruption;
pub use hash::{block_hash, ea_inode_hash};
pub use pagefence_posix_acl as acl;
pub use write::{NewValue, NoRoom, XattrSet, least_large_value};

/// `h_magic` of both places.
pub const XATTR_MAGIC: u32 = 0xEA02_0000;
/// The longest value that the kernel's interface carries, in bytes.
pub const MAX_VALUE_LEN: u32 = 65536;
/// The longest value that the format allows in an inode of its own, in bytes.
pub const MAX_EA_INODE_LEN: u32 = 1 << 24;
/// Bytes of an entry before its name.
const HEAD: usize = size_of::<RawXattrEntry>();
/// Bytes of the zeroes that end the entries.
const END: usize = 4;
/// Values take a multiple of these bytes.
const WORD: usize = 4;

/// `struct ext4_xattr_header`, the start of a block of attributes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawXattrHeader {
    /// [`XATTR_MAGIC`].
    pub h_magic: U32,
    /// Inodes that share the block.
    pub h_refcount: U32,
    /// 1.
    pub h_blocks: U32,
    /// Of all entries' hashes; 0 if the block must not be shared.
    pub h_hash: U32,
    /// CRC-32C of the block's number and the block.
    pub h_checksum: U32,
    /// 0.
    pub h_reserved: [U32; 3],
}
const _: () = assert!(size_of::<RawXattrHeader>() == 32);

/// `struct ext4_xattr_ibody_header`, the start of the attributes in an inode.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawXattrInodeHeader {
    /// [`XATTR_MAGIC`].
    pub h_magic: U32,
}
const _: () = assert!(size_of::<RawXattrInodeHeader>() == 4);

/// `struct ext4_xattr_entry`, without its name.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawXattrEntry {
    /// Bytes of the name, without its prefix.
    pub e_name_len: u8,
    /// The prefix.
    pub e_name_index: u8,
    /// Where the value is: from the block's start, or from the first entry in an inode.
    pub e_value_offs: U16,
    /// The inode whose contents are the value, or 0.
    pub e_value_inum: U32,
    /// Bytes of the value.
    pub e_value_size: U32,
    /// Of name and value.
    pub e_hash: U32,
}
const _: () = assert!(size_of::<RawXattrEntry>() == 16);

/// What the file system says of values in inodes of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XattrLimits {
    /// The feature `ea_inode`.
    pub ea_inode: bool,
    /// `s_first_ino`: the first inode that is not reserved.
    pub first_inode: InodeNo,
    /// `s_inodes_count`: the last inode.
    pub last_inode: InodeNo,
}

impl XattrLimits {
    /// For places whose inodes were checked.
    fn any() -> Self {
        Self {
            ea_inode: true,
            first_inode: InodeNo(0),
            last_inode: InodeNo(u32::MAX),
        }
    }
}

impl From<&Superblock> for XattrLimits {
    fn from(sb: &Superblock) -> Self {
        Self {
            ea_inode: sb.has_incompat(Incompat::EA_INODE),
            first_inode: sb.first_inode(),
            last_inode: InodeNo(sb.inodes_count()),
        }
    }
}

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Here.
    Bytes(&'a [u8]),
    /// It is the contents of an inode.
    Inode {
        /// The inode.
        inode: InodeNo,
        /// Bytes, which must be the inode's size; up to [`MAX_EA_INODE_LEN`].
        len: u32,
    },
}

/// An attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XattrEntry<'a> {
    /// The prefix of the name, see [`name`].
    pub index: u8,
    /// The rest of the name, without NUL.
    pub name: &'a [u8],
    /// The value.
    pub value: Value<'a>,
    /// `e_hash`.
    pub hash: u32,
}

/// The attributes of one place.
#[derive(Clone, Copy, Debug)]
pub struct Xattrs<'a> {
    /// Entries and the zeroes that end them, and what follows.
    entries: &'a [u8],
    /// What the offsets of values count from, up to the end.
    values: &'a [u8],
}

impl<'a> Xattrs<'a> {
    /// Reads and checks what is behind an inode's extra fields: `region` goes from 128 +
    /// `i_extra_isize` to the inode's end. Nothing if it does not hold attributes.
    ///
    /// # Errors
    ///
    /// [`Corruption::Xattr`] for the first check that fails.
    pub fn in_inode(region: &'a [u8], limits: &XattrLimits) -> Result<Option<Self>, Corruption> {
        match RawXattrInodeHeader::ref_from_prefix(region) {
            Ok((header, rest)) if header.h_magic.get() == XATTR_MAGIC => {
                Self::checked(rest, rest, 0, limits).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Reads and checks a block of attributes. The checksum is [`verify_checksum`]'s matter, and
    /// comes first.
    ///
    /// # Errors
    ///
    /// [`Corruption::Xattr`] for the first check that fails, [`Corruption::Truncated`] if there
    /// is no room for a header.
    pub fn in_block(block: &'a [u8], limits: &XattrLimits) -> Result<Self, Corruption> {
        let (_, rest) = header(block)?;
        let start = block.len().saturating_sub(rest.len());
        Self::checked(rest, block, start, limits)
    }

    /// `start` is where the entries start in `values`.
    fn checked(
        entries: &'a [u8],
        values: &'a [u8],
        start: usize,
        limits: &XattrLimits,
    ) -> Result<Self, Corruption> {
        if entries.len() < END {
            let left = entries.len();
            return Err(XattrCorruption::Unfinished { left }.into());
        }
        let mut walk = Walk { rest: entries };
        for slot in &mut walk {
            if slot?.name.contains(&0) {
                return Err(XattrCorruption::Name.into());
            }
        }
        // Values start behind the zeroes that end the entries.
        let used = entries.len().saturating_sub(walk.rest.len());
        let floor = start.saturating_add(used).saturating_add(END);
        for slot in (Walk { rest: entries }) {
            check_value(slot?.raw, values, floor, limits)?;
        }
        Ok(Self { entries, values })
    }

    /// The attributes, in the order of the entries.
    pub fn entries(&self) -> impl Iterator<Item = XattrEntry<'a>> + use<'a> {
        let place = *self;
        Walk { rest: self.entries }.filter_map(move |slot| place.entry(&slot.ok()?))
    }

    /// Where the values are, in the order of the entries; 0 for those elsewhere.
    fn offsets(&self) -> impl Iterator<Item = u16> + use<'a> {
        Walk { rest: self.entries }.filter_map(|slot| {
            let raw = slot.ok()?.raw;
            Some(match raw.e_value_inum.get() {
                0 => raw.e_value_offs.get(),
                _ => 0,
            })
        })
    }

    /// The attribute of that prefix and name.
    #[must_use]
    pub fn find(&self, index: u8, name: &[u8]) -> Option<XattrEntry<'a>> {
        self.entries()
            .find(|entry| entry.index == index && entry.name == name)
    }

    /// Offset and bytes of each value that is here.
    fn places(&self) -> impl Iterator<Item = (usize, usize)> + use<'a> {
        let raws = Walk { rest: self.entries }.filter_map(|slot| Some(slot.ok()?.raw));
        raws.filter(|raw| raw.e_value_inum.get() == 0).map(|raw| {
            let len = usize::try_from(raw.e_value_size.get()).unwrap_or(usize::MAX);
            (usize::from(raw.e_value_offs.get()), len)
        })
    }

    /// Whether values, each of which takes whole words, lie on each other or past the end.
    #[must_use]
    pub fn values_collide(&self) -> bool {
        let mut places: Vec<_> = self.places().filter(|(_, len)| *len > 0).collect();
        places.sort_unstable();
        let mut end = 0;
        places.into_iter().any(|(start, len)| {
            let next = start.saturating_add(len.checked_next_multiple_of(WORD).unwrap_or(len));
            let collides = start < end || next > self.values.len();
            end = next;
            collides
        })
    }

    /// Whether a value has its place outside, which can only be one of no bytes.
    #[must_use]
    pub fn has_value_outside(&self) -> bool {
        self.places()
            .any(|(start, len)| start.saturating_add(len) > self.values.len())
    }

    fn entry(&self, slot: &Slot<'a>) -> Option<XattrEntry<'a>> {
        let (raw, len) = (slot.raw, slot.raw.e_value_size.get());
        let value = match raw.e_value_inum.get() {
            0 if len == 0 => Value::Bytes(&[]),
            0 => Value::Bytes(self.values.get(value_range(raw)?)?),
            inode => Value::Inode {
                inode: InodeNo(inode),
                len,
            },
        };
        Some(XattrEntry {
            index: raw.e_name_index,
            name: slot.name,
            value,
            hash: raw.e_hash.get(),
        })
    }
}

fn header(block: &[u8]) -> Result<(&RawXattrHeader, &[u8]), Corruption> {
    let (header, rest) =
        RawXattrHeader::ref_from_prefix(block).map_err(|_| Corruption::Truncated {
            what: "attribute block",
            needed: size_of::<RawXattrHeader>(),
            have: block.len(),
        })?;
    let magic = header.h_magic.get();
    if magic != XATTR_MAGIC {
        return Err(XattrCorruption::Magic { found: magic }.into());
    }
    let blocks = header.h_blocks.get();
    if blocks != 1 {
        return Err(XattrCorruption::Blocks { blocks }.into());
    }
    Ok((header, rest))
}

/// Inodes that share a block of attributes.
///
/// # Errors
///
/// As [`Xattrs::in_block`], for the header.
pub fn refcount(block: &[u8]) -> Result<u32, Corruption> {
    header(block).map(|(header, _)| header.h_refcount.get())
}

/// `h_hash` of a block of attributes, as stored. Linux stores what [`block_hash`] gives, uses it
/// to find equal blocks, and does not check it; e2fsprogs stores 0.
///
/// # Errors
///
/// As [`Xattrs::in_block`], for the header.
pub fn stored_hash(block: &[u8]) -> Result<u32, Corruption> {
    header(block).map(|(header, _)| header.h_hash.get())
}

fn value_range(raw: &RawXattrEntry) -> Option<std::ops::Range<usize>> {
    let start = usize::from(raw.e_value_offs.get());
    let end = start.checked_add(usize::try_from(raw.e_value_size.get()).ok()?)?;
    Some(start..end)
}

fn check_value(
    raw: &RawXattrEntry,
    values: &[u8],
    floor: usize,
    limits: &XattrLimits,
) -> Result<(), XattrCorruption> {
    let (size, inode) = (raw.e_value_size.get(), raw.e_value_inum.get());
    if inode != 0 {
        if !limits.ea_inode {
            return Err(XattrCorruption::NoEaInodes { inode });
        }
        let (first, last) = (limits.first_inode.0, limits.last_inode.0);
        if !(first..=last).contains(&inode) {
            return Err(XattrCorruption::Inode { inode, last });
        }
        if size > MAX_EA_INODE_LEN {
            return Err(XattrCorruption::ValueSize { size });
        }
        return Ok(());
    }
    if size > MAX_VALUE_LEN {
        return Err(XattrCorruption::ValueSize { size });
    }
    let padded = value_range(raw).and_then(|range| {
        let end = range.end.checked_next_multiple_of(4)?;
        (range.start >= floor && end <= values.len()).then_some(end)
    });
    if size != 0 && padded.is_none() {
        return Err(XattrCorruption::Value {
            offset: raw.e_value_offs.get(),
            size,
            floor,
            end: values.len(),
        });
    }
    Ok(())
}

struct Slot<'a> {
    raw: &'a RawXattrEntry,
    name: &'a [u8],
}

/// Goes from entry to entry up to the zeroes that end them, or past the first that does not fit.
/// `rest` starts with the zeroes then.
struct Walk<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<Slot<'a>, XattrCorruption>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() || self.rest.starts_with(&[0; END]) {
            return None;
        }
        let slot = self.slot();
        if slot.is_err() {
            self.rest = &[];
        }
        Some(slot)
    }
}

impl<'a> Walk<'a> {
    /// An entry, behind which the zeroes or another entry fit.
    fn slot(&mut self) -> Result<Slot<'a>, XattrCorruption> {
        let unfinished = XattrCorruption::Unfinished {
            left: self.rest.len(),
        };
        let (raw, rest) = RawXattrEntry::ref_from_prefix(self.rest).map_err(|_| unfinished)?;
        let name_len = usize::from(raw.e_name_len);
        let padded = name_len.next_multiple_of(4);
        let (name, after) = rest
            .get(..name_len)
            .zip(rest.get(padded..))
            .filter(|(_, after)| after.len() >= END)
            .ok_or(unfinished)?;
        self.rest = after;
        Ok(Slot { raw, name })
    }
}

/// Bytes that an entry with a name of `name_len` bytes takes.
#[must_use]
pub fn entry_len(name_len: usize) -> usize {
    name_len.saturating_add(HEAD).saturating_add(3) & !3
}

const CHECKSUM_AT: usize = std::mem::offset_of!(RawXattrHeader, h_checksum);

fn checksum(block: &[u8], number: BlockNo, seed: ChecksumSeed) -> u32 {
    let (before, rest) = block.split_at_checked(CHECKSUM_AT).unwrap_or((block, &[]));
    let after = rest.get(size_of::<U32>()..).unwrap_or(&[]);
    let mut seed = seed;
    for part in [&number.0.to_le_bytes()[..], before, &[0; size_of::<U32>()]] {
        seed = ChecksumSeed(seed.checksum(part));
    }
    seed.checksum(after)
}

/// Compares the checksum of a block of attributes that is block `number` of the file system.
/// `seed` is the file system's: inodes share these blocks.
///
/// # Errors
///
/// [`Corruption::Checksum`]; as [`Xattrs::in_block`], for the header.
pub fn verify_checksum(
    block: &[u8],
    number: BlockNo,
    seed: ChecksumSeed,
) -> Result<(), Corruption> {
    let (header, _) = header(block)?;
    let (stored, computed) = (header.h_checksum.get(), checksum(block, number, seed));
    if stored != computed {
        return Err(Corruption::Checksum {
            what: "attribute block",
            stored,
            computed,
        });
    }
    Ok(())
}

/// Stores the checksum of a block of attributes; the arguments are those of [`verify_checksum`].
///
/// # Errors
///
/// As [`Xattrs::in_block`], for the header.
pub fn update_checksum(
    block: &mut [u8],
    number: BlockNo,
    seed: ChecksumSeed,
) -> Result<(), Corruption> {
    header(block)?;
    let computed = checksum(block, number, seed);
    if let Ok((header, _)) = RawXattrHeader::mut_from_prefix(block) {
        header.h_checksum.set(computed);
    }
    Ok(())
}
