//! A private buffer of whole pages, aligned as devices like it.
//!
//! Published frames are copied here before they are written out: a device wants slices, and of a
//! published frame there are none (see [`crate`]). The copy costs a fraction of what the device
//! does, and gives every write one contiguous, aligned piece of memory, whatever frames the pages
//! lie in.
#![expect(unsafe_code, reason = "views an array of aligned pages as bytes")]

use std::ops::{Deref, DerefMut};

use crate::FRAME_SIZE;

#[derive(Clone, Debug)]
#[repr(C, align(4096))]
struct Page([u8; FRAME_SIZE]);

const _: () = assert!(size_of::<Page>() == FRAME_SIZE && align_of::<Page>() == FRAME_SIZE);

/// Whole pages of private memory, aligned to [`FRAME_SIZE`].
#[derive(Debug)]
pub struct PageBuffer(Vec<Page>);

impl PageBuffer {
    /// A buffer of `pages` pages of zeros.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        Self(vec![Page([0; FRAME_SIZE]); pages])
    }

    /// Its length in pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.0.len()
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let len = self.0.len() * FRAME_SIZE;
        // SAFETY: the elements are `len` initialised bytes in a row (`Page` is an array of bytes
        // without padding, by the assertion above), borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), len) }
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.0.len() * FRAME_SIZE;
        // SAFETY: as in `deref`, and the borrow is exclusive; any byte is a valid one.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::PageBuffer;
    use crate::FRAME_SIZE;

    #[test]
    fn is_aligned_zeroed_and_as_long_as_asked_for() {
        for pages in [0, 1, 3, 64] {
            let mut buffer = PageBuffer::new(pages);
            assert_eq!(buffer.pages(), pages);
            assert_eq!(buffer.len(), pages * FRAME_SIZE);
            assert_eq!(buffer.as_ptr().align_offset(FRAME_SIZE), 0);
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|&byte| byte == 7));
        }
    }
}
