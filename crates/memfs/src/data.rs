//! The data of a file: what the page cache is told of it.
//!
//! Nothing lies outside the cache, so everything there is a hole. What is kept here is the size,
//! and which pages the file has: those in the cache and those that it was promised.

use std::ops::Range;

use pagefence_lock_order::levels::{BlockMap, Invalidate, Level, PageLock, Writepages};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::{After, Held, OrderedRwLock};
use pagefence_page_cache::{
    Backing, Evicted, FrameMut, PAGE_SIZE, Segment, WriteBacking, WriteBatch,
};
use pagefence_vfs::Error;

use crate::limits::Limits;
use crate::runs::Runs;

/// [`PAGE_SIZE`] as a file offset.
pub(crate) const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// The file system's size is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl From<Full> for Error {
    fn from(Full: Full) -> Self {
        Self::NoSpace
    }
}

/// What is behind a file's pages.
///
/// - Owns: the size; which pages the file has, which are charged to the file system.
/// - Stays outside: the pages (the cache's), the inode lock.
/// - Lifecycle: the file's. What the file has at its end is given back after its pages are gone.
#[derive(Debug)]
pub(crate) struct FileData {
    size: AtomicU64,
    pages: OrderedRwLock<BlockMap, Runs>,
    /// How many those are, for who holds no lock.
    count: AtomicU64,
    limits: Arc<Limits>,
}

impl FileData {
    /// An empty file. `number`: the inode's.
    pub(crate) fn new(number: u64, limits: Arc<Limits>) -> Self {
        Self {
            size: AtomicU64::new(0),
            pages: OrderedRwLock::new(number, Runs::default()),
            count: AtomicU64::new(0),
            limits,
        }
    }

    /// Sets the size (i_size); the caller holds the inode lock exclusively, and brought pages past
    /// the end out of the cache, or is about to, inside the fence.
    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Pages that the file has.
    pub(crate) fn pages(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Gives the file all of `pages`, or none.
    ///
    /// # Errors
    /// There are not so many.
    pub(crate) fn take<P: Level>(
        &self,
        held: &mut Held<'_, P>,
        pages: Range<u64>,
    ) -> Result<(), Full>
    where
        BlockMap: After<P>,
    {
        let (mut runs, _held) = self.pages.write(held);
        let missing = runs.missing(&pages);
        if missing == 0 {
            return Ok(());
        }
        if !self.limits.take_pages(missing) {
            return Err(Full);
        }
        runs.insert(pages);
        self.count.fetch_add(missing, Ordering::Relaxed);
        Ok(())
    }

    /// Takes away the pages that lie in the range of the fence, which are out of the cache.
    pub(crate) fn give_back(evicted: &Evicted<'_, Self>, held: &mut Held<'_, Invalidate>) {
        let (data, bytes) = (evicted.mapping().backing(), evicted.range());
        let (first, end) = (bytes.start.div_ceil(PAGE_BYTES), bytes.end / PAGE_BYTES);
        let (mut runs, _held) = data.pages.write(held);
        let given = runs.remove(first..end.max(first));
        data.count.fetch_sub(given, Ordering::Relaxed);
        data.limits.give_pages(given);
    }
}

impl Drop for FileData {
    fn drop(&mut self) {
        // The mapping drops its pages before its backing.
        self.limits.give_pages(self.count.load(Ordering::Relaxed));
    }
}

impl Backing for FileData {
    type Error = Full;

    const IS_STORAGE: bool = true;

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn segment(&self, _: &mut Held<'_, Invalidate>, offset: u64) -> Result<(Segment, u64), Full> {
        Ok((Segment::Hole, (u64::MAX - offset).max(1)))
    }

    fn read_pages(
        &self,
        _: &mut Held<'_, PageLock>,
        _: u64,
        pages: &mut [FrameMut],
    ) -> Result<(), Full> {
        for page in pages {
            page.fill(0);
        }
        Ok(())
    }
}

impl WriteBacking for FileData {
    fn block_size(&self) -> u32 {
        const BYTES: u32 = 4096;
        const { assert!(BYTES as usize == PAGE_SIZE) };
        BYTES
    }

    fn reserve(&self, held: &mut Held<'_, PageLock>, range: Range<u64>) -> Result<(), Full> {
        self.take(
            held,
            range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES),
        )
    }

    fn grow(&self, _: &mut Held<'_, PageLock>, end: u64) {
        self.size.fetch_max(end, Ordering::AcqRel);
    }

    fn write_pages(&self, _: &mut Held<'_, Writepages>, _: &WriteBatch<'_>) -> Result<(), Full> {
        debug_assert!(false, "pages that are the storage are written nowhere");
        Err(Full)
    }
}
