//! Files that could not be cut: what was accepted is there, and what was cut off stays away.

use pagefence_block_io::device::Operation;
use pagefence_ext4_format::extent::{ExtentNode, Place};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::{Arc, thread};
use pagefence_vfs::{FallocateMode, FileSystem as _, WriteMode};

use super::device::TestDevice;
use super::maps::{Source, Space, with_either};
use super::{
    BLOCK, create, drop_cache, extents, find, formatted, inode, open, place, read, set_size,
    wait_for, write,
};
use crate::filesystem::FileSystem;

/// Pages that only the cache has.
const DIRTY: u64 = 7;

/// The flusher comes while the block that is cut is being zeroed on the device, which fails: the
/// file is as long as before, and has all that was behind that block.
#[test]
fn what_a_truncation_gave_up_is_written() {
    give_up(None);
    with_either(|source| give_up(Some(source)));
}

/// Of data that was written, or stored through a mapping.
fn give_up(source: Option<Source>) {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    write(&fs, &file, 0, &[1; BLOCK as usize]);
    fs.sync_file(&file, false).expect("it is written");
    let data = vec![2; (DIRTY * BLOCK) as usize];
    let size = (1 + DIRTY) * BLOCK;
    let space = source.map(|source| Space::of(source, &file, 0..1 + DIRTY));
    match &space {
        None => write(&fs, &file, BLOCK, &data),
        Some(space) => {
            set_size(&fs, id, size).expect("it grows");
            space.store(BLOCK, &data);
        }
    }
    device.hold(Operation::Write, place(&fs, id, 0));
    thread::scope(|scope| {
        let cut = scope.spawn(|| set_size(&fs, id, 100));
        device.wait_held();
        wait_for("the flusher finds nothing", || {
            fs.cache.run_flusher(&mut Held::at_entry());
            file.mapping.dirty_pages() == 0
        });
        device.fail_held();
        cut.join()
            .expect("no panic")
            .expect_err("an edge was not written");
    });
    device.heal();
    fs.sync().expect_err("a write failed");
    if let Some(space) = space {
        let mut loaded = vec![0; data.len()];
        space.load(BLOCK, &mut loaded);
        assert!(loaded == data, "in memory");
        space.check();
    }
    drop_cache(&fs);
    assert_eq!(fs.attr(id).expect("it is there").size, size);
    assert!(read(&fs, &file, BLOCK..size).expect("it can be read") == data);
}

/// A file whose extents need a leaf, written and out of core; and where the leaf is.
fn with_leaf(device: &Arc<TestDevice>) -> (FileSystem, u64) {
    {
        let fs = open(device);
        let id = create(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        for piece in 0..12 {
            write(&fs, &file, 2 * piece * BLOCK, &[3; BLOCK as usize]);
        }
        drop(file);
        fs.shut_down().expect("all is written");
    }
    let fs = open(device);
    let disk = inode(&fs, find(&fs, "file")).disk();
    let root = ExtentNode::parse(disk.i_block(), &Place::Root, &fs.instance.limits);
    let leaf = root.expect("a sound root").child(0).expect("it has a leaf");
    (fs, leaf.block.0 * BLOCK)
}

#[test]
fn what_could_not_be_cut_off_does_not_come_back() {
    let device = formatted();
    let (fs, leaf) = with_leaf(&device);
    let id = find(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    let size = || fs.attr(id).expect("it is there").size;
    device.fail(Operation::Read, leaf..leaf + BLOCK);
    set_size(&fs, id, BLOCK).expect_err("the leaf can't be read");
    assert_eq!(size(), BLOCK);
    set_size(&fs, id, 20 * BLOCK).expect_err("it still can't");
    fs.write(&file, 20 * BLOCK, b"x", WriteMode::empty())
        .expect_err("nor can the file grow by a write");
    assert_eq!(size(), BLOCK);
    assert!(device.failed() >= 3);
    device.heal();
    fs.instance.live().expect("no journal is aborted");
    set_size(&fs, id, 20 * BLOCK).expect("it grows");
    let mut expected = vec![3; BLOCK as usize];
    expected.resize(20 * BLOCK as usize, 0);
    assert!(read(&fs, &file, 0..20 * BLOCK).expect("it can be read") == expected);
    assert_eq!(extents(&fs, id).len(), 1);
    drop(file);
    fs.shut_down().expect("all is written");
    drop(fs);
    let fs = open(&device);
    let file = fs.open(id, false).expect("it opens");
    assert!(read(&fs, &file, 0..20 * BLOCK).expect("it can be read") == expected);
    assert_eq!(extents(&fs, id).len(), 1);
}

/// Who opens the file system next goes on with it. What was still to be written behind the cut takes
/// no space any more.
#[test]
fn what_could_not_be_cut_off_is_at_the_next_mount() {
    let device = formatted();
    let (fs, leaf) = with_leaf(&device);
    let id = find(&fs, "file");
    let live = fs.instance.live().expect("it is written to");
    let unreserved = || live.allocator.counts().blocks_unreserved;
    let before = unreserved();
    let file = fs.open(id, true).expect("it opens");
    for piece in 0..12 {
        write(&fs, &file, (2 * piece + 101) * BLOCK, &[4; BLOCK as usize]);
    }
    assert!(unreserved() < before - 12, "data and nodes");
    fs.instance.buffers.invalidate(leaf / BLOCK);
    device.fail(Operation::Read, leaf..leaf + BLOCK);
    set_size(&fs, id, BLOCK).expect_err("the leaf can't be read");
    assert_eq!(unreserved(), before);
    drop(file);
    fs.shut_down().expect("all is written");
    drop(fs);
    device.heal();
    let fs = open(&device);
    assert_eq!(fs.attr(id).expect("it is there").size, BLOCK);
    assert_eq!(extents(&fs, id).len(), 1);
}

/// Space that is put behind a cut that failed is not taken away with what is left of the cut.
#[test]
fn space_behind_a_cut_that_failed_stays() {
    for mode in [FallocateMode::empty(), FallocateMode::KEEP_SIZE] {
        let device = formatted();
        let (fs, leaf) = with_leaf(&device);
        let id = find(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        device.fail(Operation::Read, leaf..leaf + BLOCK);
        set_size(&fs, id, BLOCK).expect_err("the leaf can't be read");
        fs.allocate(&file, BLOCK, 9 * BLOCK, mode)
            .expect_err("it still can't");
        device.heal();
        fs.allocate(&file, BLOCK, 9 * BLOCK, mode).expect("it can");
        let blocks = fs.attr(id).expect("it is there").blocks_512 * 512 / BLOCK;
        assert_eq!(blocks, 10 + 1, "{mode:?}: data and a leaf");
        write(&fs, &file, 8 * BLOCK, b"x");
        fs.sync_file(&file, false).expect("nothing fails");
        let mut expected = vec![3; BLOCK as usize];
        expected.resize(8 * BLOCK as usize, 0);
        let bytes = read(&fs, &file, 0..8 * BLOCK).expect("it can be read");
        assert!(bytes == expected, "{mode:?}");
        let blocks = fs.attr(id).expect("it is there").blocks_512 * 512 / BLOCK;
        assert_eq!(blocks, 10 + 1, "{mode:?}: data and a leaf");
    }
}
