//! RACES T16 (B3): a write, or a store through a map, that comes between the flush of a collapse or
//! an insertion and the move of the blocks would be lost. The device holds the flush; what comes
//! meanwhile waits, and is applied to the file as it is then.

use pagefence_block_io::device::Operation;
use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::{FallocateMode, FileSystem as _};

use super::maps::{Source, Space, with_either};
use super::{BLOCK, create, drop_cache, formatted, open, place, read, wait_for, write};

/// Blocks of the file.
const BLOCKS: u64 = 40;

fn block(number: u64) -> Vec<u8> {
    vec![1 + number as u8; BLOCK as usize]
}

fn company_waits_for_the_flush(mode: FallocateMode, source: Source) {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    for number in 0..BLOCKS {
        write(&fs, &file, number * BLOCK, &block(number));
    }
    fs.sync_file(&file, false).expect("nothing fails");
    drop_cache(&fs);
    let space = Space::of(source, &file, 0..BLOCKS);
    // Not what the reader wants: a cached page is read whoever has the fence.
    let load = || {
        let mut bytes = block(0);
        space.load(33 * BLOCK, &mut bytes);
        bytes
    };
    assert!(load() == block(33));
    // Dirty, behind the range.
    let dirty = 30;
    write(&fs, &file, dirty * BLOCK, &block(100));
    device.hold(Operation::Write, place(&fs, id, dirty * BLOCK));
    let done = AtomicUsize::new(0);
    let seen = thread::scope(|scope| {
        scope.spawn(|| {
            fs.allocate(&file, 3 * BLOCK, 2 * BLOCK, mode)
                .expect("nothing fails");
        });
        device.wait_held();
        scope.spawn(|| {
            write(&fs, &file, 35 * BLOCK, &block(200));
            done.fetch_add(1, Ordering::AcqRel);
        });
        scope.spawn(|| {
            space.store(36 * BLOCK, &block(150));
            done.fetch_add(1, Ordering::AcqRel);
        });
        let reader = scope.spawn(|| {
            let bytes = read(&fs, &file, 20 * BLOCK..21 * BLOCK).expect("it can be read");
            done.fetch_add(1, Ordering::AcqRel);
            bytes
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(done.load(Ordering::Acquire), 0, "they wait");
        device.heal();
        wait_for("company", || done.load(Ordering::Acquire) == 3);
        reader.join().expect("no panic")
    });
    let mut expected: Vec<Vec<u8>> = (0..BLOCKS).map(block).collect();
    expected[dirty as usize] = block(100);
    if mode == FallocateMode::COLLAPSE_RANGE {
        expected.drain(3..5);
    } else {
        expected.splice(3..3, [vec![0; BLOCK as usize], vec![0; BLOCK as usize]]);
    }
    assert_eq!(seen, expected[20], "what it reads is where it belongs");
    expected[35] = block(200);
    expected[36] = block(150);
    assert!(load() == expected[33], "what was mapped is mapped no more");
    space.check();
    drop(space);
    let size = expected.len() as u64 * BLOCK;
    let all = read(&fs, &file, 0..size + 1).expect("it can be read");
    assert!(all == expected.concat());
    drop_cache(&fs);
    fs.sync_file(&file, false).expect("nothing fails");
    drop_cache(&fs);
    let all = read(&fs, &file, 0..size + 1).expect("it can be read");
    assert!(all == expected.concat());
}

#[test]
fn a_write_beside_the_flush_of_a_collapse_is_not_lost() {
    with_either(|source| company_waits_for_the_flush(FallocateMode::COLLAPSE_RANGE, source));
}

#[test]
fn a_write_beside_the_flush_of_an_insertion_is_not_lost() {
    with_either(|source| company_waits_for_the_flush(FallocateMode::INSERT_RANGE, source));
}
