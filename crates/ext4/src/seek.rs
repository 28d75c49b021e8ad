//! The next data or hole of a file (lseek's `SEEK_DATA` and `SEEK_HOLE`).

use pagefence_ext4_format::FileBlock;
use pagefence_lock_order::Held;
use pagefence_vfs::{Error, Result, Whence};

use crate::delalloc::Delayed;
use crate::disk_inode::DiskInode;
use crate::filesystem::FileSystem;
use crate::inode::Inode;
use crate::map_blocks::Target;

impl FileSystem {
    /// See [`pagefence_vfs::FileSystem::seek`]. Blocks with dirty data are data: those that have no
    /// place yet, and those that are unwritten on disk. Takes the block map's lock shared, a run at
    /// a time.
    pub(crate) fn seek_run(&self, inode: &Inode, offset: u64, wanted: Whence) -> Result<u64> {
        let size = inode.core.size();
        if offset >= size {
            return Err(Error::NoData);
        }
        if inode.disk().has_inline_data() {
            return Ok(if wanted == Whence::Data { offset } else { size });
        }
        let bits = self.instance.superblock.block_size_bits();
        let mut held = Held::at_entry();
        let (mut at, mut blocks) = (offset, 0);
        while at < size {
            let Ok(block) = u32::try_from(at >> bits) else {
                break;
            };
            let (is_data, len) = {
                let (delayed, _held) = inode.core.block_map.read(&mut held);
                self.kind_at(&inode.disk(), &delayed, FileBlock(block))?
            };
            if is_data == (wanted == Whence::Data) {
                return Ok(at);
            }
            if is_data {
                blocks += u64::from(len);
                self.check_length(&inode.disk(), blocks)?;
            }
            at = (u64::from(block) + u64::from(len)) << bits;
        }
        match wanted {
            Whence::Data => Err(Error::NoData),
            Whence::Hole => Ok(size),
        }
    }

    /// Whether `block` is data, and for how many blocks the answer holds.
    fn kind_at(
        &self,
        disk: &DiskInode,
        delayed: &Delayed,
        block: FileBlock,
    ) -> Result<(bool, u32)> {
        let run = self.instance.map_blocks(disk, block)?;
        let (is_dirty, len) = match run.target {
            Target::Written(_) => return Ok((true, run.len)),
            Target::Hole => delayed.hole_at(block),
            Target::Unwritten(_) => delayed.unwritten_at(block),
        };
        Ok((is_dirty, len.min(run.len).max(1)))
    }

    /// A map with more blocks than there are shares them: an indirect block that points to itself
    /// makes billions of a few, and whoever goes through them all is busy for hours.
    fn check_length(&self, disk: &DiskInode, blocks: u64) -> Result<()> {
        if blocks <= 2 * self.instance.superblock.blocks_count() {
            return Ok(());
        }
        let what = "it has more blocks than the file system";
        Err(self.instance.damaged(disk.number, None, what))
    }
}
