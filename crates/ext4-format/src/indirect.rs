//! The classic block map of ext2 and ext3: 12 direct blocks, then one single, one double and one
//! triple tree of indirect blocks. Source: the kernel's
//! `Documentation/filesystems/ext4/blockmap.rst`.

#[cfg(test)]
mod tests;

use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use crate::extent::{BlockLimits, FILE_BLOCKS_END, ROOT_BYTES};
use crate::{BlockNo, Corruption, FileBlock};

/// Direct blocks in `i_block`.
pub const DIRECT_SLOTS: u32 = 12;
/// Pointers in `i_block`: the direct ones, single, double, triple.
pub const ROOT_SLOTS: u32 = 15;
/// Bytes of a pointer.
const POINTER: usize = 4;

/// A check that a pointer of a block map did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockMapCorruption {
    /// A pointer to a block that a file cannot own.
    #[error("slot {slot} of a block map points to {block}, outside the file system")]
    OutsideFileSystem {
        /// Number of the pointer in its block or in `i_block`.
        slot: u32,
        /// As stored.
        block: BlockNo,
    },
}

/// How block maps of one block size branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    per_block: u32,
}

impl MapShape {
    /// For blocks of `block_size` bytes; nothing unless it is a power of two from 1024 to 65536.
    #[must_use]
    pub fn new(block_size: u32) -> Option<Self> {
        let valid = block_size.is_power_of_two() && (1024..=65536).contains(&block_size);
        valid.then_some(Self {
            per_block: block_size / 4,
        })
    }

    /// Pointers in an indirect block.
    #[must_use]
    pub fn per_block(&self) -> u32 {
        self.per_block
    }

    /// One past the last file block that a block map reaches.
    #[must_use]
    pub fn end(&self) -> FileBlock {
        let reach = (1..=3)
            .map(|height| self.span(height))
            .fold(u64::from(DIRECT_SLOTS), u64::saturating_add);
        u32::try_from(reach).map_or(FILE_BLOCKS_END, FileBlock)
    }

    /// The way to `block`, or nothing if a block map does not reach it.
    #[must_use]
    pub fn path(&self, block: FileBlock) -> Option<MapPath> {
        if block >= self.end() {
            return None;
        }
        let Some(mut rest) = block.0.checked_sub(DIRECT_SLOTS).map(u64::from) else {
            return Some(MapPath {
                shape: *self,
                block,
                slots: [block.0, 0, 0, 0],
                depth: 0,
            });
        };
        for depth in 1..=3_u8 {
            let reach = self.span(depth);
            if rest < reach {
                let root = DIRECT_SLOTS.checked_add(depth.into())?.checked_sub(1)?;
                let mut slots = [root, 0, 0, 0];
                for (level, slot) in slots.iter_mut().enumerate().skip(1).take(depth.into()) {
                    let height = depth.checked_sub(u8::try_from(level).ok()?)?;
                    let within = rest.checked_div(self.span(height))?;
                    *slot = u32::try_from(within.checked_rem(self.per_block.into())?).ok()?;
                }
                return Some(MapPath {
                    shape: *self,
                    block,
                    slots,
                    depth,
                });
            }
            rest = rest.checked_sub(reach)?;
        }
        None
    }

    /// File blocks below a pointer `height` levels above the data.
    fn span(&self, height: u8) -> u64 {
        u64::from(self.per_block).saturating_pow(height.into())
    }
}

/// The way from `i_block` to a file block: a slot in each level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapPath {
    shape: MapShape,
    block: FileBlock,
    slots: [u32; 4],
    depth: u8,
}

impl MapPath {
    /// Indirect blocks on the way, 0 to 3.
    #[must_use]
    pub fn depth(&self) -> u8 {
        self.depth
    }

    /// The slots: in `i_block`, then in each indirect block down to the pointer to the data.
    #[must_use]
    pub fn slots(&self) -> &[u32] {
        let count = usize::from(self.depth).saturating_add(1);
        self.slots.get(..count).unwrap_or(&self.slots)
    }

    /// The file blocks that lie below the slot of `level` (0 for `i_block`): first, and one past
    /// the last. If that slot is empty, they all are a hole. Nothing below the last level.
    #[must_use]
    pub fn covers(&self, level: u8) -> Option<(FileBlock, FileBlock)> {
        let height = self.depth.checked_sub(level)?;
        let span = self.shape.span(height);
        let mut base = u64::from(DIRECT_SLOTS);
        if self.depth == 0 {
            base = 0;
        }
        for lower in 1..self.depth {
            base = base.checked_add(self.shape.span(lower))?;
        }
        let into = u64::from(self.block.0).checked_sub(base)?;
        let first = base.checked_add(into.checked_sub(into.checked_rem(span)?)?)?;
        let end = first.checked_add(span)?;
        Some((
            FileBlock(u32::try_from(first).ok()?),
            FileBlock(u32::try_from(end).map_or(self.shape.end().0, |end| end))
                .min(self.shape.end()),
        ))
    }
}

/// A run of equal kind in a block of pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// `len` pointers to blocks that follow each other from `start` on.
    Mapped {
        /// The first block.
        start: BlockNo,
        /// Pointers, at least one.
        len: u32,
    },
    /// `len` empty pointers.
    Hole {
        /// Pointers, at least one.
        len: u32,
    },
}

/// Pointers to blocks: those of `i_block` or those of an indirect block. A view of the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Pointers<'a> {
    slots: &'a [U32],
    limits: BlockLimits,
}

impl<'a> Pointers<'a> {
    /// The 15 pointers of `i_block`.
    ///
    /// # Errors
    ///
    /// [`Corruption::Truncated`] if there are fewer than 60 bytes.
    pub fn root(i_block: &'a [u8], limits: &BlockLimits) -> Result<Self, Corruption> {
        let whole = i_block.get(..ROOT_BYTES).ok_or(Corruption::Truncated {
            what: "block map",
            needed: ROOT_BYTES,
            have: i_block.len(),
        })?;
        Ok(Self::block(whole, limits))
    }

    /// The pointers of one whole indirect block. Each is checked as it is read.
    #[must_use]
    pub fn block(block: &'a [u8], limits: &BlockLimits) -> Self {
        let count = block.len() / POINTER;
        let slots = <[U32]>::ref_from_prefix_with_elems(block, count);
        Self {
            slots: slots.map_or(&[], |(slots, _)| slots),
            limits: *limits,
        }
    }

    /// The block that `slot` points to; nothing if it is empty, or there is no such slot.
    ///
    /// # Errors
    ///
    /// [`BlockMapCorruption::OutsideFileSystem`].
    pub fn get(&self, slot: u32) -> Result<Option<BlockNo>, Corruption> {
        let stored = usize::try_from(slot)
            .ok()
            .and_then(|slot| self.slots.get(slot));
        match stored.map(|stored| BlockNo(stored.get().into())) {
            None | Some(BlockNo(0)) => Ok(None),
            Some(block) if self.limits.contains(block, 1) => Ok(Some(block)),
            Some(block) => Err(BlockMapCorruption::OutsideFileSystem { slot, block }.into()),
        }
    }

    /// The run that starts at `slot`, cut to `most` pointers and to the end of the block; nothing
    /// if that leaves none. A corrupt pointer ends a run before it.
    ///
    /// # Errors
    ///
    /// [`BlockMapCorruption::OutsideFileSystem`] for the pointer in `slot` itself.
    pub fn run(&self, slot: u32, most: u32) -> Result<Option<Run>, Corruption> {
        let start = usize::try_from(slot).unwrap_or(usize::MAX);
        let count = usize::try_from(most).unwrap_or(usize::MAX);
        let rest = self.slots.get(start..).unwrap_or(&[]);
        let rest = rest.get(..count).unwrap_or(rest);
        if rest.is_empty() {
            return Ok(None);
        }
        let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let Some(first) = self.get(slot)? else {
            let len = rest.iter().take_while(|stored| stored.get() == 0).count();
            return Ok(Some(Run::Hole { len: length(len) }));
        };
        let len = rest
            .iter()
            .zip(first.0..self.limits.blocks_count)
            .take_while(|(stored, due)| u64::from(stored.get()) == *due)
            .count();
        Ok(Some(Run::Mapped {
            start: first,
            len: length(len),
        }))
    }

    /// The slots that are not empty, in order, each with its block or what is wrong with it.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Result<BlockNo, Corruption>)> + use<'a> {
        let pointers = *self;
        (0_u32..)
            .zip(self.slots)
            .filter(|(_, stored)| stored.get() != 0)
            .filter_map(move |(slot, _)| Some((slot, pointers.get(slot).transpose()?)))
    }
}

/// Points `slot` of `i_block` or of an indirect block to `block`, or empties it. Returns whether
/// it did: not if there is no such slot, or the block needs more than 32 bits.
#[must_use]
pub fn set_pointer(bytes: &mut [u8], slot: u32, block: Option<BlockNo>) -> bool {
    let Ok(stored) = u32::try_from(block.map_or(0, |block| block.0)) else {
        return false;
    };
    let at = usize::try_from(slot)
        .ok()
        .and_then(|slot| slot.checked_mul(POINTER));
    match at
        .and_then(|at| bytes.get_mut(at..))
        .map(U32::mut_from_prefix)
    {
        Some(Ok((pointer, _))) => {
            pointer.set(stored);
            true
        }
        _ => false,
    }
}
