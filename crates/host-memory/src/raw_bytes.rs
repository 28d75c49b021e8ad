//! Bytes of a view as a slice, for who can answer for it.
#![expect(unsafe_code, reason = "makes a slice of mapped memory")]

use crate::view::View;

/// Bytes of a [`View`], by their address. Copying is what [`View::load`] is for; this is for code that
/// takes a pointer, or a `&[u8]`, and for callers who can keep the contract of either.
#[derive(Clone, Copy, Debug)]
pub struct RawBytes<'a> {
    view: &'a View,
    at: usize,
    len: usize,
}

impl View {
    /// The `len` bytes from `at` on.
    ///
    /// # Panics
    /// The view ends before.
    #[must_use]
    pub fn raw(&self, at: usize, len: usize) -> RawBytes<'_> {
        let end = at.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len()), "within the view");
        RawBytes {
            view: self,
            at,
            len,
        }
    }
}

impl<'a> RawBytes<'a> {
    /// Where they begin. See [`View::as_ptr`] for what goes with it.
    #[must_use]
    pub fn as_ptr(self) -> *mut u8 {
        // SAFETY: `raw` checked that so many bytes are mapped before them.
        unsafe { self.view.as_ptr().add(self.at) }
    }

    /// How many there are.
    #[must_use]
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The bytes, as if they were memory like any other.
    ///
    /// # Safety
    ///
    /// For as long as the slice, or anything made from it, lives:
    ///
    /// - **Nobody changes these bytes**: no store through this or another map, of this or another
    ///   process; no write, punch, truncate, collapse or whatever else changes that part of the file. A
    ///   slice whose bytes change is undefined behaviour, whether or not they are looked at. (A store to
    ///   the file past a private map's own copy of a page does not change that; one before the copy
    ///   was made does.)
    /// - **They lie inside the file**, and the device can be read: a load of a page past its end, or of
    ///   one that can't be read, is answered by SIGBUS, which ends the process.
    /// - **They go to no system call** (write(2), say) unless the map serves the faults of system calls:
    ///   where a page is not mapped at that moment, the call fails with EFAULT.
    /// - **Who looks at them holds no lock** that serving a fault needs: none inside a call of the file
    ///   system that owns the file, from a device of one's own, say.
    #[must_use]
    pub unsafe fn as_bytes(self) -> &'a [u8] {
        // SAFETY: they are mapped and readable for as long as the view is borrowed; that they don't
        // change is the caller's contract.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::{FileMemory, ViewKind};

    #[test]
    fn a_slice_is_what_the_memory_has() {
        let memory = FileMemory::new().expect("memory");
        memory.write(3, 10, b"pagefence");
        let view = View::new(&memory, 3, 100, ViewKind::SharedReadOnly).expect("a view");
        let bytes = view.raw(10, 9);
        assert_eq!((bytes.len(), bytes.is_empty()), (9, false));
        assert!(view.raw(100, 0).is_empty());
        assert_eq!(bytes.as_ptr().addr(), view.as_ptr().addr() + 10);
        // SAFETY: nobody else has the memory, and nobody writes to it.
        assert_eq!(unsafe { bytes.as_bytes() }, b"pagefence");
    }

    #[test]
    #[should_panic(expected = "within the view")]
    fn no_slice_reaches_past_a_view() {
        let memory = FileMemory::new().expect("memory");
        let view = View::new(&memory, 0, 100, ViewKind::SharedReadOnly).expect("a view");
        let _ = view.raw(99, 2);
    }
}
