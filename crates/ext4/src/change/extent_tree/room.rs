//! What a change of an extent tree will take: looked at before the change, so that nothing is left
//! half done where it can't be had.

use pagefence_ext4_format::FileBlock;
use pagefence_ext4_format::extent::{ExtentNode, MAX_DEPTH};
use pagefence_ext4_format::inode::Inode as InodeRecord;
use pagefence_vfs::Result;

use super::{ExtentTree, Leaf, Step, part};
use crate::alloc::Reach;
use crate::error::At;
use crate::instance::Instance;

impl ExtentTree<'_, '_> {
    /// Makes sure that [`ExtentTree::punch`] won't fail on a range within one extent: it may become
    /// two, or be the last of nodes that go.
    ///
    /// # Errors
    /// `Corrupt`; `NoSpace` if the transaction has no blocks for nodes that split; `Io`. Nothing
    /// changed.
    pub(crate) fn check_punch(&mut self, first: FileBlock, end: FileBlock) -> Result<()> {
        let (path, leaf) = self.descend(first)?;
        let Some((_, extent)) = leaf.first_past(first) else {
            return Ok(());
        };
        let left = part(&extent, extent.first, first);
        let right = part(&extent, end, extent.end());
        match (left, right) {
            (Some(_), Some(_)) => self.check_room(&path, &leaf, 1),
            (None, None) if leaf.extents.len() == 1 => self.check_prune(&path),
            _ => Ok(()),
        }
    }

    /// How many nodes come to the tree at most when a block is put at `at`.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn nodes_for_block(&self, at: FileBlock) -> Result<u64> {
        let (path, leaf) = self.descend(at)?;
        Ok(self.nodes_for(&path, &leaf, 1)?.unsigned_abs())
    }

    /// Makes sure that `more` entries can be put into the leaf at the end of `path`, side by side:
    /// that it has room for them, or that there are blocks for nodes that split, and sectors of the
    /// inode to count them in.
    pub(in crate::change) fn check_room(
        &mut self,
        path: &[Step],
        leaf: &Leaf,
        more: usize,
    ) -> Result<()> {
        let nodes = self.nodes_for(path, leaf, more)?;
        if nodes == 0 {
            return Ok(());
        }
        let instance = self.transaction.instance;
        let mut counted = self.record.clone();
        count_blocks(instance, &mut counted, nodes)?;
        let goal = path.last().map_or_else(
            || instance.superblock.first_data_block(),
            |step| step.child.block,
        );
        self.transaction
            .prepare(goal, Reach::Everywhere, nodes.unsigned_abs())
    }

    /// How many nodes come to the tree when `more` entries are put into that leaf: it splits if it
    /// is too full, and so does each full node above it; if they all are, the root grows.
    pub(in crate::change) fn nodes_for(
        &self,
        path: &[Step],
        leaf: &Leaf,
        more: usize,
    ) -> Result<i64> {
        if leaf.extents.len() + more <= leaf.max {
            return Ok(0);
        }
        let mut nodes = 0;
        for step in path.iter().rev() {
            nodes += 1;
            if step.has_room {
                return Ok(nodes);
            }
        }
        if path.len() >= usize::from(MAX_DEPTH) {
            return Err(self.damaged("its extent tree is full"));
        }
        Ok(nodes + 1)
    }

    /// Makes sure that the leaf at the end of `path` can go, and each node that this empties.
    fn check_prune(&self, path: &[Step]) -> Result<()> {
        for step in path.iter().rev() {
            self.transaction
                .check_release(self.record.ino(), step.child.block)?;
            if !step.is_only {
                break;
            }
        }
        Ok(())
    }
}

/// Counts blocks that the inode owns more, or fewer, into its sectors.
///
/// # Errors
/// `Corrupt` if the record has no room for so many.
pub(crate) fn count_blocks(instance: &Instance, record: &mut InodeRecord, more: i64) -> Result<()> {
    let per_block = i64::from(instance.superblock.block_size() / 512);
    let sectors = record
        .sectors()
        .saturating_add_signed(more.saturating_mul(per_block));
    record
        .set_sectors(sectors)
        .at(&instance.damage, Some(record.ino()), None)
}

/// Whether a node has room for another entry.
pub(super) fn has_room(node: &ExtentNode<'_>) -> bool {
    node.len() < node.max().into()
}
