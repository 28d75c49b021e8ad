//! Each protection of fences left out, and each second look at a page that was found: the oracles
//! notice. With it: they don't.

use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_lock_order::{Held, OrderedRwLock};

use super::device::{Device, Failed, TestMapping};
use super::edges::{punch, truncate};
use super::faults::{Space, load};
use super::{NEVER, SHORTLY, SMALL, Task, config, read, stamped, sync, write};
use crate::backing::PAGE_SIZE;
use crate::folio::PageLockGuard;
use crate::mapping::Looker;
use crate::mutants::Mutants;
use crate::probe::Stop;
use crate::{Evict, PageCache};

const PAGE: u64 = PAGE_SIZE as u64;

type World = (Arc<PageCache>, Arc<TestMapping>, Arc<Space>);

fn setup(device: Device, mutants: Mutants) -> World {
    let cache = PageCache::with_mutants(config(SMALL), mutants).expect("a cache");
    let mapping = device.mapped(&cache);
    mapping.backing().let_holes_be_read();
    let space = Arc::new(Space::shared(&mapping, 0..8));
    (cache, mapping, space)
}

fn data(mutants: Mutants) -> World {
    setup(Device::stamped(8, PAGE_SIZE), mutants)
}

#[test]
fn the_lock_in_writes() {
    for write_unlocked in [false, true] {
        let (_cache, mapping, _space) = data(Mutants {
            write_unlocked,
            ..Mutants::default()
        });
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = mapping.fence(&mut entry, 0..8 * PAGE);
        let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
        // K1.
        let writer = {
            let mapping = Arc::clone(&mapping);
            Task::start(move || write(&mapping, 2 * PAGE + 10, &[7; 10]))
        };
        let most = if write_unlocked { NEVER } else { SHORTLY };
        assert_eq!(writer.wait(most), write_unlocked);
        Device::punch(&evicted);
        drop(fence);
        assert_eq!(writer.finish(), Ok(10));
        let mut expected = vec![0; PAGE_SIZE];
        expected[10..20].fill(7);
        let seen = read(&mapping, 2 * PAGE, PAGE_SIZE).expect("read");
        assert_eq!(seen != expected, write_unlocked);
        sync(&mapping).expect("the test's device takes anything");
        assert_eq!(mapping.backing().violations() > 0, write_unlocked);
    }
}

/// What a punch of delayed blocks holds back: a store to a page that is not in the cache, whose
/// block has space yet.
#[test]
fn the_lock_in_punching_delalloc() {
    for left_out in [false, true] {
        let (cache, mapping, space) = setup(Device::hole(8 * PAGE, PAGE_SIZE), Mutants::default());
        if left_out {
            cache.leave_out_fences("punch_delalloc.rs");
        }
        write(&mapping, 0, &[1; 4 * PAGE_SIZE]).expect("written");
        mapping.backing().fail_writes(1);
        assert_eq!(sync(&mapping), Err(Failed));
        cache.shrink(u64::MAX);
        let task = Arc::new(Mutex::new(None));
        // The cache has the stop: with a space in it, it would never go.
        let (started, storing) = (Arc::clone(&task), Arc::downgrade(&space));
        cache.stop_at(Stop::GivingBack, move || {
            let space = storing.upgrade().expect("it is in use");
            let store = Task::start(move || space.store(2 * PAGE, &[9; 10]));
            let most = if left_out { NEVER } else { SHORTLY };
            assert_eq!(store.wait(most), left_out);
            *started.lock() = Some(store);
        });
        let inode = OrderedRwLock::<pagefence_lock_order::levels::Inode, ()>::new(7, ());
        {
            let mut entry = Held::at_entry();
            let (_lock, mut held) = inode.write(&mut entry);
            assert!(mapping.give_back_unwritten(&mut held));
        }
        let store = task.lock().take().expect("it was held");
        store.finish().expect("stored");
        assert_eq!(mapping.dirty_pages(), 1);
        sync(&mapping).expect("the test's device takes anything");
        assert_eq!(mapping.backing().violations() > 0, left_out);
    }
}

/// B3: what is stored between the flush and the drop is lost, if the flush comes before the lock.
#[test]
fn the_flush_inside_the_lock() {
    for left_out in [false, true] {
        let (cache, mapping, space) = data(Mutants::default());
        if left_out {
            cache.flush_before_fences();
        }
        let (flushed, storing) = (Arc::clone(&mapping), Arc::clone(&space));
        cache.stop_at(Stop::BeforeLock, move || {
            let (mapping, space) = (Arc::clone(&flushed), Arc::clone(&storing));
            let company = Task::start(move || {
                sync(&mapping).expect("written");
                space.store(3 * PAGE, &[9; 10]).expect("stored");
            });
            company.finish();
        });
        {
            let mut entry = Held::at_entry();
            let (mut fence, mut held) = mapping.fence(&mut entry, 0..8 * PAGE);
            let _evicted = fence.evict(&mut held, Evict::WriteFirst).expect("evicted");
        }
        cache.stop_nowhere();
        let is_lost = read(&mapping, 3 * PAGE, 10) != Ok(vec![9; 10]);
        assert_eq!(is_lost, left_out);
    }
}

/// B21: a power cut when the file has been cut inside a block and has grown again, and nothing was
/// written back since.
#[test]
fn the_edge_on_the_device() {
    for left_out in [false, true] {
        let (cache, mapping, _space) = data(Mutants::default());
        if left_out {
            cache.leave_out_edges();
        }
        truncate(&mapping, PAGE + 1000);
        truncate(&mapping, 2 * PAGE);
        let left = mapping.backing().contents();
        let shows = left[PAGE_SIZE + 1000..].iter().any(|&byte| byte != 0);
        assert_eq!(shows, left_out, "old bytes");
    }
}

/// Has `looker` find page 3 and wait for its lock, while the page leaves the cache, as reclaim takes
/// one. What `look` came to, when it is over.
fn overtaken<T: Send + 'static>(
    mapping: &Arc<TestMapping>,
    look: impl FnOnce() -> T + Send + 'static,
) -> T {
    let folio = mapping.pages().get(3).expect("cached");
    let guard = PageLockGuard::try_lock(&folio).expect("free");
    let looker = Task::start(look);
    assert!(!looker.is_over_shortly(), "it waits for the page");
    assert!(mapping.pages().remove_locked(&guard));
    drop(guard);
    looker.finish()
}

fn looking(looker: Looker, left_out: bool) -> World {
    let world = data(Mutants {
        unrevalidated: left_out.then_some(looker),
        ..Mutants::default()
    });
    read(&world.1, 0, 8 * PAGE_SIZE).expect("read");
    world
}

#[test]
fn the_second_look_of_a_load() {
    for left_out in [false, true] {
        let (_cache, mapping, space) = looking(Looker::Load, left_out);
        let loading = Arc::clone(&space);
        overtaken(&mapping, move || load(&loading, 3 * PAGE, 10)).expect("loaded");
        write(&mapping, 3 * PAGE, &[9; 10]).expect("written");
        let seen = load(&space, 3 * PAGE, 10).expect("loaded");
        assert_eq!(seen != [9; 10], left_out, "a page that is nobody's");
    }
}

#[test]
fn the_second_look_of_a_store() {
    for left_out in [false, true] {
        let (_cache, mapping, space) = looking(Looker::Store, left_out);
        let storing = Arc::clone(&space);
        overtaken(&mapping, move || storing.store(3 * PAGE, &[9; 10])).expect("stored");
        let is_lost = read(&mapping, 3 * PAGE, 10) != Ok(vec![9; 10]);
        assert_eq!(is_lost, left_out);
    }
}

#[test]
fn the_second_look_of_a_write() {
    for left_out in [false, true] {
        let (_cache, mapping, _space) = looking(Looker::Write, left_out);
        let writing = Arc::clone(&mapping);
        let written = overtaken(&mapping, move || write(&writing, 3 * PAGE, &[9; 10]));
        assert_eq!(written, Ok(10));
        let is_lost = read(&mapping, 3 * PAGE, 10) != Ok(vec![9; 10]);
        assert_eq!(is_lost, left_out);
    }
}

#[test]
fn the_second_look_at_an_edge() {
    for left_out in [false, true] {
        let (_cache, mapping, _space) = looking(Looker::Edge, left_out);
        let punching = Arc::clone(&mapping);
        overtaken(&mapping, move || punch(&punching, 3 * PAGE + 100..5 * PAGE));
        let mut expected = stamped(3, 1);
        expected[100..].fill(0);
        let seen = read(&mapping, 3 * PAGE, PAGE_SIZE).expect("read");
        assert_eq!(seen != expected, left_out, "old bytes");
    }
}
