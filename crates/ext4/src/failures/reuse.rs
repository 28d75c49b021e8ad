//! Blocks that were freed and are wanted again: not before what frees them is durable, nor before the
//! device was told.

use pagefence_block_io::Device as _;
use pagefence_block_io::device::Operation;
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread;
use pagefence_page_cache::WaitFor;
use pagefence_vfs::FileSystem as _;

use super::device::TestDevice;
use super::maps::{Source, Space, with_either};
use super::{
    BLOCK, after_power_cut, create, drop_cache, fill, find, formatted, open_with, options, place,
    punch, read, set_size, write,
};
use crate::filesystem::FileSystem;
use crate::mount::MountOptions;

/// Blocks of the file that gives its blocks up.
const BLOCKS: u64 = 32;

/// A disk whose blocks are all in use, those of a file named "giver" among them; all is durable.
fn full(options: &MountOptions) -> (Arc<TestDevice>, FileSystem) {
    let device = formatted();
    let fs = open_with(&device, options);
    let giver = fs.open(create(&fs, "giver"), true).expect("it opens");
    write(&fs, &giver, 0, &[1; (BLOCKS * BLOCK) as usize]);
    create(&fs, "taker");
    fill(&fs);
    drop(giver);
    fs.sync().expect("all was accepted");
    (device, fs)
}

/// T24: a punch, no commit, an allocation elsewhere that takes the same blocks, data in them, and a
/// power cut.
#[test]
fn reuse_only_after_the_commit() {
    reuse(None);
    with_either(|source| reuse(Some(source)));
}

/// By a write, or by stores through a mapping; of blocks of which one is mapped then.
fn reuse(source: Option<Source>) {
    for left_out in [false, true] {
        let (device, fs) = full(&options());
        let live = fs.instance.live().expect("it is written to");
        let at_once = &live.allocator.reuses_at_once;
        at_once.store(left_out, Ordering::Release);
        let giver = fs.open(find(&fs, "giver"), true).expect("it opens");
        let taker = fs.open(find(&fs, "taker"), true).expect("it opens");
        let spaces = source.map(|source| {
            set_size(&fs, find(&fs, "taker"), BLOCKS / 2 * BLOCK).expect("it grows");
            let spaces = [&giver, &taker].map(|file| Space::of(source, file, 0..BLOCKS));
            spaces[0].load(0, &mut [0; 8]);
            fs.sync().expect("nothing fails");
            spaces
        });
        punch(&fs, &giver, 0..BLOCKS * BLOCK).expect("it is punched");
        let data = [2; (BLOCKS / 2 * BLOCK) as usize];
        match &spaces {
            None => write(&fs, &taker, 0, &data),
            Some([_, space]) => space.store(0, &data),
        }
        taker
            .mapping
            .write_back(&mut Held::at_entry(), 0..u64::MAX, WaitFor::All)
            .expect("it is written");
        let after = after_power_cut(&device);
        let giver = after.open(find(&after, "giver"), false).expect("it opens");
        let bytes = read(&after, &giver, 0..BLOCKS * BLOCK).expect("it can be read");
        // As it was, or punched.
        let is_foreign = bytes.iter().any(|byte| ![0, 1].contains(byte));
        assert_eq!(is_foreign, left_out, "another file's bytes");
    }
}

/// K15, B46: what a commit freed is nobody's until the device was told that it is free.
#[test]
fn blocks_that_a_commit_discards_cannot_be_had_yet() {
    let options = MountOptions {
        discard: true,
        ..options()
    };
    let (device, fs) = full(&options);
    let (giver, taker) = (find(&fs, "giver"), find(&fs, "taker"));
    let file = fs.open(giver, false).expect("it opens");
    let given = place(&fs, giver, 0).start..place(&fs, giver, (BLOCKS - 1) * BLOCK).end;
    drop(file);
    device.hold(Operation::Discard, 0..device.size());
    let is_written = AtomicBool::new(false);
    thread::scope(|scope| {
        set_size(&fs, giver, 0).expect("it is cut");
        let syncing = scope.spawn(|| fs.sync());
        device.wait_held();
        let writer = scope.spawn(|| {
            let file = fs.open(taker, true).expect("it opens");
            write(&fs, &file, 0, &[2; BLOCK as usize]);
            fs.sync_file(&file, false).expect("it is written");
            is_written.store(true, Ordering::Release);
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        let is_early = is_written.load(Ordering::Acquire);
        device.heal();
        assert!(!is_early, "it waits for the discard");
        writer.join().expect("no panic");
        syncing.join().expect("no panic").expect("all is written");
    });
    let taken = place(&fs, taker, 0);
    assert!(
        given.start <= taken.start && taken.end <= given.end,
        "those"
    );
    drop_cache(&fs);
    let file = fs.open(taker, false).expect("it opens");
    let bytes = read(&fs, &file, 0..BLOCK).expect("it can be read");
    assert_eq!(bytes, [2; BLOCK as usize], "not discarded");
}
