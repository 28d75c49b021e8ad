//! Bytes whose address is a multiple of a device's alignment, so that a device opened with
//! O_DIRECT can transfer to and from them with no copy.

use std::ops::{Deref, DerefMut};

/// A fixed number of bytes at an aligned address.
pub struct AlignedBytes {
    /// `length` bytes and the slack that the alignment takes. Never resized: its address stays.
    storage: Box<[u8]>,
    start: usize,
    length: usize,
}

impl AlignedBytes {
    /// `length` zero bytes at an address that is a multiple of `alignment` (a power of two; 1 for
    /// none).
    ///
    /// # Panics
    ///
    /// If `alignment` is no power of two.
    #[must_use]
    pub fn zeroed(length: usize, alignment: usize) -> Self {
        assert!(alignment.is_power_of_two(), "alignment {alignment}");
        let storage = vec![0_u8; length + alignment - 1].into_boxed_slice();
        let start = storage.as_ptr().align_offset(alignment);
        // `align_offset` may decline (it does so only in const evaluation): then the bytes are
        // unaligned, and the device bounces them.
        let start = if start < alignment { start } else { 0 };
        Self {
            storage,
            start,
            length,
        }
    }

    /// A copy of `bytes`, aligned.
    #[must_use]
    pub fn copy_of(bytes: &[u8], alignment: usize) -> Self {
        let mut copy = Self::zeroed(bytes.len(), alignment);
        copy.copy_from_slice(bytes);
        copy
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.length]
    }
}

impl std::fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBytes")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::AlignedBytes;

    #[test]
    fn address_is_aligned_and_length_exact() {
        for alignment in [1, 2, 512, 4096, 65536] {
            for length in [0, 1, 511, 4096] {
                let mut bytes = AlignedBytes::zeroed(length, alignment);
                assert_eq!(bytes.len(), length);
                assert_eq!(bytes.as_ptr().addr() % alignment, 0);
                bytes.fill(7);
                let moved = std::hint::black_box(bytes);
                assert_eq!(moved.as_ptr().addr() % alignment, 0);
                assert!(moved.iter().all(|byte| *byte == 7));
            }
        }
    }
}
