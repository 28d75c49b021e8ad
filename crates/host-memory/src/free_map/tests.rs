//! The free map against a set, and under threads.

use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, thread};
use proptest::prelude::*;
use std::collections::BTreeSet;

use super::{FreeMap, choose};

proptest! {
    #[test]
    fn it_is_a_set(
        frames in 1_usize..5000,
        steps in prop::collection::vec((any::<bool>(), 1_usize..300), 1..60),
    ) {
        let map = FreeMap::new(frames);
        let mut free: BTreeSet<u32> = (0..u32::try_from(frames).expect("few")).collect();
        let mut taken = Vec::new();
        for (take, count) in steps {
            if take {
                let mut new = Vec::new();
                map.take(count, &mut new);
                prop_assert_eq!(new.len(), count.min(free.len()));
                for frame in new {
                    prop_assert!(free.remove(&frame));
                    taken.push(frame);
                }
            } else {
                for _ in 0..count.min(taken.len()) {
                    let frame = taken.swap_remove(count % taken.len());
                    map.give(frame);
                    free.insert(frame);
                }
            }
            prop_assert_eq!(map.count(), free.len());
        }
    }

    #[test]
    fn chosen_bits_are_as_many_as_wanted_and_a_run_if_there_is_one(
        bits in any::<u64>(),
        want in 1_usize..=64,
    ) {
        let chosen = choose(bits, want);
        prop_assert_eq!(chosen & !bits, 0);
        let have = usize::try_from(bits.count_ones()).expect("few");
        prop_assert_eq!(usize::try_from(chosen.count_ones()).expect("few"), want.min(have));
        let is_run = |set: u64| set == 0 || (set >> set.trailing_zeros()).count_zeros() == (set >> set.trailing_zeros()).leading_zeros();
        let run = u64::MAX >> (64 - want);
        let exists = (0..=64 - want).any(|at| bits & (run << at) == run << at);
        prop_assert!(!exists || want >= have || is_run(chosen));
    }
}

#[test]
#[should_panic(expected = "a free frame was given back")]
fn giving_back_twice_panics() {
    let map = FreeMap::new(3);
    let mut taken = Vec::new();
    map.take(1, &mut taken);
    map.give(taken[0]);
    map.give(taken[0]);
}

#[test]
fn threads_never_share_a_frame() {
    let map = Arc::new(FreeMap::new(500));
    let owner: Arc<Vec<_>> = Arc::new((0..500).map(|_| AtomicBool::new(false)).collect());
    let threads: Vec<_> = (1..=4_usize)
        .map(|seed| {
            let (map, owner) = (Arc::clone(&map), Arc::clone(&owner));
            thread::spawn("allocator", move || {
                for round in 0..2000 {
                    let mut taken = Vec::new();
                    map.take(1 + (round * seed) % 170, &mut taken);
                    for &frame in &taken {
                        let flag = &owner[usize::try_from(frame).expect("few")];
                        assert!(!flag.swap(true, Ordering::SeqCst));
                    }
                    for frame in taken {
                        let flag = &owner[usize::try_from(frame).expect("few")];
                        flag.store(false, Ordering::SeqCst);
                        map.give(frame);
                    }
                }
            })
            .expect("a thread")
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    assert_eq!(map.count(), 500);
    let mut all = Vec::new();
    map.take(600, &mut all);
    assert_eq!(all.len(), 500);
}
