//! Clients that answer late: many cost no more than one, and one that does so again and again waits himself.

use std::time::Instant;

use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::PAGE_SIZE;

use super::clients::Fake;
use super::{Served, open_of, pair, source_of, wait_until};
use crate::Region;
use crate::fault_source::FaultSource;
use crate::remote::wire::{Asked, ToClient};
use crate::remote::{Account, PATIENCE, RemoteKind};
use crate::tests::disk::Disk;
use crate::tests::eyes::{Seen, look};
use crate::tests::{Bench, PAGE, Task, stamped_disk};

const CLIENTS: usize = 3;

/// Whether clients that answer when all of them have been asked, and not before, have answered in time.
fn are_waited_for_together() -> bool {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| Fake::new(&bench, RemoteKind::Shared))
        .collect();
    for (fake, _) in &clients {
        fake.get(0, true);
        fake.view.store(0, &[7; 10]);
    }
    let syncer = {
        let bench = bench.clone();
        Task::start(move || bench.sync().expect("synced"))
    };
    for (fake, _) in &clients {
        assert_eq!(fake.hear().what, ToClient::Protect { first: 0, end: 1 });
    }
    for (fake, _) in &clients {
        fake.say(2, Asked::Nothing);
    }
    syncer.finish();
    assert_eq!(bench.disk().contents()[..10], [7; 10]);
    // Nobody's page was taken out of the memory.
    clients
        .iter()
        .all(|(fake, _)| look(&fake.view, 0) != Seen::Nothing)
}

#[test]
fn clients_are_asked_together_and_waited_for_together() {
    // A machine may stand still for so long that they are late all the same.
    assert!((0..5).any(|_| are_waited_for_together()));
}

#[test]
fn an_answer_that_nobody_had_the_time_to_hear_was_not_late() {
    let bench = Bench::new(stamped_disk(8));
    let (here, there) = pair();
    // Nobody serves it but this thread.
    let source = source_of(&bench, here, &open_of(0..8, RemoteKind::Shared));
    source.read(&mut Vec::new()).expect("greeted");
    let fake = Fake::welcomed(there, RemoteKind::Shared);
    source.map(0..1, true).expect("told");
    let answer = source.protect(0..1);
    fake.say(2, Asked::Nothing);
    std::thread::sleep(PATIENCE);
    answer.wait();
    source.map(0..1, false).expect("told");
    let told: Vec<_> = (0..3).map(|_| fake.hear().what).collect();
    assert!(matches!(told[2], ToClient::Map { .. }), "silent: {told:?}");
}

#[test]
fn the_time_of_an_answer_begins_when_it_is_asked_for() {
    let bench = Bench::new(stamped_disk(8));
    let (here, there) = pair();
    let account = Arc::<Account>::default();
    let source = source_of(&bench, here, &open_of(0..8, RemoteKind::Shared));
    let source = source.charged_to(Arc::clone(&account));
    source.read(&mut Vec::new()).expect("greeted");
    let _fake = Fake::welcomed(there, RemoteKind::Shared);
    bench.memory().write(0, 0, &[1; PAGE_SIZE]);
    source.map(0..1, true).expect("told");
    let answers = [(); 3].map(|()| source.protect(0..1));
    std::thread::sleep(PATIENCE);
    // As long as others were waited for: it is late by now, and costs nobody a moment more.
    answers.into_iter().for_each(|answer| answer.wait());
    assert!(account.is_even(Instant::now()), "waited for beyond that");
}

#[test]
fn who_only_loads_is_not_asked_when_others_stores_are_written() {
    let bench = Bench::new(stamped_disk(8));
    let clients = [(); 2].map(|()| Fake::new(&bench, RemoteKind::Shared));
    let [(storing, _), (loading, _)] = &clients;
    loading.get(3, false);
    for turn in 0..2 {
        storing.say(
            2 * turn,
            Asked::Fault {
                page: 3,
                is_store: true,
                met_hole: false,
            },
        );
        assert!(matches!(storing.hear().what, ToClient::Map { .. }));
        let syncer = {
            let bench = bench.clone();
            Task::start(move || bench.sync().expect("synced"))
        };
        assert_eq!(storing.hear().what, ToClient::Protect { first: 3, end: 4 });
        storing.say(2 * turn + 2, Asked::Nothing);
        syncer.finish();
    }
    loading.say(0, Asked::Clock);
    let told = loading.hear().what;
    assert!(matches!(told, ToClient::Clock { .. }), "{told:?}");
}

/// A client whose account is overdrawn, and what serves it.
fn overdrawn(bench: &Bench, kind: RemoteKind) -> (Fake, Served, Arc<Account>) {
    let (here, there) = pair();
    let account = Arc::<Account>::default();
    let source = source_of(bench, here, &open_of(0..8, kind)).charged_to(Arc::clone(&account));
    let served = Region::of_source(&bench.mapping, source, &bench.service).expect("a region");
    (Fake::welcomed(there, kind), served, account)
}

#[test]
fn who_is_late_again_and_again_is_asked_nothing_and_waits_himself() {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let (fake, served, account) = overdrawn(&bench, RemoteKind::Shared);
    let (other, _others) = Fake::new(&bench, RemoteKind::ReadOnly);
    fake.get(0, true);
    fake.view.store(0, &[7; 10]);
    fake.say(1, Asked::Nothing);
    wait_until(|| served.source().is_settled(0..8));
    account.charge(10 * PATIENCE, Instant::now());
    bench.sync().expect("synced");
    assert_eq!(bench.disk().contents()[..10], [7; 10]);
    assert_eq!(look(&fake.view, 0), Seen::Nothing, "taken out");
    // Its faults are put off, and there is nothing to settle.
    let fault = Asked::Fault {
        page: 0,
        is_store: true,
        met_hole: false,
    };
    fake.say(1, fault);
    wait_until(|| served.source().puts_off());
    assert!(served.source().is_settled(0..8));
    // Others' are not.
    other.get(0, false);
    fake.say(1, Asked::Clock);
    let told = fake.hear().what;
    assert!(matches!(told, ToClient::Clock { .. }), "{told:?}");
    // When it is good again, it is told to ask again, and served.
    account.forget();
    fake.say(2, Asked::Clock);
    let told = [fake.hear().what, fake.hear().what];
    assert!(matches!(told[0], ToClient::Clock { .. }), "{told:?}");
    assert_eq!(told[1], ToClient::Wake { first: 0, end: 8 });
    fake.say(3, fault);
    let told = fake.hear().what;
    assert!(matches!(told, ToClient::Map { first: 0, .. }), "{told:?}");
    assert!(!served.source().is_cut_off());
}

#[test]
fn what_was_put_off_is_taken_up_again_in_time() {
    let bench = Bench::new(stamped_disk(8));
    let (fake, _served, account) = overdrawn(&bench, RemoteKind::ReadOnly);
    // Half a second more.
    let before = Instant::now().checked_sub(PATIENCE * 39 / 2);
    account.charge(4 * PATIENCE, before.expect("the machine is up"));
    let fault = Asked::Fault {
        page: 3,
        is_store: false,
        met_hole: false,
    };
    fake.say(0, fault);
    // Unless that took so long itself.
    let told = fake.hear().what;
    assert!(
        matches!(told, ToClient::Wake { .. } | ToClient::Map { .. }),
        "{told:?}"
    );
}

#[test]
fn a_reader_that_does_not_answer_keeps_nobody_from_other_pages() {
    let bench = Bench::new(stamped_disk(40));
    let (fake, _served) = Fake::new(&bench, RemoteKind::ReadOnly);
    fake.get(3, false);
    let held = bench.mapping.nr_pages();
    bench.read(20 * PAGE, 20 * PAGE_SIZE).expect("read");
    assert!(bench.mapping.nr_pages() > held);
    while bench.mapping.nr_pages() > held {
        bench.cache.shrink(PAGE);
    }
    fake.say(0, Asked::Clock);
    let told = fake.hear().what;
    assert!(
        matches!(told, ToClient::Clock { .. }),
        "asked before: {told:?}"
    );
}
