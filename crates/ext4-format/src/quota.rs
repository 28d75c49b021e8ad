//! Quota files of version 2, revision 1 (`vfsv1`), as the feature `quota` keeps them in hidden inodes:
//! how much of the file system each user, group or project has.
//!
//! A file is a row of blocks of [`BLOCK_BYTES`], whatever the file system's are. The first begins with
//! [`RawHeader`]. The second is the root of a tree of [`LEVELS`] levels, each node of which has 256
//! references: the bytes of an id, the highest first, choose one of each level. The last leads to a block
//! of entries, which several ids share. Source: the kernel's `fs/quota/quotaio_v2.h` and
//! `fs/quota/quota_tree.h`.

#[cfg(test)]
mod tests;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Corruption;

/// Bytes of a block of a quota file.
pub const BLOCK_BYTES: u64 = 1024;
/// Levels of the tree above the entries.
pub const LEVELS: u32 = 4;
/// The block that is the root of the tree.
pub const ROOT: u32 = 1;
/// Bytes of the largest quota file, as e2fsck has it; Linux sets no bound.
const LARGEST: u64 = 1 << 31;
/// The one revision that is kept in hidden inodes.
const REVISION: u32 = 1;

/// Whose use of the file system a quota file counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QuotaKind {
    /// Users.
    User,
    /// Groups.
    Group,
    /// Projects.
    Project,
}

impl QuotaKind {
    /// In the order of [`crate::superblock::Superblock::quota_inodes`].
    pub const ALL: [Self; 3] = [Self::User, Self::Group, Self::Project];

    const fn magic(self) -> u32 {
        match self {
            Self::User => 0xD9C0_1F11,
            Self::Group => 0xD9C0_1927,
            Self::Project => 0xD9C0_3F14,
        }
    }
}

impl std::fmt::Display for QuotaKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Group => "group",
            Self::Project => "project",
        })
    }
}

/// `struct v2_disk_dqheader` and, behind it, `struct v2_disk_dqinfo`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    /// Whose quotas.
    pub dqh_magic: U32,
    /// The revision.
    pub dqh_version: U32,
    /// Seconds over the soft limit of blocks.
    pub dqi_bgrace: U32,
    /// Seconds over the soft limit of inodes.
    pub dqi_igrace: U32,
    /// Flags.
    pub dqi_flags: U32,
    /// Blocks of the file.
    pub dqi_blocks: U32,
    /// The first block of the list of free ones, 0 if there is none.
    pub dqi_free_blk: U32,
    /// The first block of the list of those with room for an entry, 0 if there is none.
    pub dqi_free_entry: U32,
}
const _: () = assert!(size_of::<RawHeader>() == 32);

/// `struct qt_disk_dqdbheader`, at the beginning of a block of entries.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawEntriesHeader {
    /// The next block with room for an entry.
    pub dqdh_next_free: U32,
    /// The one before.
    pub dqdh_prev_free: U32,
    /// Entries in use.
    pub dqdh_entries: U16,
    /// 0.
    pub dqdh_pad1: U16,
    /// 0.
    pub dqdh_pad2: U32,
}
const _: () = assert!(size_of::<RawEntriesHeader>() == 16);

/// `struct v2r1_disk_dqblk`. One that is not in use is all zeros.
#[derive(
    Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct RawEntry {
    /// Whose.
    pub dqb_id: U32,
    /// 0.
    pub dqb_pad: U32,
    /// Inodes that it may have.
    pub dqb_ihardlimit: U64,
    /// Inodes that it may have for long.
    pub dqb_isoftlimit: U64,
    /// Inodes that it has.
    pub dqb_curinodes: U64,
    /// KiB that it may have.
    pub dqb_bhardlimit: U64,
    /// KiB that it may have for long.
    pub dqb_bsoftlimit: U64,
    /// Bytes that it has.
    pub dqb_curspace: U64,
    /// Until when it may be over the soft limit of blocks.
    pub dqb_btime: U64,
    /// Until when it may be over the soft limit of inodes.
    pub dqb_itime: U64,
}
const _: () = assert!(size_of::<RawEntry>() == 72);

/// A check that a quota file did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuotaCorruption {
    /// The magic number is not that of the kind.
    #[error("the magic of the quotas of {kind}s is {found:#010x}")]
    Magic {
        /// Which quotas are wanted.
        kind: QuotaKind,
        /// As stored.
        found: u32,
    },
    /// A revision that no hidden inode has.
    #[error("quotas of revision {found}")]
    Revision {
        /// As stored.
        found: u32,
    },
    /// A file that is longer than any.
    #[error("a quota file of {size} bytes")]
    Size {
        /// Bytes of the file.
        size: u64,
    },
    /// More blocks than the file has, or none for the tree.
    #[error("{blocks} blocks of quotas in a file of {size} bytes")]
    Blocks {
        /// As stored.
        blocks: u32,
        /// Bytes of the file.
        size: u64,
    },
    /// The list of free blocks, or that of blocks with room, begins past the last block.
    #[error("a list of free blocks begins at block {first} of {blocks}")]
    FreeList {
        /// As stored.
        first: u32,
        /// Blocks.
        blocks: u32,
    },
}

/// What one user, group or project has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// The size of a quota file, out of its first block, in blocks: each reference is below it.
///
/// # Errors
/// See [`QuotaCorruption`]; `size` is the file's, in bytes.
pub fn blocks(block: &[u8], kind: QuotaKind, size: u64) -> Result<u32, Corruption> {
    let (header, _) = RawHeader::ref_from_prefix(block).map_err(|_| Corruption::Truncated {
        what: "quotas",
        needed: size_of::<RawHeader>(),
        have: block.len(),
    })?;
    let found = header.dqh_magic.get();
    if found != kind.magic() {
        return Err(QuotaCorruption::Magic { kind, found }.into());
    }
    let found = header.dqh_version.get();
    if found != REVISION {
        return Err(QuotaCorruption::Revision { found }.into());
    }
    if size > LARGEST {
        return Err(QuotaCorruption::Size { size }.into());
    }
    let blocks = header.dqi_blocks.get();
    let most = size.div_ceil(BLOCK_BYTES);
    if blocks <= ROOT || u64::from(blocks) > most {
        return Err(QuotaCorruption::Blocks { blocks, size }.into());
    }
    for first in [header.dqi_free_blk.get(), header.dqi_free_entry.get()] {
        if first >= blocks {
            return Err(QuotaCorruption::FreeList { first, blocks }.into());
        }
    }
    Ok(blocks)
}

/// The references of a node of the tree that lead somewhere: by which byte, and to which block.
pub fn references(block: &[u8]) -> impl Iterator<Item = (u8, u32)> + '_ {
    let (words, _) = block.as_chunks::<4>();
    let references = (0..=u8::MAX).zip(words);
    let references = references.map(|(byte, word)| (byte, u32::from_le_bytes(*word)));
    references.filter(|(_, to)| *to != 0)
}

/// How many entries a block says that it has.
#[must_use]
pub fn count_of(block: &[u8]) -> usize {
    RawEntriesHeader::ref_from_prefix(block)
        .map_or(0, |(header, _)| usize::from(header.dqdh_entries.get()))
}

/// The entries of a block that are in use: whose, and what it has.
pub fn entries(block: &[u8]) -> impl Iterator<Item = (u32, Used)> + '_ {
    let area = block.get(size_of::<RawEntriesHeader>()..).unwrap_or(&[]);
    let entries = area.chunks_exact(size_of::<RawEntry>());
    let is_used = |entry: &&[u8]| entry.iter().any(|byte| *byte != 0);
    entries.filter(is_used).filter_map(|entry| {
        let entry = RawEntry::ref_from_bytes(entry).ok()?;
        let used = Used {
            bytes: entry.dqb_curspace.get(),
            inodes: entry.dqb_curinodes.get(),
        };
        Some((entry.dqb_id.get(), used))
    })
}
