//! Bringing a file system that was not closed properly to a sound state.
//!
//! ```text
//! journal        where the journal lies; its replay, in memory or on disk
//! superblock     what recovery reads from the superblock and writes into it
//! store          where the transactions of recovery go
//! fast_commit    what fast commits say
//! ```
//!
//! What it changes it changes by the rooms of [`crate::change`].
//!
//! Read-only, everything happens in an overlay in memory. Otherwise the journal is written back,
//! then orphans are dealt with, then the superblock stops asking for recovery: cut off at any
//! moment, recovery starts over and ends the same (`docs/CRASH.md`).

mod fast_commit;
mod journal;
mod store;
mod superblock;

use pagefence_block_io::Device;
use pagefence_ext4_format::features::{Compat, Incompat};
use pagefence_ext4_format::superblock::{State, Superblock};
use pagefence_jbd2::JournalLocation;
use pagefence_lock_order::primitives::Arc;

use crate::instance::Instance;
use crate::mount::{MountError, MountOptions};
use crate::orphan::{may_have_orphans, settle_orphans};
use crate::support;

use journal::Journal;
pub(crate) use journal::of_map;
pub(crate) use store::{Store, blocks_of};
pub(crate) use superblock::{mark_error, write as write_superblock};

/// What recovery leaves to open.
pub(crate) struct Recovered {
    /// The device, or a view of it with the journal applied.
    pub(crate) device: Arc<dyn Device>,
    /// The superblock as it is now.
    pub(crate) superblock: Superblock,
    /// What the user should know, a sentence each.
    pub(crate) notes: Vec<String>,
    /// Why it must not be written, in the words of [`support::read_only_because`].
    pub(crate) read_only: Option<String>,
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
        read_only: None,
    };
    let may_write = write && !is_backup;
    let orphans = may_write && may_have_orphans(&recovered.superblock);
    if !has_journal || !(asks || is_backup || may_write) {
        let state = recovered.superblock.state();
        if may_write && !has_journal && !state.intersects(State::VALID | State::ERROR) {
            recovered.notes.push(
                "the file system was not closed properly, and has no journal that would put it \
                 right: run e2fsck on it"
                    .to_owned(),
            );
        }
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
        recovered.read_only = Some(
            "the journal holds changes, but the superblock does not ask for recovery: run e2fsck \
             on it"
                .to_owned(),
        );
        return Ok(recovered);
    }
    // The journal may have brought a superblock with other features.
    let unreadable = support::unreadable(&recovered.superblock);
    if !unreadable.is_empty() {
        return Err(MountError::Unsupported(unreadable));
    }
    if may_write && (asks || orphans) {
        let store = journal.into_store(Arc::clone(&recovered.device));
        finish(&mut recovered, &store)?;
    }
    Ok(recovered)
}

/// Where the journal lies, if there is one.
///
/// # Errors
/// It is damaged or elsewhere; the device failed.
pub(crate) fn journal_of(instance: &Instance) -> Result<Option<JournalLocation>, MountError> {
    let superblock = &instance.superblock;
    if !superblock.has_compat(Compat::HAS_JOURNAL) {
        return Ok(None);
    }
    let inode = superblock
        .journal_inode()
        .ok_or_else(|| journal::external(superblock))?;
    journal::find(&**instance.device(), superblock, inode).map(Some)
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
