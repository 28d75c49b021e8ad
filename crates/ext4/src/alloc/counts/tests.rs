//! The count against a plain number, and under threads.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Take(u64, Claim),
    /// Gives back what the n-th taker (round the clock) got.
    Give(usize),
    /// Gives this many that were not there before.
    Add(u64),
    Lose(u64),
}

fn claim() -> impl Strategy<Value = Claim> {
    prop_oneof![Just(Claim::Everybody), Just(Claim::Root), Just(Claim::Map)]
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![0..4u64, 0..3000u64, 0..100_000u64];
    prop_oneof![
        4 => (size.clone(), claim()).prop_map(|(size, claim)| Step::Take(size, claim)),
        3 => any::<usize>().prop_map(Step::Give),
        1 => size.clone().prop_map(Step::Add),
        1 => size.prop_map(Step::Lose),
    ]
}

proptest! {
    #[test]
    fn it_counts(
        free in 0..200_000u64,
        for_root in 0..20_000u64,
        for_maps in 0..5_000u64,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let counts = Counts::new(free, for_root, for_maps, None);
        let mut left = signed(free);
        let mut takers = Vec::new();
        for step in steps {
            match step {
                Step::Take(blocks, claim) => {
                    let floor = match claim {
                        Claim::Everybody => for_root + for_maps,
                        Claim::Root => for_maps,
                        Claim::Map => 0,
                    };
                    let due = blocks == 0 || left - signed(blocks) >= signed(floor);
                    prop_assert_eq!(counts.take(blocks, claim), due);
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
    const FOR_ROOT: u64 = 777;
    const FOR_MAPS: u64 = 55;
    const RESERVE: u64 = FOR_ROOT + FOR_MAPS;
    let counts = Counts::new(FREE, FOR_ROOT, FOR_MAPS, None);
    let taken: u64 = thread::scope(|scope| {
        let takers: Vec<_> = (0..THREADS)
            .map(|number| {
                let counts = &counts;
                scope.spawn(move || {
                    let size = number % 3 + 1;
                    let mut taken = 0;
                    while counts.take(size, Claim::Everybody) {
                        taken += size;
                        if taken % 7 == 0 {
                            counts.give(size);
                            taken -= size;
                            // Not for ever.
                            if counts.take(1, Claim::Everybody) {
                                taken += 1;
                            }
                        }
                    }
                    // What is too little for this thread may do for one.
                    while counts.take(1, Claim::Everybody) {
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
    assert!(!counts.take(1, Claim::Everybody));
    assert!(counts.take(FOR_ROOT, Claim::Root));
    assert!(!counts.take(1, Claim::Root));
    assert!(counts.take(FOR_MAPS, Claim::Map));
    assert!(!counts.take(1, Claim::Map));
}

/// One thread moves its blocks from hand to hand; another always finds enough beside them.
#[test]
fn what_moves_is_never_missed() {
    let counts = Counts::new(20, 0, 0, None);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    assert!(
                        counts.take(5, Claim::Everybody),
                        "20 blocks are enough for four"
                    );
                    counts.give(5);
                }
            });
        }
        for _ in 0..5_000 {
            assert!(counts.take(5, Claim::Root), "20 blocks are enough for four");
            counts.give(5);
        }
    });
    assert_eq!(counts.left(), 20);
}
