//! The same operations by the allocator and by the transactions of mounting, which write each
//! bitmap, descriptor and count at once: what is sealed is what those write, byte for byte.

use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord};

use super::*;
use crate::change::Transaction;
use crate::change::free_blocks::free_blocks;
use crate::change::free_inode::free_inode;
use crate::change::space::Space;
use crate::system_zones::SystemZones;

/// Blocks and inodes taken and freed, in two transactions.
fn compare(device: &MemoryDevice) {
    let world = World::new(device.fork());
    let gathered = open(Arc::new(device.fork()), AMPLE);
    let zones = SystemZones::strict(&gathered, []).expect("a sound file system");
    let space = Space::new(zones, Vec::new());
    let superblock = world.superblock().clone();
    let per_group = u64::from(superblock.blocks_per_group());
    let groups = u64::from(superblock.group_count());

    let mut tx = Tx::default();
    let mut other = Transaction::gathered(&gathered, &superblock, usize::MAX, &space);
    let mut runs = Vec::new();
    for (goal, want) in [
        (0, 1),
        (per_group + 50, 300),
        (per_group * (groups - 1) + 40, 77),
        (per_group * 2 - 10, 5),
        (per_group / 2, 1000),
    ] {
        let start = world.take(&mut tx, goal, want);
        space
            .mark(&mut other, OWNER.inode(), BlockNo(start), want, true)
            .expect("sound");
        runs.push((start, want));
    }
    let mut inodes = Vec::new();
    for number in 0..40 {
        let request = match number % 4 {
            0 => Request::TopDirectory,
            1 => Request::Directory,
            _ => Request::File,
        };
        let parent = InodeNo(1 + number * 97 % superblock.inodes_count());
        let new = world
            .new_inode(&mut tx, parent, request)
            .expect("free")
            .number;
        let is_directory = request != Request::File;
        other.use_inode(new, is_directory).expect("sound");
        inodes.push((new, is_directory));
    }
    let (start, want) = runs.pop().expect("five");
    world.free(&mut tx, start + 7, want - 7).expect("in use");
    free_blocks(&mut other, OWNER, BlockNo(start + 7), want - 7).expect("in use");
    check(&world, &mut tx, other);

    // Once more, now that nothing is as mkfs left it. A new transaction finds its blocks on disk.
    let superblock = world.reopened().superblock().clone();
    let gathered = open(Arc::new(world.device.fork()), AMPLE);
    let mut other = Transaction::gathered(&gathered, &superblock, usize::MAX, &space);
    for (start, count) in runs {
        world.free(&mut tx, start, count).expect("in use");
        free_blocks(&mut other, OWNER, BlockNo(start), count).expect("in use");
    }
    for (number, is_directory) in inodes.into_iter().step_by(3) {
        world
            .allocator
            .free_inode(&world.instance, &mut tx, number, is_directory)
            .expect("in use");
        let kind = if is_directory {
            FileKind::Directory
        } else {
            FileKind::Regular
        };
        let mut record = InodeRecord::create(number, &superblock, kind, 0o644, 0);
        free_inode(&mut other, &mut record, 1).expect("in use");
    }
    check(&world, &mut tx, other);
}

/// Commits both, and compares what they write of what is free.
fn check(world: &World, tx: &mut Tx, gathered: Transaction<'_>) {
    let changes = gathered.finish().expect("in memory");
    let home = world.superblock().superblock_block();
    let sealed = world.commit(tx).blocks;
    let due: BTreeMap<BlockNo, Vec<u8>> = changes
        .blocks
        .iter()
        .filter(|(block, _)| changes.allocation.contains(block) || *block == home)
        .map(|(block, bytes)| (*block, bytes.to_vec()))
        .collect();
    assert!(
        sealed.keys().eq(due.keys()),
        "{:?}, {:?}",
        sealed.keys(),
        due.keys()
    );
    for (block, bytes) in &due {
        assert!(sealed[block] == *bytes, "block {block} differs");
    }
}

#[test]
fn ext4_with_checksums() {
    compare(&ext4(64, 1024));
    compare(&ext4(600, 4096));
}

#[test]
fn ext2_without() {
    compare(&image(64, 1024, Kind::Ext2, "^resize_inode"));
    compare(&image(600, 4096, Kind::Ext2, "dir_index"));
}

#[test]
fn checksums_of_descriptors_alone() {
    compare(&image(
        64,
        1024,
        Kind::Ext4,
        "^metadata_csum,^metadata_csum_seed,uninit_bg",
    ));
    compare(&image(
        200,
        2048,
        Kind::Ext4,
        "^metadata_csum,^metadata_csum_seed,uninit_bg,^64bit",
    ));
}

#[test]
fn no_flex_groups() {
    compare(&image(64, 1024, Kind::Ext4, "^flex_bg"));
    compare(&image(64, 1024, Kind::Ext4, "^64bit,^flex_bg"));
}

#[test]
fn descriptors_in_meta_groups() {
    compare(&image(600, 1024, Kind::Ext4, "meta_bg,^resize_inode"));
}
