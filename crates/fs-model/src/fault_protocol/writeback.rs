//! Who takes pages with no lock but theirs: reclaim and writeback.

use super::state::{Data, Entry, Mutant, Owner, Scenario, State};

/// How far reclaim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reclaim {
    Start,
    PageLocked,
    Done,
}

/// How far writeback is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Writeback {
    Start,
    PageLocked,
    /// The page is marked as being written and unlocked; this is the block that it had.
    Writing(Option<u8>),
    /// The data is in the block, which is to be mapped.
    Written(u8),
    Done,
}

impl State {
    pub(super) fn step_reclaim(&mut self, scenario: &Scenario) -> bool {
        match self.reclaim {
            Reclaim::Start => {
                let may_go = self
                    .folio
                    .is_some_and(|folio| folio.uptodate && !folio.dirty && !folio.writeback);
                if !may_go || self.lock_folio().is_none() {
                    return false;
                }
                self.reclaim = Reclaim::PageLocked;
            }
            Reclaim::PageLocked => {
                if !scenario.is(Mutant::ReclaimKeepsMaps) {
                    self.unmap_shared();
                }
                self.folio = None;
                self.reclaim = Reclaim::Done;
            }
            Reclaim::Done => return false,
        }
        true
    }

    pub(super) fn step_writeback(&mut self, scenario: &Scenario) -> bool {
        self.writeback = match self.writeback {
            Writeback::Start => {
                let wants = self.folio.is_some_and(|folio| folio.dirty) && self.inside;
                if !wants || self.lock_folio().is_none() {
                    return false;
                }
                Writeback::PageLocked
            }
            Writeback::PageLocked => {
                if !scenario.is(Mutant::NoWriteProtect) {
                    self.write_protect();
                }
                if let Some(folio) = &mut self.folio {
                    folio.dirty = false;
                    folio.writeback = true;
                }
                self.unlock_folio();
                Writeback::Writing(self.map)
            }
            Writeback::Writing(block) => {
                let data = self.folio.map_or(Data::Zeros, |folio| folio.data);
                let Some(block) = block.or_else(|| self.choose_block()) else {
                    // The other file has all of them: the promise was broken by nobody here, for
                    // the model's device has no count of promises.
                    return self.give_up_writing();
                };
                let target = &mut self.blocks[usize::from(block)];
                self.faults.unowned |= target.owner != Owner::File;
                target.data = data;
                Writeback::Written(block)
            }
            Writeback::Written(block) => {
                self.map = Some(block);
                self.reserved = false;
                if let Some(folio) = &mut self.folio {
                    folio.writeback = false;
                }
                Writeback::Done
            }
            Writeback::Done => return false,
        };
        true
    }

    fn write_protect(&mut self) {
        for faulter in &mut self.faulters {
            if let Some(Entry::Shared { writable, .. }) = &mut faulter.entry {
                *writable = false;
            }
        }
    }

    fn choose_block(&mut self) -> Option<u8> {
        let free = self
            .blocks
            .iter()
            .position(|block| block.owner == Owner::Nobody)?;
        self.blocks[free].owner = Owner::File;
        u8::try_from(free).ok()
    }

    fn give_up_writing(&mut self) -> bool {
        if let Some(folio) = &mut self.folio {
            folio.writeback = false;
            folio.dirty = true;
        }
        self.writeback = Writeback::Done;
        true
    }
}
