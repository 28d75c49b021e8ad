//! Block groups: their descriptors, and where inodes lie.

use pagefence_block_io::Buffer;
use pagefence_ext4_format::group_desc::GroupDesc;
use pagefence_ext4_format::inode::Inode as InodeRecord;
use pagefence_ext4_format::{BlockNo, Corruption, GroupNo, InodeNo};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::Result;

use crate::error::{At, device};
use crate::instance::Instance;

/// Bytes of an inode table that are read together (Linux: 32 blocks, `inode_readahead_blks`).
const INODE_TABLE_WINDOW_BYTES: u64 = 128 << 10;

impl Instance {
    /// The descriptor of a group, checked.
    pub(crate) fn group_desc(&self, group: GroupNo) -> Result<GroupDesc> {
        let (block, desc) = self.parse_group_desc(group)?;
        desc.at(&self.damage, None, Some(block))
    }

    /// As [`Self::group_desc`], for those who go on without it: what is wrong is not logged.
    pub(crate) fn sound_group_desc(&self, group: GroupNo) -> Option<GroupDesc> {
        self.parse_group_desc(group).ok()?.1.ok()
    }

    fn parse_group_desc(&self, group: GroupNo) -> Result<(BlockNo, Result<GroupDesc, Corruption>)> {
        let (index, offset) =
            self.superblock
                .locate_descriptor(group)
                .at(&self.damage, None, None)?;
        let block = self.descriptor_block(index)?;
        let buffer = self.read_block(block)?;
        let bytes = buffer.get(offset..).unwrap_or(&[]);
        Ok((block, GroupDesc::parse(bytes, group, &self.superblock)))
    }

    /// Block `index` of the descriptors: those behind the superblock that was used, which may be
    /// a backup; with meta_bg each lies in its own place.
    fn descriptor_block(&self, index: u32) -> Result<BlockNo> {
        let superblock = &self.superblock;
        if self.superblock_block != superblock.superblock_block()
            && index < superblock.contiguous_descriptor_blocks()
        {
            return Ok(BlockNo(
                self.superblock_block
                    .0
                    .saturating_add(1)
                    .saturating_add(u64::from(index)),
            ));
        }
        superblock
            .descriptor_block(index)
            .at(&self.damage, None, None)
    }

    /// First block of a group's inode table.
    fn inode_table(&self, group: GroupNo) -> Result<BlockNo> {
        if let Some(known) = self.inode_tables.get(group) {
            return Ok(known);
        }
        let table = self.group_desc(group)?.inode_table();
        self.inode_tables.set(group, table);
        Ok(table)
    }

    /// The block of the inode table that holds an inode, and the record's offset in it.
    pub(crate) fn inode_block(&self, number: InodeNo) -> Result<(BlockNo, usize)> {
        let location = self
            .superblock
            .locate_inode(number)
            .at(&self.damage, Some(number), None)?;
        let table = self.inode_table(location.group)?;
        let block = table
            .checked_add(u64::from(location.table_block))
            .ok_or_else(|| self.damaged(number, None, "an inode table past the end"))?;
        Ok((block, location.offset))
    }

    /// Reads an inode's record and checks it; an inode never used has no kind.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn read_inode(&self, number: InodeNo) -> Result<InodeRecord> {
        let (block, offset) = self.inode_block(number)?;
        let buffer = self.inode_table_buffer(number, block)?;
        let size = self.superblock.inode_size();
        let bytes = offset
            .checked_add(size)
            .and_then(|end| buffer.get(offset..end))
            .unwrap_or(&[]);
        InodeRecord::parse(bytes, number, &self.superblock).at(
            &self.damage,
            Some(number),
            Some(block),
        )
    }

    /// The block of an inode table, read along with its neighbours in the table if it is not in
    /// memory: whoever wants one inode mostly wants the next.
    fn inode_table_buffer(&self, number: InodeNo, block: BlockNo) -> Result<Arc<Buffer>> {
        if let Some(buffer) = self.buffers.peek(block.0) {
            return Ok(buffer);
        }
        if let Some((first, count)) = self.inode_table_window(number, block)
            && let Ok(run) = self.buffers.read_run(first, count)
            && let Some(buffer) = run.into_iter().find(|buffer| buffer.block() == block.0)
        {
            return Ok(buffer);
        }
        // The window reaches a bad sector, perhaps: the block alone may still be good.
        self.buffers.read(block.0).map_err(device)
    }

    /// The aligned window of the inode table around `block`.
    fn inode_table_window(&self, number: InodeNo, block: BlockNo) -> Option<(u64, usize)> {
        let location = self.superblock.locate_inode(number).ok()?;
        let table = block.0.checked_sub(u64::from(location.table_block))?;
        let blocks = u64::from(self.superblock.inode_table_blocks());
        let window = (INODE_TABLE_WINDOW_BYTES >> self.superblock.block_size_bits()).max(1);
        let start = u64::from(location.table_block) / window * window;
        let end = (start + window).min(blocks);
        Some((
            table.checked_add(start)?,
            usize::try_from(end.checked_sub(start)?).ok()?,
        ))
    }

    /// Reads the inode table blocks of many inodes into memory, neighbours together, so that
    /// [`Self::read_inode`] of each finds its own there. Failures show at that read.
    pub(crate) fn prefetch_inodes(&self, numbers: impl Iterator<Item = InodeNo>) {
        let mut blocks: Vec<(BlockNo, InodeNo)> = numbers
            .filter_map(|number| Some((self.inode_block(number).ok()?.0, number)))
            .collect();
        blocks.sort_unstable_by_key(|(block, _)| *block);
        blocks.dedup_by_key(|(block, _)| *block);
        for (block, number) in blocks {
            if self.buffers.peek(block.0).is_none() {
                let _ = self.inode_table_buffer(number, block);
            }
        }
    }
}
