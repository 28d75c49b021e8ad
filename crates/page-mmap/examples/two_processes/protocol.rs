//! Faults over a socket: the guard thread of a client asks, a daemon's thread grants.

use std::io;
use std::ops::Range;

use pagefence_host_memory::{Continue, Userfault, View};

use crate::wire::{Wire, Words};

/// Guard: a thread stands at a fault of this page.
pub(crate) const FAULT: u64 = 1;
/// Daemon: it may be mapped, for loads and stores.
pub(crate) const GRANT: u64 = 2;
/// Guard: a grant has taken effect.
pub(crate) const TAKEN: u64 = 3;
/// Daemon: a run of pages, as [`number`] says it, shall be protected against stores.
pub(crate) const PROTECT: u64 = 4;

/// A run of pages as one number.
pub(crate) fn number(run: &Range<u64>) -> u64 {
    run.start << 32 | (run.end - run.start)
}

/// The run of pages that a number is.
fn run(number: u64) -> Range<u64> {
    let start = number >> 32;
    start..start + (number & u64::from(u32::MAX))
}

/// What the guard of a client does until the daemon is gone: asks for each fault, maps what is
/// granted, and says so if `acknowledges`. Then poisons the view, and comes back.
pub(crate) fn guard(
    wire: &Wire,
    userfault: &Userfault,
    view: &View,
    acknowledges: bool,
) -> io::Result<()> {
    let mut events = Vec::new();
    loop {
        let woken = userfault.wait(Some(rustix::fd::AsFd::as_fd(wire)), None)?;
        if woken.until {
            let Some([what, page]) = wire.receive()? else {
                // Poison goes where nothing is mapped; taken away page by page that takes longer.
                view.zap(view.pages());
                let poisoned = userfault.poison(view, view.pages());
                return poisoned.map(|_| ()).map_err(io::Error::other);
            };
            if what == PROTECT {
                let pages = run(page);
                userfault
                    .protect(view, pages, true)
                    .map_err(io::Error::other)?;
            } else {
                assert_eq!(what, GRANT, "nothing else is said");
                map(userfault, view, page..page + 1)?;
            }
            if acknowledges || what == PROTECT {
                tell(wire, [TAKEN, page])?;
            }
        }
        if woken.faults {
            userfault.read_events(&mut events)?;
            for event in events.drain(..) {
                tell(wire, [FAULT, event.page])?;
            }
        }
    }
}

/// Says something to a daemon that may have gone: the next wait tells.
fn tell(wire: &Wire, words: Words) -> io::Result<()> {
    match wire.send(words) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Maps `page` for loads and stores, whatever is mapped there, and wakes who waits for it.
pub(crate) fn map(userfault: &Userfault, view: &View, page: Range<u64>) -> io::Result<()> {
    match userfault.continue_pages(view, page.clone(), false) {
        Ok(()) => Ok(()),
        // Two threads stood at the same fault: the second one must be woken too.
        Err(Continue::AlreadyMapped { .. }) => {
            userfault
                .protect(view, page.clone(), false)
                .map_err(io::Error::other)?;
            userfault.wake(view, page).map_err(io::Error::other)
        }
        Err(error) => Err(io::Error::other(error)),
    }
}
