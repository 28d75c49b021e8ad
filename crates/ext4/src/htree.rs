//! The hash index of a directory: from a hash to the block of entries, and from block to block.

use pagefence_block_io::Buffer;
use pagefence_ext4_format::htree::{self, DirHasher, DxNode, DxRoot, HtreeFormat};
use pagefence_ext4_format::{BlockNo, Corruption, FileBlock};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::Result;

use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::{Instance, checked};

/// The way from the root of an index to one block of entries.
#[derive(Debug)]
pub(crate) struct DxPath {
    /// Root first; never empty.
    frames: Vec<Frame>,
    format: HtreeFormat,
}

/// One level of the way.
#[derive(Debug)]
struct Frame {
    buffer: Arc<Buffer>,
    /// The hash of the entry that led here.
    floor: u32,
    /// The entry that was followed.
    at: usize,
}

impl DxPath {
    /// The entries of level `level`, which were checked when the frame was made.
    fn node(&self, level: usize) -> Result<DxNode<'_>, Corruption> {
        let frame = &self.frames[level];
        if level == 0 {
            Ok(DxRoot::parse(&frame.buffer, &self.format)?.node)
        } else {
            DxNode::parse(&frame.buffer, &self.format, frame.floor)
        }
    }

    /// The hash and the block of entry `at` of a level.
    fn entry(&self, level: usize, at: usize) -> Result<Option<(u32, FileBlock)>, Corruption> {
        Ok(self.node(level)?.get(at))
    }

    /// The blocks of the index on the way, root first, and the entry followed in each.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (BlockNo, usize)> {
        self.frames
            .iter()
            .map(|frame| (BlockNo(frame.buffer.block()), frame.at))
    }

    /// The block of entries at the end of the way.
    pub(crate) fn leaf(&self) -> Result<FileBlock, Corruption> {
        let lowest = self.frames.len() - 1;
        Ok(self
            .entry(lowest, self.frames[lowest].at)?
            .map_or(FileBlock(0), |(_, block)| block))
    }
}

impl Instance {
    fn htree_format(&self, inode: &DiskInode) -> Result<HtreeFormat> {
        Ok(HtreeFormat {
            checksums: self.checksums,
            large_dir: self
                .superblock
                .has_incompat(pagefence_ext4_format::features::Incompat::LARGE_DIR),
            blocks: self.dir_blocks(inode)?,
        })
    }

    /// A block of the index, its checksum checked once while it is in memory.
    fn dx_block(&self, inode: &DiskInode, block: FileBlock) -> Result<Arc<Buffer>> {
        let at = self.metadata_block(inode, block)?;
        let buffer = self.read_block(at)?;
        if self.checksums && !buffer.verified(checked::DX_NODE) {
            htree::verify_checksum(&buffer, inode.seed).at(
                &self.damage,
                Some(inode.number),
                Some(at),
            )?;
            buffer.set_verified(checked::DX_NODE);
        }
        Ok(buffer)
    }

    /// The hash function of the directory's index, if its root is sound.
    pub(crate) fn dx_hasher(&self, inode: &DiskInode) -> Result<DirHasher> {
        let format = self.htree_format(inode)?;
        let buffer = self.dx_block(inode, FileBlock(0))?;
        DxRoot::parse(&buffer, &format)
            .and_then(|root| Ok(self.dir_hasher(Some(root.hash_version))?))
            .at(
                &self.damage,
                Some(inode.number),
                Some(BlockNo(buffer.block())),
            )
    }

    /// The way to the first block that may hold names of the hash `major`.
    pub(crate) fn dx_probe(&self, inode: &DiskInode, major: u32) -> Result<DxPath> {
        let format = self.htree_format(inode)?;
        let root = self.dx_block(inode, FileBlock(0))?;
        let at_root = BlockNo(root.block());
        let (levels, at) = DxRoot::parse(&root, &format)
            .map(|root| (usize::from(root.indirect_levels), root.node.find(major)))
            .at(&self.damage, Some(inode.number), Some(at_root))?;
        let mut path = DxPath {
            frames: vec![Frame {
                buffer: root,
                floor: 0,
                at,
            }],
            format,
        };
        self.dx_descend(inode, &mut path, levels, |node| node.find(major))?;
        Ok(path)
    }

    /// Follows the lowest frame's entry until the path has `levels` frames below the root;
    /// `choose` picks the entry in each new node.
    fn dx_descend(
        &self,
        inode: &DiskInode,
        path: &mut DxPath,
        levels: usize,
        choose: impl Fn(&DxNode<'_>) -> usize,
    ) -> Result<()> {
        while path.frames.len() <= levels {
            let lowest = path.frames.len() - 1;
            let (floor, block) = path
                .entry(lowest, path.frames[lowest].at)
                .at(&self.damage, Some(inode.number), None)?
                .unwrap_or((0, FileBlock(0)));
            let buffer = self.dx_block(inode, block)?;
            let at = DxNode::parse(&buffer, &path.format, floor)
                .map(|node| choose(&node))
                .at(
                    &self.damage,
                    Some(inode.number),
                    Some(BlockNo(buffer.block())),
                )?;
            path.frames.push(Frame { buffer, floor, at });
        }
        Ok(())
    }

    /// The hash at which the block of entries after the path's begins; nothing if it is the last.
    pub(crate) fn dx_next_hash(&self, inode: &DiskInode, path: &DxPath) -> Result<Option<u32>> {
        for level in (0..path.frames.len()).rev() {
            let next = path.entry(level, path.frames[level].at + 1).at(
                &self.damage,
                Some(inode.number),
                None,
            )?;
            if let Some((hash, _)) = next {
                return Ok(Some(hash));
            }
        }
        Ok(None)
    }

    /// Moves the path to the next block of entries; false if it was at the last.
    pub(crate) fn dx_advance(&self, inode: &DiskInode, path: &mut DxPath) -> Result<bool> {
        let levels = path.frames.len() - 1;
        for level in (0..=levels).rev() {
            let at = path.frames[level].at + 1;
            let next = path
                .entry(level, at)
                .at(&self.damage, Some(inode.number), None)?;
            if next.is_some() {
                path.frames.truncate(level + 1);
                path.frames[level].at = at;
                self.dx_descend(inode, path, levels, |_| 0)?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}
