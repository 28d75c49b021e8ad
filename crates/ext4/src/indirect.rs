//! Block maps: from a file block to a block through up to three levels of indirect blocks.

use pagefence_ext4_format::indirect::{MapPath, Pointers, Run as PointerRun};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::Result;

use crate::alloc::BlockOwner;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::Instance;
use crate::map_blocks::{Run, Target};

impl Instance {
    /// Looks `block` up in the inode's block map. A block beyond what a map reaches is a hole.
    pub(crate) fn find_in_block_map(&self, inode: &DiskInode, block: FileBlock) -> Result<Run> {
        self.walk_pointers_to(inode, block, |_| {})
    }

    /// As [`Self::find_in_block_map`], and shows `visit` each indirect block on the way.
    pub(crate) fn walk_pointers_to(
        &self,
        inode: &DiskInode,
        block: FileBlock,
        mut visit: impl FnMut(BlockNo),
    ) -> Result<Run> {
        let Some(path) = self.map_shape.path(block) else {
            return Ok(Run::hole(u32::MAX - block.0));
        };
        let root = Pointers::root(inode.i_block(), &self.limits).at(
            &self.damage,
            Some(inode.number),
            None,
        )?;
        let last = path.depth();
        let mut slots = path.slots().iter();
        let Some(&first) = slots.next() else {
            return Ok(Run::hole(1));
        };
        if last == 0 {
            return self.run_in(inode, None, &root, first, 12 - first.min(11));
        }
        let mut next = self.pointer(inode, None, &root, first)?;
        for (level, &slot) in (1..).zip(slots) {
            let Some(at) = next else {
                return Ok(hole_below(&path, level - 1, block));
            };
            visit(at);
            let buffer = self.read_owned(BlockOwner::Map(inode.number), at)?;
            let pointers = Pointers::block(&buffer, &self.limits);
            if level == last {
                return self.run_in(inode, Some(at), &pointers, slot, u32::MAX);
            }
            next = self.pointer(inode, Some(at), &pointers, slot)?;
        }
        Ok(Run::hole(1))
    }

    fn pointer(
        &self,
        inode: &DiskInode,
        at: Option<BlockNo>,
        pointers: &Pointers<'_>,
        slot: u32,
    ) -> Result<Option<BlockNo>> {
        pointers.get(slot).at(&self.damage, Some(inode.number), at)
    }

    fn run_in(
        &self,
        inode: &DiskInode,
        at: Option<BlockNo>,
        pointers: &Pointers<'_>,
        slot: u32,
        most: u32,
    ) -> Result<Run> {
        let run = pointers
            .run(slot, most)
            .at(&self.damage, Some(inode.number), at)?;
        Ok(match run {
            Some(PointerRun::Mapped { start, len }) => Run {
                len,
                target: Target::Written(start),
            },
            Some(PointerRun::Hole { len }) => Run::hole(len),
            None => Run::hole(1),
        })
    }
}

/// The hole that an empty pointer at `level` of the path makes, from `block` on.
fn hole_below(path: &MapPath, level: u8, block: FileBlock) -> Run {
    Run::hole(
        path.covers(level)
            .map_or(1, |(_, end)| end.0.saturating_sub(block.0)),
    )
}
