//! Memory that is mapped, reached by copies alone: what [`crate::FileMap`] and [`crate::View`] share.
#![expect(
    unsafe_code,
    reason = "maps a file, and copies to and from where it is mapped"
)]

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::copy;

/// A mapping of a range of a file. Dropping it unmaps it.
///
/// Invariant: `len` bytes from `base` on are mapped by nobody else until it is dropped.
#[derive(Debug)]
pub(crate) struct Mapped {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is reached by copies and atomics
// alone, which bear other threads' stores.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps `len` bytes of `file` from byte `offset` on, where the kernel likes.
    ///
    /// `flags` must not hold FIXED: the mapping replaces nothing.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub(crate) fn new(
        file: impl AsFd,
        offset: u64,
        len: usize,
        access: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Self> {
        assert!(!flags.contains(MapFlags::FIXED), "it would replace others");
        // SAFETY: no address is asked for, so that the map replaces nothing; it is unmapped in
        // `drop` alone.
        let base = unsafe { mmap(std::ptr::null_mut(), len, access, flags, file, offset) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { base, len })
    }

    /// Bytes that are mapped, as asked for: the kernel maps whole pages.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where it begins.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Where `count` bytes from `at` on are mapped.
    ///
    /// # Panics
    /// They are not.
    pub(crate) fn place(&self, at: usize, count: usize) -> *mut u8 {
        let end = at.checked_add(count);
        assert!(end.is_some_and(|end| end <= self.len), "within the map");
        // SAFETY: `at` is at most `len`, and so many bytes are mapped.
        unsafe { self.base.as_ptr().add(at) }
    }

    /// Copies what is mapped from `at` on to `target`: each byte is faulted in if need be.
    ///
    /// # Panics
    /// The map ends before.
    pub(crate) fn load(&self, at: usize, target: &mut [u8]) {
        let source = self.place(at, target.len());
        // SAFETY: `source` is mapped for as many bytes, and `target` is nobody else's.
        unsafe { copy::from_shared(source, target.as_mut_ptr(), target.len()) }
    }

    /// Copies `source` to what is mapped from `at` on, for writing.
    ///
    /// # Panics
    /// The map ends before.
    pub(crate) fn store(&self, at: usize, source: &[u8]) {
        let target = self.place(at, source.len());
        // SAFETY: `target` is mapped for as many bytes, and nobody has a reference to them.
        unsafe { copy::to_shared(source.as_ptr(), target, source.len()) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let base = self.base.as_ptr().cast::<c_void>();
        // SAFETY: these bytes were mapped in `new`, and nothing points into them any more.
        let unmapped = unsafe { munmap(base, self.len) };
        debug_assert!(unmapped.is_ok(), "what was mapped can be unmapped");
    }
}
