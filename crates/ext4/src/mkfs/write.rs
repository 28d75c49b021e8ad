//! Writing blocks to the device: neighbours together, zeros only where they are needed.

use std::ops::Range;

use pagefence_block_io::{Device, DeviceError};

use super::Contents;

/// Bytes that are gathered before they are written.
const GATHERED_BYTES: usize = 1 << 20;

/// Writes blocks, gathering those that follow one another.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    device: &'a dyn Device,
    block_size: u64,
    contents: Contents,
    /// Bytes not yet written, and where they belong.
    gathered: Vec<u8>,
    gathered_offset: u64,
    written_bytes: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(device: &'a dyn Device, block_size: u32, contents: Contents) -> Self {
        Self {
            device,
            block_size: block_size.into(),
            contents,
            gathered: Vec::new(),
            gathered_offset: 0,
            written_bytes: 0,
        }
    }

    /// Bytes written so far.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Whether blocks that were never written read as zeros.
    pub(super) fn reads_as_zeros(&self) -> bool {
        self.contents == Contents::Zeros
    }

    /// Writes whole blocks, the last one filled up with zeros.
    pub(super) fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let offset = block * self.block_size;
        let gathered_end = self.gathered_offset + self.gathered.len() as u64;
        if offset != gathered_end || self.gathered.len() >= GATHERED_BYTES {
            self.flush_gathered()?;
            self.gathered_offset = offset;
        }
        self.written_bytes += bytes.len() as u64;
        // What is large is written as it lies; only the last block may need filling up.
        let whole = bytes.len() - bytes.len() % self.block_size as usize;
        let mut rest = bytes;
        if self.gathered.is_empty() && whole >= GATHERED_BYTES {
            let (large, last) = bytes.split_at(whole);
            self.device.write(offset, large)?;
            self.gathered_offset = offset + whole as u64;
            rest = last;
        }
        self.gathered.extend_from_slice(rest);
        let filled = self
            .gathered
            .len()
            .next_multiple_of(self.block_size as usize);
        self.gathered.resize(filled, 0);
        Ok(())
    }

    /// Makes blocks read as zeros.
    pub(super) fn zero(&mut self, blocks: Range<u64>) -> Result<(), DeviceError> {
        if self.reads_as_zeros() || blocks.is_empty() {
            return Ok(());
        }
        self.flush_gathered()?;
        let length = (blocks.end - blocks.start) * self.block_size;
        self.device
            .write_zeroes(blocks.start * self.block_size, length)
    }

    /// Makes bytes read as zeros, whatever the device read as before.
    pub(super) fn wipe(&mut self, bytes: Range<u64>) -> Result<(), DeviceError> {
        self.flush_gathered()?;
        self.device
            .write_zeroes(bytes.start, bytes.end - bytes.start)
    }

    /// Writes bytes that are no whole block.
    pub(super) fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.flush_gathered()?;
        self.written_bytes += bytes.len() as u64;
        self.device.write(offset, bytes)
    }

    /// Makes all that was written durable.
    pub(super) fn flush(&mut self) -> Result<(), DeviceError> {
        self.flush_gathered()?;
        self.device.flush()
    }

    fn flush_gathered(&mut self) -> Result<(), DeviceError> {
        if !self.gathered.is_empty() {
            self.device.write(self.gathered_offset, &self.gathered)?;
            self.gathered.clear();
        }
        Ok(())
    }
}
