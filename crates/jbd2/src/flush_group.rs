//! Flushes of the device, shared by all who wait for one.
//!
//! A flush makes durable what was written before it *began*. So who asks while one is in flight
//! waits for the next; all who ask before that begins share it.

use pagefence_block_io::{Device, DeviceError};
use pagefence_lock_order::primitives::{Condvar, Mutex};

#[derive(Debug, Default)]
struct State {
    /// Flushes that have begun, and that have ended.
    begun: u64,
    ended: u64,
    /// One failed: what is durable is unknown from then on.
    failed: bool,
}

/// The flushes of one device.
#[derive(Debug)]
pub(crate) struct FlushGroup {
    state: Mutex<State>,
    ended: Condvar,
}

impl FlushGroup {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State::default()),
            ended: Condvar::new(),
        }
    }

    /// Makes durable what was written before the call. Returns whether it is; when the flush
    /// fails, `failed` is told, by the one who asked the device and before anybody wakes.
    pub(crate) fn flush(&self, device: &dyn Device, failed: impl FnOnce(DeviceError)) -> bool {
        let mut state = self.state.lock();
        let needed = state.begun.saturating_add(1);
        loop {
            if state.failed {
                return false;
            }
            if state.ended >= needed {
                return true;
            }
            if state.begun == state.ended {
                break;
            }
            self.ended.wait(&mut state);
        }
        state.begun = state.begun.saturating_add(1);
        drop(state);
        let outcome = device.flush();
        let succeeded = outcome.is_ok();
        if let Err(error) = outcome {
            failed(error);
        }
        let mut state = self.state.lock();
        state.ended = state.begun;
        state.failed |= !succeeded;
        drop(state);
        self.ended.notify_all();
        succeeded
    }
}
