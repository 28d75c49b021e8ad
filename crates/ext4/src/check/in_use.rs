//! Checking a file system that is in use: of what a snapshot shows, while others go on.

use std::ops::ControlFlow;

use pagefence_jbd2::{Snapshot, Tid};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{CheckEvent, CheckProgress, CheckSummary, Error};

use super::opening::{self, State};
use super::{CheckError, Event, Summary};
use crate::filesystem::FileSystem;
use crate::live::{Live, Need, journal_error};
use crate::mount::MountOptions;

/// Bytes of metadata that are kept for a check because they changed since it began, at most.
const KEPT_MAX: u64 = 256 << 20;

impl FileSystem {
    /// Checks all of the file system as of a commit that this starts, while it is in use: nobody
    /// waits for the check, but for that commit as for any other. What is found is what somebody
    /// would find who had the image as it was then, all of that commit in its place.
    ///
    /// `event` is told each finding as it is made, and progress, with no lock held; if it breaks, the
    /// check ends there and is not complete. A file system that was opened read-only is checked as
    /// [`check_device`](super::check_device) does it. Takes, in the beginning, a handle.
    ///
    /// # Errors
    /// See [`CheckError`]: [`CheckError::InUse`] while another check goes on, and
    /// [`CheckError::Snapshot`] if more metadata changes meanwhile than can be kept. Damage is a
    /// finding and no error.
    pub fn check(
        &self,
        event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Summary, CheckError> {
        self.check_within(KEPT_MAX, event)
    }

    /// See [`pagefence_vfs::FileSystem::check`].
    pub(crate) fn check_and_tell(
        &self,
        event: &mut dyn FnMut(CheckEvent<'_>) -> ControlFlow<()>,
    ) -> Result<CheckSummary, Error> {
        let checked = self.check(&mut |now| match now {
            Event::Finding(finding) => event(CheckEvent::Finding(finding)),
            Event::Progress(progress) => event(CheckEvent::Progress(CheckProgress {
                stage: &progress.stage,
                done: progress.done,
                total: progress.total,
            })),
        });
        match checked {
            Ok(summary) => Ok(summary.into()),
            Err(CheckError::InUse) => Err(Error::Busy),
            Err(CheckError::Commit(error)) => Err(error),
            Err(other) => Err(Error::Io(std::io::Error::other(other))),
        }
    }

    /// As [`Self::check`], keeping `bytes_max` at most of what changes.
    pub(crate) fn check_within(
        &self,
        bytes_max: u64,
        event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Summary, CheckError> {
        let options = MountOptions::default();
        let Some(live) = &self.instance.live else {
            let device = Arc::clone(self.instance.device());
            return opening::check(device, State::OnDisk, &options, event);
        };
        let snapshot = self.snapshot(live, bytes_max)?;
        let device: Arc<dyn pagefence_block_io::Device> = Arc::clone(&snapshot) as _;
        let checked = opening::check(device, State::Committed, &options, event);
        if let Some(lost) = snapshot.lost() {
            return Err(CheckError::Snapshot(lost));
        }
        // After an abort others than the journal write to the superblock.
        if live.is_aborted() {
            return Err(CheckError::Aborted);
        }
        checked
    }

    /// A snapshot of all metadata, as of a commit that is sound in itself and in which the superblock
    /// is up to date.
    pub(crate) fn snapshot(
        &self,
        live: &Live,
        bytes_max: u64,
    ) -> Result<Arc<Snapshot>, CheckError> {
        let failed = |error: Error| match error {
            Error::ReadOnly => CheckError::Aborted,
            other => CheckError::Commit(other),
        };
        let instance = &self.instance;
        let _none = live.unsound.keep_out();
        let tid = {
            let mut held = Held::at_entry();
            let (mut transaction, _held) =
                instance.begin(&mut held, Need::RECORD).map_err(failed)?;
            transaction.defer(instance.superblock.superblock_block());
            let tid = transaction.tid();
            transaction.end();
            tid
        };
        live.journal
            .snapshot(Tid(tid), bytes_max)
            .map_err(|error| match error {
                pagefence_jbd2::JournalError::SnapshotInUse => CheckError::InUse,
                other => failed(journal_error(other)),
            })
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
