//! The judge finds each kind of damage, and nothing else.

use super::*;

const FROM: u64 = 4 * SECTOR;

fn store(by: By, begin: u64, end: u64) -> Store {
    Store {
        sector: 4,
        by,
        begin,
        end,
        done: true,
    }
}

fn seen(value: u64, begin: u64, end: u64) -> Seen {
    Seen {
        from: FROM,
        to: FROM + SECTOR,
        value,
        begin,
        end,
    }
}

fn punch(begin: u64, end: u64) -> Clear {
    Clear {
        from: 0,
        to: 8 * SECTOR,
        begin,
        end,
        regrown: None,
    }
}

fn cut(from: u64, begin: u64, end: u64, regrown: (u64, u64)) -> Clear {
    Clear {
        from,
        to: u64::MAX,
        begin,
        end,
        regrown: Some(regrown),
    }
}

fn history(stores: &[Store], seen: &[Seen]) -> History {
    History {
        stores: stores.to_vec(),
        seen: seen.to_vec(),
        ..History::default()
    }
}

fn judge(history: History) -> (Verdict, u64) {
    let mut complaints = 0;
    let verdict = history.judge(&mut |_| complaints += 1);
    (verdict, complaints)
}

#[track_caller]
fn assert_sound(history: History) -> Verdict {
    let (verdict, complaints) = judge(history);
    assert_eq!(complaints, 0, "{verdict:?}");
    verdict
}

#[test]
fn what_was_stored_last_is_read() {
    let stores = [store(By::Write, 10, 12), store(By::Write, 20, 22)];
    assert_sound(history(&stores, &[seen(10, 13, 14), seen(20, 23, 24)]));
    // Beside the second store either is right.
    assert_sound(history(&stores, &[seen(10, 21, 25)]));
    assert_sound(history(&stores, &[seen(20, 21, 25)]));
}

#[test]
fn an_older_store_is_stale_after_a_newer_one_ended_or_was_read() {
    let stores = [store(By::Write, 10, 12), store(By::Write, 20, 30)];
    let ended = judge(history(&stores, &[seen(10, 31, 32)]));
    assert_eq!((ended.0.stale, ended.1), (1, 1));
    let read = judge(history(&stores, &[seen(20, 21, 22), seen(10, 23, 24)]));
    assert_eq!((read.0.stale, read.1), (1, 1));
}

#[test]
fn zeros_need_a_cause() {
    let stores = [store(By::Write, 10, 12)];
    assert_sound(history(&stores, &[seen(0, 11, 14)]));
    let lost = judge(history(&stores, &[seen(0, 13, 14), seen(0, 15, 16)]));
    assert_eq!((lost.0.lost, lost.1), (1, 1), "counted once");

    let mut punched = history(&stores, &[seen(0, 23, 24)]);
    punched.clears[0] = vec![punch(20, 22)];
    assert_sound(punched);
    let mut too_early = history(&stores, &[seen(0, 23, 24)]);
    too_early.clears[0] = vec![punch(5, 9)];
    assert_eq!(judge(too_early).0.lost, 1);
    let mut too_late = history(&stores, &[seen(0, 23, 24)]);
    too_late.clears[0] = vec![punch(25, 29)];
    assert_eq!(judge(too_late).0.lost, 1);
    let mut elsewhere = history(&stores, &[seen(0, 23, 24)]);
    elsewhere.clears[1] = vec![cut(FROM + SECTOR, 20, 21, (22, 22))];
    assert_eq!(judge(elsewhere).0.lost, 1);
}

#[test]
fn a_store_that_was_read_after_the_punch_is_not_taken_by_it() {
    let mut read_after = history(
        &[store(By::Map, 10, 12)],
        &[seen(10, 23, 24), seen(0, 25, 26)],
    );
    read_after.clears[0] = vec![punch(9, 22)];
    assert_eq!(judge(read_after).0.lost, 1);
}

#[test]
fn what_outlives_a_punch_or_comes_back_is_kept() {
    let stores = [store(By::Write, 10, 12)];
    let mut outlived = history(&stores, &[seen(10, 23, 24)]);
    outlived.clears[0] = vec![punch(20, 22)];
    assert_eq!(judge(outlived).0.kept, 1);
    let mut back = history(&stores, &[seen(0, 14, 15), seen(10, 23, 24)]);
    back.clears[0] = vec![punch(11, 22)];
    assert_eq!(judge(back).0.kept, 1);
    let mut cut_off = history(&stores, &[seen(10, 23, 24)]);
    cut_off.clears[1] = vec![cut(FROM, 20, 21, (22, 22))];
    assert_eq!(judge(cut_off).0.kept, 1);
    let mut beside = history(&stores, &[seen(10, 23, 24)]);
    beside.clears[0] = vec![punch(11, 22)];
    assert_sound(beside);
}

#[test]
fn a_store_beside_a_punch_may_be_dropped_and_is_counted() {
    let mut dropped = history(&[store(By::Map, 10, 12)], &[seen(0, 23, 24)]);
    dropped.clears[0] = vec![punch(9, 22)];
    let verdict = assert_sound(dropped);
    assert_eq!((verdict.beside, verdict.dropped), ([0, 1], [0, 1]));
    assert_eq!(verdict.dropped_after_zeros, [0, 0]);
}

#[test]
fn a_store_over_the_zeros_of_a_punch_can_not_be_before_it() {
    let stores = [store(By::Map, 10, 12), store(By::Map, 20, 22)];
    let looks = [seen(10, 13, 14), seen(0, 17, 18), seen(0, 31, 32)];
    let mut dropped = history(&stores, &looks);
    dropped.clears[0] = vec![punch(15, 30)];
    assert_eq!(assert_sound(dropped).dropped_after_zeros, [0, 1]);
    // With a second punch the first explains the one, the second the other.
    let mut twice = history(&stores, &looks);
    twice.clears = [vec![punch(15, 16)], vec![cut(0, 19, 25, (26, 27))]];
    assert_eq!(assert_sound(twice).dropped_after_zeros, [0, 0]);
}

#[test]
fn past_the_end_a_map_stores_for_nobody() {
    let stores = [store(By::Map, 10, 12)];
    let mut gone = history(&stores, &[seen(0, 23, 24)]);
    gone.clears[1] = vec![cut(FROM, 5, 6, (15, 16))];
    assert_eq!(assert_sound(gone).dropped, [0, 0]);
    let written = [store(By::Write, 10, 12)];
    let mut lengthened = history(&written, &[seen(0, 23, 24)]);
    lengthened.clears[1] = vec![cut(FROM, 5, 6, (15, 16))];
    assert_eq!(judge(lengthened).0.lost, 1, "write(2) lengthens the file");

    let mut appeared = history(&stores, &[seen(10, 23, 24)]);
    appeared.only_maps = true;
    appeared.clears[1] = vec![cut(FROM, 5, 6, (15, 16))];
    appeared.diverged = vec![(FROM, 10)];
    let verdict = assert_sound(appeared);
    assert_eq!((verdict.past_end, verdict.past_end_cached), (1, 1));
    let mut within = history(&stores, &[seen(10, 23, 24)]);
    within.diverged = vec![(FROM, 10), (FROM, 0)];
    assert_eq!(judge(within).0.diverged, 2);
}

#[test]
fn a_value_that_nobody_stored_is_unknown() {
    assert_eq!(judge(history(&[], &[seen(7, 8, 9)])).0.unknown, 1);
}

#[test]
fn notes_join_equal_stamps_within_a_sector() {
    let mut bytes = vec![0; 2 * SECTOR as usize];
    crate::stamp::fill(1, 0, 5, &mut bytes[..768]);
    crate::stamp::fill(2, 784, 5, &mut bytes[784..800]);
    let mut history = History::default();
    history.note(1, 0, &bytes, 1, 2);
    let runs: Vec<_> = history
        .seen
        .iter()
        .map(|seen| (seen.from, seen.to, seen.value))
        .collect();
    assert_eq!(
        runs,
        [(0, 512, 5), (512, 768, 5), (768, 784, 0), (800, 1024, 0)]
    );
    assert_eq!(history.misplaced, 1);
}
