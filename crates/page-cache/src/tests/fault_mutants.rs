//! Each protection of faults left out: the oracles notice. With it: they don't.

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;

use super::device::{Device, Failed, TestMapping};
use super::edges::{punch, truncate};
use super::faults::{Space, load, start_fault};
use super::{NEVER, SHORTLY, SMALL, Task, config, read, sync, write};
use crate::backing::PAGE_SIZE;
use crate::folio::PageLockGuard;
use crate::mutants::Mutants;
use crate::reclaim::Pressure;
use crate::simulated::Entry;
use crate::{Evict, FaultKind, PageCache};

const PAGE: u64 = PAGE_SIZE as u64;

fn setup(device: Device, mutants: Mutants) -> (Arc<PageCache>, Arc<TestMapping>, Arc<Space>) {
    let cache = PageCache::with_mutants(config(SMALL), mutants).expect("a cache");
    let mapping = device.mapped(&cache);
    mapping.backing().let_holes_be_read();
    let space = Arc::new(Space::shared(&mapping, 0..8));
    (cache, mapping, space)
}

fn stamped(mutants: Mutants) -> (Arc<PageCache>, Arc<TestMapping>, Arc<Space>) {
    let world = setup(Device::stamped(8, PAGE_SIZE), mutants);
    read(&world.1, 0, 8 * PAGE_SIZE).expect("read");
    world
}

/// Whether the mapping checker finds something.
fn is_stale(space: &Arc<Space>) -> bool {
    let space = Arc::clone(space);
    Task::start(move || space.check()).result().is_err()
}

#[test]
fn the_lock_in_faults() {
    let kinds = [FaultKind::Read, FaultKind::Write, FaultKind::PrivateWrite];
    for (fault_unlocked, kind) in [false, true]
        .iter()
        .flat_map(|&left_out| kinds.map(|kind| (left_out, kind)))
    {
        let (_cache, mapping, space) = stamped(Mutants {
            fault_unlocked,
            ..Mutants::default()
        });
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = mapping.fence(&mut entry, 0..8 * PAGE);
        let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
        // K1.
        let fault = start_fault(&space, 2, kind);
        let most = if fault_unlocked { NEVER } else { SHORTLY };
        assert_eq!(fault.wait(most), fault_unlocked);
        Device::punch(&evicted);
        drop(fence);
        fault.finish().expect("mapped");
        let seen = load(&space, 2 * PAGE, PAGE_SIZE).expect("loaded");
        assert_eq!(seen != vec![0; PAGE_SIZE], fault_unlocked, "{kind:?}");
        sync(&mapping).expect("the test's device takes anything");
        let lost = kind == FaultKind::Write && fault_unlocked;
        assert_eq!(
            mapping.backing().violations() > 0,
            lost,
            "dirty, without space"
        );
    }
}

#[test]
fn mapping_under_the_page_lock() {
    for map_unlocked in [false, true] {
        let (_cache, mapping, space) = stamped(Mutants {
            map_unlocked,
            ..Mutants::default()
        });
        space.stop();
        let fault = start_fault(&space, 3, FaultKind::Read);
        space.wait_stopped(1);
        let puncher = {
            let mapping = Arc::clone(&mapping);
            Task::start(move || punch(&mapping, 0..8 * PAGE))
        };
        let most = if map_unlocked { NEVER } else { SHORTLY };
        assert_eq!(puncher.wait(most), map_unlocked);
        space.go_on();
        fault.finish().expect("mapped");
        puncher.finish();
        assert_eq!(is_stale(&space), map_unlocked);
    }
}

#[test]
fn the_size_under_the_page_lock() {
    for size_unchecked in [false, true] {
        let (_cache, mapping, space) = stamped(Mutants {
            size_unchecked,
            ..Mutants::default()
        });
        let folio = mapping.pages().get(3).expect("cached");
        let guard = PageLockGuard::try_lock(&folio).expect("free");
        let fault = start_fault(&space, 3, FaultKind::Read);
        assert!(!fault.is_over_shortly());
        mapping.backing().set_size(PAGE);
        drop(guard);
        assert_eq!(fault.finish().is_ok(), size_unchecked);
        assert_eq!(space.entry(3).is_some(), size_unchecked, "past the end");
    }
}

#[test]
fn the_second_pass_of_unmapping() {
    for unmap_once in [false, true] {
        let (_cache, mapping, _) = stamped(Mutants {
            unmap_once,
            ..Mutants::default()
        });
        let space = Arc::new(Space::private(&mapping, 0..8));
        space.stop();
        let fault = start_fault(&space, 3, FaultKind::PrivateWrite);
        space.wait_stopped(1);
        let truncater = {
            let mapping = Arc::clone(&mapping);
            Task::start(move || truncate(&mapping, 0))
        };
        space.wait_unmaps(1);
        space.go_on();
        fault.finish().expect("mapped");
        truncater.finish();
        let survives = space.entry(3) == Some(Entry::Private);
        assert_eq!(survives, unmap_once);
    }
}

#[test]
fn unmapping_before_dropping() {
    for drop_mapped in [false, true] {
        let (_cache, mapping, space) = stamped(Mutants {
            drop_mapped,
            ..Mutants::default()
        });
        space.fault(3, FaultKind::Write).expect("mapped");
        punch(&mapping, 0..8 * PAGE);
        assert_eq!(is_stale(&space), drop_mapped);
    }
}

#[test]
fn unmapping_before_reclaiming() {
    for reclaim_mapped in [false, true] {
        let (cache, _mapping, space) = stamped(Mutants {
            reclaim_mapped,
            ..Mutants::default()
        });
        space.fault(3, FaultKind::Read).expect("mapped");
        cache.shared().clock.sweep(100, 100, Pressure::Any);
        assert_eq!(is_stale(&space), reclaim_mapped);
    }
}

#[test]
fn write_protection_before_writing_back() {
    for write_unprotected in [false, true] {
        let (cache, mapping, space) = stamped(Mutants {
            write_unprotected,
            ..Mutants::default()
        });
        space.store(0, &[2; 10]).expect("stored");
        sync(&mapping).expect("synced");
        assert_eq!(is_stale(&space), write_unprotected);
        space.store(0, &[3; 10]).expect("stored");
        sync(&mapping).expect("synced");
        cache.shared().clock.sweep(100, 100, Pressure::Any);
        let is_lost = read(&mapping, 0, 10) != Ok(vec![3; 10]);
        assert_eq!(is_lost, write_unprotected);
    }
}

#[test]
fn write_protection_of_edges() {
    for edges_unprotected in [false, true] {
        let mutants = Mutants {
            edges_unprotected,
            ..Mutants::default()
        };
        let (cache, mapping, space) = setup(Device::hole(3072, 1024), mutants);
        space.store(0, &[1; 3072]).expect("stored");
        truncate(&mapping, 1024);
        truncate(&mapping, 4096);
        space.store(2048, &[5; 10]).expect("stored");
        sync(&mapping).expect("synced");
        cache.shared().clock.sweep(100, 100, Pressure::Any);
        let is_lost = read(&mapping, 2048, 10) != Ok(vec![5; 10]);
        assert_eq!(is_lost, edges_unprotected);
    }
}

#[test]
fn zeros_and_write_protection_of_the_tail() {
    for tail_unprotected in [false, true] {
        let mutants = Mutants {
            tail_unprotected,
            ..Mutants::default()
        };
        let (_cache, mapping, space) = setup(Device::hole(1000, PAGE_SIZE), mutants);
        space.store(0, &[1; PAGE_SIZE]).expect("stored");
        write(&mapping, PAGE, &[7; 10]).expect("written");
        let page = read(&mapping, 0, PAGE_SIZE).expect("read");
        assert_eq!(page[1000..].contains(&1), tail_unprotected);
        assert_eq!(space.entry(0) == Some(Entry::Writable), tail_unprotected);
    }
}

#[test]
fn punching_only_what_is_not_dirty() {
    for punch_takes_dirty in [false, true] {
        let mutants = Mutants {
            punch_takes_dirty,
            ..Mutants::default()
        };
        let (_cache, mapping, space) = setup(Device::hole(8 * PAGE, PAGE_SIZE), mutants);
        write(&mapping, 0, &[1; 4 * PAGE_SIZE]).expect("written");
        mapping.backing().fail_writes(1);
        assert_eq!(sync(&mapping), Err(Failed));
        space.store(2 * PAGE, &[9; 10]).expect("stored");
        {
            let mut entry = Held::at_entry();
            let (mut fence, mut held) = mapping.fence(&mut entry, 0..8 * PAGE);
            fence.punch_delalloc(&mut held);
        }
        assert_eq!(mapping.backing().reserved() == 0, punch_takes_dirty);
        sync(&mapping).expect("the test's device takes anything");
        assert_eq!(mapping.backing().violations() > 0, punch_takes_dirty);
    }
}
