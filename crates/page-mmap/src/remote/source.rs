//! A client's view, as the daemon has it: faults come over a socket, and what is to be done about them goes
//! back there.

mod hear;
mod said;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use pagefence_host_memory::memory::{FileMemory, Pipe};
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, MutexGuard};
use pagefence_page_cache::Answer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::wire::{FromDaemon, ToClient};
use super::{Account, Open, Opened, PATIENCE, RemoteKind, Wire, clock, is_end};
use crate::bell::Bell;
use crate::fault_source::{Ask, Cause, FaultSource, Obstacle, Woken};
#[cfg(any(test, feature = "mutants"))]
use crate::mutants::{Mutant, Mutants};
use hear::Heard;
use said::{Outstanding, Question, Said};

/// Poisoned pages that one view may have: each takes memory here, and ends a program that does not handle
/// SIGBUS.
const POISONED_PAGES: usize = 1 << 16;

/// Packets that may be without acknowledgement. A guard acknowledges every 32nd, and the wire has room for
/// some hundreds.
const UNACKNOWLEDGED: u64 = 1 << 12;

/// Packets without acknowledgement, beyond which who says things that nobody waits for takes a breath. A guard
/// acknowledges every 32nd.
const BREATH: u64 = 64;

/// The longest view, in pages: 1 TiB. What is known of its pages takes memory here: 32 MiB, if all of it is
/// touched.
const VIEW_PAGES: u64 = 1 << 28;

/// Bytes of the file that a view is of.
type Size = Box<dyn Fn() -> u64 + Send + Sync>;

/// A view in another process.
///
/// - Owns: the connection, what was said there and not acknowledged.
/// - Stays outside: what is mapped and what is poisoned (the shootdown's, as for any view).
/// - Locks: `hearing`, above both of the others, held while packets are taken in without waiting; `said`,
///   held while one is sent without waiting; `heard` and the account, leaves. Nobody waits for an answer of the
///   client longer than [`PATIENCE`] from the question on; and not at all for a client that let that pass
///   before, until it has answered, nor for one whose account is overdrawn.
pub struct RemoteSource {
    wire: Wire,
    pages: Range<u64>,
    kind: RemoteKind,
    memory: Arc<FileMemory>,
    pipe: Pipe,
    size: Size,
    account: Arc<Account>,
    said: Mutex<Said>,
    /// Something was acknowledged, or it is over.
    heard_of: Condvar,
    hearing: Mutex<()>,
    heard: Mutex<Heard>,
    /// Rung when another thread than the fault loop's has heard something for that.
    heard_more: Bell,
    /// Nobody is there any more: the client's end is closed.
    is_gone: AtomicBool,
    /// This side has closed the connection. The client may not know yet, and still have its rights.
    is_cut_off: AtomicBool,
    #[cfg(any(test, feature = "mutants"))]
    mutants: Mutants,
}

/// Why a client is cut off.
#[derive(Clone, Copy, Debug)]
enum Because {
    Nonsense,
    Full,
    Unacknowledged,
    Failed,
    Poisoned,
}

impl RemoteSource {
    /// The view that the client at the other end of `wire` is making of `memory`, as it asked for in `open`.
    /// `size` gives the bytes of the file at any time, with no lock that is held while a page is mapped
    /// or taken away.
    ///
    /// # Errors
    /// `InvalidInput` for pages that no view has; no descriptors are left. The connection comes back.
    pub fn new(
        wire: Wire,
        open: &Open,
        memory: Arc<FileMemory>,
        size: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, (Wire, io::Error)> {
        let pages = open.first..open.end;
        let count = pages.end.checked_sub(pages.start);
        let is_view = count.is_some_and(|count| count > 0 && count <= VIEW_PAGES);
        if !is_view || pages.end > FileMemory::PAGES {
            return Err((wire, io::ErrorKind::InvalidInput.into()));
        }
        let (pipe, heard_more) = match Pipe::new().and_then(|pipe| Ok((pipe, Bell::new()?))) {
            Ok(made) => made,
            Err(error) => return Err((wire, error)),
        };
        Ok(Self {
            wire,
            pages,
            kind: open.kind,
            memory,
            pipe,
            size: Box::new(size),
            account: Arc::default(),
            said: Mutex::default(),
            heard_of: Condvar::new(),
            hearing: Mutex::new(()),
            heard: Mutex::default(),
            heard_more,
            is_gone: AtomicBool::new(false),
            is_cut_off: AtomicBool::new(false),
            #[cfg(any(test, feature = "mutants"))]
            mutants: Mutants::default(),
        })
    }

    /// Has what others wait for the client charged to `account`, which may be that of several.
    #[must_use]
    pub fn charged_to(mut self, account: Arc<Account>) -> Self {
        self.account = account;
        self
    }

    /// Leaves `mutant` out from now on.
    #[cfg(any(test, feature = "mutants"))]
    pub fn leave_out(&self, mutant: Mutant) {
        self.mutants.leave_out(mutant);
    }

    /// Whether the connection was ended by this side, so that the client may still have rights which nobody
    /// watches: what it may store to has to be written back, which takes them away, before that is
    /// forgotten.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
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
        said.size = self.bytes_of_file();
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
        if is_waited_for {
            said.asked = said.packets;
        }
        if said.packets - said.acknowledged > UNACKNOWLEDGED {
            self.end_because(Some(Because::Unacknowledged));
        }
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

    /// Whether it is worth asking the client for something.
    fn is_asked(&self, said: &Said) -> bool {
        !said.is_silent() && !self.is_cut_off() && self.overdrawn_for().is_none()
    }

    /// For how long nobody is to wait for the client, because others did too often.
    fn overdrawn_for(&self) -> Option<Duration> {
        self.account.overdrawn_for(Instant::now())
    }

    /// Waits until the client can't make use any more of the rights to `pages` that it was given before
    /// `question`: it has, or they are too old. So it ends whether the client answers or not.
    fn wait_for_rights(
        &self,
        said: &mut MutexGuard<'_, Said>,
        pages: &Range<u64>,
        question: Question,
    ) {
        said.forget_old_rights(Instant::now());
        let is_meant = |of: &Outstanding| of.is_right && of.number <= question.number;
        let Some(last) = said.last_of(pages, is_meant) else {
            return;
        };
        // Those before it are older.
        if !self.wait_charged(said, last.number, last.sent + PATIENCE) {
            said.late_since = said.late_since.max(Some(last.number));
        }
    }

    /// Until the client has protected `pages`, as it was asked; else takes them out of its mapping.
    fn end_protect(&self, pages: Range<u64>, question: Question) {
        let mut said = self.said.lock();
        if question.is_asked && self.wait_or_silence(&mut said, question) {
            return;
        }
        self.wait_for_rights(&mut said, &pages, question);
        drop(said);
        #[cfg(any(test, feature = "mutants"))]
        if self.mutants.has(Mutant::Freeze) {
            return;
        }
        if !self.is_gone() {
            self.freeze(pages);
        }
    }

    /// Until what was said about `pages` before `question` takes no effect any more.
    fn end_settle(&self, pages: &Range<u64>, question: Question) {
        let mut said = self.said.lock();
        let is_meant = |of: &Outstanding| !of.is_right && of.number <= question.number;
        if question.is_asked
            && let Some(last) = said.last_of(pages, is_meant)
        {
            let number = last.number;
            self.wait_or_silence(&mut said, Question { number, ..question });
        }
        self.wait_for_rights(&mut said, pages, question);
    }

    /// Whether faults were put off.
    #[cfg(test)]
    pub(crate) fn puts_off(&self) -> bool {
        self.said.lock().owes_wake
    }

    /// Faults that were put off are told to be tried again, when that is over.
    fn wake_put_off(&self, said: &mut Said) {
        if said.owes_wake && self.overdrawn_for().is_none() {
            said.owes_wake = false;
            let (first, end) = (self.pages.start, self.pages.end);
            self.say(said, ToClient::Wake { first, end }, false);
        }
    }

    fn bytes_of_file(&self) -> u64 {
        (self.size)()
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

    fn is_client(&self) -> bool {
        true
    }

    fn read(&self, stopped: &mut Vec<Cause>) -> io::Result<()> {
        let this = Some(std::thread::current().id());
        let before = std::mem::replace(&mut self.heard.lock().listener, this);
        if before.is_none() {
            self.welcome();
        }
        self.hear();
        let owes_size = {
            let mut said = self.said.lock();
            self.wake_put_off(&mut said);
            said.takes_owed_size()
        };
        if owes_size {
            self.resized();
        }
        stopped.append(&mut self.heard.lock().faults);
        Ok(())
    }

    fn wait(&self, bell: BorrowedFd<'_>, most: Option<Duration>) -> io::Result<Woken> {
        if self.is_over() {
            return Ok(Woken::Over);
        }
        // Whatever others hear from here on rings.
        self.heard_more.hear();
        if !self.heard.lock().is_nothing() {
            return Ok(Woken::Faults);
        }
        let mut most = most;
        if self.said.lock().owes_wake {
            let Some(put_off) = self.overdrawn_for() else {
                return Ok(Woken::Faults);
            };
            most = Some(most.map_or(put_off, |most| most.min(put_off)));
        }
        let fds = [bell, self.wire.as_fd(), self.heard_more.fd()];
        let ready = poll_in(&fds, most)?;
        Ok(match ready[..] {
            [true, ..] => Woken::Rung,
            [false, false, false] => Woken::Late,
            _ => Woken::Faults,
        })
    }

    /// Who owes an answer gets no right, so that nobody has to wait until that is too old: it is told to
    /// ask again, by which it answers. So it is with one whose account is overdrawn, but that it is told later.
    fn map(&self, pages: Range<u64>, writable: bool) -> Result<(), Obstacle> {
        let mut said = self.said.lock();
        if self.is_over() {
            // It would not hear of a right that others then wait for.
            return Ok(());
        }
        let now = Instant::now();
        if self.account.overdrawn_for(now).is_some() {
            said.owes_wake = true;
            // Who waits for faults is to know.
            self.heard_more.ring();
            return Ok(());
        }
        said.forget_old_rights(now);
        if !said.gets_rights() {
            let (first, end) = (pages.start, pages.end);
            self.say(&mut said, ToClient::Wake { first, end }, false);
            return Ok(());
        }
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
    fn protect(&self, pages: Range<u64>) -> Answer<'_> {
        let mut said = self.said.lock();
        let is_stored_to = self.kind == RemoteKind::Shared && pages.start < said.mapped_end;
        if !is_stored_to || self.is_gone() {
            return Answer::done();
        }
        let is_asked = self.is_asked(&said);
        if is_asked {
            let (first, end) = (pages.start, pages.end);
            self.say(&mut said, ToClient::Protect { first, end }, true);
            #[cfg(any(test, feature = "mutants"))]
            if self.mutants.has(Mutant::ProtectWait) {
                return Answer::done();
            }
        }
        let question = said.question(is_asked);
        Answer::awaited(move || self.end_protect(pages, question))
    }

    fn unprotect(&self, pages: Range<u64>) {
        if self.kind == RemoteKind::Shared {
            // Nothing is an obstacle here, so nobody asks for this after one.
            let mapped = self.map(pages, true);
            debug_assert!(mapped.is_ok(), "a client is told, whatever it does");
        }
    }

    fn poison(&self, page: u64) -> bool {
        let mut said = self.said.lock();
        said.poisoned.insert(page);
        self.say(&mut said, ToClient::Poison { page }, false);
        let is_too_much = said.poisoned.len() > POISONED_PAGES;
        drop(said);
        if is_too_much {
            self.end_because(Some(Because::Poisoned));
        }
        true
    }

    fn wake(&self, page: u64) {
        let what = ToClient::Wake {
            first: page,
            end: page + 1,
        };
        self.say(&mut self.said.lock(), what, false);
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

    /// In one packet, however many there are: what else is poisoned between them faults again, and is again.
    fn cure(&self, pages: &[u64]) {
        let (Some(&first), Some(&last)) = (pages.first(), pages.last()) else {
            return;
        };
        let pages = first..last + 1;
        let mut said = self.said.lock();
        said.poisoned
            .extract_if(pages.clone(), |_| true)
            .for_each(drop);
        let (first, end) = (pages.start, pages.end);
        self.say_of(&mut said, pages, ToClient::Cure { first, end }, false);
    }

    fn settle(&self, pages: Range<u64>) -> Answer<'_> {
        #[cfg(any(test, feature = "mutants"))]
        if self.mutants.has(Mutant::Settle) {
            return Answer::done();
        }
        let mut said = self.said.lock();
        said.forget_old_rights(Instant::now());
        if said.last_of(&pages, |_| true).is_none() {
            return Answer::done();
        }
        let is_asked = self.is_asked(&said);
        // Once for all that was said before.
        if is_asked && said.asked < said.packets {
            self.say(&mut said, ToClient::Settle, true);
        }
        let question = said.question(is_asked);
        Answer::awaited(move || self.end_settle(&pages, question))
    }

    fn is_settled(&self, pages: Range<u64>) -> bool {
        let mut said = self.said.lock();
        said.forget_old_rights(Instant::now());
        said.last_of(&pages, |of| of.is_right).is_none()
            && (!self.is_asked(&said) || said.last_of(&pages, |_| true).is_none())
    }

    fn resized(&self) -> bool {
        let mut said = self.said.lock();
        // Asked with the lock: what is told last is what is so. A client that asks is told, too: it never
        // knows of more than was told here.
        let bytes = self.bytes_of_file();
        if bytes >= said.size {
            return false;
        }
        // Who is silent hears it when he answers again.
        if said.is_silent() {
            said.owes_size = true;
            return false;
        }
        let what = ToClient::Size {
            bytes,
            is_answer: false,
        };
        self.say_of(&mut said, self.pages.clone(), what, false);
        said.size = bytes;
        true
    }

    fn breathe(&self) {
        let mut said = self.said.lock();
        let Some(number) = said.packets.checked_sub(BREATH) else {
            return;
        };
        if number > said.acknowledged && !said.is_silent() && !self.is_cut_off() {
            let deadline = Instant::now() + PATIENCE;
            let mut own_time = Duration::ZERO;
            self.wait_for(&mut said, number, deadline, &mut own_time);
        }
    }

    fn may_still_store(&self) -> bool {
        self.is_cut_off() && self.kind == RemoteKind::Shared
    }

    fn next_ask(&self) -> Option<Ask> {
        self.heard.lock().asks.pop_front()
    }

    fn populated(&self, outcome: Result<(), Errno>) {
        // Before the answer, after which there may be a next one.
        self.heard.lock().is_populating = false;
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
