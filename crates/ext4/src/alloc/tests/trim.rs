//! Free runs, for the device to be told of.

use pagefence_lock_order::primitives::thread;

use super::*;

impl World {
    /// Goes through all groups as FITRIM does.
    fn trim(&self, least: u32) -> Vec<(u64, u32)> {
        let superblock = self.superblock();
        let mut told = Vec::new();
        for group in superblock.groups() {
            let first = superblock.first_block_of_group(group).0;
            let end = first + u64::from(superblock.blocks_in_group(group));
            let mut at = first;
            while at < end {
                let next = self
                    .allocator
                    .next_free_run(&self.instance, BlockNo(at), least)
                    .expect("in memory");
                let Some(run) = next else { break };
                assert!(run.start().0 >= at && run.start().0 + u64::from(run.len()) <= end);
                told.push((run.start().0, run.len()));
                at = run.start().0 + u64::from(run.len());
            }
        }
        told
    }
}

#[test]
fn all_that_is_free_is_told_and_nothing_else() {
    let world = World::new(ext4(64, 1024));
    let mut tx = Tx::default();
    let used = world.take(&mut tx, 9000, 100);
    let freed = world.take(&mut tx, 12_000, 100);
    world.commit(&mut tx);
    world.free(&mut tx, freed, 100).expect("ours");
    let busy = world.allocate(15_000, 100);
    let before = world.allocator.counts();

    let mut expected = world.in_use();
    expected[busy.start().0 as usize..][..100].fill(true);
    expected[freed as usize..][..100].fill(true);
    let mut told = vec![false; expected.len()];
    for (start, len) in world.trim(1) {
        for block in &mut told[start as usize..][..len as usize] {
            assert!(!std::mem::replace(block, true), "told once");
        }
    }
    for (block, (told, in_use)) in told.iter().zip(&expected).enumerate() {
        assert_ne!(told, in_use, "block {block}");
    }
    assert_eq!(world.allocator.counts(), before, "all was given back");
    assert!(expected[used as usize]);

    for least in [101, 4000] {
        assert!(world.trim(least).iter().all(|(_, len)| *len >= least));
    }
    assert!(world.trim(9000).is_empty());

    // What is being told of is nobody's.
    let run = world
        .allocator
        .next_free_run(&world.instance, BlockNo(20_000), 1)
        .expect("in memory")
        .expect("free");
    assert_eq!(run.start().0, 20_000);
    let other = world.allocate(20_000, 10);
    let end = run.start().0 + u64::from(run.len());
    assert!(other.start().0 >= end || other.start().0 + 10 <= 20_000);
}

/// What is promised has no place yet: the device may be told of it, and the promise holds.
#[test]
fn what_is_told_of_stays_promised() {
    let world = World::new(ext4(8, 1024));
    let free = world.allocator.counts().blocks;
    let mut all = world.reserve(free);
    let told: u64 = world.trim(1).iter().map(|(_, len)| u64::from(*len)).sum();
    assert_eq!(told, free);
    thread::scope(|scope| {
        let mut at = world.superblock().first_data_block();
        let lent = loop {
            let run = world
                .allocator
                .next_free_run(&world.instance, at, 1)
                .expect("in memory");
            match run {
                Some(run) => break run,
                None => at = BlockNo(at.0 + 1),
            }
        };
        let taker = scope.spawn(|| {
            let mut taken = Vec::new();
            while all.blocks() > 0 {
                let goal = BlockNo(1);
                let run = world
                    .allocator
                    .allocate(&world.instance, goal, u32::MAX, &mut all);
                taken.push(run.expect("it is promised"));
            }
            taken
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(lent);
        let taken = taker.join().expect("no panic");
        let sum: u64 = taken.iter().map(|run| u64::from(run.len())).sum();
        assert_eq!(sum, free);
    });
}
