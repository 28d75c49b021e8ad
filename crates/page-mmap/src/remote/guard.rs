//! The client's side: a view of a file that another process serves, and the thread that does there what
//! that process says.

mod entries;
mod question;
mod thread;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use pagefence_host_memory::{Userfault, UserfaultError, View, ViewKind};
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex, thread as threads};
use rustix::io::Errno;

use super::source::poll_in;
use super::wire::{Asked, Found, FromClient};
use super::{Advised, Open, Opened, RemoteKind, Wire, clock};
use crate::bell::Bell;
use crate::region::Faults;
use question::Question;

/// How long the daemon may take to answer that a file is to be mapped: it writes back what is dirty first.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of a page.
const PAGE: usize = pagefence_page_cache::PAGE_SIZE;

/// Why a file that another process serves can't be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// The kernel has no userfaultfd, or not for this process.
    #[error(transparent)]
    Userfault(#[from] UserfaultError),
    /// Memory or a thread can't be had, or what was answered makes no sense.
    #[error("the file can't be mapped into memory: {0}")]
    System(#[from] io::Error),
    /// Who serves the file says no.
    #[error("the file's server refuses to have it mapped: {0}")]
    Refused(Errno),
    /// Who serves the file has ended, or does not answer.
    #[error("the file's server is gone, or does not answer")]
    Gone,
}

/// A view of a file that another process serves; unmapped when dropped.
///
/// - Owns: the view, its userfaultfd, the connection, the thread that serves its faults by asking the
///   other process.
/// - Stays outside: the pages, which that process has.
/// - Lifecycle: when the other process has ended, each access that is not mapped gives SIGBUS: all of
///   them, but for what a private view has mapped. Who drops it has nobody left who touches its memory.
#[derive(Debug)]
pub struct Guard {
    shared: Arc<Shared>,
    thread: Option<threads::JoinHandle<()>>,
}

/// What the thread shares with those who call.
///
/// `sending` is held while a packet is sent, so that what is said to be done never becomes less from one
/// packet to the next; below it is none.
#[derive(Debug)]
struct Shared {
    /// Dropped before its userfaultfd: without that a view fills holes with zeros.
    view: View,
    userfault: Userfault,
    wire: Wire,
    bell: Bell,
    /// Bytes of the file.
    size: AtomicU64,
    is_over: AtomicBool,
    /// Packets of the daemon that have taken effect. Set by the thread alone.
    done: AtomicU64,
    sending: Mutex<()>,
    /// With an error's number, or 0.
    populates: Question<i32>,
    sizes: Question<u64>,
    #[cfg(any(test, feature = "mutants"))]
    mutants: crate::mutants::Mutants,
}

impl Guard {
    /// Asks at the other end of `wire` for what `open` says, waits for the answer, and maps `bytes` bytes
    /// from its first page on, as many pages as it names.
    ///
    /// # Errors
    /// [`GuardError`].
    pub fn open(wire: Wire, open: &Open, bytes: usize, faults: Faults) -> Result<Self, GuardError> {
        let pages = u64::try_from(bytes.div_ceil(PAGE)).ok();
        if bytes == 0 || pages != open.end.checked_sub(open.first) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        let mut userfault = match faults {
            Faults::OfPrograms => Userfault::open()?,
            Faults::OfSystemCalls => Userfault::open_for_kernel_faults()?,
        };
        let asked = clock();
        match wire.send(open, None, true) {
            // It may have said why, before it heard this.
            Err(error) if super::is_end(&error) => {}
            sent => sent?,
        }
        let (size, now, memory) = welcome(&wire)?;
        let kind = match open.kind {
            RemoteKind::Shared => ViewKind::Shared,
            RemoteKind::ReadOnly => ViewKind::PrivateReadOnly,
            RemoteKind::Private => ViewKind::Private,
        };
        let view = View::of_fd(memory, open.first, bytes, kind)?;
        userfault.register(&view)?;
        let shared = Arc::new(Shared {
            view,
            userfault,
            wire,
            bell: Bell::new()?,
            size: AtomicU64::new(size),
            is_over: AtomicBool::new(false),
            done: AtomicU64::new(0),
            sending: Mutex::new(()),
            populates: Question::default(),
            sizes: Question::default(),
            #[cfg(any(test, feature = "mutants"))]
            mutants: crate::mutants::Mutants::default(),
        });
        let lead = thread::Lead::of(asked, now);
        let thread = {
            let shared = Arc::clone(&shared);
            threads::spawn("pagefence-guard", move || thread::guard(&shared, lead))?
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The memory.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.shared.view
    }

    /// Bytes of the file, as last heard.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.shared.size.load(Ordering::SeqCst)
    }

    /// Bytes of the file now, which may have grown since that was last heard. As long as it is not asked for
    /// again, the daemon says when there are fewer.
    ///
    /// # Errors
    /// `NotConnected` if the daemon has ended.
    pub fn ask_size(&self) -> io::Result<u64> {
        let shared = &self.shared;
        let size = shared
            .sizes
            .ask(|| shared.send(Asked::Size), || shared.is_over());
        size.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Has those of `pages` that the file has read and mapped for loads; returns when they are. One caller
    /// at a time, others wait for him.
    ///
    /// # Errors
    /// The daemon's; `NotConnected` if it has ended, `InvalidInput` for pages that are not of the view.
    pub fn populate(&self, pages: Range<u64>) -> io::Result<()> {
        let shown = self.view().pages();
        if pages.is_empty() {
            return Ok(());
        }
        if pages.start < shown.start || pages.end > shown.end {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.shared.populate(pages)
    }

    /// Says how the program is going to load. A hint: nobody hears whether it arrives.
    pub fn advise(&self, advised: Advised) {
        // Who is gone needs no advice.
        let _ = self.shared.send(Asked::Advise(advised));
    }

    /// While what it gives lives, nothing is said to the daemon: the thread stops at the first thing that
    /// it would say.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> pagefence_lock_order::primitives::MutexGuard<'_, ()> {
        self.shared.sending.lock()
    }

    /// Leaves `mutant` out from now on.
    #[cfg(any(test, feature = "mutants"))]
    pub fn leave_out(&self, mutant: crate::mutants::Mutant) {
        self.shared.mutants.leave_out(mutant);
    }

    /// Whether who serves the file has ended, or this side has ended the connection: what is not mapped
    /// gives SIGBUS.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.shared.is_over()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Nobody touches the memory any more, so it does not matter that the daemon hears of the end
        // before it is unmapped. A thread that waits for room on the wire goes on.
        self.shared.bell.end();
        self.shared.wire.shut_down();
        if let Some(thread) = self.thread.take() {
            // It can't have panicked.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// Sends `what`, with how much is done; waits for room.
    fn send(&self, what: Asked) -> io::Result<()> {
        let _one = self.sending.lock();
        let done = self.done.load(Ordering::SeqCst);
        self.wire.send(&FromClient { done, what }, None, true)
    }

    fn populate(&self, pages: Range<u64>) -> io::Result<()> {
        let (first, end) = (pages.start, pages.end);
        let ask = || self.send(Asked::Populate { first, end });
        match self.populates.ask(ask, || self.is_over()) {
            Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// From now on nobody waits for an answer.
    fn nobody_answers(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.populates.nobody_answers();
        self.sizes.nobody_answers();
    }
}

/// The daemon's answer: bytes of the file, its clock, the memory.
fn welcome(wire: &Wire) -> Result<(u64, u64, OwnedFd), GuardError> {
    let deadline = Instant::now() + OPEN_PATIENCE;
    let mut is_looked_behind = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(GuardError::Gone);
        }
        poll_in(&[wire.as_fd()], Some(left))?;
        match wire.receive::<Opened>(false).map_err(gone_or)? {
            Found::Nothing => {}
            // Who closes without having heard all resets the connection, which is found first.
            Found::Over if !is_looked_behind => is_looked_behind = true,
            Found::Over => return Err(GuardError::Gone),
            Found::Packet(Opened::Refused { errno }, _) => {
                return Err(GuardError::Refused(errno_of(errno)));
            }
            Found::Packet(Opened::Welcome { size, now }, memory) => {
                let without = || io::Error::from(io::ErrorKind::InvalidData);
                return Ok((size, now, memory.ok_or_else(without)?));
            }
        }
    }
}

fn errno_of(number: i32) -> Errno {
    match number {
        1..4096 => Errno::from_raw_os_error(number),
        _ => Errno::IO,
    }
}

fn gone_or(error: io::Error) -> GuardError {
    if super::is_end(&error) {
        GuardError::Gone
    } else {
        GuardError::System(error)
    }
}
