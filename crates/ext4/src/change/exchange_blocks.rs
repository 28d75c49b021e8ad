//! Two ranges of file blocks, of two files or of one, whose blocks change places.
//!
//! It goes from the first block of both to the last, a *run* at a time: file blocks that both maps
//! map in one piece, or not at all. What a map has there goes out of it, and what the other one has
//! comes in: an entry of an extent tree is replaced where it is, so that no node goes in between.
//! No block of data becomes free, and none is taken.
//!
//! All that a run can be refused for is looked at before its first change, of both maps; so after
//! each run both files are sound, and a transaction can end there. What goes wrong after a run
//! that changed something is the end of its transaction, and the next one's error.
//!
//! How many blocks the maps take is bounded before ([`Exchange::survey`]). Within a map entries are
//! put in from left to right, and none that was put in is taken out again. A node is split when it is
//! full: either it was before, and there are no more such nodes than the entries of the range
//! fill; or half a node of entries came to it since it was made. At the end of a file a split
//! leaves one full node behind, hence twice.

use pagefence_ext4_format::extent::{Extent, MAX_DEPTH};
use pagefence_ext4_format::inode::{Inode as InodeRecord, InodeFlags};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::{Error, Result};

use crate::alloc::{POINTERS_END, Reach};
use crate::change::cut::Cut;
use crate::change::extent_tree::{ExtentTree, count_blocks, part};
use crate::change::insert_blocks::{NewRun, check_insert, insert_blocks};
use crate::change::remove_blocks::{Owner, Progress};
use crate::change::shift_block_map::{Leaves, Map};
use crate::change::transaction::Transaction;
use crate::delalloc::{Amount, MapShapeNow};
use crate::disk_inode::{DiskInode, kind_of};
use crate::instance::Instance;
use crate::map_blocks::{Run, Target};

/// Nodes of an extent tree that one change looks for at most: one a level, and one for a root that
/// grows.
const NODES_MAX: u64 = MAX_DEPTH as u64 + 1;

/// Extents that fit into an inode.
const ROOT_EXTENTS: u64 = 4;

/// Runs that one handle exchanges at most, so that no commit waits long for it.
const RUNS_MAX: usize = 128;

/// What becomes of the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Each file gets what the other one has, holes as well.
    Exchange,
    /// The first one's data was copied to the second one's blocks: it gets them, and the second one
    /// its, unwritten. Nothing happens where one of them has a hole. Extents only.
    Retire,
}

/// An exchange, and how far it has come.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// Where the range begins in the one file and in the other.
    first: [u32; 2],
    len: u32,
    done: u32,
    manner: Manner,
}

/// What the two ranges say at one place, and for how many blocks.
#[derive(Clone, Copy, Debug)]
struct Step {
    at: [FileBlock; 2],
    len: u32,
    targets: [Target; 2],
}

impl Step {
    /// What the file `side` gets.
    fn gets(&self, side: usize, manner: Manner) -> Target {
        let other = self.targets[1 - side];
        match (manner, self.start(1 - side)) {
            (Manner::Retire, Some(start)) if side == 1 => Target::Unwritten(start),
            (Manner::Retire, Some(start)) => match self.targets[0] {
                // It holds a copy of what was there.
                Target::Written(_) => Target::Written(start),
                _ => Target::Unwritten(start),
            },
            _ => other,
        }
    }

    fn start(&self, side: usize) -> Option<BlockNo> {
        match self.targets[side] {
            Target::Hole => None,
            Target::Written(start) | Target::Unwritten(start) => Some(start),
        }
    }

    /// Whether there is nothing to be done.
    fn is_idle(&self, manner: Manner) -> bool {
        let holes = self.targets.map(|target| target == Target::Hole);
        match manner {
            Manner::Exchange => holes == [true, true],
            Manner::Retire => holes != [false, false],
        }
    }

    fn end(&self, side: usize) -> FileBlock {
        FileBlock(self.at[side].0 + self.len)
    }
}

impl Exchange {
    /// Of `len` blocks from these on: both end where file blocks do, or before; those of one file
    /// are apart.
    pub(crate) fn new(first: [u32; 2], len: u32, manner: Manner) -> Self {
        Self {
            first,
            len,
            done: 0,
            manner,
        }
    }

    /// What is at position `done` of the ranges.
    fn look(&self, instance: &Instance, disks: [&DiskInode; 2], done: u32) -> Result<Step> {
        let at = self.first.map(|first| FileBlock(first + done));
        let mut len = self.len - done;
        let mut targets = [Target::Hole; 2];
        for side in [0, 1] {
            let Run { len: here, target } = instance.map_blocks(disks[side], at[side])?;
            len = len.min(here);
            targets[side] = target;
            if !disks[side].has_extents() {
                let leaves = Leaves::of(instance);
                let block = u64::from(at[side].0);
                let end = leaves.blocks(leaves.holding(block)).end;
                let left = u32::try_from(end.saturating_sub(block)).unwrap_or(u32::MAX);
                len = len.min(left.max(1));
            }
        }
        Ok(Step { at, len, targets })
    }

    /// Looks through both ranges: whether each map can hold what it gets, and how many blocks the
    /// maps take for it at most, counted from the start.
    ///
    /// # Errors
    /// `Unsupported` if a block map would have to hold an unwritten block, or one with a number that
    /// it has no room for, or one at a place that it does not reach; `Corrupt`, `Io`.
    pub(crate) fn survey(&self, instance: &Instance, disks: [&DiskInode; 2]) -> Result<u64> {
        let mut puts = [Amount::default(); 2];
        let (mut done, mut steps) = (0, 0_u64);
        let mut shapes = [
            MapShapeNow::of(instance, disks[0])?,
            MapShapeNow::of(instance, disks[1])?,
        ];
        while done < self.len {
            let step = self.look(instance, disks, done)?;
            done += step.len;
            if step.is_idle(self.manner) {
                continue;
            }
            steps += 1;
            for side in [0, 1] {
                let gets = step.gets(side, self.manner);
                let disk = disks[side];
                shapes[side] = MapShapeNow::to_change(instance, disk, step.at[side])?;
                if !disk.has_extents() {
                    check_pointers(instance, gets, &step, side)?;
                }
                if gets != Target::Hole && step.targets[side] == Target::Hole {
                    puts[side].holes += u64::from(step.len);
                    puts[side].hole_ranges += 1;
                    puts[side].last = u64::from(step.end(side).0 - 1);
                }
            }
        }
        let is_same = disks[0].number == disks[1].number;
        if is_same {
            // One map takes all.
            let other = puts[1];
            puts[0].holes += other.holes;
            puts[0].hole_ranges += other.hole_ranges;
            puts[0].last = puts[0].last.max(other.last);
        }
        let sides = if is_same { 1 } else { 2 };
        let entries = steps * if is_same { 2 } else { 1 };
        let blocks = shapes.iter().zip(&puts).take(sides);
        Ok(blocks
            .map(|(shape, puts)| match *shape {
                MapShapeNow::Pointers { .. } => shape.worst_case(puts),
                MapShapeNow::Extents {
                    depth,
                    in_root,
                    per_node,
                } => {
                    let taken = nodes_taken(depth, in_root, per_node, entries)
                        .max(nodes_taken(0, 0, per_node, entries));
                    // Each step looks for more than it takes.
                    let looked_for = NODES_MAX * if is_same { 2 } else { 1 };
                    if taken > 0 { taken + looked_for } else { 0 }
                }
            })
            .sum())
    }

    /// Exchanges as much as the transaction takes; without a log, one run. The records change along.
    /// There is one cut if both ranges are of one file.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `NoSpace`; those met after something was changed are the next
    /// transaction's, before that changes anything.
    pub(crate) fn step(
        &mut self,
        transaction: &mut Transaction<'_>,
        first: &mut Cut<'_>,
        mut second: Option<&mut Cut<'_>>,
    ) -> Result<Progress> {
        let range = |first: u32| u64::from(first)..u64::from(first) + u64::from(self.len);
        first.check(range(self.first[0]))?;
        match &second {
            Some(second) => second.check(range(self.first[1]))?,
            None => first.check(range(self.first[1]))?,
        }
        let most = match transaction.instance.has_log() {
            true => RUNS_MAX,
            false => 1,
        };
        let mut runs = 0;
        while self.done < self.len {
            if transaction.is_large() || runs >= most {
                return Ok(Progress::More);
            }
            let changes = transaction.changes();
            let mut both = Both {
                transaction: &mut *transaction,
                first: first.record_mut(),
                second: second.as_mut().map(|cut| cut.record_mut()),
            };
            match both.run(self) {
                Ok((len, changed)) => {
                    self.done += len;
                    runs += usize::from(changed);
                }
                Err(_) if runs > 0 && transaction.changes() == changes => {
                    return Ok(Progress::More);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Done)
    }
}

/// Whether a block map can hold what it gets.
fn check_pointers(instance: &Instance, gets: Target, step: &Step, side: usize) -> Result<()> {
    let unsupported = |what| Err(Error::Unsupported(what));
    match gets {
        Target::Hole => Ok(()),
        Target::Unwritten(_) => unsupported("an unwritten block in a block map"),
        Target::Written(start) if start.0 + u64::from(step.len) > POINTERS_END => {
            unsupported("a block of that number in a block map")
        }
        Target::Written(_) if instance.map_shape.path(step.at[side]).is_none() => {
            unsupported("a block where a block map does not reach")
        }
        Target::Written(_) => Ok(()),
    }
}

/// Nodes that a tree takes at most, of whose range `steps` runs are exchanged. Each puts in two
/// entries at most: the new one, and what is behind it of an extent that is cut in two.
fn nodes_taken(depth: u16, mut in_root: u64, per_node: u64, steps: u64) -> u64 {
    let half = (per_node / 2).saturating_sub(1).max(2);
    let mut entries = 2 * steps;
    let mut taken = 0;
    for _ in 0..depth {
        let were_full = steps / per_node + 3;
        entries = entries.min(2 * (entries / half) + were_full);
        taken += entries;
    }
    while entries > 0 && in_root + entries > ROOT_EXTENTS {
        // The root becomes a node, which may be split from then on.
        let splits = 2 * (entries / half);
        taken += 1 + splits;
        entries = splits;
        in_root = 1;
    }
    taken
}

/// The records of both files, while a run changes places; `second` is none if it is one file.
struct Both<'a, 'b> {
    transaction: &'a mut Transaction<'b>,
    first: &'a mut InodeRecord,
    second: Option<&'a mut InodeRecord>,
}

impl Both<'_, '_> {
    /// Exchanges the run that comes next; how long it is, and whether anything changed.
    fn run(&mut self, exchange: &Exchange) -> Result<(u32, bool)> {
        let instance = self.transaction.instance;
        let disks = [self.disk(0)?, self.disk(1)?];
        let step = exchange.look(instance, [&disks[0], &disks[1]], exchange.done)?;
        if step.is_idle(exchange.manner) {
            return Ok((step.len, false));
        }
        let (mut nodes, mut indirect) = (0, 0);
        for (side, disk) in disks.iter().enumerate() {
            self.check_counts(side, &step)?;
            if disk.has_extents() {
                nodes += self.check_extents(side, &step, exchange.manner)?;
            } else {
                indirect += self.check_block_map(side, &step, exchange.manner)?;
            }
        }
        // Of two kinds of maps one is prepared for: what the other one takes is reserved.
        let (reach, blocks) = match nodes {
            0 => (Reach::Pointers, indirect),
            _ => (Reach::Everywhere, nodes),
        };
        if blocks > 0 {
            let goal = step.start(0).or(step.start(1)).unwrap_or_default();
            self.transaction.prepare(goal, reach, blocks)?;
        }
        if let Some((allocator, _)) = self.transaction.allocation() {
            let starts = [step.start(0), step.start(1)].into_iter().flatten();
            allocator.forget_owners(starts.map(|start| (start, step.len)));
        }
        // Who gets something is first: in one tree a node that goes because it lost its last entry
        // must not be the one that was looked at.
        let order = match step.targets[0] {
            Target::Hole => [0, 1],
            _ => [1, 0],
        };
        for side in order {
            self.apply(side, &step, exchange.manner)?;
        }
        Ok((step.len, true))
    }

    fn record(&mut self, side: usize) -> &mut InodeRecord {
        match &mut self.second {
            Some(second) if side == 1 => second,
            _ => self.first,
        }
    }

    fn is_same(&self) -> bool {
        self.second.is_none()
    }

    /// What reads the file as it is now.
    fn disk(&mut self, side: usize) -> Result<DiskInode> {
        let instance = self.transaction.instance;
        let record = self.record(side).clone();
        let Some(kind) = record.kind() else {
            return Err(instance.damaged(record.ino(), None, "an inode of no kind"));
        };
        Ok(DiskInode {
            number: record.ino(),
            kind: kind_of(kind),
            seed: record.checksum_seed(),
            record,
        })
    }

    /// Blocks of data that the file has more afterwards.
    fn balance(side: usize, step: &Step, gets: Target) -> i64 {
        let len = i64::from(step.len);
        let has = step.start(side).map_or(0, |_| len);
        let will_have = if gets == Target::Hole { 0 } else { len };
        will_have - has
    }

    /// Makes sure that the file's blocks can be counted, those of its map included.
    fn check_counts(&mut self, side: usize, step: &Step) -> Result<()> {
        let instance = self.transaction.instance;
        let mut counted = self.record(side).clone();
        let most = i64::from(step.len) + 2 * NODES_MAX.cast_signed();
        count_blocks(instance, &mut counted, most)
    }

    /// Makes sure that the extents of a run can be exchanged; how many nodes that takes at most.
    fn check_extents(&mut self, side: usize, step: &Step, manner: Manner) -> Result<u64> {
        let (at, end) = (step.at[side], step.end(side));
        let (has, gets) = (step.targets[side], step.gets(side, manner));
        let is_same = self.is_same();
        let record = match &mut self.second {
            Some(second) if side == 1 => &mut **second,
            _ => &mut *self.first,
        };
        let mut tree = ExtentTree {
            transaction: &mut *self.transaction,
            record,
        };
        if gets == Target::Hole {
            tree.check_punch(at, end)?;
        }
        let (path, leaf) = tree.descend(at)?;
        let cut = leaf
            .first_past(at)
            .filter(|_| has != Target::Hole)
            .map(|(_, extent)| usize::from(extent.first < at) + usize::from(extent.end() > end));
        let more = match (cut, gets) {
            (Some(ends), Target::Hole) => ends.saturating_sub(1),
            (Some(ends), _) => ends,
            (None, Target::Hole) => 0,
            (None, _) => 1,
        };
        if !is_same {
            return Ok(tree.nodes_for(&path, &leaf, more)?.unsigned_abs());
        }
        // What the other end of it makes of the tree is not known yet.
        match tree.nodes_for(&path, &leaf, 4)? {
            0 => Ok(0),
            _ => Ok(NODES_MAX),
        }
    }

    /// Makes sure that the pointers of a run can be exchanged; how many indirect blocks that takes
    /// at most.
    fn check_block_map(&mut self, side: usize, step: &Step, manner: Manner) -> Result<u64> {
        let gets = step.gets(side, manner);
        let record = match &mut self.second {
            Some(second) if side == 1 => &mut **second,
            _ => &mut *self.first,
        };
        if step.targets[side] == Target::Hole && gets != Target::Hole {
            return check_insert(self.transaction, record, step.at[side]);
        }
        if gets == Target::Hole {
            let leaves = Leaves::of(self.transaction.instance);
            let map = Map {
                leaves,
                owner: Owner::new(self.transaction, record),
            };
            let leaf = leaves.holding(step.at[side].0.into());
            for block in map.way(leaf)?.unwrap_or_default() {
                map.owner.check_map_block(block)?;
            }
        }
        Ok(0)
    }

    /// Gives one file what it gets.
    fn apply(&mut self, side: usize, step: &Step, manner: Manner) -> Result<()> {
        let gets = step.gets(side, manner);
        let (at, end) = (step.at[side], step.end(side));
        let record = match &mut self.second {
            Some(second) if side == 1 => &mut **second,
            _ => &mut *self.first,
        };
        let transaction = &mut *self.transaction;
        let run = match gets {
            Target::Hole => None,
            Target::Written(start) | Target::Unwritten(start) => Some(NewRun {
                first: at,
                start,
                len: step.len,
                unwritten: matches!(gets, Target::Unwritten(_)),
            }),
        };
        let has_extents = record.flags().contains(InodeFlags::EXTENTS);
        match run {
            Some(run) if has_extents && step.targets[side] == Target::Hole => {
                // Counts the blocks itself.
                return insert_blocks(transaction, record, &run);
            }
            Some(run) if has_extents => replace_extent(transaction, record, &run)?,
            None if has_extents => {
                let mut tree = ExtentTree {
                    transaction,
                    record,
                };
                tree.punch(at, end)?;
            }
            run => {
                let leaves = Leaves::of(transaction.instance);
                let mut map = Map {
                    leaves,
                    owner: Owner::new(transaction, record),
                };
                let leaf = leaves.holding(at.0.into());
                let blocks = leaves.blocks(leaf);
                let mut pointers = map.pointers(blocks.clone())?;
                let slots = u64::from(at.0)..u64::from(end.0);
                for (block, pointer) in (blocks.start..).zip(&mut pointers) {
                    if slots.contains(&block) {
                        *pointer = run.map(|run| BlockNo(run.start.0 + block - slots.start));
                    }
                }
                map.write(leaf, &pointers)?;
            }
        }
        let instance = self.transaction.instance;
        let balance = Self::balance(side, step, gets);
        count_blocks(instance, self.record(side), balance)
    }
}

/// Puts an extent in the place of what a tree has there, within one extent.
fn replace_extent(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    run: &NewRun,
) -> Result<()> {
    let end = FileBlock(run.first.0 + run.len);
    let mut tree = ExtentTree {
        transaction,
        record,
    };
    let (path, leaf) = tree.descend(run.first)?;
    let found = leaf.first_past(run.first);
    let covering = found.filter(|(_, extent)| extent.first <= run.first && extent.end() >= end);
    let (Some((at, extent)), Ok(len)) = (covering, u16::try_from(run.len)) else {
        return Err(tree.damaged("an extent is not where it was"));
    };
    let middle = Extent {
        first: run.first,
        len,
        start: run.start,
        unwritten: run.unwritten,
    };
    let left = part(&extent, extent.first, run.first);
    let right = part(&extent, end, extent.end());
    tree.replace(&path, &leaf, at, left, middle, right)
}
