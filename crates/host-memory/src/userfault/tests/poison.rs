//! Where the file ends, or can't be read: SIGBUS, until the page is there.

use std::os::unix::process::ExitStatusExt;

use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::Signal;

use super::*;

/// Loads or stores in a child, after `prepare`: SIGBUS.
fn assert_sigbus(
    name: &str,
    kind: ViewKind,
    prepare: impl FnOnce(&Rig),
    access: impl FnOnce(&Rig),
) {
    let status = in_child(&format!("userfault::tests::poison::{name}"), || {
        let rig = Rig::new(kind);
        rig.fill(100..108, 1);
        prepare(&rig);
        access(&rig);
    });
    assert_eq!(status.signal(), Some(Signal::BUS.as_raw()), "{status:?}");
}

#[test]
fn a_load_of_poison_is_sigbus() {
    assert_sigbus(
        "a_load_of_poison_is_sigbus",
        ViewKind::Shared,
        |rig| rig.poison(102..104),
        |rig| {
            let _ = rig.view.load_u8(byte_of(103), SeqCst);
        },
    );
}

#[test]
fn a_waiting_thread_meets_the_poison() {
    assert_sigbus(
        "a_waiting_thread_meets_the_poison",
        ViewKind::Shared,
        |_| {},
        |rig| {
            let store = rig.store(103, 1);
            assert_eq!(rig.event(), event(103, true, FaultKind::Minor));
            rig.poison(103..104);
            let _ = store.join();
        },
    );
}

#[test]
fn poison_takes_the_place_of_a_protected_page_and_of_its_mark() {
    assert_sigbus(
        "poison_takes_the_place_of_a_protected_page_and_of_its_mark",
        ViewKind::Shared,
        |rig| {
            rig.map(100..104, true);
            rig.map(104..108, false);
            rig.memory.punch(102..106);
            // Mapped, punched marks, punched, mapped, one after the other.
            rig.poison(100..108);
        },
        |rig| {
            rig.view.store_u8(byte_of(102), 1, SeqCst);
        },
    );
}

#[test]
fn poison_stays_when_its_page_is_punched() {
    assert_sigbus(
        "poison_stays_when_its_page_is_punched",
        ViewKind::Shared,
        |rig| {
            rig.poison(102..103);
            rig.memory.punch(0..u64::MAX);
        },
        |rig| {
            let _ = rig.view.load_u8(byte_of(102), SeqCst);
        },
    );
}

#[test]
fn poison_leaves_what_a_private_view_has_mapped() {
    let rig = Rig::new(ViewKind::Private);
    rig.fill(100..108, 1);
    rig.map(102..104, false);
    rig.view.store_u8(byte_of(102), 5, SeqCst);
    rig.poison(101..105);
    assert_eq!(rig.view.load_u8(byte_of(102), SeqCst), 5, "a copy");
    assert_eq!(
        rig.view.load_u8(byte_of(103), SeqCst),
        1,
        "a page for loads"
    );
    rig.assert_quiet();
}

#[test]
fn poison_behind_a_private_copy_is_sigbus() {
    assert_sigbus(
        "poison_behind_a_private_copy_is_sigbus",
        ViewKind::Private,
        |rig| {
            rig.map(102..103, false);
            rig.view.store_u8(byte_of(102), 5, SeqCst);
            rig.poison(102..104);
        },
        |rig| {
            let _ = rig.view.load_u8(byte_of(103), SeqCst);
        },
    );
}

#[test]
fn poison_can_be_repeated_and_is_taken_off_by_a_zap() {
    let rig = Rig::new(ViewKind::Shared);
    rig.fill(100..108, 1);
    rig.poison(101..103);
    rig.poison(100..108);
    rig.view.zap(101..102);
    let load = rig.load(101);
    assert_eq!(rig.event(), event(101, false, FaultKind::Minor));
    rig.map(101..102, true);
    assert_eq!(load.join().expect("loaded"), 1);
}

#[test]
fn poison_is_taken_off_by_continuing_the_page() {
    let rig = Rig::new(ViewKind::Shared);
    rig.fill(100..108, 1);
    rig.poison(101..102);
    rig.map(101..102, true);
    assert_eq!(rig.load(101).join().expect("loaded"), 1);
    rig.assert_quiet();
}

#[test]
fn poison_is_put_behind_a_place_that_is_not_the_views_any_more() {
    assert_sigbus(
        "poison_is_put_behind_a_place_that_is_not_the_views_any_more",
        ViewKind::Shared,
        |rig| {
            // SAFETY: page 104 of the view, which nobody uses; it stays mapped as long as the view does.
            unsafe {
                let place = rig.view.as_ptr().add(4 * FRAME_SIZE).cast();
                let flags = MapFlags::PRIVATE | MapFlags::FIXED;
                rustix::mm::mmap_anonymous(place, FRAME_SIZE, ProtFlags::READ, flags)
                    .expect("a page");
            }
            let gone = rig.faults.poison(&rig.view, 100..108);
            assert!(matches!(gone, Err(RangeError::Gone)));
            assert_eq!(rig.view.load_u8(byte_of(104), SeqCst), 0);
        },
        |rig| {
            let _ = rig.view.load_u8(byte_of(107), SeqCst);
        },
    );
}
