//! A thread's next step: writes, stores, reads and reclaim; the rest is in the siblings.

use super::config::{Mutant, Op, Scenario};
use super::disk::{GARBAGE, ZEROS, version_of};
use super::state::{Hand, NONE, Pc, State, has, id};

impl Op {
    /// The file it is about.
    pub(super) fn file(self, scenario: &Scenario) -> usize {
        let file = match self {
            Self::Writeback(file) | Self::Fsync(file) => file,
            Self::Write(page)
            | Self::Store(page)
            | Self::Read(page)
            | Self::Reclaim(page)
            | Self::Punch { first: page, .. } => scenario.file_of[usize::from(page)],
        };
        usize::from(file)
    }
}

impl State {
    /// Does the next step of a thread; `false` if it has none now.
    pub(super) fn step_thread(&mut self, scenario: &Scenario, thread: usize) -> bool {
        let Some(op) = self.op(scenario, thread) else {
            return false;
        };
        let file = op.file(scenario);
        match op {
            Op::Write(page) => self.step_write(scenario, thread, file, page.into()),
            Op::Store(page) => self.step_store(scenario, thread, file, page.into()),
            Op::Read(page) => self.step_read(scenario, thread, file, page.into()),
            Op::Reclaim(page) => {
                let page = &mut self.pages[usize::from(page)];
                if !page.dirty && !page.writeback && page.locked_by.is_none() {
                    page.present = false;
                }
                self.finish_op(thread)
            }
            Op::Writeback(_) | Op::Fsync(_) => self.step_writeback(scenario, thread, file),
            Op::Punch { first, last, edge } => {
                let range = usize::from(first)..usize::from(last) + 1;
                self.step_punch(scenario, thread, file, range, edge.map(usize::from))
            }
        }
    }

    /// inode lock → reserve → page lock → copy → dirty.
    fn step_write(&mut self, scenario: &Scenario, thread: usize, file: usize, page: usize) -> bool {
        match self.threads[thread].pc {
            Pc::Start => self.lock_inode(file, thread) && self.goto(thread, Pc::Reserve),
            Pc::Dirty => {
                if self.pages[page].locked_by.is_some() {
                    return false;
                }
                self.pages[page].present = true;
                self.dirty(scenario, thread, file, page);
                self.locks[file].inode = None;
                self.finish_op(thread)
            }
            pc => match self.step_reserve(scenario, thread, page, pc) {
                Reserved::Step(moved) => moved,
                Reserved::NoSpace => {
                    self.locks[file].inode = None;
                    self.finish_op(thread)
                }
            },
        }
    }

    /// invalidate lock shared → fill → reserve → page lock → dirty.
    fn step_store(&mut self, scenario: &Scenario, thread: usize, file: usize, page: usize) -> bool {
        match self.threads[thread].pc {
            Pc::Start => self.lock_invalidate_shared(file) && self.goto(thread, Pc::FillOrUse),
            Pc::FillOrUse if self.pages[page].present => {
                if scenario.is(Mutant::StoreWithoutReservation) {
                    return self.goto(thread, Pc::Dirty);
                }
                self.goto(thread, Pc::Reserve)
            }
            Pc::FillOrUse | Pc::FillLock => self.step_fill_lock(scenario, thread, page),
            Pc::FillComplete { block } => {
                self.fill(page, block);
                self.goto(thread, Pc::FillOrUse)
            }
            Pc::Dirty => {
                if self.pages[page].locked_by.is_some() {
                    return false;
                }
                // Reclaim may have had it since: fill again.
                if !self.pages[page].present {
                    return self.goto(thread, Pc::FillOrUse);
                }
                self.dirty(scenario, thread, file, page);
                self.locks[file].invalidate_shared -= 1;
                self.finish_op(thread)
            }
            pc => match self.step_reserve(scenario, thread, page, pc) {
                Reserved::Step(moved) => moved,
                Reserved::NoSpace => {
                    self.locks[file].invalidate_shared -= 1;
                    self.finish_op(thread)
                }
            },
        }
    }

    /// Cached: use it, no lock. Else: invalidate lock shared → page lock → look up → read → uptodate.
    fn step_read(&mut self, scenario: &Scenario, thread: usize, file: usize, page: usize) -> bool {
        let takes_lock = !scenario.is(Mutant::FillWithoutInvalidateLock);
        match self.threads[thread].pc {
            Pc::Start => {
                self.threads[thread].allowed = 1 << self.pages[page].version;
                self.goto(thread, Pc::FillOrUse)
            }
            Pc::FillOrUse => {
                if self.pages[page].present {
                    self.check_read(thread, page);
                    return self.finish_op(thread);
                }
                // Waiting for another's page lock holds nothing.
                self.pages[page].locked_by.is_none()
                    && (!takes_lock || self.lock_invalidate_shared(file))
                    && self.goto(thread, Pc::FillLock)
            }
            Pc::FillLock => {
                if self.pages[page].present || self.pages[page].locked_by.is_some() {
                    self.locks[file].invalidate_shared -= u8::from(takes_lock);
                    return self.goto(thread, Pc::FillOrUse);
                }
                self.step_fill_lock(scenario, thread, page)
            }
            Pc::FillComplete { block } => {
                self.fill(page, block);
                self.goto(thread, Pc::FillUnlock)
            }
            Pc::FillUnlock => {
                self.locks[file].invalidate_shared -= u8::from(takes_lock);
                self.goto(thread, Pc::FillOrUse)
            }
            pc => unreachable!("a read is not at {pc:?}"),
        }
    }

    /// Locks an absent page and looks its block up.
    fn step_fill_lock(&mut self, scenario: &Scenario, thread: usize, page: usize) -> bool {
        if self.pages[page].locked_by.is_some() {
            return false;
        }
        self.pages[page].locked_by = Some(id(thread));
        if scenario.is(Mutant::UptodateBeforeRead) {
            self.pages[page].present = true;
            self.pages[page].content = GARBAGE;
        }
        let block = self.metadata.map[page];
        self.goto(thread, Pc::FillComplete { block })
    }

    /// The read has completed: uptodate, unlocked.
    pub(super) fn fill(&mut self, page: usize, block: u8) {
        let content = self
            .blocks
            .get(usize::from(block))
            .map_or(ZEROS, |block| block.live);
        let page = &mut self.pages[page];
        page.content = content;
        page.present = true;
        page.locked_by = None;
    }

    /// A read returns what the page was at some moment since the read began.
    fn check_read(&mut self, thread: usize, page: usize) {
        let allowed = self.threads[thread].allowed;
        let page_now = &self.pages[page];
        let is_right = match version_of(page, page_now.content) {
            Some(version) => has(allowed, version.into()) && !has(page_now.holes, version.into()),
            None => page_now.content == ZEROS && allowed & page_now.holes != 0,
        };
        self.faults.stale_read |= !is_right;
    }

    /// Reserves for a page, waiting for a commit if that may free something.
    fn step_reserve(
        &mut self,
        scenario: &Scenario,
        thread: usize,
        page: usize,
        pc: Pc,
    ) -> Reserved {
        Reserved::Step(match pc {
            Pc::Reserve => {
                if self.is_covered(page) || self.reserve(scenario, thread, Hand::Page) {
                    self.goto(thread, Pc::Dirty)
                } else if let Some(sequence) = self.space_after() {
                    self.goto(thread, Pc::WaitForSpace { sequence })
                } else {
                    self.seen.enospc = true;
                    return Reserved::NoSpace;
                }
            }
            Pc::WaitForSpace { sequence } => {
                self.journal.committed >= sequence && self.goto(thread, Pc::Reserve)
            }
            pc => unreachable!("a write is not at {pc:?}"),
        })
    }

    /// Under the page lock: new content, dirty, and the reservation goes to the page if it needs one.
    fn dirty(&mut self, scenario: &Scenario, thread: usize, file: usize, page: usize) {
        let is_covered = self.is_covered(page);
        self.adjust(scenario, file, |state| {
            if state.threads[thread].hand == Hand::Page {
                state.threads[thread].hand = Hand::Empty;
                state.pages[page].reserved |= !is_covered;
            }
        });
        self.change(scenario, page, false);
        self.pages[page].settled = self.pages[page].version;
        self.pages[page].dirty = true;
    }

    /// Sends a page's content to a block that it must own.
    pub(super) fn submit(&mut self, page: usize, block: u8) {
        self.check_owner(page, block);
        let content = self.pages[page].content;
        if let Some(block) = self.blocks.get_mut(usize::from(block)) {
            block.submit(content);
        }
    }

    pub(super) fn complete(&mut self, page: usize, block: u8, content: u8) {
        self.check_owner(page, block);
        if let Some(block) = self.blocks.get_mut(usize::from(block)) {
            block.complete(content);
        }
    }

    fn check_owner(&mut self, page: usize, block: u8) {
        let is_owner = self.metadata.map[page] == block || self.pages[page].chosen == block;
        self.faults.foreign_write |= !is_owner && block != NONE;
    }
}

enum Reserved {
    Step(bool),
    NoSpace,
}
