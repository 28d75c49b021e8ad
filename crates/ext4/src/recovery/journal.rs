//! The journal inside the file system: where it lies, and its replay.

use pagefence_block_io::{Device, DeviceError};
use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord, InodeFlags};
use pagefence_ext4_format::superblock::Superblock;
use pagefence_jbd2::{Emptied, JournalError, JournalLocation, Recovery};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::Error;

use crate::journal_location::{LocateError, locate, locate_by};
use crate::mount::MountError;
use crate::recovery::store::Store;
use crate::recovery::{Recovered, superblock};

const ADVICE: &str = "run e2fsck on a copy of the image";

/// Why the journal of `superblock`, which lies on another device, can't be replayed.
pub(super) fn external(superblock: &Superblock) -> MountError {
    let uuid = uuid::Uuid::from_bytes(superblock.raw().s_journal_uuid);
    MountError::Journal {
        reason: format!("it lies on another device, the one with the UUID {uuid}"),
        advice: "replay it with e2fsck -j, where that device is at hand",
    }
}

fn damaged(reason: impl std::fmt::Display) -> MountError {
    MountError::Journal {
        reason: reason.to_string(),
        advice: ADVICE,
    }
}

/// An error of the journal as one of opening.
pub(super) fn mount_error(error: JournalError) -> MountError {
    match error {
        JournalError::Device(error) => error.into(),
        other => damaged(other),
    }
}

/// The journal of a file system, and what it holds.
#[derive(Debug)]
pub(super) struct Journal {
    location: JournalLocation,
    recovery: Recovery,
}

impl Journal {
    /// Finds the journal in `inode` and looks what it holds.
    ///
    /// # Errors
    /// See [`super::recover`].
    pub(super) fn open(
        device: &Arc<dyn Device>,
        superblock: &Superblock,
        inode: InodeNo,
    ) -> Result<Self, MountError> {
        let location = find(&**device, superblock, inode)?;
        let recovery = pagefence_jbd2::recover(&**device, &location).map_err(mount_error)?;
        Ok(Self { location, recovery })
    }

    /// Whether it holds nothing.
    pub(super) fn is_clean(&self) -> bool {
        self.recovery.is_clean()
    }

    /// Where changes go that are made after the replay.
    pub(super) fn into_store(self, device: Arc<dyn Device>) -> Store {
        Store::Journal {
            device,
            location: self.location,
        }
    }

    /// Applies the journal in memory. A file system opened by a backup of its superblock goes on
    /// with that backup.
    pub(super) fn apply_in_memory(
        &self,
        recovered: &mut Recovered,
        is_backup: bool,
    ) -> Result<(), MountError> {
        self.note_damage(&mut recovered.notes);
        if self.recovery.is_clean() {
            return Ok(());
        }
        recovered.device = Arc::new(self.recovery.overlay(Arc::clone(&recovered.device)));
        if !is_backup {
            let before = &recovered.superblock;
            let mut after = superblock::read(&*recovered.device)?;
            superblock::keep_errors(before, &mut after);
            recovered.superblock = after;
        }
        Ok(())
    }

    /// Brings home what the journal holds, and empties it. The superblock goes on asking for
    /// recovery.
    pub(super) fn write_back(&self, recovered: &mut Recovered) -> Result<(), MountError> {
        if let Some(sequence) = self.recovery.damaged() {
            // Linux refuses as well: what the lost transactions changed is half known at best.
            return Err(MountError::Journal {
                reason: format!("transaction {sequence} is damaged"),
                advice: "mount it ro to read what was there before it, or run e2fsck on a copy \
                         of the image",
            });
        }
        let device = Arc::clone(&recovered.device);
        if !self.recovery.is_clean() {
            tracing::info!(
                transactions = self.recovery.transactions(),
                blocks = self.recovery.replacements().len(),
                "replaying the journal"
            );
            pagefence_jbd2::write_back(&*device, &self.location, &self.recovery, Emptied::Clean)
                .map_err(mount_error)?;
        }
        let mut after = superblock::read(&*device)?;
        let mut changed = superblock::keep_errors(&recovered.superblock, &mut after);
        let errno = self.recovery.errno();
        if errno != 0 {
            superblock::mark_error(&mut after, "journal", 0);
            changed = true;
        }
        if changed {
            superblock::write(&*device, &mut after)?;
        }
        if errno != 0 {
            // The superblock knows now, so the journal may forget.
            pagefence_jbd2::set_errno(&*device, &self.location, 0).map_err(mount_error)?;
        }
        self.note_damage(&mut recovered.notes);
        recovered.superblock = after;
        Ok(())
    }

    fn note_damage(&self, notes: &mut Vec<String>) {
        if self.recovery.errno() != 0 {
            notes.push(format!(
                "the journal records error {} of an earlier mount: run e2fsck",
                -i64::from(self.recovery.errno())
            ));
        }
        if let Some(sequence) = self.recovery.damaged() {
            notes.push(format!(
                "transaction {sequence} in the journal is damaged: it and all later changes are \
                 not shown; run e2fsck"
            ));
        }
    }
}

/// Where the journal lies: by its inode, or by the copy of its map that the superblock keeps if
/// the inode is no journal's (as e2fsck does).
fn find(
    device: &dyn Device,
    superblock: &Superblock,
    inode: InodeNo,
) -> Result<JournalLocation, MountError> {
    let error = match locate(device, superblock, inode) {
        Err(LocateError::Device(error)) => return Err(error.into()),
        Err(error) => error,
        Ok(location) => return Ok(location),
    };
    if let Some(backup) = backup_record(superblock, inode)
        && let Ok(location) = locate_by(device, superblock, &backup)
    {
        tracing::warn!(%error, "the journal's inode is damaged: going by the superblock's copy");
        return Ok(location);
    }
    Err(damaged(error))
}

/// A record with the map that the superblock keeps a copy of.
fn backup_record(superblock: &Superblock, inode: InodeNo) -> Option<InodeRecord> {
    let (map, size) = superblock.journal_backup()?;
    let mut record = InodeRecord::create(inode, superblock, FileKind::Regular, 0o600, 0);
    record.set_size(size);
    for (to, from) in record.block_area_mut().chunks_exact_mut(4).zip(map) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    // Nothing says which kind of map it is, but its own first bytes.
    let is_extents = map.first().is_some_and(|word| *word & 0xFFFF == 0xF30A);
    if is_extents {
        record.set_flags(record.flags() | InodeFlags::EXTENTS);
    }
    Some(record)
}

/// Why metadata can't be read or written, as an error of opening.
pub(crate) fn of_map(error: Error) -> MountError {
    match error {
        Error::Io(error) => match error.downcast::<DeviceError>() {
            Ok(error) => error.into(),
            Err(error) => damaged(error),
        },
        other => damaged(other),
    }
}
