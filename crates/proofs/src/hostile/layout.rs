//! Where the structures of an image lie.

use std::ops::Range;

use pagefence::device::{Device as _, MemoryDevice};
use pagefence_ext4_format::extent::{BlockLimits, ExtentNode, Place};
use pagefence_ext4_format::group_desc::GroupDesc;
use pagefence_ext4_format::indirect::Pointers;
use pagefence_ext4_format::inode::{FileKind, Inode, InodeFlags};
use pagefence_ext4_format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock};
use pagefence_ext4_format::{BlockNo, GroupNo, InodeNo};

/// An image, and what its superblock says.
pub(super) struct Layout {
    pub(super) device: MemoryDevice,
    pub(super) superblock: Superblock,
}

/// The blocks of a file.
#[derive(Debug, Default)]
pub(super) struct Map {
    /// Blocks of the map, below the inode.
    pub(super) nodes: Vec<BlockNo>,
    /// Runs of its own blocks, in the order of the file.
    pub(super) runs: Vec<Range<u64>>,
}

impl Map {
    /// Its first blocks.
    pub(super) fn blocks(&self) -> impl Iterator<Item = BlockNo> + '_ {
        self.runs.iter().cloned().flatten().map(BlockNo)
    }
}

impl Layout {
    /// Nothing if the superblock is damaged.
    pub(super) fn of(device: MemoryDevice) -> Option<Self> {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        device.read(SUPERBLOCK_OFFSET, &mut bytes).ok()?;
        let superblock = Superblock::parse(&bytes, Some(device.size())).ok()?;
        Some(Self { device, superblock })
    }

    pub(super) fn block_size(&self) -> usize {
        self.superblock.block_size() as usize
    }

    pub(super) fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.device.read(offset, &mut bytes).ok()?;
        Some(bytes)
    }

    /// Its first byte on the device.
    pub(super) fn offset(&self, block: BlockNo) -> u64 {
        block.0.saturating_mul(self.superblock.block_size().into())
    }

    pub(super) fn read_block(&self, block: BlockNo) -> Option<Vec<u8>> {
        self.read(self.offset(block), self.block_size())
    }

    /// Where a group's descriptor begins.
    pub(super) fn group_offset(&self, group: GroupNo) -> Option<u64> {
        let (index, offset) = self.superblock.locate_descriptor(group).ok()?;
        let block = self.superblock.descriptor_block(index).ok()?;
        Some(self.offset(block) + offset as u64)
    }

    pub(super) fn group(&self, group: GroupNo) -> Option<GroupDesc> {
        let bytes = self.read(self.group_offset(group)?, self.superblock.desc_size())?;
        GroupDesc::parse(&bytes, group, &self.superblock).ok()
    }

    /// Where an inode's record begins.
    pub(super) fn inode_offset(&self, number: InodeNo) -> Option<u64> {
        let place = self.superblock.locate_inode(number).ok()?;
        let table = self.group(place.group)?.inode_table();
        let block = BlockNo(table.0 + u64::from(place.table_block));
        Some(self.offset(block) + place.offset as u64)
    }

    pub(super) fn inode(&self, number: InodeNo) -> Option<Inode> {
        let offset = self.inode_offset(number)?;
        let bytes = self.read(offset, self.superblock.inode_size())?;
        Inode::parse(&bytes, number, &self.superblock).ok()
    }

    fn limits(&self) -> BlockLimits {
        (&self.superblock).into()
    }

    /// The blocks of a file; as many as can be found.
    pub(super) fn map(&self, inode: &Inode) -> Map {
        let mut map = Map::default();
        let has_blocks = match inode.kind() {
            Some(FileKind::Regular | FileKind::Directory) => true,
            Some(FileKind::Symlink) => !inode.is_fast_symlink(),
            _ => false,
        };
        if !has_blocks || inode.flags().contains(InodeFlags::INLINE_DATA) {
            return map;
        }
        if inode.flags().contains(InodeFlags::EXTENTS) {
            self.extents(inode.block_area(), &Place::Root, &mut map);
        } else if let Ok(root) = Pointers::root(inode.block_area(), &self.limits()) {
            for (slot, block) in root.iter() {
                let Ok(block) = block else { continue };
                self.pointers(block, slot.saturating_sub(11), &mut map);
            }
        }
        map
    }

    fn extents(&self, bytes: &[u8], place: &Place, map: &mut Map) {
        let Ok(node) = ExtentNode::parse(bytes, place, &self.limits()) else {
            return;
        };
        for extent in node.extents() {
            let start = extent.start.0;
            map.runs.push(start..start + u64::from(extent.len));
        }
        for child in node.children() {
            map.nodes.push(child.block);
            if let Some(bytes) = self.read_block(child.block) {
                self.extents(&bytes, &Place::Block(child), map);
            }
        }
    }

    /// A block of a file, or one that leads to such in `depth` steps.
    fn pointers(&self, block: BlockNo, depth: u32, map: &mut Map) {
        let Some(below) = depth.checked_sub(1) else {
            map.runs.push(block.0..block.0 + 1);
            return;
        };
        map.nodes.push(block);
        let bytes = self.read_block(block).unwrap_or_default();
        for (_, block) in Pointers::block(&bytes, &self.limits()).iter() {
            if let Ok(block) = block {
                self.pointers(block, below, map);
            }
        }
    }

    /// The blocks that files must not have: superblocks, descriptors, bitmaps, inode tables and, unless
    /// `journal` is to be left out, the journal. Ascending.
    pub(super) fn zones(&self, journal: bool) -> Vec<Range<u64>> {
        let superblock = &self.superblock;
        let mut zones = Vec::new();
        for group in superblock.groups() {
            let end = superblock.reserved_descriptor_blocks(group).start;
            zones.push(superblock.base_metadata(group).start.0..end.0);
            if let Some(desc) = self.group(group) {
                zones.extend(
                    desc.metadata_zones(superblock)
                        .map(|zone| zone.start.0..zone.end.0),
                );
            }
        }
        let inode = superblock.journal_inode().filter(|_| journal);
        if let Some(inode) = inode.and_then(|number| self.inode(number)) {
            zones.extend(self.map(&inode).runs);
        }
        zones.retain(|zone| !zone.is_empty());
        zones.sort_unstable_by_key(|zone| zone.start);
        zones
    }
}
