//! The inode record as it lies on disk.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first 128 bytes of `struct ext4_inode`, which every record has. The parts that depend on
/// the creator's system are as on Linux.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawInode {
    /// Kind and permissions.
    pub i_mode: U16,
    /// User, low half.
    pub i_uid: U16,
    /// Size in bytes, low half.
    pub i_size_lo: U32,
    /// Access time, low 32 bits; the hash of the value in an attribute inode.
    pub i_atime: U32,
    /// Change time, low 32 bits; the high half of the reference count in an attribute inode.
    pub i_ctime: U32,
    /// Modification time, low 32 bits.
    pub i_mtime: U32,
    /// Deletion time, or the next inode of the orphan list.
    pub i_dtime: U32,
    /// Group, low half.
    pub i_gid: U16,
    /// Links.
    pub i_links_count: U16,
    /// Sectors or blocks in use, low half.
    pub i_blocks_lo: U32,
    /// [`InodeFlags`](super::InodeFlags).
    pub i_flags: U32,
    /// Version, low half.
    pub l_i_version: U32,
    /// Block map, extent tree, inline data, symlink target or device number.
    pub i_block: [u8; 60],
    /// Generation, for NFS and the checksum's seed.
    pub i_generation: U32,
    /// Block of extended attributes, low half.
    pub i_file_acl_lo: U32,
    /// Size in bytes, high half.
    pub i_size_high: U32,
    /// Fragment. Unused.
    pub i_obso_faddr: U32,
    /// Sectors or blocks in use, high half.
    pub l_i_blocks_high: U16,
    /// Block of extended attributes, high half.
    pub l_i_file_acl_high: U16,
    /// User, high half.
    pub l_i_uid_high: U16,
    /// Group, high half.
    pub l_i_gid_high: U16,
    /// crc32c, low half.
    pub l_i_checksum_lo: U16,
    /// Padding.
    pub l_i_reserved: U16,
}

/// The fields from byte 128 on, of which a record has as many as `i_extra_isize` covers.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawInodeExtra {
    /// Bytes of these fields that the record has.
    pub i_extra_isize: U16,
    /// crc32c, high half.
    pub i_checksum_hi: U16,
    /// Change time: nanoseconds, and two more bits of seconds.
    pub i_ctime_extra: U32,
    /// Modification time: nanoseconds, and two more bits of seconds.
    pub i_mtime_extra: U32,
    /// Access time: nanoseconds, and two more bits of seconds.
    pub i_atime_extra: U32,
    /// Creation time, low 32 bits.
    pub i_crtime: U32,
    /// Creation time: nanoseconds, and two more bits of seconds.
    pub i_crtime_extra: U32,
    /// Version, high half.
    pub i_version_hi: U32,
    /// Project.
    pub i_projid: U32,
}

const _: () = assert!(size_of::<RawInode>() == 128);
const _: () = assert!(std::mem::offset_of!(RawInode, i_block) == 0x28);
const _: () = assert!(std::mem::offset_of!(RawInode, i_size_high) == 0x6C);
const _: () = assert!(std::mem::offset_of!(RawInode, l_i_checksum_lo) == 0x7C);
const _: () = assert!(size_of::<RawInodeExtra>() == 32);
const _: () = assert!(std::mem::offset_of!(RawInodeExtra, i_projid) == 0x1C);
