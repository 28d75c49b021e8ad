//! Space for a range of a file, holes punched into it, ranges made zero (fallocate(2)).

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::levels;
use pagefence_page_cache::{Backing as _, Evict, Mapping};
use pagefence_vfs::{Error, FallocateMode, Result};

use crate::clock;
use crate::data::{FileData, PAGE_BYTES};
use crate::file::File;
use crate::filesystem::MemFs;
use crate::setattr::SIZE_MAX;

/// Bytes that are cleared inside one fence, at most: whoever waits at the fence waits no longer
/// than for this much (RACES B2; Linux: f00cdc6df7d7). Whole pages.
const STEP: u64 = 16 << 20;

/// What happens to the pages of a range, which read as zeros then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clearing {
    /// They are given back.
    Punch,
    /// They stay promised.
    Keep,
}

impl MemFs {
    /// See [`pagefence_vfs::FileSystem::allocate`]. Takes the inode lock exclusively; what takes
    /// pages away takes the fence below it, a piece of the range at a time.
    pub(crate) fn fallocate(
        &self,
        file: &File,
        offset: u64,
        length: u64,
        mode: FallocateMode,
    ) -> Result<()> {
        let bytes = check(offset, length, mode)?;
        let (inode, mapping) = (file.inode(), file.mapping());
        {
            let mut held = Held::at_entry();
            let (_alone, mut held) = inode.lock.write(&mut held);
            if mode.contains(FallocateMode::PUNCH_HOLE) {
                clear(&mut held, mapping, bytes, Clearing::Punch)?;
            } else {
                let pages = bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES);
                // First, so that nothing is changed if there is no space.
                mapping.backing().take(&mut held, pages)?;
                if mode.contains(FallocateMode::ZERO_RANGE) {
                    clear(&mut held, mapping, bytes.clone(), Clearing::Keep)?;
                }
                let keeps = mode.contains(FallocateMode::KEEP_SIZE);
                if !keeps && bytes.end > mapping.backing().size() {
                    Self::set_size(&mut held, mapping, bytes.end)?;
                }
            }
            inode.touch(clock::now());
        }
        self.core.release_memory();
        Ok(())
    }
}

/// Drops the pages that lie in `bytes` and zeroes those that it cuts. The caller holds the inode
/// lock exclusively, so nothing is written meanwhile but through maps, and those show zeros or what
/// was stored since.
fn clear(
    held: &mut Held<'_, levels::Inode>,
    mapping: &Mapping<FileData>,
    bytes: Range<u64>,
    how: Clearing,
) -> Result<()> {
    let mut at = bytes.start;
    while at < bytes.end {
        // Up to and with the next data; holes take no time, however long they are.
        let end = match mapping.next_dirty(at) {
            Some(data) if data.start < bytes.end => {
                let step = data.start / PAGE_BYTES * PAGE_BYTES + STEP;
                step.min(bytes.end)
            }
            _ => bytes.end,
        };
        let (mut fence, mut held) = mapping.fence(held, at..end);
        let evicted = fence.evict(&mut held, Evict::Discard)?;
        if how == Clearing::Punch {
            FileData::give_back(&evicted, &mut held);
        }
        at = end;
    }
    Ok(())
}

/// The range, if this can be done at all. Moving what follows a range is nothing that Linux's
/// tmpfs does, either.
fn check(offset: u64, length: u64, mode: FallocateMode) -> Result<Range<u64>> {
    let punches = mode.contains(FallocateMode::PUNCH_HOLE);
    let zeroes = mode.contains(FallocateMode::ZERO_RANGE);
    let keeps = mode.contains(FallocateMode::KEEP_SIZE);
    if mode.intersects(FallocateMode::COLLAPSE_RANGE | FallocateMode::INSERT_RANGE) {
        return Err(Error::Unsupported("moving what follows a range"));
    }
    if punches && (zeroes || !keeps) {
        return Err(Error::Unsupported("that mode of fallocate"));
    }
    let end = offset
        .checked_add(length)
        .filter(|end| *end <= SIZE_MAX)
        .ok_or(Error::FileTooLarge)?;
    if length == 0 {
        return Err(Error::InvalidArgument);
    }
    Ok(offset..end)
}
