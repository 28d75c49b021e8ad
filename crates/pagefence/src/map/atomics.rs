//! Atomic integers in a map.

use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_page_mmap::View;

use super::problem::Problem;
use super::{Map, Use};
use crate::error::Result;

/// An integer that a map can hold an atomic of: `u8`, `u16`, `u32` or `u64`, in the byte order of the
/// processor.
pub trait MapInteger: Atomic {}

/// What such an integer does in a view, at an aligned place inside it.
pub trait Atomic: Copy {
    #[doc(hidden)]
    fn load(view: &View, at: usize, ordering: Ordering) -> Self;
    #[doc(hidden)]
    fn store(self, view: &View, at: usize, ordering: Ordering);
    #[doc(hidden)]
    fn fetch_add(self, view: &View, at: usize, ordering: Ordering) -> Self;
    #[doc(hidden)]
    fn compare_exchange(
        self,
        new: Self,
        view: &View,
        at: usize,
        success: Ordering,
        failure: Ordering,
    ) -> std::result::Result<Self, Self>;
}

macro_rules! integers {
    ($($integer:ident, $load:ident, $store:ident, $add:ident, $exchange:ident;)*) => {$(
        impl MapInteger for $integer {}

        impl Atomic for $integer {
            fn load(view: &View, at: usize, ordering: Ordering) -> Self {
                view.$load(at, ordering)
            }

            fn store(self, view: &View, at: usize, ordering: Ordering) {
                view.$store(at, self, ordering);
            }

            fn fetch_add(self, view: &View, at: usize, ordering: Ordering) -> Self {
                view.$add(at, self, ordering)
            }

            fn compare_exchange(
                self,
                new: Self,
                view: &View,
                at: usize,
                success: Ordering,
                failure: Ordering,
            ) -> std::result::Result<Self, Self> {
                view.$exchange(at, self, new, success, failure)
            }
        }
    )*};
}

integers! {
    u8, load_u8, store_u8, fetch_add_u8, compare_exchange_u8;
    u16, load_u16, store_u16, fetch_add_u16, compare_exchange_u16;
    u32, load_u32, store_u32, fetch_add_u32, compare_exchange_u32;
    u64, load_u64, store_u64, fetch_add_u64, compare_exchange_u64;
}

/// Each is one access of memory, ordered as asked for with those of all threads that map the file; its
/// place in the file has to be a multiple of its size.
///
/// # Errors
/// As [`Map::read_at`] and [`Map::write_at`]; [`std::io::ErrorKind::InvalidInput`] for a place that is not
/// aligned, or an ordering that there is not (as a load's `Release`).
impl Map {
    /// Loads the integer at byte `at`.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use std::sync::atomic::Ordering;
    /// use pagefence::{MapOptions, OpenOptions, Options, Volume};
    /// let volume = Volume::open(&image, Options::new().write(true))?;
    /// let file = OpenOptions::new().read(true).write(true).create(true).open(&volume, "/counter")?;
    /// file.set_len(8)?;
    /// let map = file.map(.., MapOptions::shared())?;
    /// map.fetch_add(0, 41_u64, Ordering::Relaxed)?;
    /// assert_eq!(map.compare_exchange(0, 41_u64, 42, Ordering::AcqRel, Ordering::Acquire)?, Ok(41));
    /// assert_eq!(map.load::<u64>(0, Ordering::Acquire)?, 42);
    /// assert_eq!(volume.read("/counter")?, 42_u64.to_ne_bytes());
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    ///
    /// # Errors
    /// See above.
    pub fn load<T: MapInteger>(&self, at: usize, ordering: Ordering) -> Result<T> {
        if is_release(ordering) {
            return Err(self.fail(Problem::Ordering { what: "loads" }));
        }
        let at = self.aligned::<T>(at, Use::Load)?;
        Ok(T::load(self.view(), at, ordering))
    }

    /// Stores `value` at byte `at`.
    ///
    /// # Errors
    /// See above.
    pub fn store<T: MapInteger>(&self, at: usize, value: T, ordering: Ordering) -> Result<()> {
        if matches!(ordering, Ordering::Acquire | Ordering::AcqRel) {
            return Err(self.fail(Problem::Ordering { what: "stores" }));
        }
        let at = self.aligned::<T>(at, Use::Store)?;
        value.store(self.view(), at, ordering);
        Ok(())
    }

    /// Adds `value` to the integer at byte `at`, wrapping, and returns what was there.
    ///
    /// # Errors
    /// See above.
    pub fn fetch_add<T: MapInteger>(&self, at: usize, value: T, ordering: Ordering) -> Result<T> {
        let at = self.aligned::<T>(at, Use::Store)?;
        Ok(value.fetch_add(self.view(), at, ordering))
    }

    /// Replaces the integer at byte `at` by `new` if it is `current`, and returns what it was: within an
    /// `Err`, if it was not.
    ///
    /// # Errors
    /// See above.
    pub fn compare_exchange<T: MapInteger>(
        &self,
        at: usize,
        current: T,
        new: T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<std::result::Result<T, T>> {
        if is_release(failure) {
            return Err(self.fail(Problem::Ordering { what: "loads" }));
        }
        let at = self.aligned::<T>(at, Use::Store)?;
        Ok(current.compare_exchange(new, self.view(), at, success, failure))
    }

    /// Where in the view an integer at byte `at` is.
    fn aligned<T>(&self, at: usize, how: Use) -> Result<usize> {
        let size = size_of::<T>();
        let in_view = self.place(at, size, how)?;
        // The view begins with a page.
        if !in_view.is_multiple_of(size) {
            let at = self.offset() + at as u64;
            return Err(self.fail(Problem::NotAligned { at, size }));
        }
        Ok(in_view)
    }
}

fn is_release(ordering: Ordering) -> bool {
    matches!(ordering, Ordering::Release | Ordering::AcqRel)
}
