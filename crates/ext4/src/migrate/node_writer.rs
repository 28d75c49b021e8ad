//! Writing the blocks of a new map: like a file's data, straight to blocks that nothing refers to
//! yet (docs/adr/0008). The flush before the commit that makes them part of a file covers them.

use std::io::IoSlice;

use pagefence_block_io::aligned::AlignedBytes;
use pagefence_ext4_format::BlockNo;
use pagefence_vfs::{Error, Result};

use super::new_map::NodeSink;
use crate::error::device;
use crate::instance::Instance;

/// Blocks written at a time, at most.
const BATCH: usize = 256;

/// Writes blocks one after the other to the runs that it has.
#[derive(Debug)]
pub(super) struct NodeWriter<'a> {
    instance: &'a Instance,
    /// Not yet used, the next run last.
    runs: Vec<(BlockNo, u32)>,
    /// Where what is gathered begins.
    first: BlockNo,
    gathered: Vec<AlignedBytes>,
}

impl<'a> NodeWriter<'a> {
    pub(super) fn new(instance: &'a Instance, runs: &[(BlockNo, u32)]) -> Self {
        Self {
            instance,
            runs: runs.iter().rev().copied().collect(),
            first: BlockNo(0),
            gathered: Vec::new(),
        }
    }

    /// Whether all blocks were used, as many as were told beforehand.
    pub(super) fn is_at_end(&self) -> bool {
        self.runs.is_empty()
    }

    /// Writes what is gathered.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn flush(&mut self) -> Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        if gathered.is_empty() {
            return Ok(());
        }
        let slices: Vec<_> = gathered.iter().map(|bytes| IoSlice::new(bytes)).collect();
        let bits = self.instance.superblock.block_size_bits();
        self.instance
            .device()
            .write_vectored(self.first.0 << bits, &slices)
            .map_err(device)?;
        // Nobody has read them since they were free, but for who reads ahead.
        for block in (self.first.0..).take(gathered.len()) {
            self.instance.buffers.invalidate(block);
        }
        Ok(())
    }

    fn next_block(&mut self) -> Result<BlockNo> {
        let short = || {
            Error::Io(std::io::Error::other(
                "a map took more blocks than reckoned",
            ))
        };
        let (start, len) = self.runs.last_mut().ok_or_else(short)?;
        let block = *start;
        *start = BlockNo(block.0 + 1);
        *len -= 1;
        if *len == 0 {
            self.runs.pop();
        }
        Ok(block)
    }
}

impl NodeSink for NodeWriter<'_> {
    fn put(&mut self, node: &[u8]) -> Result<BlockNo> {
        let block = self.next_block()?;
        let follows = self.first.0 + self.gathered.len() as u64 == block.0;
        if !follows || self.gathered.len() == BATCH {
            self.flush()?;
        }
        if self.gathered.is_empty() {
            self.first = block;
        }
        self.gathered.push(self.instance.buffers.editable(node));
        Ok(block)
    }
}
