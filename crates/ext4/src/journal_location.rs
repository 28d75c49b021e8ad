//! Where the journal lies: read straight from the device, as it must be known before anything
//! else of an unclean file system can be believed.

use pagefence_block_io::{Device, DeviceError};
use pagefence_ext4_format::extent::{self, BlockLimits, Child, ExtentNode, Place};
use pagefence_ext4_format::group_desc::GroupDesc;
use pagefence_ext4_format::indirect::{DIRECT_SLOTS, Pointers};
use pagefence_ext4_format::inode::{FileKind, Inode, InodeFlags};
use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::{BlockNo, Corruption, InodeNo};
use pagefence_jbd2::{JournalLocation, JournalRun, LocationError};

/// Blocks of the map that are read before it is given up as damaged. A journal of 40 GB, the
/// largest that Linux uses, all in pieces, needs fewer.
const MAP_BLOCKS_MAX: u32 = 1 << 16;

/// Pieces in which a journal may lie. mke2fs makes a handful; the bound keeps a damaged map from
/// taking memory without end.
const RUNS_MAX: usize = 1 << 18;

/// Why the journal can't be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LocateError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What leads to the journal is damaged.
    #[error("inode {ino}: {what}")]
    Corrupt {
        /// The journal's inode.
        ino: InodeNo,
        /// What is wrong.
        what: Corruption,
    },
    /// The inode is no regular file, or of a size that no journal has.
    #[error("inode {ino} is no journal")]
    NoJournal {
        /// The journal's inode.
        ino: InodeNo,
    },
    /// The map has more blocks, or more pieces, than any journal's.
    #[error("the map of inode {ino} does not end")]
    MapTooLarge {
        /// The journal's inode.
        ino: InodeNo,
    },
    /// The blocks do not make a journal.
    #[error("inode {ino}: {what}")]
    Location {
        /// The journal's inode.
        ino: InodeNo,
        /// What is wrong.
        what: LocationError,
    },
}

/// Finds the journal that is the file `ino`. Changes nothing; takes no lock.
pub(crate) fn locate(
    device: &dyn Device,
    superblock: &Superblock,
    ino: InodeNo,
) -> Result<JournalLocation, LocateError> {
    let inode = Walk::new(device, superblock, ino).inode()?;
    if inode.links() == 0 {
        return Err(LocateError::NoJournal { ino });
    }
    locate_by(device, superblock, &inode)
}

/// As [`locate`], by a record that need not be the one on disk.
pub(crate) fn locate_by(
    device: &dyn Device,
    superblock: &Superblock,
    inode: &Inode,
) -> Result<JournalLocation, LocateError> {
    let ino = inode.ino();
    let mut walk = Walk::new(device, superblock, ino);
    let block_size = u64::from(superblock.block_size());
    let length = u32::try_from(inode.size() / block_size).ok();
    let is_file = inode.kind() == Some(FileKind::Regular);
    walk.length = match length {
        Some(length) if is_file && length > 0 => length,
        _ => return Err(LocateError::NoJournal { ino }),
    };
    if inode.flags().contains(InodeFlags::EXTENTS) {
        walk.extents(inode.block_area(), &Place::Root, inode)?;
    } else {
        walk.pointers(inode.block_area())?;
    }
    let device_blocks = device.size() / block_size;
    JournalLocation::new(superblock.block_size(), device_blocks, walk.runs)
        .map_err(|what| LocateError::Location { ino, what })
}

struct Walk<'a> {
    device: &'a dyn Device,
    superblock: &'a Superblock,
    ino: InodeNo,
    map_blocks: u32,
    runs: Vec<JournalRun>,
    /// Blocks of the journal, as its size says.
    length: u32,
}

impl<'a> Walk<'a> {
    fn new(device: &'a dyn Device, superblock: &'a Superblock, ino: InodeNo) -> Self {
        Self {
            device,
            superblock,
            ino,
            map_blocks: 0,
            runs: Vec::new(),
            length: 0,
        }
    }

    fn corrupt(&self, what: Corruption) -> LocateError {
        LocateError::Corrupt {
            ino: self.ino,
            what,
        }
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits {
            first_data_block: self.superblock.first_data_block(),
            blocks_count: self.superblock.blocks_count(),
        }
    }

    fn read(&self, block: BlockNo) -> Result<Vec<u8>, LocateError> {
        let block_size = self.superblock.block_size();
        let mut bytes = vec![0; block_size as usize];
        let offset = block.0.saturating_mul(u64::from(block_size));
        self.device.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    fn read_map(&mut self, block: BlockNo) -> Result<Vec<u8>, LocateError> {
        self.map_blocks += 1;
        if self.map_blocks > MAP_BLOCKS_MAX {
            return Err(LocateError::MapTooLarge { ino: self.ino });
        }
        self.read(block)
    }

    fn inode(&self) -> Result<Inode, LocateError> {
        let sb = self.superblock;
        let place = sb.locate_inode(self.ino).map_err(|e| self.corrupt(e))?;
        let (index, offset) = sb
            .locate_descriptor(place.group)
            .map_err(|e| self.corrupt(e))?;
        let block = sb.descriptor_block(index).map_err(|e| self.corrupt(e))?;
        let descriptors = self.read(block)?;
        let bytes = descriptors.get(offset..).unwrap_or_default();
        let group = GroupDesc::parse(bytes, place.group, sb).map_err(|e| self.corrupt(e))?;
        let block = group.inode_table().0 + u64::from(place.table_block);
        let table = self.read(BlockNo(block))?;
        let record = table.get(place.offset..).unwrap_or_default();
        Inode::parse(record, self.ino, sb).map_err(|e| self.corrupt(e))
    }

    fn extents(&mut self, bytes: &[u8], place: &Place, inode: &Inode) -> Result<(), LocateError> {
        let node = ExtentNode::parse(bytes, place, &self.limits()).map_err(|e| self.corrupt(e))?;
        for extent in node.extents().filter(|extent| !extent.unwritten) {
            self.add(extent.first.0, extent.start, extent.len.into())?;
        }
        let children: Vec<Child> = node.children().collect();
        for child in children {
            if child.first.0 >= self.length {
                break;
            }
            let block = self.read_map(child.block)?;
            if self.superblock.has_metadata_csum() {
                extent::verify_checksum(&block, inode.checksum_seed())
                    .map_err(|e| self.corrupt(e))?;
            }
            self.extents(&block, &Place::Block(child), inode)?;
        }
        Ok(())
    }

    fn pointers(&mut self, i_block: &[u8; 60]) -> Result<(), LocateError> {
        let limits = self.limits();
        let root = Pointers::root(i_block, &limits).map_err(|e| self.corrupt(e))?;
        let per_block = u64::from(self.superblock.block_size() / 4);
        let mut first = 0;
        for slot in 0..DIRECT_SLOTS + 3 {
            let height = slot.saturating_sub(DIRECT_SLOTS - 1);
            let pointer = root.get(slot).map_err(|e| self.corrupt(e))?;
            self.below(pointer, height, first)?;
            first += per_block.pow(height);
        }
        Ok(())
    }

    /// What a pointer `height` levels above the data leads to, from file block `first` on.
    fn below(
        &mut self,
        pointer: Option<BlockNo>,
        height: u32,
        first: u64,
    ) -> Result<(), LocateError> {
        let (Some(block), Ok(first)) = (pointer, u32::try_from(first)) else {
            return Ok(());
        };
        if first >= self.length {
            return Ok(());
        }
        if height == 0 {
            return self.add(first, block, 1);
        }
        let bytes = self.read_map(block)?;
        let limits = self.limits();
        let pointers = Pointers::block(&bytes, &limits);
        let per_block = self.superblock.block_size() / 4;
        let span = u64::from(per_block).pow(height - 1);
        for slot in 0..per_block {
            let start = u64::from(first) + u64::from(slot) * span;
            if start >= u64::from(self.length) {
                break;
            }
            let pointer = pointers.get(slot).map_err(|e| self.corrupt(e))?;
            self.below(pointer, height - 1, start)?;
        }
        Ok(())
    }

    /// Adds blocks, to the last run if they continue it, as far as the journal goes.
    fn add(&mut self, logical: u32, physical: BlockNo, count: u32) -> Result<(), LocateError> {
        let count = count.min(self.length.saturating_sub(logical));
        if count == 0 {
            return Ok(());
        }
        if let Some(last) = self.runs.last_mut()
            && last.logical.checked_add(last.count) == Some(logical)
            && last.physical.checked_add(last.count.into()) == Some(physical)
        {
            last.count += count;
            return Ok(());
        }
        if self.runs.len() == RUNS_MAX {
            return Err(LocateError::MapTooLarge { ino: self.ino });
        }
        self.runs.push(JournalRun {
            logical,
            physical,
            count,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pagefence_block_io::memory_device::MemoryDevice;
    use pagefence_ext4_format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET};

    use super::*;
    use crate::mkfs::{Kind, Parameters, Tree, format};

    fn journal_of(
        kind: Kind,
        block_size: u32,
        size: u64,
    ) -> (MemoryDevice, Superblock, JournalLocation) {
        let device = MemoryDevice::new(size);
        let mut parameters = Parameters::new(kind);
        parameters.block_size = Some(block_size);
        parameters.contents = crate::mkfs::Contents::Zeros;
        let made = format(&device, &parameters, &Tree::new()).expect("it fits");
        let ino = made.superblock.journal_inode().expect("it has a journal");
        let location = locate(&device, &made.superblock, ino).expect("the journal is there");
        (device, made.superblock, location)
    }

    #[test]
    fn journals_of_every_mapping_are_found_whole() {
        for (kind, block_size, size, blocks) in [
            (Kind::Ext4, 4096, 64 << 20, 1024),
            (Kind::Ext4, 1024, 64 << 20, 4096),
            // Eight extents do not fit into the inode.
            (Kind::Ext4, 4096, 200 << 30, 262_144),
            // A triply indirect block.
            (Kind::Ext3, 1024, 40 << 30, 262_144),
            (Kind::Ext3, 2048, 64 << 20, 4096),
        ] {
            let (device, _, location) = journal_of(kind, block_size, size);
            assert_eq!(location.length(), blocks, "{kind:?} {block_size} {size}");
            let recovery = pagefence_jbd2::recover(&device, &location).expect("it is sound");
            assert!(recovery.is_clean());
        }
    }

    #[test]
    fn a_damaged_way_to_the_journal_is_an_error() {
        let (device, superblock, location) = journal_of(Kind::Ext4, 1024, 64 << 20);
        let ino = InodeNo::JOURNAL;
        let mut bytes = [0; SUPERBLOCK_BYTES];
        device
            .read(SUPERBLOCK_OFFSET, &mut bytes)
            .expect("memory is read");
        let other = InodeNo::ROOT;
        let error = locate(&device, &superblock, other).expect_err("it is a directory");
        assert!(matches!(error, LocateError::NoJournal { ino } if ino == other));
        let none = InodeNo(superblock.inodes_count() + 1);
        assert!(matches!(
            locate(&device, &superblock, none),
            Err(LocateError::Corrupt { .. })
        ));
        assert!(location.length() > 0);
        // The checksum of the first descriptor.
        let descriptors = superblock.descriptor_block(0).expect("it is there");
        let offset = descriptors.0 * u64::from(superblock.block_size());
        device
            .write(offset + 0x1E, &[1, 2])
            .expect("memory is written");
        assert!(matches!(
            locate(&device, &superblock, ino),
            Err(LocateError::Corrupt { .. })
        ));
    }
}
