//! Tests of bitmaps: against a slow model, for any bytes. Real bitmaps are in `image_tests`.

use proptest::prelude::*;

use super::*;

/// Bits one by one.
fn model(bits: &[u8]) -> Vec<bool> {
    bits.iter()
        .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1))
        .collect()
}

fn model_runs(bits: &[bool], range: Range<u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for bit in range.start..range.end.min(bits.len() as u32) {
        if bits[bit as usize] {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == bit => run.end += 1,
            _ => runs.push(bit..bit + 1),
        }
    }
    runs
}

/// Bytes with long runs, as bitmaps have them.
fn bitmap_bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => Just(0), 4 => Just(0xFF), 2 => any::<u8>()];
    proptest::collection::vec(byte, 0..70)
}

proptest! {
    #[test]
    fn runs_and_counts_are_those_of_the_model(
        bits in bitmap_bytes(), start in 0..600_u32, end in 0..600_u32,
    ) {
        let expected = model_runs(&model(&bits), start..end);
        prop_assert_eq!(zero_runs(&bits, start..end).collect::<Vec<_>>(), expected.clone());
        let zeros: u32 = expected.iter().map(|run| run.end - run.start).sum();
        prop_assert_eq!(count_zeros(&bits, start..end), zeros);
        prop_assert_eq!(next_zero(&bits, start..end), expected.first().map(|run| run.start));
        let one = (start..end).find(|bit| model(&bits).get(*bit as usize) == Some(&true));
        prop_assert_eq!(next_one(&bits, start..end), one);
    }

    #[test]
    fn ranges_change_what_the_model_changes(
        bits in bitmap_bytes(), start in 0..600_u32, end in 0..600_u32, set in any::<bool>(),
    ) {
        let mut changed = bits.clone();
        let count = if set {
            set_range(&mut changed, start..end)
        } else {
            clear_range(&mut changed, start..end)
        };
        let before = model(&bits);
        let mut expected = before.clone();
        for bit in start..end.min(before.len() as u32) {
            expected[bit as usize] = set;
        }
        prop_assert_eq!(model(&changed), expected.clone());
        let differing = before.iter().zip(&expected).filter(|(a, b)| a != b).count();
        prop_assert_eq!(count as usize, differing);
        for (bit, value) in expected.iter().enumerate() {
            prop_assert_eq!(test(&changed, bit as u32), *value);
        }
        prop_assert!(test(&changed, expected.len() as u32), "past the end nothing is free");
    }
}
