//! A block device in memory, for tests and small images: sparse, and able to grow.

use std::io::{IoSlice, IoSliceMut};

use hashbrown::HashMap;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, RwLock};

use crate::device::{Capabilities, Device, DeviceError, Operation, Result};

/// Bytes that are kept or missing together.
const CHUNK_BYTES: usize = 64 << 10;

/// A sparse device in memory; what was never written reads as zeros. Everything that was
/// written is durable at once, for as long as the device lives.
#[derive(Debug)]
pub struct MemoryDevice {
    size: AtomicU64,
    /// Shared between forks until one of them writes.
    chunks: RwLock<HashMap<u64, Arc<[u8]>>>,
}

impl MemoryDevice {
    /// A device of `size` bytes, all zero. It takes no memory until it is written.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size: AtomicU64::new(size),
            chunks: RwLock::new(HashMap::new()),
        }
    }

    /// A device that holds `bytes`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let device = Self::new(bytes.len() as u64);
        let mut chunks = device.chunks.write();
        for (number, piece) in (0_u64..).zip(bytes.chunks(CHUNK_BYTES)) {
            if piece.iter().any(|byte| *byte != 0) {
                let mut chunk = empty_chunk();
                Arc::make_mut(&mut chunk)[..piece.len()].copy_from_slice(piece);
                chunks.insert(number, chunk);
            }
        }
        drop(chunks);
        device
    }

    /// A device of its own with the same contents. Cheap: memory is shared until written.
    #[must_use]
    pub fn fork(&self) -> Self {
        let chunks = self.chunks.read();
        Self {
            size: AtomicU64::new(self.size()),
            chunks: RwLock::new(chunks.clone()),
        }
    }

    /// Everything on the device.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size() as usize];
        self.copy_out(0, &mut bytes);
        bytes
    }

    /// Makes the device `size` bytes long if it is shorter.
    pub fn grow(&self, size: u64) {
        self.size.fetch_max(size, Ordering::AcqRel);
    }

    /// Bytes of memory that the contents take.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        (self.chunks.read().len() * CHUNK_BYTES) as u64
    }

    fn check(&self, operation: Operation, offset: u64, length: u64) -> Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(DeviceError {
                operation,
                offset,
                length,
                source: std::io::Error::new(
                    std::io::ErrorKind::UnexpectedEof,
                    "past the end of the device",
                ),
            }),
        }
    }

    fn copy_out(&self, mut offset: u64, mut target: &mut [u8]) {
        let chunks = self.chunks.read();
        while !target.is_empty() {
            let within = (offset % CHUNK_BYTES as u64) as usize;
            let count = target.len().min(CHUNK_BYTES - within);
            let (now, later) = target.split_at_mut(count);
            match chunks.get(&(offset / CHUNK_BYTES as u64)) {
                Some(chunk) => now.copy_from_slice(&chunk[within..within + count]),
                None => now.fill(0),
            }
            offset += count as u64;
            target = later;
        }
    }

    fn zero(&self, mut offset: u64, length: u64) {
        let end = offset + length;
        let mut chunks = self.chunks.write();
        while offset < end {
            let number = offset / CHUNK_BYTES as u64;
            let within = (offset % CHUNK_BYTES as u64) as usize;
            let count = (end - offset).min((CHUNK_BYTES - within) as u64) as usize;
            if count == CHUNK_BYTES {
                chunks.remove(&number);
            } else if let Some(chunk) = chunks.get_mut(&number) {
                Arc::make_mut(chunk)[within..within + count].fill(0);
            }
            offset += count as u64;
        }
    }
}

fn empty_chunk() -> Arc<[u8]> {
    vec![0; CHUNK_BYTES].into()
}

impl Device for MemoryDevice {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: false,
            alignment: 1,
            discard: true,
            write_zeroes: true,
            queue_depth: 1,
        }
    }

    fn read_vectored(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        self.check(Operation::Read, offset, length)?;
        let mut at = offset;
        for buffer in buffers {
            self.copy_out(at, buffer);
            at += buffer.len() as u64;
        }
        Ok(())
    }

    fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        self.check(Operation::Write, offset, length)?;
        let mut chunks = self.chunks.write();
        let mut at = offset;
        for buffer in buffers {
            let mut source: &[u8] = buffer;
            while !source.is_empty() {
                let within = (at % CHUNK_BYTES as u64) as usize;
                let count = source.len().min(CHUNK_BYTES - within);
                let chunk = chunks
                    .entry(at / CHUNK_BYTES as u64)
                    .or_insert_with(empty_chunk);
                Arc::make_mut(chunk)[within..within + count].copy_from_slice(&source[..count]);
                at += count as u64;
                source = &source[count..];
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.check(Operation::Discard, offset, length)?;
        self.zero(offset, length);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.check(Operation::WriteZeroes, offset, length)?;
        self.zero(offset, length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{CHUNK_BYTES, MemoryDevice};
    use crate::device::Device;

    proptest! {
        #[test]
        fn behaves_as_a_vector(
            steps in prop::collection::vec(
                (0_usize..3 * CHUNK_BYTES, 0_usize..2 * CHUNK_BYTES, 0_u8..3, any::<u8>()),
                1..20,
            ),
        ) {
            let size = 3 * CHUNK_BYTES;
            let device = MemoryDevice::new(size as u64);
            let mut model = vec![0_u8; size];
            for (offset, length, kind, byte) in steps {
                let outcome = match kind {
                    0 => device.write(offset as u64, &vec![byte; length]),
                    1 => device.write_zeroes(offset as u64, length as u64),
                    _ => device.discard(offset as u64, length as u64),
                };
                prop_assert_eq!(outcome.is_ok(), offset + length <= size);
                if outcome.is_ok() {
                    model[offset..offset + length].fill(if kind == 0 { byte } else { 0 });
                }
                let mut back = vec![0xaa; length];
                if device.read(offset as u64, &mut back).is_ok() {
                    prop_assert_eq!(&back, &model[offset..offset + length]);
                }
            }
            prop_assert_eq!(device.to_vec(), &model[..]);
            prop_assert_eq!(MemoryDevice::from_bytes(&model).to_vec(), model);
        }
    }

    #[test]
    fn forks_part_when_written() {
        let device = MemoryDevice::from_bytes(&[7; 1000]);
        let fork = device.fork();
        device.write(0, b"a").unwrap();
        fork.write_zeroes(1, 1).unwrap();
        assert_eq!(device.to_vec()[..3], [b'a', 7, 7]);
        assert_eq!(fork.to_vec()[..3], [7, 0, 7]);
    }

    #[test]
    fn is_sparse_and_grows() {
        let device = MemoryDevice::new(1 << 40);
        assert_eq!(device.memory_bytes(), 0);
        device.write((1 << 40) - 1, b"x").unwrap();
        assert_eq!(device.memory_bytes(), CHUNK_BYTES as u64);
        assert!(device.write(1 << 40, b"x").is_err());
        device.grow((1 << 40) + 1);
        device.write(1 << 40, b"x").unwrap();
        assert!(device.read(u64::MAX, &mut [0]).is_err());
    }
}
