//! The schedules of the race matrix that need more than a fence: T12, T15 to T21 and T25, as far as
//! the cache shows them, each with simulated and with real faults.

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_page_cache::simulated::{AddressSpace, Entry};
use pagefence_page_cache::{Evict, Mapping, PAGE_SIZE, WaitFor};

use super::disk::{Disk, Failed, Stop};
use super::space::{Space, Touch, for_both};
use super::{Bench, PAGE, Task, stamped, stamped_disk};
use crate::Kind;

for_both! {
    t12_only_what_is_not_dirty_is_punched;
    t13_what_lies_past_the_end_is_punched_dirty_or_not;
    t15_a_page_written_and_evicted_while_a_write_waits_keeps_its_bytes;
    t16_a_store_beside_the_flush_of_a_shift_comes_after_it;
    t17_between_two_steps_of_a_punch_nothing_doomed_is_kept;
    t18_a_store_after_a_truncate_down_and_up_inside_a_page_is_kept;
    t19_stores_past_the_end_never_show;
    t20_nobody_sees_old_data_while_a_direct_write_is_stopped;
    t21_a_fence_in_the_queue_keeps_nobody_from_copying_the_source;
    t21_two_writes_whose_sources_are_maps_of_each_other;
    t25_a_load_and_then_a_store;
    a_store_while_the_page_is_written_makes_it_dirty_again;
    a_fault_between_reservation_and_dirtying_keeps_fences_out;
}

fn hole<S: Space>(size: u64, block_size: usize) -> (Arc<Bench>, Arc<S>) {
    let bench = Bench::new(Disk::hole(size, block_size));
    let space = S::of(&bench, 0..8, Kind::Shared);
    (bench, space)
}

fn counts(bench: &Bench) -> (usize, usize) {
    (bench.mapping.dirty_pages(), bench.disk().reserved())
}

/// Four pages that could not be written back: clean, with their space.
fn unwritten<S: Space>() -> (Arc<Bench>, Arc<S>) {
    let (bench, space) = hole::<S>(8 * PAGE, PAGE_SIZE);
    space.store(0, &[1; 4 * PAGE_SIZE]);
    bench.disk().fail_writes(usize::MAX);
    assert_eq!(bench.sync(), Err(Failed));
    bench.disk().fail_writes(0);
    assert_eq!(counts(&bench), (0, 4));
    (bench, space)
}

fn t12_only_what_is_not_dirty_is_punched<S: Space>() {
    let (bench, space) = unwritten::<S>();
    // A store before the punch, and one that comes while it has the lock.
    space.store(2 * PAGE, &[9; 10]);
    let late = {
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = bench.mapping.fence(&mut entry, 0..8 * PAGE);
        let late = S::start(&space, 3, Kind::Shared, Touch::Store);
        assert!(!late.is_over_shortly(), "waits for the fence");
        fence.punch_delalloc(&mut held);
        assert_eq!(counts(&bench), (1, 1));
        late
    };
    late.finish();
    assert_eq!(counts(&bench), (2, 2), "reserved anew");
    bench.sync().expect("synced");
    assert_eq!(bench.disk().violations(), 0);
    let mut page = vec![1; PAGE_SIZE];
    page[..10].fill(9);
    assert_eq!(bench.disk().contents()[2 * PAGE_SIZE..][..PAGE_SIZE], page);
}

fn t13_what_lies_past_the_end_is_punched_dirty_or_not<S: Space>() {
    let (bench, space) = unwritten::<S>();
    space.store(2 * PAGE, &[9; 10]);
    bench.truncate(PAGE);
    assert_eq!(space.entry(2), None);
    assert_eq!(counts(&bench), (0, 1));
    bench.truncate(8 * PAGE);
    assert_eq!(space.load(2 * PAGE, PAGE_SIZE), vec![0; PAGE_SIZE]);
    assert_eq!(bench.disk().violations(), 0);
}

fn t15_a_page_written_and_evicted_while_a_write_waits_keeps_its_bytes<S: Space>() {
    let (bench, space) = hole::<S>(8 * PAGE, PAGE_SIZE);
    space.store(5 * PAGE, &stamped(5));
    space.load(4 * PAGE, 1);
    // Another one's fault has page 4 locked.
    let other = Arc::new(AddressSpace::shared(&bench.mapping, 4..5));
    other.stop();
    let holder = <AddressSpace<Disk> as Space>::start(&other, 4, Kind::Shared, Touch::Load);
    other.wait_stopped(1);
    // K8: the write has looked pages 0 to 5 up, and does not have the lock of the fifth yet.
    let writer = {
        let bench = Arc::clone(&bench);
        Task::start(move || bench.write(0, &[7; 5 * PAGE_SIZE + 100]))
    };
    assert!(!writer.is_over_shortly(), "waits for the page");
    let held = &mut Held::at_entry();
    bench
        .mapping
        .write_back(held, 5 * PAGE..6 * PAGE, WaitFor::All)
        .expect("written back");
    bench.reclaim_all();
    assert_eq!(
        (bench.mapping.next_cached(5 * PAGE), space.entry(5)),
        (None, None)
    );
    other.go_on();
    holder.finish();
    assert_eq!(writer.finish(), Ok(5 * PAGE_SIZE + 100));
    let mut expected = stamped(5);
    expected[..100].fill(7);
    assert_eq!(space.load(5 * PAGE, PAGE_SIZE), expected);
    bench.sync().expect("synced");
    assert_eq!(
        bench.disk().contents()[5 * PAGE_SIZE..][..PAGE_SIZE],
        expected
    );
    assert_eq!(bench.disk().violations(), 0);
}

fn t16_a_store_beside_the_flush_of_a_shift_comes_after_it<S: Space>() {
    let bench = Bench::new(stamped_disk(8));
    let space = S::of(&bench, 0..8, Kind::Shared);
    space.store(2 * PAGE + 100, &[9; 4]);
    bench.disk().stop_at(Stop::BeforeWrite);
    let shift = {
        let bench = Arc::clone(&bench);
        Task::start(move || {
            let mut entry = Held::at_entry();
            let (mut fence, mut held) = bench.mapping.fence(&mut entry, 2 * PAGE..6 * PAGE);
            let evicted = fence.evict(&mut held, Evict::WriteFirst).expect("evicted");
            Disk::swap_pages(&evicted, 2, 5);
        })
    };
    // K14: the flush is under way, inside the fence.
    bench.disk().wait_stopped(1);
    let stores: Vec<_> = [(2, 7_u8), (7, 8)]
        .into_iter()
        .map(|(page, byte)| {
            let space = Arc::clone(&space);
            Task::start(move || space.store(page * PAGE + 200, &[byte; 4]))
        })
        .collect();
    assert!(stores.iter().all(|store| !store.is_over_shortly()));
    bench.disk().go_on();
    shift.finish();
    stores.into_iter().for_each(Task::finish);
    let mut moved = stamped(2);
    moved[100..104].fill(9);
    assert_eq!(space.load(5 * PAGE, PAGE_SIZE), moved);
    let mut stored = stamped(5);
    stored[200..204].fill(7);
    assert_eq!(space.load(2 * PAGE, PAGE_SIZE), stored);
    assert_eq!(space.load(7 * PAGE + 200, 4), [8; 4]);
    bench.sync().expect("synced");
    assert_eq!(
        bench.disk().contents()[2 * PAGE_SIZE..][..PAGE_SIZE],
        stored
    );
    assert_eq!(bench.disk().violations(), 0);
}

fn t17_between_two_steps_of_a_punch_nothing_doomed_is_kept<S: Space>() {
    let bench = Bench::new(stamped_disk(8));
    let space = S::of(&bench, 0..8, Kind::Shared);
    space.load(0, 8 * PAGE_SIZE);
    bench.punch(0..4 * PAGE);
    // K13: the other half comes in a transaction of its own.
    for page in 0..8 {
        let expected = if page < 4 {
            vec![0; PAGE_SIZE]
        } else {
            stamped(page)
        };
        assert_eq!(space.load(page * PAGE, PAGE_SIZE), expected);
    }
    space.store(6 * PAGE, &[9; 10]);
    bench.punch(4 * PAGE..8 * PAGE);
    assert_eq!(space.load(0, 8 * PAGE_SIZE), vec![0; 8 * PAGE_SIZE]);
    assert_eq!(counts(&bench), (0, 0));
    bench.sync().expect("synced");
    assert_eq!(bench.disk().violations(), 0);
}

fn t18_a_store_after_a_truncate_down_and_up_inside_a_page_is_kept<S: Space>() {
    let (bench, space) = hole::<S>(3072, 1024);
    space.store(0, &[1; 3072]);
    assert_eq!(bench.disk().reserved(), 3, "blocks inside the file");
    bench.truncate(1024);
    assert_eq!(space.entry(0), Some(Entry::ReadOnly), "asks again (B20)");
    bench.truncate(4096);
    assert_eq!(space.load(0, 4096), [vec![1; 1024], vec![0; 3072]].concat());
    space.store(2048, &[5; 10]);
    bench.sync().expect("synced");
    bench.reclaim_all();
    assert_eq!(bench.mapping.nr_pages(), 0);
    assert_eq!(bench.read(2048, 10), Ok(vec![5; 10]));
    assert_eq!(space.load(2048, 10), [5; 10]);
    assert_eq!(bench.disk().violations(), 0);
}

fn t19_stores_past_the_end_never_show<S: Space>() {
    // By truncate up; by a write further on in the page, in the next one, and right at the end.
    let extensions: [fn(&Bench); 4] = [
        |bench| bench.truncate(2 * PAGE),
        |bench| drop(bench.write(3000, &[7; 1096])),
        |bench| drop(bench.write(PAGE + 10, &[7; 10])),
        |bench| {
            drop(bench.write(1500, &[7; 10]));
            bench.truncate(2 * PAGE);
        },
    ];
    for block_size in [1024, PAGE_SIZE] {
        for (nr, extend) in extensions.into_iter().enumerate() {
            for is_written in [false, true] {
                let (bench, space) = hole::<S>(1500, block_size);
                space.store(0, &[1; PAGE_SIZE]);
                if is_written {
                    bench.sync().expect("synced");
                    space.store(1600, &[2; 100]);
                }
                extend(&bench);
                let check = |page: &[u8], when| {
                    assert!(page[..1500].iter().all(|&byte| byte == 1), "{nr} {when}");
                    let garbage = page[1500..].iter().any(|&byte| byte != 0 && byte != 7);
                    assert!(!garbage, "extension {nr}, {when}");
                };
                check(&space.load(0, PAGE_SIZE), "mapped");
                check(&bench.read(0, PAGE_SIZE).expect("read"), "cached");
                bench.sync().expect("synced");
                bench.reclaim_all();
                assert_eq!(bench.mapping.nr_pages(), 0);
                check(&space.load(0, PAGE_SIZE), "mapped again");
                check(
                    &bench.disk().contents()[..PAGE_SIZE.min(bench.disk().contents().len())],
                    "on disk",
                );
                assert_eq!(bench.disk().violations(), 0);
            }
        }
    }
}

fn start_direct(bench: &Arc<Bench>, offset: u64, data: Vec<u8>) -> Task<Result<usize, Failed>> {
    let bench = Arc::clone(bench);
    Task::start(move || {
        let mut entry = Held::at_entry();
        let (_shared, mut held) = bench.inode.read(&mut entry);
        bench.mapping.write_direct(&mut held, offset, &data)
    })
}

fn t20_nobody_sees_old_data_while_a_direct_write_is_stopped<S: Space>() {
    for stop in [Stop::BeforeWrite, Stop::BeforeMapping] {
        for is_cached in [false, true] {
            let bench = Bench::new(stamped_disk(8));
            let space = S::of(&bench, 0..8, Kind::Shared);
            if is_cached {
                space.load(0, 8 * PAGE_SIZE);
            }
            bench.disk().stop_at(stop);
            let direct = start_direct(&bench, 2 * PAGE, vec![6; 2 * PAGE_SIZE]);
            bench.disk().wait_stopped(1);
            let load = {
                let space = Arc::clone(&space);
                Task::start(move || space.load(2 * PAGE, PAGE_SIZE))
            };
            let store = {
                let space = Arc::clone(&space);
                Task::start(move || space.store(3 * PAGE + 100, &[9; 8]))
            };
            assert!(!load.is_over_shortly() && !store.is_over_shortly());
            bench.disk().go_on();
            assert_eq!(direct.finish(), Ok(2 * PAGE_SIZE));
            assert_eq!(load.finish(), vec![6; PAGE_SIZE], "{stop:?}");
            store.finish();
            let mut expected = vec![6; PAGE_SIZE];
            expected[100..108].fill(9);
            assert_eq!(space.load(3 * PAGE, PAGE_SIZE), expected);
            bench.sync().expect("synced");
            assert_eq!(
                bench.disk().contents()[3 * PAGE_SIZE..][..PAGE_SIZE],
                expected
            );
            assert_eq!(bench.disk().violations(), 0);
        }
    }
}

fn t21_a_fence_in_the_queue_keeps_nobody_from_copying_the_source<S: Space>() {
    // A source that is a mapping of the file faults while a fence is queued behind another filler:
    // it waits for the fence, so the write must not keep that waiting (RACES U1, U2).
    let bench = Bench::new(stamped_disk(8));
    let space = S::of(&bench, 0..8, Kind::Shared);
    let mut others = None;
    let written = {
        let mut entry = Held::at_entry();
        let (_alone, mut held) = bench.inode.write(&mut entry);
        bench.mapping.write_from(&mut held, 0, PAGE_SIZE, |buffer| {
            bench.disk().stop_at(Stop::BeforeRead);
            let filler = {
                let bench = Arc::clone(&bench);
                Task::start(move || bench.read(5 * PAGE, PAGE_SIZE))
            };
            bench.disk().wait_stopped(1);
            let fence = {
                let mapping = Arc::clone(&bench.mapping);
                Task::start(move || drop_pages(&mapping, 6..7))
            };
            assert!(!fence.is_over_shortly(), "queued behind the filler");
            let release = {
                let bench = Arc::clone(&bench);
                Task::start(move || {
                    std::thread::sleep(super::SHORTLY);
                    bench.disk().go_on();
                })
            };
            let source = S::load_below(&space, 10, buffer.len());
            buffer.copy_from_slice(&source);
            others = Some((filler, fence, release));
            buffer.len()
        })
    };
    assert_eq!(written, Ok(PAGE_SIZE));
    let (filler, fence, release) = others.expect("the source was asked");
    assert_eq!(filler.finish(), Ok(stamped(5)));
    fence.finish();
    release.finish();
    let file: Vec<u8> = (0..2).flat_map(stamped).collect();
    assert_eq!(space.load(0, PAGE_SIZE), file[10..][..PAGE_SIZE]);
    assert_eq!(bench.disk().violations(), 0);
}

/// An invalidator that takes no block away.
fn drop_pages(mapping: &Mapping<Disk>, pages: std::ops::Range<u64>) {
    let mut entry = Held::at_entry();
    let range = pages.start * PAGE..pages.end * PAGE;
    let (mut fence, mut held) = mapping.fence(&mut entry, range);
    let _evicted = fence.evict(&mut held, Evict::WriteFirst).expect("evicted");
}

fn t21_two_writes_whose_sources_are_maps_of_each_other<S: Space>() {
    let benches = [0, 1].map(|_| Bench::new(stamped_disk(8)));
    let spaces = [0, 1].map(|nr: usize| S::of(&benches[nr], 0..8, Kind::Shared));
    let writers: Vec<_> = [0, 1]
        .into_iter()
        .map(|nr: usize| {
            let bench = Arc::clone(&benches[nr]);
            let source = Arc::clone(&spaces[1 - nr]);
            Task::start(move || {
                for round in 0..200_u64 {
                    let mut entry = Held::at_entry();
                    let (_alone, mut held) = bench.inode.write(&mut entry);
                    let page = round % 8;
                    let mapping = &bench.mapping;
                    let len = PAGE_SIZE;
                    let written = mapping.write_from(&mut held, page * PAGE, len, |buffer| {
                        buffer.copy_from_slice(&S::load_below(&source, page * PAGE, buffer.len()));
                        buffer.len()
                    });
                    assert_eq!(written, Ok(PAGE_SIZE));
                }
            })
        })
        .collect();
    while writers
        .iter()
        .any(|writer| !writer.wait(std::time::Duration::ZERO))
    {
        for bench in &benches {
            drop_pages(&bench.mapping, 0..8);
        }
    }
    writers.into_iter().for_each(Task::finish);
    for bench in &benches {
        let file: Vec<u8> = (0..8).flat_map(stamped).collect();
        assert_eq!(bench.read(0, 8 * PAGE_SIZE), Ok(file));
        bench.sync().expect("synced");
        assert_eq!(bench.disk().violations(), 0);
    }
}

fn t25_a_load_and_then_a_store<S: Space>() {
    let (bench, space) = hole::<S>(8 * PAGE, PAGE_SIZE);
    space.load(3 * PAGE, 1);
    assert_eq!(space.entry(3), Some(Entry::ReadOnly));
    assert_eq!(counts(&bench), (0, 0));
    space.store(3 * PAGE + 5, &[9]);
    assert_eq!(space.entry(3), Some(Entry::Writable));
    assert_eq!(counts(&bench), (1, 1));
    bench.sync().expect("synced");
    assert_eq!(space.entry(3), Some(Entry::ReadOnly));
    assert_eq!(bench.disk().contents()[3 * PAGE_SIZE + 5], 9);
    assert_eq!(bench.disk().violations(), 0);
}

fn a_store_while_the_page_is_written_makes_it_dirty_again<S: Space>() {
    for stop in [Stop::BeforeWrite, Stop::BeforeMapping] {
        let (bench, space) = hole::<S>(8 * PAGE, PAGE_SIZE);
        space.store(0, &[1; PAGE_SIZE]);
        bench.disk().stop_at(stop);
        let syncer = {
            let bench = Arc::clone(&bench);
            Task::start(move || bench.sync())
        };
        bench.disk().wait_stopped(1);
        assert_eq!(space.entry(0), Some(Entry::ReadOnly));
        space.store(0, &[2; 10]);
        assert_eq!(bench.mapping.dirty_pages(), 1, "and does not wait");
        bench.disk().go_on();
        syncer.finish().expect("synced");
        bench.sync().expect("synced");
        let contents = bench.disk().contents();
        assert_eq!(contents[..11], [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
        assert_eq!(bench.disk().violations(), 0);
    }
}

fn a_fault_between_reservation_and_dirtying_keeps_fences_out<S: Space>() {
    let (bench, space) = hole::<S>(8 * PAGE, PAGE_SIZE);
    let puncher = Arc::new(Mutex::new(None));
    let (other, started) = (Arc::clone(&bench), Arc::clone(&puncher));
    // K7.
    bench.disk().on_reserve(move || {
        let puncher = Task::start(move || other.punch(0..8 * PAGE));
        assert!(!puncher.is_over_shortly(), "the fence waits");
        *started.lock() = Some(puncher);
    });
    space.store(0, &[1; 10]);
    let puncher = puncher.lock().take();
    puncher.expect("it was reserved").finish();
    assert_eq!(bench.disk().reserved(), bench.mapping.dirty_pages());
    bench.sync().expect("synced");
    assert_eq!(bench.disk().violations(), 0);
}
