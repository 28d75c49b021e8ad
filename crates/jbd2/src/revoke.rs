//! Revoke blocks of a transaction: names of blocks whose contents in this and older transactions
//! must not be replayed, because they were freed and may hold file data by now.

use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::journal::{LogFormat, Sequence, revoke};

use crate::error::{JournalError, Result};
use crate::log::to_usize;

/// Revoke blocks that name `count` blocks.
pub(crate) fn blocks_needed(format: &LogFormat, count: usize) -> usize {
    count.div_ceil(to_usize(revoke::capacity(format).max(1)))
}

/// The revoke blocks of transaction `sequence`, which name `blocks`.
pub(crate) fn build(
    format: &LogFormat,
    sequence: Sequence,
    blocks: &[BlockNo],
) -> Result<Vec<Vec<u8>>> {
    blocks
        .chunks(to_usize(revoke::capacity(format).max(1)))
        .map(|some| {
            // The number of a block has more bits than the journal's records.
            revoke::build(format, sequence, some).map_err(|_| JournalError::Block {
                block: some.first().copied().unwrap_or_default(),
            })
        })
        .collect()
}
