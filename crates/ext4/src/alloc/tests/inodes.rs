//! Where inodes go, and when they come back.

use super::*;

impl World {
    fn group_of(&self, inode: InodeNo) -> u32 {
        self.superblock()
            .locate_inode(inode)
            .expect("an inode")
            .group
            .0
    }

    fn make(&self, tx: &mut Tx, parent: InodeNo, request: Request) -> InodeNo {
        self.new_inode(tx, parent, request).expect("free").number
    }

    fn drop_inode(&self, tx: &mut Tx, inode: InodeNo) -> Result<()> {
        self.allocator.free_inode(&self.instance, tx, inode, false)
    }
}

#[test]
fn reserved_inodes_are_for_nobody() {
    let world = World::new(ext4(32, 1024));
    let mut tx = Tx::default();
    let first = world.make(&mut tx, InodeNo::ROOT, Request::File);
    assert!(first >= world.superblock().first_inode());
    for reserved in [0, 1, 2, 7, 8, 10, u32::MAX] {
        assert!(
            is_corrupt(&world.drop_inode(&mut tx, InodeNo(reserved))),
            "{reserved}"
        );
    }
    // Nor when the bitmap calls them free.
    let device = image(32, 1024, Kind::Ext2, "^resize_inode");
    let bitmap = World::new(device.fork()).desc(0).inode_bitmap().0;
    device.write(bitmap * 1024, &[0, 0]).expect("in memory");
    let world = World::new(device);
    let first = world.make(&mut tx, InodeNo::ROOT, Request::File);
    assert_eq!(first, InodeNo(11));
}

#[test]
fn files_are_near_their_directory_and_full_groups_are_passed() {
    let world = World::new(image(64, 1024, Kind::Ext4, "^flex_bg"));
    let mut tx = Tx::default();
    let superblock = world.superblock();
    let parent = superblock.inode_of_group(GroupNo(3), 0).expect("one");
    let per_group = superblock.inodes_per_group();
    for index in 0..per_group {
        let inode = world.make(&mut tx, parent, Request::File);
        assert_eq!(Some(inode), superblock.inode_of_group(GroupNo(3), index));
    }
    let groups: Vec<u32> = (0..3)
        .map(|_| world.make(&mut tx, parent, Request::File))
        .map(|inode| world.group_of(inode))
        .collect();
    // From (3 + parent) on, by steps that double; all the same place while it has room.
    let next = (3 + parent.0 % 8 + 1) % 8;
    assert_eq!(groups, [next; 3]);
    // All others, to the last inode.
    let left = world.allocator.counts().inodes;
    for _ in 0..left {
        world.make(&mut tx, parent, Request::File);
    }
    assert_eq!(world.allocator.counts().inodes, 0);
    assert!(is_no_space(&world.new_inode(
        &mut tx,
        parent,
        Request::File
    )));
    assert!(is_no_space(&world.new_inode(
        &mut tx,
        parent,
        Request::TopDirectory
    )));
    world.commit(&mut tx);
    assert_eq!(world.reopened().superblock().free_inodes_count(), 0);
    for group in 0..superblock.group_count() {
        assert_eq!(world.desc(group).itable_unused(), 0);
        assert!(!world.flags(group).contains(GroupFlags::INODE_UNINIT));
    }
}

#[test]
fn top_level_directories_are_far_apart_and_others_are_not() {
    let world = World::new(ext4(1000, 1024));
    let superblock = world.superblock();
    let flexes = superblock.group_count() / superblock.groups_per_flex();
    assert!(flexes >= 7);
    let mut tx = Tx::default();
    let flex_of = |inode| world.group_of(inode) / superblock.groups_per_flex();
    let mut seen = BTreeMap::new();
    let mut last = InodeNo::ROOT;
    for number in 0..4 * flexes {
        tx.deferred.insert(BlockNo(u64::from(number)));
        last = world.make(&mut tx, InodeNo::ROOT, Request::TopDirectory);
        *seen.entry(flex_of(last)).or_insert(0) += 1;
    }
    assert!(seen.len() as u32 >= flexes - 1, "{seen:?}");
    assert!(seen.values().all(|count| *count <= 6), "{seen:?}");
    for _ in 0..50 {
        let child = world.make(&mut tx, last, Request::Directory);
        assert_eq!(flex_of(child), flex_of(last));
        let file = world.make(&mut tx, child, Request::File);
        assert_eq!(world.group_of(file), world.group_of(child));
        last = child;
    }
}

/// So many directories in one place are too many, and one that is full is no place.
#[test]
fn a_crowd_of_directories_goes_elsewhere() {
    let world = World::new(image(64, 1024, Kind::Ext4, "^flex_bg"));
    let superblock = world.superblock();
    let mut tx = Tx::default();
    let parent = superblock.inode_of_group(GroupNo(2), 0).expect("one");
    let mut per_group = vec![0; superblock.group_count() as usize];
    let limit = superblock.inodes_per_group() / 16;
    let total = 4 * limit;
    for _ in 0..total {
        let inode = world.make(&mut tx, parent, Request::Directory);
        per_group[world.group_of(inode) as usize] += 1;
    }
    // A sixteenth of a group's inodes, and the average, which grows to half of that.
    assert!(
        (limit..=limit * 3 / 2).contains(&per_group[2]),
        "{per_group:?}"
    );
    assert!(
        (limit..=limit * 3 / 2).contains(&per_group[3]),
        "{per_group:?}"
    );
    assert!(per_group[4] > 0 && per_group[0] == 0, "{per_group:?}");
    world.commit(&mut tx);
    let sum: u32 = superblock
        .groups()
        .map(|group| world.desc(group.0).used_dirs())
        .sum();
    // The root and lost+found besides.
    assert_eq!(sum, total + 2);
    assert_eq!(world.allocator.counts().directories, u64::from(total) + 2);
}

#[test]
fn a_freed_inode_rests_until_the_commit_and_longer_if_others_are_free() {
    let world = World::new(ext4(32, 1024));
    let mut tx = Tx::default();
    let parent = world
        .superblock()
        .inode_of_group(GroupNo(1), 0)
        .expect("one");
    let mine: Vec<InodeNo> = (0..5)
        .map(|_| world.make(&mut tx, parent, Request::File))
        .collect();
    world.commit(&mut tx);
    world.drop_inode(&mut tx, mine[1]).expect("in use");
    assert!(
        is_corrupt(&world.drop_inode(&mut tx, mine[1])),
        "freed once"
    );
    assert_eq!(world.allocator.pending_tid(), Some(tx.tid));
    assert!(
        !world
            .allocator
            .is_inode_in_use(&world.instance, mine[1])
            .expect("sound")
    );
    let next = world.make(&mut tx, parent, Request::File);
    assert_eq!(next.0, mine[4].0 + 1);
    world.commit(&mut tx);
    assert!(!world.allocator.has_pending_frees());
    let next = world.make(&mut tx, parent, Request::File);
    assert_eq!(next.0, mine[4].0 + 2, "just freed");
    world.commit(&mut tx);
    assert_eq!(world.make(&mut tx, parent, Request::File), mine[1]);

    // Where all else is taken, what was just freed does.
    let left = world.desc(1).free_inodes() - 1;
    for _ in 0..left {
        let inode = world.make(&mut tx, parent, Request::File);
        assert_eq!(world.group_of(inode), 1);
    }
    world.drop_inode(&mut tx, mine[2]).expect("in use");
    let elsewhere = world.make(&mut tx, parent, Request::File);
    assert_ne!(world.group_of(elsewhere), 1);
    world.commit(&mut tx);
    assert_eq!(world.make(&mut tx, parent, Request::File), mine[2]);
    world.commit(&mut tx);
    world.commit(&mut tx);
    assert!(
        world
            .allocator
            .is_inode_in_use(&world.instance, mine[2])
            .expect("sound")
    );
}

#[test]
fn tables_are_used_from_their_start_and_said_to_be() {
    let world = World::new(ext4(64, 1024));
    let mut tx = Tx::default();
    let superblock = world.superblock();
    let per_group = superblock.inodes_per_group();
    assert!(world.flags(4).contains(GroupFlags::INODE_UNINIT));
    let parent = superblock.inode_of_group(GroupNo(4), 0).expect("one");
    let mine: Vec<InodeNo> = (0..9)
        .map(|_| world.make(&mut tx, parent, Request::File))
        .collect();
    let sealed = world.commit(&mut tx).blocks;
    assert_eq!(sealed.len(), 3, "bitmap, descriptors, superblock");
    assert!(!world.flags(4).contains(GroupFlags::INODE_UNINIT));
    assert_eq!(world.desc(4).itable_unused(), per_group - 9);
    assert_eq!(world.desc(4).free_inodes(), per_group - 9);
    for inode in &mine {
        world.drop_inode(&mut tx, *inode).expect("in use");
    }
    world.commit(&mut tx);
    assert_eq!(
        world.desc(4).itable_unused(),
        per_group - 9,
        "they were used once"
    );
    assert_eq!(world.desc(4).free_inodes(), per_group);
    let reopened = world.reopened();
    assert_eq!(reopened.make(&mut tx, parent, Request::File), mine[0]);
}

#[test]
fn generations_differ() {
    let world = World::new(ext4(32, 1024));
    let mut tx = Tx::default();
    let mut seen = BTreeSet::new();
    for _ in 0..500 {
        let new = world
            .new_inode(&mut tx, InodeNo::ROOT, Request::File)
            .expect("free");
        assert!(seen.insert(new.generation));
    }
}
