//! A user's view of a file's memory: a mapping of a page range of a [`FileMemory`].
//!
//! Pages are named by their number in the file. Nothing hands out a reference to mapped bytes, since
//! other threads change them at any time: they are copied in and out, as [`crate::copy`] does it, or
//! reached by atomics.
#![expect(
    unsafe_code,
    reason = "advises on mapped memory, and makes atomics of it"
)]

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use pagefence_lock_order::primitives::Arc;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mprotect, munlock};

use crate::FRAME_SIZE;
use crate::mapped::Mapped;
use crate::memory::FileMemory;

const PAGE: u64 = FRAME_SIZE as u64;

/// What a view is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewKind {
    /// Loads, and stores that everybody sees.
    Shared,
    /// Loads alone.
    SharedReadOnly,
    /// Loads, and stores that this view alone sees: the kernel copies a page at its first store.
    Private,
    /// Loads alone, by a descriptor that is open for reading alone.
    PrivateReadOnly,
}

impl ViewKind {
    /// Whether the view may be stored to.
    fn stores(self) -> bool {
        matches!(self, Self::Shared | Self::Private)
    }

    /// Whether the kernel maps it shared, so that stores can be protected against.
    pub(crate) fn is_mapped_shared(self) -> bool {
        matches!(self, Self::Shared | Self::SharedReadOnly)
    }
}

/// A mapping of a page range of a file's memory. Dropping it unmaps it.
///
/// It is not inherited by children of a fork, who would fault past the handler and fill holes with
/// zeros; huge pages are off; its pages are not locked in memory, even after mlockall(2), since the
/// page cache decides which are.
///
/// A load or a store of a page that isn't mapped waits for the handler of faults, if the view is
/// registered with a [`crate::Userfault`]; else it fills a hole with zeros. A poisoned page is answered
/// by SIGBUS. Client memory: touch it with no lock held that the handler needs.
#[derive(Debug)]
pub struct View {
    mapped: Mapped,
    first: u64,
    kind: ViewKind,
}

impl View {
    /// Maps `bytes` bytes of `memory` from page `first_page` on.
    ///
    /// # Errors
    /// `InvalidInput` if that is nothing, or reaches past the last page; else those of mmap(2).
    pub fn new(
        memory: &Arc<FileMemory>,
        first_page: u64,
        bytes: usize,
        kind: ViewKind,
    ) -> io::Result<Self> {
        Self::of_fd(memory.fd(), first_page, bytes, kind)
    }

    /// Maps `bytes` bytes from page `first_page` on of memory that another process owns and handed
    /// the descriptor of. One that is open for reading only can be mapped private alone, if the view
    /// shall be registered: else registering gives EPERM.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_fd(fd: impl AsFd, first_page: u64, bytes: usize, kind: ViewKind) -> io::Result<Self> {
        let pages = u64::try_from(bytes).ok().map(|bytes| bytes.div_ceil(PAGE));
        let end = pages.and_then(|pages| first_page.checked_add(pages));
        if bytes == 0 || end.is_none_or(|end| end > FileMemory::PAGES) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = if kind.is_mapped_shared() {
            MapFlags::SHARED
        } else {
            MapFlags::PRIVATE
        };
        // Without access at first: in a process that asked for its memory to be locked
        // (MCL_FUTURE) the kernel would fill every hole of the range with zeros, before it is
        // registered. Unlocked, it is made accessible.
        let mapped = Mapped::new(fd, first_page * PAGE, bytes, ProtFlags::empty(), flags)?;
        let view = Self {
            mapped,
            first: first_page,
            kind,
        };
        let (base, len) = view.whole();
        let access = if kind.stores() {
            MprotectFlags::READ | MprotectFlags::WRITE
        } else {
            MprotectFlags::READ
        };
        // SAFETY: the range is this view's mapping, to which nobody has a pointer yet.
        unsafe {
            munlock(base, len)?;
            madvise(base, len, Advice::LinuxDontFork)?;
            match madvise(base, len, Advice::LinuxNoHugepage) {
                // The kernel was built without them.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(errno.into()),
            }
            mprotect(base, len, access)?;
        }
        Ok(view)
    }

    /// Bytes of the view, as asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mapped.len()
    }

    /// Whether it has no bytes; such a view can't be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pages of the file that it shows; of the last one perhaps a part.
    #[must_use]
    pub fn pages(&self) -> Range<u64> {
        self.first..self.first + page_count(self.len())
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> ViewKind {
        self.kind
    }

    /// Where it begins.
    ///
    /// Who dereferences it answers for that: no reference to bytes of a view, since others store to
    /// them at any time (copy by volatile or atomic accesses); only while the view lives; within
    /// [`Self::len`]; no store to a view for loads alone; and nothing that changes the
    /// mapping itself (munmap, mremap, mprotect, madvise, mlock): a page of it may be zapped at any
    /// time, which must not hit somebody else's memory.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapped.base()
    }

    /// Copies from byte `at` of the view on to `target`: each page is faulted in if need be.
    ///
    /// # Panics
    /// The view ends before.
    pub fn load(&self, at: usize, target: &mut [u8]) {
        self.mapped.load(at, target);
    }

    /// Copies `source` to byte `at` of the view on.
    ///
    /// # Panics
    /// The view ends before, or is for loads alone.
    pub fn store(&self, at: usize, source: &[u8]) {
        self.assert_writable();
        self.mapped.store(at, source);
    }

    /// Takes what is mapped of `pages` of the file out of this view; the memory keeps its pages, a
    /// private copy and a poisoned page are gone for good. The next access faults.
    ///
    /// Pages that are not of the view are none of its business. Waits for the process's map lock,
    /// shared.
    ///
    /// # Panics
    /// The operating system refuses, which it has no reason to.
    pub fn zap(&self, pages: Range<u64>) {
        let Some((start, len)) = self.range(pages) else {
            return;
        };
        // SAFETY: the range is of this view's mapping. Its bytes change under those who copy them,
        // as they do by other threads' stores; no reference to them exists.
        let zapped = unsafe {
            match madvise(start, len, Advice::LinuxDontNeed) {
                // The user has locked them (mlock), which is for the page cache to decide.
                Err(Errno::INVAL) => {
                    munlock(start, len).and_then(|()| madvise(start, len, Advice::LinuxDontNeed))
                }
                done => done,
            }
        };
        match zapped {
            // Not mapped any more, in part: the rest was zapped.
            Ok(()) | Err(Errno::NOMEM) => {}
            Err(errno) => panic!("a mapped page can't be taken away: {errno}"),
        }
    }

    /// Where those of `pages` that are of the view are mapped: whole pages. `None` if none is.
    pub(crate) fn range(&self, pages: Range<u64>) -> Option<(*mut c_void, usize)> {
        let shown = self.pages();
        let (start, end) = (pages.start.max(shown.start), pages.end.min(shown.end));
        if start >= end {
            return None;
        }
        let bytes = |pages: u64| usize::try_from(pages * PAGE).expect("within what is mapped");
        let start_byte = bytes(start - shown.start);
        // SAFETY: the page begins inside the view.
        let address = unsafe { self.as_ptr().add(start_byte) };
        Some((address.cast(), bytes(end - start)))
    }

    /// The mapping, in whole pages.
    fn whole(&self) -> (*mut c_void, usize) {
        (
            self.as_ptr().cast(),
            self.len().next_multiple_of(FRAME_SIZE),
        )
    }

    fn assert_writable(&self) {
        assert!(self.kind.stores(), "a store to a view for loads alone");
    }
}

fn page_count(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(FRAME_SIZE)).expect("usize has 64 bits or less")
}

/// Atomics in a view: each access is one access of memory, ordered as asked for with those of every
/// thread and process that maps the page.
///
/// Not under shuttle, whose atomics can't be made of a pointer.
#[cfg(not(shuttle))]
mod atomics {
    use pagefence_lock_order::primitives::atomic::{
        AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering,
    };

    use super::View;

    /// Methods that load and store one integer.
    macro_rules! load_store {
        ($($integer:ident, $atomic:ident, $load:ident, $store:ident;)*) => {
            impl View {$(
                #[doc = concat!("Loads the `", stringify!($integer), "` at byte `at`, atomically.")]
                ///
                /// # Panics
                /// It is not inside the view, or not aligned to its size; or as the atomic's `load`
                /// does for an ordering that loads don't have.
                #[must_use]
                pub fn $load(&self, at: usize, ordering: Ordering) -> $integer {
                    let pointer = self.aligned::<$integer>(at);
                    // SAFETY: `aligned` checked that the integer is mapped and aligned; everybody in
                    // this process reaches it by atomics or by the copies of this crate.
                    unsafe { $atomic::from_ptr(pointer) }.load(ordering)
                }

                #[doc = concat!("Stores the `", stringify!($integer), "` at byte `at`, atomically.")]
                ///
                /// # Panics
                #[doc = concat!("As [`Self::", stringify!($load), "`], or the view is for loads alone.")]
                pub fn $store(&self, at: usize, value: $integer, ordering: Ordering) {
                    self.assert_writable();
                    let pointer = self.aligned::<$integer>(at);
                    // SAFETY: as for loads, and it is mapped for writing.
                    unsafe { $atomic::from_ptr(pointer) }.store(value, ordering);
                }
            )*}
        };
    }

    /// Methods that read and change one integer in one step.
    macro_rules! change {
        ($($integer:ident, $atomic:ident, $add:ident, $exchange:ident;)*) => {
            impl View {$(
                #[doc = concat!("Adds to the `", stringify!($integer), "` at byte `at`, wrapping; gives what was there.")]
                ///
                /// # Panics
                /// It is not inside the view, or not aligned to its size, or the view is for loads alone.
                pub fn $add(&self, at: usize, value: $integer, ordering: Ordering) -> $integer {
                    self.assert_writable();
                    let pointer = self.aligned::<$integer>(at);
                    // SAFETY: `aligned` checked that the integer is mapped and aligned, and it is for
                    // writing; everybody in this process reaches it by atomics or by the copies of
                    // this crate.
                    unsafe { $atomic::from_ptr(pointer) }.fetch_add(value, ordering)
                }

                #[doc = concat!("Replaces the `", stringify!($integer), "` at byte `at` by `new` if it is `current`.")]
                ///
                /// # Errors
                /// What it is, if it is not `current`.
                ///
                /// # Panics
                #[doc = concat!("As [`Self::", stringify!($add), "`]; or as the atomic's `compare_exchange` does for")]
                /// an ordering that loads don't have.
                pub fn $exchange(
                    &self,
                    at: usize,
                    current: $integer,
                    new: $integer,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$integer, $integer> {
                    self.assert_writable();
                    let pointer = self.aligned::<$integer>(at);
                    // SAFETY: as for additions.
                    unsafe { $atomic::from_ptr(pointer) }.compare_exchange(current, new, success, failure)
                }
            )*}
        };
    }

    load_store! {
        u8, AtomicU8, load_u8, store_u8;
        u16, AtomicU16, load_u16, store_u16;
        u32, AtomicU32, load_u32, store_u32;
        u64, AtomicU64, load_u64, store_u64;
    }

    change! {
        u8, AtomicU8, fetch_add_u8, compare_exchange_u8;
        u16, AtomicU16, fetch_add_u16, compare_exchange_u16;
        u32, AtomicU32, fetch_add_u32, compare_exchange_u32;
        u64, AtomicU64, fetch_add_u64, compare_exchange_u64;
    }

    impl View {
        /// Where an integer at byte `at` is mapped.
        fn aligned<T>(&self, at: usize) -> *mut T {
            // The view begins on a page, so that offsets are aligned as addresses are.
            assert!(
                at.is_multiple_of(size_of::<T>()),
                "byte {at} is no place for an atomic of {} bytes: it is not aligned",
                size_of::<T>()
            );
            self.mapped.place(at, size_of::<T>()).cast()
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
