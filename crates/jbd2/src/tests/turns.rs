//! The order in which blocks go home without a log.

use super::running::{Ground, byte_of, fill, options};
use super::*;
use crate::mutant::Mutant;
use crate::transaction::Turn;

/// Blocks in the order in which they must go home; not the order of their numbers. Those of the
/// same turn are in one row.
const ROWS: [&[u64]; 6] = [
    &[50, 51],
    &[45, 46],
    &[40, 44, 60],
    &[35, 38],
    &[30, 36],
    &[20],
];

fn image() -> Image {
    Image::new(0, REVOKE | V3 | WIDE, 0, 7)
}

/// The order that a crash shows to be broken: a block that is home, and one that is not and should
/// have gone before.
fn broken_order(mutant: Option<Mutant>) -> Option<(u64, u64)> {
    let ground = Ground::with(&image(), options(mutant), false);
    ground.device.start_trace();
    let tid = ground.handle(16, |handle| {
        handle.set(BlockNo(50), &[1; BLOCK]);
        handle.set(BlockNo(51), &[1; BLOCK]);
        for block in [30, 35, 36, 38, 40, 44, 45, 46, 60] {
            assert!(handle.may_come_back(BlockNo(block)));
            fill(handle, block, 1);
            assert!(handle.may_come_back(BlockNo(block)));
        }
        assert!(!handle.may_come_back(BlockNo(50)));
        // What was free before, stays so.
        handle.take_turn(BlockNo(50), Turn::Yields);
        fill(handle, 50, 1);
        handle.take_turn(BlockNo(45), Turn::Shrinks);
        handle.take_turn(BlockNo(46), Turn::Shrinks);
        fill(handle, 46, 1);
        handle.take_turn(BlockNo(35), Turn::Grows);
        // The last one counts, whichever was given first.
        handle.take_turn(BlockNo(38), Turn::Grows);
        handle.take_turn(BlockNo(38), Turn::Shrinks);
        handle.take_turn(BlockNo(30), Turn::Yields);
        handle.take_turn(BlockNo(36), Turn::Shrinks);
        handle.take_turn(BlockNo(36), Turn::Yields);
        // One that is freed and changed again is as if it had never had a turn.
        handle.take_turn(BlockNo(60), Turn::Yields);
        handle.forget(BlockNo(60));
        fill(handle, 60, 1);
        handle.defer(BlockNo(20));
    });
    ground.journal.commit(tid).unwrap();
    assert_eq!(ground.journal.overdrawn(), 0);
    let before = ground.device.live();
    let mut broken = None;
    ground.device.take_trace().unwrap().walk(|point| {
        let states = point.crash_states();
        for state in states.explore(1, 8) {
            let left = states.image(&state);
            let is_home = |block: &u64| {
                let (mut bytes, mut whole) = (vec![0; BLOCK], vec![0; BLOCK]);
                left.read(block * BLOCK as u64, &mut bytes).unwrap();
                before.read(block * BLOCK as u64, &mut whole).unwrap();
                bytes == whole
            };
            let has_begun = |block: &u64| byte_of(&left, *block) != 0x80 | *block as u8;
            for (row, blocks) in ROWS.iter().enumerate() {
                let early = ROWS[..row].iter().flat_map(|blocks| blocks.iter());
                let missing = early.copied().find(|block| !is_home(block));
                if let (Some(missing), Some(begun)) =
                    (missing, blocks.iter().copied().find(has_begun))
                {
                    broken = broken.or(Some((begun, missing)));
                }
            }
        }
    });
    broken
}

#[test]
fn blocks_wait_for_their_turn() {
    assert_eq!(broken_order(None), None);
}

#[test]
fn a_turn_that_is_not_waited_for_is_noticed() {
    let broken = broken_order(Some(Mutant::NoTurns));
    assert!(broken.is_some());
    let (begun, _) = broken_order(Some(Mutant::FreeFirst)).unwrap();
    assert_eq!(begun, 20);
}

/// With a log a transaction is whole, whatever the turns.
#[test]
fn a_log_has_no_turns() {
    let ground = Ground::new(&image());
    let tid = ground.handle(2, |handle| {
        assert!(!handle.may_come_back(BlockNo(30)));
        fill(handle, 30, 1);
        handle.take_turn(BlockNo(30), Turn::Yields);
        fill(handle, 31, 1);
    });
    ground.journal.commit(tid).unwrap();
    ground.journal.close().unwrap();
    let after = ground.device.crash(0);
    assert_eq!((byte_of(&after, 30), byte_of(&after, 31)), (1, 1));
}
