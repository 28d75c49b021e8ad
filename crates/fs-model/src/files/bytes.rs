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

    /// Makes the range read as zeros; whole blocks of it become holes. The size stays.
    pub fn clear(&mut self, offset: u64, length: u64) {
        let end = offset.saturating_add(length);
        let whole = offset.div_ceil(self.block_size)..end / self.block_size;
        let inside: Vec<u64> = match whole.is_empty() {
            true => Vec::new(),
            false => self
                .blocks
                .range(whole)
                .map(|(&number, _)| number)
                .collect(),
        };
        for number in inside {
            self.blocks.remove(&number);
        }
        for number in [offset / self.block_size, end / self.block_size] {
            let start = number * self.block_size;
            let from = offset.clamp(start, start + self.block_size) - start;
            let to = end.clamp(start, start + self.block_size) - start;
            if let Some(block) = self.blocks.get_mut(&number) {
                block[from as usize..to as usize].fill(0);
            }
        }
    }

    /// Takes a range of whole blocks, which ends before the end of the file, out: what follows moves
    /// there.
    pub fn collapse(&mut self, offset: u64, length: u64) {
        assert!(offset + length < self.size, "the range ends in the file");
        let (first, count) = self.whole(offset, length);
        let behind = self.blocks.split_off(&(first + count));
        self.blocks.split_off(&first);
        let moved = behind
            .into_iter()
            .map(|(number, block)| (number - count, block));
        self.blocks.extend(moved);
        let behind = self.promised.split_off(&(first + count));
        self.promised.split_off(&first);
        self.promised
            .extend(behind.into_iter().map(|number| number - count));
        self.size -= length;
    }

    /// Puts a hole of whole blocks in before the end of the file: what is there moves behind it.
    pub fn insert(&mut self, offset: u64, length: u64) {
        assert!(offset < self.size, "the range begins in the file");
        let (first, count) = self.whole(offset, length);
        let behind = self.blocks.split_off(&first);
        let moved = behind
            .into_iter()
            .map(|(number, block)| (number + count, block));
        self.blocks.extend(moved);
        let behind = self.promised.split_off(&first);
        self.promised
            .extend(behind.into_iter().map(|number| number + count));
        self.size += length;
    }

    /// Whole blocks of the range and as many of `other` change places; the sizes stay.
    pub fn exchange(&mut self, offset: u64, other: &mut Self, other_offset: u64, length: u64) {
        let (first, count) = self.whole(offset, length);
        let (other_first, _) = other.whole(other_offset, length);
        for number in 0..count {
            let (mine, theirs) = (first + number, other_first + number);
            let blocks = (self.blocks.remove(&mine), other.blocks.remove(&theirs));
            self.blocks.extend(blocks.1.map(|block| (mine, block)));
            other.blocks.extend(blocks.0.map(|block| (theirs, block)));
            let promised = (self.promised.remove(&mine), other.promised.remove(&theirs));
            self.promised.extend(promised.1.then_some(mine));
            other.promised.extend(promised.0.then_some(theirs));
        }
    }

    /// The first block of a range, and how many there are.
    fn whole(&self, offset: u64, length: u64) -> (u64, u64) {
        let size = self.block_size;
        assert_eq!((offset % size, length % size), (0, 0), "whole blocks");
        (offset / size, length / size)
    }

    /// Gives the range space; the size stays.
    pub fn reserve(&mut self, offset: u64, length: u64) {
        let size = self.size;
        self.promise(offset, length);
        self.size = size;
    }

    /// Whether space was promised that nobody may have written to.
    #[must_use]
    pub fn may_have_unwritten(&self) -> bool {
        !self.promised.is_empty()
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

#[cfg(test)]
mod tests {
    use super::{Bytes, contents};

    /// A file beside the plain bytes of it.
    fn file() -> (Bytes, Vec<u8>) {
        let plain = contents(7, 0, 10_500);
        let mut bytes = Bytes::new(1024);
        bytes.write(0, &plain);
        (bytes, plain)
    }

    #[test]
    fn a_range_of_any_ends_is_cleared() {
        let ranges = [
            (0, 1024),
            (100, 50),
            (1000, 5000),
            (2048, 4096),
            (10_400, 900),
            (0, 20_000),
        ];
        for (offset, length) in ranges {
            let (mut bytes, mut plain) = file();
            bytes.clear(offset, length);
            let end = plain.len().min((offset + length) as usize);
            plain[offset as usize..end].fill(0);
            assert_eq!(bytes.read(0, 20_000), plain, "{offset} {length}");
        }
    }

    #[test]
    fn what_follows_moves() {
        let (mut bytes, mut plain) = file();
        bytes.collapse(1024, 3072);
        plain.drain(1024..4096);
        assert_eq!(bytes.read(0, 20_000), plain);
        bytes.insert(2048, 2048);
        plain.splice(2048..2048, vec![0; 2048]);
        assert_eq!(bytes.read(0, 20_000), plain);
        assert_eq!(bytes.written()[0], (0, 2048));
    }

    #[test]
    fn blocks_change_places() {
        let ((mut one, mut plain), mut other) = (file(), Bytes::new(1024));
        other.set_size(4096);
        one.exchange(2048, &mut other, 1024, 2048);
        assert_eq!(other.read(1024, 2048), plain[2048..4096]);
        plain[2048..4096].fill(0);
        assert_eq!((one.read(0, 20_000), other.size()), (plain, 4096));
    }
}
