//! The bytes of a file, with its holes, and the bytes that tests write.

use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a record of [`contents`].
pub const RECORD_BYTES: u64 = 32;

/// What a write of `length` bytes at `offset` writes: every 32 bytes of the file say which write
/// they are of and where they belong, so that a byte that is misplaced, stale or foreign is known
/// by its looks. Tag 0 stands for zeros.
#[must_use]
pub fn contents(tag: u64, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    if tag == 0 {
        bytes.resize(length, 0);
        return bytes;
    }
    let mut at = offset;
    while bytes.len() < length {
        let record = record(tag, at / RECORD_BYTES);
        let within = (at % RECORD_BYTES) as usize;
        let count = (record.len() - within).min(length - bytes.len());
        bytes.extend_from_slice(&record[within..within + count]);
        at += count as u64;
    }
    bytes
}

fn record(tag: u64, number: u64) -> [u8; RECORD_BYTES as usize] {
    let mixed = (tag ^ number.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut record = [0; RECORD_BYTES as usize];
    for (place, word) in record
        .chunks_mut(8)
        .zip([tag, number, mixed, mixed.rotate_left(29)])
    {
        place.copy_from_slice(&word.to_le_bytes());
    }
    record
}

/// The bytes of a file. Blocks that nobody wrote are holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytes {
    block_size: u64,
    size: u64,
    blocks: BTreeMap<u64, Box<[u8]>>,
    /// Blocks that have space without having been written.
    promised: BTreeSet<u64>,
}

impl Bytes {
    /// No bytes. Holes are whole blocks.
    #[must_use]
    pub fn new(block_size: u32) -> Self {
        Self {
            block_size: u64::from(block_size),
            size: 0,
            blocks: BTreeMap::new(),
            promised: BTreeSet::new(),
        }
    }

    /// Length.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Up to `length` bytes from `offset` on; fewer at the end.
    #[must_use]
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let left = self.size.saturating_sub(offset);
        let length = usize::try_from(left).map_or(length, |left| length.min(left));
        let mut bytes = vec![0; length];
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let within = (at % self.block_size) as usize;
            let count = (self.block_size as usize - within).min(length - done);
            if let Some(block) = self.blocks.get(&(at / self.block_size)) {
                bytes[done..done + count].copy_from_slice(&block[within..within + count]);
            }
            done += count;
        }
        bytes
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % self.block_size) as usize;
            let count = (self.block_size as usize - within).min(data.len() - done);
            let number = at / self.block_size;
            let size = self.block_size as usize;
            let block = self
                .blocks
                .entry(number)
                .or_insert_with(|| vec![0; size].into_boxed_slice());
            block[within..within + count].copy_from_slice(&data[done..done + count]);
            done += count;
        }
        self.size = self.size.max(offset + data.len() as u64);
    }

    /// Cuts off, or extends by a hole.
    pub fn set_size(&mut self, size: u64) {
        if size < self.size {
            let kept = size.div_ceil(self.block_size);
            self.blocks.split_off(&kept);
            self.promised.split_off(&kept);
            let within = (size % self.block_size) as usize;
            if within > 0
                && let Some(block) = self.blocks.get_mut(&(size / self.block_size))
            {
                block[within..].fill(0);
            }
        }
        self.size = size;
    }

    /// Gives the range space; the size grows to its end.
    pub fn promise(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let blocks = offset / self.block_size..end.div_ceil(self.block_size);
        self.promised.extend(blocks);
        self.size = self.size.max(end);
    }

    /// The runs of bytes that were written, whole blocks but for the file's end.
    #[must_use]
    pub fn written(&self) -> Vec<(u64, u64)> {
        self.runs(self.blocks.keys().copied())
    }

    /// The runs of whole blocks that may have space: written ones, and those that were promised.
    #[must_use]
    pub fn with_space(&self) -> Vec<(u64, u64)> {
        let blocks: BTreeSet<u64> = self.blocks.keys().chain(&self.promised).copied().collect();
        self.runs(blocks.into_iter())
    }

    fn runs(&self, blocks: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for block in blocks {
            let start = block * self.block_size;
            match runs.last_mut() {
                Some(last) if last.0 + last.1 == start => last.1 += self.block_size,
                _ => runs.push((start, self.block_size)),
            }
        }
        runs
    }
}
