//! Superblocks made by hand, for tests that need no image.

use zerocopy::{FromZeros, IntoBytes};

use crate::features::Features;
use crate::superblock::{MAGIC, RawSuperblock, Superblock};

/// Fields of a file system of 64 MiB: blocks of 1 KiB, 8 groups, inodes of 256 bytes, and what
/// `mke2fs` gives ext4 by default.
pub(crate) fn sample_raw() -> RawSuperblock {
    let mut features = Features::default();
    let list = "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,\
                sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
    features.edit(list).expect("known names");
    let mut raw = RawSuperblock::new_zeroed();
    raw.s_inodes_count = (8 * 2048).into();
    raw.s_blocks_count_lo = 65536.into();
    raw.s_first_data_block = 1.into();
    raw.s_blocks_per_group = 8192.into();
    raw.s_clusters_per_group = 8192.into();
    raw.s_inodes_per_group = 2048.into();
    raw.s_magic = MAGIC.into();
    raw.s_rev_level = 1.into();
    raw.s_first_ino = 11.into();
    raw.s_inode_size = 256.into();
    raw.s_feature_compat = features.compat.bits().into();
    raw.s_feature_incompat = features.incompat.bits().into();
    raw.s_feature_ro_compat = features.ro_compat.bits().into();
    raw.s_uuid = *b"0123456789abcdef";
    raw.s_reserved_gdt_blocks = 256.into();
    raw.s_desc_size = 64.into();
    raw.s_want_extra_isize = 32.into();
    raw.s_min_extra_isize = 32.into();
    raw.s_log_groups_per_flex = 4;
    raw.s_checksum_type = 1;
    raw
}

/// The bytes of [`sample_raw`] after `change`, with a right checksum.
pub(crate) fn sample_bytes(change: impl FnOnce(&mut RawSuperblock)) -> Vec<u8> {
    let mut raw = sample_raw();
    change(&mut raw);
    raw.s_checksum = raw.compute_checksum().into();
    raw.as_bytes().to_vec()
}

/// A superblock of [`sample_raw`] after `change`, which must leave it valid.
pub(crate) fn sample(change: impl FnOnce(&mut RawSuperblock)) -> Superblock {
    Superblock::parse(&sample_bytes(change), None).expect("a valid superblock")
}

/// Adds and removes features of a raw superblock, as `mke2fs -O` would.
pub(crate) fn edit_features(raw: &mut RawSuperblock, list: &str) {
    let mut features = raw.features();
    features.edit(list).expect("known names");
    raw.s_feature_compat = features.compat.bits().into();
    raw.s_feature_incompat = features.incompat.bits().into();
    raw.s_feature_ro_compat = features.ro_compat.bits().into();
}
