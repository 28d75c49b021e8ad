//! Reading and writing past the page cache (O_DIRECT).
//!
//! A direct write is the page cache's matter as far as pages go
//! ([`pagefence_page_cache::Mapping::write_direct`]); what is written, mapped and converted is what
//! writing back does, below the page locks instead of the writeback marks. A direct read has what is
//! dirty written first, and reads where the blocks lie.
//!
//! Both hold the inode lock until the device is done: so no block that they looked up goes meanwhile
//! (S0.5, RACES B4). Shared is enough for a read, and for a write that changes nothing but data inside
//! the file: these run side by side. A write that makes the file longer holds it exclusively.
//!
//! Offset and length are whole blocks; what is not goes through the cache and is then written back, as
//! do files whose data lies in the inode.

use std::ops::Range;

use pagefence_ext4_format::inode::InodeFlags;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{self, PageLock};
#[cfg(test)]
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_page_cache::{DirectBacking, WaitFor, WriteBatch};
use pagefence_vfs::{FileSystem as _, Result, WriteMode};

use crate::backing::FileData;
use crate::error::{FillError, device};
use crate::file_write::{check_flags, has_rights, note_change};
use crate::filesystem::{File, FileSystem};
use crate::inode::Inode;
use crate::map_blocks::Target;
use crate::writeback::Times;

#[cfg(all(test, not(shuttle)))]
mod tests;

impl FileSystem {
    /// Whether `length` bytes at `offset` of a file go past the cache. The caller holds its inode
    /// lock.
    pub(crate) fn goes_direct(&self, inode: &Inode, offset: u64, length: usize) -> bool {
        let block_size = u64::from(self.instance.superblock.block_size());
        let disk = inode.disk();
        offset.is_multiple_of(block_size)
            && (length as u64).is_multiple_of(block_size)
            && !disk.has_inline_data()
            && !disk.record.flags().contains(InodeFlags::JOURNAL_DATA)
    }

    /// Writes past the cache inside a file of which nothing else changes, with the inode lock held
    /// shared; nothing, if this is no such write.
    ///
    /// # Errors
    /// As [`pagefence_vfs::FileSystem::write`].
    pub(crate) fn overwrite_direct(
        &self,
        file: &File,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<Option<usize>> {
        if mode.intersects(WriteMode::APPEND | WriteMode::WRITEBACK) {
            return Ok(None);
        }
        let inode = &file.inode;
        let mut entry = Held::at_entry();
        let (_shared, mut held) = inode.lock.read(&mut entry);
        let end = offset.checked_add(data.len() as u64);
        let is_inside = end.is_some_and(|end| end <= inode.core.size());
        let is_plain = is_inside
            && !data.is_empty()
            && self.goes_direct(inode, offset, data.len())
            && has_rights(&mut held, inode, mode)
            && !self.loses_privileges(inode, mode);
        if !is_plain {
            return Ok(None);
        }
        check_flags(inode, mode)?;
        note_change(inode);
        let written = file.mapping.write_direct(&mut held, offset, data)?;
        Ok(Some(written))
    }

    /// See [`pagefence_vfs::FileSystem::read_direct`]. Takes the inode lock shared.
    pub(crate) fn read_file_direct(
        &self,
        file: &File,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize> {
        let inode = &file.inode;
        let read = {
            let mut entry = Held::at_entry();
            let (shared, mut held) = inode.lock.read(&mut entry);
            if self.goes_direct(inode, offset, buffer.len()) {
                let left = inode.core.size().saturating_sub(offset);
                let length = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let bytes = offset..offset + length as u64;
                file.mapping
                    .write_back(&mut held, bytes.clone(), WaitFor::All)?;
                let data = file.mapping.backing();
                let pieces = data.look_up(&mut held, bytes)?;
                #[cfg(test)]
                let shared = data.keeps_drained().then_some(shared);
                data.read_pieces(&pieces, offset, buffer)?;
                // What the last block has behind the end is nobody's.
                let block_size = self.instance.superblock.block_size() as usize;
                let filled = length.next_multiple_of(block_size).min(buffer.len());
                buffer[length..filled].fill(0);
                drop(shared);
                Some(length)
            } else {
                None
            }
        };
        match read {
            Some(length) => {
                self.note_access(inode);
                Ok(length)
            }
            None => self.read(file, offset, buffer),
        }
    }
}

/// A piece of a file, in bytes, and where it lies.
#[derive(Debug)]
struct Piece {
    bytes: Range<u64>,
    target: Target,
}

impl FileData {
    /// Whether a direct read keeps the inode lock: always, but for the mutant.
    #[cfg(test)]
    fn keeps_drained(&self) -> bool {
        !self.is_undrained.load(Ordering::Acquire)
    }

    /// What lies behind the blocks that `bytes` touches. The blocks stay as long as the inode lock is
    /// held.
    fn look_up(&self, held: &mut Held<'_, levels::Inode>, bytes: Range<u64>) -> Result<Vec<Piece>> {
        let end = bytes
            .end
            .next_multiple_of(u64::from(self.instance.superblock.block_size()));
        let mut pieces = Vec::new();
        let mut at = bytes.start;
        while at < end && !bytes.is_empty() {
            let (run, length) = self.run_at(held, at)?;
            let next = at.saturating_add(length).min(end);
            pieces.push(Piece {
                bytes: at..next,
                target: run.target,
            });
            at = next;
        }
        Ok(pieces)
    }

    /// Reads `pieces`, which follow each other from byte `offset` on, to the front of `buffer`.
    fn read_pieces(&self, pieces: &[Piece], offset: u64, buffer: &mut [u8]) -> Result<()> {
        let bits = self.instance.superblock.block_size_bits();
        let within = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
        for piece in pieces {
            let part = &mut buffer[within(piece.bytes.start)..within(piece.bytes.end)];
            match piece.target {
                Target::Hole | Target::Unwritten(_) => part.fill(0),
                Target::Written(start) => self
                    .instance
                    .device()
                    .read(start.0 << bits, part)
                    .map_err(device)?,
            }
        }
        Ok(())
    }
}

impl DirectBacking for FileData {
    fn write_direct(
        &self,
        held: &mut Held<'_, PageLock>,
        batch: &WriteBatch<'_>,
    ) -> std::result::Result<u64, FillError> {
        self.instance.live()?;
        let range = batch.runs().next().unwrap_or_default();
        // Times go with whatever writes the inode next: an overwrite needs no transaction.
        match self.write_blocks(held, batch, Times::Kept) {
            (_, Ok(())) => Ok(range.end),
            (reached, Err(_)) if reached > range.start => Ok(reached.min(range.end)),
            (_, Err(error)) => Err(error.into()),
        }
    }
}
