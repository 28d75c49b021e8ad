//! Tests of the counts of lookups.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use pagefence_lock_order::primitives::thread;

use super::*;

impl Lookups {
    /// Bytes of all tables, and inodes known.
    fn size(&self) -> (usize, usize) {
        self.shards.iter().fold((0, 0), |(bytes, known), shard| {
            let table = shard.table.lock();
            let slot = size_of::<u64>() + size_of::<u32>();
            (bytes + table.ids.len() * slot, known + table.used)
        })
    }
}

fn forgets(lookups: &Lookups, id: u64, count: u64) -> bool {
    let mut forgotten = false;
    lookups.take(InodeId(id), count, || forgotten = true);
    forgotten
}

#[test]
fn the_last_count_taken_back_forgets() {
    let lookups = Lookups::new();
    for _ in 0..3 {
        lookups.add(InodeId(12));
    }
    lookups.add(InodeId(13));
    assert!(!forgets(&lookups, 12, 2));
    assert!(forgets(&lookups, 12, 1));
    assert!(!forgets(&lookups, 12, 1), "it is known no more");
    assert!(!forgets(&lookups, 14, 1), "it never was");
    lookups.add(InodeId(12));
    assert!(forgets(&lookups, 12, 1), "it came back");
    assert!(forgets(&lookups, 13, u64::MAX));
    assert_eq!(lookups.size().1, 0);
}

#[test]
fn a_table_does_what_a_map_does() {
    let mut table = Table::default();
    let mut map = HashMap::new();
    let mut random = 1u64;
    for round in 0..200_000u64 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // Numbers far apart and near each other; the table grows, and shrinks again.
        let wide = if round / 20_000 % 2 == 0 { 3000 } else { 40 };
        let id = 1 + (random >> 33) % wide * ((random >> 20) % 3 + 1);
        if random >> 63 == 0 {
            table.add(id);
            *map.entry(id).or_insert(0u32) += 1;
        } else {
            table.remove(id);
            map.remove(&id);
        }
        assert_eq!(table.get(id), map.get(&id).copied());
        assert_eq!(table.used, map.len());
    }
    for (&id, &count) in &map {
        assert_eq!(table.get(id), Some(count));
    }
}

#[test]
fn a_million_inodes_take_23_bytes_each_at_most_and_leave_nothing_behind() {
    let lookups = Lookups::new();
    let mut worst = 0.0f64;
    for id in 1..=1_000_000 {
        lookups.add(InodeId(id));
        // Small tables have a least size; from some inodes a shard on the bound holds.
        if id % 9973 == 0 && id > 50_000 {
            let (bytes, known) = lookups.size();
            assert_eq!(known as u64, id);
            worst = worst.max(bytes as f64 / known as f64);
        }
    }
    let (bytes, known) = lookups.size();
    assert_eq!(known, 1_000_000);
    assert!(bytes <= 23_000_000, "{bytes} bytes");
    assert!(worst <= 23.0, "{worst} bytes an inode");
    for id in 1..=1_000_000 {
        assert!(forgets(&lookups, id, 1));
    }
    let (bytes, known) = lookups.size();
    assert_eq!(known, 0);
    assert!(bytes <= 64 * 8 * 12, "{bytes} bytes");
}

#[test]
fn who_hands_an_inode_out_waits_until_it_has_been_forgotten() {
    let lookups = Lookups::new();
    let log = Mutex::new(Vec::new());
    lookups.add(InodeId(5));
    thread::scope(|scope| {
        lookups.take(InodeId(5), 1, || {
            scope.spawn(|| {
                lookups.add(InodeId(5));
                log.lock().push("known");
            });
            // Long enough for a thread that does not wait to be first.
            std::thread::sleep(Duration::from_millis(50));
            log.lock().push("forgotten");
        });
    });
    assert_eq!(*log.lock(), ["forgotten", "known"]);
    assert!(forgets(&lookups, 5, 1));
}

#[test]
fn a_panic_while_forgetting_keeps_nobody_waiting() {
    let lookups = Lookups::new();
    lookups.add(InodeId(5));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        lookups.take(InodeId(5), 1, || panic!("a test asked for it"));
    }));
    assert!(panicked.is_err());
    lookups.add(InodeId(5));
    assert!(forgets(&lookups, 5, 1));
}

#[test]
fn a_count_that_is_full_is_never_forgotten() {
    let lookups = Lookups::new();
    lookups.add(InodeId(5));
    let shard = lookups.shard(InodeId(5));
    *shard.table.lock().get_mut(5).expect("just added") = FOREVER - 1;
    lookups.add(InodeId(5));
    lookups.add(InodeId(5));
    assert!(!forgets(&lookups, 5, u64::MAX));
}

#[test]
fn threads_count_the_same_inodes() {
    let lookups = Lookups::new();
    let forgotten = Mutex::new(0u32);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..5000u64 {
                    let id = InodeId(1 + round % 7);
                    lookups.add(id);
                    lookups.take(id, 1, || *forgotten.lock() += 1);
                }
            });
        }
    });
    assert_eq!(lookups.size().1, 0);
    assert!(*forgotten.lock() >= 7);
}
