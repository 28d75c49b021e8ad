//! How large a journal is, and the first block of an empty one.

use pagefence_ext4_format::journal::superblock::{RawJournalSuperblock, SUPERBLOCK_BYTES};
use pagefence_ext4_format::journal::{BlockKind, RawHeader, Sequence};
use zerocopy::{FromZeros, IntoBytes};

/// Fewest blocks of a file system with a journal.
pub(super) const FEWEST_BLOCKS: u64 = 2048;
/// Blocks of the journal for each block of the fast-commit area, which lies behind them.
const BLOCKS_PER_FAST_COMMIT_BLOCK: u64 = 64;
/// Blocks of the journal of a file system of `blocks` blocks, by the table of mke2fs, without a
/// fast-commit area; nothing if it is too small to have one.
pub(super) fn default_blocks(blocks: u64) -> Option<u64> {
    const K: u64 = 1024;
    Some(match blocks {
        0..FEWEST_BLOCKS => return None,
        FEWEST_BLOCKS..32_768 => K,
        32_768..262_144 => 4 * K,
        262_144..524_288 => 8 * K,
        524_288..4_194_304 => 16 * K,
        4_194_304..8_388_608 => 32 * K,
        8_388_608..16_777_216 => 64 * K,
        16_777_216..33_554_432 => 128 * K,
        _ => 256 * K,
    })
}

/// Blocks of a journal with its fast-commit area.
pub(super) fn with_fast_commit(blocks: u64) -> u64 {
    blocks + blocks / BLOCKS_PER_FAST_COMMIT_BLOCK
}

/// Blocks of the fast-commit area of a journal of `blocks` blocks in all.
pub(super) fn fast_commit_blocks(blocks: u64) -> u32 {
    (blocks / (BLOCKS_PER_FAST_COMMIT_BLOCK + 1)) as u32
}

/// The first block of an empty journal of `blocks` blocks.
pub(super) fn superblock(
    block_size: usize,
    blocks: u64,
    fast_commit_blocks: u32,
    uuid: &[u8; 16],
) -> Vec<u8> {
    let mut raw = RawJournalSuperblock::new_zeroed();
    raw.s_header = RawHeader::new(BlockKind::SuperblockV2, Sequence(0));
    raw.s_blocksize = (block_size as u32).into();
    raw.s_maxlen = (blocks as u32).into();
    // No start: the log is empty.
    raw.s_first = 1.into();
    raw.s_sequence = 1.into();
    raw.s_uuid = *uuid;
    raw.s_nr_users = 1.into();
    raw.s_num_fc_blks = fast_commit_blocks.into();
    let mut bytes = vec![0; block_size];
    bytes[..SUPERBLOCK_BYTES].copy_from_slice(raw.as_bytes());
    bytes
}
