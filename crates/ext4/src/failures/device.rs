//! A device that fails, and holds, what touches the bytes that the test names.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;

use pagefence_block_io::device::{Capabilities, DeviceError, Operation, Result};
use pagefence_block_io::{Device, MemoryDevice};
use pagefence_lock_order::primitives::{Condvar, Mutex};

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Fails,
    /// It waits until the test lets it go.
    IsHeld,
}

#[derive(Clone, Debug)]
struct Rule {
    operation: Operation,
    bytes: Range<u64>,
    fate: Fate,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    held: usize,
    held_ever: usize,
    failed: usize,
}

/// The device.
#[derive(Debug)]
pub(crate) struct TestDevice {
    memory: MemoryDevice,
    state: Mutex<State>,
    changed: Condvar,
}

impl TestDevice {
    pub(crate) fn new(memory: MemoryDevice) -> Self {
        Self {
            memory,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }

    /// Fails what touches `bytes` from now on.
    pub(crate) fn fail(&self, operation: Operation, bytes: Range<u64>) {
        self.rule(operation, bytes, Fate::Fails);
    }

    /// Holds what touches `bytes` from now on.
    pub(crate) fn hold(&self, operation: Operation, bytes: Range<u64>) {
        self.rule(operation, bytes, Fate::IsHeld);
    }

    fn rule(&self, operation: Operation, bytes: Range<u64>, fate: Fate) {
        self.state.lock().rules.push(Rule {
            operation,
            bytes,
            fate,
        });
    }

    /// Waits until a call is held.
    pub(crate) fn wait_held(&self) {
        let mut state = self.state.lock();
        while state.held == 0 {
            self.changed.wait(&mut state);
        }
    }

    /// Lets what is held go on, holds what touches `bytes` from now on instead, and waits until a
    /// call is held for that.
    pub(crate) fn hold_next(&self, operation: Operation, bytes: Range<u64>) {
        let mut state = self.state.lock();
        let before = state.held_ever;
        state.rules = vec![Rule {
            operation,
            bytes,
            fate: Fate::IsHeld,
        }];
        self.changed.notify_all();
        while state.held_ever == before {
            self.changed.wait(&mut state);
        }
    }

    /// Makes what is held fail, and what touches its bytes from now on.
    pub(crate) fn fail_held(&self) {
        for rule in &mut self.state.lock().rules {
            rule.fate = Fate::Fails;
        }
        self.changed.notify_all();
    }

    /// Forgets the rules of an operation; what is held goes on.
    #[cfg(not(shuttle))]
    pub(crate) fn release(&self, operation: Operation) {
        let mut state = self.state.lock();
        state.rules.retain(|rule| rule.operation != operation);
        self.changed.notify_all();
    }

    /// Forgets the rules that were made for exactly `bytes`; what is held goes on.
    pub(crate) fn let_go(&self, bytes: &Range<u64>) {
        let mut state = self.state.lock();
        state.rules.retain(|rule| rule.bytes != *bytes);
        self.changed.notify_all();
    }

    /// Forgets all rules; what is held goes on.
    pub(crate) fn heal(&self) {
        self.state.lock().rules.clear();
        self.changed.notify_all();
    }

    /// How often a call was held, in all.
    pub(crate) fn holds(&self) -> usize {
        self.state.lock().held_ever
    }

    /// What it holds.
    pub(crate) fn memory(&self) -> &MemoryDevice {
        &self.memory
    }

    /// Calls that failed.
    pub(crate) fn failed(&self) -> usize {
        self.state.lock().failed
    }

    fn enter(&self, operation: Operation, offset: u64, length: u64) -> Result<()> {
        let mut state = self.state.lock();
        loop {
            let touched = |rule: &&Rule| {
                rule.operation == operation
                    && rule.bytes.start < offset + length
                    && offset < rule.bytes.end
            };
            match state.rules.iter().find(touched).map(|rule| rule.fate) {
                None => return Ok(()),
                Some(Fate::Fails) => {
                    state.failed += 1;
                    return Err(DeviceError {
                        operation,
                        offset,
                        length,
                        source: std::io::Error::from_raw_os_error(5),
                    });
                }
                Some(Fate::IsHeld) => {
                    state.held += 1;
                    state.held_ever += 1;
                    self.changed.notify_all();
                    self.changed.wait(&mut state);
                    state.held -= 1;
                }
            }
        }
    }
}

impl Device for TestDevice {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    fn read_vectored(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        self.enter(Operation::Read, offset, length)?;
        self.memory.read_vectored(offset, buffers)
    }

    fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        self.enter(Operation::Write, offset, length)?;
        self.memory.write_vectored(offset, buffers)
    }

    fn flush(&self) -> Result<()> {
        self.memory.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.enter(Operation::Discard, offset, length)?;
        self.memory.discard(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.enter(Operation::WriteZeroes, offset, length)?;
        self.memory.write_zeroes(offset, length)
    }
}
