//! Which features are served, and how: the code behind `docs/FORMAT.md`.

use pagefence_ext4_format::features::{Compat, Features, Incompat, RoCompat};
use pagefence_ext4_format::superblock::{State, Superblock};

/// Features that must be known before anything is read, and are.
const READABLE: Incompat = Incompat::FILETYPE
    .union(Incompat::RECOVER)
    .union(Incompat::META_BG)
    .union(Incompat::EXTENTS)
    .union(Incompat::SIXTY_FOUR_BIT)
    .union(Incompat::MMP)
    .union(Incompat::FLEX_BG)
    .union(Incompat::EA_INODE)
    .union(Incompat::CSUM_SEED)
    .union(Incompat::LARGE_DIR)
    .union(Incompat::INLINE_DATA)
    .union(Incompat::ENCRYPT)
    .union(Incompat::CASEFOLD);

/// Features with which an image may be recovered on disk.
pub(crate) const WRITABLE: RoCompat = RoCompat::SPARSE_SUPER
    .union(RoCompat::LARGE_FILE)
    .union(RoCompat::BTREE_DIR)
    .union(RoCompat::HUGE_FILE)
    .union(RoCompat::GDT_CSUM)
    .union(RoCompat::DIR_NLINK)
    .union(RoCompat::EXTRA_ISIZE)
    .union(RoCompat::METADATA_CSUM)
    .union(RoCompat::PROJECT)
    .union(RoCompat::VERITY)
    .union(RoCompat::ORPHAN_PRESENT);

/// The largest blocks that are written: a page.
const BLOCK_SIZE_MAX: u32 = 4096;

/// The features that keep the file system from being read at all, by name.
pub(crate) fn unreadable(superblock: &Superblock) -> Vec<String> {
    names(Features {
        incompat: superblock.features().incompat.difference(READABLE),
        ..Features::default()
    })
}

/// What keeps the file system from being written, as the end of "it is read-only, because …".
pub(crate) fn read_only_because(superblock: &Superblock) -> Option<String> {
    let unwritable = names(Features {
        ro_compat: superblock.features().ro_compat.difference(WRITABLE),
        ..Features::default()
    });
    if !unwritable.is_empty() {
        return Some(format!(
            "writing with {} is not supported",
            unwritable.join(", ")
        ));
    }
    if superblock.has_incompat(Incompat::MMP) {
        return Some("writing with mmp is not supported".to_owned());
    }
    if superblock.raw().s_block_group_nr.get() != 0 {
        return Some("its superblock was restored from a backup: run e2fsck on it".to_owned());
    }
    if superblock.has_compat(Compat::HAS_JOURNAL) && superblock.journal_inode().is_none() {
        return Some("its journal is on another device".to_owned());
    }
    None
}

/// What keeps the file system from being written once it is recovered, in the same words.
pub(crate) fn unwritable_because(superblock: &Superblock) -> Option<String> {
    if superblock.block_size() > BLOCK_SIZE_MAX {
        return Some(format!(
            "writing with blocks of {} bytes is not supported",
            superblock.block_size()
        ));
    }
    if superblock.state().contains(State::ERROR) {
        return Some("errors were found in it: run e2fsck on it".to_owned());
    }
    read_only_because(superblock)
}

pub(crate) fn names(features: Features) -> Vec<String> {
    features.names()
}
