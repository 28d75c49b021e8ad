//! A daemon by hand, whose rights arrive late.

use std::os::fd::AsFd;
use std::time::Duration;

use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{FileMemory, PAGE_SIZE};
use rustix::io::Errno;

use super::{guard_of, load, open_of, pair, wait_until};
use crate::mutants::Mutant;
use crate::remote::wire::{Asked, Found, FromClient, FromDaemon, ToClient};
use crate::remote::{Guard, GuardError, Open, Opened, PATIENCE, RemoteKind, Wire, clock};
use crate::tests::eyes::{Seen, look};
use crate::tests::{PAGE, Task};
use crate::{Faults, View};

/// Answers a client.
struct Daemon {
    wire: Wire,
    memory: Arc<FileMemory>,
    /// Its clock goes ahead of the client's by so much.
    ahead: u64,
}

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

impl Daemon {
    /// A client of eight pages; its memory has eights.
    fn new(kind: RemoteKind, ahead: u64) -> (Self, Arc<Guard>) {
        let (here, there) = pair();
        let open = open_of(0..8, kind);
        let guard = Task::start(move || guard_of(there, &open));
        let memory = FileMemory::new().expect("memory");
        memory.write(0, 0, &[8; 8 * PAGE_SIZE]);
        let daemon = Self {
            wire: here,
            memory,
            ahead,
        };
        assert!(matches!(
            daemon.wire.receive::<Open>(true),
            Ok(Found::Packet(_, None))
        ));
        let welcome = Opened::Welcome {
            size: 8 * PAGE,
            now: daemon.clock(),
        };
        let fd = daemon.memory.for_writing().expect("a descriptor");
        daemon
            .wire
            .send(&welcome, Some(fd.as_fd()), false)
            .expect("sent");
        let guard = Arc::new(guard.finish());
        assert_eq!(daemon.hear().what, Asked::Clock, "right away");
        daemon.say(ToClient::Clock {
            now: daemon.clock(),
        });
        (daemon, guard)
    }

    fn clock(&self) -> u64 {
        clock() + self.ahead
    }

    fn say(&self, what: ToClient) {
        let packet = FromDaemon {
            is_waited_for: false,
            what,
        };
        self.wire.send(&packet, None, false).expect("said");
    }

    fn hear(&self) -> FromClient {
        match self.wire.receive(true) {
            Ok(Found::Packet(packet, None)) => packet,
            other => panic!("{other:?}"),
        }
    }

    fn map(&self, now: u64) {
        let (first, end) = (3, 4);
        self.say(ToClient::Map {
            first,
            end,
            writable: false,
            now,
        });
    }

    /// A fault at the page that is mapped, for which it is not waited any more when `load` is over.
    fn hear_fault(&self) {
        let fault = Asked::Fault {
            page: 3,
            is_store: false,
            met_hole: false,
        };
        assert_eq!(self.hear().what, fault);
    }
}

fn start_load(guard: &Arc<Guard>) -> Task<Vec<u8>> {
    let guard = Arc::clone(guard);
    Task::start(move || load(&guard, 3 * PAGE, 2))
}

#[test]
fn a_right_that_is_too_old_is_asked_for_again() {
    for (kind, ahead) in [
        (RemoteKind::Shared, 0),
        (RemoteKind::Private, 1000 * SECOND),
        (RemoteKind::ReadOnly, 0),
    ] {
        let (daemon, guard) = Daemon::new(kind, ahead);
        let loading = start_load(&guard);
        daemon.hear_fault();
        for _ in 0..3 {
            daemon.map(daemon.clock() - SECOND * 6 / 10);
            // It asks for the clock, and again for the page; in any order.
            let asked = [daemon.hear().what, daemon.hear().what];
            assert!(asked.contains(&Asked::Clock), "{asked:?}");
            assert!(
                asked.contains(&Asked::Fault {
                    page: 3,
                    is_store: false,
                    met_hole: false,
                }),
                "{asked:?}"
            );
            daemon.say(ToClient::Clock {
                now: daemon.clock(),
            });
            assert_eq!(look(guard.view(), 3), Seen::Nothing);
        }
        assert!(!loading.0.is_finished());
        daemon.map(daemon.clock());
        assert_eq!(loading.finish(), [8, 8]);
        assert!(!guard.is_over());
    }
}

#[test]
fn without_a_look_at_the_age_an_old_right_is_made_use_of() {
    let (daemon, guard) = Daemon::new(RemoteKind::Shared, 0);
    guard.leave_out(Mutant::Age);
    let loading = start_load(&guard);
    daemon.hear_fault();
    daemon.map(daemon.clock() - SECOND * 6 / 10);
    assert_eq!(loading.finish(), [8, 8]);
}

#[test]
fn a_greeting_that_took_long_is_made_up_for() {
    // As if the daemon's clock had been read much later than the request was sent.
    let (daemon, guard) = Daemon::new(RemoteKind::Shared, 0);
    drop(guard);
    drop(daemon);
    let (here, there) = pair();
    let open = open_of(0..8, RemoteKind::Shared);
    let guard = Task::start(move || guard_of(there, &open));
    std::thread::sleep(PATIENCE);
    let memory = FileMemory::new().expect("memory");
    memory.write(0, 0, &[8; 8 * PAGE_SIZE]);
    let daemon = Daemon {
        wire: here,
        memory,
        ahead: 0,
    };
    assert!(matches!(
        daemon.wire.receive::<Open>(true),
        Ok(Found::Packet(_, None))
    ));
    let welcome = Opened::Welcome {
        size: 8 * PAGE,
        now: clock(),
    };
    let fd = daemon.memory.for_writing().expect("a descriptor");
    daemon
        .wire
        .send(&welcome, Some(fd.as_fd()), false)
        .expect("sent");
    let guard = Arc::new(guard.finish());
    let loading = start_load(&guard);
    let mut told = 0;
    while !loading.0.is_finished() {
        match daemon.wire.receive::<FromClient>(false) {
            Ok(Found::Packet(packet, _)) => match packet.what {
                Asked::Clock => daemon.say(ToClient::Clock { now: clock() }),
                _ => {
                    told += 1;
                    daemon.map(clock());
                }
            },
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    assert_eq!(loading.finish(), [8, 8]);
    assert!(told < 100, "told {told} times");
}

#[test]
fn what_is_mapped_in_part_is_mapped_the_rest_of_the_way() {
    let (daemon, guard) = Daemon::new(RemoteKind::Shared, 0);
    let map = |first, end, writable| {
        let now = daemon.clock();
        daemon.say(ToClient::Map {
            first,
            end,
            writable,
            now,
        });
    };
    map(2, 4, false);
    daemon.memory.punch(5..6);
    map(0, 8, true);
    // A hole stays one, and what was mapped before can be stored to.
    wait_until(|| look(guard.view(), 7) != Seen::Nothing);
    for page in [0, 1, 2, 3, 4, 6, 7] {
        guard
            .view()
            .store(usize::try_from(page * PAGE).expect("small"), &[1]);
    }
    assert_eq!(look(guard.view(), 5), Seen::Nothing);
    let loading = {
        let guard = Arc::clone(&guard);
        Task::start(move || load(&guard, 5 * PAGE, 1))
    };
    assert_eq!(
        daemon.hear().what,
        Asked::Fault {
            page: 5,
            is_store: false,
            met_hole: false,
        }
    );
    // Given before there is memory: it is asked for again, and why.
    map(5, 6, false);
    assert_eq!(
        daemon.hear().what,
        Asked::Fault {
            page: 5,
            is_store: false,
            met_hole: true,
        }
    );
    daemon.memory.write(5, 0, &[9]);
    map(5, 6, false);
    assert_eq!(loading.finish(), [9]);
}

#[test]
fn what_is_done_is_acknowledged() {
    let (daemon, guard) = Daemon::new(RemoteKind::Shared, 0);
    for _ in 0..31 {
        daemon.say(ToClient::Settle);
    }
    // With the clock's, 32.
    assert_eq!(
        daemon.hear(),
        FromClient {
            done: 32,
            what: Asked::Nothing
        }
    );
    let packet = FromDaemon {
        is_waited_for: true,
        what: ToClient::Settle,
    };
    daemon.wire.send(&packet, None, false).expect("said");
    assert_eq!(
        daemon.hear(),
        FromClient {
            done: 33,
            what: Asked::Nothing
        }
    );
    drop(guard);
}

#[test]
fn a_daemon_that_makes_no_sense_is_left() {
    let now = clock();
    for what in [
        ToClient::Map {
            first: 7,
            end: 9,
            writable: false,
            now,
        },
        ToClient::Poison { page: 8 },
        ToClient::Wake { first: 0, end: 100 },
        ToClient::Populated { errno: 0 },
        ToClient::Clock { now },
    ] {
        let (daemon, guard) = Daemon::new(RemoteKind::Shared, 0);
        daemon.say(what);
        wait_until(|| guard.is_over());
        assert!(matches!(
            daemon.wire.receive::<FromClient>(true),
            Ok(Found::Over)
        ));
    }
}

#[test]
fn a_guard_ends_though_its_wire_is_full() {
    let (daemon, guard) = Daemon::new(RemoteKind::Shared, 0);
    let adviser = {
        let guard = Arc::clone(&guard);
        Task::start(move || {
            while !guard.is_over() {
                guard.advise(crate::remote::Advised::Random);
            }
        })
    };
    assert!(!adviser.is_over_shortly(), "nobody hears it");
    drop(daemon);
    adviser.finish();
    Task::start(move || drop(guard)).finish();
}

#[test]
fn refusals_and_ends_are_told_apart() {
    let open = open_of(0..8, RemoteKind::Shared);
    let answer = |answer: Option<Opened>| {
        let (here, there) = pair();
        let bytes = 8 * PAGE_SIZE;
        let guard = Task::start(move || Guard::open(there, &open, bytes, Faults::OfPrograms));
        assert!(matches!(
            here.receive::<Open>(true),
            Ok(Found::Packet(_, None))
        ));
        if let Some(answer) = answer {
            here.send(&answer, None, false).expect("sent");
        }
        drop(here);
        guard.finish().expect_err("no map")
    };
    let refused = answer(Some(Opened::Refused {
        errno: Errno::ACCESS.raw_os_error(),
    }));
    assert!(matches!(refused, GuardError::Refused(Errno::ACCESS)));
    let refused = answer(Some(Opened::Refused { errno: i32::MAX }));
    assert!(matches!(refused, GuardError::Refused(Errno::IO)));
    assert!(matches!(answer(None), GuardError::Gone));
    let without_memory = answer(Some(Opened::Welcome { size: 1, now: 1 }));
    assert!(matches!(without_memory, GuardError::System(_)));
    let (_here, there) = pair();
    let too_few = Guard::open(there, &open, PAGE_SIZE, Faults::OfPrograms);
    assert!(matches!(too_few, Err(GuardError::System(_))));
}

#[test]
fn a_view_can_be_touched_by_nobody_but_its_guard_until_it_is_told() {
    // The memory has the page, and it is not there.
    let (daemon, guard) = Daemon::new(RemoteKind::ReadOnly, 0);
    let loading = start_load(&guard);
    daemon.hear_fault();
    assert!(!loading.is_over_shortly());
    let view: &View = guard.view();
    assert_eq!(look(view, 3), Seen::Nothing);
    daemon.map(daemon.clock());
    assert_eq!(loading.finish(), [8, 8]);
}
