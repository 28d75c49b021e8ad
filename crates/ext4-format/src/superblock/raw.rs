//! The superblock as it lies on disk.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The 1024 bytes of `struct ext4_super_block`, 1024 bytes into the device, and at the start of
/// each group that holds a backup.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawSuperblock {
    /// Inodes.
    pub s_inodes_count: U32,
    /// Blocks, low half.
    pub s_blocks_count_lo: U32,
    /// Blocks kept for the privileged user, low half.
    pub s_r_blocks_count_lo: U32,
    /// Free blocks, low half.
    pub s_free_blocks_count_lo: U32,
    /// Free inodes.
    pub s_free_inodes_count: U32,
    /// First block of group 0.
    pub s_first_data_block: U32,
    /// The block size is 2^(10 + this).
    pub s_log_block_size: U32,
    /// The cluster size is 2^(10 + this).
    pub s_log_cluster_size: U32,
    /// Blocks in a group.
    pub s_blocks_per_group: U32,
    /// Clusters in a group.
    pub s_clusters_per_group: U32,
    /// Inodes in a group.
    pub s_inodes_per_group: U32,
    /// Time of the last mount, seconds, low 32 bits.
    pub s_mtime: U32,
    /// Time of the last write, seconds, low 32 bits.
    pub s_wtime: U32,
    /// Mounts since the last check.
    pub s_mnt_count: U16,
    /// Mounts after which a check is due.
    pub s_max_mnt_count: U16,
    /// [`MAGIC`](super::MAGIC).
    pub s_magic: U16,
    /// [`State`](super::State).
    pub s_state: U16,
    /// What to do on an error.
    pub s_errors: U16,
    /// Minor revision.
    pub s_minor_rev_level: U16,
    /// Time of the last check, seconds, low 32 bits.
    pub s_lastcheck: U32,
    /// Seconds between checks.
    pub s_checkinterval: U32,
    /// System that made it (0 is Linux).
    pub s_creator_os: U32,
    /// Revision: 0 is the original, 1 has all that follows.
    pub s_rev_level: U32,
    /// User that may use the reserved blocks.
    pub s_def_resuid: U16,
    /// Group that may use the reserved blocks.
    pub s_def_resgid: U16,
    /// First inode for files.
    pub s_first_ino: U32,
    /// Bytes of an inode record.
    pub s_inode_size: U16,
    /// Group of this copy.
    pub s_block_group_nr: U16,
    /// [`Compat`](crate::features::Compat).
    pub s_feature_compat: U32,
    /// [`Incompat`](crate::features::Incompat).
    pub s_feature_incompat: U32,
    /// [`RoCompat`](crate::features::RoCompat).
    pub s_feature_ro_compat: U32,
    /// UUID of the file system.
    pub s_uuid: [u8; 16],
    /// Label.
    pub s_volume_name: [u8; 16],
    /// Where it was mounted last.
    pub s_last_mounted: [u8; 64],
    /// For compression. Unused.
    pub s_algorithm_usage_bitmap: U32,
    /// Blocks to preallocate. Unused.
    pub s_prealloc_blocks: u8,
    /// Blocks to preallocate for directories. Unused.
    pub s_prealloc_dir_blocks: u8,
    /// Blocks reserved behind each descriptor table.
    pub s_reserved_gdt_blocks: U16,
    /// UUID of an external journal.
    pub s_journal_uuid: [u8; 16],
    /// Inode of the journal.
    pub s_journal_inum: U32,
    /// Device number of an external journal.
    pub s_journal_dev: U32,
    /// Head of the orphan list.
    pub s_last_orphan: U32,
    /// Seed of the directory hash.
    pub s_hash_seed: [U32; 4],
    /// Hash of new directories.
    pub s_def_hash_version: u8,
    /// 1 if `s_jnl_blocks` holds a copy of the journal's block map.
    pub s_jnl_backup_type: u8,
    /// Bytes of a group descriptor, with `64bit`.
    pub s_desc_size: U16,
    /// [`DefaultMountOptions`](super::DefaultMountOptions).
    pub s_default_mount_opts: U32,
    /// First meta group whose descriptors are spread.
    pub s_first_meta_bg: U32,
    /// Time of creation, seconds, low 32 bits.
    pub s_mkfs_time: U32,
    /// Copy of the journal's `i_block`, then of its size, high half first.
    pub s_jnl_blocks: [U32; 17],
    /// Blocks, high half.
    pub s_blocks_count_hi: U32,
    /// Reserved blocks, high half.
    pub s_r_blocks_count_hi: U32,
    /// Free blocks, high half.
    pub s_free_blocks_count_hi: U32,
    /// Extra bytes that all inodes have.
    pub s_min_extra_isize: U16,
    /// Extra bytes that new inodes get.
    pub s_want_extra_isize: U16,
    /// [`SuperblockFlags`](super::SuperblockFlags).
    pub s_flags: U32,
    /// RAID stride, in blocks.
    pub s_raid_stride: U16,
    /// Seconds between checks against a second mount.
    pub s_mmp_update_interval: U16,
    /// Block of the protection against a second mount.
    pub s_mmp_block: U64,
    /// Blocks of data in a RAID stripe.
    pub s_raid_stripe_width: U32,
    /// A flex group has 2^this groups.
    pub s_log_groups_per_flex: u8,
    /// 1 is crc32c.
    pub s_checksum_type: u8,
    /// Version of encryption.
    pub s_encryption_level: u8,
    /// Padding.
    pub s_reserved_pad: u8,
    /// KiB written in its lifetime.
    pub s_kbytes_written: U64,
    /// Inode of the snapshot. Unused.
    pub s_snapshot_inum: U32,
    /// Number of the snapshot. Unused.
    pub s_snapshot_id: U32,
    /// Blocks reserved for the snapshot. Unused.
    pub s_snapshot_r_blocks_count: U64,
    /// Head of the list of snapshots. Unused.
    pub s_snapshot_list: U32,
    /// Errors seen.
    pub s_error_count: U32,
    /// Time of the first error, seconds, low 32 bits.
    pub s_first_error_time: U32,
    /// Inode of the first error.
    pub s_first_error_ino: U32,
    /// Block of the first error.
    pub s_first_error_block: U64,
    /// Function that met the first error.
    pub s_first_error_func: [u8; 32],
    /// Line that met the first error.
    pub s_first_error_line: U32,
    /// Time of the last error, seconds, low 32 bits.
    pub s_last_error_time: U32,
    /// Inode of the last error.
    pub s_last_error_ino: U32,
    /// Line that met the last error.
    pub s_last_error_line: U32,
    /// Block of the last error.
    pub s_last_error_block: U64,
    /// Function that met the last error.
    pub s_last_error_func: [u8; 32],
    /// Default mount options, as text.
    pub s_mount_opts: [u8; 64],
    /// Inode of the user quota.
    pub s_usr_quota_inum: U32,
    /// Inode of the group quota.
    pub s_grp_quota_inum: U32,
    /// Clusters of metadata, or 0 if not known.
    pub s_overhead_clusters: U32,
    /// Groups with a backup, with `sparse_super2`.
    pub s_backup_bgs: [U32; 2],
    /// Ciphers in use.
    pub s_encrypt_algos: [u8; 4],
    /// Salt of the passwords.
    pub s_encrypt_pw_salt: [u8; 16],
    /// Inode of `lost+found`.
    pub s_lpf_ino: U32,
    /// Inode of the project quota.
    pub s_prj_quota_inum: U32,
    /// Checksum seed, with `metadata_csum_seed`.
    pub s_checksum_seed: U32,
    /// Bits 32 to 39 of `s_wtime`.
    pub s_wtime_hi: u8,
    /// Bits 32 to 39 of `s_mtime`.
    pub s_mtime_hi: u8,
    /// Bits 32 to 39 of `s_mkfs_time`.
    pub s_mkfs_time_hi: u8,
    /// Bits 32 to 39 of `s_lastcheck`.
    pub s_lastcheck_hi: u8,
    /// Bits 32 to 39 of `s_first_error_time`.
    pub s_first_error_time_hi: u8,
    /// Bits 32 to 39 of `s_last_error_time`.
    pub s_last_error_time_hi: u8,
    /// Kind of the first error.
    pub s_first_error_errcode: u8,
    /// Kind of the last error.
    pub s_last_error_errcode: u8,
    /// Encoding of names, with `casefold`.
    pub s_encoding: U16,
    /// 1: names must be valid in the encoding.
    pub s_encoding_flags: U16,
    /// Inode of the orphan file.
    pub s_orphan_file_inum: U32,
    /// Padding.
    pub s_reserved: [U32; 94],
    /// crc32c of all before.
    pub s_checksum: U32,
}

const _: () = assert!(size_of::<RawSuperblock>() == super::SUPERBLOCK_BYTES);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, s_feature_compat) == 0x5C);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, s_desc_size) == 0xFE);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, s_blocks_count_hi) == 0x150);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, s_mount_opts) == 0x200);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, s_checksum_seed) == 0x270);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, s_orphan_file_inum) == 0x280);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, s_checksum) == 0x3FC);
