//! Maps of a volume's files in other processes: hands out tickets, and serves who comes with one.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use pagefence_ext4::{FileSystem, ShareError};
use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, thread};
use pagefence_page_mmap::remote::{Account, Open, RemoteKind, RemoteSource, Ticket, Wire};
use pagefence_page_mmap::serve_until_over;
use pagefence_vfs::{Error, FileSystem as _, InodeId, WriteMode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, shutdown,
    socket_with,
    sockopt::{set_socket_send_buffer_size, socket_peercred},
};
use uuid::Uuid;

use crate::map::FaultService;

/// How long a ticket is good for.
const TICKET_LASTS: Duration = Duration::from_secs(10);

/// How long who comes has to show a ticket.
const GREETING_LASTS: Duration = Duration::from_secs(2);

/// Tickets that are good at a time.
const TICKETS: usize = 1024;

/// Who is served at a time: each is one map, and takes a thread.
const CLIENTS: usize = 512;

/// Of these, who are of one user, but for this process's own.
const CLIENTS_OF_USER: usize = 128;

/// Bytes that are kept of a client's packets, which are answers to its faults, mostly: as much as anybody may
/// ask for.
const SEND_BUFFER: usize = 208 << 10;

/// Who may wait to be served.
const BACKLOG: i32 = 128;

/// Serves maps of a volume's files to other processes, from [`Volume::serve_maps`]: for a front that makes
/// the volume a mount.
///
/// - Owns: a socket in the abstract namespace, a thread that accepts there, a thread and a connection for
///   each map.
/// - Stays outside: who may open a file. The front says so by asking for a ticket: which names an open
///   file and what it is open for, and is told to nobody but who has it open.
/// - Lifecycle: from [`MapServer::close`] on, or its end, nobody is served and no map is left.
///
/// [`Volume::serve_maps`]: crate::Volume::serve_maps
#[derive(Debug)]
pub struct MapServer {
    shared: Arc<Shared>,
    listener: Arc<OwnedFd>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    fs: std::sync::Arc<FileSystem>,
    faults: std::sync::Arc<FaultService>,
    /// Of the socket.
    name: String,
    /// Entries of `State::stored_to`, for who asks at each request.
    stored_to: AtomicUsize,
    /// A leaf.
    state: Mutex<State>,
    /// There is a client less.
    fewer: Condvar,
}

#[derive(Debug, Default)]
struct State {
    tickets: HashMap<Ticket, Issued>,
    /// How many tickets and maps there are of a file that is open for writing.
    stored_to: HashMap<InodeId, usize>,
    /// When the first of them is too late, or before.
    first_late: Option<Instant>,
    /// Who is served.
    clients: HashMap<u64, Arc<RemoteSource>>,
    /// How many are, or are about to be; and of which users.
    present: usize,
    of_users: HashMap<u32, User>,
    last_client: u64,
    is_closed: bool,
}

/// A user who has maps, or has had others wait for them lately.
#[derive(Debug, Default)]
struct User {
    maps: usize,
    account: Arc<Account>,
}

/// What a ticket is good for.
#[derive(Clone, Copy, Debug)]
struct Issued {
    id: InodeId,
    /// Which of those that had this number it is.
    generation: u32,
    reads: bool,
    writes: bool,
    until: Instant,
}

impl MapServer {
    /// Bytes of a ticket, with where to go with it.
    pub const TICKET_BYTES: usize = 64;

    /// # Errors
    /// No socket or thread can be had.
    pub(crate) fn start(
        fs: std::sync::Arc<FileSystem>,
        faults: std::sync::Arc<FaultService>,
    ) -> io::Result<Self> {
        // Nobody else can have taken the name before.
        let name = format!("pagefence-{}", Uuid::new_v4().simple());
        let flags = SocketFlags::CLOEXEC;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(
            &listener,
            &SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        )?;
        listen(&listener, BACKLOG)?;
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared {
            fs,
            faults,
            name,
            stored_to: AtomicUsize::new(0),
            state: Mutex::default(),
            fewer: Condvar::new(),
        });
        let thread = {
            let (shared, listener) = (Arc::clone(&shared), Arc::clone(&listener));
            thread::spawn("pagefence-maps", move || shared.accept_all(&listener))?
        };
        Ok(Self {
            shared,
            listener,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// A ticket for a file that somebody has open for reading if `reads`, and for writing if `writes`: good
    /// for one map of it within ten seconds. Bytes 0 to 15 are the ticket, byte 16 says how many follow, which
    /// are the name of an abstract socket; the rest are zeros. `None` if there are too many, or it is closed.
    ///
    /// With `writes` the file counts as one that maps store to ([`Self::is_stored_to`]) from now on.
    #[must_use]
    pub fn ticket(
        &self,
        id: InodeId,
        reads: bool,
        writes: bool,
    ) -> Option<[u8; Self::TICKET_BYTES]> {
        // It is open, so the number is its own.
        let generation = self.shared.fs.attr(id).ok()?.generation;
        let ticket = Ticket(*Uuid::new_v4().as_bytes());
        {
            let mut state = self.shared.state.lock();
            self.shared.forget_late(&mut state);
            if state.is_closed || state.tickets.len() >= TICKETS {
                return None;
            }
            let until = Instant::now() + TICKET_LASTS;
            let issued = Issued {
                id,
                generation,
                reads,
                writes,
                until,
            };
            state.tickets.insert(ticket, issued);
            state.first_late.get_or_insert(until);
            self.shared.count_in(&mut state, issued);
        }
        let mut bytes = [0; Self::TICKET_BYTES];
        let name = self.shared.name.as_bytes();
        bytes[..16].copy_from_slice(&ticket.0);
        bytes[16] = u8::try_from(name.len()).expect("a short name");
        bytes[17..17 + name.len()].copy_from_slice(name);
        Some(bytes)
    }

    /// Whether another process may store to the file by a map, or is about to get one.
    #[must_use]
    pub fn is_stored_to(&self, id: InodeId) -> bool {
        if self.shared.stored_to.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let mut state = self.shared.state.lock();
        self.shared.forget_late(&mut state);
        state.stored_to.contains_key(&id)
    }

    /// Ends all maps: accesses to them end with SIGBUS from then on. What was stored until then is in the
    /// cache or written when it comes back. Nobody comes in any more.
    pub fn close(&self) {
        let clients: Vec<_> = {
            let mut state = self.shared.state.lock();
            state.is_closed = true;
            for (_, issued) in std::mem::take(&mut state.tickets) {
                self.shared.count_out(&mut state, issued);
            }
            state.clients.values().cloned().collect()
        };
        for client in clients {
            client.cut_off();
        }
        // Who accepts stops.
        let _ = shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.lock().take() {
            // It can't have panicked.
            let _ = thread.join();
        }
        let mut state = self.shared.state.lock();
        while state.present > 0 {
            self.shared.fewer.wait(&mut state);
        }
    }
}

impl Drop for MapServer {
    fn drop(&mut self) {
        self.close();
    }
}

impl State {
    /// Counts one more of `user` in, and gives the account that it is charged to; `None` if there are too many.
    ///
    /// All of another user's have one account, and it stays while something is owed there: who is made to
    /// wait for it gets nothing by coming again. Of the own user's, who can end this process anyhow, each has
    /// his: one that is stopped is to hold up no other.
    fn admit(&mut self, user: u32, is_own: bool, now: Instant) -> Option<Arc<Account>> {
        self.of_users
            .retain(|_, of| of.maps > 0 || !of.account.is_even(now));
        let maps = self.of_users.get(&user).map_or(0, |of| of.maps);
        if self.present >= CLIENTS || (maps >= CLIENTS_OF_USER && !is_own) {
            return None;
        }
        self.present += 1;
        let of = self.of_users.entry(user).or_default();
        of.maps += 1;
        Some(if is_own {
            Arc::default()
        } else {
            Arc::clone(&of.account)
        })
    }

    /// One of `user` is there no longer.
    fn let_go(&mut self, user: u32) {
        self.present -= 1;
        if let Some(of) = self.of_users.get_mut(&user) {
            of.maps -= 1;
        }
    }
}

impl Shared {
    fn accept_all(self: &Arc<Self>, listener: &OwnedFd) {
        loop {
            let accepted = accept_with(listener, SocketFlags::CLOEXEC);
            if self.state.lock().is_closed {
                return;
            }
            match accepted {
                Ok(socket) => self.take_in(socket),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    // No descriptors are left, say: others will be given back.
                    tracing::warn!(%error, "nobody can be taken in who maps a file");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Serves who is at the other end of `socket`, on a thread of its own.
    fn take_in(self: &Arc<Self>, socket: OwnedFd) {
        // Without it there is less room.
        let _ = set_socket_send_buffer_size(&socket, SEND_BUFFER);
        let wire = Wire::from(socket);
        let Ok(peer) = socket_peercred(&wire) else {
            return;
        };
        let user = peer.uid.as_raw();
        let (number, account) = {
            let mut state = self.state.lock();
            let is_own = peer.uid == rustix::process::geteuid();
            let Some(account) = state.admit(user, is_own, Instant::now()) else {
                return wire.refuse(Errno::AGAIN);
            };
            state.last_client += 1;
            (state.last_client, account)
        };
        let present = Present {
            shared: Arc::clone(self),
            number,
            user,
            account,
        };
        let serve = move || {
            let served = present.serve(wire);
            if let Err(error) = served {
                tracing::debug!(%error, "a map in another process did not come to be");
            }
        };
        if let Err(error) = thread::spawn("pagefence-map", serve) {
            tracing::warn!(%error, "no thread for a map in another process");
        }
    }

    fn count_in(&self, state: &mut State, issued: Issued) {
        if issued.writes {
            *state.stored_to.entry(issued.id).or_default() += 1;
        }
        self.stored_to
            .store(state.stored_to.len(), Ordering::SeqCst);
    }

    fn count_out(&self, state: &mut State, issued: Issued) {
        if issued.writes
            && let Some(count) = state.stored_to.get_mut(&issued.id)
        {
            *count -= 1;
            if *count == 0 {
                state.stored_to.remove(&issued.id);
            }
        }
        self.stored_to
            .store(state.stored_to.len(), Ordering::SeqCst);
    }

    /// Takes back the tickets that nobody came with in time.
    fn forget_late(&self, state: &mut State) {
        let now = Instant::now();
        if state.first_late.is_none_or(|first| now < first) {
            return;
        }
        let late: Vec<_> = state
            .tickets
            .extract_if(|_, issued| issued.until <= now)
            .collect();
        for (_, issued) in late {
            self.count_out(state, issued);
        }
        state.first_late = state.tickets.values().map(|issued| issued.until).min();
    }

    /// What `ticket` is good for: from now on for nothing. The file stays counted.
    fn redeem(&self, ticket: Ticket) -> Option<Issued> {
        let mut state = self.state.lock();
        self.forget_late(&mut state);
        state.tickets.remove(&ticket)
    }
}

/// A client that is counted until this is dropped.
struct Present {
    shared: Arc<Shared>,
    number: u64,
    user: u32,
    account: Arc<Account>,
}

/// What was issued, counted until this is dropped.
struct Counted<'a> {
    shared: &'a Shared,
    issued: Issued,
}

impl Present {
    fn serve(&self, wire: Wire) -> io::Result<()> {
        let open = wire.greeting(GREETING_LASTS)?;
        let Some(issued) = self.shared.redeem(open.ticket) else {
            wire.refuse(Errno::STALE);
            return Ok(());
        };
        let _counted = Counted {
            shared: &self.shared,
            issued,
        };
        if let Err(errno) = may_map(&wire, &open, issued) {
            wire.refuse(errno);
            return Ok(());
        }
        let stores = open.kind == RemoteKind::Shared;
        let fs = &self.shared.fs;
        let file = match fs.open(issued.id, stores) {
            Ok(file) => file,
            Err(error) => {
                wire.refuse(errno_of(&error));
                return Ok(());
            }
        };
        // The file that the ticket was for may be gone, and its number another one's, which is open now.
        if fs.attr(issued.id).ok().map(|attr| attr.generation) != Some(issued.generation) {
            wire.refuse(Errno::STALE);
            return Ok(());
        }
        let is_root = socket_peercred(&wire)?.uid.is_root();
        let mode = if is_root {
            WriteMode::USE_RESERVE
        } else {
            WriteMode::empty()
        };
        let shared = match fs.share_pages(&file, stores.then_some(mode)) {
            Ok(shared) => shared,
            Err(ShareError::File(error)) => {
                wire.refuse(errno_of(&error));
                return Ok(());
            }
            Err(error) => {
                wire.refuse(Errno::NOMEM);
                return Err(io::Error::other(error));
            }
        };
        // It keeps the file open as long as it is served.
        let size = move || file.size();
        let source = match RemoteSource::new(wire, &open, shared.memory, size) {
            Ok(source) => Arc::new(source.charged_to(Arc::clone(&self.account))),
            Err((wire, error)) => {
                wire.refuse(Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
                return Err(error);
            }
        };
        if !self.is_known_as(&source) {
            return Ok(());
        }
        let service = self.shared.faults.get();
        serve_until_over(&shared.mapping, source, &service)
    }

    /// False if nobody is served any more.
    fn is_known_as(&self, source: &Arc<RemoteSource>) -> bool {
        let mut state = self.shared.state.lock();
        state.clients.insert(self.number, Arc::clone(source));
        !state.is_closed
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let gone = self.shared.state.lock().clients.remove(&self.number);
        // Perhaps the last that has the file open: closing it may take long, and nobody is to wait for it.
        drop(gone);
        let mut state = self.shared.state.lock();
        state.let_go(self.user);
        drop(state);
        self.shared.fewer.notify_all();
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        self.shared.count_out(&mut state, self.issued);
    }
}

/// Whether who is at the other end of `wire` may have what it asks for.
///
/// Who may write to the memory could hold its lock, and with it everybody who reads or writes the file, as
/// long as he likes (ADR 17): so it is given to processes of this one's own user alone, who can stop this one
/// anyway.
fn may_map(wire: &Wire, open: &Open, issued: Issued) -> Result<(), Errno> {
    if !issued.reads {
        return Err(Errno::ACCESS);
    }
    if open.kind != RemoteKind::Shared {
        return Ok(());
    }
    if !issued.writes {
        return Err(Errno::ACCESS);
    }
    let peer = socket_peercred(wire.as_fd())?;
    if peer.uid != rustix::process::geteuid() {
        return Err(Errno::PERM);
    }
    Ok(())
}

fn errno_of(error: &Error) -> Errno {
    match error {
        Error::PermissionDenied => Errno::ACCESS,
        Error::NotPermitted => Errno::PERM,
        Error::ReadOnly => Errno::ROFS,
        Error::NotFound | Error::Stale => Errno::STALE,
        Error::NoSpace => Errno::NOSPC,
        _ => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_users_maps_have_one_account_that_outlives_them_while_something_is_owed() {
        let (mut state, now) = (State::default(), Instant::now());
        let admit = |state: &mut State, user, is_own, now| {
            let account = state.admit(user, is_own, now);
            account.expect("there are few")
        };
        let first = admit(&mut state, 7, false, now);
        assert!(Arc::ptr_eq(&first, &admit(&mut state, 7, false, now)));
        assert!(!Arc::ptr_eq(&first, &admit(&mut state, 8, false, now)));
        let own = admit(&mut state, 9, true, now);
        assert!(!Arc::ptr_eq(&own, &admit(&mut state, 9, true, now)));
        first.charge(Duration::from_secs(4), now);
        state.let_go(7);
        state.let_go(7);
        // Who comes again owes what he owed.
        assert!(Arc::ptr_eq(&first, &admit(&mut state, 7, false, now)));
        state.let_go(7);
        let later = now + Duration::from_secs(60);
        assert!(!Arc::ptr_eq(&first, &admit(&mut state, 7, false, later)));
        assert_eq!(state.present, 4);
    }

    #[test]
    fn there_are_no_more_of_a_user_than_may_be() {
        let (mut state, now) = (State::default(), Instant::now());
        for _ in 0..CLIENTS_OF_USER {
            assert!(state.admit(7, false, now).is_some());
        }
        assert!(state.admit(7, false, now).is_none());
        assert!(state.admit(8, false, now).is_some());
        state.let_go(7);
        assert!(state.admit(7, false, now).is_some());
        while state.present < CLIENTS {
            assert!(state.admit(9, true, now).is_some());
        }
        assert!(state.admit(9, true, now).is_none());
    }
}
