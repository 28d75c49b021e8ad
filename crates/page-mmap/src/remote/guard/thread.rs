//! The thread of a guard: does what the daemon says, packet by packet, and tells it of faults.
//!
//! Threads of the program may stand at a fault with any lock of the program held. So it waits for none, and
//! does not log: [`Guard::is_over`] tells of the end.
//!
//! [`Guard::is_over`]: super::Guard::is_over

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pagefence_host_memory::Event;
use pagefence_lock_order::primitives::atomic::Ordering;

use super::Shared;
use super::entries::Entries;
#[cfg(any(test, feature = "mutants"))]
use crate::mutants::Mutant;
use crate::remote::source::poll_in;
use crate::remote::wire::{Asked, Found, FromDaemon, ToClient};
use crate::remote::{PATIENCE, clock};
use crate::service::AbortOnPanic;

/// Packets that are done before faults are looked for, and not acknowledged at most.
const PACKETS: u64 = 32;

/// Turns that always have something to do, after which pages are looked for that are to be tried again.
const CURE_TURNS: u64 = 64;

/// How old a right may be that is made use of: half of what the daemon waits for, which leaves the other
/// half for a thread that is held up between its look at the clock and the mapping.
const MOST_AGE: Duration = PATIENCE.checked_div(2).expect("two is not zero");

/// By how much the daemon's clock is ahead of the own one, at most. Processes may see the clock shifted
/// against each other (time namespaces).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lead(i128);

impl Lead {
    /// As is known when the daemon says `now` to something that was asked at `asked` by the own clock: it
    /// was read after that.
    pub(super) fn of(asked: u64, now: u64) -> Self {
        Self(i128::from(now) - i128::from(asked))
    }

    /// Whether what was said at `said` by the daemon's clock is too old at `now` by the own one. So it
    /// may seem while it is not, never the other way round.
    fn is_too_old(self, said: u64, now: u64) -> bool {
        let most = i128::try_from(MOST_AGE.as_nanos()).expect("half a second");
        i128::from(now) + self.0 - i128::from(said) > most
    }
}

/// The connection is over: the daemon has ended, or said what makes no sense.
struct Over;

/// What the thread has.
struct Thread<'a> {
    shared: &'a Shared,
    entries: Entries<'a>,
    lead: Lead,
    /// When the daemon was asked for its clock, by the own one, while that is not answered.
    clock_asked: Option<u64>,
    /// Packets done, and how many of those the daemon was told of.
    done: u64,
    told: u64,
}

/// Serves the faults of the view of `shared` until its bell says that it is over.
pub(super) fn guard(shared: &Shared, lead: Lead) {
    let _panic = AbortOnPanic;
    let mut thread = Thread {
        shared,
        entries: Entries::of(&shared.view, &shared.userfault),
        lead,
        clock_asked: None,
        done: 0,
        told: 0,
    };
    if let Err(Over) = thread.serve() {
        thread.end();
    }
}

impl Thread<'_> {
    /// Until the bell says so.
    fn serve(&mut self) -> Result<(), Over> {
        // What is known from the greeting may be off by all that the daemon had to do before.
        self.ask_clock()?;
        for turn in 1_u64.. {
            let packets = self.do_packets()?;
            let faults = self.tell_faults()?;
            if packets + faults > 0 && turn % CURE_TURNS != 0 {
                continue;
            }
            let next_cure = self.entries.cure_failed(Instant::now());
            if packets + faults > 0 {
                continue;
            }
            let shared = self.shared;
            let fds = [
                shared.bell.fd(),
                shared.userfault.as_fd(),
                shared.wire.as_fd(),
            ];
            let ready = poll_in(&fds, next_cure).unwrap_or_else(|error| {
                panic!("faults of a mapped file can't be waited for: {error}")
            });
            if ready[0] && shared.bell.hear() {
                break;
            }
        }
        Ok(())
    }

    /// Does what the daemon has said, as far as it is there; says how many packets that were.
    fn do_packets(&mut self) -> Result<u64, Over> {
        let mut count = 0;
        let mut is_waited_for = false;
        while count < PACKETS {
            match self.shared.wire.receive::<FromDaemon>(false) {
                Ok(Found::Packet(packet, _)) => {
                    self.obey(packet.what)?;
                    self.done += 1;
                    self.shared.done.store(self.done, Ordering::SeqCst);
                    is_waited_for |= packet.is_waited_for;
                    count += 1;
                }
                Ok(Found::Nothing) => break,
                Ok(Found::Over) | Err(_) => return Err(Over),
            }
        }
        if is_waited_for || self.done - self.told >= PACKETS {
            self.say(Asked::Nothing)?;
        }
        Ok(count)
    }

    fn obey(&mut self, what: ToClient) -> Result<(), Over> {
        let shown = self.shared.view.pages();
        let pages = match what {
            ToClient::Map { first, end, .. }
            | ToClient::Protect { first, end }
            | ToClient::Cure { first, end }
            | ToClient::Zap { first, end }
            | ToClient::Wake { first, end } => first..end,
            ToClient::Poison { page } => page..page.saturating_add(1),
            ToClient::Size { .. }
            | ToClient::Settle
            | ToClient::Populated { .. }
            | ToClient::Clock { .. } => shown.clone(),
        };
        if pages.start < shown.start || pages.end > shown.end {
            return Err(Over);
        }
        match what {
            ToClient::Map { writable, now, .. } => {
                let lead = self.lead;
                let is_too_old = || lead.is_too_old(now, clock());
                #[cfg(any(test, feature = "mutants"))]
                let is_too_old = || !self.shared.mutants.has(Mutant::Age) && is_too_old();
                if !self.entries.map(pages, writable, is_too_old) {
                    // It may only seem so.
                    self.ask_clock()?;
                }
            }
            ToClient::Protect { .. } => self.entries.protect(pages),
            ToClient::Poison { page } => self.entries.poison(page),
            ToClient::Wake { .. } => self.entries.wake(pages),
            ToClient::Cure { .. } => self.entries.cure(pages),
            ToClient::Zap { .. } => self.entries.zap(pages),
            ToClient::Size { bytes, is_answer } => {
                self.shared.size.store(bytes, Ordering::SeqCst);
                if is_answer && !self.shared.sizes.answer(bytes) {
                    return Err(Over);
                }
            }
            ToClient::Settle => {}
            ToClient::Populated { errno } => {
                if !self.shared.populates.answer(errno) {
                    return Err(Over);
                }
            }
            ToClient::Clock { now } => {
                let asked = self.clock_asked.take().ok_or(Over)?;
                // Each of them is the most that it can be.
                self.lead = Lead(self.lead.0.min(Lead::of(asked, now).0));
            }
        }
        Ok(())
    }

    fn ask_clock(&mut self) -> Result<(), Over> {
        if self.clock_asked.is_some() {
            return Ok(());
        }
        self.clock_asked = Some(clock());
        self.say(Asked::Clock)
    }

    /// Tells the daemon of those who have stopped since; says how many.
    fn tell_faults(&mut self) -> Result<u64, Over> {
        let events = self.faults();
        for event in &events {
            self.entries.stands_at(event.page);
        }
        for event in &events {
            let met_hole = self.entries.take_hole(event.page);
            self.say(Asked::Fault {
                page: event.page,
                is_store: event.write,
                met_hole,
            })?;
        }
        Ok(u64::try_from(events.len()).expect("few"))
    }

    fn faults(&self) -> Vec<Event> {
        let mut events = Vec::new();
        if let Err(error) = self.shared.userfault.read_events(&mut events) {
            panic!("faults of a mapped file can't be served any more: {error}");
        }
        events
    }

    fn say(&mut self, what: Asked) -> Result<(), Over> {
        // What is sent says at least so much.
        self.told = self.done;
        self.shared.send(what).map_err(|_| Over)
    }

    /// The last act: whoever stands at a page, or comes to one from now on, gets SIGBUS.
    fn end(&mut self) {
        let shared = self.shared;
        self.entries.take_all();
        // By now nobody stores there that the daemon does not know of, if there still is one.
        shared.wire.shut_down();
        shared.nobody_answers();
        loop {
            let events = self.faults();
            for event in &events {
                self.entries.poison(event.page);
            }
            if !events.is_empty() {
                continue;
            }
            let ready = poll_in(&[shared.bell.fd(), shared.userfault.as_fd()], None);
            let ready = ready.unwrap_or_else(|error| {
                panic!("faults of a mapped file can't be waited for: {error}")
            });
            if ready[0] && shared.bell.hear() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn rights_look_older_than_they_are_and_never_younger() {
        // Both clocks are the same; the greeting took a fifth of a second.
        let lead = Lead::of(SECOND, SECOND + SECOND / 5);
        let said = 10 * SECOND;
        assert!(!lead.is_too_old(said, said + SECOND / 4));
        assert!(lead.is_too_old(said, said + SECOND / 3));
        assert!(lead.is_too_old(said, said + SECOND / 2 + 1));
        // The daemon's is behind, and ahead.
        for (asked, now) in [(100 * SECOND, SECOND), (SECOND, 100 * SECOND)] {
            let lead = Lead::of(asked, now);
            assert!(!lead.is_too_old(now, asked + SECOND / 2));
            assert!(lead.is_too_old(now, asked + SECOND / 2 + 1));
        }
        assert!(!Lead::of(0, u64::MAX).is_too_old(u64::MAX, 0));
    }
}
