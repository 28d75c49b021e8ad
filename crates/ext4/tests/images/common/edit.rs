//! An image in memory whose structures can be changed, checksums mended.

use pagefence_block_io::{Device as _, MemoryDevice};
use pagefence_ext4_format::checksum::ChecksumSeed;
use pagefence_ext4_format::extent::{Child, ExtentNode, Found, Place};
use pagefence_ext4_format::group_desc::GroupDesc;
use pagefence_ext4_format::indirect::{MapShape, Pointers};
use pagefence_ext4_format::inode::{Inode, InodeFlags};
use pagefence_ext4_format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock};
use pagefence_ext4_format::{BlockNo, FileBlock, GroupNo, InodeNo};
use pagefence_ext4_format::{dir_entry, extent, htree, xattr};
use pagefence_lock_order::primitives::Arc;

/// An image in memory. Edits go by the superblock as it was when the image was made.
#[derive(Debug)]
pub(crate) struct Image {
    device: Arc<MemoryDevice>,
    pub(crate) superblock: Superblock,
}

/// The structures whose checksums lie in their block.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    ExtentNode,
    Directory,
    Index,
    Xattrs,
    /// No checksum.
    Plain,
}

impl Image {
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self::on(MemoryDevice::from_bytes(bytes))
    }

    fn on(device: MemoryDevice) -> Self {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        device
            .read(SUPERBLOCK_OFFSET, &mut bytes)
            .expect("room for a superblock");
        Self {
            superblock: Superblock::parse(&bytes, None).expect("a sound superblock"),
            device: Arc::new(device),
        }
    }

    /// A copy to be changed; cheap.
    pub(crate) fn fork(&self) -> Self {
        Self {
            device: Arc::new(self.device.fork()),
            superblock: self.superblock.clone(),
        }
    }

    /// The device, as it is now and will be.
    pub(crate) fn device(&self) -> Arc<MemoryDevice> {
        Arc::clone(&self.device)
    }

    fn block_size(&self) -> usize {
        self.superblock.block_size() as usize
    }

    pub(crate) fn read_block(&self, block: BlockNo) -> Vec<u8> {
        let mut bytes = vec![0; self.block_size()];
        self.device
            .read(block.0 * self.block_size() as u64, &mut bytes)
            .expect("a block");
        bytes
    }

    pub(crate) fn write_block(&self, block: BlockNo, bytes: &[u8]) {
        self.device
            .write(block.0 * self.block_size() as u64, bytes)
            .expect("a block");
    }

    /// Changes the superblock's bytes.
    pub(crate) fn edit_superblock(&self, edit: impl FnOnce(&mut [u8])) {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        self.device.read(SUPERBLOCK_OFFSET, &mut bytes).expect("it");
        edit(&mut bytes);
        // The checksum is the last field, over all before it.
        if self.superblock.has_metadata_csum() {
            let end = SUPERBLOCK_BYTES - 4;
            let checksum = pagefence_ext4_format::checksum::crc32c(!0, &bytes[..end]);
            bytes[end..].copy_from_slice(&checksum.to_le_bytes());
        }
        self.device.write(SUPERBLOCK_OFFSET, &bytes).expect("it");
    }

    /// Where a group's descriptor lies: block and offset.
    pub(crate) fn place_of_group(&self, group: GroupNo) -> (BlockNo, usize) {
        let (index, offset) = self.superblock.locate_descriptor(group).expect("a group");
        let block = self.superblock.descriptor_block(index).expect("its block");
        (block, offset)
    }

    fn group(&self, group: GroupNo) -> GroupDesc {
        let (block, offset) = self.place_of_group(group);
        GroupDesc::parse(&self.read_block(block)[offset..], group, &self.superblock)
            .expect("a sound descriptor")
    }

    /// Changes a group descriptor's bytes.
    pub(crate) fn edit_group(&self, group: GroupNo, edit: impl FnOnce(&mut [u8])) {
        let (block, offset) = self.place_of_group(group);
        let mut bytes = self.read_block(block);
        let record = &mut bytes[offset..offset + self.superblock.desc_size()];
        edit(record);
        let mut desc = GroupDesc::read(record, group, &self.superblock).expect("its size");
        desc.update_checksum(&self.superblock);
        desc.write_to(record).expect("its size");
        self.write_block(block, &bytes);
    }

    /// Where an inode's record lies: block and offset.
    pub(crate) fn place_of_inode(&self, number: InodeNo) -> (BlockNo, usize) {
        let place = self.superblock.locate_inode(number).expect("an inode");
        let table = self.group(place.group).inode_table();
        (
            BlockNo(table.0 + u64::from(place.table_block)),
            place.offset,
        )
    }

    pub(crate) fn inode(&self, number: InodeNo) -> Inode {
        let (block, offset) = self.place_of_inode(number);
        Inode::parse(&self.read_block(block)[offset..], number, &self.superblock)
            .expect("a sound inode")
    }

    /// Changes an inode record's bytes. If its fields do not fit any more there is no place for
    /// the checksum, and it stays.
    pub(crate) fn edit_inode(&self, number: InodeNo, edit: impl FnOnce(&mut [u8])) {
        let (block, offset) = self.place_of_inode(number);
        let mut bytes = self.read_block(block);
        let record = &mut bytes[offset..offset + self.superblock.inode_size()];
        edit(record);
        if let Ok(mut inode) = Inode::read(record, number, &self.superblock) {
            inode.update_checksum();
            inode.write_to(record).expect("its size");
        }
        self.write_block(block, &bytes);
    }

    /// Changes an inode by its fields.
    pub(crate) fn set_inode(&self, number: InodeNo, set: impl FnOnce(&mut Inode)) {
        let mut inode = self.inode(number);
        set(&mut inode);
        inode.update_checksum();
        self.edit_inode(number, |record| inode.write_to(record).expect("its size"));
    }

    /// Changes a block that belongs to an inode.
    pub(crate) fn edit_block(
        &self,
        owner: InodeNo,
        block: BlockNo,
        kind: Kind,
        edit: impl FnOnce(&mut [u8]),
    ) {
        let mut bytes = self.read_block(block);
        edit(&mut bytes);
        if self.superblock.has_metadata_csum() {
            self.mend(owner, block, kind, &mut bytes);
        }
        self.write_block(block, &bytes);
    }

    fn mend(&self, owner: InodeNo, block: BlockNo, kind: Kind, bytes: &mut [u8]) {
        let seed: ChecksumSeed = self.inode(owner).checksum_seed();
        // Where an edit left no place for a checksum, there is nothing to mend.
        let _ = match kind {
            Kind::ExtentNode => extent::update_checksum(bytes, seed),
            Kind::Directory => dir_entry::update_checksum(bytes, seed),
            Kind::Index => htree::update_checksum(bytes, seed),
            Kind::Xattrs => xattr::update_checksum(bytes, block, self.superblock.checksum_seed()),
            Kind::Plain => Ok(()),
        };
    }

    /// The block behind a file's block, in a sound file.
    pub(crate) fn block_of(&self, number: InodeNo, block: u32) -> BlockNo {
        let inode = self.inode(number);
        let block = FileBlock(block);
        if inode.flags().contains(InodeFlags::EXTENTS) {
            match self.leaf_of(&inode, block).1 {
                Found::Extent(extent) => extent.block_at(block).expect("inside"),
                found => panic!("block {block} of {number}: {found:?}"),
            }
        } else {
            let shape = MapShape::new(self.superblock.block_size()).expect("a size");
            let path = shape.path(block).expect("within reach");
            let limits = (&self.superblock).into();
            let (first, rest) = path.slots().split_first().expect("never empty");
            let root = Pointers::root(inode.block_area(), &limits).expect("60 bytes");
            let mut at = root.get(*first).expect("sound").expect("mapped");
            for slot in rest {
                let bytes = self.read_block(at);
                at = Pointers::block(&bytes, &limits)
                    .get(*slot)
                    .expect("sound")
                    .expect("mapped");
            }
            at
        }
    }

    /// The block of the extent tree in which a file's block is looked up last, if it is not in
    /// the inode.
    pub(crate) fn extent_block_of(&self, number: InodeNo, block: u32) -> Option<BlockNo> {
        self.leaf_of(&self.inode(number), FileBlock(block))
            .0
            .map(|child| child.block)
    }

    fn leaf_of(&self, inode: &Inode, block: FileBlock) -> (Option<Child>, Found) {
        let limits = (&self.superblock).into();
        let mut found = ExtentNode::parse(inode.block_area(), &Place::Root, &limits)
            .expect("a sound root")
            .find(block);
        let mut last = None;
        while let Found::Child(child) = found {
            let bytes = self.read_block(child.block);
            found = ExtentNode::parse(&bytes, &Place::Block(child), &limits)
                .expect("a sound node")
                .find(block);
            last = Some(child);
        }
        (last, found)
    }
}
