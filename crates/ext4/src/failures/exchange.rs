//! Stores through maps beside an exchange, and beside a move to a donor's blocks (RACES 3.11, B3). The
//! device holds two flushes, the one before the fences and the one inside. What is stored at the first
//! one, also to a hole, goes with the blocks; what comes at the second one waits, and is applied to
//! the files as they are then.

use pagefence_block_io::device::Operation;
use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::FileSystem as _;

use super::maps::{Source, Space, with_either};
use super::{BLOCK, create, drop_cache, formatted, open, place, punch, read, wait_for, write};
use crate::failures::unreserved;

/// Blocks of either file.
const BLOCKS: usize = 40;
/// Where the ranges begin.
const AT: [usize; 2] = [4, 10];
const LEN: usize = 24;
/// Blocks of the one file that have no place at first. One is stored to.
const HOLES: [usize; 2] = [6, 8];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Exchange,
    Move,
}

fn block(number: usize) -> Vec<u8> {
    vec![u8::try_from(number).expect("small"); BLOCK as usize]
}

/// What each block holds, by its number; 0 for a hole.
type Model = [[usize; BLOCKS]; 2];

fn apply(change: Change, model: &mut Model) {
    for offset in 0..LEN {
        let [at, other_at] = AT.map(|at| at + offset);
        let (old, other) = (model[0][at], model[1][other_at]);
        match change {
            Change::Exchange => {
                model[0][at] = other;
                model[1][other_at] = old;
            }
            // A hole of either stays, and so does what the other one has there.
            Change::Move if old == 0 || other == 0 => {}
            Change::Move => model[1][other_at] = 0,
        }
    }
}

/// `side` is the file that is dirty, and stored to.
fn company(change: Change, side: usize, source: Source) {
    let device = formatted();
    let fs = open(&device);
    let ids = ["file", "other"].map(|name| create(&fs, name));
    let files = ids.map(|id| fs.open(id, true).expect("it opens"));
    let mut model: Model = [[0; BLOCKS]; 2];
    for (which, file) in files.iter().enumerate() {
        for (number, holds) in model[which].iter_mut().enumerate() {
            *holds = 1 + number + 50 * which;
            write(&fs, file, number as u64 * BLOCK, &block(*holds));
        }
        fs.sync_file(file, false).expect("nothing fails");
    }
    for hole in HOLES.map(|hole| hole + AT[side]) {
        let start = hole as u64 * BLOCK;
        punch(&fs, &files[side], start..start + BLOCK).expect("punched");
        model[side][hole] = 0;
    }
    fs.sync().expect("nothing fails");
    drop_cache(&fs);
    let space = || {
        let used = ids.map(|id| fs.attr(id).expect("it is there").blocks_512);
        unreserved(&fs) + used.iter().sum::<u64>() / (BLOCK / 512)
    };
    let before = space();
    let spaces = [0, 1].map(|which| Space::of(source, &files[which], 0..BLOCKS as u64));
    let store = |which: usize, at: usize, number: usize| {
        spaces[which].store(at as u64 * BLOCK, &block(number));
    };
    // Dirty behind what is stored to, so that writing back has passed that.
    let (dirty, late) = (AT[side] + 20, AT[side] + 3);
    write(&fs, &files[side], dirty as u64 * BLOCK, &block(101));
    model[side][dirty] = 101;
    let place = |at: usize| place(&fs, ids[side], at as u64 * BLOCK);
    device.hold(Operation::Write, place(dirty));
    let late_place = place(late);
    let done = AtomicUsize::new(0);
    let seen = thread::scope(|scope| {
        scope.spawn(|| {
            let [first, second] = &files;
            let [at, other_at] = AT.map(|at| at as u64 * BLOCK);
            let length = LEN as u64 * BLOCK;
            match change {
                Change::Exchange => fs
                    .exchange_range(first, at, second, other_at, length)
                    .expect("nothing fails"),
                Change::Move => {
                    let moved = fs.move_blocks(first, at, second, other_at, length);
                    assert_eq!(moved.expect("nothing fails"), length);
                }
            }
        });
        device.wait_held();
        // Nobody is kept from it yet.
        store(side, late, 102);
        store(side, AT[side] + HOLES[0], 103);
        model[side][late] = 102;
        model[side][AT[side] + HOLES[0]] = 103;
        device.hold_next(Operation::Write, late_place);
        for which in [0, 1] {
            let (files, fs, done, store) = (&files, &fs, &done, &store);
            scope.spawn(move || {
                let at = (AT[which] + 12) as u64 * BLOCK;
                write(fs, &files[which], at, &block(104 + which));
                done.fetch_add(1, Ordering::AcqRel);
            });
            scope.spawn(move || {
                store(which, AT[which] + 14, 106 + which);
                done.fetch_add(1, Ordering::AcqRel);
            });
        }
        let readers = [0, 1].map(|which| {
            let (files, fs, done) = (&files, &fs, &done);
            scope.spawn(move || {
                let at = (AT[which] + 16) as u64 * BLOCK;
                let bytes = read(fs, &files[which], at..at + BLOCK).expect("it can be read");
                done.fetch_add(1, Ordering::AcqRel);
                bytes
            })
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(done.load(Ordering::Acquire), 0, "they wait");
        device.heal();
        wait_for("company", || done.load(Ordering::Acquire) == 6);
        readers.map(|reader| reader.join().expect("no panic"))
    });
    apply(change, &mut model);
    for which in [0, 1] {
        spaces[which].check();
        let due = block(model[which][AT[which] + 16]);
        assert!(seen[which] == due, "what it reads is what is there then");
        model[which][AT[which] + 12] = 104 + which;
        model[which][AT[which] + 14] = 106 + which;
        for (at, number) in model[which].iter().enumerate() {
            let mut loaded = block(255);
            spaces[which].load(at as u64 * BLOCK, &mut loaded);
            assert!(loaded == block(*number), "{change:?} {side} {which} {at}");
        }
    }
    drop(spaces);
    for _cached_or_not in 0..2 {
        for which in [0, 1] {
            let all = read(&fs, &files[which], 0..BLOCKS as u64 * BLOCK + 1);
            let due: Vec<u8> = model[which].iter().flat_map(|n| block(*n)).collect();
            assert!(
                all.expect("it can be read") == due,
                "{change:?} {side} {which}"
            );
        }
        fs.sync().expect("nothing fails");
        drop_cache(&fs);
    }
    assert_eq!(space(), before, "what they have, and no more");
    drop(files);
    fs.shut_down().expect("nothing fails");
}

#[test]
fn stores_beside_the_flushes_of_an_exchange_are_not_lost() {
    with_either(|source| {
        for side in [0, 1] {
            company(Change::Exchange, side, source);
        }
    });
}

#[test]
fn stores_beside_the_flushes_of_a_move_are_not_lost() {
    with_either(|source| {
        for side in [0, 1] {
            company(Change::Move, side, source);
        }
    });
}
