//! Orphans: inodes that were deleted while open, or whose truncation was not finished. They are
//! on a list, from the superblock from inode to inode, or in the orphan file.
//!
//! Each is settled in one transaction, or in several that leave it an orphan until the last.

use pagefence_ext4_format::features::{Incompat, RoCompat};
use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord, InodeFlags};
use pagefence_ext4_format::superblock::{State, Superblock};
use pagefence_ext4_format::{FileBlock, InodeNo};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Error, Result};

use crate::change::Transaction;
use crate::change::cut::Cut;
use crate::change::free_inode::free_inode;
use crate::change::release_xattrs::release_xattrs;
use crate::change::remove_blocks::{Progress, remove_blocks, zero_tail};
use crate::change::shorten_inline::shorten_inline;
use crate::change::space::Space;
use crate::clock;
use crate::instance::Instance;
use crate::mount::MountError;
use crate::orphan_file::{OrphanEntry, OrphanFile};
use crate::recovery::{Recovered, Store, mark_error, of_map, write_superblock};
use crate::system_zones::SystemZones;

/// Metadata kept in memory while orphans are settled, in bytes; changed blocks come on top.
const CACHE_BYTES: u64 = 8 << 20;

/// Whether the superblock says that there may be orphans.
pub(crate) fn may_have_orphans(superblock: &Superblock) -> bool {
    superblock.last_orphan().is_some() || superblock.has_ro_compat(RoCompat::ORPHAN_PRESENT)
}

/// Deletes the orphans without links, and cuts the others to their size; all changes go to
/// `store`. An entry that makes no sense ends it: the file system is then marked as having errors,
/// as Linux does, and a note says so.
///
/// # Errors
/// The device or the journal failed.
pub(crate) fn settle_orphans(recovered: &mut Recovered, store: &Store) -> Result<(), MountError> {
    if recovered.superblock.state().contains(State::ERROR) {
        recovered.notes.push(
            "deleted files that were open are left, since the file system has errors: run e2fsck"
                .to_owned(),
        );
        return Ok(());
    }
    if store.is_journal() && !recovered.superblock.has_incompat(Incompat::RECOVER) {
        // Before the first transaction: without the flag nobody would replay it.
        let mut features = recovered.superblock.features();
        features.incompat.insert(Incompat::RECOVER);
        recovered.superblock.set_features(features);
        write_superblock(&*recovered.device, &mut recovered.superblock)?;
    }
    let instance = Instance::new(
        recovered.superblock.clone(),
        Arc::clone(&recovered.device),
        CACHE_BYTES,
    )
    .ok_or_else(|| MountError::Damaged("blocks of an impossible size".to_owned()))?;
    let mut at = InodeNo(0);
    let outcome = match SystemZones::strict(&instance, store.journal_blocks()) {
        Ok(zones) => {
            let space = Space::new(zones, Vec::new());
            let mut orphans = Orphans {
                instance: &instance,
                store,
                superblock: recovered.superblock.clone(),
                space: &space,
                at,
                deleted: 0,
                truncated: 0,
            };
            let outcome = orphans.settle_all();
            at = orphans.at;
            tracing::info!(
                deleted = orphans.deleted,
                truncated = orphans.truncated,
                "orphans settled"
            );
            recovered.superblock = orphans.superblock;
            outcome
        }
        Err(error) => Err(Failure::Entry(error)),
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(Failure::Mount(error)) => Err(error),
        Err(Failure::Entry(Error::Corrupt { what, place })) => {
            recovered.notes.push(format!(
                "the orphans could not all be dealt with, since the file system is damaged at \
                 {place} ({what}): run e2fsck"
            ));
            let superblock = &mut recovered.superblock;
            superblock.set_last_orphan(None);
            mark_error(superblock, "orphan", at.0);
            write_superblock(&*recovered.device, superblock)
        }
        Err(Failure::Entry(error)) => Err(of_map(error)),
    }
}

/// Why it ended early.
enum Failure {
    /// An orphan, or what leads to it.
    Entry(Error),
    /// Its changes could not be made durable.
    Mount(MountError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Entry(error)
    }
}

/// Where an orphan is listed.
#[derive(Clone, Copy)]
enum Listed<'a> {
    InList,
    InFile(&'a OrphanFile, OrphanEntry),
}

struct Orphans<'a> {
    instance: &'a Instance,
    store: &'a Store,
    superblock: Superblock,
    space: &'a Space,
    /// The orphan in work.
    at: InodeNo,
    deleted: u64,
    truncated: u64,
}

impl<'a> Orphans<'a> {
    fn settle_all(&mut self) -> Result<(), Failure> {
        // Each step takes the first off the list and leaves it without a successor, so a list
        // that goes round in a circle ends.
        while let Some(inode) = self.superblock.last_orphan() {
            self.settle(inode, Listed::InList)?;
        }
        if let Some(number) = self.superblock.orphan_file_inode()
            && self.superblock.has_ro_compat(RoCompat::ORPHAN_PRESENT)
        {
            let file = OrphanFile::open(self.instance, number)?;
            for entry in file.entries(self.instance)? {
                self.settle(entry.inode, Listed::InFile(&file, entry))?;
            }
        }
        // Written when recovery is finished.
        let mut features = self.superblock.features();
        features.ro_compat.remove(RoCompat::ORPHAN_PRESENT);
        self.superblock.set_features(features);
        Ok(())
    }

    fn settle(&mut self, inode: InodeNo, listed: Listed<'_>) -> Result<(), Failure> {
        self.at = inode;
        loop {
            let mut record = self.read(inode)?;
            let next = record.orphan_next();
            let mut transaction = Transaction::gathered(
                self.instance,
                &self.superblock,
                self.store.blocks_max(),
                self.space,
            );
            let deletes = record.links() == 0;
            let progress = if deletes {
                self.delete(&mut transaction, &mut record)?
            } else {
                self.shorten(&mut transaction, &mut record)?
            };
            // In place, blocks must be gone before the inode stops being an orphan, else e2fsck
            // would take them for the file's.
            let by_itself = !self.store.is_journal() && !transaction.is_empty();
            if progress == Progress::More || by_itself {
                transaction.write_inode(&mut record)?;
                self.commit(transaction)?;
                continue;
            }
            match listed {
                Listed::InList => transaction.set_last_orphan(next),
                Listed::InFile(file, entry) => file.clear(&mut transaction, &entry)?,
            }
            if deletes {
                self.deleted += 1;
                free_inode(&mut transaction, &mut record, clock::seconds())?;
            } else {
                self.truncated += 1;
                if matches!(listed, Listed::InList) {
                    record.set_orphan_next(None);
                }
                transaction.write_inode(&mut record)?;
            }
            return self.commit(transaction);
        }
    }

    /// The orphan's record, if the inode can be an orphan: in use, for files, and with something
    /// to cut off if it still has a name.
    fn read(&self, inode: InodeNo) -> Result<InodeRecord> {
        let superblock = &self.instance.superblock;
        let bad = |what: &str| Err(self.instance.damaged(inode, None, what));
        if inode < superblock.first_inode() || inode.0 > superblock.inodes_count() {
            return bad("it is listed as an orphan, and is not for files");
        }
        if !self.instance.is_inode_in_use(inode)? {
            return bad("it is listed as an orphan, and is free");
        }
        let record = self.instance.read_inode(inode)?;
        let can_be_cut = match record.kind() {
            Some(FileKind::Regular | FileKind::Directory) => true,
            Some(FileKind::Symlink) => !record.is_fast_symlink(),
            _ => false,
        };
        if record.kind().is_none() || (record.links() > 0 && !can_be_cut) {
            return bad("it is listed as an orphan, and is none");
        }
        Ok(record)
    }

    fn delete(
        &self,
        transaction: &mut Transaction<'a>,
        record: &mut InodeRecord,
    ) -> Result<Progress> {
        match take_away(transaction, record, FileBlock(0))? {
            Progress::Done => release_xattrs(transaction, record, clock::seconds()),
            Progress::More => Ok(Progress::More),
        }
    }

    fn shorten(
        &self,
        transaction: &mut Transaction<'a>,
        record: &mut InodeRecord,
    ) -> Result<Progress> {
        if record.flags().contains(InodeFlags::INLINE_DATA) {
            shorten_inline(self.instance, record)?;
            return Ok(Progress::Done);
        }
        let block_size = u64::from(self.instance.superblock.block_size());
        // A file whose size reaches past the last file block has nothing behind it.
        if let Ok(from) = u32::try_from(record.size().div_ceil(block_size))
            && take_away(transaction, record, FileBlock(from))? == Progress::More
        {
            return Ok(Progress::More);
        }
        zero_tail(transaction, record)?;
        let time = clock::now();
        record.set_mtime(time);
        record.set_ctime(time);
        Ok(Progress::Done)
    }

    fn commit(&mut self, transaction: Transaction<'_>) -> Result<(), Failure> {
        self.superblock = self.store.commit(transaction).map_err(Failure::Mount)?;
        Ok(())
    }
}

/// Takes away the blocks from `from` on, as nobody has the file open who is not mounted.
fn take_away(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    from: FileBlock,
) -> Result<Progress> {
    let proof = transaction.recovering().ok_or(Error::ReadOnly)?;
    let mut cut = Cut::while_recovering(proof, record.clone());
    let progress = remove_blocks(transaction, &mut cut, from)?;
    *record = cut.into_record();
    Ok(progress)
}
