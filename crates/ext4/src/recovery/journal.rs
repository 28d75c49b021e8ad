//! The journal inside the file system: where it lies, and its replay.

use pagefence_block_io::{Device, DeviceError};
use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord, InodeFlags, Timestamp};
use pagefence_ext4_format::superblock::Superblock;
use pagefence_jbd2::{Emptied, JournalError, JournalLocation, Recovery};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::Error;

use crate::change::space::Space;
use crate::change::transaction::{Changes, Transaction};
use crate::clock;
use crate::instance::Instance;
use crate::journal_location::{LocateError, locate, locate_by};
use crate::mount::MountError;
use crate::recovery::fast_commit::{Replay, named_blocks};
use crate::recovery::store::{Store, blocks_of, through_journal};
use crate::recovery::{Recovered, superblock};
use crate::system_zones::SystemZones;

/// Metadata kept in memory while fast commits are replayed, in bytes; changed blocks come on top.
const CACHE_BYTES: u64 = 8 << 20;

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
        let overlay = Arc::new(self.recovery.overlay(Arc::clone(&recovered.device)));
        recovered.device = Arc::clone(&overlay) as Arc<dyn Device>;
        if !is_backup {
            let before = &recovered.superblock;
            let mut after = superblock::read(&*recovered.device)?;
            superblock::keep_errors(before, &mut after);
            recovered.superblock = after;
        }
        if self.recovery.fast_commits().is_empty() || is_backup {
            return Ok(());
        }
        let instance = instance_of(recovered)?;
        match self.replay_fast_commits(&instance, &recovered.superblock, None) {
            Ok(changes) => {
                for (block, buffer) in &changes.blocks {
                    overlay.write_block(block.0, buffer)?;
                }
                recovered.superblock = changes.superblock;
            }
            Err(ReplayError::Device(error)) => return Err(error),
            Err(ReplayError::Damaged(what)) => recovered.notes.push(format!(
                "the last changes are not shown, since the fast commits that hold them are \
                 damaged ({what}): run e2fsck"
            )),
        }
        Ok(())
    }

    /// Replays the fast commits on what the full commits left, into one transaction.
    fn replay_fast_commits(
        &self,
        instance: &Instance,
        superblock: &Superblock,
        now: Option<Timestamp>,
    ) -> Result<Changes, ReplayError> {
        let device = &**instance.device();
        let commits = self.recovery.fast_commits();
        let mut excluded = Vec::new();
        commits.visit(device, &self.location, |tag| {
            excluded.extend(named_blocks(&tag));
            Ok::<_, ReplayError>(())
        })?;
        let zones = SystemZones::strict(instance, blocks_of(&self.location))?;
        let space = Space::new(zones, excluded);
        let mut transaction = Transaction::gathered(instance, superblock, usize::MAX, &space);
        let mut replay = Replay::new(&mut transaction, &space, now);
        commits.visit(device, &self.location, |tag| {
            replay.tag(&tag).map_err(ReplayError::from)
        })?;
        replay.finish()?;
        Ok(transaction.finish()?)
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
            let emptied = if self.recovery.fast_commits().is_empty() {
                Emptied::Clean
            } else {
                Emptied::KeepFastCommits
            };
            pagefence_jbd2::write_back(&*device, &self.location, &self.recovery, emptied)
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
        if !self.recovery.fast_commits().is_empty() {
            self.write_back_fast_commits(recovered)?;
        }
        Ok(())
    }

    /// Makes what the fast commits say a transaction, and brings that home.
    fn write_back_fast_commits(&self, recovered: &mut Recovered) -> Result<(), MountError> {
        let instance = instance_of(recovered)?;
        let now = clock::now();
        let changes = self
            .replay_fast_commits(&instance, &recovered.superblock, Some(now))
            .map_err(|error| match error {
                ReplayError::Device(error) => error,
                ReplayError::Damaged(what) => {
                    damaged(format_args!("a fast commit is damaged: {what}"))
                }
            })?;
        through_journal(&*recovered.device, &self.location, &changes)?;
        recovered.superblock = changes.superblock;
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

/// Why fast commits could not be replayed.
enum ReplayError {
    /// The device failed, or there is no memory or room left.
    Device(MountError),
    /// They say what can't be, or the file system is damaged.
    Damaged(String),
}

impl From<Error> for ReplayError {
    fn from(error: Error) -> Self {
        match error {
            Error::Io(_) | Error::OutOfMemory => Self::Device(of_map(error)),
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl From<JournalError> for ReplayError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Device(_) => Self::Device(mount_error(error)),
            other => Self::Damaged(other.to_string()),
        }
    }
}

fn instance_of(recovered: &Recovered) -> Result<Instance, MountError> {
    Instance::new(
        recovered.superblock.clone(),
        Arc::clone(&recovered.device),
        CACHE_BYTES,
    )
    .ok_or_else(|| damaged("blocks of an impossible size"))
}

/// Where the journal lies: by its inode, or by the copy of its map that the superblock keeps if
/// the inode is no journal's (as e2fsck does).
pub(super) fn find(
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
