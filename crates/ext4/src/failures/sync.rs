//! Data that is lost when nobody has the file open any more: who syncs all files is told, once.

use std::ops::Range;

use pagefence_block_io::device::Operation;
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::{Error, FileSystem as _};

use super::device::TestDevice;
use super::{BLOCK, create, formatted, open, place, wait_for, write};
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

#[test]
fn the_end_of_the_mount_tells_what_nobody_was_told() {
    let device = formatted();
    let fs = open(&device);
    dirty_a_block(&fs, |place| device.fail(Operation::Write, place));
    assert!(fs.cache.run_flusher(&mut Held::at_entry()));
    device.heal();
    assert!(matches!(fs.shut_down(), Err(Error::Io(_))), "data was lost");
}
