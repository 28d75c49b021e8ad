//! A client's view, as the daemon has it: faults come over a socket, and what is to be done about them goes
//! back there.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use pagefence_host_memory::memory::{FileMemory, Pipe};
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, MutexGuard};
use pagefence_page_cache::Hint;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::wire::{Asked, Found, FromClient, FromDaemon, ToClient};
use super::{Advised, Open, Opened, PATIENCE, RemoteKind, Wire, clock, is_end};
use crate::fault_source::{Ask, Cause, FaultSource, Obstacle, Woken};

/// Packets that one read takes.
const PACKETS: usize = 64;

/// Poisoned pages that one view may have: each takes memory here, and ends a program that does not handle
/// SIGBUS.
const POISONED_PAGES: u64 = 1 << 16;

/// The longest view, in pages: 16 TiB, which no file of ext4 exceeds by much. What is known of its pages takes
/// memory here before any is touched.
const VIEW_PAGES: u64 = 1 << 32;

/// Bytes of the file that a view is of.
type Size = Box<dyn Fn() -> u64 + Send + Sync>;

/// A view in another process.
///
/// - Owns: the connection, what was said there and not acknowledged.
/// - Stays outside: what is mapped and what is poisoned (the shootdown's, as for any view).
/// - Locks: `said` is a leaf, held while one packet is sent; `heard` is one. No method waits for the client
///   longer than [`PATIENCE`], and none for one that let that pass before.
pub struct RemoteSource {
    wire: Wire,
    pages: Range<u64>,
    kind: RemoteKind,
    memory: Arc<FileMemory>,
    pipe: Pipe,
    size: Size,
    said: Mutex<Said>,
    /// Something was acknowledged, or it is over.
    heard_of: Condvar,
    heard: Mutex<Heard>,
    /// Nobody is there any more: the client's end is closed.
    is_gone: AtomicBool,
    /// This side has closed the connection. The client may not know yet, and still have its rights.
    is_cut_off: AtomicBool,
}

/// What was said, in the order of the wire.
#[derive(Debug)]
struct Said {
    packets: u64,
    acknowledged: u64,
    /// What others may have to wait for, oldest first.
    outstanding: VecDeque<Outstanding>,
    /// A wait for it was in vain, and it has not caught up since: nobody waits for it.
    is_silent: bool,
    /// Bytes of the file, as it was last told, or more that nobody need tell.
    size: u64,
    /// No page from here on may have a private copy.
    mapped_end: u64,
    poisoned: u64,
    /// It was silent when the file became shorter.
    owes_size: bool,
}

#[derive(Clone, Debug)]
struct Outstanding {
    number: u64,
    pages: Range<u64>,
    sent: Instant,
    /// Pages may be mapped by it.
    is_right: bool,
}

impl Said {
    /// The last of what is outstanding about some of `pages`.
    fn last_of(
        &self,
        pages: &Range<u64>,
        which: impl Fn(&Outstanding) -> bool,
    ) -> Option<Outstanding> {
        let overlaps = |of: &Outstanding| of.pages.start < pages.end && pages.start < of.pages.end;
        let mut found = self.outstanding.iter().rev();
        found.find(|of| which(of) && overlaps(of)).cloned()
    }

    fn takes_owed_size(&mut self) -> bool {
        !self.is_silent && std::mem::take(&mut self.owes_size)
    }
}

/// What came in.
#[derive(Debug, Default)]
struct Heard {
    /// The thread that hears what the client says.
    hearer: Option<ThreadId>,
    faults: Vec<Cause>,
    asks: VecDeque<Ask>,
}

/// Why a client is cut off.
#[derive(Clone, Copy, Debug)]
enum Because {
    Nonsense,
    Full,
    Failed,
    Poisoned,
}

impl RemoteSource {
    /// The view that the client at the other end of `wire` is making of `memory`, as it asked for in `open`.
    /// `size` gives the bytes of the file at any time, with no lock that is held while a page is mapped
    /// or taken away.
    ///
    /// # Errors
    /// `InvalidInput` for pages that no view has; no descriptors are left.
    pub fn new(
        wire: Wire,
        open: &Open,
        memory: Arc<FileMemory>,
        size: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let pages = open.first..open.end;
        let count = pages.end.checked_sub(pages.start);
        let is_view = count.is_some_and(|count| count > 0 && count <= VIEW_PAGES);
        if !is_view || pages.end > FileMemory::PAGES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let said = Said {
            packets: 0,
            acknowledged: 0,
            outstanding: VecDeque::new(),
            is_silent: false,
            size: 0,
            mapped_end: 0,
            poisoned: 0,
            owes_size: false,
        };
        Ok(Self {
            wire,
            pages,
            kind: open.kind,
            memory,
            pipe: Pipe::new()?,
            size: Box::new(size),
            said: Mutex::new(said),
            heard_of: Condvar::new(),
            heard: Mutex::default(),
            is_gone: AtomicBool::new(false),
            is_cut_off: AtomicBool::new(false),
        })
    }

    /// Whether the connection was ended by this side, so that the client may still have rights which nobody
    /// watches.
    fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Ordering::SeqCst)
    }

    /// Ends the connection.
    pub fn cut_off(&self) {
        self.end_because(None);
    }

    fn end_because(&self, why: Option<Because>) {
        if self.is_gone() || self.is_cut_off.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Some(why) = why {
            tracing::warn!(?why, "a program that maps a file is cut off");
        }
        self.wire.shut_down();
        self.heard_of.notify_all();
    }

    fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }

    fn is_over(&self) -> bool {
        self.is_gone() || self.is_cut_off()
    }

    /// Hands the memory out. From here on the client hears of the file's size.
    fn welcome(&self) {
        let mut said = self.said.lock();
        said.size = (self.size)();
        let packet = Opened::Welcome {
            size: said.size,
            now: clock(),
        };
        let sent = match self.kind {
            RemoteKind::Shared => self
                .memory
                .for_writing()
                .and_then(|fd| self.wire.send(&packet, Some(fd.as_fd()), false)),
            RemoteKind::ReadOnly | RemoteKind::Private => self
                .memory
                .for_reading()
                .and_then(|fd| self.wire.send(&packet, Some(fd.as_fd()), false)),
        };
        if sent.is_err() {
            self.end_because(Some(Because::Failed));
        }
    }

    /// Says `what`; gives its number.
    fn say(&self, said: &mut Said, what: ToClient, is_waited_for: bool) -> u64 {
        said.packets += 1;
        let packet = FromDaemon {
            is_waited_for,
            what,
        };
        match self.wire.send(&packet, None, false) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.end_because(Some(Because::Full));
            }
            // It is about to be found gone.
            Err(error) if is_end(&error) => {}
            Err(_) => self.end_because(Some(Because::Failed)),
        }
        said.packets
    }

    /// As [`Self::say`], something about `pages` that others may have to wait for.
    fn say_of(&self, said: &mut Said, pages: Range<u64>, what: ToClient, is_right: bool) {
        let sent = Instant::now();
        let number = self.say(said, what, false);
        said.outstanding.push_back(Outstanding {
            number,
            pages,
            sent,
            is_right,
        });
    }

    /// Waits until the client can't make use any more of rights to `pages` that it was given: it has, or
    /// they are too old. So it ends whether the client answers or not.
    fn wait_for_rights(&self, said: &mut MutexGuard<'_, Said>, pages: &Range<u64>) {
        while let Some(last) = said.last_of(pages, |of| of.is_right) {
            if !self.wait_for(said, last.number, last.sent + PATIENCE) {
                let now = Instant::now();
                said.outstanding.retain(|of| of.sent + PATIENCE > now);
            }
            if self.is_gone() {
                return;
            }
        }
    }

    /// Takes in what has come, without waiting.
    fn hear(&self) {
        for _ in 0..PACKETS {
            match self.wire.receive::<FromClient>(false) {
                Ok(Found::Packet(packet, _)) => {
                    if self.take_in(&packet).is_none() {
                        return self.end_because(Some(Because::Nonsense));
                    }
                }
                Ok(Found::Nothing) => return,
                Ok(Found::Over) => {
                    if !self.is_cut_off() {
                        self.is_gone.store(true, Ordering::SeqCst);
                        // Who waits has looked before with the lock.
                        drop(self.said.lock());
                        self.heard_of.notify_all();
                    }
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return self.end_because(Some(Because::Nonsense));
                }
                Err(_) => return self.end_because(Some(Because::Failed)),
            }
        }
    }

    /// `None` if it makes no sense.
    fn take_in(&self, packet: &FromClient) -> Option<()> {
        {
            let mut said = self.said.lock();
            if packet.done < said.acknowledged || packet.done > said.packets {
                return None;
            }
            if packet.done > said.acknowledged {
                said.acknowledged = packet.done;
                said.is_silent &= packet.done < said.packets;
                while said
                    .outstanding
                    .front()
                    .is_some_and(|first| first.number <= packet.done)
                {
                    said.outstanding.pop_front();
                }
                self.heard_of.notify_all();
            }
            if packet.what == Asked::Clock {
                self.say(&mut said, ToClient::Clock { now: clock() }, false);
            }
        }
        let inside =
            |pages: &Range<u64>| pages.start >= self.pages.start && pages.end <= self.pages.end;
        let mut heard = self.heard.lock();
        match packet.what {
            Asked::Nothing | Asked::Clock => {}
            Asked::Fault { page, is_store } => {
                if !self.pages.contains(&page) || (is_store && self.kind == RemoteKind::ReadOnly) {
                    return None;
                }
                heard.faults.push(Cause { page, is_store });
            }
            Asked::Populate { first, end } => {
                inside(&(first..end)).then_some(())?;
                heard.asks.push_back(Ask::Populate(first..end));
            }
            Asked::Advise(advised) => heard.asks.push_back(match advised {
                Advised::Normal => Ask::Advise(Hint::Normal),
                Advised::Sequential => Ask::Advise(Hint::Sequential),
                Advised::Random => Ask::Advise(Hint::Random),
                Advised::WillNeed => Ask::WillNeed(self.pages.clone()),
            }),
        }
        Some(())
    }

    /// Waits until packet `number` is acknowledged, until `deadline` at most. Whether it was, or nobody is
    /// there who could do what was said.
    fn wait_for(&self, said: &mut MutexGuard<'_, Said>, number: u64, deadline: Instant) -> bool {
        loop {
            if said.acknowledged >= number || self.is_gone() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if !said.is_silent {
                    tracing::warn!(
                        "a program that maps a file does not answer: nobody waits for it"
                    );
                    said.is_silent = true;
                }
                return false;
            }
            if self.is_hearer() {
                MutexGuard::unlocked(said, || {
                    // Errors: the deadline comes.
                    let _ = poll_in(&[self.wire.as_fd()], Some(left));
                    self.hear();
                });
            } else {
                self.heard_of.wait_for(said, left);
            }
        }
    }

    /// Whether this thread is the one that hears what the client says.
    fn is_hearer(&self) -> bool {
        self.heard.lock().hearer == Some(std::thread::current().id())
    }

    /// Takes `pages` out of every mapping, with what was stored to them.
    fn freeze(&self, pages: Range<u64>) {
        pages.for_each(|page| self.memory.freeze(&self.pipe, page));
    }
}

impl FaultSource for RemoteSource {
    fn pages(&self) -> Range<u64> {
        self.pages.clone()
    }

    fn is_shared(&self) -> bool {
        self.kind != RemoteKind::Private
    }

    fn read(&self, stopped: &mut Vec<Cause>) -> io::Result<()> {
        let before = self
            .heard
            .lock()
            .hearer
            .replace(std::thread::current().id());
        if before.is_none() {
            self.welcome();
        }
        self.hear();
        if self.said.lock().takes_owed_size() {
            self.resized();
        }
        stopped.append(&mut self.heard.lock().faults);
        Ok(())
    }

    fn wait(&self, bell: BorrowedFd<'_>, most: Option<Duration>) -> io::Result<Woken> {
        if self.is_over() {
            return Ok(Woken::Over);
        }
        let ready = poll_in(&[bell, self.wire.as_fd()], most)?;
        Ok(match ready[..] {
            [true, _] => Woken::Rung,
            [false, true] => Woken::Faults,
            _ => Woken::Late,
        })
    }

    fn map(&self, pages: Range<u64>, writable: bool) -> Result<(), Obstacle> {
        let mut said = self.said.lock();
        said.mapped_end = said.mapped_end.max(pages.end);
        let what = ToClient::Map {
            first: pages.start,
            end: pages.end,
            writable,
            now: clock(),
        };
        self.say_of(&mut said, pages, what, true);
        Ok(())
    }

    /// Who was given pages for stores that are to be protected has stored to them until the guard says that
    /// they are, or they are frozen. What was said before and is not acknowledged yet is too old to be
    /// made use of by the time that the guard is not waited for any more.
    fn protect(&self, pages: Range<u64>, protected: bool) {
        if self.kind != RemoteKind::Shared {
            return;
        }
        if !protected {
            // Nothing is an obstacle here, so nobody asks for this after one.
            let mapped = self.map(pages, true);
            debug_assert!(mapped.is_ok(), "a client is told, whatever it does");
            return;
        }
        let mut said = self.said.lock();
        if pages.start >= said.mapped_end || self.is_gone() {
            return;
        }
        if !said.is_silent && !self.is_cut_off() {
            let (first, end) = (pages.start, pages.end);
            let number = self.say(&mut said, ToClient::Protect { first, end }, true);
            if self.wait_for(&mut said, number, Instant::now() + PATIENCE) {
                return;
            }
        }
        self.wait_for_rights(&mut said, &pages);
        drop(said);
        if !self.is_gone() {
            self.freeze(pages);
        }
    }

    fn poison(&self, page: u64) -> bool {
        let mut said = self.said.lock();
        said.poisoned += 1;
        self.say(&mut said, ToClient::Poison { page }, false);
        let is_too_much = said.poisoned > POISONED_PAGES;
        drop(said);
        if is_too_much {
            self.end_because(Some(Because::Poisoned));
        }
        true
    }

    fn wake(&self, page: u64) {
        self.say(&mut self.said.lock(), ToClient::Wake { page }, false);
    }

    fn zap(&self, pages: Range<u64>) {
        let mut said = self.said.lock();
        if pages.start >= said.mapped_end {
            return;
        }
        if pages.end >= said.mapped_end {
            said.mapped_end = pages.start;
        }
        let (first, end) = (pages.start, pages.end);
        self.say_of(&mut said, pages, ToClient::Zap { first, end }, false);
    }

    fn cure(&self, pages: Range<u64>) {
        let mut said = self.said.lock();
        said.poisoned = said.poisoned.saturating_sub(pages.end - pages.start);
        let (first, end) = (pages.start, pages.end);
        self.say_of(&mut said, pages, ToClient::Cure { first, end }, false);
    }

    fn settle(&self, pages: Range<u64>) {
        let mut said = self.said.lock();
        let Some(last) = said.last_of(&pages, |_| true) else {
            return;
        };
        if !said.is_silent && !self.is_cut_off() {
            self.say(&mut said, ToClient::Settle, true);
            self.wait_for(&mut said, last.number, last.sent + PATIENCE);
        }
        self.wait_for_rights(&mut said, &pages);
    }

    fn resized(&self) {
        let bytes = (self.size)();
        let mut said = self.said.lock();
        if bytes < said.size {
            // Who is silent hears it when he answers again.
            if said.is_silent {
                said.owes_size = true;
                return;
            }
            self.say_of(
                &mut said,
                self.pages.clone(),
                ToClient::Size { bytes },
                false,
            );
        }
        said.size = bytes;
    }

    fn next_ask(&self) -> Option<Ask> {
        self.heard.lock().asks.pop_front()
    }

    fn may_still_store(&self) -> bool {
        self.kind == RemoteKind::Shared && self.is_cut_off() && !self.is_gone()
    }

    fn populated(&self, outcome: Result<(), Errno>) {
        let errno = outcome.err().map_or(0, Errno::raw_os_error);
        self.say(&mut self.said.lock(), ToClient::Populated { errno }, false);
    }
}

impl std::fmt::Debug for RemoteSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteSource")
            .field("pages", &self.pages)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// Which of `fds` can be read, or are at their end; none if `most` is over first.
pub(super) fn poll_in(fds: &[BorrowedFd<'_>], most: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    let most = most.and_then(|most| Timespec::try_from(most).ok());
    match poll(&mut polled, most.as_ref()) {
        // As if nothing had come: who waits looks at the time and waits again.
        Err(Errno::INTR) => Ok(vec![false; fds.len()]),
        Err(errno) => Err(errno.into()),
        Ok(_) => Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
    }
}
