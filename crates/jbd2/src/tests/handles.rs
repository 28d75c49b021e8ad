//! What handles, commits, checkpoints and the end of a journal do, one rule a test.

use std::time::{Duration, Instant};

use pagefence_block_io::DeviceError;
use pagefence_ext4_format::journal::superblock::RawJournalSuperblock;
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::primitives::thread;
use pagefence_lock_order::primitives::{Mutex, Weak};
use zerocopy::FromBytes;

use super::running::*;
use super::*;
use crate::Tid;

fn image() -> Image {
    Image::new(0, REVOKE | V3 | WIDE, 0, 7)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
        thread::yield_now();
    }
}

#[test]
fn a_change_is_seen_at_once_and_committed_as_a_whole() {
    let ground = Ground::new(&image());
    let old = ground.buffers.read(10).unwrap();
    old.set_verified(5);
    old.set_owner(12);
    let tid = ground.handle(3, |handle| {
        fill(handle, 10, 1);
        fill(handle, 11, 2);
        let refused = handle.change(BlockNo(12), |bytes| {
            bytes.fill(9);
            let source = std::io::Error::other("no");
            let error = DeviceError {
                operation: Operation::Read,
                offset: 0,
                length: 0,
                source,
            };
            Err::<(), DeviceError>(error)
        });
        assert!(refused.is_err());
        assert_eq!(handle.credits(), 1, "an edit that failed takes nothing");
    });
    assert_eq!(tid, Tid(1));
    assert_eq!(old[0], 0x80 | 10, "who read it keeps what he has");
    let new = ground.buffers.read(10).unwrap();
    assert_eq!(new[0], 1);
    assert!(new.verified(5), "checks that were passed count on");
    assert_eq!(new.owner(), 12, "and so does whose it is");
    assert_eq!(ground.cached(12), 0x80 | 12);
    let before = recovered(ground.device.crash(1));
    assert_eq!(byte_of(&before, 10), 0x80 | 10);
    ground.journal.commit(tid).unwrap();
    assert_eq!(ground.journal.committed_tid(), tid);
    assert_eq!(ground.journal.running(), Tid(2));
    for seed in 0..8 {
        let after = recovered(ground.device.crash(seed));
        assert_eq!((byte_of(&after, 10), byte_of(&after, 11)), (1, 2));
    }
    assert_eq!(ground.at_home(10), 0x80 | 10, "home comes later");
    assert_eq!(*ground.client.committed.lock(), [1]);
    assert!(
        ground.client.sealed.lock().is_empty(),
        "nothing was deferred"
    );
    assert_eq!(ground.journal.overdrawn(), 0);
}

#[test]
fn credits_are_taken_once_per_block_and_given_back() {
    let ground = Ground::new(&image());
    assert_eq!(ground.journal.max_credits(), 7);
    let mut entry = Held::at_entry();
    let error = ground.journal.start(&mut entry, 8);
    assert!(matches!(
        error,
        Err(JournalError::LogFull { needed: 8, free: 7 })
    ));
    drop(error);
    for round in 0..20 {
        // Seven each: they fit only because what is not used goes back.
        let tid = ground.handle(7, |handle| {
            fill(handle, 10, round);
            fill(handle, 10, round);
            assert_eq!(handle.credits(), if round == 0 { 6 } else { 7 });
        });
        assert_eq!(tid, Tid(1));
        if round == 0 {
            let tid = ground.handle(6, |handle| {
                assert!(!handle.extend(1), "one is in use");
                assert_eq!(handle.credits(), 6);
            });
            assert_eq!(tid, Tid(1));
            break;
        }
    }
    let tid = ground.handle(2, |handle| {
        assert!(handle.extend(4));
        assert_eq!(handle.credits(), 6);
        assert!(!handle.extend(u32::MAX));
    });
    assert_eq!(tid, Tid(1));
    // Who asks for too little is counted, and what it does is not lost.
    let tid = ground.handle(0, |handle| fill(handle, 20, 1));
    assert_eq!(ground.journal.overdrawn(), 1);
    ground.journal.commit(tid).unwrap();
    assert_eq!(byte_of(&recovered(ground.device.crash(0)), 20), 1);
}

#[test]
fn a_handle_that_does_not_fit_has_the_transaction_committed() {
    let ground = Ground::new(&image());
    let tid = ground.handle(7, |handle| {
        for block in 10..17 {
            fill(handle, block, 1);
        }
    });
    assert_eq!(tid, Tid(1));
    assert_eq!(ground.fill(17, 2), Tid(2), "nobody else asked for a commit");
    wait_until("commit", || ground.journal.committed_tid() >= Tid(1));
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "Handle 0 taken while Handle 0 is held")]
fn a_handle_within_a_handle_is_caught() {
    let ground = Ground::new(&image());
    let (mut entry, mut other) = (Held::at_entry(), Held::at_entry());
    let _first = ground.journal.start(&mut entry, 1).unwrap();
    let _second = ground.journal.start(&mut other, 1);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "Handle 0 taken while Handle 0 is held")]
fn waiting_for_a_commit_within_a_handle_is_caught() {
    let ground = Ground::new(&image());
    ground.handle(1, |handle| {
        let _ = ground.journal.commit(handle.tid());
    });
}

#[test]
fn a_commit_begins_its_flush_after_the_last_handle() {
    let ground = Ground::new(&image());
    let tid = ground.handle(2, |handle| {
        let flushes = ground.device.calls(Operation::Flush);
        ground.journal.request_commit(handle.tid());
        std::thread::sleep(Duration::from_millis(30));
        fill(handle, 10, 1);
        assert_eq!(ground.device.calls(Operation::Flush), flushes);
    });
    ground.journal.commit(tid).unwrap();
    assert_eq!(byte_of(&recovered(ground.device.crash(0)), 10), 1);
}

#[test]
fn one_commit_serves_all_who_wait_for_it() {
    let ground = Ground::new(&image());
    let waiting = AtomicU64::new(0);
    let flushes = ground.device.calls(Operation::Flush);
    thread::scope(|scope| {
        let tid = ground.handle(1, |handle| {
            fill(handle, 10, 1);
            for _ in 0..6 {
                scope.spawn(|| {
                    waiting.fetch_add(1, Ordering::SeqCst);
                    ground.journal.commit(Tid(1)).unwrap();
                });
            }
            wait_until("waiters", || waiting.load(Ordering::SeqCst) == 6);
        });
        assert_eq!(tid, Tid(1));
    });
    assert_eq!(ground.device.calls(Operation::Flush) - flushes, 2);
    assert_eq!(*ground.client.committed.lock(), [1]);
}

#[test]
fn a_transaction_is_committed_when_it_is_old_or_its_handle_says_so() {
    let mut options = options(None);
    options.commit_interval = Duration::from_millis(20);
    let ground = Ground::with(&image(), options, true);
    let tid = ground.fill(10, 1);
    wait_until("timer", || ground.journal.committed_tid() >= tid);
    wait_until("home when idle", || ground.at_home(10) == 1);
    let ground = Ground::new(&image());
    let tid = ground.handle(1, |handle| {
        fill(handle, 10, 1);
        handle.sync();
    });
    wait_until("sync", || ground.journal.committed_tid() >= tid);
}

#[test]
fn a_commit_of_nothing_flushes_and_takes_no_log() {
    let ground = Ground::new(&image());
    let flushes = ground.device.calls(Operation::Flush);
    ground.journal.commit(Tid(1)).unwrap();
    assert_eq!(ground.device.calls(Operation::Flush), flushes + 1);
    assert_eq!(ground.device.calls(Operation::Write), 0);
    ground.journal.commit(Tid(1)).unwrap();
    assert_eq!(ground.device.calls(Operation::Flush), flushes + 1);
    assert_eq!(*ground.client.committed.lock(), [1]);
    let tid = ground.fill(10, 1);
    ground.journal.commit(tid).unwrap();
    assert_eq!(byte_of(&recovered(ground.device.crash(0)), 10), 1);
}

#[test]
fn deferred_blocks_are_sealed_once() {
    let ground = Ground::new(&image());
    let tid = ground.handle(4, |handle| {
        handle.defer(BlockNo(20));
        handle.defer(BlockNo(20));
        handle.defer(BlockNo(21));
        fill(handle, 21, 9);
        assert_eq!(handle.credits(), 2);
        fill(handle, 22, 3);
        handle.defer(BlockNo(22));
        handle.defer(BlockNo(23));
        handle.forget(BlockNo(23));
        assert_eq!(handle.credits(), 0);
    });
    assert_eq!(ground.journal.overdrawn(), 1, "the revoke record");
    ground.journal.commit(tid).unwrap();
    assert_eq!(*ground.client.sealed.lock(), [1]);
    let after = recovered(ground.device.crash(0));
    for block in [20, 21, 22] {
        let mut bytes = vec![0; BLOCK];
        after.read(block * BLOCK as u64, &mut bytes).unwrap();
        assert_eq!(bytes, pattern(tid), "{block}");
        assert_eq!(&ground.buffers.read(block).unwrap()[..], pattern(tid));
    }
}

#[test]
fn a_block_that_is_not_sealed_aborts() {
    let image = image();
    let device = Arc::new(FaultDevice::new(&image.device, 1));
    let client = Recorder {
        lazy: true,
        ..Recorder::default()
    };
    let ground = Ground::on(device, &image.location, options(None), true, client);
    let tid = ground.handle(2, |handle| {
        fill(handle, 10, 1);
        handle.defer(BlockNo(20));
    });
    let outcome = ground.journal.commit(tid);
    assert!(matches!(outcome, Err(JournalError::Aborted { .. })));
    assert_eq!(byte_of(&recovered(ground.device.live()), 10), 0x80 | 10);
}

#[test]
fn blocks_that_are_not_home_stay_in_memory() {
    // The cache has room for one buffer a shard.
    let ground = Ground::new(&image());
    for round in 0..40_u64 {
        let tid = ground.fill(10 + round % 4, round as u8);
        if round % 2 == 0 {
            ground.journal.commit(tid).unwrap();
        }
        for other in 60..90 {
            let _ = ground.buffers.read(other).unwrap();
        }
        for back in 0..4.min(round + 1) {
            let newest = (round - back) as u8;
            assert_eq!(ground.cached(10 + (round - back) % 4), newest);
        }
    }
}

#[test]
fn a_block_goes_home_as_committed_while_it_is_changed_again() {
    let ground = Ground::new(&image());
    // Block 10 is committed once, and changed in a transaction that stays open through the
    // checkpoints of 40 more: its handle's transaction cannot be committed, so run them first.
    let tid = ground.fill(10, 1);
    ground.journal.commit(tid).unwrap();
    for round in 0..12 {
        let tid = ground.fill(20, round);
        ground.journal.commit(tid).unwrap();
        ground.fill(10, 0xee);
        assert_ne!(ground.at_home(20), 0xee);
    }
    ground.journal.close().unwrap();
    assert_eq!(ground.at_home(10), 0xee);
}

#[test]
fn closing_brings_everything_home_and_empties_the_log() {
    let image = image();
    let ground = Ground::new(&image);
    ground.fill(10, 1);
    ground.handle(2, |handle| handle.defer(BlockNo(20)));
    ground.journal.close().unwrap();
    ground.journal.close().unwrap();
    for device in [ground.device.live(), ground.device.crash(3)] {
        let recovery = recover(&device, &image.location).unwrap();
        assert!(recovery.is_clean());
        // 8 was the first transaction, 9 is the next one.
        assert_eq!(recovery.superblock().sequence, Sequence(9));
        assert_eq!(byte_of(&device, 10), 1);
    }
    let mut entry = Held::at_entry();
    assert!(matches!(
        ground.journal.start(&mut entry, 1),
        Err(JournalError::Closed)
    ));
    // Nothing is flushed any more that is written now.
    let late = ground.journal.commit(ground.journal.running());
    assert!(matches!(late, Err(JournalError::Closed)));
    // Its next life goes on.
    let again = Ground::on(
        ground.device.clone(),
        &image.location,
        options(None),
        true,
        Recorder::default(),
    );
    let tid = again.fill(10, 2);
    again.journal.commit(tid).unwrap();
    assert_eq!(byte_of(&recovered(again.device.crash(4)), 10), 2);
}

#[test]
fn a_journal_that_was_not_used_is_not_written() {
    let image = image();
    let ground = Ground::new(&image);
    ground.journal.close().unwrap();
    assert_eq!(ground.device.calls(Operation::Write), 0);
    let ground = Ground::new(&image);
    drop(ground.journal);
    assert_eq!(ground.device.calls(Operation::Write), 0);
}

#[test]
fn dropping_leaves_what_was_committed_to_recovery() {
    let ground = Ground::new(&image());
    let tid = ground.fill(10, 1);
    ground.journal.commit(tid).unwrap();
    ground.fill(11, 1);
    drop(ground.journal);
    let after = recovered(ground.device.live());
    assert_eq!(byte_of(&after, 10), 1);
    assert_eq!(byte_of(&after, 11), 0x80 | 11);
}

#[test]
fn closing_waits_for_handles_and_turns_away_others() {
    let ground = Ground::new(&image());
    thread::scope(|scope| {
        ground.handle(2, |handle| {
            let closer = scope.spawn(|| ground.journal.close().unwrap());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!closer.is_finished());
            let other = scope.spawn(|| {
                // Until the closer got so far.
                wait_until("closed", || {
                    let mut entry = Held::at_entry();
                    let outcome = ground.journal.start(&mut entry, 1).map(|_| ());
                    matches!(outcome, Err(JournalError::Closed))
                });
            });
            fill(handle, 10, 1);
            other.join().unwrap();
        });
    });
    assert_eq!(ground.at_home(10), 1);
}

#[test]
fn a_journal_that_cannot_be_used_is_refused() {
    let open = |image: &Image| {
        let device = Arc::new(image.device.fork());
        let buffers = pagefence_block_io::BufferCache::new(device, BLOCK as u32, 1 << 20);
        let client: Arc<Recorder> = Arc::default();
        let weak: pagefence_lock_order::primitives::Weak<Recorder> = Arc::downgrade(&client);
        crate::Journal::open(Arc::new(buffers), location(), weak, options(None)).map(|_| ())
    };
    let mut used = Image::new(0, REVOKE, 1, 5);
    used.transaction(&set(&[(3, 1)]));
    assert!(matches!(open(&used), Err(JournalError::NotEmpty)));
    let first = Image::new(0, 0, 0, 5);
    let mut bytes = vec![0; BLOCK];
    first.device.read(first.offset(0), &mut bytes).unwrap();
    let (raw, _) = RawJournalSuperblock::mut_from_prefix(&mut bytes).unwrap();
    raw.s_header = RawHeader::new(BlockKind::SuperblockV1, Sequence(0));
    first.device.write(first.offset(0), &bytes).unwrap();
    assert!(matches!(open(&first), Err(JournalError::RevokeUnsupported)));
    assert!(open(&image()).is_ok());
}

#[test]
fn revokes_switch_their_feature_on() {
    let image = Image::new(0, V3, 0, 5);
    let ground = Ground::new(&image);
    let tid = ground.fill(10, 1);
    ground.journal.commit(tid).unwrap();
    let found = recover(&ground.device.crash(0), &image.location).unwrap();
    assert!(!found.superblock().format.features.revoke());
    let tid = ground.handle(1, |handle| handle.forget(BlockNo(10)));
    ground.journal.commit(tid).unwrap();
    let found = recover(&ground.device.crash(0), &image.location).unwrap();
    assert!(found.superblock().format.features.revoke());
    assert_eq!((found.revoke_records(), found.revoked_blocks()), (1, 1));
    assert!(found.replacements().is_empty());
}

#[test]
fn a_block_may_be_forgotten_and_come_back_in_one_transaction() {
    for (what, again) in [("set", true), ("changed", false)] {
        let ground = Ground::new(&image());
        let tid = ground.fill(10, 1);
        ground.journal.commit(tid).unwrap();
        let tid = ground.handle(4, |handle| {
            fill(handle, 10, 2);
            handle.forget(BlockNo(10));
            if again {
                handle.set(BlockNo(10), &[3; BLOCK]);
            } else {
                handle
                    .change(BlockNo(10), |bytes| {
                        assert_eq!(bytes[0], 2);
                        bytes.fill(3);
                        Ok::<(), DeviceError>(())
                    })
                    .unwrap();
            }
            handle.set(BlockNo(11), &[4; BLOCK]);
            handle.forget(BlockNo(11));
        });
        ground.journal.commit(tid).unwrap();
        let after = recovered(ground.device.crash(0));
        assert_eq!(byte_of(&after, 10), 3, "{what}");
        assert_eq!(byte_of(&after, 11), 0x80 | 11, "{what}");
        ground.journal.close().unwrap();
        assert_eq!(ground.at_home(10), 3, "{what}");
        assert_eq!(ground.at_home(11), 0x80 | 11, "{what}");
    }
}

#[test]
fn a_forgotten_block_never_goes_home_and_leaves_the_cache() {
    let ground = Ground::new(&image());
    let tid = ground.fill(10, 1);
    ground.journal.commit(tid).unwrap();
    let tid = ground.handle(1, |handle| handle.forget(BlockNo(10)));
    ground.journal.commit(tid).unwrap();
    assert!(ground.buffers.peek(10).is_none());
    // File data by now.
    let data = [0x77; BLOCK];
    ground.device.write(10 * BLOCK as u64, &data).unwrap();
    ground.journal.flush_data().unwrap();
    assert_eq!(byte_of(&recovered(ground.device.crash(0)), 10), 0x77);
    ground.journal.close().unwrap();
    assert_eq!(ground.at_home(10), 0x77);
}

#[test]
fn a_revoke_is_recorded_even_if_the_block_is_home() {
    let ground = Ground::new(&image());
    // Home by a checkpoint, but its copy is still in the log: block 11 keeps it there.
    let tid = ground.handle(2, |handle| {
        fill(handle, 10, 1);
        fill(handle, 11, 1);
    });
    ground.journal.commit(tid).unwrap();
    let tid = ground.handle(1, |handle| handle.forget(BlockNo(10)));
    ground.journal.commit(tid).unwrap();
    ground
        .device
        .write(10 * BLOCK as u64, &[0x77; BLOCK])
        .unwrap();
    ground.journal.flush_data().unwrap();
    let found = recover(&ground.device.crash(0), &location()).unwrap();
    assert_eq!(found.revoke_records(), 1);
}

#[test]
fn without_a_log_commits_go_home_in_two_steps() {
    let image = image();
    let ground = Ground::with(&image, options(None), false);
    ground.device.start_trace();
    let tid = ground.handle(4, |handle| {
        fill(handle, 30, 1);
        handle.defer(BlockNo(20));
        handle.set(BlockNo(31), &[2; BLOCK]);
        handle.forget(BlockNo(31));
    });
    ground.journal.commit(tid).unwrap();
    assert_eq!(ground.journal.overdrawn(), 0);
    let trace = ground.device.take_trace().unwrap();
    let mut seen = [false; 2];
    trace.walk(|point| {
        let states = point.crash_states();
        for state in states.explore(1, 8) {
            let image = states.image(&state);
            let whole = |block, expected: &[u8]| {
                let mut bytes = vec![0; BLOCK];
                image.read(block * BLOCK as u64, &mut bytes).unwrap();
                bytes == expected
            };
            let free = !whole(20, &[0x80 | 20; BLOCK]);
            let refers = whole(30, &[1; BLOCK]);
            assert!(refers || !free, "what is free first");
            seen[0] |= refers && !free;
            seen[1] |= free;
        }
    });
    assert_eq!(seen, [true, true]);
    assert_eq!(*ground.client.committed.lock(), [1]);
    let after = ground.device.crash(0);
    assert_eq!(byte_of(&after, 30), 1);
    assert_eq!(byte_of(&after, 31), 0x80 | 31);
    ground.fill(40, 5);
    ground.journal.close().unwrap();
    assert_eq!(byte_of(&ground.device.crash(0), 40), 5);
}

#[test]
fn flushes_are_shared_by_those_who_came_before_they_began() {
    let ground = Ground::new(&image());
    for round in 0..3_u8 {
        ground
            .device
            .write(50 * BLOCK as u64, &[round; BLOCK])
            .unwrap();
        ground.journal.flush_data().unwrap();
        assert_eq!(byte_of(&ground.device.crash(u64::from(round)), 50), round);
    }
}

#[test]
fn closing_ends_though_others_go_on_starting_handles() {
    /// After each commit somebody comes who changes a block, or is turned away.
    #[derive(Default)]
    struct Crowd {
        journal: Mutex<Weak<crate::Journal>>,
        joined: AtomicU64,
        refused: AtomicU64,
    }
    impl crate::Client for Crowd {
        fn seal(&self, _: &mut crate::Sealing<'_>) {}
        fn committed(&self, _: Tid) {
            let Some(journal) = self.journal.lock().upgrade() else {
                return;
            };
            let come = || {
                let mut entry = Held::at_entry();
                let started = journal.start(&mut entry, 1);
                started.map(|(mut handle, _held)| fill(&mut handle, 10, 1))
            };
            let outcome = thread::scope(|scope| scope.spawn(come).join().unwrap());
            match outcome {
                Ok(()) => assert!(self.joined.fetch_add(1, Ordering::SeqCst) < 5, "no end"),
                Err(_) => drop(self.refused.fetch_add(1, Ordering::SeqCst)),
            }
        }
        fn aborted(&self, _: &JournalError) {}
    }
    let device = Arc::new(image().device.fork());
    let buffers = pagefence_block_io::BufferCache::new(device.clone(), BLOCK as u32, 1 << 20);
    let client: Arc<Crowd> = Arc::default();
    let weak: Weak<Crowd> = Arc::downgrade(&client);
    let journal = crate::Journal::open(Arc::new(buffers), location(), weak, options(None)).unwrap();
    *client.journal.lock() = Arc::downgrade(&journal);
    let mut entry = Held::at_entry();
    let (mut handle, held) = journal.start(&mut entry, 1).unwrap();
    fill(&mut handle, 10, 7);
    drop((handle, held));
    journal.close().unwrap();
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    assert_eq!((count(&client.joined), count(&client.refused)), (0, 1));
    assert_eq!(byte_of(&*device, 10), 7);
}

#[test]
fn who_closes_too_waits_until_it_is_closed() {
    let ground = Ground::new(&image());
    thread::scope(|scope| {
        ground.handle(1, |handle| {
            fill(handle, 10, 1);
            let closers = [(); 2].map(|()| scope.spawn(|| ground.journal.close().unwrap()));
            std::thread::sleep(Duration::from_millis(30));
            assert!(closers.iter().all(|closer| !closer.is_finished()));
        });
    });
    assert_eq!(ground.at_home(10), 1);
}
