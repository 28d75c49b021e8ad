//! Entries of a directory: in blocks, and in an inode that holds its directory inline. Source: the
//! kernel's `Documentation/filesystems/ext4/directory.rst`.
//!
//! What a corrupt directory cannot do through this module: hand out a name with `/` or NUL in it,
//! an empty one, a `.` or `..` that is not the directory's own, or an inode that cannot exist;
//! read outside its block; or keep an iterator from ending.

mod corruption;
mod inline;
mod search;
mod write;

#[cfg(test)]
mod tests;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::ChecksumSeed;
use crate::features::Incompat;
use crate::superblock::Superblock;
use crate::{Corruption, InodeNo};

pub use crate::inode::FileKind;
pub use corruption::DirCorruption;
pub use inline::InlineDir;
pub use search::Search;
pub use write::{
    init_block, init_first_block, init_inline, insert, insert_at, largest_gap, remove, set_inode,
    update_checksum,
};

/// The longest name, in bytes.
pub const MAX_NAME_LEN: usize = 255;
/// `det_reserved_ft`: the file type by which the checksum at a block's end is known.
pub const TAIL_FILE_TYPE: u8 = 0xDE;
/// Bytes of an entry before its name.
const HEAD: usize = size_of::<RawDirEntry>();
/// Bytes of the shortest entry.
const MIN_REC_LEN: usize = 12;
/// Bytes of the checksum at a block's end.
const TAIL: usize = size_of::<RawDirEntryTail>();

/// `struct ext4_dir_entry_2`, without its name.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawDirEntry {
    /// The inode, or 0 if the entry is unused.
    pub inode: U32,
    /// Bytes to the next entry.
    pub rec_len: U16,
    /// Bytes of the name.
    pub name_len: u8,
    /// The file's kind; without the feature `filetype`, the upper half of the name's length.
    pub file_type: u8,
}
const _: () = assert!(size_of::<RawDirEntry>() == 8);

/// `struct ext4_dir_entry_tail`, at the end of a block of entries that carries a checksum.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawDirEntryTail {
    /// 0: an unused entry to those who do not know.
    pub det_reserved_zero1: U32,
    /// 12.
    pub det_rec_len: U16,
    /// 0.
    pub det_reserved_zero2: u8,
    /// [`TAIL_FILE_TYPE`].
    pub det_reserved_ft: u8,
    /// CRC-32C of the block before the tail, from the inode's seed.
    pub det_checksum: U32,
}
const _: () = assert!(size_of::<RawDirEntryTail>() == 12);

impl RawDirEntryTail {
    fn is_tail(&self) -> bool {
        self.det_reserved_zero1.get() == 0
            && usize::from(self.det_rec_len.get()) == TAIL
            && self.det_reserved_zero2 == 0
            && self.det_reserved_ft == TAIL_FILE_TYPE
    }
}

impl FileKind {
    /// From the byte in a directory entry; nothing for 0 (unknown) and for what the format does not define.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            _ => return None,
        })
    }

    /// The byte in a directory entry.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::CharDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Symlink => 7,
        }
    }
}

/// What the file system's features and size say of its directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirFormat {
    /// The feature `filetype`: entries carry a kind.
    pub filetype: bool,
    /// The feature `metadata_csum`: blocks of entries end in a checksum.
    pub checksums: bool,
    /// `s_inodes_count`: the last inode.
    pub last_inode: InodeNo,
}

/// Whose name an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `.`, first in the directory.
    Dot,
    /// `..`, second in the directory.
    DotDot,
    /// Any other name.
    Name,
}

impl From<&Superblock> for DirFormat {
    fn from(sb: &Superblock) -> Self {
        Self {
            filetype: sb.has_incompat(Incompat::FILETYPE),
            checksums: sb.has_metadata_csum(),
            last_inode: InodeNo(sb.inodes_count()),
        }
    }
}

/// An entry in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Where it starts, in bytes from the start of the block. In an inline directory: from the
    /// start of `i_block`, with the part in the attribute counted as if it followed.
    pub offset: usize,
    /// The file's inode, from 1 to the last.
    pub inode: InodeNo,
    /// 1 to 255 bytes, none of them `/` or NUL.
    pub name: &'a [u8],
    /// What the entry says of the file's kind, if it does.
    pub kind: Option<FileKind>,
    /// The byte that `kind` was read from; 0 (unknown) without the feature `filetype`.
    pub file_type: u8,
    /// `.` and `..` can only stand where they belong.
    pub role: Role,
}

/// A name that a directory may hold: 1 to 255 bytes without `/` and NUL, neither `.` nor `..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryName<'a>(&'a [u8]);

impl<'a> EntryName<'a> {
    /// Checks `name`.
    #[must_use]
    pub fn new(name: &'a [u8]) -> Option<Self> {
        (name.len() <= MAX_NAME_LEN && is_clean(name) && !is_dots(name)).then_some(Self(name))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

fn is_clean(name: &[u8]) -> bool {
    !name.is_empty() && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// A block of directory entries.
#[derive(Clone, Copy, Debug)]
pub struct DirBlock<'a> {
    block: &'a [u8],
    format: DirFormat,
    first: bool,
}

impl<'a> DirBlock<'a> {
    /// A view of one whole block; `first` tells whether it is the directory's block 0. Entries are
    /// checked as they are met. Index blocks of a hashed directory look like blocks without
    /// entries (the root: with `.` and `..` alone).
    #[must_use]
    pub fn new(block: &'a [u8], format: &DirFormat, first: bool) -> Self {
        Self {
            block,
            format: *format,
            first,
        }
    }

    /// The entries in use, in the order of the block.
    ///
    /// An item is an error if the entry is corrupt. If only its name or its inode is, the
    /// iteration goes on behind it; if its extent is, the iteration ends.
    #[must_use]
    pub fn entries(&self) -> Entries<'a> {
        Entries {
            walk: Walk::new(self.block, &self.format),
            format: self.format,
            base: 0,
            dots: self.first,
            met: 0,
        }
    }

    /// The entry of `name`, by looking at each.
    ///
    /// # Errors
    ///
    /// A corruption met before the name.
    pub fn find(&self, name: &[u8]) -> Result<Option<DirEntry<'a>>, Corruption> {
        find(self.entries(), name)
    }

    /// The inodes of `.` and `..`, of a directory's first block.
    ///
    /// # Errors
    ///
    /// [`DirCorruption::NoDots`] if they do not stand where they belong, or the corruption that
    /// is there instead.
    pub fn dots(&self) -> Result<(InodeNo, InodeNo), Corruption> {
        let mut entries = self.entries();
        let mut next = |role| match entries.next().transpose()? {
            Some(entry) if entry.role == role => Ok(entry.inode),
            _ => Err(Corruption::from(DirCorruption::NoDots)),
        };
        Ok((next(Role::Dot)?, next(Role::DotDot)?))
    }
}

fn find<'a>(
    entries: impl Iterator<Item = Result<DirEntry<'a>, Corruption>>,
    name: &[u8],
) -> Result<Option<DirEntry<'a>>, Corruption> {
    for entry in entries {
        let entry = entry?;
        if entry.name == name {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Iterator over the entries in use of a block or of an inline directory.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    walk: Walk<'a>,
    format: DirFormat,
    /// Added to the offsets that the walk gives.
    base: usize,
    /// Whether `.` and `..` belong here, as the first two.
    dots: bool,
    /// Entries met, used or not, up to 2.
    met: u8,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<DirEntry<'a>, Corruption>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let slot = match self.walk.next()? {
                Ok(slot) => slot,
                Err(corruption) => return Some(Err(corruption.at(self.base).into())),
            };
            let place = self.met;
            self.met = self.met.saturating_add(1).min(2);
            if slot.inode != 0 {
                let entry = self.check(&slot, place);
                return Some(entry.map_err(|corruption| corruption.at(self.base).into()));
            }
        }
    }
}

impl<'a> Entries<'a> {
    fn check(&self, slot: &Slot<'a>, place: u8) -> Result<DirEntry<'a>, DirCorruption> {
        let Slot { offset, name, .. } = *slot;
        let last = self.format.last_inode;
        if slot.inode > last.0 {
            return Err(DirCorruption::Inode {
                offset,
                inode: slot.inode,
                last: last.0,
            });
        }
        if !is_clean(name) {
            return Err(DirCorruption::Name { offset });
        }
        let role = match (name, place) {
            (b".", 0) if self.dots => Role::Dot,
            (b"..", 1) if self.dots => Role::DotDot,
            (b"." | b"..", _) => return Err(DirCorruption::MisplacedDots { offset }),
            _ => Role::Name,
        };
        let file_type = if self.format.filetype {
            slot.file_type
        } else {
            0
        };
        Ok(DirEntry {
            offset: offset.saturating_add(self.base),
            inode: InodeNo(slot.inode),
            name,
            kind: FileKind::from_byte(file_type),
            file_type,
            role,
        })
    }
}

/// An entry whose extent has been checked, used or not.
#[derive(Clone, Copy, Debug)]
struct Slot<'a> {
    offset: usize,
    len: usize,
    inode: u32,
    name: &'a [u8],
    file_type: u8,
}

impl Slot<'_> {
    /// Bytes of the entry that are taken; the rest can hold another entry.
    fn used(&self) -> usize {
        if self.inode == 0 {
            0
        } else {
            entry_len(self.name.len())
        }
    }

    /// Bytes that are not.
    fn room(&self) -> usize {
        self.len.saturating_sub(self.used())
    }
}

/// Goes from entry to entry, checking that each lies where one may. It ends behind the first that
/// does not.
#[derive(Clone, Debug)]
struct Walk<'a> {
    /// The entries: a block without its tail, or a part of an inline directory.
    area: &'a [u8],
    /// Size of the block, by which lengths are encoded.
    block_size: usize,
    filetype: bool,
    offset: usize,
}

impl<'a> Walk<'a> {
    fn new(block: &'a [u8], format: &DirFormat) -> Self {
        Self {
            area: area(block, format),
            block_size: block.len(),
            filetype: format.filetype,
            offset: 0,
        }
    }

    fn slot(&self) -> Result<Slot<'a>, DirCorruption> {
        let offset = self.offset;
        let size = self.area.len();
        let rest = self.area.get(offset..).unwrap_or(&[]);
        let Ok((raw, rest)) = RawDirEntry::ref_from_prefix(rest) else {
            return Err(DirCorruption::PastBlock {
                offset,
                rec_len: HEAD,
                size,
            });
        };
        let rec_len = decode_rec_len(raw.rec_len.get(), self.block_size);
        if rec_len < MIN_REC_LEN {
            return Err(DirCorruption::TooShort { offset, rec_len });
        }
        if !rec_len.is_multiple_of(4) {
            return Err(DirCorruption::Unaligned { offset, rec_len });
        }
        let next = offset.saturating_add(rec_len);
        if next > size {
            return Err(DirCorruption::PastBlock {
                offset,
                rec_len,
                size,
            });
        }
        if next < size && size.saturating_sub(next) < MIN_REC_LEN {
            return Err(DirCorruption::CloseToEnd { offset, rec_len });
        }
        let inode = raw.inode.get();
        let mut name_len = usize::from(raw.name_len);
        if !self.filetype && inode != 0 {
            name_len = name_len.saturating_add(usize::from(raw.file_type) << 8);
        }
        if name_len > MAX_NAME_LEN || entry_len(name_len) > rec_len {
            return Err(DirCorruption::NameLength {
                offset,
                name_len,
                rec_len,
            });
        }
        Ok(Slot {
            offset,
            len: rec_len,
            inode,
            name: rest.get(..name_len).unwrap_or(&[]),
            file_type: raw.file_type,
        })
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<Slot<'a>, DirCorruption>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.area.len() {
            return None;
        }
        let slot = self.slot();
        self.offset = match &slot {
            Ok(slot) => slot.offset.saturating_add(slot.len),
            Err(_) => self.area.len(),
        };
        Some(slot)
    }
}

/// The part of a block that holds entries: all but the tail, if there is one.
fn area<'a>(block: &'a [u8], format: &DirFormat) -> &'a [u8] {
    match split_tail(block) {
        Some((area, _)) if format.checksums => area,
        _ => block,
    }
}

fn split_tail(block: &[u8]) -> Option<(&[u8], &RawDirEntryTail)> {
    let (area, tail) = RawDirEntryTail::ref_from_suffix(block).ok()?;
    tail.is_tail().then_some((area, tail))
}

/// Bytes that an entry with a name of `name_len` bytes takes.
#[must_use]
pub fn entry_len(name_len: usize) -> usize {
    name_len.saturating_add(HEAD).saturating_add(3) & !3
}

/// `rec_len` in bytes. In blocks of 64 KiB and more, multiples of 4 leave two bits for the upper
/// part, and the block's own size, which does not fit, is written as 65535 or 0.
fn decode_rec_len(stored: u16, block_size: usize) -> usize {
    let stored = usize::from(stored);
    if block_size < 0x1_0000 {
        stored
    } else if stored == 0 || stored == 0xFFFF {
        block_size
    } else {
        (stored & 0xFFFC) | ((stored & 3) << 16)
    }
}

/// Compares the checksum at the end of a block of entries. `seed` is the inode's.
///
/// # Errors
///
/// [`DirCorruption::NoTail`] if there is none (index blocks have another kind),
/// [`Corruption::Checksum`] if it differs.
pub fn verify_checksum(block: &[u8], seed: ChecksumSeed) -> Result<(), Corruption> {
    let (covered, tail) = split_tail(block).ok_or(DirCorruption::NoTail)?;
    let (stored, computed) = (tail.det_checksum.get(), seed.checksum(covered));
    if stored != computed {
        return Err(Corruption::Checksum {
            what: "directory block",
            stored,
            computed,
        });
    }
    Ok(())
}
