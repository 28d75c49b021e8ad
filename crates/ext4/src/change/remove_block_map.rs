//! Taking blocks away from a block map: from its end, or out of its middle.

use std::ops::Range;

use pagefence_ext4_format::indirect::{DIRECT_SLOTS, Pointers, set_pointer};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::Result;

use crate::change::remove_blocks::{Owner, Progress};
use crate::error::At;

/// What became of an indirect block.
enum Branch {
    /// Nothing lies below it any more: it can be freed.
    Empty,
    /// It stays, since file blocks before the limit are below it.
    Kept,
    /// The transaction is large.
    More,
}

/// Takes away what the map maps from `from` up to (not including) `end`.
pub(crate) fn remove(owner: &mut Owner<'_, '_>, from: FileBlock, end: u64) -> Result<Progress> {
    let range = u64::from(from.0)..end;
    let mut bases = [0; 3];
    let mut base = u64::from(DIRECT_SLOTS);
    for (height, slot) in (1..).zip(&mut bases) {
        *slot = base;
        base = base.saturating_add(span(owner, height));
    }
    for (at, base) in bases.into_iter().enumerate().rev() {
        let height = at as u32 + 1;
        let slot = DIRECT_SLOTS + at as u32;
        if base >= range.end {
            continue;
        }
        let Some(block) = root_pointer(owner, slot)? else {
            continue;
        };
        if base.saturating_add(span(owner, height)) <= range.start {
            return Ok(Progress::Done);
        }
        match branch(owner, block, height, base, &range)? {
            Branch::Empty => {
                owner.free_map_block(block)?;
                clear(owner.record.block_area_mut(), slot);
            }
            Branch::Kept => {}
            Branch::More => return Ok(Progress::More),
        }
    }
    let first = u32::try_from(range.start).unwrap_or(u32::MAX);
    let last = u32::try_from(range.end).unwrap_or(u32::MAX);
    for slot in (first..DIRECT_SLOTS.min(last)).rev() {
        if let Some(block) = root_pointer(owner, slot)? {
            owner.free(block, 1)?;
            clear(owner.record.block_area_mut(), slot);
        }
    }
    Ok(Progress::Done)
}

/// File blocks below a pointer `height` levels above the data.
fn span(owner: &Owner<'_, '_>, height: u32) -> u64 {
    let per_block = owner.transaction.instance.map_shape.per_block();
    u64::from(per_block).saturating_pow(height)
}

fn root_pointer(owner: &Owner<'_, '_>, slot: u32) -> Result<Option<BlockNo>> {
    let instance = owner.transaction.instance;
    Pointers::root(owner.record.block_area(), &instance.limits)
        .and_then(|pointers| pointers.get(slot))
        .at(&instance.damage, Some(owner.record.ino()), None)
}

fn clear(pointers: &mut [u8], slot: u32) {
    let done = set_pointer(pointers, slot, None);
    debug_assert!(done, "the slot was read before");
}

/// Takes away what lies below the indirect block `block`, which maps file blocks from `base` on,
/// `height` levels above the data.
fn branch(
    owner: &mut Owner<'_, '_>,
    block: BlockNo,
    height: u32,
    base: u64,
    range: &Range<u64>,
) -> Result<Branch> {
    let below = span(owner, height - 1);
    let first_slot = range.start.saturating_sub(base) / below;
    let end_slot = range
        .end
        .saturating_sub(base)
        .div_ceil(below)
        .min(span(owner, 1));
    let mut cleared = Vec::new();
    let outcome = if height == 1 {
        free_data(owner, block, first_slot..end_slot, &mut cleared)?
    } else {
        let mut outcome = Progress::Done;
        for slot in (first_slot..end_slot).rev() {
            let Some(child) = pointer(owner, block, slot as u32)? else {
                continue;
            };
            match branch(owner, child, height - 1, base + slot * below, range)? {
                Branch::Empty => {
                    owner.free_map_block(child)?;
                    cleared.push(slot as u32);
                }
                Branch::Kept => {}
                Branch::More => {
                    outcome = Progress::More;
                    break;
                }
            }
        }
        outcome
    };
    if outcome == Progress::Done && is_empty(owner, block, &cleared)? {
        return Ok(Branch::Empty);
    }
    if !cleared.is_empty() {
        owner.transaction.change(block, |bytes| {
            for slot in cleared {
                clear(bytes, slot);
            }
            Ok(())
        })?;
    }
    Ok(match outcome {
        Progress::Done => Branch::Kept,
        Progress::More => Branch::More,
    })
}

/// Whether no slot of an indirect block points anywhere but those in `cleared`, which are in
/// descending order.
fn is_empty(owner: &Owner<'_, '_>, block: BlockNo, cleared: &[u32]) -> Result<bool> {
    let instance = owner.transaction.instance;
    let buffer = instance.read_block(block)?;
    let left = Pointers::block(&buffer, &instance.limits)
        .iter()
        .filter(|(slot, _)| cleared.binary_search_by(|other| slot.cmp(other)).is_err())
        .count();
    Ok(left == 0)
}

fn pointer(owner: &Owner<'_, '_>, block: BlockNo, slot: u32) -> Result<Option<BlockNo>> {
    let instance = owner.transaction.instance;
    let buffer = instance.read_block(block)?;
    Pointers::block(&buffer, &instance.limits).get(slot).at(
        &instance.damage,
        Some(owner.record.ino()),
        Some(block),
    )
}

/// Frees the data blocks that the lowest indirect block `block` points to in `slots`, from the last
/// slot down, neighbours together.
fn free_data(
    owner: &mut Owner<'_, '_>,
    block: BlockNo,
    slots: Range<u64>,
    cleared: &mut Vec<u32>,
) -> Result<Progress> {
    let instance = owner.transaction.instance;
    let buffer = instance.read_block(block)?;
    let pointers = Pointers::block(&buffer, &instance.limits);
    let mut run: Option<(BlockNo, u32)> = None;
    for slot in slots.rev() {
        let slot = slot as u32;
        let target =
            pointers
                .get(slot)
                .at(&instance.damage, Some(owner.record.ino()), Some(block))?;
        let Some(target) = target else {
            continue;
        };
        run = match run {
            Some((start, count)) if target.0 + 1 == start.0 => Some((target, count + 1)),
            Some((start, count)) => {
                owner.free(start, count)?;
                if owner.transaction.is_large() {
                    return Ok(Progress::More);
                }
                Some((target, 1))
            }
            None => Some((target, 1)),
        };
        cleared.push(slot);
    }
    if let Some((start, count)) = run {
        owner.free(start, count)?;
    }
    Ok(Progress::Done)
}
