//! Space put where a file has holes (fallocate), against stores through maps, which take no inode
//! lock: they make holes dirty, and those are given places, while it looks for some.

use std::ops::Range;

use pagefence_block_io::device::Operation;
use pagefence_ext4_format::GroupNo;
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, thread};
use pagefence_page_cache::WaitFor;
use pagefence_vfs::{ExtentState, FallocateMode, FileSystem as _, InodeId};

use super::maps::{Source, Space, with_either};
use super::{
    BLOCK, create, drop_cache, extents, find, formatted, formatted_as, inode, open, place, punch,
    read, set_size, unreserved, wait_for, write,
};
use crate::failures::device::TestDevice;
use crate::filesystem::{File, FileSystem};
use crate::mkfs::Kind;

const PAGES: u64 = 1024;

fn block_map() -> Arc<TestDevice> {
    formatted_as(Kind::Ext3, 1024, "")
}

fn allocate(fs: &FileSystem, file: &File, bytes: Range<u64>) {
    let length = bytes.end - bytes.start;
    let done = fs.allocate(file, bytes.start, length, FallocateMode::empty());
    done.expect("there is space");
}

/// A file of one block in its middle, `at`, that is dirty, and a mapping of it; whoever writes that
/// back is held.
fn held_in_the_middle(
    device: &TestDevice,
    fs: &FileSystem,
    source: Source,
    at: u64,
) -> (InodeId, Range<u64>, Space) {
    let id = create(fs, "file");
    let file = fs.open(id, true).expect("it opens");
    set_size(fs, id, PAGES * BLOCK).expect("it grows");
    write(fs, &file, at, &[5; BLOCK as usize]);
    fs.sync_file(&file, false).expect("it is written");
    let held = place(fs, id, at);
    let space = Space::of(source, &file, 0..PAGES);
    write(fs, &file, at, &[6; BLOCK as usize]);
    device.hold(Operation::Write, held.clone());
    (id, held, space)
}

/// What was stored to while fallocate wrote back what was dirty has its place, or its space.
#[test]
fn stores_while_space_is_put_in_keep_theirs() {
    with_either(store_while_it_writes);
}

fn store_while_it_writes(source: Source) {
    let device = formatted();
    let fs = open(&device);
    let (id, held, space) = held_in_the_middle(&device, &fs, source, 20 * BLOCK);
    let before = unreserved(&fs);
    let stored = [1, 3, 5, 7, 9, 11, 13];
    thread::scope(|scope| {
        let filler = scope.spawn(|| {
            let file = fs.open(id, true).expect("it opens");
            allocate(&fs, &file, 0..30 * BLOCK);
        });
        device.wait_held();
        for page in stored {
            space.store(page * BLOCK + 10, &[7; 20]);
        }
        device.let_go(&held);
        filler.join().expect("no panic");
    });
    space.check();
    drop(space);
    let file = fs.open(id, true).expect("it opens");
    fs.sync_file(&file, false)
        .expect("what is dirty has its space");
    assert!(unreserved(&fs) <= before - 29);
    drop_cache(&fs);
    for page in stored {
        let bytes = read(&fs, &file, page * BLOCK..page * BLOCK + 40).expect("read");
        let expected = [vec![0; 10], vec![7; 20], vec![0; 10]].concat();
        assert_eq!(bytes, expected, "page {page}");
    }
    let covered: u64 = extents(&fs, id).iter().map(|extent| extent.length).sum();
    assert_eq!(covered, 30 * BLOCK, "all of it has blocks");
    drop(file);
    fs.shut_down().expect("nothing fails");
}

/// Blocks that were chosen for what was stored, and are on their way into the map, are not met by
/// others for the same place.
#[test]
fn space_is_put_in_behind_what_is_being_written() {
    with_either(put_in_behind_writeback);
}

fn put_in_behind_writeback(source: Source) {
    let device = formatted();
    let fs = open(&device);
    let (id, held, space) = held_in_the_middle(&device, &fs, source, 20 * BLOCK);
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let filler = scope.spawn(|| {
            let file = fs.open(id, true).expect("it opens");
            allocate(&fs, &file, 0..30 * BLOCK);
            is_done.store(true, Ordering::Release);
        });
        device.wait_held();
        space.store(3 * BLOCK, &[7; 20]);
        let holds_before = device.holds();
        for elsewhere in [0..held.start, held.end..u64::MAX] {
            device.hold(Operation::Write, elsewhere);
        }
        let writer = scope.spawn(|| {
            let mapping = inode(&fs, id).mapping(&fs.instance, &fs.cache);
            let mut held = Held::at_entry();
            mapping.write_back(&mut held, 3 * BLOCK..4 * BLOCK, WaitFor::All)
        });
        wait_for("the second write", || device.holds() > holds_before);
        device.let_go(&held);
        std::thread::sleep(std::time::Duration::from_millis(100));
        let is_early = is_done.load(Ordering::Acquire);
        device.heal();
        writer.join().expect("no panic").expect("it is written");
        filler.join().expect("no panic");
        assert!(!is_early, "it waits for what is being written");
    });
    space.check();
    drop(space);
    let file = fs.open(id, true).expect("it opens");
    fs.sync_file(&file, false).expect("nothing fails");
    drop_cache(&fs);
    let bytes = read(&fs, &file, 3 * BLOCK..3 * BLOCK + 40).expect("read");
    assert_eq!(bytes, [vec![7; 20], vec![0; 20]].concat());
    let at_store = |extent: &&pagefence_vfs::ExtentInfo| extent.logical == 3 * BLOCK;
    let found = extents(&fs, id);
    let written = found.iter().find(at_store).map(|extent| extent.state);
    assert_eq!(written, Some(ExtentState::Written));
    drop(file);
    fs.shut_down().expect("nothing fails");
}

/// From the look at a hole until it has its blocks nobody makes it dirty.
#[test]
fn stores_wait_while_space_is_put_in() {
    with_either(store_while_it_chooses);
}

fn store_while_it_chooses(source: Source) {
    let device = formatted();
    {
        let fs = open(&device);
        let id = create(&fs, "file");
        set_size(&fs, id, PAGES * BLOCK).expect("it grows");
        fs.shut_down().expect("nothing fails");
    }
    let fs = open(&device);
    let id = find(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    let space = Space::of(source, &file, 0..PAGES);
    let group = fs.instance.group_desc(GroupNo(0)).expect("it is sound");
    let bitmap = group.block_bitmap().0 * BLOCK;
    let (is_done, is_stored) = (AtomicBool::new(false), AtomicBool::new(false));
    // Blocks are chosen inside the fence, and this is the first time.
    device.hold(Operation::Read, bitmap..bitmap + BLOCK);
    thread::scope(|scope| {
        scope.spawn(|| {
            allocate(&fs, &file, 0..30 * BLOCK);
            is_done.store(true, Ordering::Release);
        });
        device.wait_held();
        scope.spawn(|| {
            space.store(3 * BLOCK, &[7; 20]);
            is_stored.store(true, Ordering::Release);
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        let is_early = is_stored.load(Ordering::Acquire) || is_done.load(Ordering::Acquire);
        device.heal();
        assert!(!is_early, "it waits");
        wait_for("both", || {
            is_stored.load(Ordering::Acquire) && is_done.load(Ordering::Acquire)
        });
    });
    space.check();
    drop(space);
    fs.sync_file(&file, false).expect("nothing fails");
    drop_cache(&fs);
    let bytes = read(&fs, &file, 3 * BLOCK..3 * BLOCK + 40).expect("read");
    assert_eq!(bytes, [vec![7; 20], vec![0; 20]].concat());
    let covered: u64 = extents(&fs, id).iter().map(|extent| extent.length).sum();
    assert_eq!(covered, 30 * BLOCK, "all of it has blocks");
    drop(file);
    fs.shut_down().expect("nothing fails");
}

/// Stores one after the other against space put in, once all of it was taken away.
fn stores_against_space(device: &Arc<TestDevice>, source: Source) {
    const ROUNDS: u64 = 60;
    let fs = open(device);
    let id = create(&fs, "file");
    set_size(&fs, id, PAGES * BLOCK).expect("it grows");
    let file = fs.open(id, true).expect("it opens");
    let before = unreserved(&fs);
    let space = Space::of(source, &file, 0..PAGES);
    for round in 0..ROUNDS {
        punch(&fs, &file, 0..64 * BLOCK).expect("punched");
        let byte = 1 + (round % 250) as u8;
        let is_stored = AtomicBool::new(false);
        thread::scope(|scope| {
            let storers = [13, 29].map(|step| {
                let (space, is_stored) = (&space, &is_stored);
                scope.spawn(move || {
                    for page in 0..64 {
                        let at = (page * step + 7) % 64 * BLOCK;
                        space.store(at + 100 + step, &[byte; 8]);
                        space.check();
                    }
                    is_stored.store(true, Ordering::Release);
                })
            });
            let syncer = scope.spawn(|| {
                let file = fs.open(id, true).expect("it opens");
                while !is_stored.load(Ordering::Acquire) {
                    fs.sync_file(&file, false)
                        .expect("what is dirty has its space");
                }
            });
            allocate(&fs, &file, 0..64 * BLOCK);
            for storer in storers {
                storer.join().expect("no panic");
            }
            syncer.join().expect("no panic");
        });
        fs.sync_file(&file, false).expect("it is written");
        let mapped: u64 = extents(&fs, id).iter().map(|extent| extent.length).sum();
        assert_eq!(mapped, 64 * BLOCK, "round {round}: all of it has space");
        if round % 8 == 0 {
            drop_cache(&fs);
        }
        let bytes = read(&fs, &file, 0..64 * BLOCK).expect("read");
        for (page, bytes) in bytes.chunks(BLOCK as usize).enumerate() {
            let mut expected = vec![0; BLOCK as usize];
            expected[113..121].fill(byte);
            expected[129..137].fill(byte);
            assert!(bytes == expected, "round {round}, page {page}");
        }
    }
    drop(space);
    fs.sync_file(&file, false).expect("it is written");
    set_size(&fs, id, 0).expect("it is cut");
    fs.sync().expect("nothing failed");
    assert_eq!(unreserved(&fs), before, "no space is lost");
    drop(file);
    fs.shut_down().expect("nothing fails");
}

#[test]
fn stores_against_unwritten_blocks_put_in() {
    with_either(|source| stores_against_space(&formatted(), source));
}

#[test]
fn stores_against_zeros_put_in() {
    with_either(|source| stores_against_space(&block_map(), source));
}
