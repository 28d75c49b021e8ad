//! Puts blocks into the log, one after the other, in writes of up to 1 MiB.

use pagefence_block_io::Buffer;
use pagefence_block_io::aligned::AlignedBytes;
use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::journal::checksum::crc32_be;
use pagefence_ext4_format::journal::{DescriptorBuilder, JournalSuperblock, LogFormat, Sequence};
use pagefence_lock_order::primitives::Arc;

use crate::error::{JournalError, Result};
use crate::location::JournalLocation;
use crate::log::to_usize;
use crate::shared::Shared;

/// Bytes of one write, at most …
const STAGING_BYTES: usize = 1 << 20;
/// … but these many blocks at least.
const STAGING_BLOCKS_MIN: usize = 8;

/// Blocks that are staged together.
fn staging_blocks(format: &LogFormat) -> usize {
    STAGING_BYTES
        .checked_div(to_usize(format.block_size))
        .unwrap_or_default()
        .max(STAGING_BLOCKS_MIN)
}

/// Data blocks that follow one descriptor, at most: those that it has tags for and that fit into
/// one write with it.
pub(crate) fn blocks_per_descriptor(format: &LogFormat) -> usize {
    to_usize(DescriptorBuilder::capacity(format))
        .min(staging_blocks(format).saturating_sub(1))
        .max(1)
}

/// Writes to the log of a journal.
#[derive(Debug)]
pub(crate) struct LogWriter {
    staging: AlignedBytes,
    /// Blocks that are staged.
    staged: usize,
    /// Block of the journal where the first staged one goes.
    position: u32,
}

/// The journal that is written to.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) location: &'a JournalLocation,
    pub(crate) superblock: &'a JournalSuperblock,
}

impl LogWriter {
    pub(crate) fn new(format: &LogFormat, alignment: usize) -> Self {
        let bytes = staging_blocks(format).saturating_mul(to_usize(format.block_size));
        Self {
            staging: AlignedBytes::zeroed(bytes, alignment),
            staged: 0,
            position: 0,
        }
    }

    /// The next block goes to `position`.
    pub(crate) fn seek(&mut self, position: u32) {
        self.staged = 0;
        self.position = position;
    }

    /// Room for `count` blocks, staged from now on; `count` are no more than are staged together.
    fn stage(&mut self, target: Target<'_>, count: usize) -> Result<&mut [u8]> {
        let size = target.shared.buffers.block_size();
        let fits = |staged: usize| staged.saturating_add(count).saturating_mul(size);
        if fits(self.staged) > self.staging.len() {
            self.write_out(target)?;
        }
        let room = self.staged.saturating_mul(size)..fits(self.staged);
        self.staged = self.staged.saturating_add(count);
        Ok(self.staging.get_mut(room).unwrap_or_default())
    }

    /// Adds a block.
    pub(crate) fn push(&mut self, target: Target<'_>, bytes: &[u8]) -> Result<()> {
        let room = self.stage(target, 1)?;
        if room.len() == bytes.len() {
            room.copy_from_slice(bytes);
        }
        Ok(())
    }

    /// Adds a descriptor and the `blocks` that it describes, at most [`blocks_per_descriptor`].
    /// Continues the checksum of version 1.
    pub(crate) fn push_described(
        &mut self,
        target: Target<'_>,
        sequence: Sequence,
        blocks: &[&Arc<Buffer>],
        crc32: u32,
    ) -> Result<u32> {
        let format = target.superblock.format;
        let size = target.shared.buffers.block_size();
        let room = self.stage(target, blocks.len().saturating_add(1))?;
        let (first, data) = room.split_at_mut_checked(size).unwrap_or_default();
        let mut descriptor = DescriptorBuilder::new(format, sequence, [0; 16]);
        for (buffer, copy) in blocks.iter().zip(data.chunks_exact_mut(size)) {
            copy.copy_from_slice(buffer);
            let block = BlockNo(buffer.block());
            let added = descriptor
                .push(block, copy)
                .map_err(|_| JournalError::Block { block })?;
            debug_assert!(added, "a descriptor has room for its blocks");
        }
        let descriptor = descriptor.finish();
        if first.len() == descriptor.len() {
            first.copy_from_slice(&descriptor);
        }
        Ok(if format.features.checksum_v1() {
            crc32_be(crc32, room)
        } else {
            crc32
        })
    }

    /// Writes what is staged.
    pub(crate) fn write_out(&mut self, target: Target<'_>) -> Result<()> {
        let size = target.shared.buffers.block_size();
        let staged = std::mem::take(&mut self.staged);
        let mut rest = self
            .staging
            .get(..staged.saturating_mul(size))
            .unwrap_or_default();
        while !rest.is_empty() {
            let (physical, consecutive) = target
                .location
                .physical(self.position)
                .ok_or(JournalError::Block { block: BlockNo(0) })?;
            let before_end = target.superblock.end.saturating_sub(self.position);
            let blocks = rest.len().checked_div(size).unwrap_or_default();
            let count = u32::try_from(blocks)
                .unwrap_or(u32::MAX)
                .min(consecutive)
                .min(before_end)
                .max(1);
            let (now, later) = rest
                .split_at_checked(to_usize(count).saturating_mul(size))
                .unwrap_or((rest, &[]));
            let offset = target.location.offset(physical);
            target.shared.buffers.device().write(offset, now)?;
            self.position = target.superblock.advance(self.position, count);
            rest = later;
        }
        Ok(())
    }
}
