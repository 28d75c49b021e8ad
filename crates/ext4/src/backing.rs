//! What the page cache asks of ext4: the data of one file.

use std::io::IoSliceMut;
use std::ops::Range;

use pagefence_ext4_format::FileBlock;
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_lock_order::levels::{
    BlockMap, Entry, Inode, Invalidate, Level, PageLock, Writepages,
};
#[cfg(test)]
use pagefence_lock_order::primitives::atomic::AtomicBool;
use pagefence_lock_order::primitives::{Arc, Weak};
use pagefence_lock_order::{After, Held};
use pagefence_page_cache::{
    Backing, CanFlush, FrameMut, PAGE_SIZE, PageCache, Segment, WriteBacking, WriteBatch,
};
use pagefence_vfs::{Error, Result};

use crate::clock;
use crate::delalloc::{Delayed, MapShapeNow};
use crate::error::{FillError, device};
use crate::inode::InodeCore;
use crate::instance::Instance;
use crate::map_blocks::{Run, Target};

/// The data of one regular file (or of a slow symbolic link), as the page cache asks for it. Nothing
/// but the cache has a use for it.
#[derive(Debug)]
pub struct FileData {
    pub(crate) instance: Arc<Instance>,
    pub(crate) inode: Arc<InodeCore>,
    /// Where all other files' pages are: for a write that finds no space.
    cache: Weak<PageCache>,
    /// The mutant: a direct read gives the inode lock up before the device has read.
    #[cfg(test)]
    pub(crate) is_undrained: AtomicBool,
}

/// Blocks that can't be dirty yet.
#[derive(Debug, Default)]
struct Uncovered {
    holes: Vec<Range<u32>>,
    unwritten: Vec<Range<u32>>,
}

impl Uncovered {
    fn is_empty(&self) -> bool {
        self.holes.is_empty() && self.unwritten.is_empty()
    }
}

impl FileData {
    pub(crate) fn new(
        instance: Arc<Instance>,
        inode: Arc<InodeCore>,
        cache: Weak<PageCache>,
    ) -> Self {
        Self {
            instance,
            inode,
            cache,
            #[cfg(test)]
            is_undrained: AtomicBool::new(false),
        }
    }

    /// Reserves space for blocks that have none and are about to be dirty. Refuses those of an immutable
    /// file: who writes has looked, with the inode lock, but who stores through a map comes here first.
    fn reserve_space(&self, held: &mut Held<'_, PageLock>, range: Range<u64>) -> Result<()> {
        let live = self.instance.live()?;
        let disk = self.inode.disk();
        if disk.record.flags().contains(InodeFlags::IMMUTABLE) {
            return Err(Error::NotPermitted);
        }
        if disk.has_inline_data() {
            // Whoever writes has seen to it that the data fits into the inode.
            return Ok(());
        }
        let bits = self.instance.superblock.block_size_bits();
        let block = |at: u64| u32::try_from(at >> bits).map_err(|_| Error::FileTooLarge);
        let blocks = block(range.start)?..block(range.end)?;
        {
            let (delayed, _held) = self.inode.block_map.read(held);
            if self.uncovered(&delayed, &blocks)?.is_empty() {
                return Ok(());
            }
        }
        let (mut delayed, _held) = self.inode.block_map.write(held);
        let missing = self.uncovered(&delayed, &blocks)?;
        if !missing.is_empty() {
            let disk = self.inode.disk();
            let mut shape = MapShapeNow::of(&self.instance, &disk)?;
            for range in missing.holes.iter().chain(&missing.unwritten) {
                shape = MapShapeNow::to_change(&self.instance, &disk, FileBlock(range.start))?;
            }
            delayed.add(&live.allocator, &shape, &missing.holes, &missing.unwritten)?;
            self.note_delayed(&delayed);
        }
        Ok(())
    }

    /// Those of `blocks` that can't be dirty yet: they are neither written nor delayed.
    fn uncovered(&self, delayed: &Delayed, blocks: &Range<u32>) -> Result<Uncovered> {
        let disk = self.inode.disk();
        let mut missing = Uncovered::default();
        let mut at = blocks.start;
        while at < blocks.end {
            let (is_delayed, delayed_run) = delayed.hole_at(FileBlock(at));
            if is_delayed {
                at = at.saturating_add(delayed_run);
                continue;
            }
            let run = self.instance.map_blocks(&disk, FileBlock(at))?;
            let len = run.len.min(blocks.end - at);
            match run.target {
                Target::Written(_) => at += len,
                Target::Hole => {
                    let len = len.min(delayed_run);
                    missing.holes.push(at..at + len);
                    at += len;
                }
                Target::Unwritten(_) => {
                    let (is_in, counted) = delayed.unwritten_at(FileBlock(at));
                    let len = len.min(counted);
                    if !is_in {
                        missing.unwritten.push(at..at + len);
                    }
                    at += len;
                }
            }
        }
        Ok(missing)
    }

    /// Makes space of what is promised too generously, by writing back all that is delayed, and of
    /// what was freed and waits for a commit. No page is locked. Whether trying again is worth it.
    pub(crate) fn find_space<L: CanFlush>(&self, held: &mut Held<'_, L>) -> bool {
        let Ok(live) = self.instance.live() else {
            return false;
        };
        let left = || live.allocator.counts().blocks_unreserved;
        let before = left();
        let pending = live.allocator.pending_tid();
        if let Some(cache) = self.cache.upgrade() {
            cache.sync_all(held);
        }
        let pending = live.allocator.pending_tid().or(pending);
        let committed = pending.is_some_and(|tid| live.commit(tid).is_ok());
        committed || left() > before
    }

    /// The run that holds byte `offset`, and how many bytes of it follow, at least 1.
    pub(crate) fn run_at<P: Level>(&self, held: &mut Held<'_, P>, offset: u64) -> Result<(Run, u64)>
    where
        BlockMap: After<P>,
    {
        let bits = self.instance.superblock.block_size_bits();
        let Ok(block) = u32::try_from(offset >> bits) else {
            return Ok((Run::hole(1), u64::MAX - offset));
        };
        let (_map, _held) = self.inode.block_map.read(held);
        let run = self
            .instance
            .map_blocks(&self.inode.disk(), FileBlock(block))?;
        let within = offset & ((1 << bits) - 1);
        Ok((run, (u64::from(run.len) << bits) - within))
    }

    fn fill(
        &self,
        held: &mut Held<'_, PageLock>,
        first: u64,
        pages: &mut [FrameMut],
    ) -> Result<()> {
        let start = first * PAGE_SIZE as u64;
        let mut memory = Scatter::new(FrameMut::runs(pages));
        let disk = self.inode.disk();
        if disk.has_inline_data() {
            let data = self.instance.inline_data(&disk)?;
            let from = usize::try_from(start).unwrap_or(usize::MAX).min(data.len());
            let to = usize::try_from(self.inode.size())
                .unwrap_or(usize::MAX)
                .min(data.len());
            memory.copy_from(data.get(from..to).unwrap_or(&[]));
            memory.zero_rest();
            return Ok(());
        }
        let block_size = u64::from(self.instance.superblock.block_size());
        let bits = self.instance.superblock.block_size_bits();
        // Whole blocks are read, so that a device that wants alignment gets it; what lies past the
        // end of the file is zeroed below, and never seen.
        let size = self.inode.size().next_multiple_of(block_size);
        let mut offset = start;
        while memory.left() > 0 {
            if offset >= size {
                memory.zero_rest();
                break;
            }
            let (run, run_bytes) = self.run_at(held, offset)?;
            let bytes = run_bytes.min(size - offset).min(memory.left() as u64) as usize;
            match run.target {
                Target::Hole | Target::Unwritten(_) => memory.zero(bytes),
                Target::Written(block) => {
                    let at = (block.0 << bits) + (offset & (block_size - 1));
                    self.instance
                        .device()
                        .read_vectored(at, &mut memory.take(bytes))
                        .map_err(device)?;
                }
            }
            offset += bytes as u64;
        }
        self.zero_past_end(start, pages);
        Ok(())
    }

    /// Zeroes what of the pages lies past the end of the file: its last block may hold anything.
    fn zero_past_end(&self, start: u64, pages: &mut [FrameMut]) {
        let Some(valid) = self.inode.size().checked_sub(start) else {
            return;
        };
        let page = usize::try_from(valid / PAGE_SIZE as u64).unwrap_or(usize::MAX);
        if let Some(last) = pages.get_mut(page) {
            last[(valid % PAGE_SIZE as u64) as usize..].fill(0);
        }
    }
}

impl Backing for FileData {
    type Error = FillError;

    fn size(&self) -> u64 {
        self.inode.size()
    }

    fn segment(
        &self,
        held: &mut Held<'_, Invalidate>,
        offset: u64,
    ) -> Result<(Segment, u64), FillError> {
        if self.inode.disk().has_inline_data() {
            return Ok((Segment::Data, u64::MAX - offset));
        }
        let (run, bytes) = self.run_at(held, offset)?;
        Ok(match run.target {
            Target::Written(_) => (Segment::Data, bytes),
            Target::Hole | Target::Unwritten(_) => (Segment::Hole, bytes),
        })
    }

    fn read_pages(
        &self,
        held: &mut Held<'_, PageLock>,
        first: u64,
        pages: &mut [FrameMut],
    ) -> Result<(), FillError> {
        Ok(self.fill(held, first, pages)?)
    }
}

impl WriteBacking for FileData {
    fn block_size(&self) -> u32 {
        self.instance.superblock.block_size()
    }

    fn reserve(&self, held: &mut Held<'_, PageLock>, range: Range<u64>) -> Result<(), FillError> {
        Ok(self.reserve_space(held, range)?)
    }

    fn make_room(&self, held: &mut Held<'_, Inode>, error: &FillError) -> bool {
        error.is_no_space() && self.find_space(held)
    }

    fn make_room_for_fault(&self, held: &mut Held<'_, Entry>, error: &FillError) -> bool {
        error.is_no_space() && self.find_space(held)
    }

    fn note_store(&self, _held: &mut Held<'_, PageLock>) {
        let now = clock::now();
        self.inode.update(|record| {
            record.set_mtime(now);
            record.set_ctime(now);
        });
    }

    fn release(&self, held: &mut Held<'_, PageLock>, range: Range<u64>) {
        let bits = self.instance.superblock.block_size_bits();
        let block = |at: u64| u32::try_from(at >> bits).unwrap_or(u32::MAX);
        let (mut delayed, _held) = self.inode.block_map.write(held);
        delayed.release(block(range.start)..block(range.end));
        // Space for the map is given up only if the map's shape is known: else more is kept.
        let _counted = self.settle(&mut delayed, None);
    }

    fn grow(&self, _held: &mut Held<'_, PageLock>, end: u64) {
        if self.inode.size() < end {
            self.inode.set_size(end);
        }
    }

    fn write_pages(
        &self,
        held: &mut Held<'_, Writepages>,
        batch: &WriteBatch<'_>,
    ) -> Result<(), FillError> {
        Ok(self.write_batch(held, batch)?)
    }
}

/// Pieces of memory that are filled one after the other.
struct Scatter<'a> {
    pieces: std::vec::IntoIter<&'a mut [u8]>,
    current: &'a mut [u8],
    left: usize,
}

impl<'a> Scatter<'a> {
    fn new(pieces: Vec<&'a mut [u8]>) -> Self {
        let left = pieces.iter().map(|piece| piece.len()).sum();
        Self {
            pieces: pieces.into_iter(),
            current: &mut [],
            left,
        }
    }

    /// Bytes that are still to be filled.
    fn left(&self) -> usize {
        self.left
    }

    /// The next piece of at most `most` bytes; nothing at the end.
    fn piece(&mut self, most: usize) -> Option<&'a mut [u8]> {
        while self.current.is_empty() {
            self.current = self.pieces.next()?;
        }
        let current = std::mem::take(&mut self.current);
        let (piece, rest) = current.split_at_mut(most.min(current.len()));
        self.current = rest;
        self.left -= piece.len();
        Some(piece)
    }

    /// The next `bytes` bytes as slices to read into.
    fn take(&mut self, bytes: usize) -> Vec<IoSliceMut<'a>> {
        let mut slices = Vec::new();
        let mut wanted = bytes;
        while wanted > 0 {
            let Some(piece) = self.piece(wanted) else {
                break;
            };
            wanted -= piece.len();
            slices.push(IoSliceMut::new(piece));
        }
        slices
    }

    /// Zeroes the next `bytes` bytes.
    fn zero(&mut self, bytes: usize) {
        for mut slice in self.take(bytes) {
            slice.fill(0);
        }
    }

    /// Zeroes all that is left.
    fn zero_rest(&mut self) {
        self.zero(self.left);
    }

    /// Copies `bytes` into the next memory, as far as there is any.
    fn copy_from(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(piece) = self.piece(rest.len()) else {
                break;
            };
            let (now, later) = rest.split_at(piece.len());
            piece.copy_from_slice(now);
            rest = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Scatter;

    #[test]
    fn memory_is_filled_across_pieces() {
        let (mut a, mut b, mut c) = ([1u8; 3], [1u8; 0], [1u8; 5]);
        {
            let mut memory = Scatter::new(vec![&mut a, &mut b, &mut c]);
            assert_eq!(memory.left(), 8);
            memory.copy_from(&[7, 8, 9, 10]);
            memory.zero(1);
            let taken = memory.take(2);
            assert_eq!(taken.iter().map(|slice| slice.len()).sum::<usize>(), 2);
            assert_eq!(memory.left(), 1);
            memory.zero_rest();
            assert_eq!(memory.left(), 0);
            assert!(memory.take(1).is_empty());
        }
        assert_eq!((a, c), ([7, 8, 9], [10, 0, 1, 1, 0]));
    }
}
