//! A device that fails and crashes on command: the ground of every crash proof.
//!
//! # Fault model
//!
//! The device keeps two images. The *live* one is what reads return. The *durable* one is what a
//! power cut leaves for certain. Between them lie, for each *unit*, the versions that it has had
//! since it was last durable, in order. A unit is one 512-byte sector, or a range that was
//! declared atomic ([`FaultDevice::set_atomic`]).
//!
//! - **Write**: each unit that it touches gets a new version. Nothing is durable.
//! - **Flush** that succeeds: for every unit the newest version becomes the durable one. It is
//!   one step: a write that is concurrent with it comes either before or after.
//! - **Power cut** ([`FaultDevice::crash_states`]): every unit that is not durable comes back
//!   with *any* version since its last durable one, that one included, independently of every
//!   other unit. That covers
//!   - *loss*: a unit comes back as it was before;
//!   - *tearing*: some units of one write are new, others old;
//!   - *reordering*: a later write is there, an earlier one is not;
//!   - *late writes*: a version that was overwritten in the device's cache before the cut is the
//!     one that had reached the medium.
//!
//!   Units never tear inside, never hold bytes that were not written, and never move.
//! - **Discard**: each unit wholly inside the range gets two versions, zeros and poison, and the
//!   live image shows one of the two or the old bytes, by the seed: who still needs a discarded
//!   block is found out. What the live image shows is the newest version.
//! - **Failed write, discard or zeroing**: any units of it, by the seed, get their new version;
//!   the rest is untouched. The caller sees an error either way.
//! - **Failed flush**: nothing becomes durable, *and stays so*: a version that was pending then
//!   is not made durable by a later flush, however that one ends; only a newer version of the
//!   unit, followed by a flush that succeeds, settles the unit. (Linux marks pages clean when
//!   their writeback fails, and reports the failure once.)
//! - **Failed read**: the buffers hold poison.
//!
//! Everything is decided by the seed and the order of calls, so a run is repeated by its seed.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;

use pagefence_lock_order::primitives::Mutex;

use crate::device::{Capabilities, Device, DeviceError, Operation, Result};
use crate::memory_device::MemoryDevice;

pub mod random;
pub mod states;
pub mod trace;
mod units;

use random::Random;
pub use states::{CrashState, CrashStates};
pub use trace::Trace;
use units::Units;

/// Bytes of a sector: the smallest unit that is written as a whole.
pub const SECTOR_BYTES: u64 = 512;
/// What undefined bytes are filled with.
pub const POISON: u8 = 0xdb;

/// How often a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// One call fails.
    Once,
    /// That call and every later one fails.
    Forever,
}

/// A call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which kind of call.
    pub operation: Operation,
    /// Which call of that kind since the device was made, from 0 ([`FaultDevice::calls`]).
    pub call: u64,
    /// Whether later ones fail too.
    pub times: Times,
    /// The host's error number (5 is EIO, 28 ENOSPC).
    pub errno: i32,
}

/// Calls made, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Calls([u64; 5]);

impl Calls {
    fn of(&mut self, operation: Operation) -> &mut u64 {
        let at = match operation {
            Operation::Read => 0,
            Operation::Write => 1,
            Operation::Flush => 2,
            Operation::Discard => 3,
            Operation::WriteZeroes => 4,
        };
        &mut self.0[at]
    }
}

#[derive(Debug)]
struct State {
    units: Units,
    random: Random,
    faults: Vec<Fault>,
    calls: Calls,
    trace: Option<Trace>,
}

/// The device. See the module's documentation.
#[derive(Debug)]
pub struct FaultDevice {
    size: u64,
    state: Mutex<State>,
}

impl FaultDevice {
    /// A device whose live and durable image are `image`. `seed` decides what the model leaves
    /// open while the device lives; crashes have seeds of their own.
    #[must_use]
    pub fn new(image: &MemoryDevice, seed: u64) -> Self {
        Self {
            size: image.size(),
            state: Mutex::new(State {
                units: Units::new(image.fork()),
                random: Random::new(seed),
                faults: Vec::new(),
                calls: Calls::default(),
                trace: None,
            }),
        }
    }

    /// Declares that the device writes the bytes `range` as a whole: a crash shows one version of
    /// all of it. For the superblock, which Linux too relies on.
    ///
    /// # Panics
    ///
    /// If the range is not made of whole sectors, overlaps another, or was written and not
    /// flushed yet.
    pub fn set_atomic(&self, range: Range<u64>) {
        let mut state = self.state.lock();
        state.units.set_atomic(range.clone());
        if let Some(trace) = &mut state.trace {
            trace.set_atomic(range);
        }
    }

    /// Adds a fault.
    pub fn fail(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Takes every fault away. What failed flushes left unsettled stays so.
    pub fn clear_faults(&self) {
        self.state.lock().faults.clear();
    }

    /// Calls of this kind so far, failed ones included.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        *self.state.lock().calls.of(operation)
    }

    /// The image that reads see.
    #[must_use]
    pub fn live(&self) -> MemoryDevice {
        self.state.lock().units.live().fork()
    }

    /// What a crash at this moment may leave.
    #[must_use]
    pub fn crash_states(&self) -> CrashStates {
        self.state.lock().units.crash_states()
    }

    /// One image that a crash at this moment may leave; each unit that is not durable holds a
    /// version that the seed chooses.
    #[must_use]
    pub fn crash(&self, seed: u64) -> MemoryDevice {
        let states = self.crash_states();
        states.image(&states.random(&mut Random::new(seed)))
    }

    /// Begins to record what changes the device, from its state now on.
    pub fn start_trace(&self) {
        let mut state = self.state.lock();
        state.trace = Some(Trace::new(&state.units));
    }

    /// Steps recorded so far: a mark that ties what the test knows to a point of the trace.
    #[must_use]
    pub fn trace_position(&self) -> usize {
        self.state.lock().trace.as_ref().map_or(0, Trace::len)
    }

    /// Ends the recording and returns it.
    #[must_use]
    pub fn take_trace(&self) -> Option<Trace> {
        self.state.lock().trace.take()
    }

    /// Counts a call and checks its range and whether a fault strikes it.
    fn enter(
        &self,
        state: &mut State,
        operation: Operation,
        offset: u64,
        length: u64,
    ) -> std::result::Result<(), (DeviceError, bool)> {
        let call = *state.calls.of(operation);
        *state.calls.of(operation) += 1;
        let error = |source| DeviceError {
            operation,
            offset,
            length,
            source,
        };
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            let source = std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                "past the end of the device",
            );
            return Err((error(source), false));
        }
        let strikes = |fault: &&Fault| {
            fault.operation == operation
                && match fault.times {
                    Times::Once => fault.call == call,
                    Times::Forever => fault.call <= call,
                }
        };
        match state.faults.iter().find(strikes) {
            Some(fault) => {
                let source = std::io::Error::from_raw_os_error(fault.errno);
                Err((error(source), true))
            }
            None => Ok(()),
        }
    }

    /// Runs a change of units; a fault lets any of them through.
    fn change(
        &self,
        operation: Operation,
        offset: u64,
        length: u64,
        mut step: impl FnMut(&mut State, u64, u64),
    ) -> Result<()> {
        let mut state = self.state.lock();
        match self.enter(&mut state, operation, offset, length) {
            Ok(()) => {
                if length > 0 {
                    step(&mut state, offset, offset + length);
                }
                Ok(())
            }
            Err((error, false)) => Err(error),
            Err((error, true)) => {
                for part in state.units.split(offset, offset + length) {
                    if state.random.one_in(2) {
                        step(&mut state, part.start, part.end);
                    }
                }
                Err(error)
            }
        }
    }

    fn write_bytes(&self, operation: Operation, offset: u64, bytes: &[u8]) -> Result<()> {
        self.change(
            operation,
            offset,
            bytes.len() as u64,
            |state, start, end| {
                let part = &bytes[(start - offset) as usize..(end - offset) as usize];
                state.units.write(start, part);
                if let Some(trace) = &mut state.trace {
                    trace.push_write(start, part);
                }
            },
        )
    }
}

impl Device for FaultDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: false,
            alignment: 1,
            discard: true,
            write_zeroes: true,
            queue_depth: 1,
        }
    }

    fn read_vectored(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let mut state = self.state.lock();
        if let Err((error, _)) = self.enter(&mut state, Operation::Read, offset, length) {
            for buffer in buffers {
                buffer.fill(POISON);
            }
            return Err(error);
        }
        state.units.live().read_vectored(offset, buffers)
    }

    fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let mut bytes = Vec::with_capacity(buffers.iter().map(|buffer| buffer.len()).sum());
        for buffer in buffers {
            bytes.extend_from_slice(buffer);
        }
        self.write_bytes(Operation::Write, offset, &bytes)
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.state.lock();
        let outcome = self.enter(&mut state, Operation::Flush, 0, self.size);
        let succeeded = outcome.is_ok();
        state.units.flush(succeeded);
        if let Some(trace) = &mut state.trace {
            trace.push_flush(succeeded);
        }
        outcome.map_err(|(error, _)| error)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.change(Operation::Discard, offset, length, |state, start, end| {
            for unit in state.units.split(start, end) {
                if !state.units.is_whole(&unit) {
                    continue;
                }
                let size = (unit.end - unit.start) as usize;
                let mut old = vec![0; size];
                // Inside the device, so it can't fail.
                let read = state.units.live().read(unit.start, &mut old);
                debug_assert!(read.is_ok(), "{read:?}");
                let mut versions = [vec![0; size], vec![POISON; size], old];
                let newest = state.random.below(3) as usize;
                versions.swap(newest, 2);
                // The old bytes are a version already, unless they are the newest.
                for version in versions {
                    state.units.write(unit.start, &version);
                    if let Some(trace) = &mut state.trace {
                        trace.push_write(unit.start, &version);
                    }
                }
            }
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        // The range is checked before memory is taken for it.
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return self.change(Operation::WriteZeroes, offset, length, |_, _, _| {});
        }
        self.write_bytes(Operation::WriteZeroes, offset, &vec![0; length as usize])
    }
}

#[cfg(test)]
mod tests;
