//! Splitting a node of an extent tree in two.

use pagefence_ext4_format::extent::{Child, ExtentNodeMut};
use pagefence_vfs::Result;

use crate::change::extent_tree::{ExtentTree, Step, first_of};

impl ExtentTree<'_, '_> {
    /// Moves the upper half of the entries of the node `split` into a new node behind it, of which
    /// the node above, that has room, learns. `at_end`: the last one only.
    ///
    /// Without a log both halves go into new blocks, so that a crash shows the old node or the new
    /// ones, as the node above says: e2fsck mends neither a node that lost what no other has yet,
    /// nor one that still has what another has, too.
    ///
    /// # Errors
    /// `Corrupt`; `Io` (also of the kind `StorageFull`) or `NoSpace` if there is no block for it.
    pub(super) fn split(&mut self, above: Option<&Step>, split: &Step, at_end: bool) -> Result<()> {
        let (inode, old) = (self.record.ino(), split.child.block);
        let (right, mut bytes) = self.new_node(split.child.depth, old)?;
        let replacement = self.transaction.replacement(inode, old);
        let mut cut = |left: &mut ExtentNodeMut<'_>| {
            let mid = if at_end {
                left.len().saturating_sub(1)
            } else {
                left.len() / 2
            };
            ExtentNodeMut::open(&mut bytes).is_ok_and(|mut right| left.move_tail(mid, &mut right))
        };
        let moved = match replacement {
            None => self.edit(Some(split), cut)?,
            Some(left) => {
                let mut copy = self.transaction.instance.read_block(old)?.to_vec();
                let moved = ExtentNodeMut::open(&mut copy).is_ok_and(|mut left| cut(&mut left));
                self.put_node(left, &mut copy)?;
                self.transaction.release(inode, old)?;
                self.transaction.forget(old);
                moved
            }
        };
        let first = first_of(&bytes, split.child.depth);
        let (true, Some(first)) = (moved, first) else {
            return Err(self.damaged("a full node of its extent tree can't be split"));
        };
        self.put_node(right, &mut bytes)?;
        let child = Child {
            first,
            end: split.child.end,
            block: right,
            depth: split.child.depth,
        };
        let left = Child {
            block: replacement.unwrap_or(old),
            ..split.child
        };
        let done = self.edit(above, |node| {
            node.set_child(split.at, &left) && node.insert_child(split.at + 1, &child)
        })?;
        debug_assert!(done, "the node above has room");
        Ok(())
    }
}
