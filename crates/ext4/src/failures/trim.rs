//! Space that the device is being told of, and those who want it meanwhile.

use std::time::Duration;

use pagefence_block_io::Device as _;
use pagefence_block_io::device::Operation;
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::{FileSystem as _, WriteMode};

use super::{BLOCK, create, formatted, open, read};
use crate::alloc::Claim;

/// What is trimmed is free: nobody is told that there is no space, and whoever wants the very blocks
/// gets them when the device knows.
#[test]
fn what_the_device_is_told_of_can_be_promised_and_is_waited_for() {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    fs.sync().expect("nothing fails");
    let live = fs.instance.live().expect("it is written to");
    let free = fs.stat_fs().expect("it is known").blocks_available;
    device.hold(Operation::Discard, 0..device.size());
    thread::scope(|scope| {
        let trimmer = scope.spawn(|| fs.trim(0, u64::MAX, 0));
        device.wait_held();
        let all = live.allocator.reserve(free, Claim::Everybody).map(drop);
        let data = [7; BLOCK as usize];
        let written = fs.write(&file, 0, &data, WriteMode::empty());
        let writer = scope.spawn(|| fs.sync_file(&file, false));
        std::thread::sleep(Duration::from_millis(50));
        // Nothing is held any more, whatever comes of it.
        device.heal();
        all.expect("all of it is free");
        assert_eq!(written.expect("it is accepted"), data.len());
        writer.join().expect("no panic").expect("it is written");
        let told = trimmer.join().expect("no panic").expect("it is told");
        assert!(told > 0);
    });
    assert_eq!(
        read(&fs, &file, 0..BLOCK).expect("it is there"),
        [7; BLOCK as usize]
    );
    drop(file);
    fs.shut_down().expect("all is written");
}
