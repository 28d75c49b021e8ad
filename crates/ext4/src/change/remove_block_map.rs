//! Taking blocks away from a block map: from its end, or out of its middle.

use std::ops::Range;

use pagefence_ext4_format::indirect::{DIRECT_SLOTS, Pointers, set_pointer};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::{Error, Result};

use crate::change::remove_blocks::{Owner, Progress};
use crate::error::At;

/// What became of an indirect block.
enum Branch {
    /// Nothing lies below it any more: it can be freed.
    Empty,
    /// It stays, since file blocks outside the range are below it.
    Kept,
    /// The transaction is large, or has to end here.
    More,
}

/// Why a removal could not go on.
enum Failed {
    /// The map says of every block what became of it.
    Sound(Error),
    /// It does not.
    HalfDone(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Sound(error)
    }
}

/// An indirect block whose pointers are being taken away.
struct Level<'a> {
    block: BlockNo,
    /// Levels above the data.
    height: u32,
    /// The first file block below it.
    base: u64,
    pointers: Pointers<'a>,
    /// Slots that are to be looked at.
    slots: Range<u64>,
    /// Slots of what is freed, descending.
    cleared: Vec<u32>,
}

/// Takes away what the map maps from `from` up to (not including) `end`.
///
/// # Errors
/// As [`remove_blocks`](super::remove_blocks::remove_blocks).
pub(crate) fn remove(owner: &mut Owner<'_, '_>, from: FileBlock, end: u64) -> Result<Progress> {
    match remove_from(owner, from, end) {
        Ok(progress) => Ok(progress),
        Err(Failed::Sound(error)) => owner.stop(error),
        Err(Failed::HalfDone(error)) => Err(error),
    }
}

fn remove_from(
    owner: &mut Owner<'_, '_>,
    from: FileBlock,
    end: u64,
) -> std::result::Result<Progress, Failed> {
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
            owner.lowest = Some(slot);
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
) -> std::result::Result<Branch, Failed> {
    // Before anything below it is freed: it may have to go after that.
    owner.check_map_block(block)?;
    let instance = owner.transaction.instance;
    let buffer = instance.read_owned(owner.map_owner(), block)?;
    let below = span(owner, height - 1);
    let first_slot = range.start.saturating_sub(base) / below;
    let end_slot = range.end.saturating_sub(base).div_ceil(below);
    let mut level = Level {
        block,
        height,
        base,
        pointers: Pointers::block(&buffer, &instance.limits),
        slots: first_slot..end_slot.min(span(owner, 1)),
        cleared: Vec::new(),
    };
    let progress = if height == 1 {
        free_data(owner, &mut level)
    } else {
        free_below(owner, &mut level, range)
    };
    let progress = match progress {
        Err(Failed::Sound(error)) => owner.stop(error)?,
        other => other?,
    };
    if progress == Progress::Done && level.is_empty() {
        return Ok(Branch::Empty);
    }
    if !level.cleared.is_empty() {
        let cleared = owner.transaction.change(block, |bytes| {
            for slot in level.cleared {
                clear(bytes, slot);
            }
            Ok(())
        });
        cleared.map_err(Failed::HalfDone)?;
    }
    Ok(match progress {
        Progress::Done => Branch::Kept,
        Progress::More => Branch::More,
    })
}

impl Level<'_> {
    /// Whether no slot points anywhere but those of what is freed.
    fn is_empty(&self) -> bool {
        let is_freed = |slot: u32| {
            let found = self.cleared.binary_search_by(|other| slot.cmp(other));
            found.is_ok()
        };
        self.pointers.iter().all(|(slot, _)| is_freed(slot))
    }

    fn pointer(&self, owner: &Owner<'_, '_>, slot: u32) -> Result<Option<BlockNo>> {
        self.pointers.get(slot).at(
            &owner.transaction.instance.damage,
            Some(owner.record.ino()),
            Some(self.block),
        )
    }
}

/// Takes away what lies below the indirect blocks that `level` points to, from the last one down.
fn free_below(
    owner: &mut Owner<'_, '_>,
    level: &mut Level<'_>,
    range: &Range<u64>,
) -> std::result::Result<Progress, Failed> {
    let below = span(owner, level.height - 1);
    for slot in level.slots.clone().rev() {
        let Some(child) = level.pointer(owner, slot as u32)? else {
            continue;
        };
        let base = level.base + slot * below;
        match branch(owner, child, level.height - 1, base, range)? {
            Branch::Empty => {
                owner.free_map_block(child)?;
                level.cleared.push(slot as u32);
            }
            Branch::Kept => {}
            Branch::More => return Ok(Progress::More),
        }
    }
    Ok(Progress::Done)
}

/// Frees the data blocks that the lowest indirect block points to, from the last slot down,
/// neighbours together.
fn free_data(
    owner: &mut Owner<'_, '_>,
    level: &mut Level<'_>,
) -> std::result::Result<Progress, Failed> {
    // What follows each other downwards, and the slots that point there.
    let mut start = BlockNo(0);
    let mut slots: Vec<u32> = Vec::new();
    for slot in level.slots.clone().rev() {
        let slot = slot as u32;
        let target = match level.pointer(owner, slot) {
            Ok(Some(target)) => target,
            Ok(None) => continue,
            Err(error) => {
                free_run(owner, level, start, &mut slots)?;
                return Err(error.into());
            }
        };
        if target.0 + 1 != start.0 && !slots.is_empty() {
            free_run(owner, level, start, &mut slots)?;
            if owner.transaction.is_large() {
                return Ok(Progress::More);
            }
        }
        start = target;
        slots.push(slot);
    }
    free_run(owner, level, start, &mut slots)?;
    Ok(Progress::Done)
}

/// Frees the blocks from `start` on that `slots` point to.
fn free_run(
    owner: &mut Owner<'_, '_>,
    level: &mut Level<'_>,
    start: BlockNo,
    slots: &mut Vec<u32>,
) -> Result<()> {
    if slots.is_empty() {
        return Ok(());
    }
    // As many as a block has pointers, at most.
    owner.free(start, slots.len() as u32)?;
    if let Some(lowest) = slots.last() {
        // File blocks have 32 bits, and these were looked up by one.
        owner.lowest = Some((level.base + u64::from(*lowest)) as u32);
    }
    level.cleared.append(slots);
    Ok(())
}
