//! Writeback and fsync: lock and mark, choose, write, *then* map, and only then unmark.

use super::config::{Mutant, Op, Scenario};
use super::state::{NONE, PAGES, Pc, State, has, id};

impl State {
    /// One step of a writeback or an fsync.
    pub(super) fn step_writeback(
        &mut self,
        scenario: &Scenario,
        thread: usize,
        file: usize,
    ) -> bool {
        let maps_first = scenario.is(Mutant::MapBeforeWrite);
        match self.threads[thread].pc {
            Pc::Start => {
                self.threads[thread].target = std::array::from_fn(|page| self.pages[page].settled);
                self.goto(thread, Pc::Gather)
            }
            Pc::Gather => self.step_gather(scenario, thread, file),
            Pc::ReserveCredits => {
                self.threads[thread].early = true;
                self.journal.reserve_credits(scenario) && self.goto(thread, Pc::Choose)
            }
            Pc::Choose => {
                self.choose(scenario, thread, file);
                let has_fresh = self.threads[thread].fresh != 0;
                if maps_first && has_fresh {
                    return self.goto(thread, Pc::MapStart);
                }
                self.step_submit(thread)
            }
            Pc::Submit => self.step_submit(thread),
            Pc::Complete => self.step_complete(scenario, thread),
            Pc::MapStart => {
                let journal = &mut self.journal;
                let has_started = if self.threads[thread].early {
                    journal.start_reserved()
                } else {
                    journal.start_handle(scenario)
                };
                has_started && self.goto(thread, Pc::Map)
            }
            Pc::Map => self.step_map(scenario, thread, file),
            Pc::MapEnd => {
                self.journal.end_handle();
                self.threads[thread].early = false;
                self.goto(
                    thread,
                    if maps_first {
                        Pc::Submit
                    } else {
                        Pc::ClearWriteback
                    },
                )
            }
            Pc::ClearWriteback => {
                self.clear_writeback(thread);
                self.goto(thread, Pc::Gather)
            }
            Pc::FsyncCommit => self.step_fsync_commit(scenario, thread),
            Pc::WaitForCommit {
                sequence,
                then_flush,
            } => {
                let next = if then_flush {
                    Pc::WaitForFlush
                } else {
                    Pc::FsyncDone
                };
                self.journal.committed >= sequence && self.goto(thread, next)
            }
            // The journal's thread moves it on.
            Pc::WaitForFlush | Pc::InFlush => false,
            Pc::FsyncDone => {
                for page in scenario.pages_of(file) {
                    let target = self.threads[thread].target[page];
                    let promised = &mut self.pages[page].promised;
                    *promised = target.max(*promised);
                }
                self.finish_op(thread)
            }
            pc => unreachable!("writeback is not at {pc:?}"),
        }
    }

    fn gathered(&self, thread: usize) -> impl Iterator<Item = usize> + use<> {
        let gathered = self.threads[thread].gathered;
        (0..PAGES).filter(move |&page| has(gathered, page))
    }

    /// Locks and marks the next dirty page; ascending, so that two of these cannot wait in a ring.
    fn step_gather(&mut self, scenario: &Scenario, thread: usize, file: usize) -> bool {
        if scenario.is(Mutant::HandleBeforePageLock) && !self.threads[thread].early {
            let has_started = self.journal.start_handle(scenario);
            self.threads[thread].early |= has_started;
            return has_started;
        }
        let waits = matches!(self.op(scenario, thread), Some(Op::Fsync(_)))
            && !scenario.is(Mutant::FsyncIgnoresOthersWriteback);
        let from = usize::from(self.threads[thread].cursor);
        for page in scenario.pages_of(file).filter(|&page| page >= from) {
            let is_mine = has(self.threads[thread].gathered, page);
            let cached = &mut self.pages[page];
            if is_mine || (!cached.dirty && !cached.writeback) {
                continue;
            }
            if cached.writeback {
                if !waits {
                    continue;
                }
                // What is in hand is submitted before anything is waited for.
                self.threads[thread].cursor = id(page);
                return self.threads[thread].gathered != 0 && self.end_gather(scenario, thread);
            }
            if cached.locked_by.is_some() {
                return false;
            }
            cached.locked_by = Some(id(thread));
            cached.dirty = false;
            cached.writeback = true;
            self.threads[thread].gathered |= 1 << page;
            self.threads[thread].cursor = id(page);
            return true;
        }
        if self.threads[thread].gathered != 0 {
            self.threads[thread].cursor = id(PAGES);
            return self.end_gather(scenario, thread);
        }
        if self.threads[thread].early {
            self.journal.end_handle();
        }
        if matches!(self.op(scenario, thread), Some(Op::Fsync(_))) {
            self.goto(thread, Pc::FsyncCommit)
        } else {
            self.finish_op(thread)
        }
    }

    fn end_gather(&mut self, scenario: &Scenario, thread: usize) -> bool {
        if self.threads[thread].early {
            // A mutant's handle, from before the page locks.
            self.journal.end_handle();
            self.threads[thread].early = false;
        }
        if scenario.reserved_credits {
            return self.goto(thread, Pc::ReserveCredits);
        }
        self.unlock_gathered(thread);
        self.goto(thread, Pc::Choose)
    }

    fn unlock_gathered(&mut self, thread: usize) {
        for page in self.gathered(thread) {
            if self.pages[page].locked_by == Some(id(thread)) {
                self.pages[page].locked_by = None;
            }
        }
    }

    /// Chooses a block for each page that has none: busy in memory, in no bitmap.
    fn choose(&mut self, scenario: &Scenario, thread: usize, file: usize) {
        self.unlock_gathered(thread);
        for page in self.gathered(thread) {
            let mapped = self.metadata.map[page];
            if mapped != NONE {
                self.threads[thread].batch[page] = mapped;
                continue;
            }
            self.adjust(scenario, file, |state| {
                // Its own reservation is the block it takes now.
                let block = state.allocate(scenario);
                state.pages[page].reserved = false;
                state.pages[page].chosen = block;
                state.threads[thread].batch[page] = block;
                state.threads[thread].fresh |= 1 << page;
            });
        }
        if self.threads[thread].early
            && self.threads[thread].fresh == 0
            && scenario.reserved_credits
        {
            self.journal.return_credits();
            self.threads[thread].early = false;
        }
    }

    fn step_submit(&mut self, thread: usize) -> bool {
        for page in self.gathered(thread) {
            self.submit(page, self.threads[thread].batch[page]);
            self.threads[thread].sent[page] = self.pages[page].content;
        }
        self.goto(thread, Pc::Complete)
    }

    fn step_complete(&mut self, scenario: &Scenario, thread: usize) -> bool {
        if scenario.is(Mutant::CompletionTakesPageLock) && self.is_any_locked(thread) {
            return false;
        }
        for page in self.gathered(thread) {
            let (block, sent) = {
                let thread = &self.threads[thread];
                (thread.batch[page], thread.sent[page])
            };
            self.complete(page, block, sent);
        }
        if scenario.is(Mutant::WritebackClearedBeforeMap) {
            for page in self.gathered(thread) {
                self.pages[page].writeback = false;
            }
        }
        let needs_handle = self.threads[thread].fresh != 0 && !scenario.is(Mutant::MapBeforeWrite);
        self.goto(
            thread,
            if needs_handle {
                Pc::MapStart
            } else {
                Pc::ClearWriteback
            },
        )
    }

    fn is_any_locked(&self, thread: usize) -> bool {
        self.gathered(thread)
            .any(|page| self.is_locked_by_other(page, thread))
    }

    /// Within the handle: the blocks go from busy to mapped.
    fn step_map(&mut self, scenario: &Scenario, thread: usize, file: usize) -> bool {
        if scenario.is(Mutant::PageLockInHandle) && self.is_any_locked(thread) {
            return false;
        }
        let fresh = self.threads[thread].fresh;
        self.adjust(scenario, file, |state| {
            for page in (0..PAGES).filter(|&page| has(fresh, page)) {
                state.metadata.map[page] = state.threads[thread].batch[page];
                state.pages[page].chosen = NONE;
            }
        });
        // The tree block comes last: now the extents are known, and its reservation is dropped with
        // the last unmapped page or taken by the tree.
        self.adjust(scenario, file, |state| state.log_mapping(scenario, file));
        self.goto(thread, Pc::MapEnd)
    }

    /// The pages are done; the scan goes on where it stopped.
    fn clear_writeback(&mut self, thread: usize) {
        for page in self.gathered(thread) {
            self.pages[page].writeback = false;
        }
        let thread = &mut self.threads[thread];
        thread.early = false;
        thread.gathered = 0;
        thread.fresh = 0;
        thread.batch = [NONE; PAGES];
        thread.sent = [0; PAGES];
    }

    /// All data is written and mapped: commit what may map it, and flush what nothing commits.
    fn step_fsync_commit(&mut self, scenario: &Scenario, thread: usize) -> bool {
        let journal = &self.journal;
        let then_flush = !scenario.is(Mutant::FsyncWithoutFlush);
        let next = if !journal.is_running_empty() {
            // Its flush has not started, so that it covers the data, too.
            Pc::WaitForCommit {
                sequence: journal.running.sequence,
                then_flush: false,
            }
        } else if let Some(committing) = &journal.committing {
            Pc::WaitForCommit {
                sequence: committing.sequence,
                then_flush,
            }
        } else if then_flush {
            Pc::WaitForFlush
        } else {
            Pc::FsyncDone
        };
        self.goto(thread, next)
    }
}
