//! The journal's checksums: crc32c for versions 2 and 3, and the crc32 of version 1.

use super::{LogFormat, Sequence, TAIL_BYTES};
use crate::checksum::crc32c;
use crate::error::Corruption;

/// The seed of the checksums of versions 2 and 3.
#[must_use]
pub fn seed_of_uuid(uuid: &[u8; 16]) -> u32 {
    crc32c(!0, uuid)
}

/// Continues the crc32 of version 1 from `seed` over `bytes`: the polynomial of Ethernet, most
/// significant bit first, not inverted (`crc32_be`). A transaction starts from `!0`.
#[must_use]
pub fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        let [top, ..] = crc.to_be_bytes();
        (crc << 8)
            ^ CRC32_BE
                .get(usize::from(top ^ byte))
                .copied()
                .unwrap_or_default()
    })
}

const CRC32_BE: [u32; 256] = crc32_be_table();

#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "runs when this is compiled: an index out of range would not build"
)]
const fn crc32_be_table() -> [u32; 256] {
    let mut table = [0_u32; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc >> 31 == 1 {
                (crc << 1) ^ 0x04c1_1db7
            } else {
                crc << 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// The crc32c of `block` as if the four bytes at `hole` were zero.
pub(super) fn crc32c_with_hole(seed: u32, block: &[u8], hole: usize) -> u32 {
    let (before, from) = block.split_at_checked(hole).unwrap_or((block, &[]));
    let after = from.get(TAIL_BYTES..).unwrap_or_default();
    crc32c(crc32c(crc32c(seed, before), &[0; TAIL_BYTES]), after)
}

/// The checksum that a data block of transaction `sequence` has in its tag, before version 2
/// cuts it to 16 bits. `block` is as it lies in the log, escaped if it was.
#[must_use]
pub fn data_checksum(seed: u32, sequence: Sequence, block: &[u8]) -> u32 {
    crc32c(crc32c(seed, &sequence.0.to_be_bytes()), block)
}

/// Checks the last four bytes of a descriptor or revoke block, in a journal that has them.
pub(super) fn check_tail(
    format: &LogFormat,
    what: &'static str,
    block: &[u8],
) -> Result<(), Corruption> {
    if !format.has_checksums() {
        return Ok(());
    }
    let truncated = Corruption::Truncated {
        what,
        needed: TAIL_BYTES,
        have: block.len(),
    };
    let Some((body, tail)) = block.split_last_chunk::<TAIL_BYTES>() else {
        return Err(truncated);
    };
    let stored = u32::from_be_bytes(*tail);
    let computed = crc32c_with_hole(format.seed, block, body.len());
    if stored == computed {
        Ok(())
    } else {
        Err(Corruption::Checksum {
            what,
            stored,
            computed,
        })
    }
}

/// Fills in the last four bytes of a descriptor or revoke block, in a journal that has them.
pub(super) fn set_tail(format: &LogFormat, block: &mut [u8]) {
    if !format.has_checksums() {
        return;
    }
    let Some(hole) = block.len().checked_sub(TAIL_BYTES) else {
        return;
    };
    let checksum = crc32c_with_hole(format.seed, block, hole);
    if let Some(tail) = block.last_chunk_mut::<TAIL_BYTES>() {
        *tail = checksum.to_be_bytes();
    }
}
