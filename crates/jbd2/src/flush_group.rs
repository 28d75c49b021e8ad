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

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, IoSliceMut};

    use pagefence_block_io::device::Result;
    use pagefence_block_io::{Capabilities, Device, DeviceError, MemoryDevice, Operation};
    use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
    use pagefence_lock_order::primitives::{Condvar, Mutex, thread};

    use super::FlushGroup;

    /// Flushes wait at a gate; the test decides how they end.
    #[derive(Debug)]
    struct Gate {
        below: MemoryDevice,
        flushes: AtomicU64,
        /// How many may end, and whether they succeed.
        open: Mutex<(u64, bool)>,
        changed: Condvar,
    }

    impl Gate {
        fn new() -> Self {
            Self {
                below: MemoryDevice::new(0),
                flushes: AtomicU64::new(0),
                open: Mutex::new((0, true)),
                changed: Condvar::new(),
            }
        }

        fn wait_for_flush(&self, number: u64) {
            while self.flushes.load(Ordering::SeqCst) < number {
                thread::yield_now();
            }
        }

        fn let_end(&self, count: u64, succeed: bool) {
            *self.open.lock() = (count, succeed);
            self.changed.notify_all();
        }
    }

    impl Device for Gate {
        fn size(&self) -> u64 {
            self.below.size()
        }
        fn capabilities(&self) -> Capabilities {
            self.below.capabilities()
        }
        fn read_vectored(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
            self.below.read_vectored(offset, buffers)
        }
        fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
            self.below.write_vectored(offset, buffers)
        }
        fn flush(&self) -> Result<()> {
            let number = self.flushes.fetch_add(1, Ordering::SeqCst);
            let mut open = self.open.lock();
            while open.0 <= number {
                self.changed.wait(&mut open);
            }
            if open.1 {
                return Ok(());
            }
            Err(DeviceError {
                operation: Operation::Flush,
                offset: 0,
                length: 0,
                source: std::io::Error::from_raw_os_error(5),
            })
        }
        fn discard(&self, offset: u64, length: u64) -> Result<()> {
            self.below.discard(offset, length)
        }
        fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
            self.below.write_zeroes(offset, length)
        }
    }

    #[test]
    fn who_comes_during_a_flush_shares_the_next() {
        let (gate, group) = (Gate::new(), FlushGroup::new());
        let asked = AtomicU64::new(0);
        thread::scope(|scope| {
            let first = scope.spawn(|| group.flush(&gate, |_| panic!("failed")));
            gate.wait_for_flush(1);
            let others: Vec<_> = (0..5)
                .map(|_| {
                    scope.spawn(|| {
                        asked.fetch_add(1, Ordering::SeqCst);
                        group.flush(&gate, |_| panic!("failed"))
                    })
                })
                .collect();
            while asked.load(Ordering::SeqCst) < 5 {
                thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            gate.let_end(1, true);
            assert!(first.join().unwrap());
            gate.wait_for_flush(2);
            assert!(others.iter().all(|other| !other.is_finished()));
            gate.let_end(2, true);
            assert!(others.into_iter().all(|other| other.join().unwrap()));
        });
        assert_eq!(gate.flushes.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_failure_is_told_once_and_stays() {
        let (gate, group) = (Gate::new(), FlushGroup::new());
        let told = AtomicU64::new(0);
        let flush = || {
            group.flush(&gate, |_| {
                told.fetch_add(1, Ordering::SeqCst);
            })
        };
        thread::scope(|scope| {
            let first = scope.spawn(flush);
            gate.wait_for_flush(1);
            let second = scope.spawn(flush);
            gate.let_end(10, false);
            assert!(!first.join().unwrap());
            assert!(!second.join().unwrap());
        });
        assert!(!flush());
        assert_eq!(told.load(Ordering::SeqCst), 1);
        assert_eq!(gate.flushes.load(Ordering::SeqCst), 1);
    }
}
