//! A punch or a truncate: takes the page, then its block.

use super::state::{Cut, Mutant, Owner, Scenario, State};

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Stage {
    Start,
    /// Has the invalidate lock.
    Fenced,
    /// Has unmapped the page, for speed.
    Unmapped,
    /// Has locked the page.
    PageLocked,
    /// The page is not in the cache.
    Evicted,
    /// Nor is a private copy of it, if that matters.
    Unmappable,
    /// The block is gone.
    Freed,
    Done,
}

/// A thread that takes the page's block away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Invalidator {
    cut: Cut,
    stage: Stage,
}

impl Invalidator {
    pub(super) fn new(cut: Cut) -> Self {
        Self {
            cut,
            stage: Stage::Start,
        }
    }

    pub(super) fn holds_lock(&self) -> bool {
        !matches!(self.stage, Stage::Start | Stage::Done)
    }

    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Whether it is a truncate that has set the size and not finished.
    pub(super) fn is_cutting(&self) -> bool {
        self.cut == Cut::Truncate && self.holds_lock()
    }
}

impl State {
    pub(super) fn step_invalidator(&mut self, scenario: &Scenario, at: usize) -> bool {
        let Invalidator { cut, stage } = self.invalidators[at];
        let next = match stage {
            Stage::Start if self.may_exclude() || scenario.is(Mutant::CutWithoutLock) => {
                Stage::Fenced
            }
            Stage::Start => return false,
            Stage::Fenced => {
                if cut == Cut::Truncate {
                    self.inside = false;
                    self.unmap_private();
                }
                self.unmap_shared();
                Stage::Unmapped
            }
            Stage::Unmapped => {
                let is_written = self.folio.is_some_and(|folio| folio.writeback);
                if self.folio.is_none() {
                    Stage::Evicted
                } else if is_written && !scenario.is(Mutant::RemoveDuringWriteback)
                    || self.lock_folio().is_none()
                {
                    return false;
                } else {
                    Stage::PageLocked
                }
            }
            Stage::PageLocked => {
                if !scenario.is(Mutant::NoUnmapAtRemoval) {
                    self.unmap_shared();
                }
                self.folio = None;
                Stage::Evicted
            }
            Stage::Evicted => {
                if cut == Cut::Truncate && !scenario.is(Mutant::NoSecondUnmap) {
                    self.unmap_private();
                }
                Stage::Unmappable
            }
            Stage::Unmappable => {
                if let Some(block) = self.map.take() {
                    self.blocks[usize::from(block)].owner = Owner::Nobody;
                }
                self.reserved = false;
                Stage::Freed
            }
            Stage::Freed => {
                self.cuts += 1;
                Stage::Done
            }
            Stage::Done => return false,
        };
        self.invalidators[at].stage = next;
        true
    }
}
