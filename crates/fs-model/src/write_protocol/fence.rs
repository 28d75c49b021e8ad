//! Punch and truncate: inode lock → fence → evict → edges → one handle → drop.

use std::ops::Range;

use super::config::{Mutant, Scenario};
use super::state::{EdgePromise, Hand, NONE, Pc, State, id};

impl State {
    /// One step of a punch.
    pub(super) fn step_punch(
        &mut self,
        scenario: &Scenario,
        thread: usize,
        file: usize,
        range: Range<usize>,
        edge: Option<usize>,
    ) -> bool {
        let edge_last = scenario.is(Mutant::EdgeAfterHandle);
        match self.threads[thread].pc {
            Pc::Start => self.lock_inode(file, thread) && self.goto(thread, Pc::Fence),
            Pc::Fence => {
                let locks = &mut self.locks[file];
                if locks.invalidate_shared > 0 || locks.invalidate_exclusive.is_some() {
                    return false;
                }
                locks.invalidate_exclusive = Some(id(thread));
                self.threads[thread].cursor = id(range.start);
                let is_early = scenario.is(Mutant::HandleAcrossEvict);
                self.goto(
                    thread,
                    if is_early {
                        Pc::EarlyPunchStart
                    } else {
                        Pc::SplitReserve
                    },
                )
            }
            Pc::EarlyPunchStart => {
                self.threads[thread].early = true;
                self.journal.start_handle(scenario) && self.goto(thread, Pc::SplitReserve)
            }
            // Before anything is evicted: here it can still fail, and nothing is lost.
            Pc::SplitReserve => self.step_split_reserve(scenario, thread, file, &range),
            Pc::WaitForSpace { sequence } => {
                self.journal.committed >= sequence && self.goto(thread, Pc::SplitReserve)
            }
            Pc::Evict => self.step_evict(scenario, thread, file, &range),
            Pc::EvictWait => {
                let page = usize::from(self.threads[thread].cursor);
                if self.pages[page].writeback {
                    return false;
                }
                self.evict(scenario, thread, file, page);
                self.goto(thread, Pc::Evict)
            }
            Pc::Edge => self.step_edge(scenario, thread, edge),
            Pc::EdgeComplete { block } => {
                let page = edge.expect("an edge is being written");
                let content = self.pages[page].content;
                self.complete(page, block, content);
                self.pages[page].locked_by = None;
                self.after_edge(scenario, thread, file)
            }
            Pc::PunchStart => {
                (self.threads[thread].early || self.journal.start_handle(scenario))
                    && self.goto(thread, Pc::Punch)
            }
            Pc::Punch => {
                self.punch(scenario, thread, file, range, edge);
                self.goto(thread, Pc::PunchEnd)
            }
            Pc::PunchEnd => {
                self.journal.end_handle();
                if edge_last && edge.is_some() {
                    return self.goto(thread, Pc::Edge);
                }
                self.unfence(thread, file)
            }
            pc => unreachable!("a punch is not at {pc:?}"),
        }
    }

    fn unfence(&mut self, thread: usize, file: usize) -> bool {
        self.locks[file].invalidate_exclusive = None;
        self.locks[file].inode = None;
        self.finish_op(thread)
    }

    /// A punch in the middle of an extent makes two, and may need a tree block for them.
    fn step_split_reserve(
        &mut self,
        scenario: &Scenario,
        thread: usize,
        file: usize,
        range: &Range<usize>,
    ) -> bool {
        let is_left = |page: usize| !range.contains(&page) && self.metadata.map[page] != NONE;
        let may_split = scenario
            .pages_of(file)
            .filter(|&page| is_left(page))
            .count()
            > 1
            && self.metadata.tree[file] == NONE
            && !scenario.is(Mutant::PunchWithoutReservation);
        if !may_split || self.reserve(scenario, thread, Hand::Tree) {
            self.goto(thread, Pc::Evict)
        } else if let Some(sequence) = self.space_after() {
            self.goto(thread, Pc::WaitForSpace { sequence })
        } else {
            self.seen.enospc = true;
            if self.threads[thread].early {
                self.journal.end_handle();
            }
            self.unfence(thread, file)
        }
    }

    /// Locks the next page, and waits for its writeback under the lock.
    fn step_evict(
        &mut self,
        scenario: &Scenario,
        thread: usize,
        file: usize,
        range: &Range<usize>,
    ) -> bool {
        let page = usize::from(self.threads[thread].cursor);
        if !range.contains(&page) {
            let is_edge_last = scenario.is(Mutant::EdgeAfterHandle);
            return self.goto(
                thread,
                if is_edge_last {
                    Pc::PunchStart
                } else {
                    Pc::Edge
                },
            );
        }
        if self.pages[page].locked_by.is_some() {
            return false;
        }
        if self.pages[page].writeback && !scenario.is(Mutant::FenceIgnoresWriteback) {
            self.pages[page].locked_by = Some(id(thread));
            return self.goto(thread, Pc::EvictWait);
        }
        self.evict(scenario, thread, file, page);
        true
    }

    /// Drops a page with its reservation, and goes on to the next.
    fn evict(&mut self, scenario: &Scenario, thread: usize, file: usize, page: usize) {
        self.adjust(scenario, file, |state| {
            let page = &mut state.pages[page];
            page.present = false;
            page.dirty = false;
            page.writeback = false;
            page.locked_by = None;
            page.reserved &= scenario.is(Mutant::EvictKeepsReservation);
        });
        let is_hole = has_hole_now(self, page);
        if !is_hole {
            self.change(scenario, page, true);
        }
        self.threads[thread].cursor += 1;
    }

    /// Zeroes the edge's bytes; on the device, too, if they are there.
    fn step_edge(&mut self, scenario: &Scenario, thread: usize, edge: Option<usize>) -> bool {
        let Some(page) = edge else {
            return self.goto(thread, Pc::PunchStart);
        };
        if self.pages[page].locked_by.is_some() || self.pages[page].writeback {
            return false;
        }
        let block = self.metadata.map[page];
        if !self.pages[page].present {
            self.fill(page, block);
        }
        if self.pages[page].content != super::disk::ZEROS {
            self.change(scenario, page, false);
        }
        if block == NONE {
            let file = usize::from(scenario.file_of[page]);
            return self.after_edge(scenario, thread, file);
        }
        self.pages[page].locked_by = Some(id(thread));
        self.submit(page, block);
        self.goto(thread, Pc::EdgeComplete { block })
    }

    fn after_edge(&mut self, scenario: &Scenario, thread: usize, file: usize) -> bool {
        if scenario.is(Mutant::EdgeAfterHandle) {
            return self.unfence(thread, file);
        }
        self.goto(thread, Pc::PunchStart)
    }

    /// Within the handle: unmaps the range, and frees the tree block that nothing needs any more.
    fn punch(
        &mut self,
        scenario: &Scenario,
        thread: usize,
        file: usize,
        range: Range<usize>,
        edge: Option<usize>,
    ) {
        if let Some(page) = edge
            && self.metadata.map[page] != NONE
        {
            // What the page is at now, or (a mutant's) will be at.
            let is_late = scenario.is(Mutant::EdgeAfterHandle);
            self.edge = Some(EdgePromise {
                sequence: self.journal.running.sequence,
                page: id(page),
                version: self.pages[page].version + u8::from(is_late),
            });
        }
        for page in range.clone().chain(edge) {
            self.pages[page].settled = self.pages[page].version;
        }
        self.adjust(scenario, file, |state| {
            for page in range {
                let block = std::mem::replace(&mut state.metadata.map[page], NONE);
                if block != NONE {
                    state.free(scenario, block);
                }
            }
            state.threads[thread].hand = Hand::Empty;
        });
        // A reservation that counts on the tree block keeps it: freed, it is nobody's until the commit.
        let is_counted_on =
            self.unmapped(scenario, file) > 0 && !scenario.is(Mutant::TreeFreedUnderReservation);
        let is_needed = self.needs_tree(scenario, file) || is_counted_on;
        self.adjust(scenario, file, |state| {
            if state.metadata.tree[file] != NONE && !is_needed {
                state.free_tree(scenario, file);
            } else {
                state.log_mapping(scenario, file);
            }
        });
    }
}

/// Whether the page is a hole already, so that a punch changes nothing.
fn has_hole_now(state: &State, page: usize) -> bool {
    let page = &state.pages[page];
    super::state::has(page.holes, page.version.into())
}
