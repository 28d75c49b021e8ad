//! Many threads on a file system that is nearly full: no block is handed out twice, and the
//! counts are right to the last block.

use pagefence_lock_order::primitives::atomic::{AtomicU32, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Mutex, RwLock, thread};

use super::*;

const THREADS: u32 = 8;
const FREE: u32 = 0;
const PENDING: u32 = u32::MAX;

/// Who owns each block, as those who own them say.
struct Owners {
    blocks: Vec<AtomicU32>,
    world: World,
    /// Shared by those in a transaction, exclusive for its commit.
    running: RwLock<()>,
    tid: AtomicU64,
    deferred: Mutex<BTreeSet<BlockNo>>,
}

impl Owners {
    fn change(&self, start: u64, count: u32, before: u32, after: u32) {
        for block in start..start + u64::from(count) {
            let was = self.blocks[block as usize].swap(after, Ordering::SeqCst);
            assert_eq!(was, before, "block {block}, which becomes {after}'s");
        }
    }

    fn with_tx<T>(&self, visit: impl FnOnce(&mut Tx) -> T) -> T {
        let _open = self.running.read();
        let mut tx = Tx {
            tid: self.tid.load(Ordering::SeqCst),
            ..Tx::default()
        };
        let result = visit(&mut tx);
        self.deferred.lock().extend(tx.deferred);
        result
    }

    fn commit(&self) {
        let closed = self.running.write();
        let mut tx = Tx {
            tid: self.tid.fetch_add(1, Ordering::SeqCst),
            deferred: std::mem::take(&mut self.deferred.lock()),
        };
        let mut sealing = Sealing {
            world: &self.world,
            tx: &tx,
            blocks: BTreeMap::new(),
        };
        self.world
            .allocator
            .seal(&mut sealing, |_, _| self.world.superblock().clone())
            .expect("in memory");
        assert!(sealing.blocks.keys().eq(&tx.deferred));
        drop(closed);
        // The next transaction runs while this one becomes durable.
        self.world.allocator.committed(tx.tid, |start, count| {
            self.change(start.0, count as u32, PENDING, FREE);
        });
        tx.deferred.clear();
    }

    /// One thread's life; gives what it owns in the end.
    fn live(&self, me: u32) -> Vec<(u64, u32)> {
        let World {
            instance,
            allocator,
            ..
        } = &self.world;
        let mut owned: Vec<(u64, u32)> = Vec::new();
        let mut random = u64::from(me).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut roll = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for _ in 0..1500 {
            let want = 1 + roll(60);
            let waits = allocator.pending_tid().is_some();
            match allocator.reserve(want, Claim::of(me.is_multiple_of(2))) {
                Ok(mut promised) => {
                    while promised.blocks() > 0 {
                        let goal = BlockNo(roll(self.blocks.len() as u64));
                        let most = 1 + roll(40) as u32;
                        let run = allocator
                            .allocate(instance, goal, most, &mut promised)
                            .expect("a promise is kept");
                        let (start, len) = (run.start().0, run.len());
                        self.change(start, len, FREE, me);
                        if roll(5) == 0 {
                            self.change(start, len, me, FREE);
                            if roll(2) == 0 {
                                drop(run);
                            } else {
                                run.give_back(&mut promised);
                                promised.shrink_to(want / 2);
                            }
                            continue;
                        }
                        self.with_tx(|tx| allocator.use_run(tx, OWNER, run));
                        owned.push((start, len));
                    }
                }
                Err(Error::NoSpace) if waits => self.commit(),
                Err(Error::NoSpace) => {}
                Err(error) => panic!("{error}"),
            }
            if owned.len() > 100 || (roll(3) == 0 && !owned.is_empty()) {
                let (start, len) = owned.swap_remove(roll(owned.len() as u64) as usize);
                self.with_tx(|tx| {
                    self.change(start, len, me, PENDING);
                    self.world.free(tx, start, len).expect("ours");
                });
            }
        }
        owned
    }
}

#[test]
fn no_block_has_two_owners() {
    fight_for_blocks(World::new(image(16, 1024, Kind::Ext4, "^resize_inode")));
}

/// Bitmaps come and go all the time, too.
#[test]
fn no_block_has_two_owners_while_bitmaps_leave_memory() {
    let mut world = World::new(image(48, 1024, Kind::Ext4, "^resize_inode"));
    world.keep_few_bitmaps(1);
    fight_for_blocks(world);
}

fn fight_for_blocks(world: World) {
    let before = world.allocator.counts();
    let in_use = world.in_use();
    // So little is left that all of it is fought for.
    let mut tx = Tx::default();
    let mut filled = before.blocks_unreserved - 5000;
    while filled > 0 {
        let run = world.allocate(1, filled.min(8000) as u32);
        filled -= u64::from(world.allocator.use_run(&mut tx, OWNER, run).1);
    }
    world.commit(&mut tx);
    let filled = world.in_use();
    let owners = Owners {
        blocks: filled
            .iter()
            .map(|in_use| AtomicU32::new(if *in_use { THREADS + 1 } else { FREE }))
            .collect(),
        world,
        running: RwLock::new(()),
        tid: AtomicU64::new(tx.tid),
        deferred: Mutex::new(BTreeSet::new()),
    };
    let owned: Vec<(u64, u32)> = thread::scope(|scope| {
        let lives: Vec<_> = (1..=THREADS)
            .map(|me| {
                let owners = &owners;
                scope.spawn(move || owners.live(me))
            })
            .collect();
        lives
            .into_iter()
            .flat_map(|life| life.join().expect("it lives"))
            .collect()
    });
    owners.commit();
    let world = &owners.world;
    let total: u64 = owned.iter().map(|(_, len)| u64::from(*len)).sum();
    let counts = world.allocator.counts();
    assert_eq!(counts.blocks, 5000 - total);
    assert_eq!(counts.blocks_unreserved, 5000 - total);
    let owned_now: Vec<bool> = owners
        .blocks
        .iter()
        .map(|owner| owner.load(Ordering::SeqCst) != FREE)
        .collect();
    assert_eq!(world.in_use(), owned_now);
    let left = world.reserve(counts.blocks);
    assert!(is_no_space(&world.allocator.reserve(1, Claim::Map)));
    drop(left);

    // All of it given back is all there was.
    owners.with_tx(|tx| {
        for (start, len) in owned {
            owners.change(
                start,
                len,
                owners.blocks[start as usize].load(Ordering::SeqCst),
                PENDING,
            );
            world.free(tx, start, len).expect("ours");
        }
        for (block, now) in (0..).zip(&filled) {
            if *now && !in_use[block as usize] {
                owners.change(block, 1, THREADS + 1, PENDING);
                world.free(tx, block, 1).expect("ours");
            }
        }
    });
    owners.commit();
    assert_eq!(world.allocator.counts(), before);
    assert_eq!(world.in_use(), in_use);
}

/// Inodes taken and freed by many: each number has one owner, and the counts are right.
#[test]
fn no_inode_has_two_owners() {
    let world = World::new(image(16, 1024, Kind::Ext4, "^resize_inode"));
    let before = world.allocator.counts();
    let owners = Owners {
        blocks: (0..=world.superblock().inodes_count())
            .map(|_| AtomicU32::new(FREE))
            .collect(),
        world,
        running: RwLock::new(()),
        tid: AtomicU64::new(0),
        deferred: Mutex::new(BTreeSet::new()),
    };
    let world = &owners.world;
    let kept: u64 = thread::scope(|scope| {
        let lives: Vec<_> = (1..=THREADS)
            .map(|me| {
                let owners = &owners;
                scope.spawn(move || {
                    let mut mine = Vec::new();
                    for round in 0..600_u32 {
                        let request = if round % 3 == 0 {
                            Request::Directory
                        } else {
                            Request::File
                        };
                        let parent = InodeNo(2 + me * 300);
                        let new = owners.with_tx(|tx| world.new_inode(tx, parent, request));
                        match new {
                            Ok(new) => {
                                owners.change(new.number.0.into(), 1, FREE, me);
                                mine.push((new.number, request));
                            }
                            Err(Error::NoSpace) => owners.commit(),
                            Err(error) => panic!("{error}"),
                        }
                        if round % 5 == 4 && !mine.is_empty() {
                            let (number, kind) = mine.swap_remove(mine.len() / 2);
                            owners.change(number.0.into(), 1, me, FREE);
                            owners.with_tx(|tx| {
                                let is_directory = kind != Request::File;
                                world
                                    .allocator
                                    .free_inode(&world.instance, tx, number, is_directory)
                                    .expect("mine");
                            });
                        }
                        if round % 50 == 49 && me == 1 {
                            owners.commit();
                        }
                    }
                    mine.len() as u64
                })
            })
            .collect();
        lives
            .into_iter()
            .map(|life| life.join().expect("it lives"))
            .sum()
    });
    owners.commit();
    assert_eq!(world.allocator.counts().inodes, before.inodes - kept);
    let used = (1..=world.superblock().inodes_count())
        .filter(|number| {
            world
                .allocator
                .is_inode_in_use(&world.instance, InodeNo(*number))
                .expect("in memory")
        })
        .count() as u64;
    assert_eq!(
        used,
        u64::from(world.superblock().inodes_count()) - before.inodes + kept
    );
}
