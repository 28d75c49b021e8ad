//! Faults of real threads, told by the kernel and answered.

use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering::SeqCst};
use pagefence_lock_order::primitives::thread::{self, JoinHandle};
use pagefence_lock_order::primitives::{Arc, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use super::*;
use crate::FileMemory;
use crate::ViewKind;
use crate::test_child::{DONE, in_child};

mod poison;
mod quiet;

/// Long enough for a thread to fault on a busy machine.
const LONG: Duration = Duration::from_secs(20);
/// Long enough to see that nothing comes.
const SHORT: Duration = Duration::from_millis(50);

/// A registered view of pages 100 to 108 of a memory, and who is told of its faults.
struct Rig {
    memory: Arc<FileMemory>,
    view: Arc<View>,
    faults: Userfault,
}

const FIRST: u64 = 100;
const PAGES: usize = 8;

impl Rig {
    fn new(kind: ViewKind) -> Self {
        let mut faults = Userfault::open().expect("this machine must let tests use userfaultfd");
        let memory = FileMemory::new().expect("memory");
        let view = View::new(&memory, FIRST, PAGES * FRAME_SIZE, kind).expect("a view");
        faults.register(&view).expect("registered");
        Self {
            memory,
            view: Arc::new(view),
            faults,
        }
    }

    /// Fills `pages` of the memory with `byte`.
    fn fill(&self, pages: Range<u64>, byte: u8) {
        for page in pages {
            self.memory.write(page, 0, &[byte; FRAME_SIZE]);
        }
    }

    fn memory_byte(&self, page: u64) -> u8 {
        let mut byte = [0];
        self.memory.read(page, 9, &mut byte);
        byte[0]
    }

    /// Loads a byte of `page` in a thread.
    fn load(&self, page: u64) -> JoinHandle<u8> {
        let view = Arc::clone(&self.view);
        thread::spawn("load", move || view.load_u8(byte_of(page), SeqCst)).expect("a thread")
    }

    /// Stores `value` in `page` in a thread.
    fn store(&self, page: u64, value: u8) -> JoinHandle<()> {
        let view = Arc::clone(&self.view);
        thread::spawn("store", move || view.store_u8(byte_of(page), value, SeqCst))
            .expect("a thread")
    }

    /// The one fault that is told next.
    fn event(&self) -> Event {
        let woken = self.faults.wait(None, Some(LONG)).expect("poll");
        assert!(woken.faults, "a fault is told");
        let mut events = Vec::new();
        self.faults.read_events(&mut events).expect("read");
        assert_eq!(events.len(), 1, "{events:?}");
        events[0]
    }

    /// Nobody faults.
    fn assert_quiet(&self) {
        let woken = self.faults.wait(None, Some(SHORT)).expect("poll");
        assert!(!woken.faults);
        let mut events = Vec::new();
        self.faults.read_events(&mut events).expect("read");
        assert_eq!(events, []);
    }

    fn map(&self, pages: Range<u64>, protected: bool) {
        self.faults
            .continue_pages(&self.view, pages, protected)
            .expect("mapped");
    }

    fn protect(&self, pages: Range<u64>, on: bool) {
        self.faults
            .protect(&self.view, pages, on)
            .expect("protected or not");
    }

    fn poison(&self, pages: Range<u64>) {
        self.faults.poison(&self.view, pages).expect("poisoned");
    }
}

/// A byte in the middle of `page`, in the view.
fn byte_of(page: u64) -> usize {
    usize::try_from(page - FIRST).expect("small") * FRAME_SIZE + 9
}

fn event(page: u64, write: bool, kind: FaultKind) -> Event {
    Event { page, write, kind }
}

#[test]
fn a_page_is_loaded_stored_to_and_punched() {
    let rig = Rig::new(ViewKind::Shared);
    let load = rig.load(103);
    assert_eq!(rig.event(), event(103, false, FaultKind::Missing));
    rig.fill(103..104, 7);
    rig.map(103..104, true);
    assert_eq!(load.join().expect("loaded"), 7);
    let store = rig.store(103, 8);
    assert_eq!(rig.event(), event(103, true, FaultKind::WriteProtected));
    assert_eq!(rig.memory_byte(103), 7);
    rig.protect(103..104, false);
    store.join().expect("stored");
    assert_eq!(rig.memory_byte(103), 8);
    rig.store(103, 9).join().expect("stored");
    assert_eq!(rig.memory_byte(103), 9);
    rig.protect(103..104, true);
    assert_eq!(rig.load(103).join().expect("loaded"), 9);
    let store = rig.store(103, 10);
    assert_eq!(rig.event(), event(103, true, FaultKind::WriteProtected));
    rig.memory.punch(103..104);
    // Whoever waits to store must be let go, to find that the page has gone.
    rig.faults.wake(&rig.view, 103..104).expect("woken");
    assert_eq!(rig.event(), event(103, true, FaultKind::Missing));
    rig.fill(103..104, 11);
    rig.map(103..104, false);
    store.join().expect("stored");
    assert_eq!(rig.memory_byte(103), 10);
    rig.assert_quiet();
}

#[test]
fn a_store_to_a_hole_is_one_event() {
    let rig = Rig::new(ViewKind::Shared);
    let store = rig.store(100, 5);
    assert_eq!(rig.event(), event(100, true, FaultKind::Missing));
    rig.fill(100..101, 4);
    rig.map(100..101, false);
    store.join().expect("stored");
    assert_eq!(rig.memory_byte(100), 5);
    rig.assert_quiet();
}

#[test]
fn a_zapped_page_faults_again_and_is_still_there() {
    let rig = Rig::new(ViewKind::Shared);
    rig.fill(100..108, 3);
    for protected in [false, true] {
        rig.map(101..102, protected);
        rig.view.zap(101..102);
        let load = rig.load(101);
        assert_eq!(rig.event(), event(101, false, FaultKind::Minor));
        rig.map(101..102, protected);
        assert_eq!(load.join().expect("loaded"), 3);
        rig.view.zap(101..102);
    }
}

#[test]
fn a_page_whose_protection_outlived_its_zap_can_be_stored_to_when_continued() {
    let rig = Rig::new(ViewKind::Shared);
    rig.fill(101..102, 3);
    rig.map(101..102, true);
    rig.view.zap(101..102);
    rig.map(101..102, false);
    rig.store(101, 4).join().expect("stored");
    assert_eq!(rig.memory_byte(101), 4);
    rig.assert_quiet();
}

#[test]
fn a_run_stops_at_what_is_mapped_and_at_a_hole() {
    let rig = Rig::new(ViewKind::Shared);
    rig.fill(100..107, 1);
    rig.map(103..104, true);
    let stopped = rig.faults.continue_pages(&rig.view, 101..108, true);
    assert!(matches!(
        stopped,
        Err(Continue::AlreadyMapped { page: 103 })
    ));
    let stopped = rig.faults.continue_pages(&rig.view, 104..108, true);
    assert!(matches!(stopped, Err(Continue::Hole { page: 107 })));
    for page in 101..107 {
        assert_eq!(rig.load(page).join().expect("loaded"), 1);
    }
    rig.assert_quiet();
    let again = rig.faults.continue_pages(&rig.view, 103..104, false);
    assert!(matches!(again, Err(Continue::AlreadyMapped { page: 103 })));
    let store = rig.store(103, 2);
    // It is as it was mapped first.
    assert_eq!(rig.event(), event(103, true, FaultKind::WriteProtected));
    rig.protect(100..108, false);
    store.join().expect("stored");
}

#[test]
fn nothing_is_mapped_where_nothing_is_registered() {
    let rig = Rig::new(ViewKind::Shared);
    rig.fill(100..108, 1);
    let other = View::new(&rig.memory, 100, FRAME_SIZE, ViewKind::Shared).expect("a view");
    let gone = rig.faults.continue_pages(&other, 100..101, true);
    assert!(matches!(gone, Err(Continue::Gone { page: 100 })));
    let gone = rig.faults.protect(&other, 100..101, true);
    assert!(matches!(gone, Err(RangeError::Gone)));
    let gone = rig.faults.poison(&other, 100..101);
    assert!(matches!(gone, Err(RangeError::Gone)));
    assert_eq!(other.load_u8(9, SeqCst), 1);
}

#[test]
fn a_run_over_a_place_that_was_given_to_another_mapping_stops_there() {
    let rig = Rig::new(ViewKind::Shared);
    rig.fill(100..108, 1);
    // SAFETY: page 104 of the view, which nobody uses; it stays mapped as long as the view does.
    unsafe {
        let place = rig.view.as_ptr().add(4 * FRAME_SIZE).cast();
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        rustix::mm::mmap_anonymous(place, FRAME_SIZE, ProtFlags::READ, flags).expect("a page");
    }
    let gone = rig.faults.continue_pages(&rig.view, 101..108, true);
    assert!(matches!(gone, Err(Continue::Gone { page: 104 })));
    assert_eq!(rig.load(103).join().expect("loaded"), 1);
    rig.map(105..108, false);
    // Behind it everything is protected all the same.
    for on in [true, false] {
        let gone = rig.faults.protect(&rig.view, 101..108, on);
        assert!(matches!(gone, Err(RangeError::Gone)));
        let store = rig.store(107, 2);
        if on {
            assert_eq!(rig.event(), event(107, true, FaultKind::WriteProtected));
            rig.protect(107..108, false);
        }
        store.join().expect("stored");
    }
    rig.assert_quiet();
}

#[test]
fn a_descriptor_for_reading_serves_private_views_alone() {
    let memory = FileMemory::new().expect("memory");
    memory.write(100, 0, &[5; FRAME_SIZE]);
    let number = std::os::fd::AsRawFd::as_raw_fd(&memory.fd());
    let file = std::fs::File::open(format!("/proc/self/fd/{number}")).expect("the memfd");
    let mut faults = Userfault::open().expect("userfaultfd");
    let view = View::of_fd(&file, 100, FRAME_SIZE, ViewKind::SharedReadOnly).expect("a view");
    let refused = faults.register(&view).expect_err("not open for writing");
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    let view = View::of_fd(&file, 100, FRAME_SIZE, ViewKind::Private).expect("a view");
    faults.register(&view).expect("registered");
    let rig = Rig {
        memory,
        view: Arc::new(view),
        faults,
    };
    let load = rig.load(100);
    assert_eq!(rig.event(), event(100, false, FaultKind::Minor));
    rig.map(100..101, true);
    assert_eq!(load.join().expect("loaded"), 5);
    rig.memory.punch(100..101);
    let load = rig.load(100);
    assert_eq!(rig.event(), event(100, false, FaultKind::Missing));
    rig.fill(100..101, 6);
    rig.map(100..101, true);
    assert_eq!(load.join().expect("loaded"), 6);
}

#[test]
fn a_run_over_mappings_that_the_user_split_is_mapped() {
    let rig = Rig::new(ViewKind::Shared);
    rig.fill(100..108, 6);
    // SAFETY: pages of the view, which nobody uses.
    unsafe {
        let place = rig.view.as_ptr().add(2 * FRAME_SIZE).cast();
        rustix::mm::mprotect(place, 3 * FRAME_SIZE, MprotectFlags::READ).expect("split");
    }
    rig.map(100..108, true);
    assert_eq!(rig.load(102).join().expect("loaded"), 6);
    rig.protect(100..108, false);
    rig.store(105, 1).join().expect("stored");
    rig.view.zap(100..108);
    rig.poison(100..108);
    rig.view.zap(100..108);
    let load = rig.load(107);
    assert_eq!(rig.event(), event(107, false, FaultKind::Minor));
    rig.map(107..108, true);
    load.join().expect("loaded");
}

#[test]
fn a_private_view_copies_and_keeps_its_copies_from_punches() {
    let rig = Rig::new(ViewKind::Private);
    rig.fill(100..108, 1);
    let load = rig.load(101);
    assert_eq!(rig.event(), event(101, false, FaultKind::Minor));
    rig.map(101..102, true);
    assert_eq!(load.join().expect("loaded"), 1);
    // Copied by the kernel, which tells nobody.
    rig.store(101, 2).join().expect("stored");
    assert_eq!(rig.memory_byte(101), 1);
    // Nothing mapped at all: told once, then as above.
    let store = rig.store(102, 2);
    assert_eq!(rig.event(), event(102, true, FaultKind::Minor));
    rig.map(102..103, false);
    store.join().expect("stored");
    assert_eq!(rig.memory_byte(102), 1);
    rig.map(103..104, false);
    rig.memory.punch(100..108);
    assert_eq!(rig.load(101).join().expect("loaded"), 2);
    let load = rig.load(103);
    assert_eq!(rig.event(), event(103, false, FaultKind::Missing));
    rig.fill(100..108, 3);
    rig.map(103..104, true);
    assert_eq!(load.join().expect("loaded"), 3);
    assert_eq!(rig.load(102).join().expect("loaded"), 2);
    rig.view.zap(101..103);
    let load = rig.load(101);
    assert_eq!(rig.event(), event(101, false, FaultKind::Minor));
    rig.map(101..103, true);
    assert_eq!(load.join().expect("loaded"), 3);
    rig.protect(101..103, true);
    rig.store(101, 4).join().expect("stored");
    rig.assert_quiet();
}

#[test]
fn a_read_only_view_is_told_and_served() {
    let rig = Rig::new(ViewKind::SharedReadOnly);
    let load = rig.load(100);
    assert_eq!(rig.event(), event(100, false, FaultKind::Missing));
    rig.fill(100..101, 9);
    rig.map(100..101, true);
    assert_eq!(load.join().expect("loaded"), 9);
}

#[test]
fn many_faults_are_read_at_once_and_each_once() {
    let rig = Rig::new(ViewKind::Shared);
    let loads: Vec<_> = (100..108).map(|page| rig.load(page)).collect();
    let mut events = Vec::new();
    while events.len() < 8 {
        assert!(rig.faults.wait(None, Some(LONG)).expect("poll").faults);
        rig.faults.read_events(&mut events).expect("read");
    }
    let mut pages: Vec<u64> = events.iter().map(|event| event.page).collect();
    pages.sort_unstable();
    assert_eq!(pages, (100..108).collect::<Vec<_>>());
    rig.assert_quiet();
    rig.fill(100..108, 2);
    rig.map(100..108, true);
    for load in loads {
        assert_eq!(load.join().expect("loaded"), 2);
    }
}

#[test]
fn a_wait_is_ended_by_another_descriptor_and_by_its_time() {
    let rig = Rig::new(ViewKind::Shared);
    let other = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
    let wait = |timeout| rig.faults.wait(Some(other.as_fd()), timeout).expect("poll");
    let idle = Woken {
        faults: false,
        until: false,
    };
    assert_eq!(wait(Some(SHORT)), idle);
    assert_eq!(wait(Some(Duration::ZERO)), idle);
    rustix::io::write(&other, &1_u64.to_ne_bytes()).expect("a count");
    assert_eq!(
        wait(None),
        Woken {
            until: true,
            ..idle
        }
    );
    let load = rig.load(100);
    rig.event();
    rig.fill(100..101, 1);
    rig.map(100..101, true);
    load.join().expect("loaded");
}

#[test]
fn one_view_is_registered_once() {
    let mut rig = Rig::new(ViewKind::Shared);
    let kind = |result: io::Result<()>| result.map_err(|error| error.kind());
    let other = View::new(&rig.memory, 0, FRAME_SIZE, ViewKind::Shared).expect("a view");
    assert_eq!(
        kind(rig.faults.register(&other)),
        Err(io::ErrorKind::AlreadyExists)
    );
    let mut second = Userfault::open().expect("userfaultfd");
    assert_eq!(
        kind(second.register(&rig.view)),
        Err(io::ErrorKind::AlreadyExists)
    );
    second.register(&other).expect("registered");
}

/// S4 as far as the kernel keeps it: a page is punched and filled anew under a lock that whoever
/// continues it takes as well.
#[test]
fn nobody_sees_a_hole_while_a_page_comes_and_goes() {
    const ROUNDS: u64 = 3000;
    for kind in [ViewKind::Shared, ViewKind::Private] {
        let rig = Arc::new(Rig::new(kind));
        let page_lock = Arc::new(Mutex::new(()));
        let stop = Arc::new(AtomicBool::new(false));
        let refill = |round: u64| {
            let _locked = page_lock.lock();
            rig.memory.punch(100..101);
            rig.memory.write(100, 0, &round.to_ne_bytes());
        };
        refill(1);
        let handler = {
            let (rig, page_lock) = (Arc::clone(&rig), Arc::clone(&page_lock));
            let stop = Arc::clone(&stop);
            thread::spawn("handler", move || {
                let (mut events, mut served) = (Vec::new(), 0);
                while !stop.load(SeqCst) {
                    rig.faults.wait(None, Some(SHORT)).expect("poll");
                    rig.faults.read_events(&mut events).expect("read");
                    for event in events.drain(..) {
                        served += 1;
                        let _locked = page_lock.lock();
                        let page = event.page..event.page + 1;
                        match rig.faults.continue_pages(&rig.view, page.clone(), true) {
                            Ok(()) => {}
                            Err(Continue::AlreadyMapped { .. }) => {
                                rig.faults.wake(&rig.view, page).expect("woken");
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
                served
            })
            .expect("a thread")
        };
        let loaders: Vec<_> = (0..2)
            .map(|_| {
                let view = Arc::clone(&rig.view);
                thread::spawn("loader", move || {
                    let mut last = 1;
                    while last < ROUNDS {
                        let found = view.load_u64(0, SeqCst);
                        assert!(found >= last, "{found} after {last}");
                        last = found;
                    }
                })
                .expect("a thread")
            })
            .collect();
        for round in 2..=ROUNDS {
            refill(round);
            thread::yield_now();
        }
        while !loaders.iter().all(JoinHandle::is_finished) {
            assert!(!handler.is_finished(), "the handler gave up");
            thread::yield_now();
        }
        for loader in loaders {
            loader.join().expect("a loader");
        }
        stop.store(true, SeqCst);
        assert!(handler.join().expect("the handler") > 0);
    }
}

/// Writes a byte of the view's page 100 to a pipe, by a system call.
fn write_from(view: &View) -> Result<usize, Errno> {
    let (_read, write) = rustix::pipe::pipe().expect("a pipe");
    // SAFETY: a byte of the view, which nobody stores to meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts(view.as_ptr().add(9), 1) };
    rustix::io::write(&write, bytes)
}

#[test]
fn system_calls_fail_on_what_is_not_mapped_if_only_users_faults_are_told() {
    let rig = Rig::new(ViewKind::Shared);
    assert!(!rig.faults.tells_kernel_faults());
    rig.fill(100..108, 1);
    assert_eq!(write_from(&rig.view), Err(Errno::FAULT));
    rig.assert_quiet();
    rig.map(100..101, true);
    assert_eq!(write_from(&rig.view), Ok(1));
}

#[test]
fn faults_of_system_calls_are_told_where_that_is_allowed() {
    let mut faults = match Userfault::open_for_kernel_faults() {
        Ok(faults) => faults,
        // Not a privileged user: that is what is to be told, then.
        Err(UserfaultError::KernelFaultsDenied) if !rustix::process::geteuid().is_root() => return,
        Err(error) => panic!("{error}"),
    };
    assert!(faults.tells_kernel_faults());
    let memory = FileMemory::new().expect("memory");
    let view = View::new(&memory, 100, FRAME_SIZE, ViewKind::Shared).expect("a view");
    faults.register(&view).expect("registered");
    let rig = Rig {
        memory,
        view: Arc::new(view),
        faults,
    };
    let view = Arc::clone(&rig.view);
    let write = thread::spawn("write", move || write_from(&view)).expect("a thread");
    assert_eq!(rig.event(), event(100, false, FaultKind::Missing));
    rig.fill(100..101, 1);
    rig.map(100..101, true);
    assert_eq!(write.join().expect("written"), Ok(1));
}

#[test]
fn when_nobody_is_told_any_more_holes_are_zeros() {
    let rig = Rig::new(ViewKind::Shared);
    let load = rig.load(100);
    rig.event();
    drop(rig.faults);
    assert_eq!(load.join().expect("loaded"), 0);
}

#[test]
fn a_child_that_comes_to_its_end_is_told_from_one_that_does_not() {
    let name = "userfault::tests::a_child_that_comes_to_its_end_is_told_from_one_that_does_not";
    assert_eq!(in_child(name, || {}).code(), Some(DONE));
    assert_eq!(in_child("userfault::tests::no_such", || {}).code(), Some(0));
}
