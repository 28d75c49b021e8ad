//! What a file system gives the page cache for one file.

use pagefence_host_memory::FrameMut;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Invalidate, PageLock};

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// What a range of a file is, as far as reading is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Reads as zeros: a hole, or unwritten blocks.
    Hole,
    /// Has data.
    Data,
}

/// The storage behind one mapping. ext4 implements it; the cache never hears of ext4.
///
/// The two queries are made inside one unbroken section under the invalidate lock, shared: from
/// looking up the block mapping until the pages are up to date (S1.2). The tokens prove it.
pub trait Backing: Send + Sync + 'static {
    /// Why reading failed.
    type Error: Clone + Send + Sync + std::fmt::Debug + 'static;

    /// The file's size in bytes (i_size).
    fn size(&self) -> u64;

    /// What lies at byte `offset`, and for how many bytes from there it goes on being that
    /// (at least 1; it may stop early, at a piece of the block map).
    ///
    /// # Errors
    /// The block map can't be read.
    fn segment(
        &self,
        held: &mut Held<'_, Invalidate>,
        offset: u64,
    ) -> Result<(Segment, u64), Self::Error>;

    /// Fills `pages`, which are consecutive from page `first` on: data from the device, zeros
    /// for holes and for everything past the end of the file. On return every byte is defined.
    ///
    /// # Errors
    /// The block map or the device can't be read; the frames are then discarded.
    fn read_pages(
        &self,
        held: &mut Held<'_, PageLock>,
        first: u64,
        pages: &mut [FrameMut],
    ) -> Result<(), Self::Error>;
}
