//! Bringing a file system that was not closed properly to a sound state.
//!
//! ```text
//! journal        where the journal lies; its replay, in memory or on disk
//! superblock     what recovery reads from the superblock and writes into it
//!
//! transaction    changes that belong together       store    where they go
//! free_blocks  free_inode                            bitmaps, descriptors, counts
//! remove_blocks: remove_extents, remove_block_map    the end of a file
//! release_xattrs  shorten_inline                     attributes, data in the inode
//!
//! fast_commit    what fast commits say
//! space  extent_tree  append_block                   blocks taken, mapped, added
//! change_dir  split_htree                            names put in and taken out
//! ```
//!
//! Read-only, everything happens in an overlay in memory. Otherwise the journal is written back,
//! then orphans are dealt with, then the superblock stops asking for recovery: cut off at any
//! moment, recovery starts over and ends the same (`docs/CRASH.md`).

mod append_block;
mod change_dir;
mod extent_tree;
mod fast_commit;
mod free_blocks;
mod free_inode;
mod journal;
mod release_xattrs;
mod remove_block_map;
mod remove_blocks;
mod remove_extents;
mod shorten_inline;
mod space;
mod split_htree;
mod store;
mod superblock;
mod transaction;

use pagefence_block_io::Device;
use pagefence_ext4_format::features::{Compat, Incompat};
use pagefence_ext4_format::superblock::Superblock;
use pagefence_lock_order::primitives::Arc;

use crate::mount::{MountError, MountOptions};
use crate::orphan::{may_have_orphans, settle_orphans};
use crate::support;

pub(crate) use free_inode::free_inode;
use journal::Journal;
pub(crate) use journal::of_map;
pub(crate) use release_xattrs::release_xattrs;
pub(crate) use remove_blocks::{Progress, remove_blocks, zero_tail};
pub(crate) use shorten_inline::shorten_inline;
pub(crate) use store::Store;
pub(crate) use superblock::{mark_error, timestamp, write as write_superblock};
pub(crate) use transaction::Transaction;

/// What recovery leaves to open.
pub(crate) struct Recovered {
    /// The device, or a view of it with the journal applied.
    pub(crate) device: Arc<dyn Device>,
    /// The superblock as it is now.
    pub(crate) superblock: Superblock,
    /// What the user should know, a sentence each.
    pub(crate) notes: Vec<String>,
}

/// Recovers the file system of `superblock` on `device`: on the device with `write`, else in
/// memory. Does nothing if there is nothing to do.
///
/// # Errors
/// The journal can't be replayed: [`MountError::Journal`] says why. The device failed. With
/// `write`, recovery may have come a part of the way, and can be started over.
pub(crate) fn recover(
    device: Arc<dyn Device>,
    superblock: Superblock,
    write: bool,
    options: &MountOptions,
) -> Result<Recovered, MountError> {
    // A backup is never up to date: it does not know whether the journal holds something, and
    // what the journal says of the superblock is not for it.
    let is_backup = options.superblock.is_some() || is_backup(&superblock);
    let asks = superblock.has_incompat(Incompat::RECOVER);
    let has_journal = superblock.has_compat(Compat::HAS_JOURNAL);
    let mut recovered = Recovered {
        device,
        superblock,
        notes: Vec::new(),
    };
    let may_write = write && !is_backup;
    let orphans = may_write && may_have_orphans(&recovered.superblock);
    if !has_journal || !(asks || is_backup || orphans) {
        if orphans || (may_write && asks) {
            let device = Arc::clone(&recovered.device);
            finish(&mut recovered, &Store::InPlace { device })?;
        }
        return Ok(recovered);
    }
    let Some(inode) = recovered.superblock.journal_inode() else {
        return if asks {
            Err(journal::external(&recovered.superblock))
        } else {
            Ok(recovered)
        };
    };
    let journal = Journal::open(&recovered.device, &recovered.superblock, inode)?;
    if !may_write {
        journal.apply_in_memory(&mut recovered, is_backup)?;
    } else if asks {
        journal.write_back(&mut recovered)?;
    } else if !journal.is_clean() {
        // Linux would empty such a journal unread; e2fsck asks.
        recovered.notes.push(
            "the journal holds changes, but the superblock does not ask for recovery: nothing \
             was changed; run e2fsck"
                .to_owned(),
        );
        return Ok(recovered);
    }
    // The journal may have brought a superblock with other features.
    let unreadable = support::unreadable(&recovered.superblock);
    if !unreadable.is_empty() {
        return Err(MountError::Unsupported(unreadable));
    }
    if may_write {
        let store = journal.into_store(Arc::clone(&recovered.device));
        finish(&mut recovered, &store)?;
    }
    Ok(recovered)
}

/// What follows the replay on disk.
fn finish(recovered: &mut Recovered, store: &Store) -> Result<(), MountError> {
    if support::read_only_because(&recovered.superblock).is_some() {
        // The journal brought a feature with which nothing more may be written.
        return Ok(());
    }
    if may_have_orphans(&recovered.superblock) {
        settle_orphans(recovered, store)?;
    }
    superblock::finish(recovered)
}

/// Whether this is a copy of the superblock from another group than the first.
fn is_backup(superblock: &Superblock) -> bool {
    superblock.raw().s_block_group_nr.get() != 0
}
