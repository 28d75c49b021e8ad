//! What a file system gives the page cache for one file.

use std::ops::Range;

use pagefence_host_memory::FrameMut;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Entry, Inode, Invalidate, PageLock, Writepages};

use crate::write_batch::WriteBatch;

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

    /// Whether the pages are the storage (Linux: an unevictable mapping, shmem): nothing lies
    /// behind them, so a page that was written stays dirty until a fence drops it. Nobody writes
    /// it back, reclaim leaves it, and it does not count against the limits of dirty pages.
    ///
    /// Everything outside the cache is then a hole: [`Self::segment`] says so, and
    /// [`WriteBacking::block_size`] is a page. [`WriteBacking::reserve`] must refuse pages before
    /// the cache has no frame left for them ([`crate::Config::for_storage`]).
    const IS_STORAGE: bool = false;

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

/// The storage behind a mapping that is also written.
///
/// The cache decides *when* pages are written, the file system *where*. A page that became dirty
/// has its space reserved, so that writing it back finds some; what [`Self::write_pages`] returned
/// `Ok` for can be read through [`Backing::read_pages`] from then on.
pub trait WriteBacking: Backing {
    /// Bytes of a block: 1024, 2048 or 4096. Pages are dirty block by block. It never changes.
    fn block_size(&self) -> u32;

    /// Reserves space for bytes `range`, whole blocks all of whose pages are locked and about to
    /// become dirty. The last step of a write that can fail. Blocks that have space, or a
    /// reservation (they may be dirty already, or being written back just now), need none.
    ///
    /// # Errors
    /// No space, quota, or the block map can't be read; nothing is reserved then.
    fn reserve(&self, held: &mut Held<'_, PageLock>, range: Range<u64>) -> Result<(), Self::Error>;

    /// [`Self::reserve`] failed with `error`: may free some space (write back, commit), with no
    /// page lock held. True if it is worth another try. The cache tries a few times only.
    fn make_room(&self, held: &mut Held<'_, Inode>, error: &Self::Error) -> bool {
        let (_, _) = (held, error);
        false
    }

    /// [`Self::make_room`] for a fault, which can't hold the inode lock (S2.2): nothing is held.
    fn make_room_for_fault(&self, held: &mut Held<'_, Entry>, error: &Self::Error) -> bool {
        let (_, _) = (held, error);
        false
    }

    /// A page of the file becomes mapped for stores: its data changes about now. For the file's
    /// times, and for nothing that can fail or wait.
    fn note_store(&self, held: &mut Held<'_, PageLock>) {
        let _ = held;
    }

    /// Undoes [`Self::reserve`] for bytes `range`, whole blocks that are neither dirty nor under
    /// writeback: gives back the space of those that have some and no place yet, and leaves the
    /// others alone (S3.13). The page of the blocks is locked, or there is none and the invalidate
    /// lock is held exclusively: so nobody makes them dirty, and nothing is chosen for them.
    ///
    /// A file system that reserves nothing has nothing to do.
    fn release(&self, held: &mut Held<'_, PageLock>, range: Range<u64>) {
        let (_, _) = (held, range);
    }

    /// The file's bytes up to `end` are in the cache and dirty, or written and mapped: its size
    /// (i_size) is `end` from now on, if it was less. Called with the inode lock held exclusively, and before the pages are
    /// unlocked. So writeback, which looks at the size when it has locked a page, never takes bytes
    /// just written for bytes past the end.
    fn grow(&self, held: &mut Held<'_, PageLock>, end: u64);

    /// Writes the dirty blocks of `batch` to the device, then maps those that were not mapped, and
    /// raises the size on disk to what [`WriteBatch::size`] allows. The pages are under writeback,
    /// not locked; they stay that until this returns, so the journal handle that maps has ended
    /// before the mark goes. On return the data is with the device, not necessarily durable.
    ///
    /// Blocks may be reserved and dirtied anew meanwhile. `held` is the level of a lock that is
    /// held shared throughout; no page may be waited for from here.
    ///
    /// # Errors
    /// Each open file is told once ([`crate::ErrorCursor`]). The pages are up to date and clean
    /// then, as in Linux since 5.19; a page dirtied anew meanwhile relies on the reservation of
    /// its blocks, so blocks that could not be mapped keep theirs.
    fn write_pages(
        &self,
        held: &mut Held<'_, Writepages>,
        batch: &WriteBatch<'_>,
    ) -> Result<(), Self::Error>;
}

/// The storage behind a mapping that can also be written past the cache.
pub trait DirectBacking: WriteBacking {
    /// Writes the blocks of `batch`, which are reserved ([`WriteBacking::reserve`]), to the device,
    /// then maps those that were not mapped, converts those that were unwritten, and raises the size
    /// on disk to what [`WriteBatch::size`] allows: as [`WriteBacking::write_pages`], but below the
    /// page locks of the range, in whose pages nothing is dirty or under writeback. Says up to which
    /// byte that was done. Fewer than all is an error that came after some were mapped.
    ///
    /// Nobody waits for a page lock with a journal handle, so one may be had here.
    ///
    /// # Errors
    /// No block was mapped, and the size on disk is as before. Blocks that had data may have some of
    /// the new ones. What was reserved stays so: the caller gives it back.
    fn write_direct(
        &self,
        held: &mut Held<'_, PageLock>,
        batch: &WriteBatch<'_>,
    ) -> Result<u64, Self::Error>;
}
