//! RACES T23: exchanges of two files both ways round, and within one, beside writers and readers.

use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread::scope;
use pagefence_vfs::{FileSystem as _, WriteMode};

use crate::support::{Image, KINDS, Random, create, find, read_all, write_all};

const BLOCKS: u64 = 48;
/// Blocks that change places at a time.
const RUN: u64 = 12;

/// Each block of either file says where in a file it belongs, modulo the length of a run: an exchange
/// moves it by whole runs. Nothing is anywhere else, torn, or of nobody.
#[test]
fn exchanges_beside_each_other_and_beside_writers_lose_nothing() {
    for kind in [KINDS[0], KINDS[2], KINDS[3], KINDS[5]] {
        let image = Image::new(kind.options, "12M");
        let system = image.open();
        let fs = &system;
        let block = u64::from(fs.stat_fs().unwrap().block_size);
        let ids = [create(fs, "first"), create(fs, "second")];
        let opened = ids.map(|id| fs.open(id, true).unwrap());
        let files = &opened;
        let stamp = |at: u64, number: u64| {
            let mut bytes = vec![1 + (at % RUN) as u8; block as usize];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            bytes
        };
        let check = |at: u64, bytes: &[u8]| {
            let due = 1 + (at % RUN) as u8;
            let is_whole = bytes[8..].iter().all(|byte| *byte == due);
            assert!(is_whole, "{}: {:?} at {at}", kind.name, &bytes[..10]);
        };
        for file in files {
            for at in 0..BLOCKS {
                write_all(fs, file, at * block, &stamp(at, at));
            }
        }
        let is_over = AtomicBool::new(false);
        let start = Instant::now();
        let (stamp, check, is_over) = (&stamp, &check, &is_over);
        scope(|scope| {
            // Whoever waits for ever does so loudly.
            scope.spawn(|| {
                while !is_over.load(Ordering::Acquire) {
                    if start.elapsed() > Duration::from_secs(120) {
                        eprintln!("{}: somebody waits for ever", kind.name);
                        std::process::abort();
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let exchangers: Vec<_> = [(0, 1), (1, 0), (0, 0), (1, 1)]
                .into_iter()
                .map(|(first, second)| {
                    scope.spawn(move || {
                        let mut random = Random::new(first * 2 + second + 1);
                        for _ in 0..40 {
                            let runs = BLOCKS / RUN;
                            let at = random.below(runs);
                            let other = match first == second {
                                true => (at + 1 + random.below(runs - 1)) % runs,
                                false => random.below(runs),
                            };
                            let unit = RUN * block;
                            let (first, second) = (&files[first as usize], &files[second as usize]);
                            fs.exchange_range(first, at * unit, second, other * unit, unit)
                                .unwrap();
                        }
                    })
                })
                .collect();
            for (number, file) in (0..).zip(files) {
                scope.spawn(move || {
                    let mut random = Random::new(77 + number);
                    while !is_over.load(Ordering::Acquire) {
                        let at = random.below(BLOCKS);
                        let data = stamp(at, random.next());
                        let done = fs
                            .write(file, at * block, &data, WriteMode::empty())
                            .unwrap();
                        assert_eq!(done as u64, block);
                    }
                });
                scope.spawn(move || {
                    let mut random = Random::new(99 + number);
                    while !is_over.load(Ordering::Acquire) {
                        let at = random.below(BLOCKS);
                        let mut bytes = vec![0; block as usize];
                        let read = fs.read(file, at * block, &mut bytes).unwrap();
                        assert_eq!(read as u64, block);
                        check(at, &bytes);
                    }
                });
            }
            let outcomes: Vec<_> = exchangers.into_iter().map(|thread| thread.join()).collect();
            is_over.store(true, Ordering::Release);
            outcomes.into_iter().for_each(|outcome| outcome.unwrap());
        });
        for id in ids {
            let bytes = read_all(fs, id);
            assert_eq!(bytes.len() as u64, BLOCKS * block);
            for (at, piece) in (0..).zip(bytes.chunks(block as usize)) {
                check(at, piece);
            }
        }
        fs.sync().unwrap();
        let left = ids.map(|id| read_all(fs, id));
        fs.shut_down().unwrap();
        drop(opened);
        drop(system);
        image.assert_clean(kind.name);
        let again = image.open();
        let found = ["first", "second"].map(|name| read_all(&again, find(&again, name)));
        assert!(found == left, "{}", kind.name);
    }
}
