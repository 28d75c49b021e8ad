//! Mapping blocks where a file has a hole, in extent trees and block maps alike; and marking those
//! of extent trees as written or not.
//!
//! Data blocks come from the caller, who marks them as used; blocks of the map are the
//! transaction's to allocate. Both are counted into the inode's sectors.

use std::ops::Range;

use pagefence_ext4_format::extent::{Extent, MAX_DEPTH, MAX_EXTENT_LEN};
use pagefence_ext4_format::indirect::{DIRECT_SLOTS, MapPath, Pointers, set_pointer};
use pagefence_ext4_format::inode::{Inode as InodeRecord, InodeFlags};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::Result;

use crate::alloc::{BlockOwner, POINTERS_END, Reach};
use crate::change::cut::Cut;
use crate::change::extent_tree::{ExtentTree, count_blocks};
use crate::change::transaction::Transaction;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::Instance;
use crate::map_blocks::Target;
use crate::writeback::Completed;

/// A run of file blocks, and the run of blocks that they become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewRun {
    pub(crate) first: FileBlock,
    pub(crate) start: BlockNo,
    pub(crate) len: u32,
    /// Reads as zeros until it is written. Extents only.
    pub(crate) unwritten: bool,
}

/// Maps a run where the file has a hole. `record` changes along; the caller writes it.
///
/// # Errors
/// `Corrupt` if there is no hole, or the map does not reach so far, or the inode can't count so many
/// blocks; `Io`, `NoSpace` if the transaction has no block for the map. Unless
/// [`Transaction::changes`] says otherwise nothing changed then, but for `record`, which is to be
/// dropped.
pub(crate) fn insert_blocks(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    run: &NewRun,
) -> Result<()> {
    count_blocks(transaction.instance, record, i64::from(run.len))?;
    if record.flags().contains(InodeFlags::EXTENTS) {
        insert_extents(transaction, record, run)
    } else {
        let missing = check_pointers(transaction.instance, record, run.first, run.len)?;
        if run.start.0 + u64::from(run.len) > POINTERS_END {
            let what = "its block map can't hold a block of that number";
            return Err(transaction.instance.damaged(record.ino(), None, what));
        }
        transaction.prepare(run.start, Reach::Pointers, missing)?;
        insert_pointers(transaction, record, run)
    }
}

/// Says of blocks of an extent tree that they are written now: their data is with the device, and
/// their pages keep the mark of writeback.
///
/// # Errors
/// As [`insert_blocks`].
pub(crate) fn mark_written(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    blocks: Range<u32>,
    _completed: &Completed<'_>,
) -> Result<()> {
    let mut tree = ExtentTree {
        transaction,
        record,
    };
    tree.mark(FileBlock(blocks.start), FileBlock(blocks.end), false)
}

/// Says of blocks of an extent tree that they are unwritten, whatever they hold.
///
/// # Errors
/// As [`insert_blocks`].
pub(crate) fn mark_unwritten(
    transaction: &mut Transaction<'_>,
    cut: &mut Cut<'_>,
    blocks: Range<u32>,
) -> Result<()> {
    cut.check(blocks.start.into()..blocks.end.into())?;
    let mut tree = ExtentTree {
        transaction,
        record: cut.record_mut(),
    };
    tree.mark(FileBlock(blocks.start), FileBlock(blocks.end), true)
}

fn insert_extents(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    run: &NewRun,
) -> Result<()> {
    let longest = u32::from(MAX_EXTENT_LEN) - u32::from(run.unwritten);
    let mut tree = ExtentTree {
        transaction,
        record,
    };
    let mut done = 0;
    while done < run.len {
        let len = (run.len - done).min(longest);
        let extent = Extent {
            first: FileBlock(run.first.0.saturating_add(done)),
            len: u16::try_from(len).unwrap_or(MAX_EXTENT_LEN),
            start: BlockNo(run.start.0 + u64::from(done)),
            unwritten: run.unwritten,
        };
        tree.insert(extent)?;
        done += len;
    }
    Ok(())
}

fn insert_pointers(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    run: &NewRun,
) -> Result<()> {
    let mut done = 0;
    while done < run.len {
        let at = FileBlock(run.first.0.saturating_add(done));
        let start = BlockNo(run.start.0 + u64::from(done));
        done += insert_in_one_block(transaction, record, at, start, run.len - done)?;
    }
    Ok(())
}

/// Makes sure that a block can be put at `at`, behind all others of the file, and counted; says how
/// many blocks the map takes for that, at most.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(crate) fn check_insert(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    at: FileBlock,
) -> Result<u64> {
    let instance = transaction.instance;
    let blocks = if record.flags().contains(InodeFlags::EXTENTS) {
        let tree = ExtentTree {
            transaction,
            record,
        };
        tree.nodes_for_block(at)?
    } else {
        check_pointers(instance, record, at, 1)?
    };
    let mut counted = record.clone();
    count_blocks(instance, &mut counted, blocks.cast_signed() + 1)?;
    Ok(blocks)
}

/// Makes sure that a file has nothing at the `len` blocks from `first` on, and that they can be
/// counted if they come to lie there, with what maps them at most.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(crate) fn check_hole(
    instance: &Instance,
    disk: &DiskInode,
    first: FileBlock,
    len: u32,
) -> Result<()> {
    let record = &disk.record;
    let for_map = if disk.has_extents() {
        let mut done = 0;
        while done < len {
            let at = FileBlock(first.0.saturating_add(done));
            let run = instance.map_blocks(disk, at)?;
            if run.target != Target::Hole {
                let what = "two blocks for one place of a file";
                return Err(instance.damaged(record.ino(), None, what));
            }
            done = done.saturating_add(run.len);
        }
        // A node on each level, and a root that grows.
        u64::from(MAX_DEPTH) + 1
    } else {
        check_pointers(instance, record, first, len)?
    };
    let mut counted = record.clone();
    count_blocks(
        instance,
        &mut counted,
        (for_map + u64::from(len)).cast_signed(),
    )
}

/// Makes sure that a run can be put into a block map, its slots being empty, and what is missing of
/// the map be counted into the inode's sectors; says how many blocks of the map are missing.
fn check_pointers(
    instance: &Instance,
    record: &InodeRecord,
    first: FileBlock,
    len: u32,
) -> Result<u64> {
    let damaged = |what: &str| instance.damaged(record.ino(), None, what);
    let end = u64::from(first.0) + u64::from(len);
    let mut missing = 0;
    let mut before: Option<MapPath> = None;
    let mut at = u64::from(first.0);
    while at < end {
        let path = u32::try_from(at)
            .ok()
            .and_then(|at| instance.map_shape.path(FileBlock(at)))
            .ok_or_else(|| damaged("its block map does not reach so far"))?;
        let (first, here) = slots_at(instance, &path, end - at);
        at += u64::from(here);
        match follow(instance, record, &path)? {
            Way::To(holder) => check_empty(instance, record, holder, first..first + here)?,
            Way::Missing(from) => {
                // What the piece before makes serves this one, too.
                let made = before.map_or(0, |before| shared(&before, &path));
                missing += u64::from(path.depth()).saturating_sub(from.max(made) as u64);
            }
        }
        before = Some(path);
    }
    let mut counted = record.clone();
    count_blocks(instance, &mut counted, missing.cast_signed())?;
    Ok(missing)
}

/// The first slot of the lowest block of pointers on a way, and how many from there are wanted, if
/// `most` are.
fn slots_at(instance: &Instance, path: &MapPath, most: u64) -> (u32, u32) {
    let first = path.slots().last().copied().unwrap_or(0);
    let slots = match path.depth() {
        0 => DIRECT_SLOTS,
        _ => instance.map_shape.per_block(),
    };
    let left = slots.saturating_sub(first);
    (first, u32::try_from(most).unwrap_or(left).min(left))
}

/// On how many levels two ways lead through the same indirect blocks.
fn shared(a: &MapPath, b: &MapPath) -> usize {
    let levels = usize::from(a.depth()).min(b.depth().into());
    let same = a.slots().iter().zip(b.slots()).take(levels);
    same.take_while(|(a, b)| a == b).count()
}

/// Where the way to a file block leads.
enum Way {
    /// To this block of pointers; none if the pointer is in the inode.
    To(Option<BlockNo>),
    /// So many indirect blocks are there, and no more.
    Missing(usize),
}

fn follow(instance: &Instance, record: &InodeRecord, path: &MapPath) -> Result<Way> {
    let mut holder = None;
    let levels = path.slots().iter().take(path.depth().into());
    for (level, slot) in levels.copied().enumerate() {
        let Some(next) = pointer(instance, record, holder, slot)? else {
            return Ok(Way::Missing(level));
        };
        instance.check_owned(record.ino(), next, 1)?;
        holder = Some(next);
    }
    Ok(Way::To(holder))
}

/// What a slot of an indirect block says, or of the inode.
pub(super) fn pointer(
    instance: &Instance,
    record: &InodeRecord,
    holder: Option<BlockNo>,
    slot: u32,
) -> Result<Option<BlockNo>> {
    match holder {
        None => Pointers::root(record.block_area(), &instance.limits)
            .and_then(|pointers| pointers.get(slot)),
        Some(holder) => {
            let bytes = instance.read_owned(BlockOwner::Map(record.ino()), holder)?;
            Pointers::block(&bytes, &instance.limits).get(slot)
        }
    }
    .at(&instance.damage, Some(record.ino()), holder)
}

fn check_empty(
    instance: &Instance,
    record: &InodeRecord,
    holder: Option<BlockNo>,
    mut slots: Range<u32>,
) -> Result<()> {
    let buffer;
    let pointers = match holder {
        None => Pointers::root(record.block_area(), &instance.limits).at(
            &instance.damage,
            Some(record.ino()),
            None,
        )?,
        Some(holder) => {
            buffer = instance.read_owned(BlockOwner::Map(record.ino()), holder)?;
            Pointers::block(&buffer, &instance.limits)
        }
    };
    if slots.all(|slot| matches!(pointers.get(slot), Ok(None))) {
        return Ok(());
    }
    let what = "two blocks for one place of a file";
    Err(instance.damaged(record.ino(), holder, what))
}

/// Points as many slots of the block of pointers that maps `at` as it has, `most` at most, to the
/// blocks from `start` on; says how many. [`check_pointers`] found that it can be done.
fn insert_in_one_block(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    at: FileBlock,
    start: BlockNo,
    most: u32,
) -> Result<u32> {
    let instance = transaction.instance;
    let inode = record.ino();
    let Some(path) = instance.map_shape.path(at) else {
        return Err(instance.damaged(inode, None, "its block map does not reach so far"));
    };
    let holder = holder(transaction, record, &path, start)?;
    let (first, count) = slots_at(instance, &path, most.into());
    let point = |bytes: &mut [u8]| -> Result<()> {
        for (slot, block) in (first..first + count).zip(start.0..) {
            if !set_pointer(bytes, slot, Some(BlockNo(block))) {
                let what = "its block map can't hold a block of that number";
                return Err(instance.damaged(inode, holder, what));
            }
        }
        Ok(())
    };
    match holder {
        None => point(record.block_area_mut())?,
        Some(holder) => transaction.change(holder, point)?,
    }
    Ok(count)
}

/// The indirect block that holds the pointer at the end of `path`, with those that lead to it made
/// where they are missing; none if the pointer is in the inode.
pub(super) fn holder(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    path: &MapPath,
    goal: BlockNo,
) -> Result<Option<BlockNo>> {
    let instance = transaction.instance;
    let inode = record.ino();
    let mut holder: Option<BlockNo> = None;
    for slot in path.slots().iter().take(path.depth().into()).copied() {
        let found = pointer(instance, record, holder, slot)?;
        let next = match found {
            Some(found) => found,
            None => {
                count_blocks(instance, record, 1)?;
                let new = transaction.allocate(BlockOwner::Map(inode), goal, Reach::Pointers)?;
                transaction.set(new, &vec![0; instance.superblock.block_size() as usize]);
                let set = match holder {
                    None => set_pointer(record.block_area_mut(), slot, Some(new)),
                    Some(holder) => transaction
                        .change(holder, |bytes| Ok(set_pointer(bytes, slot, Some(new))))?,
                };
                if !set {
                    let what = "its block map can't hold a block of that number";
                    return Err(instance.damaged(inode, holder, what));
                }
                new
            }
        };
        holder = Some(next);
    }
    Ok(holder)
}
