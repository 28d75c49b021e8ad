//! A read of the page, from the cache or by filling it.

use super::state::{Mutant, Scenario, State};

/// How far a reader is. `cuts`: how many were finished when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Reader {
    Start,
    /// Has the invalidate lock.
    Locked {
        cuts: u8,
    },
    /// Has looked up the block, and reads it.
    Reading {
        cuts: u8,
        block: u8,
    },
    Done,
}

impl Reader {
    pub(super) fn holds_lock(&self) -> bool {
        matches!(self, Self::Locked { .. } | Self::Reading { .. })
    }
}

impl State {
    pub(super) fn step_reader(&mut self, scenario: &Scenario, at: usize) -> bool {
        let next = match self.readers[at] {
            Reader::Start => match self.folio {
                Some(folio) if folio.uptodate => {
                    self.observe(folio.data, self.cuts);
                    Reader::Done
                }
                // Waits for the lock of the page, with no other held (U7).
                Some(_) => return false,
                None if self.may_share() || scenario.is(Mutant::ReadWithoutLock) => {
                    Reader::Locked { cuts: self.cuts }
                }
                None => return false,
            },
            Reader::Locked { .. } if self.folio.is_some() => Reader::Start,
            // Past the end there is nothing to see.
            Reader::Locked { .. } if !self.inside => Reader::Done,
            Reader::Locked { cuts } => match self.map {
                Some(block) => {
                    self.insert_locked();
                    Reader::Reading { cuts, block }
                }
                None => Reader::Done,
            },
            Reader::Reading { cuts, block } => {
                let data = self.read_block(Some(block));
                if let Some(folio) = &mut self.folio {
                    folio.data = data;
                    folio.uptodate = true;
                }
                self.unlock_folio();
                self.observe(data, cuts);
                Reader::Done
            }
            Reader::Done => return false,
        };
        self.readers[at] = next;
        true
    }
}
