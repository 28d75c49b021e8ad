//! A read-only view of a device in which some blocks are replaced, so that a journal (and what
//! recovery does after it) is applied without a byte of the device being changed.
//!
//! A block is replaced by another block of the same device (a journal block: 12 bytes of memory
//! each) or by bytes in memory ([`Overlay::write_block`]: a block of memory each, bounded by
//! whoever writes). A journal block that was escaped when it was written, because its contents
//! began with the journal's magic number, gets that number back.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};

use hashbrown::HashMap;
use pagefence_lock_order::primitives::{Arc, RwLock};
use rustix::io::Errno;

use crate::device::{Capabilities, Device, DeviceError, Operation, Result};

/// The first bytes of each block that the journal itself writes; an escaped block began so.
const JOURNAL_MAGIC: [u8; 4] = 0xc03b_3998_u32.to_be_bytes();

/// Block numbers that a [`Replacement`] can carry are below this.
const BLOCKS_MAX: u64 = 1 << 48;
/// Locations that a [`Replacement`] can carry are below this.
const LOCATIONS_MAX: u64 = 1 << 47;

/// A block and the block of the same device that holds its contents.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Replacement {
    block_low: u32,
    location_low: u32,
    /// Block bits 32..48, then location bits 32..47, then whether the contents are escaped.
    rest: u32,
}

impl Replacement {
    /// `block` reads as the contents of block `location`, with the journal's magic number as
    /// its first four bytes if `escaped`. Nothing if a number is too large: blocks stay below
    /// 2^48, locations below 2^47.
    #[must_use]
    pub fn new(block: u64, location: u64, escaped: bool) -> Option<Self> {
        (block < BLOCKS_MAX && location < LOCATIONS_MAX).then(|| Self {
            block_low: block as u32,
            location_low: location as u32,
            rest: (block >> 32) as u32 | ((location >> 32) as u32) << 16 | u32::from(escaped) << 31,
        })
    }

    /// The block that is replaced.
    #[must_use]
    pub fn block(self) -> u64 {
        u64::from(self.block_low) | u64::from(self.rest & 0xffff) << 32
    }

    /// The block that holds its contents.
    #[must_use]
    pub fn location(self) -> u64 {
        u64::from(self.location_low) | u64::from(self.rest >> 16 & 0x7fff) << 32
    }

    /// Whether the first four bytes are the journal's magic number instead.
    #[must_use]
    pub fn escaped(self) -> bool {
        self.rest >> 31 != 0
    }

    /// Puts the magic number back into `contents`, which begin at byte `from` of the block.
    fn unescape(self, from: usize, contents: &mut [u8]) {
        if self.escaped() {
            for (byte, magic) in contents.iter_mut().zip(JOURNAL_MAGIC.iter().skip(from)) {
                *byte = *magic;
            }
        }
    }
}

impl std::fmt::Debug for Replacement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replacement")
            .field("block", &self.block())
            .field("location", &self.location())
            .field("escaped", &self.escaped())
            .finish()
    }
}

/// The view. See the module's documentation.
#[derive(Debug)]
pub struct Overlay {
    device: Arc<dyn Device>,
    block_size: usize,
    /// Ascending by block, each block once.
    replacements: Box<[Replacement]>,
    /// Blocks in memory; they win over `replacements`.
    written: RwLock<HashMap<u64, Arc<[u8]>>>,
}

/// What a block reads as.
enum Source {
    Device,
    Elsewhere(Replacement),
    Memory(Arc<[u8]>),
}

impl Overlay {
    /// A view of `device`, whose blocks have `block_size` bytes, with `replacements`; of several
    /// for one block the last counts.
    ///
    /// # Panics
    ///
    /// If `block_size` is no power of two, or below 512.
    #[must_use]
    pub fn new(
        device: Arc<dyn Device>,
        block_size: u32,
        mut replacements: Vec<Replacement>,
    ) -> Self {
        assert!(block_size.is_power_of_two() && block_size >= 512);
        sort_last_wins(&mut replacements);
        Self {
            device,
            block_size: block_size as usize,
            replacements: replacements.into_boxed_slice(),
            written: RwLock::new(HashMap::new()),
        }
    }

    /// Makes `block` read as `bytes` from now on. The device is not changed; a buffer cache
    /// above has to be told.
    ///
    /// # Errors
    /// The block lies past the end of the device.
    ///
    /// # Panics
    ///
    /// If `bytes` is not one block long.
    pub fn write_block(&self, block: u64, bytes: &[u8]) -> Result<()> {
        assert_eq!(bytes.len(), self.block_size, "a whole block");
        if block >= self.device.size().div_ceil(self.block_size as u64) {
            return Err(DeviceError {
                operation: Operation::Write,
                offset: block.saturating_mul(self.block_size as u64),
                length: self.block_size as u64,
                source: std::io::Error::new(
                    std::io::ErrorKind::UnexpectedEof,
                    "past the end of the device",
                ),
            });
        }
        self.written.write().insert(block, Arc::from(bytes));
        Ok(())
    }

    /// Blocks that are held in memory.
    #[must_use]
    pub fn written_blocks(&self) -> usize {
        self.written.read().len()
    }

    /// The blocks held in memory, ascending, to be written somewhere else.
    #[must_use]
    pub fn take_written(&self) -> Vec<(u64, Arc<[u8]>)> {
        let mut blocks: Vec<_> = self.written.write().drain().collect();
        blocks.sort_by_key(|(block, _)| *block);
        blocks
    }

    fn source(&self, block: u64) -> Source {
        if let Some(bytes) = self.written.read().get(&block) {
            return Source::Memory(bytes.clone());
        }
        self.replacements
            .binary_search_by_key(&block, |replacement| replacement.block())
            .map_or(Source::Device, |at| {
                Source::Elsewhere(self.replacements[at])
            })
    }

    /// A refusal to change the device.
    fn refuse(operation: Operation, offset: u64, length: u64) -> Result<()> {
        Err(DeviceError {
            operation,
            offset,
            length,
            source: Errno::ROFS.into(),
        })
    }
}

/// Sorts by block; of several for one block only the last remains.
pub fn sort_last_wins(replacements: &mut Vec<Replacement>) {
    // Stable, and reversed first: so the last comes first among equals, and that is the one
    // which `dedup` keeps.
    replacements.reverse();
    replacements.sort_by_key(|replacement| replacement.block());
    replacements.dedup_by_key(|replacement| replacement.block());
}

/// The bytes of a request that are not filled yet.
struct Pieces<'a>(VecDeque<&'a mut [u8]>);

impl<'a> Pieces<'a> {
    /// The next `count` bytes.
    fn take(&mut self, mut count: usize) -> Vec<IoSliceMut<'a>> {
        let mut taken = Vec::new();
        while count > 0
            && let Some(piece) = self.0.pop_front()
        {
            let now = piece.len().min(count);
            let (head, tail) = piece.split_at_mut(now);
            taken.push(IoSliceMut::new(head));
            if !tail.is_empty() {
                self.0.push_front(tail);
            }
            count -= now;
        }
        taken
    }
}

/// Copies `source` into `target`, one buffer after the other.
fn fill(target: &mut [IoSliceMut<'_>], mut source: &[u8]) {
    for buffer in target {
        let (now, later) = source.split_at(buffer.len());
        buffer.copy_from_slice(now);
        source = later;
    }
}

impl Device for Overlay {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: true,
            discard: false,
            write_zeroes: false,
            ..self.device.capabilities()
        }
    }

    fn read_vectored(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let length: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let Some(end) = offset
            .checked_add(length)
            .filter(|end| *end <= self.device.size())
        else {
            return self.device.read_vectored(offset, buffers);
        };
        let block_size = self.block_size as u64;
        let mut pieces = Pieces(buffers.iter_mut().map(|buffer| &mut **buffer).collect());
        let mut at = offset;
        // Start of the bytes before `at` that the device itself will fill.
        let mut plain = offset;
        while at < end {
            let block = at / block_size;
            let within = (at % block_size) as usize;
            let next = end.min((block + 1) * block_size);
            let source = self.source(block);
            if matches!(source, Source::Device) {
                at = next;
                continue;
            }
            if plain < at {
                let mut target = pieces.take((at - plain) as usize);
                self.device.read_vectored(plain, &mut target)?;
            }
            let count = (next - at) as usize;
            let mut target = pieces.take(count);
            match source {
                Source::Device => {}
                Source::Memory(bytes) => fill(&mut target, &bytes[within..within + count]),
                Source::Elsewhere(replacement) => {
                    let start = replacement.location() * block_size + within as u64;
                    self.device.read_vectored(start, &mut target)?;
                    let mut from = within;
                    for buffer in &mut target {
                        replacement.unescape(from, buffer);
                        from += buffer.len();
                    }
                }
            }
            at = next;
            plain = next;
        }
        if plain < end {
            let mut target = pieces.take((end - plain) as usize);
            self.device.read_vectored(plain, &mut target)?;
        }
        Ok(())
    }

    fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        Self::refuse(Operation::Write, offset, length)
    }

    /// Nothing to do: nothing was written to the device.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        Self::refuse(Operation::Discard, offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        Self::refuse(Operation::WriteZeroes, offset, length)
    }
}

#[cfg(test)]
mod tests;
