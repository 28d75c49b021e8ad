//! Faults in a [`View`], told and answered: userfaultfd(2).
//!
//! A thread that loads or stores where its view maps nothing, or stores where it may not, sleeps until
//! somebody has answered. [`Userfault::read_events`] tells of it; [`Userfault::continue_pages`],
//! [`Userfault::protect`], [`Userfault::poison`] and [`Userfault::wake`] answer, and wake who waits for
//! the pages that they changed.
//!
//! Invariant: every event is answered by something that wakes, also one that finds its page served:
//! the fault may have been queued after the page was served for another.
//!
//! No event tells of munmap, mremap, madvise or fork (the features EVENT_* are off): the owner of the
//! view does all of those. So no operation fails since the mappings change (EAGAIN) for longer than
//! it takes to repeat it, which is done here.
//!
//! Addresses don't leave this crate: everything is in pages of the file.
#![expect(unsafe_code, reason = "ioctls on mapped ranges, by number")]

mod abi;
mod error;
mod open;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::thread::yield_now;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::ioctl::{Opcode, Setter, Updater, ioctl};

pub use error::{Continue, RangeError, UserfaultError};

use crate::FRAME_SIZE;
use crate::view::View;
use open::Way;

const PAGE: u64 = FRAME_SIZE as u64;

/// Events that one read fetches at most.
const BATCH: usize = 32;

/// A thread that faulted and sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The page of the file.
    pub page: u64,
    /// Whether it stores, or else loads.
    pub write: bool,
    /// What it found.
    pub kind: FaultKind,
}

/// What a fault found. Hints: by the time they are read others may have changed it, so the page cache
/// is asked, not these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Nothing mapped, and a hole in the memory.
    Missing,
    /// Nothing mapped, but there is a page in the memory.
    Minor,
    /// A page mapped that is protected against stores.
    WriteProtected,
}

/// What ended a wait: neither, if its time did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// There are events to read.
    pub faults: bool,
    /// The other descriptor is readable, or closed at its other end.
    pub until: bool,
}

/// A userfaultfd, for one view. Dropping it lets who sleeps go on, to fault past any handler: a hole
/// is filled with zeros then. So the view is dropped first, when nobody uses it.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    kernel_faults: bool,
    registered: Option<Registered>,
}

/// Where the view is, to turn addresses into pages.
#[derive(Clone, Copy, Debug)]
struct Registered {
    base: usize,
    pages: u64,
    first: u64,
}

impl Userfault {
    /// A userfaultfd that needs no privilege, for faults of user code. A system call that is given an
    /// address in a view whose page is not mapped fails with EFAULT.
    ///
    /// # Errors
    /// See [`UserfaultError`].
    pub fn open() -> Result<Self, UserfaultError> {
        Self::open_by(Way::UserFaults)
    }

    /// A userfaultfd for faults of system calls as well: by `/dev/userfaultfd` if the process may open
    /// that, else as root or where `vm.unprivileged_userfaultfd` is 1.
    ///
    /// # Errors
    /// See [`UserfaultError`].
    pub fn open_for_kernel_faults() -> Result<Self, UserfaultError> {
        match Self::open_by(Way::Device) {
            // The device is not there, or not for this process.
            Err(UserfaultError::System(_) | UserfaultError::KernelFaultsDenied) => {
                Self::open_by(Way::KernelFaults)
            }
            opened => opened,
        }
    }

    fn open_by(way: Way) -> Result<Self, UserfaultError> {
        Ok(Self {
            fd: open::open(way)?,
            kernel_faults: !matches!(way, Way::UserFaults),
            registered: None,
        })
    }

    /// Whether faults of system calls are told as well.
    #[must_use]
    pub fn tells_kernel_faults(&self) -> bool {
        self.kernel_faults
    }

    /// From now on faults in `view` are told here: of pages that aren't mapped, and, but for a private
    /// view, of stores to protected ones.
    ///
    /// Waits for the process's map lock, exclusively.
    ///
    /// # Errors
    /// `AlreadyExists` if there is a view already, or the view is registered elsewhere;
    /// `PermissionDenied` if the view is shared and its descriptor is not open for writing; else the
    /// operating system's refusal.
    pub fn register(&mut self, view: &View) -> io::Result<()> {
        if self.registered.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut mode = abi::UFFDIO_REGISTER_MODE_MISSING | abi::UFFDIO_REGISTER_MODE_MINOR;
        if protects(view) {
            mode |= abi::UFFDIO_REGISTER_MODE_WP;
        }
        let pages = view.pages();
        let mut argument = abi::Register {
            range: range(view, pages.clone()).expect("a view has a page"),
            mode,
            ioctls: 0,
        };
        // SAFETY: `argument` is this ioctl's struct. It changes nothing of the mapping but who
        // answers for its faults, and the range is of a view, which is alive.
        let done = unsafe {
            let call = Updater::<{ abi::UFFDIO_REGISTER }, _>::new(&mut argument);
            ioctl(&self.fd, call)
        };
        match done {
            Ok(()) => {}
            Err(Errno::BUSY) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(errno) => return Err(errno.into()),
        }
        self.registered = Some(Registered {
            base: view.as_ptr().addr(),
            pages: pages.end - pages.start,
            first: pages.start,
        });
        Ok(())
    }

    /// Appends the faults that wait to be told, 32 at most; none if there are none. Each is told once.
    ///
    /// # Errors
    /// The operating system can't read; `InvalidData` if it tells of what was not registered.
    pub fn read_events(&self, events: &mut Vec<Event>) -> io::Result<()> {
        let mut bytes = [0; BATCH * abi::MESSAGE];
        let count = match retry_on_intr(|| rustix::io::read(&self.fd, &mut bytes)) {
            Ok(count) => count,
            Err(Errno::AGAIN) => 0,
            Err(errno) => return Err(errno.into()),
        };
        for message in bytes[..count].chunks_exact(abi::MESSAGE) {
            let event = self.registered.and_then(|view| view.event(message));
            events.push(event.ok_or(io::ErrorKind::InvalidData)?);
        }
        Ok(())
    }

    /// Waits until there are faults to read, `until` is readable (an eventfd, say) or `timeout` is
    /// over; for ever if that is `None`.
    ///
    /// # Errors
    /// Those of poll(2), but for EINTR.
    pub fn wait(
        &self,
        until: Option<BorrowedFd<'_>>,
        timeout: Option<Duration>,
    ) -> io::Result<Woken> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut polled = vec![PollFd::new(&self.fd, PollFlags::IN)];
        polled.extend(
            until
                .as_ref()
                .map(|until| PollFd::new(until, PollFlags::IN)),
        );
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut polled, left.as_ref()) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Woken {
            faults: !polled[0].revents().is_empty(),
            until: polled.get(1).is_some_and(|fd| !fd.revents().is_empty()),
        })
    }

    /// Maps `pages` of the file, all of which are in the memory, in `view`, and wakes who waits for
    /// them: for loads and stores, or `protected` for loads, so that a store is told as one to a
    /// protected page. Where a page was poisoned it is not any more.
    ///
    /// A private view's pages are mapped for loads whatever `protected` says, and never tell of a store:
    /// the kernel copies them at the first one.
    ///
    /// Waits for the map lock of the process, shared, and for the memory's lock of each page: that is,
    /// for who punches it or writes to it in that moment, and for its way in from swap.
    ///
    /// # Errors
    /// What stopped it, at which page: the pages before were mapped, and waiters for them woken.
    ///
    /// # Panics
    /// `pages` are not all of the view.
    pub fn continue_pages(
        &self,
        view: &View,
        pages: Range<u64>,
        protected: bool,
    ) -> Result<(), Continue> {
        self.continue_by(view, pages, protected, 0)
    }

    /// As [`Self::continue_pages`], and wakes nobody: who waits for the pages is woken when it is certain
    /// that they may stay ([`Self::wake`]). Who comes by meanwhile finds them.
    ///
    /// # Errors
    /// As [`Self::continue_pages`].
    ///
    /// # Panics
    /// As [`Self::continue_pages`].
    pub fn continue_quietly(
        &self,
        view: &View,
        pages: Range<u64>,
        protected: bool,
    ) -> Result<(), Continue> {
        self.continue_by(view, pages, protected, abi::UFFDIO_CONTINUE_MODE_DONTWAKE)
    }

    fn continue_by(
        &self,
        view: &View,
        pages: Range<u64>,
        protected: bool,
        mode: u64,
    ) -> Result<(), Continue> {
        let mode = if protected && protects(view) {
            mode | abi::UFFDIO_CONTINUE_MODE_WP
        } else {
            mode
        };
        self.install(view, pages, |fd, range| {
            // SAFETY: the struct is this ioctl's, and `range` is of a view: what is mapped there
            // afterwards is a page of the same file.
            unsafe { install::<{ abi::UFFDIO_CONTINUE }>(fd, range, mode) }
        })
        .map_err(|(page, errno)| match errno {
            Errno::EXIST => Continue::AlreadyMapped { page },
            Errno::FAULT => Continue::Hole { page },
            errno if is_gone(errno) => Continue::Gone { page },
            errno => Continue::Refused {
                page,
                source: errno.into(),
            },
        })
    }

    /// Protects those of `pages` that `view` shows against stores, or lets them be stored to and wakes
    /// who waits to.
    ///
    /// When it comes back protecting, no store to them is under way: the next one is told. What isn't
    /// mapped is protected as well, for which page tables are made: don't ask it for a large range of
    /// which little is mapped. In a private view, where stores are nobody's business, it does
    /// nothing but wake.
    ///
    /// Waits for the map lock of the process, shared, and interrupts its threads on other processors;
    /// for no page lock.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn protect(&self, view: &View, pages: Range<u64>, on: bool) -> Result<(), RangeError> {
        let Some(range) = range(view, pages.clone()) else {
            return Ok(());
        };
        if !protects(view) {
            return if on { Ok(()) } else { self.wake(view, pages) };
        }
        let mode = if on {
            abi::UFFDIO_WRITEPROTECT_MODE_WP
        } else {
            0
        };
        self.write_protect(range, mode).map_err(RangeError::of)
    }

    /// Lets those of `pages` that `view` shows be stored to, and takes off the marks that protected pages
    /// left when they went; wakes nobody.
    ///
    /// Waits for what [`Self::protect`] waits for.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn unprotect_quietly(&self, view: &View, pages: Range<u64>) -> Result<(), RangeError> {
        match range(view, pages) {
            Some(range) if protects(view) => self
                .write_protect(range, abi::UFFDIO_WRITEPROTECT_MODE_DONTWAKE)
                .map_err(RangeError::of),
            _ => Ok(()),
        }
    }

    /// Puts poison into those of `pages` that `view` shows, in place of what was mapped there, and
    /// wakes who waits for them: each load or store gives SIGBUS, until the page is continued or
    /// zapped. A punch leaves poison where it is. What a private view has mapped stays, since it may be
    /// a copy, which is nowhere else; says whether nothing stayed.
    ///
    /// The page lock, or whatever else keeps others from continuing these pages, is the caller's:
    /// else one of both wins. Waits for the map lock of the process, shared, for no page lock.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn poison(&self, view: &View, pages: Range<u64>) -> Result<bool, RangeError> {
        let shown = view.pages();
        let end = pages.end.min(shown.end);
        let mut next = pages.start.max(shown.start);
        let (mut cleared, mut gone, mut all) = (0, false, true);
        while next < end {
            let done = self.install(view, next..end, |fd, range| {
                // SAFETY: the struct is this ioctl's, and `range` is of a view: accesses of it
                // give a signal afterwards, which is no breach of memory.
                unsafe { install::<{ abi::UFFDIO_POISON }>(fd, range, 0) }
            });
            let Err((page, errno)) = done else {
                break;
            };
            if is_gone(errno) {
                (gone, next, cleared) = (true, page + 1, 0);
                continue;
            }
            if errno == Errno::EXIST && !protects(view) {
                // A page for loads, or a copy that nobody could bring back: who waits finds it.
                self.wake(view, page..page + 1)?;
                (next, cleared, all) = (page + 1, 0, false);
                continue;
            }
            // Poison is put where there is nothing, not even the mark that a protected page left
            // when it went: that is taken off by ending its protection.
            if errno != Errno::EXIST || (page == next && cleared == CLEARINGS) {
                return Err(RangeError::of(errno));
            }
            cleared = if page == next { cleared + 1 } else { 1 };
            view.zap(page..page + 1);
            let cleared_page = range(view, page..page + 1).expect("a page of the view");
            self.write_protect(cleared_page, abi::UFFDIO_WRITEPROTECT_MODE_DONTWAKE)
                .map_err(RangeError::of)?;
            next = page;
        }
        if gone { Err(RangeError::Gone) } else { Ok(all) }
    }

    /// Wakes who waits for those of `pages` that `view` shows, to try again: who finds nothing there
    /// faults anew. Waits for no lock but of the list of those who wait.
    ///
    /// # Errors
    /// See [`RangeError`]; it is never gone.
    pub fn wake(&self, view: &View, pages: Range<u64>) -> Result<(), RangeError> {
        let Some(range) = range(view, pages) else {
            return Ok(());
        };
        // SAFETY: the struct is this ioctl's; it changes no memory.
        let done = unsafe {
            let call = Setter::<{ abi::UFFDIO_WAKE }, _>::new(range);
            ioctl(&self.fd, call)
        };
        done.map_err(RangeError::of)
    }

    /// Repeats `step`, which gives the bytes that it did and why no more, until all `pages` are done.
    fn install(
        &self,
        view: &View,
        pages: Range<u64>,
        step: impl Fn(&OwnedFd, abi::Range) -> (u64, Result<(), Errno>),
    ) -> Result<(), (u64, Errno)> {
        let shown = view.pages();
        let inside = pages.start >= shown.start && pages.end <= shown.end;
        assert!(inside, "pages {pages:?} of a view of {shown:?}");
        let mut next = pages.start;
        let mut longest = u64::MAX;
        while next < pages.end {
            let end = next.saturating_add(longest).min(pages.end);
            let asked = range(view, next..end).expect("pages of the view");
            let (bytes, result) = step(&self.fd, asked);
            next += bytes / PAGE;
            match result {
                Ok(()) => debug_assert_eq!(bytes, asked.len, "all of it"),
                // A part was done: asked again from there on, it says why. Or nothing was, since
                // page tables moved.
                Err(Errno::AGAIN) if bytes > 0 => {}
                Err(Errno::AGAIN) => yield_now(),
                // The range must be of one mapping to the kernel, which a user has perhaps split:
                // page by page it is found whether one is gone.
                Err(Errno::NOENT) if asked.len > PAGE => longest = 1,
                Err(errno) => return Err((next, errno)),
            }
        }
        Ok(())
    }

    /// Protects `range` or ends that, all of it that is registered; ENOENT if some is not.
    fn write_protect(&self, range: abi::Range, mode: u64) -> Result<(), Errno> {
        loop {
            let mut argument = abi::WriteProtect { range, mode };
            // SAFETY: the struct is this ioctl's, and `range` is of a view: it changes whether
            // stores fault.
            let done = unsafe {
                let call = Updater::<{ abi::UFFDIO_WRITEPROTECT }, _>::new(&mut argument);
                ioctl(&self.fd, call)
            };
            match done {
                Err(Errno::AGAIN) => yield_now(),
                // The kernel stops at the first part that a user has unmapped; behind it stores
                // must not go unnoticed.
                Err(Errno::NOENT) if range.len > PAGE => {
                    let len = range.len / PAGE / 2 * PAGE;
                    let start = range.start + len;
                    let rest = range.len - len;
                    let first = self.write_protect(abi::Range { len, ..range }, mode);
                    let second = self.write_protect(abi::Range { start, len: rest }, mode);
                    return match (first, second) {
                        (Err(errno), second) if is_gone(errno) => second.and(first),
                        (first, second) => first.and(second),
                    };
                }
                done => return done,
            }
        }
    }
}

/// How often what is mapped in one place is taken away before it is poisoned: more than once only if
/// others map there meanwhile.
const CLEARINGS: u32 = 16;

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Registered {
    /// The event that a message tells; `None` if it is not of this view.
    fn event(&self, message: &[u8]) -> Option<Event> {
        let word = |at: usize| {
            let bytes = message.get(at..at + 8)?.try_into().ok()?;
            Some(u64::from_ne_bytes(bytes))
        };
        let flags = word(abi::MESSAGE_FLAGS)?;
        let address = usize::try_from(word(abi::MESSAGE_ADDRESS)?).ok()?;
        let page = address.checked_sub(self.base)? / FRAME_SIZE;
        let page = u64::try_from(page).ok().filter(|page| *page < self.pages)?;
        let kind = if flags & abi::UFFD_PAGEFAULT_FLAG_WP != 0 {
            FaultKind::WriteProtected
        } else if flags & abi::UFFD_PAGEFAULT_FLAG_MINOR != 0 {
            FaultKind::Minor
        } else {
            FaultKind::Missing
        };
        (message.first() == Some(&abi::UFFD_EVENT_PAGEFAULT)).then_some(Event {
            page: self.first + page,
            write: flags & abi::UFFD_PAGEFAULT_FLAG_WRITE != 0,
            kind,
        })
    }
}

impl RangeError {
    fn of(errno: Errno) -> Self {
        if is_gone(errno) {
            Self::Gone
        } else {
            Self::Refused(errno.into())
        }
    }
}

/// Whether an operation met what is not registered, or a process whose memory is being taken down.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::SRCH)
}

/// Whether stores to the view's pages can be protected against: those to a private one need not.
fn protects(view: &View) -> bool {
    view.kind().is_mapped_shared()
}

/// Those of `pages` that the view shows, as addresses.
fn range(view: &View, pages: Range<u64>) -> Option<abi::Range> {
    let (start, len) = view.range(pages)?;
    let number = |value: usize| u64::try_from(value).expect("usize has 64 bits or less");
    Some(abi::Range {
        start: number(start.addr()),
        len: number(len),
    })
}

/// CONTINUE or POISON: the bytes that it did, and why no more.
///
/// # Safety
///
/// `OPCODE` is one of both, and `range` of a view that is alive.
unsafe fn install<const OPCODE: Opcode>(
    fd: &OwnedFd,
    range: abi::Range,
    mode: u64,
) -> (u64, Result<(), Errno>) {
    let mut argument = abi::Install {
        range,
        mode,
        done: 0,
    };
    // SAFETY: the caller's contract.
    let result = unsafe { ioctl(fd, Updater::<OPCODE, _>::new(&mut argument)) };
    // A negated errno is no count.
    (u64::try_from(argument.done).unwrap_or(0), result)
}

#[cfg(all(test, not(shuttle)))]
mod tests;
