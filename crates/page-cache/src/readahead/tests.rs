//! The decisions, one by one.

use super::{Hint, Readahead, Windows};
use crate::Config;

fn windows() -> Windows {
    Windows::new(&Config::new(1 << 30), 1 << 18)
}

#[test]
fn windows_are_a_quarter_of_the_cache_at_most() {
    let small = Windows::new(&Config::new(256 << 10), 59);
    assert_eq!((small.initial, small.max), (14, 14));
    assert_eq!((windows().initial, windows().max), (32, 512));
}

#[test]
fn the_front_of_a_file_is_sequential_and_the_middle_is_not() {
    let readahead = Readahead::new();
    assert!(readahead.observe(&(0..1)));
    assert!(readahead.observe(&(1..2)));
    assert!(!readahead.observe(&(1000..1001)));
    assert!(readahead.observe(&(1001..1002)));
    assert!(!readahead.observe(&(900..901)));
    assert!(readahead.observe(&(900..901)), "again is close");
}

#[test]
fn a_stream_is_close_by_its_own_measure() {
    let readahead = Readahead::new();
    readahead.observe(&(0..32));
    assert!(readahead.observe(&(96..128)), "three requests early");
    assert!(readahead.observe(&(32..64)), "late");
    assert!(!readahead.observe(&(700..732)));
}

#[test]
fn a_miss_opens_a_window_with_a_marker_behind_the_request() {
    let readahead = Readahead::new();
    let plan = readahead.on_miss(&windows(), &(0..4), 0, true);
    assert_eq!((plan.end, plan.marker), (32, Some(4)));
    // Not carried out: as if never made.
    assert_eq!(readahead.on_miss(&windows(), &(0..4), 0, true), plan);
    readahead.commit(&plan);
    let inside = readahead.on_miss(&windows(), &(8..12), 8, true);
    assert_eq!((inside.end, inside.marker), (12, None));
    let next = readahead.on_miss(&windows(), &(32..36), 32, true);
    assert_eq!((next.end, next.marker), (96, Some(36)));
}

#[test]
fn a_large_request_has_a_window_twice_its_length() {
    let readahead = Readahead::new();
    let plan = readahead.on_miss(&windows(), &(0..256), 0, true);
    assert_eq!((plan.end, plan.marker), (512, Some(256)));
    let plan = readahead.on_miss(&windows(), &(0..1000), 0, true);
    assert_eq!((plan.end, plan.marker), (1000, None));
}

#[test]
fn markers_double_up_to_the_limit() {
    let readahead = Readahead::new();
    readahead.commit(&readahead.on_miss(&windows(), &(0..1), 0, true));
    let mut at = 1;
    let mut lens = Vec::new();
    for _ in 0..6 {
        let ahead = readahead
            .on_marker(&windows(), &(at..at + 1), at)
            .expect("a window");
        lens.push(ahead.range.end - ahead.range.start);
        at = ahead.range.start;
    }
    assert_eq!(lens, [64, 128, 256, 512, 512, 512]);
}

#[test]
fn a_strangers_marker_starts_behind_the_request() {
    let readahead = Readahead::new();
    let ahead = readahead
        .on_marker(&windows(), &(700..704), 702)
        .expect("a window");
    assert_eq!(ahead.range, 704..736);
}

#[test]
fn a_marker_behind_the_window_has_been_seen_to() {
    let readahead = Readahead::new();
    readahead.commit(&readahead.on_miss(&windows(), &(32..64), 32, true));
    readahead.commit(&readahead.on_miss(&windows(), &(96..128), 96, true));
    assert!(readahead.on_marker(&windows(), &(64..96), 64).is_none());
    let next = readahead
        .on_marker(&windows(), &(128..160), 128)
        .expect("a window");
    assert_eq!(next.range, 224..480);
}

#[test]
fn a_window_that_was_not_queued_is_forgotten() {
    let readahead = Readahead::new();
    readahead.commit(&readahead.on_miss(&windows(), &(0..1), 0, true));
    let ahead = readahead
        .on_marker(&windows(), &(1..2), 1)
        .expect("a window");
    readahead.forget(&ahead);
    assert_eq!(readahead.on_marker(&windows(), &(1..2), 1), Some(ahead));
}

#[test]
fn hints_overrule() {
    let readahead = Readahead::new();
    readahead.set_hint(Hint::Random);
    assert!(!readahead.observe(&(0..1)));
    assert!(readahead.on_marker(&windows(), &(0..1), 0).is_none());
    readahead.set_hint(Hint::Sequential);
    assert!(readahead.observe(&(5000..5001)));
}

#[test]
fn the_end_of_all_numbers_is_safe() {
    let readahead = Readahead::new();
    let request = u64::MAX - 1..u64::MAX;
    readahead.observe(&request);
    let plan = readahead.on_miss(&windows(), &request, request.start, true);
    assert_eq!(plan.end, u64::MAX);
    readahead.commit(&plan);
    assert!(
        readahead
            .on_marker(&windows(), &request, request.start)
            .is_some()
    );
}
