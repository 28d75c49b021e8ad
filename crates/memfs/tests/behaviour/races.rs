//! Races, by the suite that every file system here runs.

use pagefence_fs_model::races::{
    FileRace, fill_to_the_last_byte, race_over_a_file, race_over_names,
};

use crate::fresh;

#[test]
fn no_reader_sees_stale_or_foreign_bytes() {
    let fs = fresh(8 << 20);
    for seed in 0..6 {
        let race = FileRace {
            seed,
            changes: 300,
            has_unwritten: true,
        };
        race_over_a_file(&fs, &race).expect("under the oracle");
    }
}

#[test]
fn names_race_and_nothing_is_lost() {
    let fs = fresh(8 << 20);
    for seed in 0..4 {
        race_over_names(&fs, seed, 1500).expect("one tree");
    }
}

#[test]
fn eight_threads_fill_it_to_the_last_byte() {
    fill_to_the_last_byte(&fresh(24 << 20), 8, 3).expect("all that was taken is there");
}

/// Less space than a writer takes frames for at once, and an odd rest of a page.
#[test]
fn a_small_one_is_filled_to_the_last_byte() {
    for pages in [1_u64, 7, 64] {
        let fs = fresh(pages * 4096 + 100);
        fill_to_the_last_byte(&fs, 5, 4).expect("all that was taken is there");
    }
}
