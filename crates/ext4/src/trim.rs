//! Free space that the device is told of (FITRIM). Rules: Linux's `ext4_trim_fs`.

use pagefence_ext4_format::BlockNo;
use pagefence_vfs::{Error, Result};

use crate::error::device;
use crate::filesystem::FileSystem;

impl FileSystem {
    /// Tells the device of free blocks. They are nobody's meanwhile: the allocator lends them, a
    /// run at a time, and takes locks of groups; who needs just these blocks waits. What a
    /// transaction freed is passed over until it
    /// is durable.
    pub(crate) fn trim_free_space(&self, offset: u64, length: u64, least: u64) -> Result<u64> {
        let live = self.instance.live()?;
        let to = self.instance.device();
        if !to.capabilities().discard {
            return Err(Error::Unsupported("telling the device of free space"));
        }
        let superblock = &self.instance.superblock;
        let block_size = u64::from(superblock.block_size());
        let least = u32::try_from(least.div_ceil(block_size)).unwrap_or(u32::MAX);
        let blocks_count = superblock.blocks_count();
        let refused = least > superblock.blocks_per_group()
            || offset / block_size >= blocks_count
            || length < block_size;
        if refused {
            return Err(Error::InvalidArgument);
        }
        let first = superblock.first_data_block().0;
        let from = (offset / block_size).max(first);
        let end = (offset / block_size)
            .saturating_add(length / block_size)
            .min(blocks_count);
        let mut told = 0;
        let mut at = from;
        while at < end {
            let run = live
                .allocator
                .next_free_run(&self.instance, BlockNo(at), least.max(1))?;
            let Some(run) = run.filter(|run| run.start().0 < end) else {
                at = self.next_group(at);
                continue;
            };
            let start = run.start().0.max(at);
            let behind = run.start().0 + u64::from(run.len());
            let count = behind.min(end).saturating_sub(start);
            if count >= u64::from(least.max(1)) {
                let bytes = (start * block_size, count * block_size);
                to.discard(bytes.0, bytes.1).map_err(device)?;
                told += bytes.1;
            }
            drop(run);
            at = behind.max(at + 1);
        }
        Ok(told)
    }

    /// The first block of the group behind the one that `block` is in.
    fn next_group(&self, block: u64) -> u64 {
        let superblock = &self.instance.superblock;
        match superblock.group_of_block(BlockNo(block)) {
            Ok((group, within)) => {
                block - u64::from(within) + u64::from(superblock.blocks_in_group(group))
            }
            Err(_) => u64::MAX,
        }
    }
}
