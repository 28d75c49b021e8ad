//! What changes of names take at most, in blocks of metadata that change and blocks that are taken.

use pagefence_ext4_format::extent::{ExtentNode, MAX_DEPTH, Place};
use pagefence_ext4_format::inode::{Inode as InodeRecord, InodeFlags};

use crate::alloc::Reach;
use crate::change::change_dir::Room;
use crate::instance::Instance;
use crate::live::Need;

/// Blocks that change when an inode is taken or given back: the bitmap, the descriptor and the
/// superblock.
pub(crate) const INODE: u32 = 3;
/// The block of an inode table.
pub(crate) const RECORD: u32 = 1;
/// A block of entries in which a name goes, or is pointed elsewhere.
pub(crate) const ENTRY: u32 = 1;
/// Blocks that change when a block is taken: the bitmap, the descriptor, and the block.
const TAKEN: u32 = 3;
/// Indirect blocks that a few blocks at the end of a directory may need: the way to the first of
/// them, and one more where the next begins.
const INDIRECT: u32 = 4;

/// What an operation takes at most, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    credits: u32,
    blocks: u32,
    /// Some of `blocks` go to a block map.
    for_pointers: bool,
}

impl Sum {
    /// Blocks that are there and change.
    pub(crate) fn change(mut self, blocks: u32) -> Self {
        self.credits += blocks;
        self
    }

    /// Blocks that are taken.
    pub(crate) fn take(mut self, blocks: u32) -> Self {
        if blocks > 0 {
            // The superblock counts what is free.
            self.credits += 1;
        }
        self.credits += TAKEN * blocks;
        self.blocks += blocks;
        self
    }

    /// What another room says that it takes, all counted.
    pub(crate) fn add(mut self, credits: u32, blocks: u32) -> Self {
        self.credits += credits;
        self.blocks += blocks;
        self
    }

    /// Blocks added at the end of a directory or a link, with what maps them. They are few, and
    /// each node of an extent tree that splits leaves one with room for all the others: each level
    /// splits at most once, and the root may grow.
    pub(crate) fn append(self, record: &InodeRecord, blocks: u32) -> Self {
        if blocks == 0 {
            return self;
        }
        if record.flags().contains(InodeFlags::EXTENTS) {
            let depth = ExtentNode::reopen(record.block_area(), &Place::Root)
                .map_or(MAX_DEPTH, |root| root.depth());
            let depth = u32::from(depth.min(MAX_DEPTH));
            // The nodes on the way to the last extent change.
            self.take(blocks + depth + 1).change(depth)
        } else {
            let mut sum = self.take(blocks + INDIRECT).change(INDIRECT - 1);
            sum.for_pointers = true;
            sum
        }
    }

    /// A name that comes into a directory where [`Instance::find_room`] found room.
    pub(crate) fn insert(self, instance: &Instance, record: &InodeRecord, room: Room) -> Self {
        let levels = instance.dx_levels_max();
        let sum = self.change(room.changed_blocks(levels));
        if record.flags().contains(InodeFlags::INLINE_DATA) {
            // Its map is empty until then, and has room for a few blocks in the inode.
            return sum.take(room.new_blocks(levels));
        }
        sum.append(record, room.new_blocks(levels))
    }

    /// Where its blocks have to lie.
    pub(crate) fn reach(self) -> Reach {
        if self.for_pointers {
            Reach::Pointers
        } else {
            Reach::Everywhere
        }
    }

    /// As a transaction needs it.
    pub(crate) fn need(self, privileged: bool) -> Need {
        Need {
            credits: self.credits,
            blocks: self.blocks,
            privileged,
        }
    }
}

#[cfg(test)]
mod tests {
    use pagefence_ext4_format::InodeNo;
    use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord, InodeFlags};

    use super::Sum;
    use crate::alloc::Reach;
    use crate::failures::{formatted, open};

    #[test]
    fn what_goes_to_a_block_map_lies_where_that_can_name_it() {
        let fs = open(&formatted());
        let superblock = &fs.instance.superblock;
        let mut record = InodeRecord::create(InodeNo(12), superblock, FileKind::Directory, 0, 0);
        assert_eq!(Sum::default().append(&record, 0).reach(), Reach::Everywhere);
        assert_eq!(Sum::default().append(&record, 1).reach(), Reach::Pointers);
        record.set_flags(InodeFlags::EXTENTS);
        assert_eq!(Sum::default().append(&record, 1).reach(), Reach::Everywhere);
        assert_eq!(Sum::default().take(1).reach(), Reach::Everywhere);
    }
}
