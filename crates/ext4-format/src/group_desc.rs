//! Group descriptors: where a group's bitmaps and inode table lie, and what is free in it.

#[cfg(test)]
mod tests;

use std::ops::Range;

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{crc16, crc32c};
use crate::error::Corruption;
use crate::features::{Incompat, RoCompat};
use crate::ids::{BlockNo, GroupNo};
use crate::num::{hi16, hi32, join16, join32, lo16, lo32};
use crate::superblock::Superblock;

/// `struct ext4_group_desc`: 32 bytes, and 32 more with `64bit`.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawGroupDesc {
    /// Block bitmap, low half.
    pub bg_block_bitmap_lo: U32,
    /// Inode bitmap, low half.
    pub bg_inode_bitmap_lo: U32,
    /// Inode table, low half.
    pub bg_inode_table_lo: U32,
    /// Free clusters, low half.
    pub bg_free_blocks_count_lo: U16,
    /// Free inodes, low half.
    pub bg_free_inodes_count_lo: U16,
    /// Directories, low half.
    pub bg_used_dirs_count_lo: U16,
    /// [`GroupFlags`].
    pub bg_flags: U16,
    /// Exclude bitmap of snapshots, low half. Unused.
    pub bg_exclude_bitmap_lo: U32,
    /// crc32c of the block bitmap, low half.
    pub bg_block_bitmap_csum_lo: U16,
    /// crc32c of the inode bitmap, low half.
    pub bg_inode_bitmap_csum_lo: U16,
    /// Inodes at the end of the table that were never used, low half.
    pub bg_itable_unused_lo: U16,
    /// Checksum of the descriptor.
    pub bg_checksum: U16,
    /// Block bitmap, high half.
    pub bg_block_bitmap_hi: U32,
    /// Inode bitmap, high half.
    pub bg_inode_bitmap_hi: U32,
    /// Inode table, high half.
    pub bg_inode_table_hi: U32,
    /// Free clusters, high half.
    pub bg_free_blocks_count_hi: U16,
    /// Free inodes, high half.
    pub bg_free_inodes_count_hi: U16,
    /// Directories, high half.
    pub bg_used_dirs_count_hi: U16,
    /// Inodes never used, high half.
    pub bg_itable_unused_hi: U16,
    /// Exclude bitmap of snapshots, high half. Unused.
    pub bg_exclude_bitmap_hi: U32,
    /// crc32c of the block bitmap, high half.
    pub bg_block_bitmap_csum_hi: U16,
    /// crc32c of the inode bitmap, high half.
    pub bg_inode_bitmap_csum_hi: U16,
    /// Padding.
    pub bg_reserved: U32,
}

const RAW_BYTES: usize = size_of::<RawGroupDesc>();
/// Bytes before the checksum field.
const BEFORE_CHECKSUM: usize = std::mem::offset_of!(RawGroupDesc, bg_checksum);
const _: () = assert!(RAW_BYTES == 64);
const _: () = assert!(BEFORE_CHECKSUM == 0x1E);
const _: () = assert!(std::mem::offset_of!(RawGroupDesc, bg_inode_bitmap_csum_hi) == 0x3A);

bitflags! {
    /// `bg_flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct GroupFlags: u16 {
        /// The inode bitmap and table were never written: no inode of the group is in use.
        const INODE_UNINIT = 0x1;
        /// The block bitmap was never written: only metadata is in use.
        const BLOCK_UNINIT = 0x2;
        /// The inode table is zeroed where it was never used.
        const INODE_ZEROED = 0x4;
        const _ = !0;
    }
}

/// A group descriptor that passed its checks.
///
/// Counts of blocks are in clusters, like the bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDesc {
    raw: RawGroupDesc,
    /// Bytes of descriptors larger than the fields known here; summed and kept.
    tail: Box<[u8]>,
    group: GroupNo,
    desc_size: usize,
}

impl GroupDesc {
    /// Checks the descriptor of `group`: its checksum, and that its blocks lie inside the file
    /// system (without `flex_bg`: inside the group), on no other metadata of this kind.
    ///
    /// # Errors
    /// [`Corruption::Truncated`], [`Corruption::Checksum`], [`Corruption::GroupBlockRange`],
    /// [`Corruption::GroupBlockOverlap`]; counts are checked by [`Self::check_counts`].
    pub fn parse(bytes: &[u8], group: GroupNo, sb: &Superblock) -> Result<Self, Corruption> {
        let desc = Self::read(bytes, group, sb)?;
        desc.check_checksum(sb)?;
        desc.check_blocks(sb)?;
        Ok(desc)
    }

    /// Reads a descriptor without any check.
    ///
    /// # Errors
    /// [`Corruption::Truncated`].
    pub fn read(bytes: &[u8], group: GroupNo, sb: &Superblock) -> Result<Self, Corruption> {
        let desc_size = sb.desc_size();
        let truncated = Corruption::Truncated {
            what: "group descriptor",
            needed: desc_size,
            have: bytes.len(),
        };
        let bytes = bytes.get(..desc_size).ok_or(truncated)?;
        let (known, tail) = bytes.split_at_checked(RAW_BYTES).unwrap_or((bytes, &[]));
        let mut raw = RawGroupDesc::new_zeroed();
        for (to, from) in raw.as_mut_bytes().iter_mut().zip(known) {
            *to = *from;
        }
        Ok(Self {
            raw,
            tail: tail.into(),
            group,
            desc_size,
        })
    }

    /// The fields as they lie on disk; the second half is zero where descriptors have 32 bytes.
    #[must_use]
    pub fn raw(&self) -> &RawGroupDesc {
        &self.raw
    }

    /// Its group.
    #[must_use]
    pub fn group(&self) -> GroupNo {
        self.group
    }

    /// Writes the descriptor, all of its `s_desc_size` bytes, to the start of `out`.
    /// [`Self::update_checksum`] comes first.
    ///
    /// # Errors
    /// [`Corruption::Truncated`] if `out` is too short.
    pub fn write_to(&self, out: &mut [u8]) -> Result<(), Corruption> {
        let have = out.len();
        let what = "group descriptor";
        let truncated = Corruption::Truncated {
            what,
            needed: self.desc_size,
            have,
        };
        let out = out.get_mut(..self.desc_size).ok_or(truncated)?;
        for (to, from) in out
            .iter_mut()
            .zip(self.raw.as_bytes().iter().chain(&self.tail))
        {
            *to = *from;
        }
        Ok(())
    }

    /// Computes the checksum: the low half of a crc32c with `metadata_csum`, a crc16 with
    /// `uninit_bg`, 0 with neither.
    #[must_use]
    pub fn compute_checksum(&self, sb: &Superblock) -> u16 {
        let group = self.group.0.to_le_bytes();
        let bytes = self.raw.as_bytes();
        let known = bytes.get(..self.desc_size).unwrap_or(bytes);
        let (before, from_checksum) = known
            .split_at_checked(BEFORE_CHECKSUM)
            .unwrap_or((known, &[]));
        let (_, after) = from_checksum.split_at_checked(2).unwrap_or_default();
        if sb.has_metadata_csum() {
            // The field itself counts as zero.
            let parts = [&group, before, &[0, 0], after, &self.tail];
            lo16(parts.into_iter().fold(sb.checksum_seed().0, crc32c))
        } else if sb.has_ro_compat(RoCompat::GDT_CSUM) {
            // The field itself is left out.
            let uuid = sb.uuid();
            let parts: [&[u8]; 5] = [&uuid, &group, before, after, &self.tail];
            parts.into_iter().fold(!0, crc16)
        } else {
            0
        }
    }

    /// Recomputes the checksum, if the file system has one.
    pub fn update_checksum(&mut self, sb: &Superblock) {
        if sb.has_group_desc_csum() {
            self.raw.bg_checksum = self.compute_checksum(sb).into();
        }
    }

    /// Block of the block bitmap.
    #[must_use]
    pub fn block_bitmap(&self) -> BlockNo {
        BlockNo(join32(
            self.raw.bg_block_bitmap_lo.get(),
            self.raw.bg_block_bitmap_hi.get(),
        ))
    }

    /// Block of the inode bitmap.
    #[must_use]
    pub fn inode_bitmap(&self) -> BlockNo {
        BlockNo(join32(
            self.raw.bg_inode_bitmap_lo.get(),
            self.raw.bg_inode_bitmap_hi.get(),
        ))
    }

    /// First block of the inode table.
    #[must_use]
    pub fn inode_table(&self) -> BlockNo {
        BlockNo(join32(
            self.raw.bg_inode_table_lo.get(),
            self.raw.bg_inode_table_hi.get(),
        ))
    }

    /// All blocks of the inode table.
    #[must_use]
    pub fn inode_table_range(&self, sb: &Superblock) -> Range<BlockNo> {
        let start = self.inode_table();
        start..BlockNo(start.0.saturating_add(u64::from(sb.inode_table_blocks())))
    }

    /// The blocks of the block bitmap, the inode bitmap and the inode table, wherever they lie.
    /// Together with [`Superblock::base_metadata`] they are the group's system zones.
    #[must_use]
    pub fn metadata_zones(&self, sb: &Superblock) -> [Range<BlockNo>; 3] {
        let one = |block: BlockNo| block..BlockNo(block.0.saturating_add(1));
        [
            one(self.block_bitmap()),
            one(self.inode_bitmap()),
            self.inode_table_range(sb),
        ]
    }

    /// Says where the block bitmap, the inode bitmap and the inode table lie.
    pub fn set_locations(
        &mut self,
        block_bitmap: BlockNo,
        inode_bitmap: BlockNo,
        inode_table: BlockNo,
    ) {
        self.raw.bg_block_bitmap_lo = lo32(block_bitmap.0).into();
        self.raw.bg_inode_bitmap_lo = lo32(inode_bitmap.0).into();
        self.raw.bg_inode_table_lo = lo32(inode_table.0).into();
        if self.is_wide() {
            self.raw.bg_block_bitmap_hi = hi32(block_bitmap.0).into();
            self.raw.bg_inode_bitmap_hi = hi32(inode_bitmap.0).into();
            self.raw.bg_inode_table_hi = hi32(inode_table.0).into();
        }
    }

    /// Free clusters.
    #[must_use]
    pub fn free_clusters(&self) -> u32 {
        join16(
            self.raw.bg_free_blocks_count_lo.get(),
            self.raw.bg_free_blocks_count_hi.get(),
        )
    }

    /// Sets the free clusters.
    pub fn set_free_clusters(&mut self, count: u32) {
        self.raw.bg_free_blocks_count_lo = lo16(count).into();
        if self.is_wide() {
            self.raw.bg_free_blocks_count_hi = hi16(count).into();
        }
    }

    /// Free inodes.
    #[must_use]
    pub fn free_inodes(&self) -> u32 {
        join16(
            self.raw.bg_free_inodes_count_lo.get(),
            self.raw.bg_free_inodes_count_hi.get(),
        )
    }

    /// Sets the free inodes.
    pub fn set_free_inodes(&mut self, count: u32) {
        self.raw.bg_free_inodes_count_lo = lo16(count).into();
        if self.is_wide() {
            self.raw.bg_free_inodes_count_hi = hi16(count).into();
        }
    }

    /// Directories.
    #[must_use]
    pub fn used_dirs(&self) -> u32 {
        join16(
            self.raw.bg_used_dirs_count_lo.get(),
            self.raw.bg_used_dirs_count_hi.get(),
        )
    }

    /// Sets the directories.
    pub fn set_used_dirs(&mut self, count: u32) {
        self.raw.bg_used_dirs_count_lo = lo16(count).into();
        if self.is_wide() {
            self.raw.bg_used_dirs_count_hi = hi16(count).into();
        }
    }

    /// Inodes at the end of the table that were never used. Means something only if the
    /// superblock [has checksums of descriptors](Superblock::has_group_desc_csum).
    #[must_use]
    pub fn itable_unused(&self) -> u32 {
        join16(
            self.raw.bg_itable_unused_lo.get(),
            self.raw.bg_itable_unused_hi.get(),
        )
    }

    /// Sets the inodes never used.
    pub fn set_itable_unused(&mut self, count: u32) {
        self.raw.bg_itable_unused_lo = lo16(count).into();
        if self.is_wide() {
            self.raw.bg_itable_unused_hi = hi16(count).into();
        }
    }

    /// Flags that mean something: none without checksums of descriptors.
    #[must_use]
    pub fn flags(&self, sb: &Superblock) -> GroupFlags {
        if sb.has_group_desc_csum() {
            self.stored_flags()
        } else {
            GroupFlags::empty()
        }
    }

    /// The flags as stored, whether they mean something or not.
    #[must_use]
    pub fn stored_flags(&self) -> GroupFlags {
        GroupFlags::from_bits_retain(self.raw.bg_flags.get())
    }

    /// Sets the flags.
    pub fn set_flags(&mut self, flags: GroupFlags) {
        self.raw.bg_flags = flags.bits().into();
    }

    /// The stored checksum of the block bitmap, and which of its bits are stored.
    #[must_use]
    pub fn block_bitmap_checksum(&self) -> StoredChecksum {
        self.stored(
            self.raw.bg_block_bitmap_csum_lo,
            self.raw.bg_block_bitmap_csum_hi,
        )
    }

    /// The stored checksum of the inode bitmap, and which of its bits are stored.
    #[must_use]
    pub fn inode_bitmap_checksum(&self) -> StoredChecksum {
        self.stored(
            self.raw.bg_inode_bitmap_csum_lo,
            self.raw.bg_inode_bitmap_csum_hi,
        )
    }

    /// Stores the checksum of the block bitmap, or as much of it as there is room for.
    pub fn set_block_bitmap_checksum(&mut self, checksum: u32) {
        self.raw.bg_block_bitmap_csum_lo = lo16(checksum).into();
        if self.is_wide() {
            self.raw.bg_block_bitmap_csum_hi = hi16(checksum).into();
        }
    }

    /// Stores the checksum of the inode bitmap, or as much of it as there is room for.
    pub fn set_inode_bitmap_checksum(&mut self, checksum: u32) {
        self.raw.bg_inode_bitmap_csum_lo = lo16(checksum).into();
        if self.is_wide() {
            self.raw.bg_inode_bitmap_csum_hi = hi16(checksum).into();
        }
    }

    /// Checks that nothing is counted that the group does not have.
    ///
    /// # Errors
    /// [`Corruption::GroupCounter`].
    pub fn check_counts(&self, sb: &Superblock) -> Result<(), Corruption> {
        let inodes = sb.inodes_per_group();
        let mut counts = vec![
            (
                "free clusters",
                self.free_clusters(),
                sb.clusters_in_group(self.group),
            ),
            ("free inodes", self.free_inodes(), inodes),
            (
                "directories",
                self.used_dirs(),
                inodes.saturating_sub(self.free_inodes()),
            ),
        ];
        if sb.has_group_desc_csum() {
            counts.push(("unused inodes", self.itable_unused(), inodes));
        }
        for (what, count, max) in counts {
            if count > max {
                return Err(Corruption::GroupCounter {
                    what,
                    group: self.group,
                    count,
                    max,
                });
            }
        }
        Ok(())
    }

    fn is_wide(&self) -> bool {
        self.desc_size >= RAW_BYTES
    }

    fn stored(&self, low: U16, high: U16) -> StoredChecksum {
        let mask = if self.is_wide() {
            u32::MAX
        } else {
            u32::from(u16::MAX)
        };
        StoredChecksum {
            value: join16(low.get(), high.get()) & mask,
            mask,
        }
    }

    fn check_checksum(&self, sb: &Superblock) -> Result<(), Corruption> {
        if !sb.has_group_desc_csum() {
            return Ok(());
        }
        let (stored, computed) = (self.raw.bg_checksum.get(), self.compute_checksum(sb));
        if stored != computed {
            let (stored, computed) = (u32::from(stored), u32::from(computed));
            return Err(Corruption::Checksum {
                what: "group descriptor",
                stored,
                computed,
            });
        }
        Ok(())
    }

    fn check_blocks(&self, sb: &Superblock) -> Result<(), Corruption> {
        let group = self.group;
        let whole = if sb.has_incompat(Incompat::FLEX_BG) {
            sb.first_data_block().0..sb.blocks_count()
        } else {
            let first = sb.first_block_of_group(group).0;
            first..first.saturating_add(u64::from(sb.blocks_in_group(group)))
        };
        let names = ["block bitmap", "inode bitmap", "inode table"];
        let zones = self.metadata_zones(sb).map(|zone| zone.start.0..zone.end.0);
        // What every mount reads first must survive any write to a bitmap or a table.
        let primary = sb.base_metadata(GroupNo(0));
        let own = sb.base_metadata(group);
        let mut taken = vec![
            ("the superblock", primary.start.0..primary.end.0),
            ("a backup superblock", own.start.0..own.end.0),
        ];
        for (what, zone) in names.into_iter().zip(zones) {
            let block = zone.start;
            if zone.start < whole.start || zone.end > whole.end {
                let (first, last) = (whole.start, whole.end.saturating_sub(1));
                return Err(Corruption::GroupBlockRange {
                    what,
                    group,
                    block,
                    first,
                    last,
                });
            }
            let hit = taken
                .iter()
                .find(|(_, other)| zone.start.max(other.start) < zone.end.min(other.end));
            if let Some((other, _)) = hit {
                return Err(Corruption::GroupBlockOverlap {
                    what,
                    group,
                    block,
                    other,
                });
            }
            taken.push((what, zone));
        }
        Ok(())
    }
}

/// A checksum of a bitmap, of which descriptors of 32 bytes hold only the low half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredChecksum {
    /// As stored.
    pub value: u32,
    /// Bits that are stored.
    pub mask: u32,
}

impl StoredChecksum {
    /// Compares with a computed one.
    ///
    /// # Errors
    /// [`Corruption::Checksum`].
    pub fn verify(self, what: &'static str, computed: u32) -> Result<(), Corruption> {
        let (stored, computed) = (self.value, computed & self.mask);
        if stored == computed {
            Ok(())
        } else {
            Err(Corruption::Checksum {
                what,
                stored,
                computed,
            })
        }
    }
}
