//! How damage and failed I/O become errors of the interface, and one log line each.

use std::io;

use hashbrown::HashSet;
use pagefence_block_io::DeviceError;
use pagefence_ext4_format::{BlockNo, Corruption, InodeNo};
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_vfs::{Error, Place};

/// Findings that are remembered so that each is logged once; past that number all are logged no
/// more, which bounds both memory and the log.
const REMEMBERED: usize = 4096;

/// Logs each place and kind of damage once.
#[derive(Debug, Default)]
pub(crate) struct DamageLog {
    seen: Mutex<HashSet<(Place, String)>>,
}

impl DamageLog {
    /// Logs the finding, unless it has been logged, and makes it an error.
    pub(crate) fn report(&self, place: Place, what: impl std::fmt::Display) -> Error {
        let what = what.to_string();
        let is_new = {
            let mut seen = self.seen.lock();
            seen.len() < REMEMBERED && seen.insert((place, what.clone()))
        };
        // Not under the lock: where the line goes to may be slow.
        if is_new {
            tracing::error!(target: "pagefence::damage", "damaged: {place}: {what}");
        }
        Error::Corrupt { what, place }
    }
}

/// Where a finding was made.
pub(crate) fn place(inode: Option<InodeNo>, block: Option<BlockNo>) -> Place {
    Place {
        inode: inode.map(|number| u64::from(number.0)),
        block: block.map(|number| number.0),
    }
}

/// A device's failure as an error of the interface.
pub(crate) fn device(error: DeviceError) -> Error {
    Error::Io(io::Error::new(error.source.kind(), error))
}

/// Why filling a page or writing it back failed; everybody who waited for it gets a copy:
/// an [`Error`], when it comes to that.
#[derive(Clone, Debug)]
pub struct FillError(Arc<Error>);

impl FillError {
    /// Whether there was no space.
    pub(crate) fn is_no_space(&self) -> bool {
        matches!(*self.0, Error::NoSpace)
    }
}

impl From<Error> for FillError {
    fn from(error: Error) -> Self {
        Self(Arc::new(error))
    }
}

impl From<FillError> for Error {
    fn from(error: FillError) -> Self {
        match &*error.0 {
            Error::Corrupt { what, place } => Error::Corrupt {
                what: what.clone(),
                place: *place,
            },
            Error::NoKey => Error::NoKey,
            Error::OutOfMemory => Error::OutOfMemory,
            Error::NoSpace => Error::NoSpace,
            Error::ReadOnly => Error::ReadOnly,
            Error::Io(source) => Error::Io(io::Error::new(source.kind(), source.to_string())),
            other => Error::Io(io::Error::other(other.to_string())),
        }
    }
}

/// Damage found by a check of the format, at a place still to be named.
pub(crate) trait At<T> {
    /// Names the place and logs the finding.
    fn at(
        self,
        log: &DamageLog,
        inode: Option<InodeNo>,
        block: Option<BlockNo>,
    ) -> Result<T, Error>;
}

impl<T> At<T> for Result<T, Corruption> {
    fn at(
        self,
        log: &DamageLog,
        inode: Option<InodeNo>,
        block: Option<BlockNo>,
    ) -> Result<T, Error> {
        self.map_err(|what| log.report(place(inode, block), what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_finding_is_remembered_once() {
        let log = DamageLog::default();
        for _ in 0..3 {
            let error = log.report(place(Some(InodeNo(12)), Some(BlockNo(99))), "bad");
            assert_eq!(
                error.to_string(),
                "the file system is damaged at inode 12, block 99: bad"
            );
        }
        assert_eq!(log.seen.lock().len(), 1);
    }

    #[test]
    fn memory_for_findings_is_bounded() {
        let log = DamageLog::default();
        for block in 0..2 * REMEMBERED as u64 {
            let _ = log.report(place(None, Some(BlockNo(block))), "bad");
        }
        assert_eq!(log.seen.lock().len(), REMEMBERED);
    }
}
