//! Files that become shorter or longer. Protocol: `docs/adr/0008`, RACES B20 to B22.
//!
//! Shorter: inside the fence what is left of the last block is zeroed on the device; then the size
//! falls and pages go; then the blocks are taken away, in as many transactions as it takes. From
//! the first one that does not finish on, the file is an orphan, so that recovery goes on with it.
//! One that fails before it changed a block leaves the file with its new size, and half cut: what
//! is behind the end is taken away before anything else may come to lie there.
//!
//! Longer: what lies behind the end in the last block is zeroed on the device before the size
//! covers it. No block is taken.

use pagefence_ext4_format::FileBlock;
use pagefence_ext4_format::features::RoCompat;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{self, Invalidate};
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{Evict, Evicted, PAGE_SIZE};
use pagefence_vfs::{Error, FileKind, Result};

use crate::backing::FileData;
use crate::change::cut::Cut;
use crate::change::remove_blocks::{Progress, remove_blocks};
use crate::delalloc::MapShapeNow;
use crate::disk_inode::DiskInode;
use crate::filesystem::FileSystem;
use crate::inode::Inode;
use crate::instance::Instance;
use crate::live::Need;
use crate::{inode_data, orphans};

/// What one step of taking blocks away needs: a run of blocks changes bitmaps, descriptors and the
/// map; the list of orphans and the inode come last.
const STEP: Need = Need {
    credits: 96 + orphans::CREDITS,
    blocks: 0,
    privileged: true,
};

impl Instance {
    /// The largest size that a file of this kind of map can have, in bytes. Source: Linux's
    /// `ext4_max_size` and `ext4_max_bitmap_size`.
    pub(crate) fn max_file_size(&self, disk: &DiskInode) -> u64 {
        // Linux sets the feature when it is needed first; here it stays as mkfs decided.
        let largest = if self.superblock.has_ro_compat(RoCompat::LARGE_FILE) {
            u64::MAX
        } else {
            0x7fff_ffff
        };
        largest.min(self.max_mapped_size(disk))
    }

    /// One past the last byte that any file may have, whatever maps it. Source: Linux's
    /// `ext4_max_size`.
    pub(crate) fn max_offset(&self) -> u64 {
        let bits = self.superblock.block_size_bits();
        let blocks = u64::from(u32::MAX);
        let counted = u64::from(u32::MAX) >> (bits - 9);
        let most = if self.superblock.has_ro_compat(RoCompat::HUGE_FILE) {
            blocks
        } else {
            blocks.min(counted)
        };
        most << bits
    }

    fn max_mapped_size(&self, disk: &DiskInode) -> u64 {
        if disk.has_extents() || disk.has_inline_data() {
            return self.max_offset();
        }
        let bits = self.superblock.block_size_bits();
        let has_huge_files = self.superblock.has_ro_compat(RoCompat::HUGE_FILE);
        let counted = if has_huge_files {
            (1 << 48) - 1
        } else {
            u64::from(u32::MAX) >> (bits - 9)
        };
        max_mapped_blocks(self.map_shape.per_block().into(), counted) << bits
    }
}

/// Blocks of data that a block map with `per_block` pointers a block reaches, if it may not have
/// more than `counted` blocks, indirect ones among them.
fn max_mapped_blocks(per_block: u64, counted: u64) -> u64 {
    const DIRECT: u64 = 12;
    let (single, double) = (per_block, per_block * per_block);
    let reach = (DIRECT + single + double + double * per_block).min(u64::from(u32::MAX));
    let of_map = 1 + (1 + single) + (1 + single + double);
    if reach + of_map <= counted {
        return reach;
    }
    let below = counted.saturating_sub(DIRECT + single);
    let of_map = if below < double {
        1 + 1 + below.div_ceil(per_block)
    } else {
        let triple = below - double;
        1 + (1 + single) + 1 + triple.div_ceil(per_block) + triple.div_ceil(double)
    };
    counted.saturating_sub(of_map).min(reach)
}

impl FileSystem {
    /// Gives a regular file another size; with its own size, what was allocated behind its end is
    /// given up. Times and mode are the caller's, who holds the inode lock exclusively. Takes the
    /// invalidate lock, page locks and transactions.
    ///
    /// # Errors
    /// `FileTooLarge`; `InvalidArgument` for what is no regular file; `NoSpace` if data has to
    /// leave the inode; `Corrupt`, `Io`, `ReadOnly`, and then the size is what it was, though an
    /// edge may be zeroed; or it is the new one, and what lay behind it can't be seen again.
    pub(crate) fn set_size(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        size: u64,
    ) -> Result<()> {
        self.instance.live()?;
        if inode.core.kind != FileKind::Regular {
            return Err(Error::InvalidArgument);
        }
        let disk = inode.disk();
        if size > self.instance.max_file_size(&disk) {
            return Err(Error::FileTooLarge);
        }
        if disk.has_inline_data() {
            if inode_data::fits(&self.instance, &disk.record, size)? {
                return self.resize_inline(held, inode, size);
            }
            self.make_inline_fit(held, inode, size)?;
        }
        if size > inode.core.size() {
            self.grow(held, inode, size)
        } else {
            self.shrink(held, inode, size)
        }
    }

    fn grow(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        size: u64,
    ) -> Result<()> {
        self.finish_cut(held, inode)?;
        let mapping = inode.mapping(&self.instance, &self.cache);
        let old = inode.core.size();
        let end = old.next_multiple_of(PAGE_SIZE as u64);
        let (mut fence, mut held) = mapping.fence(held, old..end);
        let _evicted = fence.evict(&mut held, Evict::Discard)?;
        let (mut transaction, mut held) = self.instance.begin(&mut held, Need::RECORD)?;
        let (_map, _held) = inode.core.block_map.write(&mut held);
        let on_record = inode.disk().size();
        inode.core.update(|record| record.set_size(size));
        if let Err(error) = inode.core.write(&mut transaction, true) {
            inode.core.update(|record| record.set_size(on_record));
            return Err(error);
        }
        inode.core.set_size(size);
        transaction.end();
        Ok(())
    }

    /// Takes away what a truncation that failed has left behind the end of a file, so that it does
    /// not show when the file grows, nor takes with it what is put there. The caller holds the inode lock exclusively.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `ReadOnly`: the file can't grow.
    pub(crate) fn finish_cut(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
    ) -> Result<()> {
        if inode.core.is_half_cut() {
            self.shrink(held, inode, inode.core.size())?;
        }
        Ok(())
    }

    /// Zeroes on the device what lies behind the end of a file in its last block, before the file
    /// is written past its end. The caller holds the inode lock exclusively.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `ReadOnly`.
    pub(crate) fn zero_tail(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
    ) -> Result<()> {
        self.finish_cut(held, inode)?;
        let size = inode.core.size();
        let block_size = u64::from(self.instance.superblock.block_size());
        if size.is_multiple_of(block_size) || inode.disk().has_inline_data() {
            return Ok(());
        }
        let mapping = inode.mapping(&self.instance, &self.cache);
        let end = size.next_multiple_of(PAGE_SIZE as u64);
        let (mut fence, mut held) = mapping.fence(held, size..end);
        let _evicted = fence.evict(&mut held, Evict::Discard)?;
        Ok(())
    }

    fn shrink(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        size: u64,
    ) -> Result<()> {
        let mapping = inode.mapping(&self.instance, &self.cache);
        let old = inode.core.size();
        let block_size = u64::from(self.instance.superblock.block_size());
        let first = u32::try_from(size.div_ceil(block_size)).map_err(|_| Error::FileTooLarge)?;
        let (mut fence, mut held) = mapping.fence(held, size..u64::MAX);
        let evicted = fence.evict_with(&mut held, Evict::Discard, || inode.core.set_size(size))?;
        {
            let (mut delayed, _held) = inode.core.block_map.write(&mut held);
            delayed.forget(first..u32::MAX);
            if size == 0 && old > 0 {
                delayed.set_flush_on_close();
            }
            evicted.mapping().backing().note_delayed(&delayed);
        }
        self.cover_delayed(&mut held, inode, &evicted)?;
        self.cut_blocks(&mut held, inode, &evicted, FileBlock(first))
    }

    /// Takes away the blocks from `first` on, whose pages are gone. Should that fail before it changed
    /// anything, the file ends where it was to all the same, and is an orphan.
    fn cut_blocks(
        &self,
        held: &mut Held<'_, Invalidate>,
        inode: &Arc<Inode>,
        evicted: &Evicted<'_, FileData>,
        first: FileBlock,
    ) -> Result<()> {
        let live = self.instance.live()?;
        let size = evicted.range().start;
        let mut is_orphan = inode.core.is_half_cut();
        loop {
            let (mut transaction, mut held) = self.instance.begin(held, STEP)?;
            let (mut delayed, _held) = inode.core.block_map.write(&mut held);
            let mut cut = Cut::of(evicted);
            cut.record_mut().set_size(size);
            let progress = match remove_blocks(&mut transaction, &mut cut, first) {
                Err(error) if transaction.is_empty() => {
                    inode.core.set_half_cut(true);
                    inode.core.update(|record| record.set_size(size));
                    live.orphans.add(&mut transaction, inode)?;
                    if let Ok(shape) = MapShapeNow::of(&self.instance, &inode.disk()) {
                        delayed.settle(&shape, None);
                    }
                    transaction.end();
                    return Err(error);
                }
                progress => progress?,
            };
            cut.adopt();
            match progress {
                Progress::More => {
                    live.orphans.add(&mut transaction, inode)?;
                    is_orphan = true;
                }
                Progress::Done if is_orphan => live.orphans.remove(&mut transaction, inode)?,
                Progress::Done => inode.core.write(&mut transaction, true)?,
            }
            let shape = MapShapeNow::of(&self.instance, &inode.disk())?;
            delayed.settle(&shape, None);
            transaction.end();
            if progress == Progress::Done {
                inode.core.set_half_cut(false);
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::max_mapped_blocks;

    /// As Linux reckons: 4 TiB with blocks of 4 KiB, 16 GiB with 1 KiB; 2 TiB less the map where
    /// sectors are counted in 32 bits.
    #[test]
    fn sizes_of_block_maps() {
        let counted = |bits: u32| u64::from(u32::MAX) >> (bits - 9);
        assert_eq!(max_mapped_blocks(256, counted(10)), 16_843_020);
        assert_eq!(
            max_mapped_blocks(1024, (1 << 48) - 1) << 12,
            4_402_345_721_856
        );
        assert_eq!(
            max_mapped_blocks(1024, counted(12)) << 12,
            2_196_873_666_560
        );
    }
}
