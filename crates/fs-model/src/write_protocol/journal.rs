//! Handles, the running and the committing transaction, the log, and the thread that commits,
//! flushes and checkpoints.

use super::config::{Mutant, Scenario};
use super::disk::TREE;
use super::state::{Metadata, NONE, Pc, State, has};

/// Credits that a handle takes.
const HANDLE_CREDITS: u8 = 2;

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Transaction {
    pub(super) sequence: u8,
    /// Log space that its handles took.
    credits: u8,
    /// Tree blocks whose content it logs, a mask.
    pub(super) trees: u8,
    /// Blocks that it revokes, a mask: no older transaction writes them at replay or checkpoint.
    pub(super) revoked: u8,
}

impl Transaction {
    fn new(sequence: u8) -> Self {
        Self {
            sequence,
            credits: 0,
            trees: 0,
            revoked: 0,
        }
    }
}

/// Where the journal's thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    Idle,
    /// The running transaction takes no handle any more and waits for the open ones.
    Locked,
    /// Frozen, and new handles join the next one; data and log are being flushed.
    Flushing,
    /// The commit record is under way: a crash may find it or not.
    Record,
    /// A flush for an fsync that has nothing to commit.
    PlainFlush,
    /// The oldest transaction is written home, and that is being flushed.
    CheckpointFlush,
}

/// The journal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Journal {
    pub(super) stage: Stage,
    pub(super) running: Transaction,
    open_handles: u8,
    pub(super) committing: Option<Transaction>,
    /// The metadata as the committing transaction leaves it.
    pub(super) frozen: Metadata,
    /// The metadata as the last committed transaction left it.
    pub(super) durable: Metadata,
    /// The last committed transaction.
    pub(super) committed: u8,
    /// Committed and not checkpointed, oldest first.
    pub(super) log: Vec<Transaction>,
    /// Credits reserved for handles that have not started.
    promised_credits: u8,
    /// Blocks freed by the running transaction, a mask.
    pub(super) freed_running: u8,
    /// Blocks freed by the committing transaction, a mask.
    pub(super) freed_committing: u8,
}

impl Journal {
    pub(super) fn new(metadata: Metadata) -> Self {
        Self {
            stage: Stage::Idle,
            running: Transaction::new(1),
            open_handles: 0,
            committing: None,
            frozen: metadata.clone(),
            durable: metadata,
            committed: 0,
            log: Vec::new(),
            promised_credits: 0,
            freed_running: 0,
            freed_committing: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    pub(super) fn is_running_empty(&self) -> bool {
        self.running.credits == 0
    }

    fn has_space(&self, scenario: &Scenario) -> bool {
        let logged = self
            .log
            .iter()
            .chain(&self.committing)
            .chain([&self.running]);
        let used: u8 = logged.map(|transaction| transaction.credits).sum();
        used + self.promised_credits + HANDLE_CREDITS <= scenario.journal
    }

    /// Joins the running transaction, if it is open and there is space.
    pub(super) fn start_handle(&mut self, scenario: &Scenario) -> bool {
        let is_open = self.stage != Stage::Locked && self.has_space(scenario);
        if is_open {
            self.join();
        }
        is_open
    }

    fn join(&mut self) {
        self.running.credits += HANDLE_CREDITS;
        self.open_handles += 1;
    }

    /// Sets credits aside for a handle that starts later.
    pub(super) fn reserve_credits(&mut self, scenario: &Scenario) -> bool {
        let is_space = self.has_space(scenario);
        if is_space {
            self.promised_credits += HANDLE_CREDITS;
        }
        is_space
    }

    /// Starts a handle with the credits set aside: waits for no space, only for the commit.
    pub(super) fn start_reserved(&mut self) -> bool {
        let is_open = self.stage != Stage::Locked;
        if is_open {
            self.promised_credits -= HANDLE_CREDITS;
            self.join();
        }
        is_open
    }

    pub(super) fn return_credits(&mut self) {
        self.promised_credits -= HANDLE_CREDITS;
    }

    pub(super) fn end_handle(&mut self) {
        self.open_handles -= 1;
    }

    /// What the log holds after a crash that finds the committing transaction's record, or not.
    pub(super) fn logged(&self, with_committing: bool) -> Vec<&Transaction> {
        let committing = self.committing.iter().filter(|_| with_committing);
        self.log.iter().chain(committing).collect()
    }
}

/// Tree blocks that `log[from]` writes home: those that nothing newer in the log revokes.
pub(super) fn written_home(log: &[&Transaction], from: usize) -> u8 {
    let revoked = log[from..]
        .iter()
        .fold(0, |mask, transaction| mask | transaction.revoked);
    log[from].trees & !revoked
}

impl State {
    /// Whether a thread waits for space in the log.
    fn is_space_wanted(&self, scenario: &Scenario) -> bool {
        !self.journal.has_space(scenario)
            && self.threads.iter().any(|thread| match thread.pc {
                Pc::MapStart | Pc::PunchStart => !thread.early,
                Pc::EarlyPunchStart | Pc::ReserveCredits => true,
                Pc::Gather => scenario.is(Mutant::HandleBeforePageLock) && !thread.early,
                _ => false,
            })
    }

    fn is_commit_wanted(&self) -> bool {
        let running = self.journal.running.sequence;
        self.threads.iter().any(|thread| {
            matches!(thread.pc,
                Pc::WaitForCommit { sequence, .. } | Pc::WaitForSpace { sequence }
                    if sequence == running)
        })
    }

    /// The timer commits what is running.
    pub(super) fn step_timer(&mut self, scenario: &Scenario) -> bool {
        let journal = &mut self.journal;
        let fires = scenario.timer && journal.is_idle() && !journal.is_running_empty();
        if fires {
            journal.stage = Stage::Locked;
        }
        fires
    }

    /// One step of the journal's thread.
    pub(super) fn step_journal(&mut self, scenario: &Scenario) -> bool {
        match self.journal.stage {
            Stage::Idle => self.step_idle(scenario),
            Stage::Locked => self.step_locked(scenario),
            Stage::Flushing => {
                self.flush_end();
                self.journal.stage = Stage::Record;
                true
            }
            Stage::Record => {
                if scenario.is(Mutant::RecordBeforeFlush) {
                    self.flush_end();
                }
                self.step_committed()
            }
            Stage::PlainFlush => {
                self.flush_end();
                self.journal.stage = Stage::Idle;
                true
            }
            Stage::CheckpointFlush => {
                self.flush_end();
                self.journal.log.remove(0);
                self.journal.stage = Stage::Idle;
                true
            }
        }
    }

    fn step_idle(&mut self, scenario: &Scenario) -> bool {
        let is_space_wanted = self.is_space_wanted(scenario);
        if is_space_wanted {
            self.seen.full_journal = true;
        }
        let is_flush_wanted = |thread: &super::state::Thread| thread.pc == Pc::WaitForFlush;
        if is_space_wanted && !self.journal.log.is_empty() {
            self.write_home();
            if scenario.is(Mutant::CheckpointWithoutFlush) {
                self.journal.log.remove(0);
            } else {
                self.flush_start();
                self.journal.stage = Stage::CheckpointFlush;
            }
            true
        } else if is_space_wanted && !self.journal.is_running_empty() || self.is_commit_wanted() {
            self.journal.stage = Stage::Locked;
            true
        } else if self.threads.iter().any(is_flush_wanted) {
            self.flush_start();
            self.journal.stage = Stage::PlainFlush;
            true
        } else {
            false
        }
    }

    fn step_locked(&mut self, scenario: &Scenario) -> bool {
        let waits_for_data = scenario.is(Mutant::CommitWaitsForWriteback)
            && self.pages.iter().any(|page| page.writeback);
        if self.journal.open_handles > 0 || waits_for_data {
            return false;
        }
        let journal = &mut self.journal;
        journal.frozen = self.metadata.clone();
        journal.freed_committing = std::mem::take(&mut journal.freed_running);
        let next = Transaction::new(journal.running.sequence + 1);
        journal.committing = Some(std::mem::replace(&mut journal.running, next));
        self.flush_start();
        self.journal.stage = if scenario.is(Mutant::RecordBeforeFlush) {
            Stage::Record
        } else {
            Stage::Flushing
        };
        true
    }

    fn step_committed(&mut self) -> bool {
        let journal = &mut self.journal;
        let committed = journal
            .committing
            .take()
            .expect("a record belongs to a committing transaction");
        journal.durable = journal.frozen.clone();
        journal.committed = committed.sequence;
        journal.freed_committing = 0;
        journal.log.push(committed);
        journal.stage = Stage::Idle;
        true
    }

    /// Writes the oldest transaction home, but for what a newer committed one revokes.
    fn write_home(&mut self) {
        let blocks = written_home(&self.journal.logged(false), 0);
        for (block, content) in self.blocks.iter_mut().enumerate() {
            if has(blocks, block) {
                content.submit(TREE);
                content.complete(TREE);
            }
        }
    }

    fn flush_start(&mut self) {
        for block in &mut self.blocks {
            block.flush_start();
        }
        for thread in &mut self.threads {
            if thread.pc == Pc::WaitForFlush {
                thread.pc = Pc::InFlush;
            }
        }
    }

    fn flush_end(&mut self) {
        for block in &mut self.blocks {
            block.flush_end();
        }
        for thread in &mut self.threads {
            if thread.pc == Pc::InFlush {
                thread.pc = Pc::FsyncDone;
            }
        }
    }

    /// Notes within a handle that a file's mapping changed: takes a tree block if extents need one.
    pub(super) fn log_mapping(&mut self, scenario: &Scenario, file: usize) {
        if self.needs_tree(scenario, file) && self.metadata.tree[file] == NONE {
            self.metadata.tree[file] = self.allocate(scenario);
        }
        let block = self.metadata.tree[file];
        if block != NONE {
            self.journal.running.trees |= 1 << block;
            self.journal.running.revoked &= !(1 << block);
        }
    }

    /// Frees a block within a handle; it can be allocated after the commit.
    pub(super) fn free(&mut self, scenario: &Scenario, block: u8) {
        if !scenario.is(Mutant::ReuseBeforeCommit) {
            self.journal.freed_running |= 1 << block;
        }
    }

    /// Frees a file's tree block within a handle, and revokes what the log holds of it.
    pub(super) fn free_tree(&mut self, scenario: &Scenario, file: usize) {
        let block = std::mem::replace(&mut self.metadata.tree[file], NONE);
        self.journal.running.trees &= !(1 << block);
        if !scenario.is(Mutant::NoRevoke) {
            self.journal.running.revoked |= 1 << block;
        }
        self.free(scenario, block);
    }
}
