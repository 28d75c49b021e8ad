//! Moving what an extent tree maps behind some block to lower or to higher file blocks.
//!
//! A step moves a leaf: all its entries that are to move, in one change of its block, and the keys
//! that lead to it where its first entry moved. Down, leaves go from the first to the last; up,
//! from the last to the first: so a leaf always moves into a hole, the tree is in order after each
//! step, and a transaction can end there. No block of the tree is freed, and none is taken but
//! where an extent that lies across the block from which all moves is cut in two. Data blocks stay
//! where they are.
//!
//! What can't be read, or makes no sense, is met before a step changes anything. Each node on the
//! way is checked in full against the entry that leads to it: one that was moved, and that another
//! entry leads to as well, is found so.

use pagefence_ext4_format::FileBlock;
use pagefence_ext4_format::extent::{Extent, ExtentNode, FILE_BLOCKS_END, Place};
use pagefence_vfs::{Error, Result};

use crate::change::cut::Cut;
use crate::change::extent_tree::{ExtentTree, Leaf, Step, after, join, part};
use crate::change::remove_blocks::Progress;
use crate::change::transaction::Transaction;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::Instance;

/// Extents on their way down, from the first to the last.
#[derive(Debug)]
pub(crate) struct ShiftDown {
    /// What begins here or behind has not moved yet.
    next: FileBlock,
    /// Blocks of the hole before it, which comes out behind the last.
    by: u32,
}

/// Extents on their way up, from the last to the first.
#[derive(Debug)]
pub(crate) struct ShiftUp {
    /// What begins here or behind has moved.
    end: FileBlock,
    /// From here on all moves.
    from: FileBlock,
    /// Blocks of the hole that comes in here.
    by: u32,
}

impl ShiftDown {
    /// Moves what lies from `from` on by `by` blocks down, which must be a hole below `from`.
    pub(crate) fn new(from: FileBlock, by: u32) -> Self {
        debug_assert!(by > 0 && by <= from.0, "the hole lies inside the file");
        Self { next: from, by }
    }

    /// Moves as many leaves as the transaction takes, `most` at most. The record of `cut` changes
    /// along.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; those met after something was changed are the next transaction's, before
    /// that changes anything.
    pub(crate) fn step(
        &mut self,
        transaction: &mut Transaction<'_>,
        cut: &mut Cut<'_>,
        most: usize,
    ) -> Result<Progress> {
        let mut moved = 0;
        while self.next < FILE_BLOCKS_END {
            if transaction.is_large() || moved >= most {
                return Ok(Progress::More);
            }
            let mut tree = ExtentTree {
                transaction: &mut *transaction,
                record: cut.record_mut(),
            };
            let (path, leaf) = match tree.checked_leaf(self.next) {
                Err(_) if moved > 0 || !tree.transaction.is_empty() => return Ok(Progress::More),
                found => found?,
            };
            moved += usize::from(tree.move_down(&path, &leaf, self.next, self.by)?);
            self.next = after(&path).unwrap_or(FILE_BLOCKS_END);
        }
        Ok(Progress::Done)
    }
}

impl ShiftUp {
    /// Moves what the tree of an inode maps from `from` on by `by` blocks up.
    ///
    /// # Errors
    /// `InvalidArgument` if the last extent would come to lie past the last block that a file can
    /// have; `Corrupt`, `Io`.
    pub(crate) fn plan(
        instance: &Instance,
        disk: &DiskInode,
        from: FileBlock,
        by: u32,
    ) -> Result<Self> {
        debug_assert!(by > 0, "a hole of some blocks");
        let end = instance.last_extent(disk)?.map_or(from, |last| last.end());
        if end > from && FILE_BLOCKS_END.0 - end.0 < by {
            return Err(Error::InvalidArgument);
        }
        Ok(Self {
            end: FILE_BLOCKS_END,
            from,
            by,
        })
    }

    /// As [`ShiftDown::step`]. The transaction has blocks for cutting an extent in two
    /// ([`MapShapeNow::worst_case_of_punch`](crate::delalloc::MapShapeNow::worst_case_of_punch)).
    ///
    /// # Errors
    /// As [`ShiftDown::step`].
    pub(crate) fn step(
        &mut self,
        transaction: &mut Transaction<'_>,
        cut: &mut Cut<'_>,
        most: usize,
    ) -> Result<Progress> {
        let mut moved = 0;
        while self.end > self.from {
            if transaction.is_large() || moved >= most {
                return Ok(Progress::More);
            }
            let mut tree = ExtentTree {
                transaction: &mut *transaction,
                record: cut.record_mut(),
            };
            let (path, leaf) = match tree.checked_leaf(FileBlock(self.end.0 - 1)) {
                Err(_) if moved > 0 || !tree.transaction.is_empty() => return Ok(Progress::More),
                found => found?,
            };
            let key = path.last().map_or(FileBlock(0), |step| step.child.first);
            if key >= self.end {
                // The first leaf, which has moved.
                break;
            }
            let reach = leaf.extents.last().map_or(key, Extent::end);
            if reach > self.from && FILE_BLOCKS_END.0 - reach.0 < self.by {
                return Err(tree.damaged("an extent that is not the last ends behind it"));
            }
            let is_cut = leaf
                .extents
                .iter()
                .any(|extent| extent.first < self.from && extent.end() > self.from);
            if is_cut && leaf.extents.len() >= leaf.max {
                match tree.check_room(&path, &leaf, 1) {
                    Err(_) if !tree.transaction.is_empty() => return Ok(Progress::More),
                    checked => checked?,
                }
                tree.make_room(&path, false)?;
                moved += 1;
                continue;
            }
            if reach > self.from || key >= self.from {
                tree.move_up(&path, &leaf, self.from, self.by)?;
                moved += 1;
            }
            self.end = key;
        }
        Ok(Progress::Done)
    }
}

impl Instance {
    /// The last extent of an inode's tree.
    fn last_extent(&self, disk: &DiskInode) -> Result<Option<Extent>> {
        let root = ExtentNode::parse(disk.i_block(), &Place::Root, &self.limits).at(
            &self.damage,
            Some(disk.number),
            None,
        )?;
        let mut last = root.extents().next_back();
        let mut next = root.children().last();
        // Depths fall by one a level, so this ends.
        while let Some(child) = next {
            let bytes = self.extent_node(disk.number, disk.seed, &child)?;
            let place = Place::Block(child);
            let node = ExtentNode::parse(&bytes, &place, &self.limits).at(
                &self.damage,
                Some(disk.number),
                Some(child.block),
            )?;
            last = node.extents().next_back();
            next = node.children().last();
        }
        Ok(last)
    }
}

impl ExtentTree<'_, '_> {
    /// The way to the leaf that has `block`, or would have it, each node checked for the entry
    /// that leads to it.
    fn checked_leaf(&self, block: FileBlock) -> Result<(Vec<Step>, Leaf)> {
        let instance = self.transaction.instance;
        let inode = self.record.ino();
        let (path, leaf) = self.descend(block)?;
        for step in &path {
            let at = step.child.block;
            let bytes = instance.read_block(at)?;
            ExtentNode::parse(&bytes, &Place::Block(step.child), &instance.limits).at(
                &instance.damage,
                Some(inode),
                Some(at),
            )?;
        }
        Ok((path, leaf))
    }

    /// Moves the entries of a leaf that begin at `from` or behind down by `by` blocks, and joins
    /// what meets; whether there were any.
    fn move_down(&mut self, path: &[Step], leaf: &Leaf, from: FileBlock, by: u32) -> Result<bool> {
        let first = leaf.extents.partition_point(|extent| extent.first < from);
        let mut moved: Vec<Extent> = Vec::with_capacity(leaf.extents.len() + 1 - first);
        let kept = first.saturating_sub(1);
        moved.extend(leaf.extents.get(kept..first).unwrap_or_default());
        for extent in leaf.extents.get(first..).unwrap_or_default() {
            let extent = Extent {
                first: FileBlock(extent.first.0 - by),
                ..*extent
            };
            match moved.last().and_then(|before| join(before, &extent)) {
                Some(joined) => {
                    moved.pop();
                    moved.push(joined);
                }
                None => moved.push(extent),
            }
        }
        if first < leaf.extents.len() {
            self.edit(path.last(), |node| {
                for (at, extent) in (kept..).zip(&moved) {
                    let done = node.set_extent(at, extent);
                    debug_assert!(done, "it was an entry before");
                }
                node.remove(kept + moved.len()..leaf.extents.len());
            })?;
        }
        // A leaf without entries moves by its key: the next one would come to lie before it.
        let key = path.last().map(|step| step.child.first);
        match key.filter(|key| *key >= from) {
            Some(key) => self.begin_at(path, FileBlock(key.0 - by)).map(|()| true),
            None => Ok(first < leaf.extents.len()),
        }
    }

    /// Moves what a leaf maps from `from` on up by `by` blocks. It has room for one more entry if
    /// an extent lies across `from`.
    fn move_up(&mut self, path: &[Step], leaf: &Leaf, from: FileBlock, by: u32) -> Result<()> {
        let up = |extent: &Extent| Extent {
            first: FileBlock(extent.first.0 + by),
            ..*extent
        };
        let first = leaf.extents.partition_point(|extent| extent.first < from);
        let across = first
            .checked_sub(1)
            .and_then(|at| leaf.extents.get(at))
            .and_then(|extent| {
                let left = part(extent, extent.first, from)?;
                Some((left, part(extent, from, extent.end())?))
            });
        self.edit(path.last(), |node| {
            for (at, extent) in leaf.extents.iter().enumerate().skip(first) {
                let done = node.set_extent(at, &up(extent));
                debug_assert!(done, "it was an entry before");
            }
            if let Some((left, right)) = &across {
                let done =
                    node.set_extent(first - 1, left) && node.insert_extent(first, &up(right));
                debug_assert!(done, "there is room");
            }
        })?;
        let key = path.last().map(|step| step.child.first);
        match key.filter(|key| *key >= from) {
            Some(key) => self.begin_at(path, FileBlock(key.0 + by)),
            None => Ok(()),
        }
    }
}
