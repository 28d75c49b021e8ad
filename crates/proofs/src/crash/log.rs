//! The journal's log on the device: where it lies, how often a run went around it, and how it comes
//! near its end before a run begins.

use pagefence::Volume;
use pagefence::device::{Device as _, MemoryDevice};
use pagefence_block_io::fault_device::{FaultDevice, Trace};

use crate::image::Setup;

/// Begins each block of the log that is not a copy, big-endian.
const MAGIC: u32 = 0xc03b_3998;
/// The superblock of version 2.
const SUPERBLOCK: u32 = 4;
/// So many blocks are left before the end, or fewer: two or three small transactions.
const NEAR: u64 = 14;
/// The directory that is changed, and stays as it is, to fill the log.
const CHANGED: (&str, u16) = ("lost+found", 0o700);

/// The bytes of the device in which transactions are logged: the journal without its first block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log {
    start: u64,
    end: u64,
    block_size: u64,
}

impl Log {
    /// Looks for it on an image of ours, where it lies in one piece.
    pub(crate) fn find(setup: &Setup, image: &MemoryDevice) -> Option<Self> {
        let block_size = u64::from(setup.block_size);
        let word = |at: u64| {
            let mut word = [0; 4];
            let read = image.read(at, &mut word);
            read.map_or(0, |()| u32::from_be_bytes(word))
        };
        let blocks = (0..image.size()).step_by(setup.block_size as usize);
        let is_superblock = |at: &u64| word(*at) == MAGIC && word(at + 4) == SUPERBLOCK;
        let first = blocks.into_iter().find(is_superblock)?;
        let count = u64::from(word(first + 16));
        Some(Self {
            start: first + block_size,
            end: first + count * block_size,
            block_size,
        })
    }

    /// Its blocks.
    pub(crate) fn blocks(self) -> u64 {
        (self.end - self.start) / self.block_size
    }

    fn writes(self, trace: &Trace) -> impl Iterator<Item = u64> {
        trace
            .writes()
            .map(|(offset, _)| offset)
            .filter(move |offset| (self.start..self.end).contains(offset))
    }

    /// How often the log went on at its start.
    pub(crate) fn wraps(self, trace: &Trace) -> u64 {
        // A commit block is written behind the rest, where there are zeros already: no step back is
        // as far as around the log.
        let far = (self.end - self.start) / 2;
        let mut last = None;
        let mut wraps = 0;
        for offset in self.writes(trace) {
            if last.is_some_and(|last| offset + far < last) {
                wraps += 1;
            }
            last = Some(offset);
        }
        wraps
    }
}

/// Has the log go on in its last blocks, by many small transactions that leave everything as it is.
///
/// # Errors
/// The device failed.
///
/// # Panics
/// The log does not come to its end: it lies elsewhere.
pub(crate) fn wear(
    log: Log,
    volume: &Volume,
    device: &FaultDevice,
) -> Result<(), pagefence::Error> {
    let near = log.end - NEAR * log.block_size;
    for _ in 0..log.blocks() {
        device.start_trace();
        let (path, permissions) = CHANGED;
        volume.set_permissions(path, permissions)?;
        volume.sync()?;
        let trace = device.take_trace().expect("it was started");
        if log.writes(&trace).any(|offset| offset > near) {
            return Ok(());
        }
    }
    unreachable!("{log:?}: so many transactions fill it");
}
