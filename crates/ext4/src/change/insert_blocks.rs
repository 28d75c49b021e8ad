//! Mapping blocks where a file has a hole, in extent trees and block maps alike; and marking those
//! of extent trees as written or not.
//!
//! Data blocks come from the caller, who marks them as used; blocks of the map are the
//! transaction's to allocate. Both are counted into the inode's sectors.

use pagefence_ext4_format::extent::{Extent, MAX_EXTENT_LEN};
use pagefence_ext4_format::indirect::{MapPath, Pointers, set_pointer};
use pagefence_ext4_format::inode::{Inode as InodeRecord, InodeFlags};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::Result;

use crate::alloc::Reach;
use crate::change::extent_tree::{ExtentTree, count_blocks};
use crate::change::transaction::Transaction;
use crate::error::At;

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
/// `Corrupt` if there is no hole, or the map does not reach so far; `Io`, `NoSpace` if the
/// transaction has no block for the map.
pub(crate) fn insert_blocks(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    run: &NewRun,
) -> Result<()> {
    if record.flags().contains(InodeFlags::EXTENTS) {
        insert_extents(transaction, record, run)?;
    } else {
        insert_pointers(transaction, record, run)?;
    }
    count_blocks(transaction.instance, record, i64::from(run.len))
}

/// Says of blocks of an extent tree that they are written now, or that they are not.
///
/// # Errors
/// As [`insert_blocks`].
pub(crate) fn mark(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    first: FileBlock,
    len: u32,
    unwritten: bool,
) -> Result<()> {
    let end = FileBlock(first.0.saturating_add(len));
    let mut tree = ExtentTree {
        transaction,
        record,
    };
    tree.mark(first, end, unwritten)
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

/// Points as many slots of the block of pointers that maps `at` as it has, `most` at most, to the
/// blocks from `start` on; says how many.
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
    let first = path.slots().last().copied().unwrap_or(0);
    let slots = match holder {
        None => pagefence_ext4_format::indirect::DIRECT_SLOTS,
        Some(_) => instance.map_shape.per_block(),
    };
    let count = most.min(slots.saturating_sub(first));
    let point = |bytes: &mut [u8]| -> Result<()> {
        let pointers = match holder {
            None => {
                Pointers::root(bytes, &instance.limits).at(&instance.damage, Some(inode), None)?
            }
            Some(_) => Pointers::block(bytes, &instance.limits),
        };
        let is_hole = (first..first + count).all(|slot| matches!(pointers.get(slot), Ok(None)));
        if !is_hole {
            return Err(instance.damaged(inode, holder, "two blocks for one place of a file"));
        }
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
        let found = match holder {
            None => Pointers::root(record.block_area(), &instance.limits)
                .and_then(|pointers| pointers.get(slot)),
            Some(holder) => {
                let bytes = instance.read_block(holder)?;
                Pointers::block(&bytes, &instance.limits).get(slot)
            }
        }
        .at(&instance.damage, Some(inode), holder)?;
        let next = match found {
            Some(found) => {
                instance.check_owned(inode, found, 1)?;
                found
            }
            None => {
                let new = transaction.allocate(inode, goal, Reach::Pointers)?;
                transaction.set(new, &vec![0; instance.superblock.block_size() as usize]);
                count_blocks(instance, record, 1)?;
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
