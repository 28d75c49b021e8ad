//! Bitmaps leave memory again, and lose nothing.

use super::super::RESIDENT_MIN;
use super::super::group_state::Bits;
use super::*;

impl World {
    fn loaded(&self) -> usize {
        let is_loaded = |group: &GroupNo| {
            let state = self.allocator.lock(*group);
            matches!(state.blocks, Bits::Loaded(_)) || matches!(state.inodes, Bits::Loaded(_))
        };
        self.superblock().groups().filter(is_loaded).count()
    }
}

#[test]
fn bitmaps_leave_memory_when_they_may() {
    // 125 groups, and memory for the fewest.
    let world = World::with_memory(ext4(1000, 1024), 1 << 16);
    let groups = world.superblock().group_count();
    assert!(groups as usize > RESIDENT_MIN + 40);
    let mut tx = Tx::default();
    let mut expected = world.in_use();
    let goal = |group: u32| world.superblock().first_block_of_group(GroupNo(group)).0 + 5000;
    let mut busy = Vec::new();
    for group in 0..groups {
        busy.push(world.allocate(goal(group), 10));
    }
    assert_eq!(world.loaded() as u32, groups, "what is busy stays");
    for run in busy.drain(..) {
        let (start, len) = world.allocator.use_run(&mut tx, OWNER, run);
        expected[start.0 as usize..][..len as usize].fill(true);
    }
    assert_eq!(world.loaded() as u32, groups, "what is dirty stays");
    world.commit(&mut tx);
    for group in 0..groups {
        let start = world.take(&mut tx, goal(group) + 100, 3);
        expected[start as usize..][..3].fill(true);
        if group % 10 == 0 {
            world.commit(&mut tx);
        }
    }
    assert!(world.loaded() < RESIDENT_MIN + 20, "{} are", world.loaded());
    for group in 0..groups {
        world.free(&mut tx, goal(group), 4).expect("ours");
        expected[goal(group) as usize..][..4].fill(false);
        let parent = world
            .superblock()
            .inode_of_group(GroupNo(group), 0)
            .expect("one");
        world
            .new_inode(&mut tx, parent, Request::File)
            .expect("free");
        if group % 10 == 0 {
            world.commit(&mut tx);
        }
    }
    world.commit(&mut tx);
    assert!(world.loaded() < RESIDENT_MIN + 20, "{} are", world.loaded());
    assert_eq!(world.in_use(), expected);
    let counts = world.allocator.counts();
    assert_eq!(counts.blocks, counts.blocks_unreserved);
    assert_eq!(counts, world.reopened().allocator.counts());
}

/// A run over more groups than may stay in memory is freed as a whole.
#[test]
fn a_long_run_is_freed_with_little_memory() {
    let mut world = World::new(ext4(1000, 1024));
    world.keep_few_bitmaps(1);
    let superblock = world.superblock();
    // From one flex group's data to the next one's metadata there is no backup.
    let first = superblock.first_block_of_group(GroupNo(66)).0;
    let end = superblock.first_block_of_group(GroupNo(72)).0;
    let mut tx = Tx::default();
    let mut at = first;
    while at < end {
        let run = world.allocate(at, (end - at) as u32);
        assert_eq!(run.start().0, at);
        at += u64::from(world.allocator.use_run(&mut tx, OWNER, run).1);
    }
    world.commit(&mut tx);
    world.commit(&mut tx);
    assert!(world.loaded() <= 1, "{} are", world.loaded());
    let before = world.allocator.counts();
    assert!(is_corrupt(&world.free(
        &mut tx,
        first,
        (end - first) as u32 + 1
    )));
    assert_eq!(world.allocator.counts(), before);
    world
        .free(&mut tx, first, (end - first) as u32)
        .expect("ours");
    assert_eq!(world.commit(&mut tx).freed, [(first, end - first)]);
}
