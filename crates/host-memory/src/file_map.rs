//! A file mapped shared, as programs map it: for what drives a mount from outside, and for tests.
//!
//! Nothing hands out a reference to mapped bytes, since other processes and the file system change
//! them at any time: they are copied in and out, as [`crate::copy`] does it.

use std::io;
use std::os::fd::AsFd;

use rustix::mm::{MapFlags, ProtFlags};

use crate::mapped::Mapped;

/// A range of a file that is mapped shared, for loads and stores. Dropping it unmaps it.
#[derive(Debug)]
pub struct FileMap(Mapped);

impl FileMap {
    /// Maps `len` bytes of `file`, open for reading and writing, from byte `offset` on, a multiple of
    /// the page size. They may reach past the end of the file; who loads or stores there, or where it
    /// has been cut off since, is sent SIGBUS by the kernel.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn new(file: impl AsFd, offset: u64, len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        Mapped::new(file, offset, len, access, MapFlags::SHARED).map(Self)
    }

    /// Bytes that are mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no bytes are mapped; mmap refuses that.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies what is mapped from `at` on to `target`: each byte is faulted in if need be.
    ///
    /// # Panics
    /// The map ends before.
    pub fn load(&self, at: usize, target: &mut [u8]) {
        self.0.load(at, target);
    }

    /// Copies `source` to what is mapped from `at` on.
    ///
    /// # Panics
    /// The map ends before.
    pub fn store(&self, at: usize, source: &[u8]) {
        self.0.store(at, source);
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
