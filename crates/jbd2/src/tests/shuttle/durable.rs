//! What was promised is there after a power cut at the end of each schedule, whatever else went on:
//! the timer, checkpoints of a tiny log, the end of the journal, aborts, a device that fails.

use std::time::Duration;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::primitives::thread::spawn;

use super::check;
use crate::tests::running::*;
use crate::tests::*;
use crate::{Options, Tid};

/// Where data lies that is written past the journal: a block for each writer.
const DATA: u64 = 50;

/// A journal on a device that forgets what was not flushed. Its timer is always up, so it commits
/// unasked, and brings home what it has committed, as soon as nobody else runs.
fn ground(device: Arc<FaultDevice>) -> Arc<Ground> {
    let timer = Options {
        commit_interval: Duration::ZERO,
        ..options(None)
    };
    let recorder = Recorder::default();
    Arc::new(Ground::on(device, &location(), timer, true, recorder))
}

fn device() -> Arc<FaultDevice> {
    let image = Image::new(0, REVOKE | V3, 0, 7);
    image
        .device
        .write(10 * BLOCK as u64, &[0; 20 * BLOCK])
        .unwrap();
    Arc::new(FaultDevice::new(&image.device, 1))
}

/// Fills `blocks` in a handle of its own; nothing if the journal can't be used any more.
fn fill_all(ground: &Ground, blocks: &[u64], byte: u8, credits: u32) -> Option<Tid> {
    let mut entry = Held::at_entry();
    let (mut handle, _held) = ground.journal.start(&mut entry, credits).ok()?;
    for block in blocks {
        fill(&mut handle, *block, byte);
    }
    Some(handle.tid())
}

/// Makes durable what was written to the device, as an fsync does that has no transaction of its
/// own but `tid`, which may be empty.
fn sync(ground: &Ground, tid: Tid) -> crate::Result<()> {
    let will_flush = ground.journal.running() == tid;
    if tid > ground.journal.committed_tid() {
        ground.journal.commit(tid)?;
    }
    match will_flush {
        true => Ok(()),
        false => ground.journal.flush_data(),
    }
}

fn join(threads: Vec<pagefence_lock_order::primitives::thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("ended");
    }
}

#[test]
fn what_was_committed_while_the_journal_was_closed_is_there() {
    check(|| {
        let ground = ground(device());
        let promised: Arc<[AtomicU64; 2]> = Arc::default();
        let threads: Vec<_> = [0, 1]
            .map(|at: usize| {
                let (ground, promised) = (ground.clone(), promised.clone());
                let body = move || {
                    if let Some(tid) = fill_all(&ground, &[10 + at as u64], 7, 4)
                        && ground.journal.commit(tid).is_ok()
                    {
                        promised[at].store(7, Ordering::SeqCst);
                    }
                };
                spawn("writer", body).expect("a thread")
            })
            .into();
        ground.journal.close().expect("closed");
        join(threads);
        let after = recovered(ground.device.crash(3));
        for (block, promised) in (10..).zip(&*promised) {
            let promised = promised.load(Ordering::SeqCst) as u8;
            assert!(byte_of(&after, block) >= promised, "{block} is lost");
        }
    });
}

#[test]
fn a_sync_flushes_though_its_transaction_is_empty() {
    check(|| {
        let ground = ground(device());
        let threads: Vec<_> = (0..2)
            .map(|at| {
                let ground = ground.clone();
                let body = move || {
                    // One joins a transaction, and then changes nothing.
                    let tid = match at {
                        0 => fill_all(&ground, &[], 0, 1).expect("usable"),
                        _ => ground.journal.running(),
                    };
                    let bytes = [at as u8 + 1; BLOCK];
                    let offset = (DATA + at) * BLOCK as u64;
                    ground.device.write(offset, &bytes).unwrap();
                    sync(&ground, tid).expect("synced");
                    for seed in 0..6 {
                        let after = ground.device.crash(seed);
                        assert_eq!(byte_of(&after, DATA + at), bytes[0], "not flushed");
                    }
                };
                spawn("writer", body).expect("a thread")
            })
            .collect();
        join(threads);
        ground.journal.close().expect("closed");
    });
}

#[test]
fn two_writers_go_round_a_tiny_log() {
    check(|| {
        let ground = ground(device());
        let promised: Arc<[AtomicU64; 2]> = Arc::default();
        let threads: Vec<_> = [0, 1]
            .map(|at: usize| {
                let (ground, promised) = (ground.clone(), promised.clone());
                let body = move || {
                    // The two share a block; each transaction takes a fourth of the log, and some
                    // revoke what others have in it.
                    let own = 11 + 4 * at as u64;
                    for round in 1..6_u8 {
                        let mut entry = Held::at_entry();
                        let (mut handle, held) = ground.journal.start(&mut entry, 5).unwrap();
                        for block in [own, own + 1, own + 2] {
                            fill(&mut handle, block, round);
                        }
                        fill(&mut handle, 10, round);
                        if round % 2 == 0 {
                            handle.forget(BlockNo(own + 3));
                        } else {
                            handle.set(BlockNo(own + 3), &[round; BLOCK]);
                        }
                        let tid = handle.tid();
                        drop((handle, held));
                        if round % 2 == 1 {
                            ground.journal.commit(tid).expect("committed");
                            promised[at].store(round.into(), Ordering::SeqCst);
                        }
                    }
                };
                spawn("writer", body).expect("a thread")
            })
            .into();
        let look = |seed| {
            let promised = [0, 1].map(|at: usize| promised[at].load(Ordering::SeqCst) as u8);
            let after = recovered(ground.device.crash(seed));
            for (own, promised) in [11, 15].into_iter().zip(promised) {
                let shown = [own, own + 1, own + 2].map(|block| byte_of(&after, block));
                assert!(
                    shown.iter().all(|byte| *byte == shown[0]),
                    "{shown:?} in part"
                );
                assert!(shown[0] >= promised, "{} of {promised}", shown[0]);
            }
        };
        look(1);
        join(threads);
        look(2);
        ground.journal.close().expect("closed");
        look(3);
    });
}

#[test]
fn nothing_is_promised_past_a_failure_or_an_abort() {
    // The call of the device that fails; after the last, another thread aborts.
    for call in 0..5 {
        check(move || {
            let device = device();
            let before = device.calls(Operation::Flush);
            device.fail(Fault {
                operation: Operation::Flush,
                call: before + call,
                times: Times::Once,
                errno: 5,
            });
            let ground = ground(device);
            let threads: Vec<_> = (0..3)
                .map(|at| {
                    let ground = ground.clone();
                    let body = move || {
                        let byte = at as u8 + 1;
                        let (block, done) = if at == 2 {
                            let offset = DATA * BLOCK as u64;
                            ground.device.write(offset, &[byte; BLOCK]).unwrap();
                            (DATA, ground.journal.flush_data())
                        } else {
                            let Some(tid) = fill_all(&ground, &[10 + at], byte, 4) else {
                                return;
                            };
                            (10 + at, ground.journal.commit(tid))
                        };
                        for seed in 0..4 {
                            let after = recovered(ground.device.crash(seed));
                            assert!(done.is_err() || byte_of(&after, block) == byte, "{block}");
                        }
                    };
                    spawn("writer", body).expect("a thread")
                })
                .collect();
            if call == 4 {
                ground.journal.abort(JournalError::Closed);
            }
            join(threads);
            let aborted = ground.journal.is_aborted();
            assert_eq!(ground.journal.close().is_err(), ground.journal.is_aborted());
            if aborted {
                assert_eq!(ground.client.aborted.lock().len(), 1);
            }
        });
    }
}
