//! Clients that do not do what they are told, do it late, or say what makes no sense: nobody waits for them
//! for longer than is promised.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_page_cache::PAGE_SIZE;

use super::{Served, connect, load, map, open_of, pair, source_of, store, wait_until};
use crate::fault_source::FaultSource;
use crate::remote::wire::{Asked, Found, FromClient, FromDaemon, ToClient};
use crate::remote::{Opened, PATIENCE, RemoteKind, RemoteSource, Wire};
use crate::tests::disk::{Disk, Stop};
use crate::tests::eyes::{Seen, look};
use crate::tests::{Bench, NEVER, PAGE, Task, stamped, stamped_disk};
use crate::{Kind, Region, View, serve_until_over};

/// A client by hand. Its view is registered nowhere: what the memory has is mapped by touching it.
pub(super) struct Fake {
    wire: Wire,
    pub(super) view: View,
}

impl Fake {
    /// A client of eight pages, and what serves it.
    pub(super) fn new(bench: &Bench, kind: RemoteKind) -> (Self, Served) {
        let (here, there) = pair();
        let open = open_of(0..8, kind);
        let source = source_of(bench, here, &open);
        let served = Region::of_source(&bench.mapping, source, &bench.service).expect("a region");
        (Self::welcomed(there, kind), served)
    }

    pub(super) fn welcomed(wire: Wire, kind: RemoteKind) -> Self {
        Self::welcomed_to(wire, kind, 8)
    }

    /// A client that maps the first `pages` pages.
    pub(super) fn welcomed_to(wire: Wire, kind: RemoteKind, pages: usize) -> Self {
        let memory = memory(&wire);
        let kind = match kind {
            RemoteKind::Shared => Kind::Shared,
            RemoteKind::ReadOnly => Kind::PrivateReadOnly,
            RemoteKind::Private => Kind::Private,
        };
        let view = View::of_fd(memory, 0, pages * PAGE_SIZE, kind).expect("a view");
        Self { wire, view }
    }

    pub(super) fn say(&self, done: u64, what: Asked) {
        let packet = FromClient { done, what };
        self.wire.send(&packet, None, true).expect("said");
    }

    pub(super) fn hear(&self) -> FromDaemon {
        match self.wire.receive(true) {
            Ok(Found::Packet(packet, None)) => packet,
            other => panic!("{other:?}"),
        }
    }

    /// Asks for `page` and is given a right to it.
    pub(super) fn get(&self, page: u64, is_store: bool) {
        self.say(
            0,
            Asked::Fault {
                page,
                is_store,
                met_hole: false,
            },
        );
        let what = self.hear().what;
        let writable = is_store;
        assert!(
            matches!(what, ToClient::Map { first, end, writable: given, .. }
                if first <= page && page < end && given == writable),
            "{what:?}"
        );
    }
}

fn memory(wire: &Wire) -> OwnedFd {
    match wire.receive(true) {
        Ok(Found::Packet(Opened::Welcome { .. }, Some(memory))) => memory,
        other => panic!("{other:?}"),
    }
}

/// What `what` took.
fn time(what: impl FnOnce()) -> Duration {
    let start = Instant::now();
    what();
    start.elapsed()
}

/// Not waited for as long as for one that does not answer.
const AT_ONCE: Duration = PATIENCE
    .checked_sub(Duration::from_millis(100))
    .expect("longer than that");

/// Waited for as long as is promised, and not for ever.
fn is_patience(time: Duration) -> bool {
    time >= AT_ONCE && time < NEVER
}

#[test]
fn a_client_that_does_not_answer_is_waited_for_once_and_its_pages_are_frozen() {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let (fake, served) = Fake::new(&bench, RemoteKind::Shared);
    for page in [0, 1] {
        fake.get(page, true);
    }
    fake.view.store(0, &[1; 10]);
    assert!(is_patience(time(|| bench.sync().expect("synced"))));
    assert_eq!(
        bench.disk().contents()[..11],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    );
    assert_eq!(look(&fake.view, 0), Seen::Nothing, "taken out");
    // It answers nothing; others fault the page in, and it is told of nothing that has to be waited for.
    for value in 2..6 {
        bench.write(0, &[value; 10]).expect("written");
        fake.view.store(10, &[value; 10]);
        assert!(time(|| bench.sync().expect("synced")) < AT_ONCE);
        assert_eq!(bench.disk().contents()[..20], [value; 20]);
        assert!(time(|| bench.punch(4 * PAGE..5 * PAGE)) < AT_ONCE);
    }
    assert!(!served.source().is_cut_off());
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn every_store_until_the_freeze_is_written_and_later_ones_ask() {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let (guard, _served) = map(&bench, 0..8, RemoteKind::Shared);
    store(&guard, 0, &[1]);
    // The guard's thread stops at what it has to say about this load, and hears nothing any more.
    let held = guard.hold();
    let stuck = {
        let guard = guard.clone();
        Task::start(move || load(&guard, 5 * PAGE, 1))
    };
    assert!(!stuck.is_over_shortly());
    let syncer = {
        let bench = bench.clone();
        Task::start(move || time(|| bench.sync().expect("synced")))
    };
    // While it is waited for.
    assert!(!syncer.is_over_shortly());
    store(&guard, 100, &[2]);
    assert!(is_patience(syncer.finish()));
    let contents = bench.disk().contents();
    assert_eq!((contents[0], contents[100]), (1, 2));
    let late = {
        let guard = guard.clone();
        Task::start(move || store(&guard, 200, &[3]))
    };
    assert!(!late.is_over_shortly(), "it faults");
    assert_eq!(bench.mapping.dirty_pages(), 0);
    drop(held);
    late.finish();
    stuck.finish();
    assert_eq!(bench.mapping.dirty_pages(), 1);
    // By now it has answered: it is waited for, as others are.
    assert!(time(|| bench.sync().expect("synced")) < AT_ONCE);
    assert_eq!(bench.disk().contents()[200], 3);
    assert_ne!(
        look(guard.view(), 0),
        Seen::Nothing,
        "protected, not frozen"
    );
    assert_eq!(bench.disk().violations(), 0);
}

#[test]
fn a_right_is_waited_for_until_it_is_too_old_and_no_longer() {
    let bench = Bench::new(stamped_disk(8));
    let (fake, served) = Fake::new(&bench, RemoteKind::ReadOnly);
    let source = served.source();
    fake.get(3, false);
    assert!(
        time(|| source.settle(100..200).wait()) < AT_ONCE,
        "other pages"
    );
    assert!(is_patience(time(|| source.settle(3..4).wait())));
    assert!(time(|| source.settle(3..4).wait()) < AT_ONCE, "old by now");
    // It owes an answer, so it gets no right that somebody would have to wait for.
    source.map(3..4, false).expect("told");
    assert!(time(|| source.settle(3..4).wait()) < AT_ONCE);
    let told: Vec<_> = (0..2).map(|_| fake.hear()).collect();
    assert_eq!(told[0].what, ToClient::Settle);
    assert!(told[0].is_waited_for);
    assert_eq!(told[1].what, ToClient::Wake { first: 3, end: 4 });
    // It answers.
    fake.say(3, Asked::Nothing);
    wait_until(|| {
        source.map(3..4, false).expect("told");
        matches!(fake.hear().what, ToClient::Map { .. })
    });
    // One that is old already when somebody comes.
    std::thread::sleep(PATIENCE);
    assert!(time(|| source.settle(3..4).wait()) < AT_ONCE);
    assert!(!source.is_cut_off());
}

#[test]
fn a_right_is_not_waited_for_once_it_is_acknowledged() {
    let bench = Bench::new(stamped_disk(8));
    let (fake, served) = Fake::new(&bench, RemoteKind::ReadOnly);
    fake.get(3, false);
    let settler = {
        let bench = bench.clone();
        Task::start(move || time(|| bench.punch(0..8 * PAGE)))
    };
    assert_eq!(fake.hear().what, ToClient::Settle);
    assert!(!settler.0.is_finished());
    fake.say(1, Asked::Nothing);
    assert!(settler.finish() < AT_ONCE);
    drop(served);
}

/// As [`is_cut_off_for`], while nothing can be read from the disk.
fn is_cut_off_while_reading_stops(packets: &[(u64, Asked)]) -> bool {
    let bench = Bench::new(stamped_disk(16));
    bench.disk().stop_at(Stop::BeforeRead);
    is_cut_off_by(&bench, RemoteKind::Shared, packets)
}

/// Whether a client that sends `packets` is cut off for it.
fn is_cut_off_for(kind: RemoteKind, packets: &[(u64, Asked)]) -> bool {
    is_cut_off_by(&Bench::new(stamped_disk(16)), kind, packets)
}

fn is_cut_off_by(bench: &Bench, kind: RemoteKind, packets: &[(u64, Asked)]) -> bool {
    let (fake, served) = Fake::new(bench, kind);
    for &(done, what) in packets {
        fake.say(done, what);
    }
    let start = Instant::now();
    while !served.source().is_cut_off() {
        let is_told = fake.wire.receive::<FromDaemon>(false);
        if matches!(is_told, Ok(Found::Packet(..))) || start.elapsed() > NEVER {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let is_cut_off = served.source().is_cut_off();
    bench.disk().go_on();
    is_cut_off
}

#[test]
fn who_makes_no_sense_is_cut_off() {
    let fault = |page, is_store| {
        (
            0,
            Asked::Fault {
                page,
                is_store,
                met_hole: false,
            },
        )
    };
    use RemoteKind::{Private, ReadOnly, Shared};
    assert!(!is_cut_off_for(Shared, &[fault(7, true)]));
    assert!(!is_cut_off_for(Private, &[fault(7, true)]));
    assert!(!is_cut_off_for(ReadOnly, &[fault(7, false)]));
    assert!(is_cut_off_for(ReadOnly, &[fault(7, true)]));
    assert!(is_cut_off_for(Shared, &[fault(8, false)]), "outside");
    let populate = |first, end| (0, Asked::Populate { first, end });
    assert!(!is_cut_off_for(Shared, &[populate(0, 8)]));
    assert!(is_cut_off_for(Shared, &[populate(0, 9)]));
    let twice = [populate(0, 8), populate(0, 8)];
    let is_cut_off = is_cut_off_while_reading_stops(&twice);
    assert!(is_cut_off, "one at a time");
    assert!(is_cut_off_for(Shared, &[(1, Asked::Nothing)]), "not said");
    assert!(!is_cut_off_for(Shared, &[(0, Asked::Clock)]));
}

/// Its faults take all that they may of the threads, and its own; another file's client finds one.
#[test]
fn a_client_with_many_slow_faults_leaves_threads_to_others() {
    const FAULTS: u64 = 200;
    const PAGES: u64 = 40;
    let (slow, other) = (Bench::new(stamped_disk(PAGES)), Bench::new(stamped_disk(8)));
    slow.disk().stop_at(Stop::BeforeRead);
    let (here, there) = pair();
    let open = open_of(0..PAGES, RemoteKind::ReadOnly);
    let source = source_of(&slow, here, &open);
    let served = Region::of_source(&slow.mapping, source, &slow.service).expect("a region");
    let fake = Fake::welcomed(there, RemoteKind::ReadOnly);
    for nr in 0..FAULTS {
        let fault = Asked::Fault {
            page: nr % PAGES,
            is_store: false,
            met_hole: false,
        };
        fake.say(0, fault);
    }
    slow.disk().wait_stopped(1);
    wait_until(|| served.in_service.is_full());
    let (guard, source) = connect(&other, 0..8, RemoteKind::Shared);
    let _others = Region::of_source(&other.mapping, source, &slow.service).expect("a region");
    let guard = guard.finish();
    let load = Task::start(move || load(&guard, 3 * PAGE, PAGE_SIZE));
    assert_eq!(load.finish(), stamped(3));
    assert!(served.in_service.is_full(), "nothing moved there");
    slow.disk().go_on();
    // Each is served in the end.
    for _ in 0..FAULTS {
        let what = fake.hear().what;
        assert!(matches!(what, ToClient::Map { .. }), "{what:?}");
    }
    assert!(!served.source().is_cut_off());
}

/// It has what it asks for mapped, and costs what its faults cost.
#[test]
fn who_says_that_there_is_a_hole_is_not_believed() {
    let bench = Bench::new(stamped_disk(8));
    let (fake, served) = Fake::new(&bench, RemoteKind::ReadOnly);
    bench.read(0, 8 * PAGE_SIZE).expect("read");
    bench.write(2 * PAGE, &[9; 10]).expect("written");
    bench.disk().take_reads();
    let mut heard = 0;
    for _ in 0..50 {
        for page in 0..8 {
            fake.say(
                heard,
                Asked::Fault {
                    page,
                    is_store: false,
                    met_hole: true,
                },
            );
            let what = fake.hear().what;
            assert!(
                matches!(what, ToClient::Map { first, end, .. } if first <= page && page < end),
                "{what:?}"
            );
            heard += 1;
        }
    }
    assert!(!served.source().is_cut_off());
    assert_eq!(bench.mapping.nr_pages(), 8, "nothing was dropped");
    assert_eq!(bench.disk().take_reads(), []);
    assert_eq!(bench.mapping.dirty_pages(), 1);
    assert_eq!(bench.read(2 * PAGE, 10), Ok(vec![9; 10]), "nor undone");
}

#[test]
fn acknowledgements_that_become_less_and_packets_of_no_kind_are_nonsense() {
    let bench = Bench::new(stamped_disk(8));
    let (fake, served) = Fake::new(&bench, RemoteKind::Shared);
    fake.get(3, false);
    fake.say(1, Asked::Nothing);
    fake.say(0, Asked::Nothing);
    wait_until(|| served.source().is_cut_off());

    let (fake, served) = Fake::new(&bench, RemoteKind::Shared);
    pagefence_host_memory::fd_passing::send(&fake.wire, b"hello", None).expect("said");
    wait_until(|| served.source().is_cut_off());
}

#[test]
fn who_does_not_empty_his_socket_is_cut_off_and_his_stores_are_kept() {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let (here, there) = pair();
    let open = open_of(0..8, RemoteKind::Shared);
    let source = source_of(&bench, here, &open);
    let server = {
        let (mapping, service) = (bench.mapping.clone(), bench.service.clone());
        Task::start(move || serve_until_over(&mapping, source, &service))
    };
    let fake = Fake::welcomed(there, RemoteKind::Shared);
    fake.get(0, true);
    fake.view.store(0, &[7; 10]);
    let start = Instant::now();
    // Each is answered by a packet.
    while !server.0.is_finished() {
        let packet = FromClient {
            done: 0,
            what: Asked::Clock,
        };
        let _ = fake.wire.send(&packet, None, true);
        assert!(start.elapsed() < NEVER, "it is served for ever");
    }
    server.finish().expect("served");
    // Who watches its pages has gone, so they were taken from it first.
    assert_eq!(bench.mapping.dirty_pages(), 0);
    assert_eq!(bench.disk().contents()[..10], [7; 10]);
    assert_eq!(look(&fake.view, 0), Seen::Nothing);
    assert!(time(|| bench.punch(0..8 * PAGE)) < AT_ONCE);
}

#[test]
fn a_client_that_goes_is_waited_for_no_longer() {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let (fake, _served) = Fake::new(&bench, RemoteKind::Shared);
    fake.get(0, true);
    fake.view.store(0, &[7; 10]);
    let syncer = {
        let bench = bench.clone();
        Task::start(move || time(|| bench.sync().expect("synced")))
    };
    assert!(!syncer.is_over_shortly());
    drop(fake);
    assert!(syncer.finish() < PATIENCE);
    assert_eq!(bench.disk().contents()[..10], [7; 10]);
}

#[test]
fn who_waits_for_a_client_hears_it_while_the_fault_loop_is_busy() {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let (guard, _served) = map(&bench, 0..8, RemoteKind::Shared);
    store(&guard, 0, &[1]);
    // A store's space is reserved by the fault loop itself.
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    {
        let gate = Arc::clone(&gate);
        bench.disk().on_reserve(move || drop(gate.lock()));
    }
    let storing = {
        let guard = guard.clone();
        Task::start(move || store(&guard, 5 * PAGE, &[1]))
    };
    assert!(!storing.is_over_shortly());
    let sync = || {
        bench.mapping.write_back(
            &mut pagefence_lock_order::Held::at_entry(),
            0..PAGE,
            pagefence_page_cache::WaitFor::Own,
        )
    };
    assert!(time(|| sync().expect("synced")) < AT_ONCE);
    assert_ne!(
        look(guard.view(), 0),
        Seen::Nothing,
        "protected, not frozen"
    );
    drop(closed);
    storing.finish();
    bench.sync().expect("synced");
    assert_eq!(bench.disk().contents()[5 * PAGE_SIZE], 1);
}

#[test]
fn who_was_silent_hears_of_a_smaller_file_when_he_answers() {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let (fake, _served) = Fake::new(&bench, RemoteKind::Shared);
    fake.get(0, true);
    bench.sync().expect("synced");
    assert!(time(|| bench.truncate(3 * PAGE)) < AT_ONCE);
    let protect = ToClient::Protect { first: 0, end: 1 };
    assert_eq!(fake.hear().what, protect);
    assert!(matches!(
        fake.wire.receive::<FromDaemon>(false),
        Ok(Found::Nothing)
    ));
    fake.say(2, Asked::Nothing);
    assert_eq!(
        fake.hear().what,
        ToClient::Size {
            bytes: 3 * PAGE,
            is_answer: false
        }
    );
}

#[test]
fn a_descriptor_that_a_client_sends_is_not_taken_in() {
    let bench = Bench::new(stamped_disk(8));
    let (fake, served) = Fake::new(&bench, RemoteKind::ReadOnly);
    let (mut reader, writer) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let what = Asked::Fault {
        page: 3,
        is_store: false,
        met_hole: false,
    };
    let packet = FromClient { done: 0, what };
    let sent = fake.wire.send(&packet, Some(writer.as_fd()), true);
    sent.expect("said");
    drop(writer);
    let heard = fake.hear().what;
    assert!(matches!(heard, ToClient::Map { .. }), "{heard:?}");
    let mut buffer = [0];
    let count = std::io::Read::read(&mut reader, &mut buffer);
    assert_eq!(count.ok(), Some(0), "nobody has it");
    drop(served);
}

#[test]
fn however_much_was_poisoned_is_cured_by_one_packet() {
    let bench = Bench::new(stamped_disk(8));
    bench.truncate(PAGE);
    let (fake, served) = Fake::new(&bench, RemoteKind::Shared);
    for page in 1..8 {
        let is_store = page % 2 == 0;
        let met_hole = false;
        fake.say(
            page - 1,
            Asked::Fault {
                page,
                is_store,
                met_hole,
            },
        );
        assert_eq!(fake.hear().what, ToClient::Poison { page });
    }
    let grow = {
        let bench = Arc::clone(&bench);
        Task::start(move || bench.truncate(8 * PAGE))
    };
    assert_eq!(fake.hear().what, ToClient::Cure { first: 1, end: 8 });
    assert_eq!(fake.hear().what, ToClient::Settle);
    fake.say(9, Asked::Nothing);
    grow.finish();
    drop(served);
}

#[test]
fn a_client_that_is_slow_is_not_told_more_than_it_can_hear() {
    let bench = Bench::with(stamped_disk(2_000), 16 << 20, 0);
    let (guard, served) = map(&bench, 0..2_000, RemoteKind::Shared);
    guard.advise(crate::remote::Advised::Random);
    // Each of them is a packet of its own; the wire has room for some hundreds.
    let held = guard.hold();
    let populating = {
        let guard = Arc::clone(&guard);
        Task::start(move || guard.populate(0..2_000))
    };
    assert!(!populating.is_over_shortly());
    drop(held);
    populating.finish().expect("populated");
    assert!(!served.source().is_cut_off());
    assert_eq!(load(&guard, 1_999 * PAGE, 8), stamped(1_999)[..8]);
}

#[test]
fn a_view_that_no_file_needs_is_refused() {
    let bench = Bench::new(stamped_disk(8));
    for pages in [0..u64::MAX, 0..(1 << 28) + 1, 1 << 51..(1 << 51) + 1] {
        let (here, _there) = pair();
        let open = open_of(pages.clone(), RemoteKind::ReadOnly);
        let refused = RemoteSource::new(here, &open, bench.memory(), || 0);
        let kind = refused.map(drop).map_err(|(_, error)| error.kind());
        assert_eq!(kind, Err(std::io::ErrorKind::InvalidInput), "{pages:?}");
    }
}

#[test]
fn faults_that_wait_for_the_disk_hold_up_nobody_else() {
    let bench = Bench::new(stamped_disk(200));
    let (guard, _served) = map(&bench, 0..200, RemoteKind::Shared);
    bench.read(0, PAGE_SIZE).expect("cached");
    bench.disk().stop_at(Stop::BeforeRead);
    let waiting: Vec<_> = [40, 60, 80, 100]
        .into_iter()
        .map(|page| {
            let guard = guard.clone();
            Task::start(move || load(&guard, page * PAGE, 8) == page.to_le_bytes())
        })
        .collect();
    // A client gets half of two threads; the others stand in line.
    bench.disk().wait_stopped(1);
    assert_eq!(load(&guard, 0, 8), [0; 8]);
    bench.disk().go_on();
    assert!(waiting.into_iter().all(Task::finish));
}
