//! Data that is lost when nobody has the file open any more: who syncs all files is told, once.

use std::ops::Range;
use std::time::Duration;

use pagefence_block_io::device::Operation;
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::{Error, FallocateMode, FileSystem as _};

use super::device::TestDevice;
use super::{
    BLOCK, create, drop_cache, find, formatted, inode, number, open, place, punch, read, wait_for,
    write,
};
use crate::file_write::note_change;
use crate::filesystem::FileSystem;

/// Makes a file whose first block is written, and dirty anew after `prepare` was told where it is.
fn dirty_a_block(fs: &FileSystem, prepare: impl FnOnce(Range<u64>)) {
    let id = create(fs, "file");
    let file = fs.open(id, true).expect("it opens");
    write(fs, &file, 0, &[1; BLOCK as usize]);
    fs.sync().expect("nothing fails");
    prepare(place(fs, id, 0));
    write(fs, &file, 0, &[2; BLOCK as usize]);
}

fn assert_told_once(fs: &FileSystem, device: &TestDevice) {
    assert!(device.failed() > 0);
    device.heal();
    assert!(matches!(fs.sync(), Err(Error::Io(_))), "data was lost");
    fs.sync().expect("that was told");
    fs.shut_down().expect("that was told");
}

#[test]
fn sync_tells_what_the_flusher_failed_to_write() {
    let device = formatted();
    let fs = open(&device);
    dirty_a_block(&fs, |place| device.fail(Operation::Write, place));
    assert!(fs.cache.run_flusher(&mut Held::at_entry()));
    assert_told_once(&fs, &device);
}

/// Space is looked for by writing everything: what fails then is not told by that.
#[test]
fn sync_tells_what_failed_while_space_was_looked_for() {
    let device = formatted();
    let fs = open(&device);
    dirty_a_block(&fs, |place| device.fail(Operation::Write, place));
    fs.cache.sync_all(&mut Held::at_entry());
    assert_told_once(&fs, &device);
}

#[test]
fn sync_tells_what_fails_while_it_waits() {
    let device = formatted();
    let fs = open(&device);
    dirty_a_block(&fs, |place| device.hold(Operation::Write, place));
    thread::scope(|scope| {
        scope.spawn(|| fs.cache.run_flusher(&mut Held::at_entry()));
        device.wait_held();
        let sync = scope.spawn(|| fs.sync());
        wait_for("it is being written", || fs.cache.usage().dirty_bytes == 0);
        // Whether sync waits by now or is still to look: the answer is the same.
        device.fail_held();
        assert!(matches!(sync.join(), Ok(Err(Error::Io(_)))));
    });
    device.heal();
    fs.sync().expect("that was told");
}

/// An inode that another thread is writing to the table looks clean. Its fsync waits for the
/// transaction that has it nevertheless.
#[test]
fn fsync_waits_for_an_inode_that_is_being_written() {
    let device = formatted();
    {
        let fs = open(&device);
        // More than a block of the table has.
        for at in 0..40 {
            create(&fs, &format!("file {at}"));
        }
        fs.shut_down().expect("nothing fails");
    }
    let fs = open(&device);
    let live = fs.instance.live().expect("it is written to");
    let id = find(&fs, "file 0");
    let file = fs.open(id, true).expect("it opens");
    // What was read is of a transaction that is over now.
    note_change(&inode(&fs, find(&fs, "file 39")));
    fs.sync().expect("nothing fails");
    let (block, _) = fs.instance.inode_block(number(id)).expect("it has a place");
    fs.instance.buffers.invalidate(block.0);
    note_change(&file.inode);
    let running = live.journal.running();
    device.hold(Operation::Read, block.0 * BLOCK..(block.0 + 1) * BLOCK);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut held = Held::at_entry();
            fs.instance.write_inode(&mut held, &file.inode.core)
        });
        device.wait_held();
        let fsync = scope.spawn(|| {
            let synced = fs.sync_file(&file, false);
            (synced, live.journal.committed_tid())
        });
        // Time to come back at once, wrongly.
        std::thread::sleep(Duration::from_millis(100));
        device.heal();
        writer.join().expect("no panic").expect("it is written");
        let (synced, committed) = fsync.join().expect("no panic");
        synced.expect("nothing fails");
        assert!(committed >= running, "{committed:?} is before {running:?}");
    });
}

/// It looks clean, too, to who syncs while another thread fails to write it.
#[test]
fn fsync_and_sync_tell_of_an_inode_that_another_thread_fails_to_write() {
    for all in [false, true] {
        let device = formatted();
        {
            let fs = open(&device);
            create(&fs, "file");
            fs.shut_down().expect("nothing fails");
        }
        let fs = open(&device);
        let id = find(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        let (block, _) = fs.instance.inode_block(number(id)).expect("it has a place");
        fs.instance.buffers.invalidate(block.0);
        note_change(&file.inode);
        device.hold(Operation::Read, block.0 * BLOCK..(block.0 + 1) * BLOCK);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut held = Held::at_entry();
                fs.instance.write_inode(&mut held, &file.inode.core)
            });
            device.wait_held();
            let sync = scope.spawn(|| match all {
                true => fs.sync(),
                false => fs.sync_file(&file, false),
            });
            // Time to come back at once, wrongly.
            std::thread::sleep(Duration::from_millis(100));
            device.fail_held();
            assert!(writer.join().expect("no panic").is_err());
            let synced = sync.join().expect("no panic");
            assert!(synced.is_err() || !file.inode.core.is_dirty(), "not told");
        });
    }
}

#[test]
fn the_end_of_the_mount_tells_what_nobody_was_told() {
    let device = formatted();
    let fs = open(&device);
    dirty_a_block(&fs, |place| device.fail(Operation::Write, place));
    assert!(fs.cache.run_flusher(&mut Held::at_entry()));
    device.heal();
    assert!(matches!(fs.shut_down(), Err(Error::Io(_))), "data was lost");
}

/// fsync tells that data is lost, and no space stays promised for it. What was lost is still in the
/// cache: it can be written again, and a hole that is punched there is one.
#[test]
fn fsync_that_fails_gives_the_space_back() {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    let live = fs.instance.live().expect("it is written to");
    let unreserved = || live.allocator.counts().blocks_unreserved;
    let before = unreserved();
    for piece in 0..12 {
        write(&fs, &file, 2 * piece * BLOCK, &[7; BLOCK as usize]);
    }
    device.fail(Operation::Write, 0..u64::MAX);
    let told = fs.sync_file(&file, false);
    assert!(matches!(told, Err(Error::Io(_))), "{told:?}");
    device.heal();
    assert_eq!(unreserved(), before, "nothing is promised");
    assert_eq!(fs.attr(id).expect("it is there").blocks_512, 0);
    fs.sync_file(&file, false).expect("that was told");
    write(&fs, &file, 0, &[8; 10]);
    punch(&fs, &file, 4 * BLOCK..5 * BLOCK).expect("punched");
    let zeroed = 6 * BLOCK;
    fs.allocate(&file, zeroed, BLOCK, FallocateMode::ZERO_RANGE)
        .expect("zeroed");
    let see = |when: &str| {
        for at in [4 * BLOCK, zeroed] {
            let bytes = read(&fs, &file, at..at + BLOCK).expect("read");
            assert!(bytes == [0; BLOCK as usize], "{when}");
        }
        let bytes = read(&fs, &file, 0..20).expect("read");
        assert_eq!(bytes, [[8; 10], [7; 10]].concat(), "{when}");
    };
    see("in the cache");
    fs.sync_file(&file, false).expect("nothing fails");
    assert_eq!(unreserved(), before - 2);
    drop_cache(&fs);
    see("on the device");
    drop(file);
    fs.sync().expect_err("a write failed");
    fs.shut_down().expect("the rest is written");
}
