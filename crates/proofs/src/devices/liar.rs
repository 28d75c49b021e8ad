//! A device that lies once: it gives back what it held before, forgets what it was given, or puts it
//! elsewhere, and says that all is well.

use std::collections::{BTreeSet, HashMap};
use std::io::{IoSlice, IoSliceMut};

use pagefence::device::{Capabilities, Device, DeviceError, MemoryDevice};
use pagefence_block_io::fault_device::SECTOR_BYTES;
use pagefence_fs_model::files::RECORD_BYTES;
use pagefence_lock_order::primitives::Mutex;

use super::watched::{Bytes, classify, numbers};

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    /// This read, from 0, gives what each sector held before it was written last.
    StaleRead(u64),
    /// This write is acknowledged, and lost.
    LostWrite(u64),
    /// This write goes to the block behind the one that it is for.
    MisdirectedWrite(u64),
}

/// What was lied about.
#[derive(Clone, Debug, Default)]
pub(super) struct Lied {
    /// It was none, or about nothing that makes a difference.
    pub(super) is_harmless: bool,
    /// Only bytes of files: all else is as it has to be.
    pub(super) is_about_data: bool,
    /// The blocks of files that may hold anything, by their number in the file.
    pub(super) blocks: BTreeSet<u64>,
}

#[derive(Debug)]
struct State {
    reads: u64,
    writes: u64,
    /// What sectors held before they were written last.
    before: HashMap<u64, Vec<u8>>,
    lied: Option<Lied>,
}

/// The device.
#[derive(Debug)]
pub(super) struct Liar {
    device: MemoryDevice,
    block_size: u64,
    lie: Option<Lie>,
    state: Mutex<State>,
}

impl Liar {
    pub(super) fn new(image: &MemoryDevice, block_size: u32, lie: Option<Lie>) -> Self {
        Self {
            device: image.fork(),
            block_size: block_size.into(),
            lie,
            state: Mutex::new(State {
                reads: 0,
                writes: 0,
                before: HashMap::new(),
                lied: None,
            }),
        }
    }

    /// What it lied about, once it did.
    pub(super) fn lied(&self) -> Option<Lied> {
        self.state.lock().lied.clone()
    }

    /// Reads and writes so far.
    pub(super) fn calls(&self) -> [u64; 2] {
        let state = self.state.lock();
        [state.reads, state.writes]
    }

    /// What it holds.
    pub(super) fn image(&self) -> MemoryDevice {
        self.device.fork()
    }

    /// What there is to say of a lie about these bytes.
    fn lie_about(&self, bytes: &[u8]) -> Lied {
        let is_about_data = matches!(classify(&[IoSlice::new(bytes)]), Bytes::OfFile(_));
        let mut blocks = BTreeSet::new();
        // What is written together may be of several files; where there are zeros, the number is that of
        // a neighbour's block.
        let step = self.block_size as usize;
        let mut unknown: Vec<i64> = Vec::new();
        for (place, block) in (0_i64..).zip(bytes.chunks(step)) {
            let found: Vec<u64> = numbers(block)
                .map(|number| number * RECORD_BYTES / self.block_size)
                .collect();
            if found.is_empty() {
                unknown.push(place);
            }
            blocks.extend(found);
            for other in bytes.chunks(step).enumerate() {
                let Some(number) = numbers(other.1).next() else {
                    continue;
                };
                let known = (number * RECORD_BYTES / self.block_size) as i64;
                let guess = known + place - other.0 as i64;
                if unknown.last() == Some(&place) && guess >= 0 {
                    blocks.insert(guess as u64);
                }
            }
        }
        Lied {
            is_harmless: false,
            is_about_data,
            blocks,
        }
    }

    /// Remembers what is there, and writes.
    fn keep_and_write(
        &self,
        state: &mut State,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        let first = offset / SECTOR_BYTES * SECTOR_BYTES;
        let mut sector = vec![0; SECTOR_BYTES as usize];
        for at in (first..offset + bytes.len() as u64).step_by(SECTOR_BYTES as usize) {
            self.device.read(at, &mut sector)?;
            state.before.insert(at, sector.clone());
        }
        self.device.write(offset, bytes)
    }
}

impl Device for Liar {
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
        let mut state = self.state.lock();
        let call = state.reads;
        state.reads += 1;
        self.device.read_vectored(offset, buffers)?;
        if self.lie != Some(Lie::StaleRead(call)) {
            return Ok(());
        }
        let real: Vec<u8> = buffers
            .iter()
            .flat_map(|buffer| buffer.iter().copied())
            .collect();
        let mut told = real.clone();
        for (at, sector) in (offset..)
            .step_by(SECTOR_BYTES as usize)
            .zip(told.chunks_mut(SECTOR_BYTES as usize))
        {
            if let Some(before) = state.before.get(&at) {
                sector.copy_from_slice(&before[..sector.len()]);
            }
        }
        let mut lied = self.lie_about(&real);
        lied.is_harmless = told == real;
        state.lied = Some(lied);
        let mut rest = &told[..];
        for buffer in buffers {
            let (now, later) = rest.split_at(buffer.len());
            buffer.copy_from_slice(now);
            rest = later;
        }
        Ok(())
    }

    fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let bytes: Vec<u8> = buffers
            .iter()
            .flat_map(|buffer| buffer.iter())
            .copied()
            .collect();
        let mut state = self.state.lock();
        let call = state.writes;
        state.writes += 1;
        match self.lie {
            Some(Lie::LostWrite(lost)) if lost == call => {
                state.lied = Some(self.lie_about(&bytes));
                Ok(())
            }
            Some(Lie::MisdirectedWrite(misdirected)) if misdirected == call => {
                let mut lied = self.lie_about(&bytes);
                // Whose block it goes to is not known.
                lied.is_about_data = false;
                state.lied = Some(lied);
                let elsewhere = offset + self.block_size;
                if elsewhere + bytes.len() as u64 > self.size() {
                    return Ok(());
                }
                self.keep_and_write(&mut state, elsewhere, &bytes)
            }
            _ => self.keep_and_write(&mut state, offset, &bytes),
        }
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.device.discard(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.device.write_zeroes(offset, length)
    }
}
