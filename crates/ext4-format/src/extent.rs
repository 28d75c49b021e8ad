//! Nodes of an extent tree: the 60 bytes of `i_block` as the root, whole blocks below it. Source:
//! the kernel's `Documentation/filesystems/ext4/ifork.rst`.
//!
//! A node is a view of its bytes: nothing is copied or allocated to look a block up. The view of
//! an index node yields [`Child`]ren, and a child says what the node below must look like, so that
//! a walk down checks depth and ranges as it goes.

mod checksum;
mod corruption;
mod write;

#[cfg(test)]
pub(crate) mod image_tests;
#[cfg(test)]
mod tests;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::superblock::Superblock;
use crate::{BlockNo, Corruption, FileBlock};

pub use checksum::{update_checksum, verify_checksum};
pub use corruption::ExtentCorruption;
pub use write::ExtentNodeMut;

/// `eh_magic` of every node.
pub const EXTENT_MAGIC: u16 = 0xF30A;
/// The deepest tree that Linux makes: `eh_depth` of a root.
pub const MAX_DEPTH: u16 = 5;
/// Blocks that the longest written extent covers. An unwritten one covers one less.
pub const MAX_EXTENT_LEN: u16 = 32768;
/// One past the last block that a file can have.
pub const FILE_BLOCKS_END: FileBlock = FileBlock(u32::MAX);
/// Bytes of `i_block`, where the root of the tree lies.
pub const ROOT_BYTES: usize = 60;
/// Bytes of an entry, leaf or index.
const ENTRY: usize = 12;

/// `struct ext4_extent_header`, the start of every node.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawExtentHeader {
    /// [`EXTENT_MAGIC`].
    pub eh_magic: U16,
    /// Entries in use.
    pub eh_entries: U16,
    /// Entries that fit.
    pub eh_max: U16,
    /// Levels below this one; 0 in a leaf.
    pub eh_depth: U16,
    /// Used by Lustre only.
    pub eh_generation: U32,
}
const _: () = assert!(size_of::<RawExtentHeader>() == 12);

/// `struct ext4_extent`, an entry of a leaf.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawExtent {
    /// First file block.
    pub ee_block: U32,
    /// Blocks; above 32768 the extent is unwritten and that much shorter.
    pub ee_len: U16,
    /// Upper 16 bits of the first block.
    pub ee_start_hi: U16,
    /// Lower 32 bits of the first block.
    pub ee_start_lo: U32,
}
const _: () = assert!(size_of::<RawExtent>() == ENTRY);

/// `struct ext4_extent_idx`, an entry of an index node.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawExtentIndex {
    /// First file block that the child covers.
    pub ei_block: U32,
    /// Lower 32 bits of the child's block.
    pub ei_leaf_lo: U32,
    /// Upper 16 bits of the child's block.
    pub ei_leaf_hi: U16,
    /// Unused.
    pub ei_unused: U16,
}
const _: () = assert!(size_of::<RawExtentIndex>() == ENTRY);

/// The blocks of a file system that data and metadata of files may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLimits {
    /// `s_first_data_block`: it holds the superblock, so nothing of a file lies in it or before.
    pub first_data_block: BlockNo,
    /// `s_blocks_count`: one past the last block.
    pub blocks_count: u64,
}

impl From<&Superblock> for BlockLimits {
    fn from(sb: &Superblock) -> Self {
        Self {
            first_data_block: sb.first_data_block(),
            blocks_count: sb.blocks_count(),
        }
    }
}

impl BlockLimits {
    /// Whether `len` blocks (at least one) from `start` on lie inside.
    #[must_use]
    pub fn contains(&self, start: BlockNo, len: u32) -> bool {
        len != 0
            && start > self.first_data_block
            && start
                .checked_add(u64::from(len))
                .is_some_and(|end| end.0 <= self.blocks_count)
    }
}

/// A run of file blocks that lie in a run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First file block.
    pub first: FileBlock,
    /// Blocks, 1 to [`MAX_EXTENT_LEN`].
    pub len: u16,
    /// Where the first one lies.
    pub start: BlockNo,
    /// Allocated but never written: reads as zeroes.
    pub unwritten: bool,
}

impl Extent {
    /// One past the last file block.
    #[must_use]
    pub fn end(&self) -> FileBlock {
        FileBlock(self.first.0.saturating_add(u32::from(self.len)))
    }

    /// Where `block` lies, if the extent covers it.
    #[must_use]
    pub fn block_at(&self, block: FileBlock) -> Option<BlockNo> {
        let into = block.0.checked_sub(self.first.0)?;
        if into >= u32::from(self.len) {
            return None;
        }
        self.start.checked_add(u64::from(into))
    }

    /// The entry as on disk, or nothing if a field is out of its range: a length of 0, above
    /// 32768, of exactly 32768 when unwritten, or a block that needs more than 48 bits.
    #[must_use]
    pub fn to_raw(&self) -> Option<RawExtent> {
        let longest = if self.unwritten {
            MAX_EXTENT_LEN.checked_sub(1)?
        } else {
            MAX_EXTENT_LEN
        };
        if self.len == 0 || self.len > longest {
            return None;
        }
        let stored = if self.unwritten {
            self.len.checked_add(MAX_EXTENT_LEN)?
        } else {
            self.len
        };
        let (hi, lo) = split_block(self.start)?;
        Some(RawExtent {
            ee_block: U32::new(self.first.0),
            ee_len: U16::new(stored),
            ee_start_hi: U16::new(hi),
            ee_start_lo: U32::new(lo),
        })
    }
}

impl From<&RawExtent> for Extent {
    fn from(raw: &RawExtent) -> Self {
        let stored = raw.ee_len.get();
        let (len, unwritten) = match stored.checked_sub(MAX_EXTENT_LEN) {
            None | Some(0) => (stored, false),
            Some(len) => (len, true),
        };
        Self {
            first: FileBlock(raw.ee_block.get()),
            len,
            start: join_block(raw.ee_start_hi.get(), raw.ee_start_lo.get()),
            unwritten,
        }
    }
}

/// A node below an index node, and what its parent says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// First file block that it covers.
    pub first: FileBlock,
    /// One past the last file block that it may cover.
    pub end: FileBlock,
    /// Where it lies.
    pub block: BlockNo,
    /// Its `eh_depth`.
    pub depth: u16,
}

fn join_block(hi: u16, lo: u32) -> BlockNo {
    BlockNo((u64::from(hi) << 32) | u64::from(lo))
}

fn split_block(block: BlockNo) -> Option<(u16, u32)> {
    let hi = u16::try_from(block.0 >> 32).ok()?;
    let lo = u32::try_from(block.0 & u64::from(u32::MAX)).ok()?;
    Some((hi, lo))
}

/// Where a node lies: it decides what may stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The 60 bytes of `i_block`: no checksum of its own, any depth up to [`MAX_DEPTH`].
    Root,
    /// A whole block, as the index entry above describes it.
    Block(Child),
}

/// What a node knows of a file block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Look in this node.
    Child(Child),
    /// It lies in this extent.
    Extent(Extent),
    /// There is nothing up to (not including) `until`, as far as this node reaches.
    Hole {
        /// The next file block that may be mapped, or the end of the node's range.
        until: FileBlock,
    },
}

#[derive(Clone, Copy, Debug)]
enum Entries<'a> {
    Leaf(&'a [RawExtent]),
    Index(&'a [RawExtentIndex]),
}

/// A node of an extent tree, as a view of its bytes.
#[derive(Clone, Copy, Debug)]
pub struct ExtentNode<'a> {
    entries: Entries<'a>,
    max: u16,
    depth: u16,
    /// The file blocks that it may cover.
    first: FileBlock,
    end: FileBlock,
}

impl<'a> ExtentNode<'a> {
    /// Reads and checks a node: header, order, ranges of file blocks and of blocks. The checksum
    /// is [`verify_checksum`]'s matter, and comes first.
    ///
    /// `bytes` are the 60 of `i_block` or one whole block.
    ///
    /// # Errors
    ///
    /// [`Corruption::Extent`] for the first check that fails, [`Corruption::Truncated`] if there
    /// is no room for a header.
    pub fn parse(bytes: &'a [u8], place: &Place, limits: &BlockLimits) -> Result<Self, Corruption> {
        let node = Self::reopen(bytes, place)?;
        match node.entries {
            Entries::Leaf(extents) => check_leaf(&node, extents, place, limits)?,
            Entries::Index(indexes) => check_index(&node, indexes, place, limits)?,
        }
        Ok(node)
    }

    /// Reads a node that [`Self::parse`] has accepted before, checking its header only: constant
    /// time. On bytes that never were parsed, lookups may find the wrong entry, no worse.
    ///
    /// # Errors
    ///
    /// As [`Self::parse`], for the header.
    pub fn reopen(bytes: &'a [u8], place: &Place) -> Result<Self, Corruption> {
        let (header, rest) = read_header(bytes)?;
        let depth = header.eh_depth.get();
        let (first, end) = match place {
            Place::Root => {
                if depth > MAX_DEPTH {
                    return Err(ExtentCorruption::TooDeep { depth }.into());
                }
                (FileBlock(0), FILE_BLOCKS_END)
            }
            Place::Block(child) => {
                if depth != child.depth {
                    return Err(ExtentCorruption::Depth {
                        found: depth,
                        expected: child.depth,
                    }
                    .into());
                }
                (child.first, child.end)
            }
        };
        let (count, max) = (header.eh_entries.get(), header.eh_max.get());
        if count > max {
            return Err(ExtentCorruption::Entries {
                entries: count,
                max,
            }
            .into());
        }
        let short = || Corruption::Truncated {
            what: "extent node",
            needed: usize::from(count).saturating_mul(ENTRY),
            have: rest.len(),
        };
        let entries = if depth == 0 {
            <[RawExtent]>::ref_from_prefix_with_elems(rest, count.into())
                .map(|(extents, _)| Entries::Leaf(extents))
                .map_err(|_| short())?
        } else if count == 0 {
            return Err(ExtentCorruption::EmptyIndex { depth }.into());
        } else {
            <[RawExtentIndex]>::ref_from_prefix_with_elems(rest, count.into())
                .map(|(indexes, _)| Entries::Index(indexes))
                .map_err(|_| short())?
        };
        Ok(Self {
            entries,
            max,
            depth,
            first,
            end,
        })
    }

    /// Levels below this one; 0 in a leaf.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// Entries in use.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.entries {
            Entries::Leaf(extents) => extents.len(),
            Entries::Index(indexes) => indexes.len(),
        }
    }

    /// Whether there is no entry: a leaf that maps nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries that fit.
    #[must_use]
    pub fn max(&self) -> u16 {
        self.max
    }

    /// How many entries start at or before `block`: the place to look (one less) or to insert.
    #[must_use]
    pub fn position(&self, block: FileBlock) -> usize {
        match self.entries {
            Entries::Leaf(extents) => extents.partition_point(|e| e.ee_block.get() <= block.0),
            Entries::Index(indexes) => indexes.partition_point(|e| e.ei_block.get() <= block.0),
        }
    }

    /// What this node knows of `block`, by binary search.
    #[must_use]
    pub fn find(&self, block: FileBlock) -> Found {
        let after = self.position(block);
        let before = after.checked_sub(1);
        match self.entries {
            Entries::Leaf(_) => {
                if let Some(extent) = before.and_then(|at| self.extent(at))
                    && block < extent.end()
                {
                    return Found::Extent(extent);
                }
            }
            Entries::Index(_) => {
                if let Some(child) = before.and_then(|at| self.child(at)) {
                    return Found::Child(child);
                }
            }
        }
        Found::Hole {
            until: self.start_of(after).unwrap_or(self.end),
        }
    }

    /// Extent number `at` of a leaf.
    #[must_use]
    pub fn extent(&self, at: usize) -> Option<Extent> {
        match self.entries {
            Entries::Leaf(extents) => extents.get(at).map(Extent::from),
            Entries::Index(_) => None,
        }
    }

    /// Child number `at` of an index node.
    #[must_use]
    pub fn child(&self, at: usize) -> Option<Child> {
        let Entries::Index(indexes) = self.entries else {
            return None;
        };
        let raw = indexes.get(at)?;
        let next = self.start_of(at.checked_add(1)?);
        Some(Child {
            first: FileBlock(raw.ei_block.get()),
            end: next.unwrap_or(self.end),
            block: join_block(raw.ei_leaf_hi.get(), raw.ei_leaf_lo.get()),
            depth: self.depth.checked_sub(1)?,
        })
    }

    /// The extents of a leaf in order; none in an index node.
    pub fn extents(&self) -> impl ExactSizeIterator<Item = Extent> + DoubleEndedIterator + use<'a> {
        let extents: &'a [RawExtent] = match self.entries {
            Entries::Leaf(extents) => extents,
            Entries::Index(_) => &[],
        };
        extents.iter().map(Extent::from)
    }

    /// The children of an index node in order; none in a leaf.
    pub fn children(&self) -> impl Iterator<Item = Child> + use<'a> {
        let node = *self;
        let count = match self.entries {
            Entries::Leaf(_) => 0,
            Entries::Index(indexes) => indexes.len(),
        };
        (0..count).filter_map(move |at| node.child(at))
    }

    fn start_of(&self, at: usize) -> Option<FileBlock> {
        match self.entries {
            Entries::Leaf(extents) => extents.get(at).map(|e| e.ee_block.get()),
            Entries::Index(indexes) => indexes.get(at).map(|e| e.ei_block.get()),
        }
        .map(FileBlock)
    }
}

/// Entries that fit into a node of `bytes` bytes: a block, or the 60 of the root.
#[must_use]
pub fn entries_that_fit(bytes: usize) -> u16 {
    let room = bytes.saturating_sub(size_of::<RawExtentHeader>());
    u16::try_from(room / ENTRY).unwrap_or(u16::MAX)
}

/// The header, checked for magic and `eh_max`, and the bytes behind it.
fn read_header(bytes: &[u8]) -> Result<(&RawExtentHeader, &[u8]), Corruption> {
    let (header, rest) =
        RawExtentHeader::ref_from_prefix(bytes).map_err(|_| Corruption::Truncated {
            what: "extent header",
            needed: size_of::<RawExtentHeader>(),
            have: bytes.len(),
        })?;
    let magic = header.eh_magic.get();
    if magic != EXTENT_MAGIC {
        return Err(ExtentCorruption::Magic { found: magic }.into());
    }
    let (max, fits) = (header.eh_max.get(), entries_that_fit(bytes.len()));
    if max == 0 || max > fits {
        return Err(ExtentCorruption::Max { max, fits }.into());
    }
    Ok((header, rest))
}

fn check_leaf(
    node: &ExtentNode<'_>,
    extents: &[RawExtent],
    place: &Place,
    limits: &BlockLimits,
) -> Result<(), ExtentCorruption> {
    check_first(extents.first().map(|e| e.ee_block.get()), place)?;
    let mut floor = node.first;
    for extent in extents.iter().map(Extent::from) {
        let Extent { first, len, .. } = extent;
        if len == 0 {
            return Err(ExtentCorruption::ZeroLength { first });
        }
        if first < floor {
            return Err(ExtentCorruption::Order { first, floor });
        }
        let end = first
            .checked_add(len.into())
            .filter(|end| *end <= node.end)
            .ok_or(ExtentCorruption::PastEnd {
                first,
                len,
                end: node.end,
            })?;
        if !limits.contains(extent.start, len.into()) {
            return Err(ExtentCorruption::OutsideFileSystem {
                first,
                start: extent.start,
                len,
            });
        }
        floor = end;
    }
    Ok(())
}

fn check_index(
    node: &ExtentNode<'_>,
    indexes: &[RawExtentIndex],
    place: &Place,
    limits: &BlockLimits,
) -> Result<(), ExtentCorruption> {
    check_first(indexes.first().map(|e| e.ei_block.get()), place)?;
    let mut floor = node.first;
    for index in indexes {
        let first = FileBlock(index.ei_block.get());
        if first < floor {
            return Err(ExtentCorruption::Order { first, floor });
        }
        if first >= node.end {
            return Err(ExtentCorruption::PastEnd {
                first,
                len: 1,
                end: node.end,
            });
        }
        let start = join_block(index.ei_leaf_hi.get(), index.ei_leaf_lo.get());
        if !limits.contains(start, 1) {
            return Err(ExtentCorruption::OutsideFileSystem {
                first,
                start,
                len: 1,
            });
        }
        // Below the node's end, which fits.
        floor = FileBlock(first.0.saturating_add(1));
    }
    Ok(())
}

/// A node below the root starts where its parent says.
fn check_first(found: Option<u32>, place: &Place) -> Result<(), ExtentCorruption> {
    match (found.map(FileBlock), place) {
        (Some(found), Place::Block(child)) if found != child.first => {
            Err(ExtentCorruption::FirstBlock {
                found,
                expected: child.first,
            })
        }
        _ => Ok(()),
    }
}
