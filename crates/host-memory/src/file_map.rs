//! A file mapped shared, as programs map it: for what drives a mount from outside, and for tests.
//!
//! Nothing hands out a reference to mapped bytes, since other processes and the file system change
//! them at any time: they are copied in and out, as [`crate::copy`] does it.
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

/// A range of a file that is mapped shared, for loads and stores. Dropping it unmaps it.
///
/// Invariant: `len` bytes from `base` on are mapped by nobody else until it is dropped.
#[derive(Debug)]
pub struct FileMap {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the map belongs to the process, not to a thread, and is reached by copies alone, which
// bear other threads' stores.
unsafe impl Send for FileMap {}
// SAFETY: as above.
unsafe impl Sync for FileMap {}

impl FileMap {
    /// Maps `len` bytes of `file`, open for reading and writing, from byte `offset` on, a multiple of
    /// the page size. They may reach past the end of the file; who loads or stores there, or where it
    /// has been cut off since, is sent SIGBUS by the kernel.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn new(file: impl AsFd, offset: u64, len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so that the map replaces nothing; it is unmapped in
        // `drop` alone.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                access,
                MapFlags::SHARED,
                file,
                offset,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { base, len })
    }

    /// Bytes that are mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no bytes are mapped; mmap refuses that.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where `count` bytes from `at` on are mapped.
    ///
    /// # Panics
    /// They are not.
    fn place(&self, at: usize, count: usize) -> *mut u8 {
        let end = at.checked_add(count);
        assert!(end.is_some_and(|end| end <= self.len), "within the map");
        // SAFETY: `at` is at most `len`, and so many bytes are mapped.
        unsafe { self.base.as_ptr().add(at) }
    }

    /// Copies what is mapped from `at` on to `target`: each byte is faulted in if need be.
    ///
    /// # Panics
    /// The map ends before.
    pub fn load(&self, at: usize, target: &mut [u8]) {
        let source = self.place(at, target.len());
        // SAFETY: `source` is mapped for as many bytes, and `target` is nobody else's.
        unsafe { copy::from_shared(source, target.as_mut_ptr(), target.len()) }
    }

    /// Copies `source` to what is mapped from `at` on.
    ///
    /// # Panics
    /// The map ends before.
    pub fn store(&self, at: usize, source: &[u8]) {
        let target = self.place(at, source.len());
        // SAFETY: `target` is mapped for as many bytes, and nobody has a reference to them.
        unsafe { copy::to_shared(source.as_ptr(), target, source.len()) }
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        let base = self.base.as_ptr().cast::<c_void>();
        // SAFETY: these bytes were mapped in `new`, and nothing points into them any more.
        let unmapped = unsafe { munmap(base, self.len) };
        debug_assert!(unmapped.is_ok(), "what was mapped can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(name: &str) -> std::fs::File {
        let name = format!("pagefence-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .expect("a new file");
        std::fs::remove_file(&path).expect("its name");
        file
    }

    #[test]
    fn stores_are_the_files_bytes_and_its_bytes_are_loaded() {
        let file = file("stores");
        file.set_len(10_000).expect("a size");
        let map = FileMap::new(&file, 4096, 4096).expect("a map");
        map.store(4000, b"stored");
        let mut found = [0; 6];
        file.read_exact_at(&mut found, 8096).expect("bytes");
        assert_eq!(&found, b"stored");
        file.write_all_at(b"loaded", 4096).expect("room");
        map.load(0, &mut found);
        assert_eq!(&found, b"loaded");
        assert_eq!((map.len(), map.is_empty()), (4096, false));
    }

    #[test]
    #[should_panic(expected = "within the map")]
    fn nothing_is_loaded_from_behind_the_map() {
        let file = file("behind");
        file.set_len(4096).expect("a size");
        let map = FileMap::new(&file, 0, 4096).expect("a map");
        map.load(4090, &mut [0; 7]);
    }

    #[test]
    fn what_cannot_be_mapped_is_told() {
        let file = file("odd");
        assert!(FileMap::new(&file, 1, 4096).is_err());
        assert!(FileMap::new(&file, 0, 0).is_err());
    }
}
