//! Handles, commits, flushes and the end of a journal under a scheduler that chooses
//! interleavings. It finds who sleeps for ever by itself; besides, what was waited for is there,
//! and each transaction is whole.

use pagefence_block_io::BufferCache;
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Weak;
use pagefence_lock_order::primitives::thread::spawn;
use pagefence_lock_order::schedules::{by_chance, by_priority};

use super::running::*;
use super::*;
use crate::{Journal, Tid};

mod durable;

const SCHEDULES: usize = 2000;

/// Runs `scenario` under schedules by chance, and under such as stop one thread for long: between
/// two steps of a commit all the others may do everything they have to.
fn check(scenario: impl Fn() + Clone + Send + Sync + 'static) {
    by_chance(scenario.clone(), SCHEDULES);
    by_priority(scenario, SCHEDULES);
}

struct World {
    device: Arc<MemoryDevice>,
    client: Arc<Recorder>,
    journal: Arc<Journal>,
}

fn world() -> Arc<World> {
    let device = Arc::new(Image::new(0, REVOKE | V3, 0, 7).device);
    let zeros = [0; 2 * BLOCK];
    device.write(10 * BLOCK as u64, &zeros).unwrap();
    let buffers = Arc::new(BufferCache::new(device.clone(), BLOCK as u32, 1 << 20));
    let client = Arc::new(Recorder::default());
    let weak: Weak<Recorder> = Arc::downgrade(&client);
    let journal = Journal::open(buffers, location(), weak, options(None)).unwrap();
    Arc::new(World {
        device,
        client,
        journal,
    })
}

impl World {
    /// Sets two blocks to one byte; none if the journal can't be used any more.
    fn pair(&self, byte: u8, credits: u32) -> Option<Tid> {
        let mut entry = Held::at_entry();
        let (mut handle, _held) = self.journal.start(&mut entry, credits).ok()?;
        fill(&mut handle, 10, byte);
        handle.defer(BlockNo(20));
        fill(&mut handle, 11, byte);
        Some(handle.tid())
    }

    fn check(&self) -> u8 {
        let after = recovered(self.device.fork());
        assert_eq!(byte_of(&after, 10), byte_of(&after, 11), "in part");
        byte_of(&after, 10)
    }
}

#[test]
fn handles_and_commits_end() {
    check(|| {
        let world = world();
        let threads: Vec<_> = (1..4)
            .map(|byte| {
                let world = world.clone();
                let body = move || {
                    // Two of these don't fit into one transaction.
                    let tid = world.pair(byte, 4).expect("usable");
                    if byte != 2 {
                        world.journal.commit(tid).expect("committed");
                        assert!(world.client.committed.lock().contains(&tid.0));
                    }
                    world.journal.flush_data().expect("flushed");
                };
                spawn("writer", body).expect("a thread")
            })
            .collect();
        for thread in threads {
            thread.join().expect("ended");
        }
        world.check();
        world.journal.close().expect("closed");
        assert!((1..4).contains(&world.check()));
        let told = world.client.committed.lock().clone();
        assert!(told.windows(2).all(|two| two[0] + 1 == two[1]), "in order");
    });
}

#[test]
fn closing_and_aborting_wake_everybody() {
    for abort in [false, true] {
        check(move || {
            let world = world();
            let threads: Vec<_> = (1..3)
                .map(|byte| {
                    let world = world.clone();
                    let body = move || {
                        if let Some(tid) = world.pair(byte, 7) {
                            let _ = world.journal.commit(tid);
                        }
                    };
                    spawn("writer", body).expect("a thread")
                })
                .collect();
            if abort {
                world.journal.abort(JournalError::Closed);
            }
            assert_eq!(world.journal.close().is_err(), abort);
            for thread in threads {
                thread.join().expect("ended");
            }
            world.check();
            assert_eq!(world.client.aborted.lock().len(), usize::from(abort));
        });
    }
}

#[test]
fn a_snapshot_is_whole_and_stays() {
    check(|| {
        let world = world();
        let writer = {
            let world = world.clone();
            let body = move || {
                for byte in 1..4 {
                    let tid = world.pair(byte, 3).expect("usable");
                    world.journal.commit(tid).expect("committed");
                }
                world.journal.close().expect("closed");
            };
            spawn("writer", body).expect("a thread")
        };
        // Or the journal was closed before.
        if let Ok(snapshot) = world.journal.snapshot(world.journal.running(), 1 << 20) {
            let first = byte_of(&*snapshot, 10);
            for _ in 0..3 {
                assert_eq!(byte_of(&*snapshot, 10), first, "it stays");
                assert_eq!(byte_of(&*snapshot, 11), first, "in part");
            }
        }
        writer.join().expect("ended");
        assert_eq!(world.check(), 3);
    });
}
