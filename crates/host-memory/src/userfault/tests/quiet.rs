//! Pages that are mapped, or let be stored to, without waking who stopped there.

use super::*;

#[test]
fn who_stopped_at_a_page_sleeps_until_he_is_woken() {
    for kind in [ViewKind::Shared, ViewKind::Private] {
        let rig = Rig::new(kind);
        rig.fill(103..104, 7);
        let load = rig.load(103);
        assert_eq!(rig.event(), event(103, false, FaultKind::Minor));
        let mapped = rig.faults.continue_quietly(&rig.view, 102..105, true);
        assert!(matches!(mapped, Err(Continue::Hole { page: 102 })));
        rig.faults
            .continue_quietly(&rig.view, 103..104, true)
            .expect("mapped");
        std::thread::sleep(SHORT);
        assert!(!load.is_finished(), "asleep");
        // Who comes by finds it.
        assert_eq!(rig.load(103).join().expect("loaded"), 7);
        rig.faults.wake(&rig.view, 103..104).expect("woken");
        assert_eq!(load.join().expect("loaded"), 7);
        rig.assert_quiet();
    }
}

#[test]
fn who_stopped_at_a_store_sleeps_until_he_is_woken() {
    let rig = Rig::new(ViewKind::Shared);
    rig.fill(103..104, 7);
    rig.map(103..104, true);
    let store = rig.store(103, 8);
    assert_eq!(rig.event(), event(103, true, FaultKind::WriteProtected));
    rig.faults
        .unprotect_quietly(&rig.view, 90..104)
        .expect("let be stored to");
    std::thread::sleep(SHORT);
    assert!(!store.is_finished(), "asleep");
    rig.faults.wake(&rig.view, 103..104).expect("woken");
    store.join().expect("stored");
    assert_eq!(rig.memory_byte(103), 8);
    rig.assert_quiet();
}

#[test]
fn the_mark_of_a_protected_page_that_has_gone_is_taken_off() {
    let rig = Rig::new(ViewKind::Shared);
    rig.fill(100..108, 7);
    rig.map(100..108, true);
    rig.view.zap(100..108);
    rig.faults
        .unprotect_quietly(&rig.view, 100..108)
        .expect("taken off");
    // Poison comes only where nothing is.
    rig.poison(100..108);
    let private = Rig::new(ViewKind::Private);
    private
        .faults
        .unprotect_quietly(&private.view, 100..108)
        .expect("nothing to do");
}
