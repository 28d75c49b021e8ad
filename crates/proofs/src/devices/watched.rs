//! A device that notes what kind of call failed: what is to follow depends on it.

use std::io::{IoSlice, IoSliceMut};

use pagefence::device::{Capabilities, Device, DeviceError};
use pagefence_block_io::{FaultDevice, Operation};
use pagefence_fs_model::files::{RECORD_BYTES, contents};
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex};

use crate::beliefs::is_direct;

/// Calls that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failed {
    /// Of any kind.
    pub(super) calls: u64,
    /// Writes of files' bytes that were told to nobody at once.
    pub(super) behind_backs: u64,
    /// Writes of files' bytes, all of them.
    pub(super) data: u64,
    /// Writes of what is surely no file's bytes, and flushes.
    pub(super) metadata: u64,
    /// Writes of zeros, which may be either.
    pub(super) zeros: u64,
}

/// What the bytes of a write are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bytes {
    /// Those of a file, written with this tag first.
    OfFile(u64),
    Zeros,
    Metadata,
}

/// A device that ends earlier from one of its reads and writes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shrink {
    /// Which of them, from 0.
    pub(super) call: u64,
    /// Where it ends from then on, in bytes.
    pub(super) end: u64,
}

/// The device.
#[derive(Debug)]
pub(super) struct Watched {
    device: Arc<FaultDevice>,
    failed: Mutex<Failed>,
    /// Says that it wrote what it did not write.
    swallows: bool,
    shrink: Option<Shrink>,
    /// Reads and writes so far.
    calls: AtomicU64,
    is_healed: AtomicBool,
}

impl Watched {
    pub(super) fn new(device: Arc<FaultDevice>, shrink: Option<Shrink>, swallows: bool) -> Self {
        Self {
            device,
            failed: Mutex::new(Failed::default()),
            swallows,
            shrink,
            calls: AtomicU64::new(0),
            is_healed: AtomicBool::new(false),
        }
    }

    /// No call fails any more.
    pub(super) fn heal(&self) {
        self.is_healed.store(true, Ordering::SeqCst);
        self.device.clear_faults();
    }

    /// Whether the range is there.
    fn reach(&self, operation: Operation, offset: u64, length: u64) -> Result<(), DeviceError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let is_there = self
            .shrink
            .is_none_or(|shrink| call < shrink.call || offset + length <= shrink.end);
        if is_there || self.is_healed.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(DeviceError {
            operation,
            offset,
            length,
            source: std::io::Error::from_raw_os_error(5),
        })
    }

    pub(super) fn failed(&self) -> Failed {
        *self.failed.lock()
    }

    /// Notes a failure, or forgets it.
    fn note(
        &self,
        outcome: Result<(), DeviceError>,
        note: impl FnOnce(&mut Failed),
    ) -> Result<(), DeviceError> {
        if outcome.is_ok() {
            return Ok(());
        }
        let mut failed = self.failed.lock();
        failed.calls += 1;
        if self.swallows {
            return Ok(());
        }
        note(&mut failed);
        outcome
    }
}

/// The tag and the number of a record, if it is one.
fn record(bytes: &[u8]) -> Option<(u64, u64)> {
    let word = |at: usize| {
        let word = bytes.get(at..at + 8)?.try_into().ok()?;
        Some(u64::from_le_bytes(word))
    };
    let (tag, number) = (word(0)?, word(8)?);
    let at = number.checked_mul(RECORD_BYTES)?;
    at.checked_add(bytes.len() as u64)?;
    (tag != 0 && contents(tag, at, bytes.len()) == bytes).then_some((tag, number))
}

/// The numbers of the records of files that are in `bytes`.
pub(super) fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let records = bytes.chunks_exact(RECORD_BYTES as usize);
    records.filter_map(record).map(|(_, number)| number)
}

/// What is in these buffers.
pub(super) fn classify(buffers: &[IoSlice<'_>]) -> Bytes {
    let bytes: Vec<u8> = buffers
        .iter()
        .flat_map(|buffer| buffer.iter())
        .copied()
        .collect();
    let mut kind = Bytes::Zeros;
    for bytes in bytes.chunks_exact(RECORD_BYTES as usize) {
        if bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        match record(bytes) {
            None => return Bytes::Metadata,
            Some((tag, _)) if kind == Bytes::Zeros => kind = Bytes::OfFile(tag),
            Some(_) => {}
        }
    }
    kind
}

impl Device for Watched {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn read_vectored(
        &self,
        offset: u64,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let outcome = self
            .reach(Operation::Read, offset, length)
            .and_then(|()| self.device.read_vectored(offset, buffers));
        if outcome.is_err() {
            self.failed.lock().calls += 1;
        }
        outcome
    }

    fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let outcome = self
            .reach(Operation::Write, offset, length)
            .and_then(|()| self.device.write_vectored(offset, buffers));
        self.note(outcome, |failed| match classify(buffers) {
            Bytes::OfFile(tag) => {
                failed.data += 1;
                failed.behind_backs += u64::from(!is_direct(tag));
            }
            Bytes::Zeros => failed.zeros += 1,
            Bytes::Metadata => failed.metadata += 1,
        })
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.note(self.device.flush(), |failed| failed.metadata += 1)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let outcome = self.device.discard(offset, length);
        if outcome.is_err() {
            self.failed.lock().calls += 1;
        }
        outcome
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let outcome = self.device.write_zeroes(offset, length);
        self.note(outcome, |failed| failed.zeros += 1)
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::{Bytes, RECORD_BYTES, classify, record};
    use pagefence_fs_model::files::contents;

    #[test]
    fn bytes_of_files_are_known_by_their_looks() {
        let mut bytes = contents(7, 1024, 512);
        bytes[..64].fill(0);
        let kind = |bytes: &[u8]| {
            let (one, other) = bytes.split_at(100);
            classify(&[IoSlice::new(one), IoSlice::new(other)])
        };
        assert_eq!(kind(&bytes), Bytes::OfFile(7));
        assert_eq!(kind(&[0; 512]), Bytes::Zeros);
        bytes[100] ^= 1;
        assert_eq!(kind(&bytes), Bytes::Metadata);
    }

    /// Any bytes can lie where they were written by mistake.
    #[test]
    fn what_would_lie_past_all_offsets_is_no_record() {
        let mut bytes = contents(1, 5 * RECORD_BYTES, RECORD_BYTES as usize);
        assert_eq!(record(&bytes), Some((1, 5)));
        for number in [u64::MAX / RECORD_BYTES, u64::MAX] {
            bytes[8..16].copy_from_slice(&number.to_le_bytes());
            assert_eq!(record(&bytes), None);
        }
    }
}
