//! The journal's format (JBD2): its superblock, the blocks of the log, and fast commits.
//!
//! Everything in the log is big-endian; fast commits, which ext4 writes by itself, are
//! little-endian. Sources: the kernel's `Documentation/filesystems/ext4/journal.rst`,
//! `include/linux/jbd2.h` and `fs/ext4/fast_commit.h`.

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::Corruption;

pub mod checksum;
pub mod commit;
pub mod descriptor;
pub mod fast_commit;
pub mod revoke;
pub mod superblock;

pub use commit::CommitBlock;
pub use descriptor::{DescriptorBuilder, Tag, TagFormat};
pub use fast_commit::FastCommitTag;
pub use superblock::{JournalFeatures, JournalSuperblock};

/// First word of each block that the journal itself writes (`JBD2_MAGIC_NUMBER`).
pub const MAGIC: u32 = 0xc03b_3998;
/// [`MAGIC`] as it lies on the disk.
pub const MAGIC_BYTES: [u8; 4] = MAGIC.to_be_bytes();
/// Bytes of a block header.
pub const HEADER_BYTES: usize = 12;
/// Bytes of the checksum at the end of descriptor and revoke blocks, where there is one.
pub const TAIL_BYTES: usize = 4;

/// Number of a transaction (`tid_t`). It wraps around: of two numbers that one is later which
/// is less than half the circle ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sequence(pub u32);

impl Sequence {
    /// The transaction after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// Whether this is `other` or later (`tid_geq`).
    #[must_use]
    pub fn is_at_least(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) < 1 << 31
    }
}

impl std::fmt::Display for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The header of a block that the journal itself writes (`journal_header_t`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    /// [`MAGIC`].
    pub h_magic: U32,
    /// Kind of block.
    pub h_blocktype: U32,
    /// The transaction that it belongs to.
    pub h_sequence: U32,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

impl RawHeader {
    /// The header of a block of kind `kind` in transaction `sequence`.
    #[must_use]
    pub fn new(kind: BlockKind, sequence: Sequence) -> Self {
        Self {
            h_magic: MAGIC.into(),
            h_blocktype: kind.number().into(),
            h_sequence: sequence.0.into(),
        }
    }
}

/// The kinds of blocks that the journal itself writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Says where the data blocks that follow it belong.
    Descriptor,
    /// Ends a transaction.
    Commit,
    /// The journal's superblock without features.
    SuperblockV1,
    /// The journal's superblock.
    SuperblockV2,
    /// Blocks whose older contents must not be replayed.
    Revoke,
}

impl BlockKind {
    /// As on disk.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Descriptor => 1,
            Self::Commit => 2,
            Self::SuperblockV1 => 3,
            Self::SuperblockV2 => 4,
            Self::Revoke => 5,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Descriptor,
            2 => Self::Commit,
            3 => Self::SuperblockV1,
            4 => Self::SuperblockV2,
            5 => Self::Revoke,
            _ => return None,
        })
    }
}

/// A validated block header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the block is.
    pub kind: BlockKind,
    /// The transaction that it belongs to.
    pub sequence: Sequence,
}

impl Header {
    /// The header of `block`; nothing if the block is none of the journal's own.
    #[must_use]
    pub fn parse(block: &[u8]) -> Option<Self> {
        let (raw, _) = RawHeader::read_from_prefix(block).ok()?;
        if raw.h_magic.get() != MAGIC {
            return None;
        }
        Some(Self {
            kind: BlockKind::from_number(raw.h_blocktype.get())?,
            sequence: Sequence(raw.h_sequence.get()),
        })
    }
}

/// The checks of the blocks in a journal, which its features decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFormat {
    /// Bytes of a block.
    pub block_size: u32,
    /// Features.
    pub features: JournalFeatures,
    /// crc32c of the journal's UUID, from which the checksums of versions 2 and 3 start.
    pub seed: u32,
}

impl LogFormat {
    /// Whether blocks carry checksums of version 2 or 3.
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        self.features.csum_v2() || self.features.csum_v3()
    }

    /// Bytes of a descriptor or revoke block before the checksum at its end.
    fn body<'a>(&self, what: &'static str, block: &'a [u8]) -> Result<&'a [u8], Corruption> {
        let tail = if self.has_checksums() { TAIL_BYTES } else { 0 };
        block
            .len()
            .checked_sub(tail)
            .filter(|end| *end >= HEADER_BYTES)
            .and_then(|end| block.get(..end))
            .ok_or(Corruption::Truncated {
                what,
                needed: HEADER_BYTES.saturating_add(tail),
                have: block.len(),
            })
    }
}

#[cfg(test)]
mod tests;
