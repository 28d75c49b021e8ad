//! The hash index of a directory: from a hash to the block of entries, and from block to block.

use pagefence_block_io::Buffer;
use pagefence_ext4_format::htree::{self, DirHasher, DxNode, DxRoot, HtreeCorruption, HtreeFormat};
use pagefence_ext4_format::{BlockNo, Corruption, FileBlock};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::Result;

use crate::alloc::BlockOwner;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::{Instance, checked};

/// Buffers whose entries were checked, as those of the root or of a node, remember it so.
const DX_ENTRIES: u32 = 1 << 10;

/// The way from the root of an index to one block of entries.
#[derive(Debug)]
pub(crate) struct DxPath {
    /// Root first; never empty.
    frames: Vec<Frame>,
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
        let node = if level == 0 {
            DxRoot::reopen(&frame.buffer).map(|root| root.node)
        } else {
            DxNode::reopen(&frame.buffer, frame.floor)
        };
        Ok(node.ok_or(HtreeCorruption::NotANode)?)
    }

    /// Levels of nodes below the root.
    pub(crate) fn levels(&self) -> usize {
        self.frames.len() - 1
    }

    /// Whether the index block of a level has no room for another entry.
    pub(crate) fn is_full(&self, level: usize) -> Result<bool, Corruption> {
        Ok(self.node(level)?.is_full())
    }

    /// The entries of a level's block, copied out; the first has no hash.
    pub(crate) fn entries(&self, level: usize) -> Result<Vec<(u32, FileBlock)>, Corruption> {
        let mut entries: Vec<_> = self.node(level)?.iter().collect();
        if let Some(first) = entries.first_mut() {
            first.0 = 0;
        }
        Ok(entries)
    }

    /// The index block of a level, and the entry followed in it.
    pub(crate) fn step(&self, level: usize) -> (BlockNo, usize) {
        let frame = &self.frames[level];
        (BlockNo(frame.buffer.block()), frame.at)
    }

    /// The hash and the block of entry `at` of a level.
    fn entry(&self, level: usize, at: usize) -> Result<Option<(u32, FileBlock)>, Corruption> {
        Ok(self.node(level)?.get(at))
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
        let buffer = self.read_owned(BlockOwner::Contents(inode.number), at)?;
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

    /// The root of the index, checked once while it is in memory.
    fn dx_root(&self, inode: &DiskInode) -> Result<Arc<Buffer>> {
        let buffer = self.dx_block(inode, FileBlock(0))?;
        if !buffer.verified(DX_ENTRIES) {
            DxRoot::parse(&buffer, &self.htree_format(inode)?)
                .map(|_| ())
                .at(
                    &self.damage,
                    Some(inode.number),
                    Some(BlockNo(buffer.block())),
                )?;
            buffer.set_verified(DX_ENTRIES);
        }
        Ok(buffer)
    }

    /// What the root says, once it was checked.
    fn dx_head<'a>(&self, inode: &DiskInode, root: &'a Buffer) -> Result<DxRoot<'a>> {
        DxRoot::reopen(root)
            .ok_or_else(|| HtreeCorruption::NotANode.into())
            .at(
                &self.damage,
                Some(inode.number),
                Some(BlockNo(root.block())),
            )
    }

    /// The hash function of the directory's index, if its root is sound.
    pub(crate) fn dx_hasher(&self, inode: &DiskInode) -> Result<DirHasher> {
        let buffer = self.dx_root(inode)?;
        let root = self.dx_head(inode, &buffer)?;
        self.dx_hasher_of(inode, &root, &buffer)
    }

    fn dx_hasher_of(
        &self,
        inode: &DiskInode,
        root: &DxRoot<'_>,
        buffer: &Buffer,
    ) -> Result<DirHasher> {
        self.dir_hasher(Some(root.hash_version))
            .map_err(Corruption::from)
            .at(
                &self.damage,
                Some(inode.number),
                Some(BlockNo(buffer.block())),
            )
    }

    /// The hash of a name, and the way to the first block that may hold it.
    pub(crate) fn dx_find(&self, inode: &DiskInode, name: &[u8]) -> Result<(u32, DxPath)> {
        let buffer = self.dx_root(inode)?;
        let root = self.dx_head(inode, &buffer)?;
        let major = self.dx_hasher_of(inode, &root, &buffer)?.hash(name).major;
        let (levels, at) = (usize::from(root.indirect_levels), root.node.find(major));
        Ok((major, self.dx_path(inode, buffer, levels, at, major)?))
    }

    /// The way to the first block that may hold names of the hash `major`.
    pub(crate) fn dx_probe(&self, inode: &DiskInode, major: u32) -> Result<DxPath> {
        let buffer = self.dx_root(inode)?;
        let root = self.dx_head(inode, &buffer)?;
        let (levels, at) = (usize::from(root.indirect_levels), root.node.find(major));
        self.dx_path(inode, buffer, levels, at, major)
    }

    /// The way for `major`, that begins with entry `at` of the root.
    fn dx_path(
        &self,
        inode: &DiskInode,
        root: Arc<Buffer>,
        levels: usize,
        at: usize,
        major: u32,
    ) -> Result<DxPath> {
        let mut path = DxPath {
            frames: vec![Frame {
                buffer: root,
                floor: 0,
                at,
            }],
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
            let place = Some(BlockNo(buffer.block()));
            if !buffer.verified(DX_ENTRIES) {
                DxNode::parse(&buffer, &self.htree_format(inode)?, floor)
                    .map(|_| ())
                    .at(&self.damage, Some(inode.number), place)?;
                buffer.set_verified(DX_ENTRIES);
            }
            let at = DxNode::reopen(&buffer, floor)
                .map(|node| choose(&node))
                .ok_or_else(|| HtreeCorruption::NotANode.into())
                .at(&self.damage, Some(inode.number), place)?;
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
