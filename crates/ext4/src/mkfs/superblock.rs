//! The superblock of a new file system.

use pagefence_ext4_format::checksum::ChecksumSeed;
use pagefence_ext4_format::features::{Compat, Incompat, RoCompat};
use pagefence_ext4_format::superblock::{
    DefaultMountOptions, GOOD_OLD_FIRST_INO, MAGIC, RawSuperblock, State, Superblock,
    SuperblockFlags,
};
use zerocopy::{FromZeros, IntoBytes};

use super::Parameters;
use super::error::MkfsError;
use super::geometry::Geometry;
use super::layout::LOG_GROUPS_PER_FLEX;

/// Bytes of a label.
const LABEL_BYTES: usize = 16;
/// `s_max_mnt_count` of file systems that ask for no regular checks.
const NO_CHECK_BY_MOUNTS: u16 = u16::MAX;
/// `s_errors`: go on.
const ERRORS_CONTINUE: u16 = 1;
/// `s_rev_level` with variable inode sizes and features.
const DYNAMIC_REVISION: u32 = 1;
/// `s_def_hash_version`: half MD4.
const HASH_HALF_MD4: u8 = 1;
/// `s_checksum_type`: crc32c.
const CHECKSUM_CRC32C: u8 = 1;
/// `s_encrypt_algos`: AES-256-XTS for contents, AES-256-CTS for names.
const ENCRYPTION_ALGORITHMS: [u8; 4] = [1, 4, 0, 0];
/// Bytes of the extra fields of inodes that the format defines.
const EXTRA_ISIZE: u16 = 32;

/// Fills a superblock in; counts of free blocks and inodes come later.
pub(super) fn create(
    parameters: &Parameters,
    geometry: &Geometry,
    device_bytes: u64,
) -> Result<Superblock, MkfsError> {
    let label = &parameters.label;
    if label.len() > LABEL_BYTES || label.contains(&0) {
        return Err(MkfsError::Label { bytes: label.len() });
    }
    let mut raw = RawSuperblock::new_zeroed();
    fill_geometry(&mut raw, geometry);
    raw.s_magic = MAGIC.into();
    raw.s_state = State::VALID.bits().into();
    raw.s_errors = ERRORS_CONTINUE.into();
    raw.s_max_mnt_count = NO_CHECK_BY_MOUNTS.into();
    raw.s_rev_level = DYNAMIC_REVISION.into();
    raw.s_first_ino = GOOD_OLD_FIRST_INO.into();
    raw.s_uuid = parameters.uuid;
    raw.s_volume_name[..label.len()].copy_from_slice(label);
    for (word, bytes) in raw
        .s_hash_seed
        .iter_mut()
        .zip(parameters.hash_seed.chunks_exact(4))
    {
        word.as_mut_bytes().copy_from_slice(bytes);
    }
    raw.s_def_hash_version = HASH_HALF_MD4;
    raw.s_flags = SuperblockFlags::SIGNED_HASH.bits().into();
    let mount_options = DefaultMountOptions::XATTR_USER | DefaultMountOptions::ACL;
    raw.s_default_mount_opts = mount_options.bits().into();

    let [a, b, c, d, time_hi, ..] = parameters.time_seconds.max(0).to_le_bytes();
    let time_lo = u32::from_le_bytes([a, b, c, d]);
    raw.s_mkfs_time = time_lo.into();
    raw.s_mkfs_time_hi = time_hi;
    raw.s_lastcheck = time_lo.into();
    raw.s_lastcheck_hi = time_hi;
    raw.s_wtime = time_lo.into();
    raw.s_wtime_hi = time_hi;

    let features = geometry.features;
    if features.ro_compat.contains(RoCompat::METADATA_CSUM) {
        raw.s_checksum_type = CHECKSUM_CRC32C;
    }
    if features.incompat.contains(Incompat::CSUM_SEED) {
        raw.s_checksum_seed = ChecksumSeed::of_uuid(&parameters.uuid).0.into();
    }
    if features.incompat.contains(Incompat::ENCRYPT) {
        raw.s_encrypt_algos = ENCRYPTION_ALGORITHMS;
    }
    raw.s_checksum = raw.compute_checksum().into();
    Ok(Superblock::parse(raw.as_bytes(), Some(device_bytes))?)
}

fn fill_geometry(raw: &mut RawSuperblock, geometry: &Geometry) {
    let features = geometry.features;
    raw.s_feature_compat = features.compat.bits().into();
    raw.s_feature_incompat = features.incompat.bits().into();
    raw.s_feature_ro_compat = features.ro_compat.bits().into();

    let log_block_size = geometry.block_size.trailing_zeros() - 10;
    raw.s_log_block_size = log_block_size.into();
    raw.s_log_cluster_size = log_block_size.into();
    raw.s_first_data_block = geometry.first_data_block.into();
    raw.s_blocks_per_group = geometry.blocks_per_group.into();
    raw.s_clusters_per_group = geometry.blocks_per_group.into();
    raw.s_inodes_per_group = geometry.inodes_per_group.into();
    raw.s_inodes_count = (geometry.inodes_per_group * geometry.group_count).into();
    raw.s_inode_size = geometry.inode_size.into();
    if u32::from(geometry.inode_size) > 128 {
        raw.s_min_extra_isize = EXTRA_ISIZE.into();
        raw.s_want_extra_isize = EXTRA_ISIZE.into();
    }
    let (low, high) = split(geometry.blocks_count);
    raw.s_blocks_count_lo = low.into();
    raw.s_blocks_count_hi = high.into();
    let (low, high) = split(geometry.reserved_blocks);
    raw.s_r_blocks_count_lo = low.into();
    raw.s_r_blocks_count_hi = high.into();

    if features.incompat.contains(Incompat::SIXTY_FOUR_BIT) {
        raw.s_desc_size = geometry.desc_size.into();
    }
    raw.s_reserved_gdt_blocks = geometry.reserved_gdt_blocks.into();
    if features.incompat.contains(Incompat::FLEX_BG) {
        raw.s_log_groups_per_flex = LOG_GROUPS_PER_FLEX;
    }
    if features.compat.contains(Compat::SPARSE_SUPER2) {
        raw.s_backup_bgs = geometry.backup_groups.map(Into::into);
    }
}

fn split(number: u64) -> (u32, u32) {
    (number as u32, (number >> 32) as u32)
}
