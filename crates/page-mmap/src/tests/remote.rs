//! Files that are mapped by a guard, which asks their cache over a socket: both ends in one process.

mod clients;
mod end;
mod late;
mod mutants;
mod old_rights;
mod smoke;
pub(super) mod space;
mod strays;

use std::ops::Range;
use std::time::Instant;

use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::Backing;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::disk::Disk;
use super::{Bench, NEVER, PAGE, Task};
use crate::remote::wire::Found;
use crate::remote::{Guard, Open, RemoteKind, RemoteSource, Ticket, Wire};
use crate::{Faults, Kind, Region, View};

/// A region whose faults come from a socket.
type Served = Region<Disk, RemoteSource>;

/// A connection.
fn pair() -> (Wire, Wire) {
    let (one, other) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("sockets");
    (Wire::from(one), Wire::from(other))
}

fn kind_of(kind: Kind) -> RemoteKind {
    match kind {
        Kind::Shared => RemoteKind::Shared,
        Kind::Private => RemoteKind::Private,
        Kind::SharedReadOnly | Kind::PrivateReadOnly => RemoteKind::ReadOnly,
    }
}

fn open_of(pages: Range<u64>, kind: RemoteKind) -> Open {
    Open {
        ticket: Ticket([7; 16]),
        first: pages.start,
        end: pages.end,
        kind,
    }
}

/// The daemon's end of a map of the file of `bench`.
fn source_of(bench: &Bench, wire: Wire, open: &Open) -> RemoteSource {
    let mapping = Arc::clone(&bench.mapping);
    let size = move || mapping.backing().size();
    RemoteSource::new(wire, open, bench.memory(), size).expect("a source")
}

/// The client's end.
fn guard_of(wire: Wire, open: &Open) -> Guard {
    let bytes = usize::try_from((open.end - open.first) * PAGE).expect("small");
    Guard::open(wire, open, bytes, Faults::OfPrograms).expect("a guard")
}

/// Both ends of a map of `pages` of the file of `bench`.
fn map(bench: &Bench, pages: Range<u64>, kind: RemoteKind) -> (Arc<Guard>, Served) {
    let (guard, source) = connect(bench, pages, kind);
    let served = Region::of_source(&bench.mapping, source, &bench.service).expect("a region");
    (Arc::new(guard.finish()), served)
}

/// A client that waits for its answer, and the daemon's end of the connection.
fn connect(bench: &Bench, pages: Range<u64>, kind: RemoteKind) -> (Task<Guard>, RemoteSource) {
    let (here, there) = pair();
    let open = open_of(pages, kind);
    let guard = Task::start(move || guard_of(there, &open));
    let Ok(Found::Packet(asked, None)) = here.receive::<Open>(true) else {
        panic!("no request");
    };
    assert_eq!(asked, open);
    (guard, source_of(bench, here, &asked))
}

fn at(view: &View, offset: u64) -> usize {
    usize::try_from(offset - view.pages().start * PAGE).expect("inside")
}

fn load(guard: &Guard, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xEE; len];
    guard.view().load(at(guard.view(), offset), &mut bytes);
    bytes
}

fn store(guard: &Guard, offset: u64, bytes: &[u8]) {
    guard.view().store(at(guard.view(), offset), bytes);
}

/// Waits until `what` is so.
fn wait_until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < NEVER, "it never comes");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
