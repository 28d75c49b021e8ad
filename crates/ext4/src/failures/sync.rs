//! Data that is lost when nobody has the file open any more: who syncs all files is told, once.

use std::ops::Range;
use std::time::Duration;

use pagefence_block_io::device::Operation;
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::{Error, FileSystem as _};

use super::device::TestDevice;
use super::{BLOCK, create, find, formatted, inode, number, open, place, wait_for, write};
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
