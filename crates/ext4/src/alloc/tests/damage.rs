//! Damaged groups are left alone, and nothing else suffers.

use pagefence_block_io::device::Operation;
use pagefence_block_io::fault_device::{Fault, FaultDevice, Times};

use super::super::GROUPS_MAX;
use super::*;

fn flip(device: &MemoryDevice, block: BlockNo, block_size: u32, at: u64) {
    let offset = block.0 * u64::from(block_size) + at;
    let mut byte = [0];
    device.read(offset, &mut byte).expect("in memory");
    device.write(offset, &[!byte[0]]).expect("in memory");
}

/// The bitmap of group 0 is damaged: by its checksum, or by the number of its free blocks.
#[test]
fn blocks_of_a_damaged_group_are_left_alone() {
    for kind in [Kind::Ext4, Kind::Ext2] {
        let device = image(32, 1024, kind, "^resize_inode");
        let sound = World::new(device.fork());
        let mut tx = Tx::default();
        let there = sound.take(&mut tx, 4000, 10);
        let elsewhere = sound.take(&mut tx, 20_000, 10);
        sound.commit(&mut tx);
        let free = sound.desc(0).free_clusters();
        flip(&sound.device, sound.desc(0).block_bitmap(), 1024, 1000);

        let world = sound.reopened();
        let before = world.allocator.counts().blocks_unreserved;
        let run = world.allocate(4000, 5);
        assert!(run.start().0 > 8192, "{run:?}");
        drop(run);
        let counts = world.allocator.counts();
        assert_eq!(counts.blocks_unreserved, before - u64::from(free));
        // All that is promised is elsewhere.
        let left = counts.blocks_unreserved;
        assert!(is_no_space(&world.allocator.reserve(left + 1, Claim::Map)));
        let mut all = world.reserve(left);
        let mut runs = Vec::new();
        while all.blocks() > 0 {
            let got = world
                .allocator
                .allocate(&world.instance, BlockNo(4000), 9000, &mut all);
            runs.push(got.expect("promised"));
        }
        drop(runs);

        // Freeing there leaves it as it is; freeing elsewhere goes on.
        let mut tx = Tx::default();
        world.free(&mut tx, there, 10).expect("left alone");
        assert!(tx.deferred.is_empty());
        world.free(&mut tx, elsewhere, 10).expect("sound");
        assert_eq!(world.commit(&mut tx).freed, [(elsewhere, 10)]);
    }
}

#[test]
fn a_promise_of_what_damage_took_is_no_space() {
    let device = ext4(8, 1024);
    let bitmap = World::new(device.fork()).desc(0).block_bitmap();
    flip(&device, bitmap, 1024, 3);
    let world = World::new(device);
    assert_eq!(world.superblock().group_count(), 1);
    let mut promised = world.reserve(10);
    let got = world
        .allocator
        .allocate(&world.instance, BlockNo(100), 10, &mut promised);
    assert!(is_no_space(&got));
    assert_eq!(promised.blocks(), 10);
    drop(promised);
    assert!(is_no_space(&world.allocator.reserve(1, Claim::Map)));
}

#[test]
fn inodes_of_a_damaged_group_are_left_alone() {
    let device = ext4(32, 1024);
    let sound = World::new(device.fork());
    let mut tx = Tx::default();
    let parent = sound
        .superblock()
        .inode_of_group(GroupNo(1), 0)
        .expect("one");
    let inode = sound
        .new_inode(&mut tx, parent, Request::File)
        .expect("free")
        .number;
    assert_eq!(inode, parent);
    sound.commit(&mut tx);
    flip(&sound.device, sound.desc(1).inode_bitmap(), 1024, 9);
    let world = sound.reopened();
    let found = world
        .new_inode(&mut tx, parent, Request::File)
        .expect("free")
        .number;
    let place = world.superblock().locate_inode(found).expect("an inode");
    assert_ne!(place.group, GroupNo(1));
    let used = world.allocator.is_inode_in_use(&world.instance, inode);
    assert!(is_corrupt(&used));
    let freed = world
        .allocator
        .free_inode(&world.instance, &mut tx, inode, false);
    assert!(is_corrupt(&freed));
    // Other groups' inodes go on.
    assert!(
        world
            .allocator
            .is_inode_in_use(&world.instance, found)
            .expect("sound")
    );
    world
        .allocator
        .free_inode(&world.instance, &mut tx, found, false)
        .expect("in use");
}

/// A descriptor that counts more than there is can't be believed in anything.
#[test]
fn impossible_counts_close_a_group() {
    let device = image(32, 1024, Kind::Ext2, "^resize_inode");
    let sound = World::new(device.fork());
    let superblock = sound.superblock();
    let mut desc = sound.desc(2);
    desc.set_free_clusters(9000);
    let (index, offset) = superblock.locate_descriptor(GroupNo(2)).expect("a group");
    let home = superblock.descriptor_block(index).expect("its block");
    let mut bytes = vec![0; superblock.desc_size()];
    desc.write_to(&mut bytes).expect("room");
    device
        .write(home.0 * 1024 + offset as u64, &bytes)
        .expect("in memory");
    let world = World::new(device);
    let run = world.allocate(superblock.first_block_of_group(GroupNo(2)).0 + 5000, 1);
    assert_eq!(
        superblock.group_of_block(run.start()).expect("one").0,
        GroupNo(3)
    );
    let parent = superblock.inode_of_group(GroupNo(2), 40).expect("one");
    let new = world
        .new_inode(&mut Tx::default(), parent, Request::File)
        .expect("free");
    assert_ne!(
        superblock.locate_inode(new.number).expect("one").group,
        GroupNo(2)
    );
}

#[test]
fn a_damaged_descriptor_keeps_it_from_being_written() {
    let device = ext4(32, 1024);
    let home = World::new(device.fork())
        .superblock()
        .descriptor_block(0)
        .expect("one");
    flip(&device, home, 1024, 64 + 12);
    let instance = open(Arc::new(device), AMPLE);
    assert!(is_corrupt(&Allocator::new(&instance, [])));
}

#[test]
fn groups_are_bounded() {
    // 128 TiB of 4 KiB blocks in groups of 128 MiB.
    assert_eq!(u64::from(GROUPS_MAX) * (128 << 20), 128 << 40);
}

/// What can't be read now is passed over, changes nothing, and is there when it can be read.
#[test]
fn bitmaps_that_can_not_be_read_are_passed_over() {
    let device = Arc::new(FaultDevice::new(
        &image(32, 1024, Kind::Ext2, "^resize_inode"),
        1,
    ));
    let instance = open(device.clone(), AMPLE);
    let allocator = Allocator::new(&instance, []).expect("sound");
    let fail = |times| {
        device.fail(Fault {
            operation: Operation::Read,
            call: device.calls(Operation::Read),
            times,
            errno: 5,
        });
    };
    let before = allocator.counts();
    let goal = BlockNo(4000);
    let mut promised = allocator.reserve(10, Claim::Map).expect("enough");
    fail(Times::Forever);
    let got = allocator.allocate(&instance, goal, 10, &mut promised);
    assert!(matches!(got, Err(Error::Io(_))), "{got:?}");
    let mut tx = Tx::default();
    let freed = allocator.free(&instance, &mut tx, OWNER, goal, 10);
    assert!(matches!(freed, Err(Error::Io(_))), "{freed:?}");
    let request = NewInode {
        parent: InodeNo::ROOT,
        is_directory: false,
        is_top_level: false,
        name: b"a",
    };
    let new = allocator.new_inode(&instance, &mut tx, request);
    assert!(matches!(new, Err(Error::Io(_))), "{new:?}");
    assert!(tx.deferred.is_empty());
    assert_eq!(promised.blocks(), 10);

    // One group alone: another one does.
    device.clear_faults();
    fail(Times::Once);
    let run = allocator.allocate(&instance, goal, 10, &mut promised);
    assert!(run.expect("elsewhere").start().0 > 8192);
    device.clear_faults();
    fail(Times::Once);
    let new = allocator.new_inode(&instance, &mut tx, request);
    let group = |inode| instance.superblock.locate_inode(inode).expect("one").group;
    assert_ne!(group(new.expect("elsewhere").number), GroupNo(0));

    device.clear_faults();
    let mut promised = allocator.reserve(10, Claim::Map).expect("enough");
    let run = allocator.allocate(&instance, goal, 10, &mut promised);
    assert_eq!(run.expect("readable").start(), goal);
    drop(promised);
    let counts = allocator.counts();
    assert_eq!(counts.blocks_unreserved, before.blocks_unreserved);
    assert_eq!(counts.inodes, before.inodes - 1);
}
