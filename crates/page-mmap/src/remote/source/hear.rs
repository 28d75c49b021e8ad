//! How the daemon hears what a client says, and waits for it.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::MutexGuard;
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_page_cache::Hint;

use super::said::{Question, Said};
use super::{Because, RemoteSource, poll_in};
use crate::fault_source::{Ask, Cause};
use crate::remote::wire::{Asked, Found, FromClient, ToClient};
use crate::remote::{Advised, PATIENCE, RemoteKind, clock};

/// Packets that are taken in at a time.
const PACKETS: usize = 64;

/// What is heard and not looked at yet; the rest stays on the wire, where there is less room. No program
/// has as many threads.
const MOST_HEARD: usize = 1 << 12;

/// How long who waits leaves it to others to hear: the fault loop, most often. That may be about something
/// else for long.
const SLICE: Duration = Duration::from_millis(2);

/// What came in.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The thread of the fault loop, once it has greeted the client.
    pub(super) listener: Option<ThreadId>,
    pub(super) faults: Vec<Cause>,
    pub(super) asks: VecDeque<Ask>,
    /// Pages are populated for the client, who has heard of no end of it: one at a time.
    pub(super) is_populating: bool,
}

impl Heard {
    pub(super) fn is_nothing(&self) -> bool {
        self.faults.is_empty() && self.asks.is_empty()
    }
}

impl RemoteSource {
    /// Takes in what has come, without waiting.
    pub(super) fn hear(&self) {
        // One packet after the other: what is acknowledged never becomes less.
        let _one = self.hearing.lock();
        for _ in 0..PACKETS {
            {
                let heard = self.heard.lock();
                if heard.faults.len() + heard.asks.len() >= MOST_HEARD {
                    return;
                }
            }
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
            let before = said.acknowledged;
            said.acknowledge(packet.done)?;
            if said.acknowledged > before {
                self.heard_of.notify_all();
            }
            match packet.what {
                Asked::Clock => {
                    self.say(&mut said, ToClient::Clock { now: clock() }, false);
                }
                Asked::Size => {
                    said.size = self.bytes_of_file();
                    let what = ToClient::Size {
                        bytes: said.size,
                        is_answer: true,
                    };
                    self.say(&mut said, what, false);
                }
                _ => {}
            }
        }
        let inside =
            |pages: &Range<u64>| pages.start >= self.pages.start && pages.end <= self.pages.end;
        let mut heard = self.heard.lock();
        match packet.what {
            Asked::Nothing | Asked::Clock | Asked::Size => return Some(()),
            Asked::Fault {
                page,
                is_store,
                met_hole,
            } => {
                if !self.pages.contains(&page) || (is_store && self.kind == RemoteKind::ReadOnly) {
                    return None;
                }
                heard.faults.push(Cause {
                    page,
                    is_store,
                    met_hole,
                });
            }
            Asked::Populate { first, end } => {
                inside(&(first..end)).then_some(())?;
                let is_second = std::mem::replace(&mut heard.is_populating, true);
                (!is_second).then_some(())?;
                heard.asks.push_back(Ask::Populate(first..end));
            }
            Asked::Advise(advised) => heard.asks.push_back(match advised {
                Advised::Normal => Ask::Advise(Hint::Normal),
                Advised::Sequential => Ask::Advise(Hint::Sequential),
                Advised::Random => Ask::Advise(Hint::Random),
                Advised::WillNeed => Ask::WillNeed(self.pages.clone()),
            }),
        }
        if heard.listener != Some(std::thread::current().id()) {
            // It may have gone to sleep on the wire.
            self.heard_more.ring();
        }
        Some(())
    }

    /// Waits until packet `number` is acknowledged, until `deadline` at most. Whether it was, or nobody is
    /// there who could do what was said. What is added to `waited` is for the client's account: none of the
    /// time for which this thread itself was not let run, as where others take the processors.
    pub(super) fn wait_for(
        &self,
        said: &mut MutexGuard<'_, Said>,
        number: u64,
        deadline: Instant,
        waited: &mut Duration,
    ) -> bool {
        let mut has_looked = false;
        loop {
            if said.acknowledged >= number || self.is_gone() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && has_looked {
                return false;
            }
            if left.is_zero() {
                // Others may have taken the time: an answer that is there was not late.
                MutexGuard::unlocked(said, || self.hear());
                has_looked = true;
                continue;
            }
            let slice = left.min(SLICE);
            let begun = Instant::now();
            let is_listener = self.is_listener();
            if !is_listener {
                self.heard_of.wait_for(said, slice);
                *waited += begun.elapsed().min(slice);
                if said.acknowledged >= number {
                    return true;
                }
            }
            MutexGuard::unlocked(said, || {
                if is_listener && !self.is_cut_off() {
                    // Errors: the deadline comes. Another one may take in what is waited for.
                    let _ = poll_in(&[self.wire.as_fd()], Some(slice));
                } else if is_listener {
                    std::thread::sleep(slice);
                }
                self.hear();
            });
            if is_listener {
                *waited += begun.elapsed().min(slice);
            }
        }
    }

    /// As [`Self::wait_for`]; the client's account is charged.
    pub(super) fn wait_charged(
        &self,
        said: &mut MutexGuard<'_, Said>,
        number: u64,
        deadline: Instant,
    ) -> bool {
        if said.acknowledged >= number {
            return true;
        }
        let mut waited = Duration::ZERO;
        let is_done = self.wait_for(said, number, deadline, &mut waited);
        self.account.charge(waited, Instant::now());
        is_done
    }

    /// As [`Self::wait_charged`], for [`PATIENCE`] from the question on; who lets that pass is silent.
    pub(super) fn wait_or_silence(
        &self,
        said: &mut MutexGuard<'_, Said>,
        question: Question,
    ) -> bool {
        let number = question.number;
        let is_done = self.wait_charged(said, number, question.at + PATIENCE);
        if !is_done {
            if !said.is_silent() && !self.is_cut_off() {
                tracing::warn!("a program that maps a file does not answer: nobody waits for it");
            }
            said.silent_since = said.silent_since.max(Some(number));
        }
        is_done
    }

    /// Whether this thread is the fault loop's.
    fn is_listener(&self) -> bool {
        self.heard.lock().listener == Some(std::thread::current().id())
    }
}
