//! Extent trees: from a file block to the extent that holds it.

use pagefence_block_io::Buffer;
use pagefence_ext4_format::checksum::ChecksumSeed;
use pagefence_ext4_format::extent::{
    self, Child, Extent, ExtentNode, Found, Place, entries_that_fit,
};
use pagefence_ext4_format::{BlockNo, FileBlock, InodeNo};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::Result;

use crate::alloc::BlockOwner;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::{Instance, checked};
use crate::map_blocks::{Run, Target};

impl Instance {
    /// Looks `block` up in the inode's extent tree. Every node is checked in full when it is
    /// first met in memory; depths fall by one a level, so the walk ends.
    pub(crate) fn find_extent(&self, inode: &DiskInode, block: FileBlock) -> Result<Run> {
        self.walk_to(inode, block, |_, _, _| Ok(()))
    }

    /// Makes sure that each node on the way to `block` says that it has room for as many entries as
    /// fit. Less is no damage for who reads.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn check_extent_room(&self, inode: &DiskInode, block: FileBlock) -> Result<()> {
        let check = |node: &ExtentNode<'_>, bytes: &[u8], at: Option<BlockNo>| {
            if node.max() == entries_that_fit(bytes.len()) {
                return Ok(());
            }
            let what = "a node of its extent tree has less room than there is";
            Err(self.damaged(inode.number, at, what))
        };
        self.walk_to(inode, block, check).map(drop)
    }

    /// Finds `block`, and shows `visit` each node on the way: the node, its bytes, and its block if
    /// it is not the root.
    pub(crate) fn walk_to(
        &self,
        inode: &DiskInode,
        block: FileBlock,
        mut visit: impl FnMut(&ExtentNode<'_>, &[u8], Option<BlockNo>) -> Result<()>,
    ) -> Result<Run> {
        let bytes = inode.i_block();
        let root = ExtentNode::parse(bytes, &Place::Root, &self.limits).at(
            &self.damage,
            Some(inode.number),
            None,
        )?;
        visit(&root, bytes, None)?;
        let mut found = root.find(block);
        loop {
            match found {
                Found::Extent(extent) => return Ok(run_of(&extent, block)),
                Found::Hole { until } => return Ok(Run::hole(until.0.saturating_sub(block.0))),
                Found::Child(child) => {
                    let buffer = self.extent_node(inode.number, inode.seed, &child)?;
                    let node = ExtentNode::reopen(&buffer, &Place::Block(child)).at(
                        &self.damage,
                        Some(inode.number),
                        Some(child.block),
                    )?;
                    // It was checked in full for the entry that led to it first: another one, of
                    // this file or of another, must not lead to the same block.
                    if first_block(&node).is_some_and(|first| first != child.first) {
                        return Err(self.damaged(
                            inode.number,
                            Some(child.block),
                            "two entries of extent trees lead to one block",
                        ));
                    }
                    visit(&node, &buffer, Some(child.block))?;
                    found = node.find(block);
                }
            }
        }
    }

    /// Reads a node below the root of the tree of `inode`, and checks it, once while it is in
    /// memory. `seed` is the inode's.
    pub(crate) fn extent_node(
        &self,
        inode: InodeNo,
        seed: ChecksumSeed,
        child: &Child,
    ) -> Result<Arc<Buffer>> {
        let buffer = self.read_owned(BlockOwner::Map(inode), child.block)?;
        if !buffer.verified(checked::EXTENT_NODE) {
            self.checksums
                .then(|| extent::verify_checksum(&buffer, seed))
                .transpose()
                .and_then(|_| {
                    ExtentNode::parse(&buffer, &Place::Block(*child), &self.limits).map(|_| ())
                })
                .at(&self.damage, Some(inode), Some(child.block))?;
            buffer.set_verified(checked::EXTENT_NODE);
        }
        Ok(buffer)
    }
}

/// The first file block that a node knows of.
fn first_block(node: &ExtentNode<'_>) -> Option<FileBlock> {
    node.extent(0)
        .map(|extent| extent.first)
        .or_else(|| node.child(0).map(|child| child.first))
}

fn run_of(extent: &Extent, block: FileBlock) -> Run {
    let Some(start) = extent.block_at(block) else {
        return Run::hole(1);
    };
    Run {
        len: extent.end().0.saturating_sub(block.0).max(1),
        target: if extent.unwritten {
            Target::Unwritten(start)
        } else {
            Target::Written(start)
        },
    }
}
