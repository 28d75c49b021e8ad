//! A page fault, and the access that it was for.

use super::state::{Access, Data, Entry, Mutant, Scenario, State};

/// How far a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Stage {
    Start,
    /// Has the invalidate lock.
    Shared,
    /// Has looked up the block, and reads it.
    Reading {
        block: Option<u8>,
    },
    /// Has locked the page, which is up to date; with or without the invalidate lock.
    PageLocked {
        shared: bool,
    },
    /// Has looked at the size and reserved space, and is about to map this folio.
    Checked {
        shared: bool,
        folio: u8,
    },
    /// The page is mapped, and about to be accessed.
    Mapped,
    Done,
}

/// A thread that faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Faulter {
    pub(super) access: Access,
    stage: Stage,
    /// What its page table says.
    pub(super) entry: Option<Entry>,
    /// Cuts that were finished when it began.
    cuts: u8,
}

impl Faulter {
    pub(super) fn new(access: Access) -> Self {
        Self {
            access,
            stage: Stage::Start,
            entry: None,
            cuts: 0,
        }
    }

    pub(super) fn holds_lock(&self) -> bool {
        matches!(
            self.stage,
            Stage::Shared
                | Stage::Reading { .. }
                | Stage::PageLocked { shared: true }
                | Stage::Checked { shared: true, .. }
        )
    }

    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }
}

impl State {
    pub(super) fn step_faulter(&mut self, scenario: &Scenario, at: usize) -> bool {
        let Faulter { access, stage, .. } = self.faulters[at];
        let next = match stage {
            Stage::Start => {
                self.faulters[at].cuts = self.cuts;
                let is_cached = self.folio.is_some_and(|folio| folio.uptodate);
                if access != Access::Store && is_cached {
                    // In the cache: the page's lock is enough.
                    if self.lock_folio().is_none() {
                        return false;
                    }
                    Stage::PageLocked { shared: false }
                } else if self.may_share() || scenario.is(Mutant::FaultWithoutLock) {
                    Stage::Shared
                } else {
                    return false;
                }
            }
            Stage::Shared => {
                let checks = !scenario.is(Mutant::NoSizeCheck);
                if self.folio.is_none() && checks && !self.inside {
                    Stage::Done
                } else if self.folio.is_none() {
                    self.insert_locked();
                    Stage::Reading { block: self.map }
                } else if self.lock_folio().is_some() {
                    Stage::PageLocked { shared: true }
                } else {
                    return false;
                }
            }
            Stage::Reading { block } => {
                let data = self.read_block(block);
                if let Some(folio) = &mut self.folio {
                    folio.data = data;
                    folio.uptodate = true;
                }
                Stage::PageLocked { shared: true }
            }
            Stage::PageLocked { shared } => self.check_fault(scenario, access, shared),
            Stage::Checked { folio, .. } => {
                self.faulters[at].entry = Some(match access {
                    Access::PrivateStore => Entry::Private,
                    Access::Load | Access::Store => Entry::Shared {
                        folio,
                        writable: access == Access::Store,
                    },
                });
                if !scenario.is(Mutant::MapAfterUnlock) {
                    self.unlock_folio();
                }
                Stage::Mapped
            }
            Stage::Mapped => {
                self.access(at);
                Stage::Done
            }
            Stage::Done => return false,
        };
        self.faulters[at].stage = next;
        true
    }

    /// The page is locked: what holds now holds until it is unlocked.
    fn check_fault(&mut self, scenario: &Scenario, access: Access, shared: bool) -> Stage {
        let is_mapped = self.map.is_some();
        let inside = self.inside || scenario.is(Mutant::NoSizeCheck);
        let number = match &mut self.folio {
            Some(folio) if inside => {
                if access == Access::Store {
                    self.reserved |= !is_mapped;
                    folio.dirty = true;
                }
                folio.number
            }
            _ => {
                self.unlock_folio();
                return Stage::Done;
            }
        };
        if scenario.is(Mutant::MapAfterUnlock) {
            self.unlock_folio();
        }
        Stage::Checked {
            shared,
            folio: number,
        }
    }

    /// The load or the store; if the page was unmapped or protected meanwhile it would fault again.
    fn access(&mut self, at: usize) {
        let Faulter {
            access,
            entry,
            cuts,
            ..
        } = self.faulters[at];
        let Some(Entry::Shared {
            folio: number,
            writable,
        }) = entry
        else {
            return;
        };
        let Some(folio) = &mut self.folio else { return };
        if folio.number != number {
            return;
        }
        if access == Access::Store && writable {
            folio.data = Data::Stored;
        } else {
            let data = folio.data;
            self.observe(data, cuts);
        }
    }
}
