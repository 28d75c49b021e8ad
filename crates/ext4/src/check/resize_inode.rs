//! The inode that keeps blocks free for descriptors to come: its map, unlike any file's, is told
//! by the geometry. A double indirect block leads to the blocks reserved behind the first
//! superblock, and each of them to its likes behind the copies.

use pagefence_ext4_format::features::Compat;
use pagefence_ext4_format::indirect::{DIRECT_SLOTS, Pointers, ROOT_SLOTS};
use pagefence_ext4_format::inode::{FileKind, Inode};
use pagefence_ext4_format::{BlockNo, InodeNo};

use super::duplicates::Owners;
use super::{Checker, Step};

/// The root's slot of the double indirect block.
const DOUBLE: u32 = DIRECT_SLOTS + 1;

impl Checker<'_> {
    /// Whether this inode is the one described here.
    pub(super) fn is_resize_inode(&self, number: InodeNo) -> bool {
        number == InodeNo::RESIZE && self.instance.superblock.has_compat(Compat::RESIZE_INODE)
    }

    /// Checks the whole map. The blocks that it leads to were claimed as metadata.
    pub(super) fn check_resize_inode(&mut self) -> Step {
        let number = InodeNo::RESIZE;
        let superblock = &self.instance.superblock;
        if !superblock.has_compat(Compat::RESIZE_INODE) {
            return Ok(());
        }
        let record = self.with_record(number, |bytes| Inode::parse(bytes, number, superblock))?;
        // A damaged record was told already.
        let Some(Ok(record)) = record else {
            return Ok(());
        };
        let limits = self.instance.limits;
        let Ok(root) = Pointers::root(record.block_area(), &limits) else {
            return Ok(());
        };
        let others = (0..ROOT_SLOTS).filter(|slot| *slot != DOUBLE);
        let is_alone = others
            .map(|slot| root.get(slot))
            .all(|pointer| matches!(pointer, Ok(None)));
        let double = root.get(DOUBLE);
        let is_file = record.kind() == Some(FileKind::Regular) && record.links() > 0;
        let (true, true, Ok(Some(double))) = (is_alone, is_file, double) else {
            return self
                .report
                .inode(number, "it does not keep the blocks for new descriptors");
        };
        self.check_reserved(double, record.size())
    }

    fn check_reserved(&mut self, double: BlockNo, size: u64) -> Step {
        let number = InodeNo::RESIZE;
        let reserved = self
            .instance
            .superblock
            .reserved_descriptor_blocks(pagefence_ext4_format::GroupNo(0));
        let per_block = u64::from(self.instance.map_shape.per_block());
        let descriptors = u64::from(self.instance.superblock.descriptor_blocks());
        let Some(buffer) = self.block(double)? else {
            return Ok(());
        };
        let limits = self.instance.limits;
        let pointers = Pointers::block(&buffer, &limits);
        let mut led_to = 0_u64;
        let mut last_slot = 0;
        for (slot, pointer) in pointers.iter() {
            // Descriptor blocks that are in use take the first slots; the rest goes round. Some
            // go round earlier: e2fsck looks at a fourth of the blocks.
            let index = (u64::from(slot) + per_block - descriptors % per_block) % per_block;
            let due = BlockNo(reserved.start.0.saturating_add(index));
            let is_kept = pointer.as_ref().is_ok_and(|block| reserved.contains(block));
            let is_free_choice = index >= (reserved.end.0 - reserved.start.0) / 4;
            if !is_kept || !(is_free_choice || pointer == Ok(due)) {
                return self.report.inode(
                    number,
                    format_args!("slot {slot} of block {double} leads to a wrong block"),
                );
            }
            led_to += 1;
            last_slot = u64::from(slot);
        }
        if led_to != reserved.end.0 - reserved.start.0 {
            return self
                .report
                .inode(number, "it leaves out blocks for new descriptors");
        }
        let superblock = &self.instance.superblock;
        let copies: Vec<u64> = superblock
            .groups()
            .skip(1)
            .filter(|group| superblock.has_super(*group))
            .map(|group| superblock.first_block_of_group(group).0)
            .take(self.instance.map_shape.per_block() as usize)
            .collect();
        for block in reserved.start.0..reserved.end.0 {
            self.check_copies(BlockNo(block), &copies)?;
        }
        // By what it maps, as any file.
        let direct = u64::from(DIRECT_SLOTS).saturating_add(per_block);
        let before = last_slot.saturating_mul(per_block).saturating_add(direct);
        let last = match copies.len() as u64 {
            copies @ 1.. if led_to > 0 => before.saturating_add(copies - 1),
            _ => 0,
        };
        let block_size = u64::from(self.instance.superblock.block_size());
        if size < last.saturating_mul(block_size) || size > self.block_map_reach() {
            return self.report.inode(
                number,
                format_args!("{size} bytes, and its last block is file block {last}"),
            );
        }
        Ok(())
    }

    /// A reserved block leads to the same block behind each copy of the superblock; `copies` are the first blocks of the groups that have one.
    fn check_copies(&mut self, block: BlockNo, copies: &[u64]) -> Step {
        let first = self.instance.superblock.first_data_block().0;
        let into = block.0.saturating_sub(first);
        let due = copies.iter().map(|start| start.saturating_add(into));
        let Some(buffer) = self.block(block)? else {
            return Ok(());
        };
        let limits = self.instance.limits;
        let pointers = Pointers::block(&buffer, &limits);
        let is_right = pointers
            .iter()
            .map(|(slot, pointer)| (u64::from(slot), pointer))
            .eq((0..).zip(due.map(|block| Ok(BlockNo(block)))));
        if is_right {
            return Ok(());
        }
        self.report.inode(
            InodeNo::RESIZE,
            format_args!("block {block} leads to wrong blocks"),
        )
    }

    /// Claims the one block that the resize inode owns beside what metadata owns. Returns the
    /// clusters that its record counts, as far as it is sound.
    pub(super) fn claim_resize_inode(
        &mut self,
        record: &Inode,
        owners: &mut Owners,
    ) -> Step<Option<u64>> {
        let limits = self.instance.limits;
        let double = Pointers::root(record.block_area(), &limits).and_then(|root| root.get(DOUBLE));
        let Ok(Some(double)) = double else {
            return Ok(None);
        };
        let cluster = self.usage.cluster_of(double);
        owners.note(record.ino(), cluster..cluster + 1);
        self.usage
            .claim(cluster..cluster + 1, true, &mut self.memory)?;
        let superblock = &self.instance.superblock;
        let kept: u64 = superblock
            .groups()
            .map(|group| {
                let blocks = superblock.reserved_descriptor_blocks(group);
                blocks.end.0.saturating_sub(blocks.start.0)
            })
            .sum();
        Ok(Some(kept.saturating_add(1)))
    }
}
