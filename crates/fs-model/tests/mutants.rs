//! The model can fail: each broken rule is found, by the property that is there for it.

mod worlds;

use pagefence_fs_model::write_protocol::{Mutant, Scenario, find, is_acyclic, property};

#[track_caller]
fn caught(mutant: Mutant, scenario: Scenario, property: &'static str) {
    let name = scenario.name;
    let (run, states) = find(scenario.with(mutant), property);
    let run = run.unwrap_or_else(|| panic!("{mutant:?} in {name}: not found in {states} states"));
    println!(
        "{mutant:?} in {name}: {property}, {} steps, {states} states",
        run.len()
    );
}

macro_rules! mutants {
    ($(#[test] fn $test:ident() { $mutant:ident in $world:ident breaks $property:ident })*) => {
        $(
            #[test]
            fn $test() {
                caught(Mutant::$mutant, worlds::$world(), property::$property);
            }
        )*

        /// No property that cannot fail.
        #[test]
        fn every_property_catches_a_mutant() {
            let caught = [$(property::$property),*];
            for property in property::ALL {
                assert!(caught.contains(&property), "nothing shows that this can fail: {property}");
            }
        }
    };
}

mutants! {
    #[test]
    fn mapping_before_writing() { MapBeforeWrite in one_page breaks CRASH_SHOWS_OWN }
    #[test]
    fn uptodate_before_the_read() { UptodateBeforeRead in edge breaks READS_ARE_CURRENT }
    #[test]
    fn filling_without_the_invalidate_lock() { FillWithoutInvalidateLock in reuse breaks READS_ARE_CURRENT }
    #[test]
    fn reuse_before_the_commit() { ReuseBeforeCommit in reuse breaks NO_EARLY_REUSE }
    #[test]
    fn reuse_before_the_commit_in_a_crash() { ReuseBeforeCommit in reuse breaks CRASH_SHOWS_OWN }
    #[test]
    fn a_page_lock_in_a_handle() { PageLockInHandle in fence breaks NO_DEADLOCK }
    #[test]
    fn a_handle_before_the_page_locks() { HandleBeforePageLock in full_journal breaks NO_DEADLOCK }
    #[test]
    fn a_page_lock_at_completion() { CompletionTakesPageLock in fence breaks NO_DEADLOCK }
    #[test]
    fn a_handle_across_an_eviction() { HandleAcrossEvict in full_journal breaks NO_DEADLOCK }
    #[test]
    fn ordered_mode() { CommitWaitsForWriteback in full_journal breaks NO_DEADLOCK }
    #[test]
    fn no_reservation_for_the_tree() { NoTreeReservation in pieces breaks NO_LATE_ENOSPC }
    #[test]
    fn a_punch_without_a_reservation() { PunchWithoutReservation in split breaks NO_LATE_ENOSPC }
    #[test]
    fn a_tree_freed_under_a_reservation() { TreeFreedUnderReservation in shrink breaks NO_LATE_ENOSPC }
    #[test]
    fn a_store_without_a_reservation() { StoreWithoutReservation in pieces breaks DIRTY_IS_COVERED }
    #[test]
    fn evicting_keeps_the_reservation() { EvictKeepsReservation in fence breaks RESERVATION_EXACT }
    #[test]
    fn the_fence_ignores_writeback() { FenceIgnoresWriteback in fence breaks WRITES_ARE_OWNED }
    #[test]
    fn a_busy_block_looks_free() { BusyLooksFree in pieces breaks ONE_OWNER }
    #[test]
    fn the_record_before_the_flush() { RecordBeforeFlush in one_page breaks CRASH_SHOWS_OWN }
    #[test]
    fn unmarked_before_mapped() { WritebackClearedBeforeMap in reclaim breaks READS_ARE_CURRENT }
    #[test]
    fn fsync_without_a_flush() { FsyncWithoutFlush in one_page breaks FSYNC_SURVIVES }
    #[test]
    fn fsync_ignores_others() { FsyncIgnoresOthersWriteback in one_page breaks FSYNC_SURVIVES }
    #[test]
    fn a_checkpoint_without_a_flush() { CheckpointWithoutFlush in checkpoint breaks TREE_SURVIVES }
    #[test]
    fn no_revoke() { NoRevoke in revoke breaks CRASH_SHOWS_OWN }
    #[test]
    fn the_edge_after_the_handle() { EdgeAfterHandle in edge breaks EDGE_SURVIVES }
}

/// So "whoever has work can go on" says that everything gets done.
#[test]
fn no_step_leads_back() {
    for scenario in [
        worlds::reuse(),
        worlds::split(),
        worlds::pieces(),
        worlds::shrink(),
        worlds::revoke(),
        worlds::edge(),
        worlds::reclaim(),
    ] {
        let name = scenario.name;
        assert!(is_acyclic(scenario), "{name}");
    }
}
