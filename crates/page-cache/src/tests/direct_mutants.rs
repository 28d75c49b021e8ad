//! Each protection of direct writes left out: the oracles notice. With it: they don't.

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;

use super::device::{Device, Stop, TestMapping};
use super::{NEVER, SHORTLY, SMALL, Task, config, read, sync, write, write_direct};
use crate::backing::PAGE_SIZE;
use crate::mutants::Mutants;
use crate::{Evict, PageCache};

const PAGE: u64 = PAGE_SIZE as u64;

fn setup(device: Device, mutants: Mutants) -> (Arc<PageCache>, Arc<TestMapping>) {
    let cache = PageCache::with_mutants(config(SMALL), mutants).expect("a cache");
    let mapping = device.mapped(&cache);
    mapping.backing().let_holes_be_read();
    (cache, mapping)
}

/// K16, T20: a reader fills between what is dropped before the I/O and the end of the write.
#[test]
fn pages_of_a_direct_write_stay_locked() {
    for (direct_unlocked, stop) in [false, true].iter().flat_map(|&left_out| {
        [
            (left_out, Stop::BeforeWrite),
            (left_out, Stop::BeforeMapping),
        ]
    }) {
        let (_cache, mapping) = setup(
            Device::hole(8 * PAGE, PAGE_SIZE),
            Mutants {
                direct_unlocked,
                ..Mutants::default()
            },
        );
        mapping.backing().stop_at(stop);
        let direct = {
            let mapping = Arc::clone(&mapping);
            Task::start(move || write_direct(&mapping, 0, &[7; PAGE_SIZE]))
        };
        mapping.backing().wait_stopped(1);
        let reader = {
            // What reads a page in, though it lies over a hole: a write of some of its bytes would.
            let mapping = Arc::clone(&mapping);
            Task::start(move || {
                let space = crate::simulated::AddressSpace::shared(&mapping, 0..8);
                space.load(0, &mut [0; 8])
            })
        };
        let most = if direct_unlocked { NEVER } else { SHORTLY };
        assert_eq!(reader.wait(most), direct_unlocked);
        mapping.backing().go_on();
        assert_eq!(direct.finish(), Ok(PAGE_SIZE));
        reader.finish().expect("loaded");
        let stale = read(&mapping, 0, 8) != Ok(vec![7; 8]);
        assert_eq!(stale, direct_unlocked, "{stop:?}");
    }
}

#[test]
fn dirty_pages_are_written_before_a_direct_write_drops_them() {
    for direct_drops_dirty in [false, true] {
        let (cache, mapping) = setup(
            Device::stamped(8, 1024),
            Mutants {
                direct_drops_dirty,
                ..Mutants::default()
            },
        );
        write(&mapping, 3000, &[9; 100]).expect("written");
        assert_eq!(write_direct(&mapping, 0, &[7; 1024]), Ok(1024));
        sync(&mapping).expect("synced");
        cache.shrink(u64::MAX);
        let lost = read(&mapping, 3000, 100) != Ok(vec![9; 100]);
        assert_eq!(lost, direct_drops_dirty);
    }
}

/// B4: a fence has dropped the pages and not yet taken the blocks away.
#[test]
fn the_invalidate_lock_in_direct_writes() {
    for direct_unfenced in [false, true] {
        let (_cache, mapping) = setup(
            Device::stamped(8, PAGE_SIZE),
            Mutants {
                direct_unfenced,
                ..Mutants::default()
            },
        );
        let mut entry = Held::at_entry();
        let (mut fence, mut held) = mapping.fence(&mut entry, 0..8 * PAGE);
        let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
        mapping.backing().stop_at(Stop::BeforeWrite);
        let direct = {
            let mapping = Arc::clone(&mapping);
            Task::start(move || write_direct(&mapping, 0, &[7; PAGE_SIZE]))
        };
        if direct_unfenced {
            mapping.backing().wait_stopped(1);
        } else {
            assert!(!direct.is_over_shortly());
            assert_eq!(mapping.backing().stopped(), 0);
        }
        Device::punch(&evicted);
        drop(fence);
        mapping.backing().go_on();
        direct.finish().expect("there is space");
        let stray = mapping.backing().violations() > 0;
        assert_eq!(stray, direct_unfenced, "I/O to blocks that were taken away");
    }
}

#[test]
fn cached_pages_go_in_a_direct_write() {
    for direct_keeps_cached in [false, true] {
        let (_cache, mapping) = setup(
            Device::stamped(8, PAGE_SIZE),
            Mutants {
                direct_keeps_cached,
                ..Mutants::default()
            },
        );
        read(&mapping, 0, 2 * PAGE_SIZE).expect("read");
        assert_eq!(write_direct(&mapping, 0, &[7; PAGE_SIZE]), Ok(PAGE_SIZE));
        let stale = read(&mapping, 0, 8) != Ok(vec![7; 8]);
        assert_eq!(stale, direct_keeps_cached);
    }
}
