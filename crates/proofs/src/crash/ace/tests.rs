//! The bounds are kept, and every sequence can be done.

use super::*;

#[test]
fn all_sequences_of_one_operation_are_there() {
    let setup = Setup::new(Kind::Ext4, 1024, 8);
    let (count, sequences) = ones(&setup);
    assert_eq!(count, 436);
    let of = |is_it: fn(&Core) -> bool| {
        let of_it = sequences[..count].iter().filter(|one| is_it(&one[0].0));
        of_it.count()
    };
    assert_eq!(of(|core| matches!(core, Core::Fallocate(..))), 160);
    assert_eq!(of(|core| matches!(core, Core::Symlink(..))), 36);
    assert_eq!(
        of(|core| matches!(core, Core::RenameFile(..) | Core::RenameDirectory(..))),
        40
    );
    assert!(sequences.len() > count, "ours");
    for sequence in &sequences {
        for settled in [false, true] {
            assert!(!operations(&setup, sequence, settled).is_empty());
        }
    }
}

#[test]
fn what_an_operation_needs_is_seen_to() {
    let setup = Setup::new(Kind::Ext2, 1024, 4);
    for seed in 0..3000 {
        let mut random = Random::new(seed);
        let sequence = two(&setup, &mut random);
        // Nothing that is there only for the others' sake is refused.
        operations(&setup, &sequence, seed % 2 == 0);
    }
}

#[test]
fn what_makes_it_durable_has_to_do_with_it() {
    let ends = persists(&[Core::Link("foo", "A/bar")]);
    let expected = ["", "A", "A/bar", "A/foo", "bar", "foo"].map(Persist::One);
    assert_eq!(ends[..6], expected);
    assert_eq!(ends[6..], [Persist::All]);
}
