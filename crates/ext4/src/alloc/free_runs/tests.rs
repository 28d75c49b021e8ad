//! The index against a plain bitmap.

use std::ops::Range;

use pagefence_ext4_format::bitmap;
use proptest::prelude::*;

use super::FreeRuns;

/// The first `want` clear places in a row from `from` on, found the slow way.
fn first_fit(taken: &[bool], from: u32, want: u32) -> Option<Range<u32>> {
    let want = want as usize;
    (from as usize..=taken.len().checked_sub(want)?)
        .find(|start| taken[*start..start + want].iter().all(|taken| !taken))
        .map(|start| start as u32..(start + want) as u32)
}

fn longest(taken: &[bool]) -> usize {
    taken
        .split(|taken| *taken)
        .map(<[bool]>::len)
        .max()
        .unwrap_or(0)
}

fn check(runs: &FreeRuns, taken: &[bool]) {
    assert_eq!(
        runs.free() as usize,
        taken.iter().filter(|taken| !**taken).count()
    );
    assert_eq!(runs.longest() as usize, longest(taken));
    for want in [
        1,
        2,
        7,
        255,
        256,
        257,
        600,
        runs.longest(),
        runs.longest() + 1,
    ] {
        if want == 0 {
            continue;
        }
        for from in [
            0,
            1,
            255,
            256,
            300,
            taken.len() as u32 / 2,
            taken.len() as u32 - 1,
        ] {
            let found = runs.first_fit(from, want);
            assert_eq!(found, first_fit(taken, from, want), "{want} from {from}");
        }
    }
}

/// Runs of a group of `blocks`, each taken or given if all of it is the other way.
fn changes(blocks: u32) -> impl Strategy<Value = Vec<(u32, u32)>> {
    proptest::collection::vec((0..blocks, prop_oneof![1..20u32, 1..700u32]), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn searches_find_what_a_bitmap_has((blocks, changes) in (1..2500u32)
        .prop_flat_map(|blocks| (Just(blocks), changes(blocks)))) {
        let mut taken = vec![false; blocks as usize];
        let mut runs = FreeRuns::new(&[], blocks);
        check(&runs, &taken);
        for (number, (start, len)) in changes.into_iter().enumerate() {
            let run = start..(start + len).min(blocks);
            let places = run.start as usize..run.end as usize;
            if taken[places.clone()].iter().all(|taken| !taken) {
                runs.take(run);
                taken[places].fill(true);
            } else if taken[places.clone()].iter().all(|taken| *taken) {
                runs.give(run);
                taken[places].fill(false);
            } else {
                let first = taken[places.clone()].iter().position(|taken| !taken).unwrap_or(0);
                let start = run.start + first as u32;
                let free = taken[start as usize..].iter().take_while(|taken| !**taken).count();
                prop_assert_eq!(runs.free_at(start, u32::MAX) as usize, free);
                prop_assert_eq!(runs.next_run(run.start), Some(start..start + free as u32));
            }
            if number % 10 == 9 {
                check(&runs, &taken);
            }
        }
        check(&runs, &taken);
    }

    #[test]
    fn bits_of_a_bitmap_are_its_contents(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
        let blocks = bytes.len() as u32 * 8 - 3;
        let taken: Vec<bool> = (0..blocks).map(|bit| bitmap::test(&bytes, bit)).collect();
        check(&FreeRuns::new(&bytes, blocks), &taken);
    }
}

#[test]
fn a_group_without_room_has_no_runs() {
    let mut runs = FreeRuns::new(&[], 32_768);
    assert_eq!(runs.first_fit(0, 32_768), Some(0..32_768));
    runs.take(0..32_768);
    assert_eq!((runs.free(), runs.longest()), (0, 0));
    assert_eq!(runs.first_fit(0, 1), None);
    assert_eq!(runs.free_at(5, 9), 0);
    assert_eq!(runs.next_run(0), None);
    runs.give(32_767..32_768);
    assert_eq!(runs.first_fit(32_767, 1), Some(32_767..32_768));
    assert_eq!(runs.free_at(32_767, 9), 1);
}
