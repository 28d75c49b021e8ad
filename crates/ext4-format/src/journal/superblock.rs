//! The journal's superblock: block 0 of the journal.

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::seed_of_uuid;
use super::{BlockKind, LogFormat, RawHeader, Sequence};
use crate::checksum::crc32c;
use crate::error::Corruption;

/// Bytes of the superblock, at the start of its block.
pub const SUPERBLOCK_BYTES: usize = 1024;
/// Blocks of the fast commit area if the superblock says none.
const FAST_COMMIT_BLOCKS_DEFAULT: u32 = 256;
/// Blocks that a log must have; a fast commit area is only set apart from what is above that.
const LOG_BLOCKS_MIN: u32 = 1024;
/// `s_checksum_type` of crc32c.
const CHECKSUM_TYPE_CRC32C: u8 = 4;

/// The superblock as on disk (`journal_superblock_t`).
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawJournalSuperblock {
    /// Block header of kind 3 (version 1) or 4 (version 2).
    pub s_header: RawHeader,
    /// Bytes of a block.
    pub s_blocksize: U32,
    /// Blocks of the journal.
    pub s_maxlen: U32,
    /// First block of the log.
    pub s_first: U32,
    /// First transaction expected in the log.
    pub s_sequence: U32,
    /// Block where the log starts, 0 if it is empty.
    pub s_start: U32,
    /// Error with which the journal was aborted.
    pub s_errno: U32,
    /// Compatible features; from here on version 2 only.
    pub s_feature_compat: U32,
    /// Incompatible features.
    pub s_feature_incompat: U32,
    /// Features that a reader may ignore.
    pub s_feature_ro_compat: U32,
    /// The journal's UUID.
    pub s_uuid: [u8; 16],
    /// File systems that share the journal.
    pub s_nr_users: U32,
    /// Unused.
    pub s_dynsuper: U32,
    /// Unused.
    pub s_max_transaction: U32,
    /// Unused.
    pub s_max_trans_data: U32,
    /// Algorithm of checksums of versions 2 and 3.
    pub s_checksum_type: u8,
    /// Zero.
    pub s_padding2: [u8; 3],
    /// Blocks of the fast commit area.
    pub s_num_fc_blks: U32,
    /// Where the log ended when it was last emptied.
    pub s_head: U32,
    /// Zero.
    pub s_padding: [U32; 40],
    /// crc32c of the superblock with this field zero.
    pub s_checksum: U32,
    /// UUIDs of the file systems that share the journal.
    pub s_users: [u8; 768],
}

const _: () = assert!(size_of::<RawJournalSuperblock>() == SUPERBLOCK_BYTES);

bitflags::bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Compat: u32 {
        const CHECKSUM = 1;
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Incompat: u32 {
        const REVOKE = 1;
        const SIXTY_FOUR_BIT = 2;
        const ASYNC_COMMIT = 4;
        const CSUM_V2 = 8;
        const CSUM_V3 = 0x10;
        const FAST_COMMIT = 0x20;
    }
}

/// The features of a journal. All of them are known ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalFeatures {
    compat: Compat,
    incompat: Incompat,
}

impl JournalFeatures {
    /// Features as on disk, from the compatible and the incompatible set.
    ///
    /// # Errors
    /// There is an unknown incompatible one, or two that exclude each other. Unknown compatible
    /// ones are ignored.
    pub fn new(compat: u32, incompat: u32) -> Result<Self, Corruption> {
        let features = Self {
            compat: Compat::from_bits_truncate(compat),
            incompat: Incompat::from_bits(incompat).ok_or(Corruption::JournalFeatures {
                set: "incompatible",
                unknown: incompat & !Incompat::all().bits(),
            })?,
        };
        let checksums = [
            features.checksum_v1(),
            features.csum_v2(),
            features.csum_v3(),
        ];
        if checksums.iter().filter(|on| **on).count() > 1 {
            return Err(Corruption::JournalChecksumVersions { compat, incompat });
        }
        Ok(features)
    }

    /// A crc32 of each transaction in its commit block (`checksum`).
    #[must_use]
    pub fn checksum_v1(self) -> bool {
        self.compat.contains(Compat::CHECKSUM)
    }

    /// There may be revoke blocks (`revoke`).
    #[must_use]
    pub fn revoke(self) -> bool {
        self.incompat.contains(Incompat::REVOKE)
    }

    /// Block numbers have 64 bits (`64bit`).
    #[must_use]
    pub fn is_64bit(self) -> bool {
        self.incompat.contains(Incompat::SIXTY_FOUR_BIT)
    }

    /// Commit blocks are written together with the data (`async_commit`).
    #[must_use]
    pub fn async_commit(self) -> bool {
        self.incompat.contains(Incompat::ASYNC_COMMIT)
    }

    /// Checksums with 16 bits per data block (`csum_v2`).
    #[must_use]
    pub fn csum_v2(self) -> bool {
        self.incompat.contains(Incompat::CSUM_V2)
    }

    /// Checksums with 32 bits per data block (`csum_v3`).
    #[must_use]
    pub fn csum_v3(self) -> bool {
        self.incompat.contains(Incompat::CSUM_V3)
    }

    /// The end of the journal is an area of fast commits (`fast_commit`).
    #[must_use]
    pub fn fast_commit(self) -> bool {
        self.incompat.contains(Incompat::FAST_COMMIT)
    }
}

/// The validated superblock of an internal journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalSuperblock {
    /// The format of the log's blocks.
    pub format: LogFormat,
    /// Whether the superblock is of version 2 (1 has no features).
    pub version_2: bool,
    /// Blocks of the journal, this one included.
    pub length_blocks: u32,
    /// First block of the log.
    pub first: u32,
    /// One past the last block of the log; behind it lies the fast commit area, if any.
    pub end: u32,
    /// First block of the fast commit area, and one past its last; empty if there is none.
    pub fast_commit: std::ops::Range<u32>,
    /// First transaction expected in the log.
    pub sequence: Sequence,
    /// Block where the log starts, 0 if it is empty.
    pub start: u32,
    /// Error with which the journal was aborted, as the kernel stores it (negative), or 0.
    pub errno: i32,
    /// File systems that use the journal: more than one if it is a device of its own. In version 1
    /// there is no count.
    pub users: Option<u32>,
}

impl JournalSuperblock {
    /// Reads the superblock in `block`, of a journal of `length_blocks` blocks of `block_size`
    /// bytes (what the journal's inode says).
    ///
    /// # Errors
    /// A field does not pass its check, or the checksum is wrong.
    pub fn parse(block: &[u8], block_size: u32, length_blocks: u32) -> Result<Self, Corruption> {
        let Ok((raw, _)) = RawJournalSuperblock::read_from_prefix(block) else {
            return Err(Corruption::Truncated {
                what: "the journal's superblock",
                needed: SUPERBLOCK_BYTES,
                have: block.len(),
            });
        };
        if raw.s_header.h_magic.get() != super::MAGIC {
            return Err(Corruption::JournalMagic {
                found: raw.s_header.h_magic.get(),
            });
        }
        let version_2 = match BlockKind::from_number(raw.s_header.h_blocktype.get()) {
            Some(BlockKind::SuperblockV1) => false,
            Some(BlockKind::SuperblockV2) => true,
            _ => {
                return Err(Corruption::JournalSuperblockKind {
                    kind: raw.s_header.h_blocktype.get(),
                });
            }
        };
        let features = raw.features(version_2)?;
        raw.check_checksum(features)?;
        let field = |field, value: U32| Corruption::JournalSuperblockField {
            field,
            value: value.get(),
        };
        if raw.s_blocksize.get() != block_size {
            return Err(field("s_blocksize", raw.s_blocksize));
        }
        let length = raw.s_maxlen.get();
        if length > length_blocks {
            return Err(field("s_maxlen", raw.s_maxlen));
        }
        let (end, fast_commit) = raw.areas(features);
        let first = raw.s_first.get();
        // One block of log could not hold a descriptor, a block and a commit.
        if first == 0 || first.checked_add(1).is_none_or(|second| second >= end) {
            return Err(field("s_first", raw.s_first));
        }
        let start = raw.s_start.get();
        if start != 0 && !(first..end).contains(&start) {
            return Err(field("s_start", raw.s_start));
        }
        Ok(Self {
            format: LogFormat {
                block_size,
                features,
                seed: seed_of_uuid(&raw.s_uuid),
            },
            version_2,
            length_blocks: length,
            first,
            end,
            fast_commit,
            sequence: Sequence(raw.s_sequence.get()),
            start,
            errno: raw.s_errno.get().cast_signed(),
            users: version_2.then(|| raw.s_nr_users.get()),
        })
    }

    /// Blocks of the log.
    #[must_use]
    pub fn log_blocks(&self) -> u32 {
        self.end.saturating_sub(self.first)
    }

    /// The block of the log `count` blocks after `block`, which is one of it.
    #[must_use]
    pub fn advance(&self, block: u32, count: u32) -> u32 {
        let length = u64::from(self.log_blocks()).max(1);
        let within = u64::from(block.saturating_sub(self.first));
        let moved = within
            .saturating_add(u64::from(count))
            .checked_rem(length)
            .unwrap_or_default();
        self.first
            .saturating_add(u32::try_from(moved).unwrap_or_default())
    }
}

/// What a writer changes in the superblock; the rest of its block stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SuperblockUpdate {
    /// First transaction expected in the log.
    pub sequence: Option<Sequence>,
    /// Block where the log starts, 0 if it is empty.
    pub start: Option<u32>,
    /// Where the log ended when it was last emptied.
    pub head: Option<u32>,
    /// Error with which the journal was aborted.
    pub errno: Option<i32>,
    /// Declare that there may be revoke blocks; of no effect in a superblock of version 1.
    pub enable_revoke: bool,
}

impl SuperblockUpdate {
    /// Changes the superblock in `block`, checksum included. All that it changes lies in the
    /// first 512 bytes, so a device that writes sectors whole writes it whole.
    ///
    /// # Errors
    /// `block` is too short for a superblock.
    pub fn apply(&self, block: &mut [u8]) -> Result<(), Corruption> {
        let have = block.len();
        let Ok((raw, _)) = RawJournalSuperblock::mut_from_prefix(block) else {
            return Err(Corruption::Truncated {
                what: "the journal's superblock",
                needed: SUPERBLOCK_BYTES,
                have,
            });
        };
        if let Some(sequence) = self.sequence {
            raw.s_sequence = sequence.0.into();
        }
        if let Some(start) = self.start {
            raw.s_start = start.into();
        }
        let version_2 = raw.s_header.h_blocktype.get() == BlockKind::SuperblockV2.number();
        if let Some(head) = self.head
            && version_2
        {
            raw.s_head = head.into();
        }
        if let Some(errno) = self.errno {
            raw.s_errno = errno.cast_unsigned().into();
        }
        if self.enable_revoke && version_2 {
            let incompat = raw.s_feature_incompat.get() | Incompat::REVOKE.bits();
            raw.s_feature_incompat = incompat.into();
        }
        let features = raw.features(version_2)?;
        if features.csum_v2() || features.csum_v3() {
            raw.s_checksum = raw.computed_checksum().into();
        }
        Ok(())
    }
}

impl RawJournalSuperblock {
    fn features(&self, version_2: bool) -> Result<JournalFeatures, Corruption> {
        if !version_2 {
            return JournalFeatures::new(0, 0);
        }
        if self.s_feature_ro_compat.get() != 0 {
            return Err(Corruption::JournalFeatures {
                set: "read-only compatible",
                unknown: self.s_feature_ro_compat.get(),
            });
        }
        JournalFeatures::new(self.s_feature_compat.get(), self.s_feature_incompat.get())
    }

    fn computed_checksum(&self) -> u32 {
        let mut copy = self.clone();
        copy.s_checksum = 0.into();
        crc32c(!0, copy.as_bytes())
    }

    fn check_checksum(&self, features: JournalFeatures) -> Result<(), Corruption> {
        if !features.csum_v2() && !features.csum_v3() {
            return Ok(());
        }
        if self.s_checksum_type != CHECKSUM_TYPE_CRC32C {
            return Err(Corruption::JournalChecksumType {
                kind: self.s_checksum_type,
            });
        }
        let (stored, computed) = (self.s_checksum.get(), self.computed_checksum());
        if stored != computed {
            return Err(Corruption::Checksum {
                what: "the journal's superblock",
                stored,
                computed,
            });
        }
        Ok(())
    }

    /// The end of the log and the fast commit area. One block between the two is never used.
    fn areas(&self, features: JournalFeatures) -> (u32, std::ops::Range<u32>) {
        let length = self.s_maxlen.get();
        let none = length..length;
        if !features.fast_commit() {
            return (length, none);
        }
        let blocks = match self.s_num_fc_blks.get() {
            0 => FAST_COMMIT_BLOCKS_DEFAULT,
            blocks => blocks,
        };
        match length.checked_sub(blocks) {
            Some(end) if end >= LOG_BLOCKS_MIN => (end, end.saturating_add(1)..length),
            _ => (length, none),
        }
    }
}
