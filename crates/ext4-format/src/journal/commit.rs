//! Commit blocks: the end of a transaction, without which it never was.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::crc32c_with_hole;
use super::{BlockKind, LogFormat, RawHeader, Sequence};
use crate::error::Corruption;
use crate::num::to_usize;

/// What a commit block is called in errors.
const WHAT: &str = "a commit block of the journal";
/// `h_chksum_type` of crc32 (version 1).
const CHECKSUM_TYPE_CRC32: u8 = 1;
/// `h_chksum_size` of crc32.
const CHECKSUM_SIZE_CRC32: u8 = 4;
/// Where the first checksum word lies in the block.
const CHECKSUM_AT: usize = 16;

/// A commit block as on disk (`struct commit_header`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawCommitBlock {
    /// Block header.
    pub h_header: RawHeader,
    /// Algorithm of the transaction's checksum (version 1).
    pub h_chksum_type: u8,
    /// Bytes of that checksum.
    pub h_chksum_size: u8,
    /// Zero.
    pub h_padding: [u8; 2],
    /// Version 1: checksum of the transaction. Versions 2 and 3: of this block. First word.
    pub h_chksum: [U32; 8],
    /// When the transaction was committed, in seconds.
    pub h_commit_sec: U64,
    /// Nanoseconds of that.
    pub h_commit_nsec: U32,
}

const _: () = assert!(size_of::<RawCommitBlock>() == 60);

/// A commit block whose own checksum, if it has one, is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitBlock {
    /// When the transaction was committed, in seconds.
    pub seconds: u64,
    /// The transaction's crc32 in a journal of version 1; none if the writer made none.
    pub transaction_crc32: Option<u32>,
}

/// The time in a commit block, whatever its checksum says.
#[must_use]
pub fn commit_seconds(block: &[u8]) -> Option<u64> {
    let (raw, _) = RawCommitBlock::read_from_prefix(block).ok()?;
    Some(raw.h_commit_sec.get())
}

impl CommitBlock {
    /// Reads a commit block.
    ///
    /// # Errors
    /// Its own checksum is wrong (versions 2 and 3), or the transaction's is of an algorithm
    /// that does not exist (version 1).
    pub fn parse(format: &LogFormat, block: &[u8]) -> Result<Self, Corruption> {
        let Ok((raw, _)) = RawCommitBlock::read_from_prefix(block) else {
            return Err(Corruption::Truncated {
                what: WHAT,
                needed: size_of::<RawCommitBlock>(),
                have: block.len(),
            });
        };
        let [first, ..] = raw.h_chksum;
        if format.has_checksums() {
            let computed = crc32c_with_hole(format.seed, block, CHECKSUM_AT);
            if first.get() != computed {
                return Err(Corruption::Checksum {
                    what: WHAT,
                    stored: first.get(),
                    computed,
                });
            }
        }
        let transaction_crc32 = if format.features.checksum_v1() {
            match (raw.h_chksum_type, raw.h_chksum_size, first.get()) {
                (0, 0, 0) => None,
                (CHECKSUM_TYPE_CRC32, CHECKSUM_SIZE_CRC32, crc) => Some(crc),
                (kind, ..) => return Err(Corruption::JournalChecksumType { kind }),
            }
        } else {
            None
        };
        Ok(Self {
            seconds: raw.h_commit_sec.get(),
            transaction_crc32,
        })
    }

    /// Builds the commit block of transaction `sequence` at this many seconds and nanoseconds.
    /// `transaction_crc32` is written in a journal of version 1.
    #[must_use]
    pub fn build(
        format: &LogFormat,
        sequence: Sequence,
        seconds: u64,
        nanoseconds: u32,
        transaction_crc32: u32,
    ) -> Vec<u8> {
        let mut raw = RawCommitBlock {
            h_header: RawHeader::new(BlockKind::Commit, sequence),
            h_chksum_type: 0,
            h_chksum_size: 0,
            h_padding: [0; 2],
            h_chksum: [U32::new(0); 8],
            h_commit_sec: seconds.into(),
            h_commit_nsec: nanoseconds.into(),
        };
        if format.features.checksum_v1() {
            raw.h_chksum_type = CHECKSUM_TYPE_CRC32;
            raw.h_chksum_size = CHECKSUM_SIZE_CRC32;
            let [first, ..] = &mut raw.h_chksum;
            *first = transaction_crc32.into();
        }
        let mut block = raw.as_bytes().to_vec();
        block.resize(to_usize(format.block_size), 0);
        if format.has_checksums() {
            let checksum = crc32c_with_hole(format.seed, &block, CHECKSUM_AT);
            let field = CHECKSUM_AT..CHECKSUM_AT.saturating_add(4);
            if let Some(field) = block.get_mut(field) {
                field.copy_from_slice(&checksum.to_be_bytes());
            }
        }
        block
    }
}
