//! Moving the pointers of a block map behind some block to lower or to higher file blocks.
//!
//! A *leaf* is what holds pointers to data: the direct ones of the inode, or an indirect block of the
//! lowest level. A step gives one leaf what it is to hold in the end; down, leaves go from the first
//! to the last, up, from the last to the first, so a leaf is written when what it held has
//! been moved, or moves within it. Indirect blocks that are missing are taken from what was reserved
//! ([`PointerShift::blocks`]), those that become empty are freed.
//!
//! With a log a step also empties the slots that the pointers came from: after each step every
//! block has one owner, and there is a hole as long as the range between what has moved and what
//! has not. Without a log the blocks of a commit get home in no order, so nothing is emptied before
//! what it held is durable in its new place: slots keep what they held until they are
//! written as a leaf of their own, and what a transaction writes does not overlap with what it
//! takes from other leaves. A crash then leaves pointers twice, never nowhere.
//!
//! The whole map is looked through before anything changes: no indirect block may be there twice,
//! every pointer that is to move points into the file system.

use std::ops::Range;

use hashbrown::HashSet;
use pagefence_ext4_format::indirect::{DIRECT_SLOTS, MapPath, Pointers, set_pointer};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::{Error, Result};

use crate::alloc::{BlockOwner, Reach};
use crate::change::cut::Cut;
use crate::change::extent_tree::count_blocks;
use crate::change::insert_blocks::{holder, pointer};
use crate::change::remove_blocks::{Owner, Progress};
use crate::change::transaction::Transaction;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::Instance;

/// Which way pointers move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// What lies behind the range comes to lie where it begins.
    Down,
    /// What lies where the range begins, and behind, comes to lie behind it.
    Up,
}

/// The range that goes or comes, in file blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    way: Way,
    first: u64,
    len: u64,
}

impl Move {
    /// The first block that moves.
    fn from(&self) -> u64 {
        match self.way {
            Way::Down => self.first + self.len,
            Way::Up => self.first,
        }
    }

    /// Where what moves and lies in `blocks` comes to lie.
    fn target(&self, blocks: &Range<u64>) -> Range<u64> {
        let start = blocks.start.max(self.from());
        let end = blocks.end.max(start);
        match self.way {
            Way::Down => start - self.len..end - self.len,
            Way::Up => start + self.len..end + self.len,
        }
    }

    /// How the blocks of `leaf` come about: those that stay, a hole, and where those come from that
    /// move here. In order, and as many together as the leaf has.
    fn sources(&self, leaf: &Range<u64>) -> (Range<u64>, u64, Range<u64>) {
        let stays = leaf.start..leaf.end.min(self.first).max(leaf.start);
        let hole = match self.way {
            Way::Down => 0,
            Way::Up => {
                let end = (self.first + self.len).min(leaf.end);
                end.saturating_sub(leaf.start.max(self.first))
            }
        };
        let start = stays.end + hole;
        let moves = match self.way {
            Way::Down => start + self.len..leaf.end + self.len,
            Way::Up if start == leaf.end => 0..0,
            Way::Up => start - self.len..leaf.end - self.len,
        };
        let moves = if start == leaf.end { 0..0 } else { moves };
        (stays, hole, moves)
    }
}

/// The leaves of a map, numbered in order: 0 for the direct pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaves {
    per_block: u64,
    /// One past the last block that the map reaches.
    end: u64,
}

impl Leaves {
    pub(super) fn of(instance: &Instance) -> Self {
        Self {
            per_block: instance.map_shape.per_block().into(),
            end: instance.map_shape.end().0.into(),
        }
    }

    /// The file blocks of a leaf.
    pub(super) fn blocks(&self, leaf: u32) -> Range<u64> {
        let direct = u64::from(DIRECT_SLOTS);
        match leaf.checked_sub(1) {
            None => 0..direct,
            Some(at) => {
                let start = direct + u64::from(at) * self.per_block;
                start..start + self.per_block
            }
        }
    }

    /// The leaf of a file block that the map reaches.
    pub(super) fn holding(&self, block: u64) -> u32 {
        let behind = block.min(self.end - 1).checked_sub(DIRECT_SLOTS.into());
        behind.map_or(0, |at| (at / self.per_block) as u32 + 1)
    }

    /// The number of the indirect block above a leaf, among those of its level; none for the
    /// leaves that hang from the inode.
    fn above(&self, leaf: u32) -> Option<u64> {
        let at = leaf.checked_sub(2)?;
        Some(u64::from(at) / self.per_block)
    }
}

/// Pointers on their way.
#[derive(Debug)]
pub(crate) struct PointerShift {
    shift: Move,
    leaves: Leaves,
    /// Leaves that are still to be written, the next one last.
    left: Vec<u32>,
    /// Blocks of the map that this takes at most.
    blocks: u64,
    has_log: bool,
    /// Some pointers may be in the map twice.
    is_doubled: bool,
}

/// What a leaf becomes.
#[derive(Debug)]
struct Change {
    leaf: u32,
    old: Vec<Option<BlockNo>>,
    new: Vec<Option<BlockNo>>,
    /// Slots of other leaves that are to be emptied.
    emptied: Vec<(u32, Range<u32>)>,
}

impl PointerShift {
    /// Looks through the map of an inode, of which blocks from `first` on are to move by `len`: up,
    /// or down from behind the `len` blocks from `first` on, which are or become a hole.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; `InvalidArgument` if the last block would come to lie where no map reaches.
    pub(crate) fn plan(
        instance: &Instance,
        disk: &DiskInode,
        way: Way,
        first: u32,
        len: u32,
    ) -> Result<Self> {
        let shift = Move {
            way,
            first: first.into(),
            len: len.into(),
        };
        let leaves = Leaves::of(instance);
        let mut survey = Survey {
            instance,
            disk,
            leaves,
            from: shift.from(),
            seen: HashSet::new(),
            found: vec![0],
            end: 0,
        };
        survey.look()?;
        if way == Way::Up && survey.end + shift.len > leaves.end {
            return Err(Error::InvalidArgument);
        }
        let mut filled = Vec::new();
        for leaf in &survey.found {
            let to = shift.target(&leaves.blocks(*leaf));
            if !to.is_empty() && to.start < leaves.end {
                filled.extend(leaves.holding(to.start)..=leaves.holding(to.end - 1));
            }
        }
        filled.sort_unstable();
        filled.dedup();
        let mut above: Vec<u64> = filled
            .iter()
            .filter_map(|leaf| leaves.above(*leaf))
            .collect();
        above.dedup();
        let top = above.last().is_some_and(|last| *last > 0);
        let lowest = filled.iter().filter(|leaf| **leaf > 0).count();
        let blocks = lowest as u64 + above.len() as u64 + u64::from(top);
        let changes = |leaf: &u32| leaves.blocks(*leaf).end > shift.first;
        let mut left = filled;
        left.extend(survey.found.iter().filter(|leaf| changes(leaf)));
        left.sort_unstable();
        left.dedup();
        if way == Way::Down {
            left.reverse();
        }
        Ok(Self {
            shift,
            leaves,
            left,
            blocks,
            has_log: instance.has_log(),
            is_doubled: false,
        })
    }

    /// Blocks of the map that this takes at most.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether some blocks may be in the map twice: nothing may be done to the file then but going
    /// on with this.
    pub(crate) fn is_doubled(&self) -> bool {
        self.is_doubled
    }

    /// Writes as many leaves as the transaction takes, which has [`Self::blocks`], `most` at most;
    /// without a log, as many as may be durable in any order. The record of `cut` changes along.
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
        let mut left = most;
        let mut written: Option<Range<u64>> = None;
        while let Some(leaf) = self.left.last().copied() {
            let blocks = self.leaves.blocks(leaf);
            let all = written.as_ref().map_or(blocks.clone(), |written| {
                written.start.min(blocks.start)..written.end.max(blocks.end)
            });
            let is_too_much = !self.has_log && all.end - all.start > self.shift.len;
            if transaction.is_large() || left == 0 || (written.is_some() && is_too_much) {
                return Ok(Progress::More);
            }
            let mut map = Map {
                leaves: self.leaves,
                owner: Owner::new(&mut *transaction, cut.record_mut()),
            };
            let change = map.change(leaf, &self.shift, self.has_log);
            let change = match change.and_then(|change| map.check(&change).map(|()| change)) {
                Err(_) if written.is_some() || !map.owner.transaction.is_empty() => {
                    return Ok(Progress::More);
                }
                found => found?,
            };
            self.is_doubled |= !self.has_log && change.new != change.old;
            map.apply(&change)?;
            self.left.pop();
            written = Some(all);
            left -= 1;
        }
        self.is_doubled = false;
        Ok(Progress::Done)
    }
}

/// What looks through a map.
struct Survey<'a> {
    instance: &'a Instance,
    disk: &'a DiskInode,
    leaves: Leaves,
    /// Pointers from this file block on are looked at.
    from: u64,
    /// Indirect blocks met so far: each once, so that this ends.
    seen: HashSet<u64>,
    /// Leaves that are there, ascending.
    found: Vec<u32>,
    /// One past the last file block that is mapped, if that is to move.
    end: u64,
}

impl Survey<'_> {
    fn look(&mut self) -> Result<()> {
        let (instance, disk) = (self.instance, self.disk);
        let damage = &instance.damage;
        let root =
            Pointers::root(disk.i_block(), &instance.limits).at(damage, Some(disk.number), None)?;
        for slot in 0..DIRECT_SLOTS {
            let pointer = root.get(slot).at(damage, Some(disk.number), None)?;
            if pointer.is_some() && u64::from(slot) >= self.from {
                self.end = u64::from(slot) + 1;
            }
        }
        let mut first = 1;
        for height in 1..=3 {
            let slot = DIRECT_SLOTS + height - 1;
            if let Some(block) = root.get(slot).at(damage, Some(disk.number), None)? {
                self.look_below(block, height, first)?;
            }
            let below = u32::try_from(self.leaves.per_block).unwrap_or(u32::MAX);
            first += below.saturating_pow(height - 1);
        }
        Ok(())
    }

    /// Looks at the indirect block `block`, `height` levels above the data; its first leaf is
    /// number `first`.
    fn look_below(&mut self, block: BlockNo, height: u32, first: u32) -> Result<()> {
        let (instance, inode) = (self.instance, self.disk.number);
        instance.check_owned(inode, block, 1)?;
        if !self.seen.insert(block.0) {
            let what = "an indirect block is in its block map twice";
            return Err(instance.damaged(inode, Some(block), what));
        }
        let blocks = self.leaves.blocks(first);
        if height == 1 {
            self.found.push(first);
            if blocks.end <= self.from {
                return Ok(());
            }
        }
        let bytes = instance.read_owned(BlockOwner::Map(inode), block)?;
        let per_child = (self.leaves.per_block as u32).saturating_pow(height.saturating_sub(2));
        for (slot, pointer) in Pointers::block(&bytes, &instance.limits).iter() {
            let pointer = pointer.at(&instance.damage, Some(inode), Some(block))?;
            if height > 1 {
                self.look_below(pointer, height - 1, first + slot * per_child)?;
            } else if blocks.start + u64::from(slot) >= self.from {
                self.end = blocks.start + u64::from(slot) + 1;
            }
        }
        Ok(())
    }
}

/// A block map that is being changed.
pub(super) struct Map<'a, 'b> {
    pub(super) leaves: Leaves,
    pub(super) owner: Owner<'a, 'b>,
}

impl Map<'_, '_> {
    /// The way to a leaf, by its first block.
    fn path(&self, leaf: u32) -> Result<MapPath> {
        let instance = self.owner.transaction.instance;
        let first = u32::try_from(self.leaves.blocks(leaf).start).map(FileBlock);
        let path = first.ok().and_then(|first| instance.map_shape.path(first));
        let what = "its block map does not reach so far";
        path.ok_or_else(|| instance.damaged(self.owner.record.ino(), None, what))
    }

    /// The indirect blocks that lead to a leaf, itself the last, as many as are there.
    fn follow(&self, leaf: u32) -> Result<Vec<BlockNo>> {
        let instance = self.owner.transaction.instance;
        let path = self.path(leaf)?;
        let mut way: Vec<BlockNo> = Vec::new();
        for slot in path.slots().iter().take(path.depth().into()) {
            match pointer(instance, self.owner.record, way.last().copied(), *slot)? {
                Some(next) => way.push(next),
                None => break,
            }
        }
        Ok(way)
    }

    /// As [`Self::follow`]; nothing if one is missing.
    pub(super) fn way(&self, leaf: u32) -> Result<Option<Vec<BlockNo>>> {
        let depth = usize::from(self.path(leaf)?.depth());
        let way = self.follow(leaf)?;
        Ok((way.len() == depth).then_some(way))
    }

    /// The pointers of file blocks.
    pub(super) fn pointers(&self, blocks: Range<u64>) -> Result<Vec<Option<BlockNo>>> {
        let instance = self.owner.transaction.instance;
        let inode = self.owner.record.ino();
        let mut found = Vec::with_capacity((blocks.end - blocks.start) as usize);
        let mut at = blocks.start;
        while at < blocks.end {
            if at >= self.leaves.end {
                found.extend((at..blocks.end).map(|_| None));
                break;
            }
            let leaf = self.leaves.holding(at);
            let all = self.leaves.blocks(leaf);
            let end = all.end.min(blocks.end);
            let slots = (at - all.start) as u32..(end - all.start) as u32;
            let mut take = |pointers: &Pointers<'_>, block| {
                for slot in slots.clone() {
                    let pointer = pointers
                        .get(slot)
                        .at(&instance.damage, Some(inode), block)?;
                    found.push(pointer);
                }
                Ok::<_, Error>(())
            };
            match self.way(leaf)? {
                None => found.extend(slots.map(|_| None)),
                Some(way) => match way.last() {
                    None => {
                        let area = self.owner.record.block_area();
                        let root = Pointers::root(area, &instance.limits);
                        take(&root.at(&instance.damage, Some(inode), None)?, None)?;
                    }
                    Some(block) => {
                        let bytes = instance.read_owned(self.owner.map_owner(), *block)?;
                        take(&Pointers::block(&bytes, &instance.limits), Some(*block))?;
                    }
                },
            }
            at = end;
        }
        Ok(found)
    }

    /// What `leaf` becomes. With `empties`, the slots of other leaves that it comes from are to be
    /// emptied. Changes nothing.
    fn change(&self, leaf: u32, shift: &Move, empties: bool) -> Result<Change> {
        let blocks = self.leaves.blocks(leaf);
        let (stays, hole, moves) = shift.sources(&blocks);
        let mut new = self.pointers(stays)?;
        new.extend((0..hole).map(|_| None));
        new.extend(self.pointers(moves.clone())?);
        let old = self.pointers(blocks)?;
        debug_assert_eq!(old.len(), new.len(), "all slots of a leaf");
        let mut emptied = Vec::new();
        let mut at = moves.start;
        while empties && at < moves.end.min(self.leaves.end) {
            let source = self.leaves.holding(at);
            let all = self.leaves.blocks(source);
            let end = all.end.min(moves.end);
            let is_mapped = self.pointers(at..end)?.iter().any(Option::is_some);
            if source != leaf && is_mapped {
                emptied.push((source, (at - all.start) as u32..(end - all.start) as u32));
            }
            at = end;
        }
        Ok(Change {
            leaf,
            old,
            new,
            emptied,
        })
    }

    /// Makes sure that [`Self::apply`] won't fail: that there are blocks for what is missing of the
    /// map, and that what becomes empty can be freed. Changes nothing.
    fn check(&mut self, change: &Change) -> Result<()> {
        let is_filled = change.new.iter().flatten().next();
        if let (true, Some(goal)) = (change.leaf > 0, is_filled) {
            let depth = usize::from(self.path(change.leaf)?.depth());
            let missing = (depth - self.follow(change.leaf)?.len()) as u64;
            let (instance, inode) = (self.owner.transaction.instance, &*self.owner.record);
            count_blocks(instance, &mut inode.clone(), missing.cast_signed())?;
            self.owner
                .transaction
                .prepare(*goal, Reach::Pointers, missing)?;
        }
        let emptied = change.emptied.iter().map(|(leaf, _)| *leaf);
        let gone = is_filled.is_none().then_some(change.leaf);
        for leaf in emptied.chain(gone) {
            for block in self.way(leaf)?.unwrap_or_default() {
                self.owner.check_map_block(block)?;
            }
        }
        Ok(())
    }

    fn apply(&mut self, change: &Change) -> Result<()> {
        if change.new != change.old {
            self.write(change.leaf, &change.new)?;
        }
        for (leaf, slots) in &change.emptied {
            let mut pointers = self.pointers(self.leaves.blocks(*leaf))?;
            for slot in slots.clone() {
                if let Some(pointer) = pointers.get_mut(slot as usize) {
                    *pointer = None;
                }
            }
            self.write(*leaf, &pointers)?;
        }
        Ok(())
    }

    /// Gives a leaf its pointers: it is made if it is missing, and goes if it has none.
    pub(super) fn write(&mut self, leaf: u32, pointers: &[Option<BlockNo>]) -> Result<()> {
        let instance = self.owner.transaction.instance;
        let inode = self.owner.record.ino();
        let set = |bytes: &mut [u8], block| -> Result<()> {
            for (slot, pointer) in (0..).zip(pointers) {
                if !set_pointer(bytes, slot, *pointer) {
                    let what = "its block map can't hold a block of that number";
                    return Err(instance.damaged(inode, block, what));
                }
            }
            Ok(())
        };
        if leaf == 0 {
            return set(self.owner.record.block_area_mut(), None);
        }
        let Some(goal) = pointers.iter().flatten().next().copied() else {
            return self.remove(leaf);
        };
        let path = self.path(leaf)?;
        match holder(self.owner.transaction, self.owner.record, &path, goal)? {
            None => set(self.owner.record.block_area_mut(), None),
            Some(block) => self
                .owner
                .transaction
                .change(block, |bytes| set(bytes, Some(block))),
        }
    }

    /// Frees a leaf, if it is there, and the indirect blocks above that lead nowhere else.
    fn remove(&mut self, leaf: u32) -> Result<()> {
        let instance = self.owner.transaction.instance;
        let path = self.path(leaf)?;
        let Some(way) = self.way(leaf)? else {
            return Ok(());
        };
        let mut kept = way.len().saturating_sub(1);
        while let Some(above) = kept.checked_sub(1).and_then(|at| way.get(at)) {
            let bytes = instance.read_owned(self.owner.map_owner(), *above)?;
            if Pointers::block(&bytes, &instance.limits).iter().count() > 1 {
                break;
            }
            kept -= 1;
        }
        for block in way.iter().skip(kept) {
            self.owner.free_map_block(*block)?;
        }
        let Some(slot) = path.slots().get(kept).copied() else {
            return Ok(());
        };
        let is_set = match kept.checked_sub(1).and_then(|at| way.get(at)) {
            None => set_pointer(self.owner.record.block_area_mut(), slot, None),
            Some(above) => self
                .owner
                .transaction
                .change(*above, |bytes| Ok(set_pointer(bytes, slot, None)))?,
        };
        debug_assert!(is_set, "the slot was read before");
        Ok(())
    }
}

#[cfg(test)]
mod tests;
