//! Stores through maps that nothing may lose, and that nobody but who asked for them may see: past the
//! end of the file, beside a direct write, and beside exchanges both ways round.

use pagefence_block_io::device::Operation;
use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::{FallocateMode, FileSystem as _, WriteMode};

use super::maps::{Source, Space, with_either};
use super::{
    BLOCK, after_power_cut, create, drop_cache, find, formatted, open, place, read, set_size, write,
};

/// RACES T19 (B22): what is stored past the end stays away when the file grows over it, be it that
/// the page was written back before, and also after a power cut.
#[test]
fn what_was_stored_past_the_end_never_shows() {
    with_either(|source| {
        for is_written in [false, true] {
            for by_write in [false, true] {
                grow_over_a_store(source, is_written, by_write);
            }
        }
    });
}

fn grow_over_a_store(source: Source, is_written: bool, by_write: bool) {
    const END: usize = 2010;
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    write(&fs, &file, 0, &[1; 1000]);
    fs.sync().expect("nothing fails");
    let space = Space::of(source, &file, 0..1);
    space.store(900, &[9; 600]);
    if is_written {
        fs.sync_file(&file, false).expect("nothing fails");
    }
    let mut expected = [0; END];
    expected[..900].fill(1);
    expected[900..1000].fill(9);
    if by_write {
        write(&fs, &file, 2000, &[2; 10]);
        expected[2000..].fill(2);
    } else {
        set_size(&fs, id, END as u64).expect("it grows");
    }
    let context = format!("{source:?}, written {is_written}, by a write {by_write}");
    let mut loaded = [0xEE; END];
    space.load(0, &mut loaded);
    assert!(loaded == expected, "{context}: in memory");
    space.check();
    let all = 0..BLOCK;
    assert!(
        read(&fs, &file, all.clone()).expect("it can be read") == expected,
        "{context}"
    );
    let after_power_cut = || {
        let fs = after_power_cut(&device);
        let file = fs.open(find(&fs, "file"), false).expect("it opens");
        read(&fs, &file, all.clone()).expect("it can be read")
    };
    let live = fs.instance.live().expect("it is written to");
    let committed = live.commit(live.journal.running().0);
    committed.expect("nothing fails");
    let left = after_power_cut();
    assert!(left.len() >= 1000, "{context}: it was synced");
    let is_clean = left[1000..].iter().all(|byte| [0, 2].contains(byte));
    assert!(is_clean, "{context}: old bytes");
    fs.sync().expect("nothing fails");
    assert!(after_power_cut() == expected, "{context}: on the device");
    drop(space);
    drop_cache(&fs);
    assert!(read(&fs, &file, all.clone()).expect("it can be read") == expected);
    drop(file);
    fs.shut_down().expect("nothing fails");
}

/// Who stores goes on as soon as the page is mapped, while whoever served the fault has not returned:
/// a sync of everything knows of the file then.
#[test]
fn a_sync_writes_what_was_just_stored() {
    with_either(|source| {
        let device = formatted();
        let fs = open(&device);
        for round in 0..60 {
            let name = format!("file{round}");
            let id = create(&fs, &name);
            let file = fs.open(id, true).expect("it opens");
            set_size(&fs, id, BLOCK).expect("it grows");
            let space = Space::of(source, &file, 0..1);
            space.store(0, &[7; 8]);
            fs.sync().expect("nothing fails");
            let after = after_power_cut(&device);
            let file = after.open(find(&after, &name), false).expect("it opens");
            let left = read(&after, &file, 0..8).expect("it can be read");
            assert_eq!(left, [7; 8], "round {round}");
        }
    });
}

/// RACES T20: a direct write into unwritten blocks is under way. Who loads from them, or stores there,
/// comes when they are converted: nobody sees zeros afterwards, and what is stored is not lost.
#[test]
fn faults_wait_for_a_direct_write() {
    with_either(|source| {
        let device = formatted();
        let fs = open(&device);
        let id = create(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        let allocated = fs.allocate(&file, 0, 4 * BLOCK, FallocateMode::empty());
        allocated.expect("there is space");
        fs.sync().expect("nothing fails");
        let space = Space::of(source, &file, 0..4);
        device.hold(Operation::Write, place(&fs, id, BLOCK));
        let done = AtomicUsize::new(0);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let data = [5; 2 * BLOCK as usize];
                fs.write(&file, BLOCK, &data, WriteMode::DIRECT)
            });
            device.wait_held();
            let loader = scope.spawn(|| {
                let mut bytes = [0xEE; 8];
                space.load(BLOCK, &mut bytes);
                done.fetch_add(1, Ordering::AcqRel);
                bytes
            });
            scope.spawn(|| {
                space.store(2 * BLOCK + 100, &[7; 8]);
                done.fetch_add(1, Ordering::AcqRel);
            });
            std::thread::sleep(std::time::Duration::from_millis(100));
            let early = done.load(Ordering::Acquire);
            device.heal();
            assert_eq!(early, 0, "they wait");
            let written = writer.join().expect("no panic").expect("nothing fails");
            assert_eq!(written, 2 * BLOCK as usize);
            assert_eq!(loader.join().expect("no panic"), [5; 8]);
        });
        space.check();
        drop(space);
        let mut expected = vec![0; 4 * BLOCK as usize];
        expected[BLOCK as usize..3 * BLOCK as usize].fill(5);
        expected[2 * BLOCK as usize + 100..][..8].fill(7);
        for _cached_or_not in 0..2 {
            assert!(read(&fs, &file, 0..4 * BLOCK).expect("it can be read") == expected);
            fs.sync().expect("nothing fails");
            drop_cache(&fs);
        }
        drop(file);
        fs.shut_down().expect("nothing fails");
    });
}

/// Atomic additions in the memory of this process: each is one access, which is in the page that its
/// block has then.
#[cfg(not(shuttle))]
mod additions {
    use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
    use pagefence_lock_order::primitives::thread;
    use pagefence_page_mmap::Region;
    use pagefence_vfs::{Error, FileSystem as _, MapFormat};

    use crate::backing::FileData;
    use crate::failures::maps::map;
    use crate::failures::{BLOCK, create, drop_cache, formatted, open, read, root, write};

    /// Blocks of either file.
    const BLOCKS: u64 = 24;
    /// Blocks that change places at a time.
    const RUN: u64 = 6;
    /// Exchanges of each of those who exchange.
    const ROUNDS: u64 = 800;

    fn next(random: &mut u64) -> u64 {
        *random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        *random >> 33
    }

    fn add(region: &Region<FileData>, block: u64) {
        let at = usize::try_from(block * BLOCK + 8 * (block % 64)).expect("small");
        region.view().fetch_add_u64(at, 1, Ordering::Relaxed);
    }

    /// RACES T23: exchanges both ways round and within a file, migrations, fsync and reclaim; as many
    /// additions as there were are in the two files.
    #[test]
    fn additions_beside_exchanges_are_not_lost() {
        let device = formatted();
        let fs = open(&device);
        let ids = ["first", "second"].map(|name| create(&fs, name));
        let files = ids.map(|id| fs.open(id, true).expect("it opens"));
        for file in &files {
            write(&fs, file, 0, &vec![0; (BLOCKS * BLOCK) as usize]);
        }
        let regions = [0, 1].map(|which: usize| map(&files[which], 0..BLOCKS));
        let (is_over, added) = (AtomicBool::new(false), AtomicU64::new(0));
        let (fs, files, regions) = (&fs, &files, &regions);
        let (is_over, added) = (&is_over, &added);
        thread::scope(|scope| {
            for (region, seed) in regions.iter().zip(1..) {
                scope.spawn(move || {
                    let mut random = seed;
                    while !is_over.load(Ordering::Acquire) {
                        add(region, next(&mut random) % BLOCKS);
                        added.fetch_add(1, Ordering::AcqRel);
                    }
                });
            }
            scope.spawn(|| {
                while !is_over.load(Ordering::Acquire) {
                    for (id, file) in ids.into_iter().zip(files) {
                        fs.sync_file(file, false).expect("nothing fails");
                        drop_cache(fs);
                        for to in [MapFormat::Blocks, MapFormat::Extents] {
                            match fs.migrate(id, to, &root()) {
                                Ok(()) | Err(Error::Again) => {}
                                failed => panic!("{failed:?}"),
                            }
                        }
                    }
                }
            });
            let exchangers = [(0, 1), (1, 0), (0, 0), (1, 1)].map(|(first, second)| {
                scope.spawn(move || {
                    let mut random = 100 + 2 * first as u64 + second as u64;
                    let (one, other) = (&files[first], &files[second]);
                    for _ in 0..ROUNDS {
                        let runs = BLOCKS / RUN;
                        let at = next(&mut random) % runs;
                        let other_at = match first == second {
                            true => (at + 1 + next(&mut random) % (runs - 1)) % runs,
                            false => next(&mut random) % runs,
                        };
                        let unit = RUN * BLOCK;
                        fs.exchange_range(one, at * unit, other, other_at * unit, unit)
                            .expect("nothing fails");
                    }
                })
            });
            let outcomes = exchangers.map(|exchanger| exchanger.join());
            is_over.store(true, Ordering::Release);
            for outcome in outcomes {
                outcome.expect("no panic");
            }
        });
        let added = added.load(Ordering::Acquire);
        assert!(added > BLOCKS, "they had company");
        let count = || -> u64 {
            let words = |file| {
                let bytes = read(fs, file, 0..BLOCKS * BLOCK).expect("it can be read");
                let words = bytes.chunks(8).map(|word| word.try_into().expect("eight"));
                words.map(u64::from_le_bytes).sum::<u64>()
            };
            files.iter().map(words).sum()
        };
        assert_eq!(count(), added, "in the cache");
        fs.sync().expect("nothing fails");
        drop_cache(fs);
        assert_eq!(count(), added, "on the device");
        fs.shut_down().expect("nothing fails");
    }
}
