//! What wakes a region's fault loop when there is no fault.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use rustix::event::{EventfdFlags, eventfd};

/// An eventfd that is rung for the loop to look again, and once to end.
#[derive(Debug)]
pub(crate) struct Bell {
    fd: OwnedFd,
    is_over: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            is_over: AtomicBool::new(false),
        })
    }

    /// What can be read when it was rung.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Has the loop look again.
    pub(crate) fn ring(&self) {
        let rung = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        // It is full only if it has been rung without end, and then it can be read.
        debug_assert!(rung.is_ok(), "a bell that can't be rung");
    }

    /// Has the loop end.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// Whether the loop is to end.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// As [`Self::is_over`]; from now on it can be rung again.
    pub(crate) fn hear(&self) -> bool {
        let mut count = [0; 8];
        // There is nothing to read if somebody else has heard it.
        let _ = rustix::io::read(&self.fd, &mut count);
        self.is_over()
    }
}
