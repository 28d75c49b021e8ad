//! Where the groups' inode tables are, so that an inode is found without its group's descriptor.

use pagefence_ext4_format::{BlockNo, GroupNo};
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};

/// Groups that are remembered, at most, whatever the superblock claims: 512 KiB of them.
const SLOTS_MAX: u32 = 1 << 16;

/// Bits of a slot that hold a block number; the others tell the groups of one slot apart.
const BLOCK_BITS: u32 = 48;

/// The first block of each group's inode table, as far as it has been looked up. A slot holds the
/// group (divided by the number of slots) above the block; 0 is no table's place.
#[derive(Debug)]
pub(crate) struct InodeTables {
    slots: Box<[AtomicU64]>,
}

impl InodeTables {
    /// For a file system of `groups` groups.
    pub(crate) fn new(groups: u32) -> Self {
        Self {
            slots: (0..groups.clamp(1, SLOTS_MAX))
                .map(|_| AtomicU64::new(0))
                .collect(),
        }
    }

    fn slot(&self, group: GroupNo) -> (&AtomicU64, u64) {
        let count = self.slots.len();
        let tag = group.0 as usize / count;
        (&self.slots[group.0 as usize % count], tag as u64)
    }

    pub(crate) fn get(&self, group: GroupNo) -> Option<BlockNo> {
        let (slot, tag) = self.slot(group);
        // Relaxed: the number is all there is to see.
        let stored = slot.load(Ordering::Relaxed);
        let block = stored & ((1 << BLOCK_BITS) - 1);
        (block != 0 && stored >> BLOCK_BITS == tag).then_some(BlockNo(block))
    }

    /// Remembers a table that a checked descriptor names.
    pub(crate) fn set(&self, group: GroupNo, table: BlockNo) {
        let (slot, tag) = self.slot(group);
        if table.0 >> BLOCK_BITS == 0 && tag < 1 << (u64::BITS - BLOCK_BITS) {
            slot.store((tag << BLOCK_BITS) | table.0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_one_slot_are_told_apart() {
        let tables = InodeTables::new(u32::MAX);
        assert_eq!(tables.slots.len(), SLOTS_MAX as usize);
        let group = |high: u32| GroupNo(high * SLOTS_MAX + 7);
        assert_eq!(tables.get(group(0)), None);
        tables.set(group(0), BlockNo(1000));
        assert_eq!(tables.get(group(0)), Some(BlockNo(1000)));
        assert_eq!(tables.get(group(0xFFFF)), None);
        tables.set(group(0xFFFF), BlockNo((1 << BLOCK_BITS) - 1));
        assert_eq!(
            tables.get(group(0xFFFF)),
            Some(BlockNo((1 << BLOCK_BITS) - 1))
        );
        assert_eq!(tables.get(group(0)), None);
    }

    #[test]
    fn few_groups_take_few_slots() {
        let tables = InodeTables::new(3);
        for number in 0..3 {
            tables.set(GroupNo(number), BlockNo(u64::from(number) + 50));
        }
        assert_eq!(tables.slots.len(), 3);
        assert_eq!(tables.get(GroupNo(2)), Some(BlockNo(52)));
        assert_eq!(InodeTables::new(0).get(GroupNo(0)), None);
    }
}
