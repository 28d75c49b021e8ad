//! From an image to a file system that can be looked at: the superblock, and the journal, which is
//! replayed in memory if the image was not closed properly.

use std::ops::ControlFlow;

use pagefence_block_io::Device;
use pagefence_ext4_format::features::{Compat, Incompat};
use pagefence_ext4_format::superblock::{State as SuperblockState, Superblock};
use pagefence_jbd2::JournalError;
use pagefence_lock_order::primitives::Arc;

use super::report::Report;
use super::{CACHE_BYTES, CheckError, Checker, Event, Step, Stop, Summary};
use crate::instance::Instance;
use crate::journal_location::{LocateError, locate};
use crate::mount::{MountError, MountOptions, read_superblock};
use crate::recovery::{Recovered, recover};
use crate::support;

/// What a device shows of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// What somebody left on disk: a journal may have to be replayed.
    OnDisk,
    /// What is in use, as of a commit, all of it in its place: the journal is not for us to read.
    Committed,
}

/// Checks the file system on `device`.
pub(super) fn check(
    device: Arc<dyn Device>,
    state: State,
    options: &MountOptions,
    event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Summary, CheckError> {
    let mut report = Report::new(event);
    let opened = open(device, state, options, &mut report);
    let (instance, was_replayed) = match opened {
        Ok(Some(opened)) => opened,
        Ok(None) | Err(Stop::Enough) => {
            return Ok(Summary {
                findings: report.findings(),
                ..Summary::default()
            });
        }
        Err(Stop::Failed(error)) => return Err(error),
    };
    let mut checker = Checker::new(instance, report);
    checker.summary.was_replayed = was_replayed;
    let is_valid = (checker.instance.superblock.state()).contains(SuperblockState::VALID);
    checker.is_closed = state == State::OnDisk && is_valid && !was_replayed;
    let is_complete = match checker.run() {
        Ok(()) => true,
        Err(Stop::Enough) => false,
        Err(Stop::Failed(error)) => return Err(error),
    };
    Ok(Summary {
        findings: checker.report.findings(),
        is_complete,
        ..checker.summary
    })
}

/// The file system, and whether its journal was replayed; nothing if it is too damaged.
fn open(
    device: Arc<dyn Device>,
    state: State,
    options: &MountOptions,
    report: &mut Report<'_>,
) -> Step<Option<(Instance, bool)>> {
    let failed = |error: MountError| Stop::Failed(error.into());
    let superblock = match read_superblock(&*device, options) {
        Ok(superblock) => superblock,
        Err(MountError::Superblock { what, .. }) => {
            report.superblock(what)?;
            return Ok(None);
        }
        Err(error @ MountError::CutOff { .. }) => {
            report.superblock(error)?;
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let unreadable = support::unreadable(&superblock);
    if !unreadable.is_empty() {
        return Err(failed(MountError::Unsupported(unreadable)));
    }
    if state == State::Committed {
        let instance = Instance::new(superblock, device, CACHE_BYTES)
            .ok_or(Stop::Failed(CheckError::BlockSize))?;
        return Ok(Some((instance, false)));
    }
    check_journal(&*device, &superblock, report)?;
    let asks = superblock.has_incompat(Incompat::RECOVER);
    let recovered = match recover(Arc::clone(&device), superblock.clone(), false, options) {
        Ok(recovered) => {
            for note in &recovered.notes {
                report.journal(note)?;
            }
            recovered
        }
        Err(error @ (MountError::Device(_) | MountError::Unsupported(_))) => {
            return Err(failed(error));
        }
        Err(error) => {
            report.journal(format_args!("{error}; what follows was found without it"))?;
            Recovered {
                device,
                superblock,
                notes: Vec::new(),
                read_only: None,
            }
        }
    };
    let instance = Instance::new(recovered.superblock, recovered.device, CACHE_BYTES)
        .ok_or(Stop::Failed(CheckError::BlockSize))?;
    Ok(Some((instance, asks)))
}

/// The journal of an image that is not to be recovered; one that is, recovery looks at.
fn check_journal(device: &dyn Device, superblock: &Superblock, report: &mut Report<'_>) -> Step {
    let asks = superblock.has_incompat(Incompat::RECOVER);
    let raw = superblock.raw();
    let names_inode = raw.s_journal_inum.get() != 0;
    let names_device = raw.s_journal_dev.get() != 0 || raw.s_journal_uuid != [0; 16];
    if !superblock.has_compat(Compat::HAS_JOURNAL) {
        return if asks {
            report.superblock("it asks for recovery, and has no journal")
        } else if names_inode || raw.s_journal_uuid != [0; 16] {
            report.superblock("it names a journal, and has none")
        } else {
            Ok(())
        };
    }
    if names_inode && names_device {
        report.superblock("it names a journal both in an inode and on another device")?;
    }
    let Some(number) = superblock.journal_inode() else {
        return if names_device {
            Ok(())
        } else {
            report.superblock("it has a journal, and does not say where")
        };
    };
    let location = match locate(device, superblock, number) {
        Ok(location) => location,
        Err(LocateError::Device(error)) => return Err(error.into()),
        Err(error) => return report.journal(error),
    };
    match pagefence_jbd2::read_superblock(device, &location) {
        Ok((journal, _)) => {
            if let Some(users @ 2..) = journal.users {
                report.journal(format_args!(
                    "{users} file systems use it, and it lies in this one"
                ))?;
            }
            // Where too little would be left, nothing is taken for them.
            if journal.format.features.fast_commit() && journal.end == journal.length_blocks {
                report.journal("its area for fast commits leaves too few blocks")?;
            }
        }
        Err(JournalError::Device(error)) => return Err(error.into()),
        // What is wrong with it is told below, or by recovery.
        Err(_) => {}
    }
    if asks {
        return Ok(());
    }
    match pagefence_jbd2::recover(device, &location) {
        Ok(recovery) if !recovery.is_clean() => {
            report.journal("it holds changes, and the superblock does not ask for recovery")
        }
        Ok(recovery) if recovery.errno() != 0 => report.journal(format_args!(
            "it was aborted with error {}",
            recovery.errno()
        )),
        Ok(_) => Ok(()),
        Err(JournalError::Device(error)) => Err(error.into()),
        Err(error) => report.journal(error),
    }
}
