//! The index of a hashed directory: a tree of hashes whose leaves are blocks of entries. Its own
//! blocks look like blocks of entries without names, so that those who do not know it can read
//! the directory. Source: the kernel's `Documentation/filesystems/ext4/directory.rst`.

mod corruption;
mod hash;
mod write;

#[cfg(test)]
mod image_tests;
#[cfg(test)]
mod tests;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::ChecksumSeed;
use crate::dir_entry::RawDirEntry;
use crate::{Corruption, FileBlock, InodeNo};

pub use corruption::HtreeCorruption;
pub use hash::{DirHash, DirHasher};
pub use write::{init_node, init_root, node_limit, set_entries, set_levels};

/// Where the entries of a root start: behind `.`, `..` and the header.
const ROOT_ENTRIES: usize = 32;
/// Where the entries of a node start: behind an unused directory entry.
const NODE_ENTRIES: usize = 8;
/// Bytes of an entry.
const ENTRY: usize = 8;
/// The one bit of `unused_flags` that means something: an index that is not known.
const INCOMPATIBLE: u8 = 1;
/// Bits of an entry's block that count; the others are reserved.
const BLOCK_MASK: u32 = 0x0FFF_FFFF;

/// `struct dx_root_info`, behind `.` and `..` in the directory's first block.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawDxRootInfo {
    /// 0.
    pub reserved_zero: U32,
    /// The hash function.
    pub hash_version: u8,
    /// 8, the bytes of this.
    pub info_length: u8,
    /// Levels of nodes between the root and the leaves.
    pub indirect_levels: u8,
    /// 0.
    pub unused_flags: u8,
}
const _: () = assert!(size_of::<RawDxRootInfo>() == 8);

/// The two directory entries and the header that open a root.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDxRootHead {
    dot: RawDirEntry,
    dot_name: [u8; 4],
    dotdot: RawDirEntry,
    dotdot_name: [u8; 4],
    info: RawDxRootInfo,
}
const _: () = assert!(size_of::<RawDxRootHead>() == ROOT_ENTRIES);

/// `struct dx_entry`: in the first one, [`RawDxCountLimit`] takes the place of the hash.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawDxEntry {
    /// The least hash below; bit 0 says that names of that hash start in the block before.
    pub hash: U32,
    /// Block of the directory.
    pub block: U32,
}
const _: () = assert!(size_of::<RawDxEntry>() == ENTRY);

/// `struct dx_countlimit`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawDxCountLimit {
    /// Entries that fit, counting the first.
    pub limit: U16,
    /// Entries in use, counting the first.
    pub count: U16,
}
const _: () = assert!(size_of::<RawDxCountLimit>() == 4);

/// `struct dx_tail`, behind the last entry that fits.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawDxTail {
    /// 0.
    pub dt_reserved: U32,
    /// CRC-32C of the used part of the block, of `dt_reserved` and of four zeroes.
    pub dt_checksum: U32,
}
const _: () = assert!(size_of::<RawDxTail>() == 8);

/// What the file system and the directory's size say of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HtreeFormat {
    /// The feature `metadata_csum`: index blocks end in a checksum.
    pub checksums: bool,
    /// The feature `large_dir`: one more level.
    pub large_dir: bool,
    /// Blocks of the directory, by its size.
    pub blocks: u32,
}

/// The root of a directory's index.
#[derive(Clone, Copy, Debug)]
pub struct DxRoot<'a> {
    /// `hash_version`, for [`DirHasher::new`].
    pub hash_version: u8,
    /// Levels of nodes below; the children of the lowest are blocks of entries.
    pub indirect_levels: u8,
    /// The inode of `..`.
    pub parent: InodeNo,
    /// The entries.
    pub node: DxNode<'a>,
}

impl<'a> DxRoot<'a> {
    /// Reads and checks the directory's block 0, which its inode says to be a root. The checksum
    /// is [`verify_checksum`]'s matter, and comes first.
    ///
    /// # Errors
    ///
    /// [`Corruption::Htree`] for the first check that fails. Linux then reads the directory as if
    /// it had no index.
    pub fn parse(block: &'a [u8], format: &HtreeFormat) -> Result<Self, Corruption> {
        let (head, _) =
            RawDxRootHead::ref_from_prefix(block).map_err(|_| Corruption::Truncated {
                what: "root of a directory index",
                needed: ROOT_ENTRIES,
                have: block.len(),
            })?;
        if !has_dots(head, block.len()) {
            return Err(HtreeCorruption::Dots.into());
        }
        let info = &head.info;
        let found = info.reserved_zero.get();
        if found != 0 {
            return Err(HtreeCorruption::Reserved { found }.into());
        }
        if usize::from(info.info_length) != size_of::<RawDxRootInfo>() {
            return Err(HtreeCorruption::InfoLength {
                length: info.info_length,
            }
            .into());
        }
        match info.hash_version {
            0..=2 => {}
            6 => return Err(HtreeCorruption::SipHash.into()),
            version => return Err(HtreeCorruption::HashVersion { version }.into()),
        }
        // Linux looks at this one alone.
        if info.unused_flags & INCOMPATIBLE != 0 {
            return Err(HtreeCorruption::Flags {
                flags: info.unused_flags,
            }
            .into());
        }
        let most = if format.large_dir { 2 } else { 1 };
        if info.indirect_levels > most {
            return Err(HtreeCorruption::Levels {
                levels: info.indirect_levels,
                most,
            }
            .into());
        }
        Ok(Self {
            hash_version: info.hash_version,
            indirect_levels: info.indirect_levels,
            parent: InodeNo(head.dotdot.inode.get()),
            node: DxNode::entries(block, ROOT_ENTRIES, format, 0)?,
        })
    }
}

impl<'a> DxRoot<'a> {
    /// A view of a root that [`Self::parse`] checked before, without checking it again. What is no
    /// root says anything.
    #[must_use]
    pub fn reopen(block: &'a [u8]) -> Option<Self> {
        let (head, _) = RawDxRootHead::ref_from_prefix(block).ok()?;
        Some(Self {
            hash_version: head.info.hash_version,
            indirect_levels: head.info.indirect_levels,
            parent: InodeNo(head.dotdot.inode.get()),
            node: DxNode::view(block, ROOT_ENTRIES, 0)?,
        })
    }
}

/// The entries of an index block, as a view of its bytes. Entry 0 has no hash of its own: it
/// covers from the parent's on.
#[derive(Clone, Copy, Debug)]
pub struct DxNode<'a> {
    entries: &'a [RawDxEntry],
    limit: u16,
    floor: u32,
}

impl<'a> DxNode<'a> {
    /// Reads and checks a node below the root; `floor` is the hash of the entry that led to it.
    ///
    /// # Errors
    ///
    /// [`Corruption::Htree`] for the first check that fails.
    pub fn parse(block: &'a [u8], format: &HtreeFormat, floor: u32) -> Result<Self, Corruption> {
        if !is_node(block) {
            return Err(HtreeCorruption::NotANode.into());
        }
        Self::entries(block, NODE_ENTRIES, format, floor)
    }

    fn entries(
        block: &'a [u8],
        start: usize,
        format: &HtreeFormat,
        floor: u32,
    ) -> Result<Self, Corruption> {
        let (limit, count) = count_limit(block, start)?;
        let due = entries_that_fit(block.len(), start, format.checksums);
        if limit != due {
            return Err(HtreeCorruption::Limit { limit, due }.into());
        }
        if count == 0 || count > limit {
            return Err(HtreeCorruption::Count { count, limit }.into());
        }
        let bytes = block.get(start..).unwrap_or(&[]);
        let (entries, _) = <[RawDxEntry]>::ref_from_prefix_with_elems(bytes, count.into())
            .map_err(|_| HtreeCorruption::Count { count, limit })?;
        let node = Self {
            entries,
            limit,
            floor,
        };
        let mut floor = floor;
        for (at, (hash, block)) in node.iter().enumerate() {
            if hash < floor {
                return Err(HtreeCorruption::Order { at, hash, floor }.into());
            }
            if block.0 == 0 || block.0 >= format.blocks {
                return Err(HtreeCorruption::Block {
                    at,
                    block,
                    blocks: format.blocks,
                }
                .into());
            }
            floor = hash;
        }
        Ok(node)
    }

    /// Whether no entry can be added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.len() >= usize::from(self.limit)
    }

    /// A view of a node that [`Self::parse`] checked before, without checking it again. What is no
    /// node has no entries, or others than it should.
    #[must_use]
    pub fn reopen(block: &'a [u8], floor: u32) -> Option<Self> {
        Self::view(block, NODE_ENTRIES, floor)
    }

    fn view(block: &'a [u8], start: usize, floor: u32) -> Option<Self> {
        let (limit, count) = count_limit(block, start).ok()?;
        let bytes = block.get(start..)?;
        let (entries, _) = <[RawDxEntry]>::ref_from_prefix_with_elems(bytes, count.into()).ok()?;
        (count > 0).then_some(Self {
            entries,
            limit,
            floor,
        })
    }

    /// Entries in use, at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Number of the entry to follow for a name of the hash `major`: the last whose hash is not
    /// above it. By binary search.
    #[must_use]
    pub fn find(&self, major: u32) -> usize {
        let rest = self.entries.get(1..).unwrap_or(&[]);
        rest.partition_point(|entry| entry.hash.get() <= major)
    }

    /// The hash of entry number `at` (of entry 0: the parent's) and the block that it points to.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<(u32, FileBlock)> {
        let entry = self.entries.get(at)?;
        let hash = if at == 0 {
            self.floor
        } else {
            entry.hash.get()
        };
        Some((hash, FileBlock(entry.block.get() & BLOCK_MASK)))
    }

    /// All entries in order, as [`Self::get`] gives them.
    pub fn iter(&self) -> impl Iterator<Item = (u32, FileBlock)> + use<'a> {
        let node = *self;
        (0..self.entries.len()).filter_map(move |at| node.get(at))
    }
}

/// Whether names of the hash `major` may go on in the block behind the one just searched, whose
/// entry (here, or first in the next node) has the hash `next`: so many names of one hash that
/// they did not fit into one block.
#[must_use]
pub fn continues(next: u32, major: u32) -> bool {
    next & !1 == major & !1
}

/// Entries that fit into an index block of `size` bytes whose entries start at `start`.
fn entries_that_fit(size: usize, start: usize, checksums: bool) -> u16 {
    let tail = if checksums { size_of::<RawDxTail>() } else { 0 };
    let room = size.saturating_sub(start).saturating_sub(tail);
    u16::try_from(room / ENTRY).unwrap_or(u16::MAX)
}

fn has_dots(head: &RawDxRootHead, size: usize) -> bool {
    let rest = size.saturating_sub(12);
    let rest = rest.min(0xFFFF);
    head.dot.name_len == 1
        && head.dot_name.first() == Some(&b'.')
        && head.dot.rec_len.get() == 12
        && head.dotdot.name_len == 2
        && head.dotdot_name.starts_with(b"..")
        && usize::from(head.dotdot.rec_len.get()) == rest
}

/// Whether a block of a hashed directory is an index node below the root: it opens with an unused
/// entry as long as the block. So does an empty block of entries if it has no checksum: only the
/// index itself tells.
#[must_use]
pub fn is_node(block: &[u8]) -> bool {
    let Ok((entry, _)) = RawDirEntry::ref_from_prefix(block) else {
        return false;
    };
    let rec_len = usize::from(entry.rec_len.get());
    let whole =
        rec_len == block.len() || (block.len() == 0x1_0000 && (rec_len == 0xFFFF || rec_len == 0));
    entry.inode.get() == 0 && whole
}

/// Where the entries of an index block start, by its looks: nothing if it is a block of entries.
fn entries_start(block: &[u8]) -> Option<usize> {
    if is_node(block) {
        return Some(NODE_ENTRIES);
    }
    let (head, _) = RawDxRootHead::ref_from_prefix(block).ok()?;
    let is_root = has_dots(head, block.len())
        && head.info.reserved_zero.get() == 0
        && usize::from(head.info.info_length) == size_of::<RawDxRootInfo>();
    is_root.then_some(ROOT_ENTRIES)
}

fn count_limit(block: &[u8], start: usize) -> Result<(u16, u16), Corruption> {
    let bytes = block.get(start..).unwrap_or(&[]);
    let (stored, _) =
        RawDxCountLimit::ref_from_prefix(bytes).map_err(|_| Corruption::Truncated {
            what: "directory index",
            needed: start.saturating_add(size_of::<RawDxEntry>()),
            have: block.len(),
        })?;
    Ok((stored.limit.get(), stored.count.get()))
}

/// What the checksum of an index block covers, and where its tail lies.
fn covered(block: &[u8]) -> Result<(&[u8], usize), Corruption> {
    let start = entries_start(block).ok_or(HtreeCorruption::NotANode)?;
    let (limit, count) = count_limit(block, start)?;
    let due = entries_that_fit(block.len(), start, true);
    if limit != due {
        return Err(HtreeCorruption::Limit { limit, due }.into());
    }
    let end_of = |entries: u16| {
        usize::from(entries)
            .saturating_mul(ENTRY)
            .saturating_add(start)
    };
    match block.get(..end_of(count)) {
        Some(used) if count != 0 && count <= limit => Ok((used, end_of(limit))),
        _ => Err(HtreeCorruption::Count { count, limit }.into()),
    }
}

fn checksum(used: &[u8], reserved: U32, seed: ChecksumSeed) -> u32 {
    let seed = ChecksumSeed(seed.checksum(used));
    let seed = ChecksumSeed(seed.checksum(reserved.as_bytes()));
    seed.checksum(&[0; 4])
}

/// Compares the checksum of an index block, root or node. `seed` is the inode's.
///
/// # Errors
///
/// [`Corruption::Checksum`]; [`Corruption::Htree`] if there is no place for a checksum.
pub fn verify_checksum(block: &[u8], seed: ChecksumSeed) -> Result<(), Corruption> {
    let (used, tail_at) = covered(block)?;
    let tail = block.get(tail_at..).unwrap_or(&[]);
    let (tail, _) = RawDxTail::ref_from_prefix(tail).map_err(|_| Corruption::Truncated {
        what: "checksum of a directory index",
        needed: tail_at.saturating_add(size_of::<RawDxTail>()),
        have: block.len(),
    })?;
    let stored = tail.dt_checksum.get();
    let computed = checksum(used, tail.dt_reserved, seed);
    if stored != computed {
        return Err(Corruption::Checksum {
            what: "directory index block",
            stored,
            computed,
        });
    }
    Ok(())
}

/// Stores the checksum of an index block, root or node. `seed` is the inode's.
///
/// # Errors
///
/// As [`verify_checksum`], for the place.
pub fn update_checksum(block: &mut [u8], seed: ChecksumSeed) -> Result<(), Corruption> {
    let (used, tail_at) = covered(block)?;
    let computed = checksum(used, U32::new(0), seed);
    let tail = RawDxTail {
        dt_reserved: U32::new(0),
        dt_checksum: U32::new(computed),
    };
    if let Some(place) = block.get_mut(tail_at..) {
        // `limit` was checked against the size: the tail fits.
        let _ = tail.write_to_prefix(place);
    }
    Ok(())
}
