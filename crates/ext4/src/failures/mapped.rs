//! Stores through maps: the space that they are given, and what becomes of it when there is none,
//! when writing back fails, and when blocks are taken away meanwhile.

use pagefence_block_io::device::Operation;
use pagefence_ext4_format::inode::{Inode as Record, InodeFlags, Timestamp};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, thread};
use pagefence_page_cache::{FaultError, FaultKind, WaitFor};
use pagefence_vfs::{ExtentState, FileSystem as _};

use super::maps::{Source, Space, with_either};
use super::{
    BLOCK, create, drop_cache, extents, fill, formatted, formatted_as, formatted_with, inode, open,
    punch, read, set_size, unreserved, wait_for, write,
};
use crate::mkfs::Kind;

const PAGES: u64 = 64;

#[test]
fn stores_to_holes_are_given_space_and_written_back() {
    with_either(store_to_holes);
}

fn store_to_holes(source: Source) {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    set_size(&fs, id, 10 * BLOCK + 100).expect("it grows");
    let before = unreserved(&fs);
    let space = Space::of(source, &file, 0..PAGES);
    for page in [0, 5, 10] {
        space.store(page * BLOCK + 10, &[7; 20]);
    }
    assert!(unreserved(&fs) <= before - 3, "each has its space");
    let beyond = space.fault(11, FaultKind::Write);
    assert!(matches!(beyond, Err(FaultError::Beyond)), "{beyond:?}");
    fs.sync_file(&file, false).expect("it is written");
    assert_eq!(extents(&fs, id).len(), 3);
    assert_eq!(unreserved(&fs), before - 3, "the blocks, and no more");
    let times = |record: &Record| (record.mtime(), record.ctime());
    let past = Timestamp {
        seconds: 1,
        nanoseconds: 0,
    };
    file.inode.core.update(|record| {
        record.set_mtime(past);
        record.set_ctime(past);
    });
    space.store(5 * BLOCK, &[8; 5]);
    space.check();
    drop(space);
    let stored = times(&file.inode.disk().record);
    assert!(stored.0 != past && stored.1 != past, "a store counts");
    fs.sync_file(&file, false).expect("it is written");
    drop_cache(&fs);
    let page = read(&fs, &file, 5 * BLOCK..5 * BLOCK + 40).expect("read");
    assert_eq!(
        page,
        [vec![8; 5], vec![0; 5], vec![7; 20], vec![0; 10]].concat()
    );
    drop(file);
    fs.shut_down().expect("nothing fails");
}

#[test]
fn stores_without_space_are_refused_and_nothing_is_dirty() {
    with_either(store_without_space);
}

fn store_without_space(source: Source) {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    set_size(&fs, id, PAGES * BLOCK).expect("it grows");
    let space = Space::of(source, &file, 0..PAGES);
    space.store(0, &[1; 10]);
    fill(&fs);
    let refused = space.fault(20, FaultKind::Write);
    assert!(
        matches!(refused, Err(FaultError::NoSpace(_))),
        "{refused:?}"
    );
    space.check();
    // What has its blocks, or was promised them, is stored.
    space.store(100, &[3; 10]);
    fs.sync_file(&file, false).expect("it was accepted");
    drop_cache(&fs);
    let bytes = read(&fs, &file, 20 * BLOCK..20 * BLOCK + 10).expect("read");
    assert_eq!(bytes, [0; 10]);
    // Space that is freed is found, though a commit has to end first.
    let filler = super::find(&fs, "filler");
    set_size(&fs, filler, 0).expect("it is cut");
    space.store(20 * BLOCK, &[2; 10]);
    let mut stored = [0; 10];
    space.load(20 * BLOCK, &mut stored);
    assert_eq!(stored, [2; 10]);
    drop((space, file));
    fs.shut_down().expect("nothing fails");
}

#[test]
fn space_of_what_could_not_be_written_is_given_back() {
    with_either(give_back);
}

fn give_back(source: Source) {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    let before = unreserved(&fs);
    let space = Space::of(source, &file, 0..PAGES);
    for piece in 0..12 {
        write(&fs, &file, 2 * piece * BLOCK, &[7; BLOCK as usize]);
    }
    device.fail(Operation::Write, 0..u64::MAX);
    let told = file
        .mapping
        .write_back(&mut Held::at_entry(), 0..u64::MAX, WaitFor::All);
    assert!(told.is_err(), "the device fails");
    device.heal();
    assert!(unreserved(&fs) <= before - 12, "kept for who writes again");
    space.store(4 * BLOCK, &[8; 10]);
    {
        let mut entry = Held::at_entry();
        let (_lock, mut held) = file.inode.lock.write(&mut entry);
        assert!(file.mapping.give_back_unwritten(&mut held));
        assert!(!file.mapping.give_back_unwritten(&mut held), "once");
    }
    space.check();
    let _told = fs.sync_file(&file, false);
    fs.sync_file(&file, false)
        .expect("what is dirty has its space");
    assert_eq!(unreserved(&fs), before - 1, "the block that was stored to");
    drop(space);
    drop_cache(&fs);
    let bytes = read(&fs, &file, 4 * BLOCK..4 * BLOCK + 10).expect("read");
    assert_eq!(bytes, [8; 10]);
    drop(file);
    fs.sync().expect_err("a write failed");
    fs.shut_down().expect("the rest is written");
}

#[test]
fn a_store_after_a_truncate_down_and_up_in_a_page_of_small_blocks_is_kept() {
    with_either(cut_and_grow);
}

fn cut_and_grow(source: Source) {
    let device = formatted_as(Kind::Ext3, 1024, "");
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    set_size(&fs, id, 3072).expect("it grows");
    let space = Space::of(source, &file, 0..PAGES);
    // Past the end as well.
    space.store(0, &[1; 4096]);
    set_size(&fs, id, 1024).expect("it is cut");
    set_size(&fs, id, 4096).expect("it grows");
    space.store(2048, &[5; 10]);
    write(&fs, &file, 6000, &[6; 10]);
    space.check();
    drop(space);
    fs.sync_file(&file, false).expect("it is written");
    drop_cache(&fs);
    let bytes = read(&fs, &file, 0..6010).expect("read");
    let mut expected = vec![0; 6010];
    expected[..1024].fill(1);
    expected[2048..2058].fill(5);
    expected[6000..].fill(6);
    assert!(bytes == expected);
    drop(file);
    fs.shut_down().expect("nothing fails");
}

/// RACES B42: data leaves its inode for a block while it is stored to. What was stored before comes
/// along, and what is stored meanwhile waits for the block.
#[test]
fn stores_to_data_that_leaves_its_inode_are_kept() {
    with_either(leave_the_inode);
}

fn leave_the_inode(source: Source) {
    let device = formatted_with("inline_data");
    let fs = open(&device);
    let id = create(&fs, "file");
    // As Linux makes them; ours have a map from the beginning.
    inode(&fs, id).core.update(|record| {
        let flags = record.flags() - InodeFlags::EXTENTS;
        record.set_flags(flags | InodeFlags::INLINE_DATA);
        record.block_area_mut().fill(0);
    });
    let file = fs.open(id, true).expect("it opens");
    write(&fs, &file, 0, &[1; 50]);
    assert_eq!(extents(&fs, id)[0].state, ExtentState::Inline);
    let space = Space::of(source, &file, 0..PAGES);
    space.store(10, &[2; 10]);
    let is_stored = AtomicBool::new(false);
    // The first write is that of the block.
    device.hold(Operation::Write, 0..u64::MAX);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&fs, &file, 50, &[3; 500]));
        device.wait_held();
        scope.spawn(|| {
            space.store(20, &[4; 10]);
            is_stored.store(true, Ordering::Release);
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        let is_early = is_stored.load(Ordering::Acquire);
        device.heal();
        assert!(!is_early, "it waits");
        writer.join().expect("no panic");
        wait_for("the store", || is_stored.load(Ordering::Acquire));
    });
    space.check();
    drop(space);
    fs.sync_file(&file, false).expect("it is written");
    assert_eq!(extents(&fs, id)[0].state, ExtentState::Written);
    drop_cache(&fs);
    let mut expected = [vec![1; 50], vec![3; 500]].concat();
    expected[10..20].fill(2);
    expected[20..30].fill(4);
    assert!(read(&fs, &file, 0..550).expect("read") == expected);
    drop(file);
    fs.shut_down().expect("nothing fails");
}

/// Blocks change under stores; what is dirty has its space at any moment, and nothing is left of
/// it in the end (asserted where a file is written back, in debug builds).
#[test]
fn stores_against_writes_punches_truncates_and_syncs() {
    with_either(store_against_all);
}

fn store_against_all(source: Source) {
    // Pages that are never cut off: a real store there can't end with SIGBUS.
    let safe = match source {
        Source::Simulated => 0,
        Source::Real => 20,
    };
    let device = formatted();
    let fs = Arc::new(open(&device));
    let id = create(&fs, "file");
    set_size(&fs, id, PAGES * BLOCK).expect("it grows");
    let before = unreserved(&fs);
    let file = fs.open(id, true).expect("it opens");
    let space = Arc::new(Space::of(source, &file, 0..PAGES));
    let stop = Arc::new(AtomicBool::new(false));
    let storers: Vec<_> = (0..2_u64)
        .map(|seed| {
            let (space, stop) = (Arc::clone(&space), Arc::clone(&stop));
            let store = move || {
                let mut at = seed;
                while !stop.load(Ordering::Relaxed) {
                    at = (at * 13 + 7) % PAGES;
                    let place = at * BLOCK + 8 * seed;
                    if at < safe {
                        space.store(place, &[7; 8]);
                    } else {
                        match space.try_store(place, &[7; 8]) {
                            Ok(()) | Err(FaultError::Beyond) => {}
                            failed => panic!("{failed:?}"),
                        }
                    }
                    space.check();
                }
            };
            thread::spawn("storer", store).expect("a thread")
        })
        .collect();
    for round in 0..150_u64 {
        let at = (round * 29 + 3) % PAGES;
        match round % 5 {
            0 => punch(&fs, &file, at * BLOCK + 100..(at + 9) * BLOCK).expect("punched"),
            1 => write(&fs, &file, at * BLOCK + 100, &[7; 5000]),
            2 => set_size(&fs, id, at.max(safe) * BLOCK + 1000).expect("it is cut"),
            3 => set_size(&fs, id, PAGES * BLOCK).expect("it grows"),
            _ => fs.sync_file(&file, false).expect("it is written"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    for storer in storers {
        storer.join().expect("no panic");
    }
    space.check();
    drop(space);
    fs.sync_file(&file, false).expect("it is written");
    let bytes = read(&fs, &file, 0..PAGES * BLOCK).expect("read");
    assert!(bytes.iter().all(|byte| [0, 7].contains(byte)));
    set_size(&fs, id, 0).expect("it is cut");
    assert_eq!(unreserved(&fs), before, "no space is lost");
    drop(file);
    fs.shut_down().expect("nothing fails");
}
