//! Crashes during write-back and during a single commit, at every moment.

use pagefence_block_io::fault_device::CrashStates;
use proptest::prelude::*;

use super::recovery::any_step;
use super::*;

/// Runs `body` on a fault device over `image`, then `check` on what a crash at any moment may leave:
/// the moments before a flush have every state of those since the flush before. Returns how many
/// states were tried.
fn every_crash(
    image: &MemoryDevice,
    random: usize,
    body: impl FnOnce(&FaultDevice),
    mut check: impl FnMut(usize, &MemoryDevice),
) -> usize {
    let device = FaultDevice::new(image, 0);
    device.start_trace();
    body(&device);
    let trace = device.take_trace().unwrap();
    let mut tried = 0;
    trace.walk(|point| {
        if !point.is_before_flush() {
            return;
        }
        let states: CrashStates = point.crash_states();
        for state in states.explore(point.position() as u64, random) {
            check(point.position(), &states.image(&state));
            tried += 1;
        }
    });
    tried
}

/// Recovers and writes back for good; what is outside of the journal then.
fn finish(device: &MemoryDevice) -> Vec<Vec<u8>> {
    let location = location();
    let recovery = recover(device, &location).unwrap();
    write_back(device, &location, &recovery, Emptied::Clean).unwrap();
    home(device)
}

#[test]
fn a_crash_during_write_back_does_not_show() {
    let mut total = 0;
    for (compat, incompat) in KINDS {
        let mut image = Image::new(compat, incompat, 28, u32::MAX);
        let mut steps = vec![set(&[(3, 1), (4, 2), (5, 3)]), set(&[(4, 4), (9, 5)])];
        steps[0].blocks.push((50, escaped(6)));
        steps[1].revokes = vec![5];
        for step in &steps {
            image.transaction(step);
        }
        let expected = expected(&image, &steps);
        let recovery = image.recover().unwrap();
        for emptied in [Emptied::Clean, Emptied::KeepFastCommits] {
            total += every_crash(
                &image.device,
                64,
                |device| write_back(device, &image.location, &recovery, emptied).unwrap(),
                |position, crashed| {
                    assert_eq!(
                        finish(crashed),
                        expected,
                        "{compat:#x} {incompat:#x} {emptied:?} at {position}"
                    );
                },
            );
        }
    }
    println!("{total} states");
    assert!(total > 4_000);
}

/// Commits `step` once on the journal of `image`, crashing everywhere: all or nothing, and all
/// once it returned. Returns how many states were tried and how many of them had nothing.
fn check_commit_once(image: &Image, steps: &[Step], step: &Step, random: usize) -> (usize, usize) {
    let before = expected(image, steps);
    // A block that is set and revoked counts as revoked, as in any transaction.
    let after = expected(image, &[steps, std::slice::from_ref(step)].concat());
    let recovery = image.recover().unwrap();
    let blocks: Vec<(BlockNo, &[u8])> = step
        .blocks
        .iter()
        .map(|(block, bytes)| (BlockNo(*block), bytes.as_slice()))
        .collect();
    let revokes: Vec<BlockNo> = step.revokes.iter().copied().map(BlockNo).collect();
    // The moment of the last state, and whether every state of it had everything.
    let mut last = (0, true);
    let mut nothing = 0;
    let tried = every_crash(
        &image.device,
        random,
        |device| {
            let found = commit_once(device, &image.location, &recovery, &blocks, &revokes).unwrap();
            assert_eq!(found.transactions(), recovery.transactions() + 1);
            assert_eq!(found.damaged(), None);
        },
        |position, crashed| {
            let found = finish(crashed);
            assert!(found == after || found == before, "at step {position}");
            nothing += usize::from(found == before && before != after);
            let so_far = last.0 != position || last.1;
            last = (position, so_far && found == after);
        },
    );
    assert!(last.1, "durable once it returned");
    (tried, nothing)
}

#[test]
fn a_single_commit_is_all_or_nothing() {
    let mut total = (0, 0);
    for (compat, incompat) in KINDS {
        for start in [0, 27] {
            let mut image = Image::new(compat, incompat, start, u32::MAX - 1);
            let mut steps = Vec::new();
            if start != 0 {
                steps = vec![set(&[(3, 1), (4, 2)]), set(&[(5, 2), (6, 3)])];
            }
            for step in &steps {
                image.transaction(step);
            }
            let mut step = set(&[(4, 9), (7, 8), (20, 7)]);
            // One kind of journal has few enough sectors in flight to try every state.
            if incompat != REVOKE | V3 | WIDE {
                step.blocks.extend(set(&[(30, 1), (31, 2), (32, 3)]).blocks);
            }
            step.blocks.push((21, escaped(5)));
            step.revokes = vec![5, 80];
            let (tried, nothing) = check_commit_once(&image, &steps, &step, 64);
            assert!(nothing > 0);
            total = (total.0 + tried, total.1 + nothing);
        }
    }
    println!("{} states, {} of them without the commit", total.0, total.1);
    assert!(total.0 > 5_000);
}

#[test]
fn what_an_interrupted_commit_left_does_not_mix_with_ours() {
    // An interrupted commit of the same number, whose commit block lies just where ours will,
    // and behind it a whole transaction of the next number.
    for (compat, incompat) in KINDS {
        let mut image = Image::new(compat, incompat, 1, 5);
        let steps = [set(&[(3, 1)])];
        image.transaction(&steps[0]);
        let (head, sequence) = (image.position, image.sequence);
        // It has a descriptor, three blocks and its commit; the descriptor was lost.
        let stale = set(&[(60, 6), (61, 6), (62, 6)]);
        image.transaction(&stale);
        image.transaction(&set(&[(70, 7)]));
        image.device.write(image.offset(head), &[0; BLOCK]).unwrap();
        image.position = head;
        image.sequence = sequence;
        let step = set(&[(10, 1), (11, 2), (12, 3)]);
        let (_, nothing) = check_commit_once(&image, &steps, &step, 256);
        assert!(nothing > 0);
    }
}

#[test]
fn a_single_commit_refuses_what_it_must() {
    let image = Image::new(0, 0, 0, 5);
    let recovery = image.recover().unwrap();
    let before = image.device.to_vec();
    let commit = |blocks: &[(BlockNo, &[u8])], revokes: &[BlockNo]| {
        commit_once(&image.device, &image.location, &recovery, blocks, revokes)
    };
    let bytes = [1; BLOCK];
    for block in [100, 200, DEVICE_BLOCKS, u64::MAX] {
        assert!(matches!(
            commit(&[(BlockNo(block), &bytes)], &[]),
            Err(JournalError::Block { .. })
        ));
    }
    assert!(matches!(
        commit(&[(BlockNo(1), &bytes[1..])], &[]),
        Err(JournalError::Block { .. })
    ));
    assert!(matches!(
        commit(&[], &[BlockNo(1 << 40)]),
        Err(JournalError::Block { .. })
    ));
    let many: Vec<(BlockNo, &[u8])> = (0..30).map(|block| (BlockNo(block), &bytes[..])).collect();
    assert!(matches!(
        commit(&many, &[]),
        Err(JournalError::LogFull {
            needed: 32,
            free: 31
        })
    ));
    assert_eq!(image.device.to_vec(), before);
    // One less fits exactly, and the feature for revokes is switched on when it is needed.
    assert_eq!(commit(&many[..29], &[]).unwrap().used_blocks(), 31);
    let image = Image::new(0, V3, 0, 5);
    let recovery = image.recover().unwrap();
    let found = commit_once(
        &image.device,
        &image.location,
        &recovery,
        &[],
        &[BlockNo(3)],
    )
    .unwrap();
    assert!(found.superblock().format.features.revoke());
    assert_eq!(found.revoke_records(), 1);
}

#[test]
fn one_commit_may_follow_another_and_the_room_comes_back() {
    let image = Image::new(0, REVOKE | V3 | WIDE, 0, u32::MAX);
    let mut steps = Vec::new();
    let mut recovery = image.recover().unwrap();
    for round in 0..40_u8 {
        let step = set(&[(u64::from(round), round), (50, round)]);
        let blocks: Vec<(BlockNo, &[u8])> = step
            .blocks
            .iter()
            .map(|(block, bytes)| (BlockNo(*block), bytes.as_slice()))
            .collect();
        let outcome = commit_once(&image.device, &image.location, &recovery, &blocks, &[]);
        recovery = match outcome {
            Ok(recovery) => recovery,
            Err(JournalError::LogFull { .. }) => {
                let emptied = if round % 2 == 0 {
                    Emptied::Clean
                } else {
                    Emptied::KeepFastCommits
                };
                write_back(&image.device, &image.location, &recovery, emptied).unwrap();
                let empty = image.recover().unwrap();
                assert_eq!(empty.used_blocks(), 0);
                assert_eq!(empty.is_clean(), emptied == Emptied::Clean);
                commit_once(&image.device, &image.location, &empty, &blocks, &[]).unwrap()
            }
            Err(error) => panic!("{error}"),
        };
        steps.push(step);
    }
    write_back(&image.device, &image.location, &recovery, Emptied::Clean).unwrap();
    assert_eq!(home(&image.device), expected(&image, &steps));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// At random: write-back and a single commit survive crashes, and crashes during the recovery
    /// from those.
    #[test]
    fn random_journals_survive_crashes(
        kind in 0_usize..KINDS.len(),
        start in 0_u32..JOURNAL_BLOCKS,
        steps in prop::collection::vec(any_step(), 1..3),
        step in any_step(),
        seed in any::<u64>(),
    ) {
        let (compat, incompat) = KINDS[kind];
        let mut image = Image::new(compat, incompat, start, u32::MAX);
        let steps = if start == 0 { &[][..] } else { &steps[..] };
        for step in steps {
            image.transaction(step);
        }
        check_commit_once(&image, steps, &step, 4);
        let expected = expected(&image, steps);
        // Crash, recover, crash again in the middle of that, and so on.
        let mut current = image.device.fork();
        for round in 0..4_u64 {
            let device = FaultDevice::new(&current, seed ^ round);
            let call = (seed >> (round * 3)) % 4;
            device.fail(Fault {
                operation: Operation::Write,
                call,
                times: Times::Forever,
                errno: 5,
            });
            let recovery = recover(&device, &image.location).unwrap();
            let _ = write_back(&device, &image.location, &recovery, Emptied::Clean);
            current = device.crash(seed.wrapping_mul(round + 1));
        }
        prop_assert_eq!(finish(&current), expected);
    }
}
