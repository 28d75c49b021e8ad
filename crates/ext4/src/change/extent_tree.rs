//! Changing an extent tree: extents put in and taken out anywhere. Nodes split when they are
//! full, the root grows a level when it is, and nodes without entries go.
//!
//! Data blocks are the caller's: only blocks of the tree itself are taken and given back here.
//! What can be refused is refused before the first change (`room`).

use pagefence_ext4_format::extent::{
    self, Child, Extent, ExtentNode, ExtentNodeMut, FILE_BLOCKS_END, MAX_EXTENT_LEN, Place,
};
use pagefence_ext4_format::inode::Inode as InodeRecord;
use pagefence_ext4_format::{BlockNo, Corruption, FileBlock};
use pagefence_jbd2::Turn;
use pagefence_vfs::Result;

use crate::alloc::{BlockOwner, Reach};
use crate::change::transaction::Transaction;
use crate::error::At;

mod room;

pub(crate) use room::count_blocks;

/// An extent tree that is being changed. `record` changes along; the caller writes it.
pub(crate) struct ExtentTree<'a, 'b> {
    pub(crate) transaction: &'a mut Transaction<'b>,
    pub(crate) record: &'a mut InodeRecord,
}

/// A node below the root on the way down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) child: Child,
    /// Its number in the node above.
    pub(super) at: usize,
    /// Whether the node above has room for another entry.
    has_room: bool,
    /// Whether the node above has no other entry.
    is_only: bool,
}

/// What a node says, copied out.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) extents: Vec<Extent>,
    pub(super) max: usize,
}

impl Leaf {
    /// The first extent that reaches past `block`, and its number.
    pub(super) fn first_past(&self, block: FileBlock) -> Option<(usize, Extent)> {
        self.extents
            .iter()
            .copied()
            .enumerate()
            .find(|(_, extent)| extent.end() > block)
    }
}

impl ExtentTree<'_, '_> {
    /// All extents in order, and the blocks of the tree.
    pub(crate) fn read(&self) -> Result<(Vec<Extent>, Vec<BlockNo>)> {
        let mut extents = Vec::new();
        let mut blocks = Vec::new();
        let mut before: Vec<Step> = Vec::new();
        let mut next = Some(FileBlock(0));
        while let Some(block) = next {
            let (path, leaf) = self.descend(block)?;
            extents.extend(leaf.extents);
            for (level, step) in path.iter().enumerate() {
                if before.get(level).map(|step| step.child.block) != Some(step.child.block) {
                    blocks.push(step.child.block);
                }
            }
            next = after(&path);
            before = path;
        }
        Ok((extents, blocks))
    }

    /// Puts an extent where the tree has a hole, joined with its neighbours where they meet.
    ///
    /// # Errors
    /// `Corrupt` if there is no hole; `Io`, also of the kind `StorageFull`.
    pub(crate) fn insert(&mut self, extent: Extent) -> Result<()> {
        loop {
            let (path, leaf) = self.descend(extent.first)?;
            let at = leaf
                .extents
                .partition_point(|other| other.first <= extent.first);
            let before = at
                .checked_sub(1)
                .and_then(|at| leaf.extents.get(at))
                .copied();
            let next = leaf.extents.get(at).copied();
            let overlaps = before.is_some_and(|before| before.end() > extent.first)
                || next.is_some_and(|next| next.first < extent.end());
            if overlaps || extent.to_raw().is_none() {
                return Err(self.damaged("two extents overlap"));
            }
            if let Some(joined) = before.and_then(|before| join(&before, &extent)) {
                let whole = next.and_then(|next| join(&joined, &next));
                return self.edit(path.last(), |node| {
                    let _ = node.set_extent(at - 1, &whole.unwrap_or(joined));
                    if whole.is_some() {
                        node.remove(at..at + 1);
                    }
                });
            }
            if let Some(joined) = next.and_then(|next| join(&extent, &next)) {
                self.edit(path.last(), |node| {
                    let _ = node.set_extent(at, &joined);
                })?;
            } else if leaf.extents.len() < leaf.max {
                let done = self.edit(path.last(), |node| node.insert_extent(at, &extent))?;
                debug_assert!(done, "there is room");
            } else {
                self.check_room(&path, &leaf, 1)?;
                let is_last_leaf = after(&path).is_none();
                self.make_room(&path, is_last_leaf && at == leaf.extents.len())?;
                continue;
            }
            return if at == 0 {
                self.begin_at(&path, extent.first)
            } else {
                Ok(())
            };
        }
    }

    /// Takes the file blocks from `first` up to (not including) `end` out of the tree, and returns
    /// the blocks that they were.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn punch(
        &mut self,
        first: FileBlock,
        end: FileBlock,
    ) -> Result<Vec<(BlockNo, u32)>> {
        let mut removed = Vec::new();
        let mut from = first;
        while from < end {
            let (path, leaf) = self.descend(from)?;
            let Some((at, extent)) = leaf.first_past(from) else {
                match after(&path) {
                    Some(next) => from = next,
                    None => break,
                }
                continue;
            };
            if extent.first >= end {
                break;
            }
            let (low, high) = (extent.first.max(from), extent.end().min(end));
            let left = part(&extent, extent.first, low);
            let right = part(&extent, high, extent.end());
            if let Some(gone) = part(&extent, low, high) {
                removed.push((gone.start, u32::from(gone.len)));
            }
            match (left, right) {
                (Some(left), right) => {
                    if right.is_some() {
                        self.check_room(&path, &leaf, 1)?;
                    }
                    self.edit(path.last(), |node| {
                        let _ = node.set_extent(at, &left);
                    })?;
                    if let Some(right) = right {
                        self.insert(right)?;
                    }
                }
                (None, Some(right)) => {
                    self.edit(path.last(), |node| {
                        let _ = node.set_extent(at, &right);
                    })?;
                    if at == 0 {
                        self.begin_at(&path, right.first)?;
                    }
                }
                (None, None) => {
                    self.edit(path.last(), |node| node.remove(at..at + 1))?;
                    match leaf.extents.get(1) {
                        None => self.prune(&path)?,
                        Some(second) if at == 0 => self.begin_at(&path, second.first)?,
                        Some(_) => {}
                    }
                }
            }
            from = high;
        }
        Ok(removed)
    }

    /// Says of the blocks from `first` up to (not including) `end` that they are written, or that
    /// they are not; leaves those that are so, and holes, as they are. Each extent is cut at most
    /// once at each end of the range, and no block is taken away from the tree.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn mark(&mut self, first: FileBlock, end: FileBlock, unwritten: bool) -> Result<()> {
        let longest = u32::from(MAX_EXTENT_LEN) - u32::from(unwritten);
        let mut from = first;
        while from < end {
            let (path, leaf) = self.descend(from)?;
            let Some((at, extent)) = leaf.first_past(from) else {
                match after(&path) {
                    Some(next) => from = next,
                    None => break,
                }
                continue;
            };
            if extent.first >= end {
                break;
            }
            let low = extent.first.max(from);
            let high = extent
                .end()
                .min(end)
                .min(FileBlock(low.0.saturating_add(longest)));
            from = high;
            let Some(middle) = part(&extent, low, high).filter(|_| extent.unwritten != unwritten)
            else {
                continue;
            };
            let middle = Extent {
                unwritten,
                ..middle
            };
            let left = part(&extent, extent.first, low);
            let right = part(&extent, high, extent.end());
            self.replace(&path, &leaf, at, left, middle, right)?;
        }
        Ok(())
    }

    /// Puts up to three extents in the place of extent number `at`: `middle`, and what is left of
    /// the old one before and behind it. `middle` joins its neighbours where it meets them.
    pub(super) fn replace(
        &mut self,
        path: &[Step],
        leaf: &Leaf,
        at: usize,
        left: Option<Extent>,
        middle: Extent,
        right: Option<Extent>,
    ) -> Result<()> {
        let before = at.checked_sub(1).and_then(|at| leaf.extents.get(at));
        let next = leaf.extents.get(at + 1);
        let with_before = before
            .filter(|_| left.is_none())
            .and_then(|before| join(before, &middle));
        let with_next = next
            .filter(|_| right.is_none())
            .and_then(|next| join(&middle, next));
        // Where a neighbour takes it in, the tree needs no further entry.
        match (left, right, with_before, with_next) {
            (None, None, Some(joined), _) => {
                let whole = next.and_then(|next| join(&joined, next));
                let gone = if whole.is_some() {
                    at..at + 2
                } else {
                    at..at + 1
                };
                self.edit(path.last(), |node| {
                    let _ = node.set_extent(at - 1, &whole.unwrap_or(joined));
                    node.remove(gone);
                })
            }
            (None, None, None, Some(joined)) => self.edit(path.last(), |node| {
                let _ = node.set_extent(at, &joined);
                node.remove(at + 1..at + 2);
            }),
            (None, None, None, None) => self.edit(path.last(), |node| {
                let _ = node.set_extent(at, &middle);
            }),
            (None, Some(right), Some(joined), _) => self.edit(path.last(), |node| {
                let _ = node.set_extent(at - 1, &joined);
                let _ = node.set_extent(at, &right);
            }),
            (Some(left), None, _, Some(joined)) => self.edit(path.last(), |node| {
                let _ = node.set_extent(at, &left);
                let _ = node.set_extent(at + 1, &joined);
            }),
            (left, right, _, _) => {
                let stays = left.unwrap_or(middle);
                let more = [left.is_some().then_some(middle), right];
                self.check_room(path, leaf, more.iter().flatten().count())?;
                self.edit(path.last(), |node| {
                    let _ = node.set_extent(at, &stays);
                })?;
                more.into_iter()
                    .flatten()
                    .try_for_each(|extent| self.insert(extent))
            }
        }
    }

    /// The way to the leaf that has `block`, or would have it.
    pub(super) fn descend(&self, block: FileBlock) -> Result<(Vec<Step>, Leaf)> {
        let instance = self.transaction.instance;
        let inode = self.record.ino();
        let root = ExtentNode::parse(self.record.block_area(), &Place::Root, &instance.limits).at(
            &instance.damage,
            Some(inode),
            None,
        )?;
        let mut path = Vec::new();
        let mut next = step(&root, block);
        let mut leaf = leaf(&root);
        // Depths fall by one a level, so this ends.
        while let Some(below) = next {
            let buffer = instance.extent_node(inode, self.record.checksum_seed(), &below.child)?;
            let node = ExtentNode::reopen(&buffer, &Place::Block(below.child)).at(
                &instance.damage,
                Some(inode),
                Some(below.child.block),
            )?;
            path.push(below);
            next = step(&node, block);
            leaf = self::leaf(&node);
        }
        Ok((path, leaf))
    }

    /// The first entries of the nodes of `path`, where they are first themselves, say `first`.
    pub(super) fn begin_at(&mut self, path: &[Step], first: FileBlock) -> Result<()> {
        let mut rest = path;
        while let Some((last, above)) = rest.split_last() {
            let child = Child {
                first,
                ..last.child
            };
            self.edit(above.last(), |node| {
                let _ = node.set_child(last.at, &child);
            })?;
            if last.at > 0 {
                break;
            }
            rest = above;
        }
        Ok(())
    }

    /// Takes away the node at the end of `path`, which is empty, and every one above that this
    /// empties. A root without children becomes an empty leaf.
    fn prune(&mut self, path: &[Step]) -> Result<()> {
        let mut rest = path;
        while let Some((empty, above)) = rest.split_last() {
            let inode = self.record.ino();
            self.transaction.release(inode, empty.child.block)?;
            self.transaction.forget(empty.child.block);
            count_blocks(self.transaction.instance, self.record, -1)?;
            self.edit(above.last(), |node| node.remove(empty.at..empty.at + 1))?;
            if let Some(first) = self.first_child(above)? {
                return if empty.at == 0 {
                    self.begin_at(above, first)
                } else {
                    Ok(())
                };
            }
            if above.is_empty() {
                let _ = ExtentNodeMut::init(self.record.block_area_mut(), 0);
            }
            rest = above;
        }
        Ok(())
    }

    /// Where the first child of the node at the end of `path` begins, if it has one.
    fn first_child(&self, path: &[Step]) -> Result<Option<FileBlock>> {
        let instance = self.transaction.instance;
        // A node without entries can't be viewed.
        let first = |node: std::result::Result<ExtentNode<'_>, Corruption>| {
            node.ok()
                .and_then(|node| node.child(0))
                .map(|child| child.first)
        };
        let Some(last) = path.last() else {
            return Ok(first(ExtentNode::reopen(
                self.record.block_area(),
                &Place::Root,
            )));
        };
        let buffer = instance.read_block(last.child.block)?;
        Ok(first(ExtentNode::reopen(
            &buffer,
            &Place::Block(last.child),
        )))
    }

    /// Splits one full node of `path`, the deepest below one that is not full; or lets the root
    /// grow. `at_end` says that an entry is to be added behind all others of the tree: then the
    /// new node gets almost nothing, for files are mostly written in order. Elsewhere each half
    /// gets half, which is what bounds the nodes that a number of entries can take
    /// ([`crate::delalloc`]).
    pub(super) fn make_room(&mut self, path: &[Step], at_end: bool) -> Result<()> {
        for (level, split) in path.iter().enumerate().rev() {
            if split.has_room {
                let above = level.checked_sub(1).and_then(|above| path.get(above));
                return self.split(above, split, at_end);
            }
        }
        self.grow()
    }

    /// Moves the root's entries into a node of their own, below the root.
    fn grow(&mut self) -> Result<()> {
        let goal = self.transaction.instance.superblock.first_data_block();
        let depth = self.edit(None, |root| root.depth())?;
        let first = first_of(self.record.block_area(), depth).unwrap_or_default();
        let (below, mut bytes) = self.new_node(depth, goal)?;
        let moved = self.edit(None, |root| {
            ExtentNodeMut::open(&mut bytes).is_ok_and(|mut below| root.move_tail(0, &mut below))
        })?;
        debug_assert!(moved, "a block has more room than the root");
        self.put_node(below, &mut bytes)?;
        let child = Child {
            first,
            end: FILE_BLOCKS_END,
            block: below,
            depth,
        };
        let done = ExtentNodeMut::init(self.record.block_area_mut(), depth + 1)
            .is_some_and(|mut root| root.insert_child(0, &child));
        debug_assert!(done, "an empty root has room");
        Ok(())
    }

    pub(super) fn new_node(&mut self, depth: u16, goal: BlockNo) -> Result<(BlockNo, Vec<u8>)> {
        let inode = self.record.ino();
        count_blocks(self.transaction.instance, self.record, 1)?;
        let owner = BlockOwner::Map(inode);
        let block = self.transaction.allocate(owner, goal, Reach::Everywhere)?;
        let block_size = self.transaction.instance.superblock.block_size();
        let mut bytes = vec![0; block_size as usize];
        let made = ExtentNodeMut::init(&mut bytes, depth).is_some();
        debug_assert!(made, "a block has room for entries");
        Ok((block, bytes))
    }

    pub(super) fn put_node(&mut self, block: BlockNo, bytes: &mut [u8]) -> Result<()> {
        let instance = self.transaction.instance;
        if instance.checksums {
            extent::update_checksum(bytes, self.record.checksum_seed()).at(
                &instance.damage,
                Some(self.record.ino()),
                Some(block),
            )?;
        }
        self.transaction.set(block, bytes);
        Ok(())
    }

    /// Changes a node: the root, or the one of a step.
    pub(super) fn edit<T>(
        &mut self,
        node: Option<&Step>,
        change: impl FnOnce(&mut ExtentNodeMut<'_>) -> T,
    ) -> Result<T> {
        let child = node.map(|step| &step.child);
        edit_node(self.transaction, self.record, child, change, Turn::Grows)
    }

    pub(super) fn damaged(&self, what: &str) -> pagefence_vfs::Error {
        self.transaction
            .instance
            .damaged(self.record.ino(), None, what)
    }
}

/// Changes a node of an extent tree: the root, in `record`, or the one that `child` says. `turn` is
/// that of a node, as its inode says where the file ends: e2fsck drops every extent that reaches
/// beyond, the part before the end included.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(crate) fn edit_node<T>(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    child: Option<&Child>,
    change: impl FnOnce(&mut ExtentNodeMut<'_>) -> T,
    turn: Turn,
) -> Result<T> {
    let instance = transaction.instance;
    let inode = record.ino();
    let Some(child) = child else {
        return ExtentNodeMut::open(record.block_area_mut())
            .map(|mut root| change(&mut root))
            .at(&instance.damage, Some(inode), None);
    };
    let seed = record.checksum_seed();
    let changed = transaction.change(child.block, |bytes| {
        ExtentNodeMut::open(bytes)
            .map(|mut node| change(&mut node))
            .and_then(|result| {
                if instance.checksums {
                    extent::update_checksum(bytes, seed)?;
                }
                Ok(result)
            })
            .at(&instance.damage, Some(inode), Some(child.block))
    })?;
    transaction.take_turn(child.block, turn);
    Ok(changed)
}

fn step(node: &ExtentNode<'_>, block: FileBlock) -> Option<Step> {
    let at = node.position(block).saturating_sub(1);
    Some(Step {
        child: node.child(at)?,
        at,
        has_room: room::has_room(node),
        is_only: node.len() == 1,
    })
}

fn leaf(node: &ExtentNode<'_>) -> Leaf {
    Leaf {
        extents: node.extents().collect(),
        max: node.max().into(),
    }
}

/// Where the leaf behind the one at the end of `path` begins.
pub(super) fn after(path: &[Step]) -> Option<FileBlock> {
    let end = path.last()?.child.end;
    (end < FILE_BLOCKS_END).then_some(end)
}

/// The file block with which a node begins.
pub(super) fn first_of(bytes: &[u8], depth: u16) -> Option<FileBlock> {
    let place = Place::Block(Child {
        first: FileBlock(0),
        end: FILE_BLOCKS_END,
        block: BlockNo(0),
        depth,
    });
    let node = ExtentNode::reopen(bytes, &place).ok()?;
    node.extent(0)
        .map(|extent| extent.first)
        .or_else(|| node.child(0).map(|child| child.first))
}

/// The file blocks from `first` up to `end` of an extent that covers them; nothing if they are
/// none.
pub(super) fn part(extent: &Extent, first: FileBlock, end: FileBlock) -> Option<Extent> {
    let len = u16::try_from(end.0.checked_sub(first.0)?).ok()?;
    (len > 0).then_some(Extent {
        first,
        len,
        start: extent.block_at(first)?,
        ..*extent
    })
}

/// Two extents as one, if the second continues the first and one is not too long.
pub(super) fn join(left: &Extent, right: &Extent) -> Option<Extent> {
    let meets = left.end() == right.first
        && left.start.checked_add(u64::from(left.len)) == Some(right.start)
        && left.unwritten == right.unwritten;
    let longest = if left.unwritten {
        MAX_EXTENT_LEN - 1
    } else {
        MAX_EXTENT_LEN
    };
    let len = left.len.checked_add(right.len)?;
    (meets && len <= longest).then_some(Extent { len, ..*left })
}
