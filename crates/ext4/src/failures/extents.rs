//! A map of a file that is asked for while it changes.

use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::FileSystem as _;

use super::{BLOCK, create, extents, formatted, open, punch, write};

const PIECES: u64 = 12;
const ROUNDS: u8 = 150;

/// The leaf of a tree is freed with the last extent, and is somebody's data a commit later.
#[test]
fn a_map_is_whole_while_blocks_come_and_go() {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut most = 0;
            while !is_over.load(Ordering::Acquire) {
                most = most.max(extents(&fs, id).len());
            }
            most
        });
        for round in 0..ROUNDS {
            for piece in 0..PIECES {
                write(&fs, &file, 2 * piece * BLOCK, &[round; BLOCK as usize]);
            }
            fs.sync_file(&file, false).expect("nothing fails");
            punch(&fs, &file, 0..2 * PIECES * BLOCK).expect("nothing fails");
            fs.sync_file(&file, false).expect("nothing fails");
        }
        is_over.store(true, Ordering::Release);
        assert_eq!(reader.join().expect("no panic"), 12);
    });
}
