//! The truth of the groups as the blocks of a commit: bitmaps, descriptors and the superblock,
//! each checksummed once.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use pagefence_ext4_format::group_desc::GroupDesc;
use pagefence_ext4_format::superblock::{SUPERBLOCK_OFFSET, Superblock};
use pagefence_ext4_format::{BlockNo, GroupNo, bitmap};
use pagefence_lock_order::levels::Counters;
use pagefence_lock_order::rank;
use pagefence_vfs::{Error, Result};

use crate::alloc::group_state::{Bits, GroupState};
use crate::alloc::{Allocator, Seal};
use crate::error::{device, place};

/// A group as it is sealed.
struct Sealed {
    desc: GroupDesc,
    block_bits: Option<Vec<u8>>,
    inode_bits: Option<Vec<u8>>,
}

impl Allocator {
    /// Gives the contents of all bitmaps and descriptors that changed since the last call, and of
    /// the superblock if anything changed or it is part of the transaction for another reason.
    /// `superblock` gives it as it is to be, but for its counts and checksum; it is given the free
    /// blocks and inodes.
    ///
    /// Called when no handle is open: nothing changes bitmaps meanwhile, though runs become busy
    /// and free again. Takes locks of groups, one at a time, and holds none when it calls `sealing`.
    ///
    /// # Errors
    /// `Io` if a block that holds other descriptors, or what lies around the superblock, can't be
    /// read: the transaction can't be committed then.
    pub(crate) fn seal(
        &self,
        sealing: &mut impl Seal,
        superblock: impl FnOnce(u64, u32) -> Superblock,
    ) -> Result<()> {
        let mut dirty = {
            let _rank = rank::enter::<Counters>(2);
            std::mem::take(&mut *self.dirty.lock())
        };
        dirty.sort_unstable();
        let mut homes: BTreeMap<BlockNo, Vec<u8>> = BTreeMap::new();
        for number in &dirty {
            self.seal_group(sealing, *number, &mut homes)?;
        }
        for (block, bytes) in &homes {
            sealing.set(*block, bytes);
        }
        let home = self.superblock.superblock_block();
        if !dirty.is_empty() || sealing.contains(home) {
            let (blocks, inodes) = self.free_counts();
            let mut superblock = superblock(blocks, inodes);
            superblock.set_free_blocks_count(blocks);
            superblock.set_free_inodes_count(inodes);
            superblock.update_checksum();
            let mut bytes = self.buffers.read(home.0).map_err(device)?.to_vec();
            let offset = SUPERBLOCK_OFFSET % u64::from(self.superblock.block_size());
            let from = superblock.as_bytes();
            write(&mut bytes, offset as usize, from).ok_or_else(|| misplaced(home))?;
            sealing.set(home, &bytes);
        }
        self.renew_averages();
        Ok(())
    }

    /// Free blocks and inodes of all groups.
    fn free_counts(&self) -> (u64, u32) {
        let mut blocks = 0;
        let mut inodes = 0_u32;
        for summary in &self.summaries {
            blocks += u64::from(summary.free_blocks());
            inodes = inodes.saturating_add(summary.free_inodes());
        }
        (
            blocks.min(self.superblock.blocks_count()),
            inodes.min(self.superblock.inodes_count()),
        )
    }

    fn seal_group(
        &self,
        sealing: &mut impl Seal,
        number: GroupNo,
        homes: &mut BTreeMap<BlockNo, Vec<u8>>,
    ) -> Result<()> {
        let group = self.group(number);
        let sealed = self.serialise(&mut self.lock(number));
        if let Some(bits) = &sealed.block_bits {
            sealing.set(sealed.desc.block_bitmap(), bits);
        }
        if let Some(bits) = &sealed.inode_bits {
            sealing.set(sealed.desc.inode_bitmap(), bits);
        }
        let block = group.home();
        let bytes = match homes.entry(block) {
            Entry::Occupied(bytes) => bytes.into_mut(),
            Entry::Vacant(place) => {
                place.insert(self.buffers.read(block.0).map_err(device)?.to_vec())
            }
        };
        let to = bytes.get_mut(group.offset()..).unwrap_or_default();
        sealed.desc.write_to(to).map_err(|_| misplaced(block))?;
        // Only now: what is not dirty may be dropped from memory and be read again.
        let mut guard = self.lock(number);
        guard.is_dirty = false;
        if let Some(blocks) = guard.blocks_mut() {
            blocks.is_dirty = false;
        }
        if let Some(inodes) = guard.inodes_mut() {
            inodes.is_dirty = false;
        }
        Ok(())
    }

    /// Checksums what changed of a group.
    fn serialise(&self, state: &mut GroupState) -> Sealed {
        let superblock = &self.superblock;
        let block_bits = match &state.blocks {
            Bits::Loaded(blocks) if blocks.is_dirty => Some(blocks.bits.clone()),
            _ => None,
        };
        let inode_bits = match &state.inodes {
            Bits::Loaded(inodes) if inodes.is_dirty => Some(inodes.bits.clone()),
            _ => None,
        };
        if superblock.has_metadata_csum() {
            if let Some(bits) = &block_bits {
                let checksum = bitmap::block_bitmap_checksum(bits, superblock);
                state.desc.set_block_bitmap_checksum(checksum);
            }
            if let Some(bits) = &inode_bits {
                let checksum = bitmap::inode_bitmap_checksum(bits, superblock);
                state.desc.set_inode_bitmap_checksum(checksum);
            }
        }
        state.desc.update_checksum(superblock);
        Sealed {
            desc: state.desc.clone(),
            block_bits,
            inode_bits,
        }
    }
}

fn write(bytes: &mut [u8], offset: usize, from: &[u8]) -> Option<()> {
    let to = bytes.get_mut(offset..offset.checked_add(from.len())?)?;
    to.copy_from_slice(from);
    Some(())
}

/// A block that is too small for what it holds: opening checked that there is none.
fn misplaced(block: BlockNo) -> Error {
    Error::Corrupt {
        what: "a block is too small for what it holds".to_owned(),
        place: place(None, Some(block)),
    }
}
