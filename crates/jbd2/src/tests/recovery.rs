//! What recovery takes from a log, and where it ends.

use proptest::prelude::*;

use super::*;

#[test]
fn a_clean_journal_has_nothing() {
    for (compat, incompat) in KINDS {
        let image = Image::new(compat, incompat, 0, 7);
        let recovery = image.recover().unwrap();
        assert!(recovery.is_clean());
        assert_eq!(recovery.next_sequence(), Sequence(8));
        assert_eq!(recovery.used_blocks(), 0);
        assert!(recovery.fast_commits().is_empty());
        let before = image.device.to_vec();
        write_back(&image.device, &image.location, &recovery, Emptied::Clean).unwrap();
        assert_eq!(image.device.to_vec(), before);
    }
}

#[test]
fn the_newest_contents_count_and_escapes_are_undone() {
    for (compat, incompat) in KINDS {
        // The log starts near its end, and the numbers of transactions do too.
        let mut image = Image::new(compat, incompat, 25, u32::MAX - 1);
        let mut steps = vec![
            set(&[(3, 1), (4, 2), (5, 3)]),
            set(&[(4, 7)]),
            set(&[(10, 1), (11, 2), (12, 3), (13, 4), (14, 5), (15, 6)]),
        ];
        steps[1].blocks.push((5, escaped(9)));
        for step in &steps {
            image.transaction(step);
        }
        let what = format!("{compat:#x} {incompat:#x}");
        let recovery = check_recovered(&image, &expected(&image, &steps), &what);
        assert_eq!(recovery.transactions(), 3);
        assert_eq!(recovery.next_sequence(), Sequence(1));
        assert_eq!(recovery.damaged(), None);
        assert_eq!(recovery.replacements().len(), 9);
        assert_eq!(recovery.head(), image.position);
        assert_eq!(recovery.used_blocks(), 5 + 4 + 9);
        assert!(image.position < 25, "the log went round");
    }
}

#[test]
fn revokes_cover_this_and_older_transactions() {
    for (compat, incompat) in KINDS {
        let mut image = Image::new(compat, incompat, 1, u32::MAX);
        let mut steps = vec![
            set(&[(3, 1), (4, 1), (5, 1)]),
            set(&[(5, 2)]),
            set(&[(4, 3)]),
        ];
        steps[1].revokes = vec![3, 4, 5, 200, 7];
        for step in &steps {
            image.transaction(step);
        }
        let recovery = check_recovered(&image, &expected(&image, &steps), "revokes");
        assert_eq!(recovery.revoke_records(), 5);
        assert_eq!(recovery.revoked_blocks(), 4);
        assert_eq!(recovery.replacements().len(), 1);
    }
}

#[test]
fn a_transaction_without_its_commit_never_was() {
    for (compat, incompat) in KINDS {
        let mut image = Image::new(compat, incompat, 1, 5);
        let steps = [set(&[(3, 1)]), set(&[(4, 1)])];
        for step in &steps {
            image.transaction(step);
        }
        let before = image.position;
        let mut open = set(&[(3, 9), (6, 9)]);
        open.revokes = vec![4];
        image.open(&open);
        let recovery = check_recovered(&image, &expected(&image, &steps), "open");
        assert_eq!(recovery.head(), before);
        assert_eq!(recovery.next_sequence(), Sequence(7));
        assert_eq!(recovery.damaged(), None);
        assert_eq!(recovery.revoke_records(), 0);
    }
}

#[test]
fn damage_ends_the_log_before_its_transaction() {
    for (compat, incompat) in KINDS {
        let has_checksums = compat != 0 || incompat & (V2 | V3) != 0;
        // Which block of the middle transaction is damaged, and where.
        for (block, at) in [(0, 900), (1, 700), (2, 700)] {
            let mut image = Image::new(compat, incompat, 1, 5);
            let steps = [set(&[(3, 1)]), set(&[(4, 1)]), set(&[(3, 2), (5, 1)])];
            image.transaction(&steps[0]);
            let start = image.position;
            image.transaction(&steps[1]);
            image.transaction(&steps[2]);
            image.damage(start + block, at);
            let what = format!("{compat:#x} {incompat:#x}, block {block}");
            // A commit block of version 1 has no checksum of itself.
            let is_told = has_checksums && !(block == 2 && compat != 0);
            if is_told {
                let recovery = check_recovered(&image, &expected(&image, &steps[..1]), &what);
                assert_eq!(recovery.damaged(), Some(Sequence(6)), "{what}");
                assert_eq!(recovery.head(), start);
                // Nothing that lies in the log may be taken for a later transaction.
                write_back(&image.device, &image.location, &recovery, Emptied::Clean).unwrap();
                let next = image.recover().unwrap().next_sequence();
                assert!(next.is_at_least(Sequence(8 + JOURNAL_BLOCKS - 1)));
                assert!(matches!(
                    commit_once(&image.device, &image.location, &recovery, &[], &[]),
                    Err(JournalError::DamagedLog { sequence: 6 })
                ));
            } else {
                assert_eq!(image.recover().unwrap().transactions(), 3, "{what}");
            }
        }
    }
}

#[test]
fn a_last_transaction_may_be_torn_where_commits_are_asynchronous() {
    for (compat, incompat, block, fault) in [
        // The data was not there yet when the commit block was.
        (1, ASYNC, 1, false),
        (0, ASYNC | V3, 1, false),
        (0, ASYNC | V3, 0, false),
        // Without asynchronous commits that can't be.
        (1, 0, 1, true),
        (0, V3, 1, true),
        (0, V3, 0, true),
        (0, V3, 2, true),
    ] {
        let mut image = Image::new(compat, incompat | REVOKE, 1, 5);
        let steps = [set(&[(3, 1)]), set(&[(4, 1)])];
        image.transaction(&steps[0]);
        let start = image.position;
        image.transaction(&steps[1]);
        image.damage(start + block, 700);
        let what = format!("{compat:#x} {incompat:#x}, block {block}");
        let recovery = check_recovered(&image, &expected(&image, &steps[..1]), &what);
        assert_eq!(recovery.damaged().is_some(), fault, "{what}");
        assert_eq!(recovery.next_sequence(), Sequence(6));
    }
}

#[test]
fn blocks_of_an_older_life_are_no_damage() {
    let mut image = Image::new(0, REVOKE | V3, 1, 5);
    let steps = [set(&[(3, 1)]), set(&[(4, 1)])];
    image.transaction(&steps[0]);
    let start = image.position;
    // The same number of a transaction, committed before the one before it, with another UUID.
    image.seconds = 10;
    image.format.seed ^= 1;
    image.transaction(&steps[1]);
    let recovery = check_recovered(&image, &expected(&image, &steps[..1]), "older life");
    assert_eq!(recovery.damaged(), None);
    assert_eq!(recovery.head(), start);
}

#[test]
fn damage_that_uncovers_damage_ends_too() {
    let mut image = Image::new(0, REVOKE | V3, 1, 5);
    let mut steps = vec![set(&[(3, 1)]), set(&[(4, 1)]), set(&[(5, 1)])];
    steps[2].revokes = vec![4];
    image.transaction(&steps[0]);
    let second = image.position;
    image.transaction(&steps[1]);
    let third = image.position;
    image.transaction(&steps[2]);
    // Revoked by the third, so nobody asks for its data …
    image.damage(second + 1, 5);
    let recovery = check_recovered(&image, &expected(&image, &steps), "revoked");
    assert_eq!((recovery.damaged(), recovery.revoked_blocks()), (None, 1));
    // … until the third is damaged itself.
    image.damage(third + 2, 5);
    let recovery = check_recovered(&image, &expected(&image, &steps[..1]), "uncovered");
    assert_eq!(recovery.damaged(), Some(Sequence(6)));
}

#[test]
fn tags_and_revokes_that_reach_too_far_are_refused() {
    for (compat, incompat) in KINDS {
        for block in [DEVICE_BLOCKS, 200, 209, 100, 121, u64::from(u32::MAX)] {
            let mut image = Image::new(compat, incompat, 1, 5);
            image.transaction(&set(&[(block, 1)]));
            let error = image.recover().unwrap_err();
            assert!(
                matches!(
                    error,
                    JournalError::Corrupt {
                        source: Corruption::JournalBlockRange { .. },
                        ..
                    }
                ),
                "{block}: {error}"
            );
            // Not if it is not committed.
            let mut image = Image::new(compat, incompat, 1, 5);
            image.open(&set(&[(block, 1)]));
            image.recover().unwrap();
        }
    }
    let mut image = Image::new(0, REVOKE, 1, 5);
    let mut block = revoke::build(&image.format, Sequence(5), &[BlockNo(3)]).unwrap();
    block[12..16].copy_from_slice(&1025_u32.to_be_bytes());
    image.put(&block);
    image.commit(0);
    assert!(matches!(
        image.recover(),
        Err(JournalError::Corrupt {
            block: 1,
            source: Corruption::JournalRevokeCount { count: 1025, .. }
        })
    ));
}

#[test]
fn a_log_that_goes_round_in_a_circle_ends() {
    let mut image = Image::new(0, REVOKE, 1, 5);
    // Revoke blocks of one transaction all the way round, with no commit.
    let block = revoke::build(&image.format, Sequence(5), &[]).unwrap();
    for _ in 1..JOURNAL_BLOCKS {
        image.put(&block);
    }
    assert_eq!(image.position, 1);
    assert_eq!(image.recover().unwrap().transactions(), 0);
    // A descriptor whose tags reach past everything.
    let mut image = Image::new(0, REVOKE, 1, 5);
    let mut builder = DescriptorBuilder::new(image.format, Sequence(5), [0; 16]);
    for block in 0..100 {
        builder.push(BlockNo(block), &mut [0; BLOCK]).unwrap();
    }
    image.put(&builder.finish());
    assert_eq!(image.recover().unwrap().transactions(), 0);
}

#[test]
fn a_log_that_is_full_to_the_last_block_is_read() {
    let mut image = Image::new(0, REVOKE | V3, 20, 5);
    let mut steps = Vec::new();
    for round in 0..10 {
        steps.push(set(&[(round, round as u8)]));
        image.transaction(steps.last().unwrap());
    }
    // One block is left: a transaction that is nothing but its commit.
    image.transaction(&Step::default());
    assert_eq!(image.position, 20);
    let recovery = check_recovered(&image, &expected(&image, &steps), "full");
    assert_eq!(recovery.used_blocks(), JOURNAL_BLOCKS - 1);
    assert_eq!(recovery.transactions(), 11);
    assert!(matches!(
        commit_once(&image.device, &image.location, &recovery, &[], &[]),
        Err(JournalError::LogFull { needed: 1, free: 0 })
    ));
}

/// A step at random: blocks with contents, some escaped, and revokes.
pub(super) fn any_step() -> impl Strategy<Value = Step> {
    (
        prop::collection::vec((0_u64..90, any::<u8>(), any::<bool>()), 0..7),
        prop::collection::vec(0_u64..90, 0..4),
    )
        .prop_map(|(blocks, revokes)| Step {
            blocks: blocks
                .into_iter()
                .map(|(block, byte, escape)| {
                    let bytes = if escape {
                        escaped(byte)
                    } else {
                        vec![byte; BLOCK]
                    };
                    (block, bytes)
                })
                .collect(),
            revokes,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// Transactions at random are recovered to what they say.
    #[test]
    fn recovery_agrees_with_the_words(
        kind in 0_usize..KINDS.len(),
        start in 1_u32..JOURNAL_BLOCKS,
        sequence in prop::sample::select(vec![1, 1000, u32::MAX - 1, u32::MAX, 1 << 31]),
        steps in prop::collection::vec(any_step(), 1..6),
    ) {
        let (compat, incompat) = KINDS[kind];
        let mut image = Image::new(compat, incompat, start, sequence);
        let mut taken = 0;
        let mut done = Vec::new();
        for step in steps {
            let blocks = step.blocks.len() as u32;
            taken += blocks + blocks.div_ceil(5) + u32::from(!step.revokes.is_empty()) + 1;
            if taken > JOURNAL_BLOCKS - 1 {
                break;
            }
            image.transaction(&step);
            done.push(step);
        }
        let recovery = check_recovered(&image, &expected(&image, &done), "random");
        prop_assert_eq!(recovery.transactions() as usize, done.len());
        prop_assert_eq!(recovery.damaged(), None);
        prop_assert_eq!(recovery.head(), image.position);
    }

    /// Journals at random, from noise to sound ones with bytes changed: no panic, no hang, and
    /// never a change of a block that is not the journal's to change.
    #[test]
    fn any_journal_is_safe(
        kind in 0_usize..KINDS.len(),
        start in 1_u32..JOURNAL_BLOCKS,
        steps in prop::collection::vec(any_step(), 0..5),
        fuzz in prop::collection::vec((1..JOURNAL_BLOCKS, 0_u64..BLOCK as u64, any::<u8>()), 0..12),
        headers in prop::collection::vec((1..JOURNAL_BLOCKS, 1_u32..6, 5_u32..8), 0..6),
        fields in prop::collection::vec((3_u64..23, any::<u32>()), 0..2),
    ) {
        let (compat, incompat) = KINDS[kind];
        let mut image = Image::new(compat, incompat, start, 5);
        for step in &steps {
            image.transaction(step);
        }
        for (block, block_kind, sequence) in headers {
            let words = [0xc03b_3998, block_kind, sequence].map(u32::to_be_bytes).concat();
            image.device.write(image.offset(block), &words).unwrap();
        }
        for (block, at, byte) in fuzz {
            image.device.write(image.offset(block) + at, &[byte]).unwrap();
        }
        for (word, value) in fields {
            image.device.write(image.offset(0) + word * 4, &value.to_be_bytes()).unwrap();
        }
        if let Ok(recovery) = image.recover() {
            prop_assert!(recovery.replacements().len() < JOURNAL_BLOCKS as usize);
            for replacement in recovery.replacements() {
                prop_assert!(image.location.may_change(BlockNo(replacement.block())));
                prop_assert!(!image.location.may_change(BlockNo(replacement.location())));
            }
            write_back(&image.device, &image.location, &recovery, Emptied::Clean).unwrap();
            prop_assert!(image.recover().unwrap().is_clean());
        }
    }
}
