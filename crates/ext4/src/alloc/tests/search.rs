//! Where runs are found, and what uninitialised groups cost.

use super::*;
use crate::alloc::Reach;
use crate::alloc::group_state::Bits;

#[test]
fn one_file_is_in_one_piece() {
    let world = World::new(ext4(64, 1024));
    let mut tx = Tx::default();
    let first = world.take(&mut tx, 9000, 100);
    let mut end = first + 100;
    for _ in 0..20 {
        assert_eq!(
            world.take(&mut tx, end, 50),
            end,
            "right behind the last extent"
        );
        end += 50;
    }
    // Somebody else sits behind it now: the next run that is long enough does.
    let other = world.take(&mut tx, end, 1);
    world.take(&mut tx, end + 11, 1);
    assert_eq!(world.take(&mut tx, end, 10), other + 1);
    world.free(&mut tx, other + 1, 10).expect("ours");
    world.commit(&mut tx);
    assert_eq!(
        world.take(&mut tx, end, 11),
        end + 12,
        "a hole of ten is passed"
    );
    assert_eq!(
        world.take(&mut tx, end, 10),
        other + 1,
        "and is right for ten"
    );
}

#[test]
fn a_run_ends_where_its_group_does() {
    let world = World::new(ext4(64, 1024));
    let end = world.superblock().first_block_of_group(GroupNo(5)).0;
    let run = world.allocate(end - 3, 40);
    assert_eq!((run.start().0, run.len()), (end - 3, 3));
    // Group 5 has a backup superblock: what goes on there is behind that.
    let next = world.allocate(end, 40);
    assert!(next.start().0 > end && next.start().0 < end + 600 && next.len() == 40);
}

#[test]
fn what_no_group_has_is_the_longest_there_is() {
    let world = World::new(ext4(64, 1024));
    let mut tx = Tx::default();
    let superblock = world.superblock();
    // One block in every hundred, but for one place of the last group.
    for group in superblock.groups() {
        let first = superblock.first_block_of_group(group).0;
        let count = u64::from(superblock.blocks_in_group(group));
        for block in (first..first + count).step_by(100) {
            let hole = group.0 == 7 && (3000..3500).contains(&(block - first));
            let mut one = world.reserve(1);
            let run = world
                .allocator
                .allocate(&world.instance, BlockNo(block), 1, &mut one)
                .expect("promised");
            if run.start().0 == block && !hole {
                world.allocator.use_run(&mut tx, OWNER, run);
            }
        }
    }
    world.commit(&mut tx);
    let first = superblock.first_block_of_group(GroupNo(7)).0;
    let run = world.allocate(1, 5000);
    assert!(
        (first + 2900..=first + 3000).contains(&run.start().0),
        "{run:?}"
    );
    assert!((500..=700).contains(&run.len()), "{run:?}");
}

#[test]
fn a_goal_out_of_range_is_no_error() {
    let world = World::new(ext4(16, 1024));
    for goal in [0, u64::MAX, 1 << 40] {
        assert_eq!(world.allocate(goal, 3).len(), 3);
    }
    let mut none = world.allocator.empty_reservation();
    let got = world
        .allocator
        .allocate(&world.instance, BlockNo(0), 3, &mut none);
    assert!(is_no_space(&got));
}

#[test]
fn uninitialised_groups_are_written_when_used() {
    let world = World::new(ext4(1000, 4096));
    let superblock = world.superblock();
    let group = superblock
        .groups()
        .find(|group| world.flags(group.0).contains(GroupFlags::BLOCK_UNINIT))
        .expect("one that mkfs left alone");
    let goal = superblock.first_block_of_group(group).0 + 1000;
    let before = world.desc(group.0).free_clusters();
    let busy = world.allocate(goal, 10);
    assert_eq!(busy.start().0, goal);
    let mut tx = Tx::default();
    assert_eq!(
        world.commit(&mut tx).blocks.len(),
        0,
        "busy is in memory only"
    );
    assert!(world.flags(group.0).contains(GroupFlags::BLOCK_UNINIT));
    drop(busy);
    world.take(&mut tx, goal, 10);
    let sealed = world.commit(&mut tx).blocks;
    assert_eq!(sealed.len(), 3, "bitmap, descriptors, superblock");
    assert!(!world.flags(group.0).contains(GroupFlags::BLOCK_UNINIT));
    assert_eq!(world.desc(group.0).free_clusters(), before - 10);
    // What reads it now checks it.
    let reopened = world.reopened();
    assert_eq!(reopened.take(&mut tx, goal, 10), goal + 10);
}

#[test]
fn goals_of_files_are_spread_over_flex_groups() {
    let world = World::new(ext4(1000, 1024));
    let superblock = world.superblock();
    let per_flex = superblock.groups_per_flex();
    assert_eq!(per_flex, 16);
    let inode = superblock
        .inode_of_group(GroupNo(20), 5)
        .expect("an inode of group 20");
    let goal = |is_directory| world.allocator.data_goal(inode, is_directory);
    assert_eq!(goal(true), superblock.first_block_of_group(GroupNo(16)));
    assert_eq!(goal(false), superblock.first_block_of_group(GroupNo(17)));
    assert_eq!(
        world.allocator.data_goal(InodeNo(u32::MAX), false),
        superblock.first_data_block()
    );
    let plain = World::new(image(64, 1024, Kind::Ext4, "^flex_bg"));
    let inode = plain
        .superblock()
        .inode_of_group(GroupNo(3), 5)
        .expect("one");
    assert_eq!(
        plain.allocator.data_goal(inode, false),
        plain.superblock().first_block_of_group(GroupNo(3))
    );
}

#[test]
fn the_systems_own_blocks_are_not_freed() {
    let device = ext4(64, 1024);
    let world = World::new(device.fork());
    let mut tx = Tx::default();
    let mine = world.take(&mut tx, 9000, 64);
    let table = world.desc(0).inode_table().0;
    let bitmap = world.desc(3).block_bitmap().0;
    for (start, count) in [
        (0, 1),
        (1, 1),
        (table, 1),
        (bitmap, 1),
        (table - 1, 3),
        (u64::MAX - 3, 3),
        (64 << 10, 1),
        (mine, 65),
        (mine - 1, 2),
    ] {
        assert!(
            is_corrupt(&world.free(&mut tx, start, count)),
            "{start} {count}"
        );
    }
    world.free(&mut tx, mine, 0).expect("nothing");
    world.free(&mut tx, mine, 64).expect("all of it is there");
    assert!(is_corrupt(&world.free(&mut tx, mine, 1)), "freed once");
    let own = BlockNo(mine)..BlockNo(mine + 10);

    // What the journal owns is no file's, though the bitmap calls it free: nobody gets it.
    let instance = open(Arc::new(device.fork()), AMPLE);
    let allocator = Allocator::new(&instance, [own.clone()]).expect("sound");
    assert!(allocator.zones().overlap(own.start, 1));
    assert!(is_corrupt(
        &allocator.free(&instance, &mut tx, OWNER, own.start, 1)
    ));
    let mut promised = allocator.reserve(1, Claim::Map).expect("enough");
    let run = allocator
        .allocate(&instance, own.start, 1, &mut promised)
        .expect("elsewhere");
    let group = |block| instance.superblock.group_of_block(block).expect("one").0;
    assert_ne!(
        group(run.start()),
        group(own.start),
        "that group is damaged"
    );
}

/// A run that reaches over a group's end is freed in both groups, or in none.
#[test]
fn frees_reach_over_groups() {
    let world = World::new(image(64, 1024, Kind::Ext2, "^resize_inode,sparse_super"));
    let mut tx = Tx::default();
    let end = world.superblock().first_block_of_group(GroupNo(7)).0;
    // Group 6 has no backup; 7 has, and its metadata lies there.
    let before = world.superblock().first_block_of_group(GroupNo(6)).0;
    let last = world.take(&mut tx, end - 8, 8);
    assert_eq!(last, end - 8);
    assert!(is_corrupt(&world.free(&mut tx, last, 9)));
    world.free(&mut tx, last, 8).expect("ours");
    assert_eq!(world.commit(&mut tx).freed, [(last, 8)]);
    assert!(before < last);

    let flex = World::new(ext4(64, 1024));
    let (end, mut tx) = (
        flex.superblock().first_block_of_group(GroupNo(4)).0,
        Tx::default(),
    );
    assert_eq!(flex.take(&mut tx, end - 4, 4), end - 4);
    assert_eq!(flex.take(&mut tx, end, 4), end);
    assert!(
        is_corrupt(&flex.free(&mut tx, end - 4, 9)),
        "the ninth is free"
    );
    assert_eq!(flex.allocator.pending_tid(), None);
    flex.free(&mut tx, end - 4, 8).expect("ours");
    let free = flex.allocator.counts();
    assert_eq!(flex.commit(&mut tx).freed, [(end - 4, 8)]);
    assert_eq!(flex.allocator.counts(), free);
}

/// A file system with blocks that 32 bits can't name.
fn large_world() -> World {
    let device = MemoryDevice::new((16 << 40) + (1 << 30));
    let mut parameters = Parameters::new(Kind::Ext4);
    let features = "^has_journal,^resize_inode,meta_bg";
    let known = parameters.features.edit(features);
    known.expect("features that are made");
    parameters.block_size = Some(4096);
    parameters.inodes = Some(1);
    parameters.contents = Contents::Zeros;
    format(&device, &parameters, &Tree::new()).expect("a new file system");
    World::new(device)
}

/// What a block map is to name lies where 32 bits lead to, wherever the goal is, and if there is
/// nothing left there, nowhere. What it was promised there nobody else gets.
#[test]
fn block_maps_get_blocks_that_they_can_name() {
    const END: u64 = 1 << 32;
    let world = large_world();
    let allocator = &world.allocator;
    let superblock = world.superblock();
    assert!(superblock.blocks_count() > END + 1000);
    let (border, _) = superblock.group_of_block(BlockNo(END)).expect("it has one");
    let low = allocator.counts.low.as_ref().expect("there are others");
    let all = low.left();
    let goal = BlockNo(END + 500);
    let allocate = |goal, reach| {
        let mut promised = world.reserve(100);
        allocator.allocate_within(&world.instance, goal, reach, 100, &mut promised)
    };
    let anywhere = allocate(goal, Reach::Everywhere).expect("there are blocks");
    assert_eq!(anywhere.start(), goal);
    let run = allocate(goal, Reach::Pointers).expect("there are blocks");
    assert!(run.start().0 + 100 <= END, "{run:?}");
    assert_eq!(low.left(), all - 100);
    drop(run);
    assert_eq!(low.left(), all);
    // Full groups, as searches see them, their bitmaps not in memory.
    let fill = |group| {
        let mut guard = allocator.lock(group);
        guard.blocks = Bits::Absent;
        low.lose(guard.desc.free_clusters().into());
        guard.desc.set_free_clusters(0);
    };
    let last = GroupNo(border.0 - 1);
    (0..last.0).map(GroupNo).for_each(fill);
    let there = u64::try_from(low.left()).expect("not below zero");
    let at_low = superblock.first_block_of_group(last);
    let reserve = |blocks| allocator.reserve_within(blocks, Claim::Everybody, Reach::Pointers);
    let mut promised = reserve(there - 10).expect("as many as there are");
    assert!(matches!(reserve(11), Err(Error::NoSpace)));
    // Others get what was not promised, and else what lies elsewhere.
    let few = allocate(at_low, Reach::Everywhere).expect("there are blocks");
    assert_eq!((few.len(), low.left()), (10, 0));
    let none = allocate(at_low, Reach::Pointers);
    assert!(is_no_space(&none), "{none:?}");
    let other = allocate(at_low, Reach::Everywhere).expect("there are blocks");
    assert!(other.start().0 >= END, "{other:?}");
    let mut runs = Vec::new();
    while promised.blocks() > 0 {
        let want = 1 << 15;
        let space = &mut promised;
        let run = allocator
            .allocate_within(&world.instance, goal, Reach::Pointers, want, space)
            .expect("it was promised");
        let (group, _) = superblock.group_of_block(run.start()).expect("it has one");
        assert_eq!(group, last);
        runs.push(run);
    }
    // Given back to whom they were promised, and then to everybody.
    let run = runs.pop().expect("there is one");
    run.give_back(&mut promised);
    assert_eq!(low.left(), 0);
    drop((promised, runs, few));
    assert_eq!(low.left().unsigned_abs(), there);
    fill(last);
    assert!(is_no_space(&allocate(goal, Reach::Pointers)));
    allocate(goal, Reach::Everywhere).expect("there are blocks");
}
