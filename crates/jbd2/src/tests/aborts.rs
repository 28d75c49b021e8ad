//! A device that fails at every call in turn: the journal aborts, tells, and lets nobody hang.

use std::io::{IoSlice, IoSliceMut};
use std::time::Duration;

use pagefence_block_io::Capabilities;
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::primitives::thread;

use super::running::*;
use super::*;
use crate::{Options, Tid};

type DeviceResult = pagefence_block_io::device::Result<()>;

/// Commits, revokes and goes round the log, then closes. Gives what was durable by promise.
fn work(ground: &Ground) -> Result<(), JournalError> {
    for round in 0..14_u8 {
        let mut entry = Held::at_entry();
        let (mut handle, _held) = ground.journal.start(&mut entry, 5)?;
        // A device that fails reads fails this alone.
        let changed = handle.change(BlockNo(10), |bytes| {
            bytes.fill(round);
            Ok::<(), pagefence_block_io::DeviceError>(())
        });
        handle.set(BlockNo(20 + u64::from(round % 5)), &[round; BLOCK]);
        handle.defer(BlockNo(30));
        if round % 4 == 3 {
            handle.forget(BlockNo(20 + u64::from(round % 5)));
        }
        let tid = handle.tid();
        drop(handle);
        changed?;
        ground.journal.commit(tid)?;
    }
    ground.journal.close()
}

#[test]
fn a_failure_of_any_call_aborts() {
    for log in [true, false] {
        for operation in [Operation::Write, Operation::Flush] {
            for times in [Times::Once, Times::Forever] {
                for call in 0.. {
                    let image = Image::new(0, REVOKE | V3, 0, 5);
                    let device = Arc::new(FaultDevice::new(&image.device, call));
                    device.fail(Fault {
                        operation,
                        call,
                        times,
                        errno: 28,
                    });
                    let recorder = Recorder::default();
                    let ground = Ground::on(device, &image.location, options(None), log, recorder);
                    if let Err(error) = work(&ground) {
                        assert!(
                            matches!(error, JournalError::Aborted { errno: 28 }),
                            "{operation} {call}: {error}"
                        );
                    } else {
                        assert!(call > 10);
                        break;
                    }
                    check_aborted(&ground, log, times, &image);
                }
            }
        }
    }
}

fn check_aborted(ground: &Ground, log: bool, times: Times, image: &Image) {
    assert!(ground.journal.is_aborted());
    let mut entry = Held::at_entry();
    let started = ground.journal.start(&mut entry, 1).map(|_| ());
    assert!(matches!(started, Err(JournalError::Aborted { errno: 28 })));
    let tid = ground.journal.running();
    // Nothing is in the last transaction of a journal that failed while it was closed.
    let all = ground.journal.committed_tid() >= tid;
    assert_eq!(ground.journal.commit(tid).is_ok(), all);
    assert!(ground.journal.flush_data().is_err());
    assert!(ground.journal.close().is_err());
    assert_eq!(*ground.client.aborted.lock(), [28], "told once");
    if log {
        let recovery = recover(&*ground.device, &image.location).unwrap();
        if times == Times::Once {
            assert_eq!(recovery.errno(), -28);
        }
        let committed = ground.client.committed.lock().len() as u8;
        for seed in 0..3 {
            let after = recovered(ground.device.crash(seed));
            let byte = byte_of(&after, 10);
            // Rounds count from 0: the last that was promised, or the one that failed.
            let last = if committed == 0 {
                0x80 | 10
            } else {
                committed - 1
            };
            assert!(
                byte == last || byte == committed,
                "{byte} after {committed}"
            );
        }
    }
}

#[test]
fn an_abort_from_outside_wakes_everybody_and_commits_nothing() {
    let image = Image::new(0, REVOKE | V3, 0, 5);
    let ground = Ground::new(&image);
    thread::scope(|scope| {
        ground.handle(7, |handle| {
            fill(handle, 10, 1);
            // One waits for the commit, one for room.
            let waiter = scope.spawn(|| ground.journal.commit(Tid(1)));
            let starter = scope.spawn(|| {
                let mut entry = Held::at_entry();
                ground.journal.start(&mut entry, 7).map(|_| ())
            });
            std::thread::sleep(Duration::from_millis(20));
            ground
                .journal
                .abort(JournalError::Block { block: BlockNo(1) });
            ground.journal.abort(JournalError::Closed);
            for outcome in [waiter.join().unwrap(), starter.join().unwrap()] {
                assert!(matches!(outcome, Err(JournalError::Aborted { errno: 117 })));
            }
            fill(handle, 11, 1);
        });
    });
    assert!(ground.journal.close().is_err());
    assert_eq!(*ground.client.aborted.lock(), [117]);
    assert!(ground.client.committed.lock().is_empty());
    let found = recover(&*ground.device, &image.location).unwrap();
    assert_eq!((found.transactions(), found.errno()), (0, -117));
}

#[test]
fn blocks_that_must_not_be_changed_abort() {
    for block in [100, 200, DEVICE_BLOCKS, 1 << 33, u64::MAX] {
        let ground = Ground::new(&Image::new(0, REVOKE | V3, 0, 5));
        ground.handle(1, |handle| {
            let refused = handle.change(BlockNo(block), |_| {
                Ok::<(), pagefence_block_io::DeviceError>(())
            });
            assert_eq!(
                refused.unwrap_err().source.kind(),
                std::io::ErrorKind::InvalidInput
            );
        });
        assert!(ground.journal.is_aborted(), "{block}");
        let ground = Ground::new(&Image::new(0, REVOKE | V3, 0, 5));
        ground.handle(1, |handle| handle.forget(BlockNo(block)));
        assert!(ground.journal.is_aborted(), "{block}");
    }
}

#[test]
fn a_client_that_is_gone_cannot_seal() {
    let image = Image::new(0, REVOKE | V3, 0, 5);
    let mut ground = Ground::new(&image);
    ground.client = Arc::default();
    let tid = ground.fill(10, 1);
    ground.journal.commit(tid).unwrap();
    let tid = ground.handle(1, |handle| handle.defer(BlockNo(20)));
    assert!(ground.journal.commit(tid).is_err());
    drop(ground.journal);
    assert_eq!(byte_of(&recovered(ground.device.live()), 10), 1);
}

#[test]
fn a_client_that_panics_aborts() {
    struct Panics;
    impl crate::Client for Panics {
        fn seal(&self, _: &mut crate::Sealing<'_>) {
            panic!("on purpose");
        }
        fn committed(&self, _: Tid) {}
        fn aborted(&self, _: &JournalError) {}
    }
    let image = Image::new(0, REVOKE | V3, 0, 5);
    let device = Arc::new(image.device.fork());
    let buffers = pagefence_block_io::BufferCache::new(device, BLOCK as u32, 1 << 20);
    let client = Arc::new(Panics);
    let weak: pagefence_lock_order::primitives::Weak<Panics> = Arc::downgrade(&client);
    let journal =
        crate::Journal::open(Arc::new(buffers), location(), weak, Options::default()).unwrap();
    let mut entry = Held::at_entry();
    let (mut handle, held) = journal.start(&mut entry, 1).unwrap();
    handle.defer(BlockNo(20));
    let tid = handle.tid();
    drop((handle, held));
    assert!(journal.commit(tid).is_err());
    let mut entry = Held::at_entry();
    assert!(journal.start(&mut entry, 1).is_err());
    assert!(journal.close().is_err());
}

#[test]
fn a_client_that_panics_while_the_journal_is_closed_is_an_error() {
    struct Panics;
    impl crate::Client for Panics {
        fn seal(&self, _: &mut crate::Sealing<'_>) {}
        fn committed(&self, _: Tid) {
            panic!("on purpose");
        }
        fn aborted(&self, _: &JournalError) {}
    }
    let image = Image::new(0, REVOKE | V3, 0, 5);
    let device = Arc::new(image.device.fork());
    let buffers = pagefence_block_io::BufferCache::new(device, BLOCK as u32, 1 << 20);
    let client = Arc::new(Panics);
    let weak: pagefence_lock_order::primitives::Weak<Panics> = Arc::downgrade(&client);
    let journal =
        crate::Journal::open(Arc::new(buffers), location(), weak, Options::default()).unwrap();
    let mut entry = Held::at_entry();
    let (mut handle, held) = journal.start(&mut entry, 1).unwrap();
    fill(&mut handle, 10, 1);
    drop((handle, held));
    assert!(journal.close().is_err(), "nothing is home");
}

/// What is left behind is flushed, too, and the host tells a failure to one flush only: it may be
/// that one.
#[test]
fn a_flush_that_an_abort_overtakes_is_no_promise() {
    #[derive(Debug)]
    struct Slow {
        below: MemoryDevice,
        /// Flushes that began; and that may end.
        begun: AtomicU64,
        ends: AtomicU64,
    }
    impl Device for Slow {
        fn size(&self) -> u64 {
            self.below.size()
        }
        fn capabilities(&self) -> Capabilities {
            self.below.capabilities()
        }
        fn read_vectored(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> DeviceResult {
            self.below.read_vectored(offset, buffers)
        }
        fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> DeviceResult {
            self.below.write_vectored(offset, buffers)
        }
        fn flush(&self) -> DeviceResult {
            self.begun.fetch_add(1, Ordering::SeqCst);
            while self.ends.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            Ok(())
        }
        fn discard(&self, offset: u64, length: u64) -> DeviceResult {
            self.below.discard(offset, length)
        }
        fn write_zeroes(&self, offset: u64, length: u64) -> DeviceResult {
            self.below.write_zeroes(offset, length)
        }
    }
    let image = Image::new(0, REVOKE | V3, 0, 5);
    let device = Arc::new(Slow {
        below: image.device.fork(),
        begun: AtomicU64::new(0),
        ends: AtomicU64::new(0),
    });
    let buffers = pagefence_block_io::BufferCache::new(device.clone(), BLOCK as u32, 1 << 20);
    let client: Arc<Recorder> = Arc::default();
    let weak: pagefence_lock_order::primitives::Weak<Recorder> = Arc::downgrade(&client);
    let journal =
        crate::Journal::open(Arc::new(buffers), location(), weak, Options::default()).unwrap();
    thread::scope(|scope| {
        let flush = scope.spawn(|| journal.flush_data());
        while device.begun.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        journal.abort(JournalError::Closed);
        device.ends.store(1, Ordering::SeqCst);
        let flushed = flush.join().unwrap();
        assert!(matches!(flushed, Err(JournalError::Aborted { errno: 5 })));
    });
    assert!(journal.close().is_err());
    assert_eq!(recover(&*device, &image.location).unwrap().errno(), -5);
}
