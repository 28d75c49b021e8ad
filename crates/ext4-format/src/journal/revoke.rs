//! Revoke blocks: blocks of the file system whose contents in this and in older transactions
//! must not be replayed.

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::{check_tail, set_tail};
use super::{BlockKind, LogFormat, RawHeader, Sequence};
use crate::error::Corruption;
use crate::ids::BlockNo;
use crate::num::to_usize;

/// What a revoke block is called in errors.
const WHAT: &str = "a revoke block of the journal";

/// The start of a revoke block (`jbd2_journal_revoke_header_t`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawRevokeHeader {
    /// Block header.
    pub r_header: RawHeader,
    /// Bytes of the block that are in use, this header included.
    pub r_count: U32,
}

const _: () = assert!(size_of::<RawRevokeHeader>() == 16);

fn record_bytes(format: &LogFormat) -> usize {
    if format.features.is_64bit() { 8 } else { 4 }
}

/// Checks the checksum of a revoke block, in a journal that has them.
///
/// # Errors
/// It is wrong.
pub fn check(format: &LogFormat, block: &[u8]) -> Result<(), Corruption> {
    check_tail(format, WHAT, block)
}

/// The blocks that a revoke block names.
///
/// # Errors
/// Its count reaches past the block, or does not even cover its header.
pub fn records<'a>(
    format: &LogFormat,
    block: &'a [u8],
) -> Result<impl Iterator<Item = BlockNo> + use<'a>, Corruption> {
    let body = format.body(WHAT, block)?;
    let Ok((raw, _)) = RawRevokeHeader::read_from_prefix(body) else {
        return Err(Corruption::Truncated {
            what: WHAT,
            needed: size_of::<RawRevokeHeader>(),
            have: body.len(),
        });
    };
    let records = usize::try_from(raw.r_count.get())
        .ok()
        .and_then(|end| body.get(size_of::<RawRevokeHeader>()..end))
        .ok_or(Corruption::JournalRevokeCount {
            count: raw.r_count.get(),
            limit: body.len(),
        })?;
    Ok(records.chunks_exact(record_bytes(format)).map(|record| {
        BlockNo(
            record
                .iter()
                .fold(0_u64, |number, byte| number << 8 | u64::from(*byte)),
        )
    }))
}

/// How many blocks a revoke block of this format can name.
#[must_use]
pub fn capacity(format: &LogFormat) -> u32 {
    let tail = if format.has_checksums() {
        super::TAIL_BYTES
    } else {
        0
    };
    to_usize(format.block_size)
        .saturating_sub(size_of::<RawRevokeHeader>())
        .saturating_sub(tail)
        .checked_div(record_bytes(format))
        .and_then(|records| u32::try_from(records).ok())
        .unwrap_or_default()
}

/// Builds a revoke block of transaction `sequence` that names `blocks`.
///
/// # Errors
/// There are more than [`capacity`], or a number has more bits than the journal's records.
pub fn build(
    format: &LogFormat,
    sequence: Sequence,
    blocks: &[BlockNo],
) -> Result<Vec<u8>, Corruption> {
    let limit = to_usize(capacity(format));
    if blocks.len() > limit {
        return Err(Corruption::JournalRevokeCount {
            count: u32::try_from(blocks.len()).unwrap_or(u32::MAX),
            limit,
        });
    }
    let used = blocks
        .len()
        .saturating_mul(record_bytes(format))
        .saturating_add(size_of::<RawRevokeHeader>());
    let header = RawRevokeHeader {
        r_header: RawHeader::new(BlockKind::Revoke, sequence),
        r_count: u32::try_from(used).unwrap_or_default().into(),
    };
    let mut bytes = header.as_bytes().to_vec();
    for block in blocks {
        if format.features.is_64bit() {
            bytes.extend_from_slice(&block.0.to_be_bytes());
        } else {
            let low = u32::try_from(block.0)
                .map_err(|_| Corruption::JournalBlockRange { block: *block })?;
            bytes.extend_from_slice(&low.to_be_bytes());
        }
    }
    bytes.resize(to_usize(format.block_size), 0);
    set_tail(format, &mut bytes);
    Ok(bytes)
}
