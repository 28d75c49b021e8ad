//! Ranges of two files, or of one, that change places.
//!
//! Protocol (RACES 3.11): both inode locks, then both invalidate locks, each once and in the order of
//! their numbers; inside, all that is dirty of both files is written, and the pages of both ranges
//! go. From then on nothing of either is delayed, so that what their maps may take is counted once.
//! Then the blocks change places in as many transactions as it takes, from the first to the last:
//! after each of them, what lies below some position has changed places, and the rest has not
//! (docs/CRASH.md, "Exchange").
//!
//! Moving a file to other blocks is the same, with its data copied to the donor's blocks before:
//! inside the fences, where nobody can write to either, so that no store gets lost between.

use std::ops::Range;

use pagefence_ext4_format::inode::InodeFlags;
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{self, Invalidate, Level};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::{After, pair};
use pagefence_page_cache::{Evict, Evicted, PAGE_SIZE, WaitFor, fence_both};
use pagefence_vfs::{Error, Result};

use crate::alloc::Reservation;
use crate::backing::FileData;
use crate::change::cut::Cut;
use crate::change::exchange_blocks::{Exchange, Manner};
use crate::change::remove_blocks::Progress;
use crate::error::device;
use crate::file_write::note_change;
use crate::filesystem::{File, FileSystem};
use crate::inode::Inode;
use crate::live::Need;
use crate::map_blocks::Target;

/// What one run changes: a few nodes of each map and what they take or give back, and two inodes.
const STEP: Need = Need {
    credits: 96,
    blocks: 0,
    privileged: true,
};

/// Bytes that are moved to other blocks under one hold of the locks.
const MOVE_BYTES: u64 = 16 << 20;

/// Bytes copied at a time.
const COPY_BYTES: u32 = 1 << 20;

/// A range of each file, in bytes that begin with a block.
#[derive(Clone, Copy, Debug)]
struct Ranges {
    offsets: [u64; 2],
    length: u64,
}

impl Ranges {
    fn bytes(&self, side: usize) -> Range<u64> {
        self.offsets[side]..self.offsets[side].saturating_add(self.length)
    }

    /// The pages that it touches.
    fn pages(&self, side: usize) -> Range<u64> {
        let (bytes, page) = (self.bytes(side), PAGE_SIZE as u64);
        bytes.start / page * page..bytes.end.next_multiple_of(page)
    }
}

impl FileSystem {
    /// See [`pagefence_vfs::FileSystem::exchange_range`].
    pub(crate) fn exchange_files(
        &self,
        (first, first_offset): (&File, u64),
        (second, second_offset): (&File, u64),
        length: u64,
    ) -> Result<()> {
        let ranges = Ranges {
            offsets: [first_offset, second_offset],
            length,
        };
        let files = [first, second];
        self.locked(files, |held| {
            let ranges = self.whole_blocks(files, ranges)?;
            self.change_places(held, files, ranges, Manner::Exchange)
        })?;
        for file in files {
            if file.inode.disk().record.flags().contains(InodeFlags::SYNC) {
                self.fsync(file, false)?;
            }
        }
        Ok(())
    }

    /// See [`pagefence_vfs::FileSystem::move_blocks`].
    pub(crate) fn move_to_donor(
        &self,
        (file, offset): (&File, u64),
        (donor, donor_offset): (&File, u64),
        length: u64,
    ) -> Result<u64> {
        let files = [file, donor];
        if Arc::ptr_eq(&file.inode, &donor.inode) {
            return Err(Error::InvalidArgument);
        }
        let block = u64::from(self.instance.superblock.block_size());
        let mut done = 0;
        while done < length {
            let moved = self.locked(files, |held| {
                for file in files {
                    if !file.inode.disk().has_extents() {
                        return Err(Error::Unsupported("moving what a block map maps"));
                    }
                }
                let offsets = [offset, donor_offset].map(|offset| offset.saturating_add(done));
                // As Linux: what lies behind the end of either file is left out.
                let mut left = (length - done).min(MOVE_BYTES);
                for (file, offset) in files.iter().zip(offsets) {
                    let end = file.inode.core.size().next_multiple_of(block);
                    left = left.min(end.saturating_sub(offset));
                }
                if left == 0 {
                    return Ok(0);
                }
                let ranges = Ranges {
                    offsets,
                    length: left,
                };
                let ranges = self.whole_blocks(files, ranges)?;
                self.change_places(held, files, ranges, Manner::Retire)?;
                Ok(left)
            });
            match moved {
                Ok(0) => break,
                Ok(moved) => done += moved,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        if done == 0 {
            return Err(Error::InvalidArgument);
        }
        Ok(done)
    }

    /// Calls `change` with both inode locks held exclusively, and the files fit for it.
    fn locked<T>(
        &self,
        files: [&File; 2],
        change: impl FnOnce(&mut Held<'_, levels::Inode>) -> Result<T>,
    ) -> Result<T> {
        self.instance.live()?;
        let mut entry = Held::at_entry();
        let [first, second] = files.map(|file| &file.inode.lock);
        let (_first, _second, mut held) = pair::write_both(first, second, &mut entry);
        for file in files {
            check_file(file)?;
        }
        for file in files {
            self.make_inline_fit(&mut held, &file.inode, PAGE_SIZE as u64 + 1)?;
            if file.inode.disk().has_inline_data() {
                return Err(Error::Unsupported("a range of a file in its inode"));
            }
            self.finish_cut(&mut held, &file.inode)?;
        }
        change(&mut held)
    }

    /// The ranges as whole blocks. One that ends where a file does is longer by the rest of the
    /// block.
    ///
    /// # Errors
    /// `InvalidArgument` for ranges that do not begin and end with blocks (clusters), are empty, reach
    /// past the last block of their file, or overlap.
    fn whole_blocks(&self, files: [&File; 2], ranges: Ranges) -> Result<Ranges> {
        let superblock = &self.instance.superblock;
        let block = u64::from(superblock.block_size());
        let unit = block * u64::from(superblock.blocks_per_cluster());
        let mut length = ranges.length;
        let sizes = files.map(|file| file.inode.core.size());
        for side in [0, 1] {
            if ranges.offsets[side].checked_add(ranges.length) == Some(sizes[side]) {
                length = length.checked_next_multiple_of(unit).unwrap_or(u64::MAX);
            }
        }
        let is_whole = length > 0
            && length.is_multiple_of(unit)
            && ranges
                .offsets
                .iter()
                .all(|offset| offset.is_multiple_of(unit));
        let is_inside = (0..2).all(|side| {
            let end = ranges.offsets[side].checked_add(length);
            end.is_some_and(|end| end <= sizes[side].next_multiple_of(unit))
        });
        let is_same = Arc::ptr_eq(&files[0].inode, &files[1].inode);
        let overlaps = is_same && ranges.offsets[0].abs_diff(ranges.offsets[1]) < length;
        if !is_whole || !is_inside || overlaps {
            return Err(Error::InvalidArgument);
        }
        Ok(Ranges { length, ..ranges })
    }

    /// What is to change places, in file blocks.
    fn exchange_of(&self, ranges: Ranges, manner: Manner) -> Result<Exchange> {
        let gaps = [
            self.instance.gap_of(&ranges.bytes(0))?,
            self.instance.gap_of(&ranges.bytes(1))?,
        ];
        let first = gaps.map(|gap| gap.first);
        Ok(Exchange::new(first, gaps[0].len, manner))
    }

    fn change_places(
        &self,
        held: &mut Held<'_, levels::Inode>,
        files: [&File; 2],
        ranges: Ranges,
        manner: Manner,
    ) -> Result<()> {
        let inodes = files.map(|file| &file.inode);
        for side in [0, 1] {
            // What is past the end of the one file must not show in the other one.
            if self
                .partial_end(inodes[side], &ranges.bytes(side))
                .is_some()
            {
                self.zero_tail(held, inodes[side])?;
            }
            // Most of it while faults can still be served.
            files[side]
                .mapping
                .write_back(held, 0..u64::MAX, WaitFor::All)?;
        }
        let exchange = self.exchange_of(ranges, manner)?;
        let blocks = self.survey(held, inodes, &exchange)?;
        // What a block map takes lies where it can be named; a tree can have that, too.
        let narrow = inodes.into_iter().find(|inode| !inode.disk().has_extents());
        let narrow = narrow.unwrap_or(inodes[0]);
        let mut space = self.reserve_for_shift(held, narrow, blocks)?;
        let [first, second] = [0, 1].map(|side| (&*files[side].mapping, ranges.pages(side)));
        let (mut first, mut second, mut held) = fence_both(first, second, held);
        let first = first.evict(&mut held, Evict::WriteFirst)?;
        let second = match &mut second {
            Some(second) => Some(second.evict(&mut held, Evict::WriteFirst)?),
            None => None,
        };
        self.end_delay(&mut held, inodes[0], &first)?;
        if let Some(second) = &second {
            self.end_delay(&mut held, inodes[1], second)?;
        }
        // What was written just now may have made the maps other ones.
        let blocks = self.survey(&mut held, inodes, &exchange)?;
        self.top_up(narrow, &mut space, blocks)?;
        for side in [0, 1] {
            self.check_end(&mut held, inodes, ranges, side)?;
        }
        match manner {
            Manner::Retire => self.copy_to_donor(&mut held, inodes, ranges)?,
            Manner::Exchange => inodes.into_iter().for_each(|inode| note_change(inode)),
        }
        let evicted = (&first, second.as_ref());
        self.exchange_in_steps(&mut held, inodes, evicted, space, exchange)
    }

    /// Blocks of both maps that it takes at most ([`Exchange::survey`]).
    fn survey<P: Level>(
        &self,
        held: &mut Held<'_, P>,
        [first, second]: [&Arc<Inode>; 2],
        exchange: &Exchange,
    ) -> Result<u64>
    where
        levels::BlockMap: After<P>,
    {
        // Only who holds the inode locks takes blocks away or puts them in by other ways than
        // writing back, after which this is looked at again.
        let first = {
            let (_map, _held) = first.core.block_map.read(held);
            first.disk()
        };
        let second = {
            let (_map, _held) = second.core.block_map.read(held);
            second.disk()
        };
        exchange.survey(&self.instance, [&first, &second])
    }

    /// The end of a file, if it lies in the range and inside a block.
    fn partial_end(&self, inode: &Inode, bytes: &Range<u64>) -> Option<u64> {
        let size = inode.core.size();
        let block = u64::from(self.instance.superblock.block_size());
        let is_partial = !size.is_multiple_of(block);
        (is_partial && bytes.start < size && size < bytes.end).then_some(size)
    }

    /// Makes sure that what comes to lie behind the end of the file `side` is zeros: it would be
    /// lost, and show when the file grows.
    ///
    /// # Errors
    /// `InvalidArgument`; `Corrupt`, `Io`.
    fn check_end(
        &self,
        held: &mut Held<'_, Invalidate>,
        inodes: [&Arc<Inode>; 2],
        ranges: Ranges,
        side: usize,
    ) -> Result<()> {
        let Some(end) = self.partial_end(inodes[side], &ranges.bytes(side)) else {
            return Ok(());
        };
        let other = inodes[1 - side];
        let bits = self.instance.superblock.block_size_bits();
        let at = ranges.offsets[1 - side] + (end - ranges.offsets[side]);
        let block = u32::try_from(at >> bits).map_err(|_| Error::FileTooLarge)?;
        let run = {
            let (_map, _held) = other.core.block_map.read(held);
            self.instance.map_blocks(&other.disk(), FileBlock(block))?
        };
        let Target::Written(start) = run.target else {
            return Ok(());
        };
        let mut bytes = vec![0; 1 << bits];
        self.read_data(start, &mut bytes)?;
        let within = usize::try_from(end % (1 << bits)).unwrap_or(0);
        if bytes.iter().skip(within).any(|byte| *byte != 0) {
            return Err(Error::InvalidArgument);
        }
        Ok(())
    }

    fn read_data(&self, start: BlockNo, bytes: &mut [u8]) -> Result<()> {
        let offset = start.0 << self.instance.superblock.block_size_bits();
        self.instance.device().read(offset, bytes).map_err(device)
    }

    /// Copies what the first file has written to the blocks that the second one has there. No page
    /// of either range is in the cache.
    fn copy_to_donor(
        &self,
        held: &mut Held<'_, Invalidate>,
        [file, donor]: [&Arc<Inode>; 2],
        ranges: Ranges,
    ) -> Result<()> {
        let bits = self.instance.superblock.block_size_bits();
        let gaps = [
            self.instance.gap_of(&ranges.bytes(0))?,
            self.instance.gap_of(&ranges.bytes(1))?,
        ];
        let live = self.instance.live()?;
        live.commit_moves()?;
        let mut buffer = Vec::new();
        let mut done = 0;
        while done < gaps[0].len {
            let mut runs = [(file, gaps[0].first), (donor, gaps[1].first)].map(|(inode, first)| {
                let (_map, _held) = inode.core.block_map.read(held);
                let at = FileBlock(first + done);
                self.instance.map_blocks(&inode.disk(), at)
            });
            let [from, to] = &mut runs;
            let (Ok(from), Ok(to)) = (&*from, &*to) else {
                let [from, to] = runs;
                return from.and(to).map(drop);
            };
            let most = COPY_BYTES >> bits;
            let len = from.len.min(to.len).min(gaps[0].len - done).min(most);
            done += len;
            let to = match to.target {
                Target::Hole => continue,
                Target::Written(to) | Target::Unwritten(to) => to,
            };
            if let Target::Written(from) = from.target {
                buffer.resize((len as usize) << bits, 0);
                self.read_data(from, &mut buffer)?;
                live.allocator
                    .claim_in_use(&self.instance, donor.core.number, to, len)?;
                let to = to.0 << bits;
                self.instance.device().write(to, &buffer).map_err(device)?;
            }
        }
        Ok(())
    }

    /// Goes through all transactions. `evicted` say that no page can be in the way: the second is
    /// none if both ranges are of one file.
    fn exchange_in_steps(
        &self,
        held: &mut Held<'_, Invalidate>,
        [first, second]: [&Arc<Inode>; 2],
        (evicted, other): (&Evicted<'_, FileData>, Option<&Evicted<'_, FileData>>),
        mut space: Reservation,
        mut exchange: Exchange,
    ) -> Result<()> {
        let live = self.instance.live()?;
        loop {
            let tid;
            let progress;
            {
                let (mut transaction, mut held) = self.instance.begin(held, STEP)?;
                let maps = (&first.core.block_map, &second.core.block_map);
                let (_first, _second, _held) = pair::write_both(maps.0, maps.1, &mut held);
                transaction.lend(space);
                let mut cut = Cut::of(evicted);
                let mut other = other.map(Cut::of);
                progress = exchange.step(&mut transaction, &mut cut, other.as_mut())?;
                // All that was dirty is written.
                cut.record_mut().set_size(first.core.size());
                first.core.note_map_change();
                cut.adopt();
                first.core.write(&mut transaction, true)?;
                if let Some(mut other) = other {
                    other.record_mut().set_size(second.core.size());
                    second.core.note_map_change();
                    other.adopt();
                    second.core.write(&mut transaction, true)?;
                }
                space = transaction.take_rest().ok_or(Error::ReadOnly)?;
                tid = transaction.tid();
                live.note_move(tid);
                transaction.end();
            }
            if progress == Progress::Done {
                return Ok(());
            }
            if !self.instance.has_log() {
                live.commit(tid)?;
            }
        }
    }
}

/// Whether blocks of the file may be given away for others.
fn check_file(file: &File) -> Result<()> {
    let disk = file.inode.disk();
    let flags = disk.record.flags();
    let fixed = InodeFlags::IMMUTABLE | InodeFlags::APPEND | InodeFlags::VERITY;
    if !file.is_writer || flags.intersects(fixed) {
        return Err(Error::NotPermitted);
    }
    if flags.contains(InodeFlags::ENCRYPT) {
        return Err(Error::Unsupported("exchanging blocks that are encrypted"));
    }
    if flags.contains(InodeFlags::JOURNAL_DATA) {
        // The journal may have what they held.
        return Err(Error::Unsupported("exchanging blocks that are journaled"));
    }
    Ok(())
}
