//! Writes blocks to where they belong. What they held is kept before if a snapshot needs it.

use std::io::IoSlice;

use pagefence_block_io::{Buffer, DeviceError};
use pagefence_lock_order::primitives::Arc;

use crate::mutant::Mutant;
use crate::shared::Shared;

/// Bytes of one write, at most (but one block at least).
const WRITE_BYTES_MAX: usize = 1 << 20;
/// Blocks of one write, at most: what one system call takes.
const WRITE_BLOCKS_MAX: usize = 1024;

/// Writes `blocks`, ascending and each once; those that lie one after the other go together.
pub(crate) fn write(shared: &Shared, blocks: &[Arc<Buffer>]) -> Result<(), DeviceError> {
    if !shared.is_mutant(Mutant::HomeNotKept) {
        shared.keep_for_snapshot(blocks.iter().map(|buffer| buffer.block()));
    }
    let buffers = &*shared.buffers;
    let size = buffers.block_size();
    let most = WRITE_BYTES_MAX
        .checked_div(size)
        .unwrap_or_default()
        .clamp(1, WRITE_BLOCKS_MAX);
    let mut rest = blocks;
    while let Some(first) = rest.first() {
        let count = rest
            .iter()
            .zip(first.block()..)
            .take(most)
            .take_while(|(buffer, block)| buffer.block() == *block)
            .count();
        let (now, later) = rest.split_at(count);
        let slices: Vec<IoSlice<'_>> = now.iter().map(|buffer| IoSlice::new(buffer)).collect();
        let offset = first
            .block()
            .saturating_mul(u64::try_from(size).unwrap_or(u64::MAX));
        buffers.device().write_vectored(offset, &slices)?;
        rest = later;
    }
    Ok(())
}
