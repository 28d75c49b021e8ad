//! The count against a plain number, and under threads.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Take(u64, bool),
    /// Gives back what the n-th taker (round the clock) got.
    Give(usize),
    /// Gives this many that were not there before.
    Add(u64),
    Lose(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![0..4u64, 0..3000u64, 0..100_000u64];
    prop_oneof![
        4 => (size.clone(), any::<bool>()).prop_map(|(size, all)| Step::Take(size, all)),
        3 => any::<usize>().prop_map(Step::Give),
        1 => size.clone().prop_map(Step::Add),
        1 => size.prop_map(Step::Lose),
    ]
}

proptest! {
    #[test]
    fn it_counts(
        free in 0..200_000u64,
        reserve in 0..20_000u64,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let counts = Counts::new(free, reserve);
        let mut left = signed(free);
        let mut takers = Vec::new();
        for step in steps {
            match step {
                Step::Take(blocks, privileged) => {
                    let floor = if privileged { 0 } else { signed(reserve) };
                    let due = blocks == 0 || left - signed(blocks) >= floor;
                    prop_assert_eq!(counts.take(blocks, privileged), due);
                    if due {
                        left -= signed(blocks);
                        takers.push(blocks);
                    }
                }
                Step::Give(number) if !takers.is_empty() => {
                    let blocks = takers.swap_remove(number % takers.len());
                    counts.give(blocks);
                    left += signed(blocks);
                }
                Step::Give(_) => {}
                Step::Add(blocks) => {
                    counts.give(blocks);
                    left += signed(blocks);
                }
                Step::Lose(blocks) => {
                    counts.lose(blocks);
                    left -= signed(blocks);
                }
            }
            // Looking gathers the shards: not after each step.
            if takers.len() % 5 == 0 {
                prop_assert_eq!(counts.left(), u64::try_from(left).unwrap_or(0));
            }
        }
        prop_assert_eq!(counts.left(), u64::try_from(left).unwrap_or(0));
    }
}

#[test]
fn threads_take_all_there_is_and_no_more() {
    const THREADS: u64 = 8;
    const FREE: u64 = 200_000;
    const RESERVE: u64 = 777;
    let counts = Counts::new(FREE, RESERVE);
    let taken: u64 = thread::scope(|scope| {
        let takers: Vec<_> = (0..THREADS)
            .map(|number| {
                let counts = &counts;
                scope.spawn(move || {
                    let size = number % 3 + 1;
                    let mut taken = 0;
                    while counts.take(size, false) {
                        taken += size;
                        if taken % 7 == 0 {
                            counts.give(size);
                            taken -= size;
                            // Not for ever.
                            if counts.take(1, false) {
                                taken += 1;
                            }
                        }
                    }
                    // What is too little for this thread may do for one.
                    while counts.take(1, false) {
                        taken += 1;
                    }
                    taken
                })
            })
            .collect();
        takers
            .into_iter()
            .map(|taker| taker.join().expect("it counts"))
            .sum()
    });
    assert_eq!(taken, FREE - RESERVE);
    assert_eq!(counts.left(), RESERVE);
    assert!(!counts.take(1, false));
    assert!(counts.take(RESERVE, true));
    assert!(!counts.take(1, true));
}

/// One thread moves its blocks from hand to hand; another always finds enough beside them.
#[test]
fn what_moves_is_never_missed() {
    let counts = Counts::new(20, 0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    assert!(counts.take(5, false), "20 blocks are enough for four");
                    counts.give(5);
                }
            });
        }
        for _ in 0..5_000 {
            assert!(counts.take(5, true), "20 blocks are enough for four");
            counts.give(5);
        }
    });
    assert_eq!(counts.left(), 20);
}
