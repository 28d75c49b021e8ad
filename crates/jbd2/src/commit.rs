//! The journal's thread: commits, one at a time, and in between brings home what is in the log.
//!
//! A commit is: admit no more handles → wait for those that are open → [`Client::seal`] → freeze →
//! let handles join the next transaction → write → [`Client::committed`] → wake who waits. It waits
//! for nothing but handles and the device, so it always ends.

use std::time::Instant;

use pagefence_block_io::Buffer;
use pagefence_lock_order::primitives::{Arc, Weak};

use crate::error::{JournalError, Result};
use crate::journal::Client;
use crate::mutant::Mutant;
use crate::running_log::RunningLog;
use crate::shared::{Job, Shared, Stop};
use crate::snapshot::Snapshot;
use crate::transaction::{Frozen, Sealing, Transaction};
use crate::without_log::WithoutLog;

/// Where committed blocks go.
#[derive(Debug)]
pub(crate) enum Store {
    Log(Box<RunningLog>),
    Home(WithoutLog),
}

impl Store {
    fn commit(&mut self, shared: &Shared, frozen: &Frozen) -> Result<()> {
        match self {
            Self::Log(log) => log.commit(shared, frozen),
            Self::Home(home) => home.commit(shared, frozen),
        }
    }

    /// Brings some of a log home that holds too much. True: there may be more to do.
    fn checkpoint_some(&mut self, shared: &Shared) -> Result<bool> {
        match self {
            Self::Log(log) => log.checkpoint_some(shared),
            Self::Home(_) => Ok(false),
        }
    }

    /// Brings some of a log home for lack of other work. True: there is more to do.
    fn checkpoint_idle(&mut self, shared: &Shared) -> Result<bool> {
        match self {
            Self::Log(log) => log.checkpoint_idle(shared),
            Self::Home(_) => Ok(false),
        }
    }

    /// What is committed and may not be home.
    fn not_home(&self, shared: &Shared) -> impl Iterator<Item = Arc<Buffer>> {
        let log = match self {
            Self::Log(log) if !shared.is_mutant(Mutant::NotHomeNotKept) => Some(log.not_home()),
            Self::Log(_) | Self::Home(_) => None,
        };
        log.into_iter().flatten()
    }

    fn is_home(&self) -> bool {
        match self {
            Self::Log(log) => log.is_empty(),
            Self::Home(_) => true,
        }
    }
}

/// The thread.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    client: Weak<dyn Client>,
    store: Store,
    /// When there was work last, or nothing was in the log yet.
    busy_at: Instant,
    /// What could not be committed: the cache keeps it, for it is what the file system shows.
    lost: Vec<Frozen>,
}

/// Whether the thread goes on.
enum Next {
    Continue,
    End,
}

/// Tells everybody that the thread has ended, even if it panicked.
struct EndGuard {
    shared: Arc<Shared>,
    panicked: bool,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.shared.end(self.panicked);
    }
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, client: Weak<dyn Client>, store: Store) -> Self {
        Self {
            shared,
            client,
            store,
            busy_at: Instant::now(),
            lost: Vec::new(),
        }
    }

    pub(crate) fn run(mut self) {
        let mut end = EndGuard {
            shared: self.shared.clone(),
            panicked: true,
        };
        loop {
            match self.step() {
                Ok(Next::Continue) => {}
                Ok(Next::End) | Err(JournalError::Closed) => break,
                Err(error) => self.shared.abort(error),
            }
        }
        end.panicked = false;
    }

    /// Does one thing, or waits for one to do.
    fn step(&mut self) -> Result<Next> {
        if self.shared.is_aborted() {
            self.wind_down();
            return Ok(Next::End);
        }
        let more = self.store.checkpoint_some(&self.shared)?;
        let idle_at = if more {
            // At once, unless there is something to commit.
            Some(self.busy_at)
        } else if self.store.is_home() {
            None
        } else {
            // Long enough that a journal with commits by the timer is not idle.
            self.busy_at
                .checked_add(self.shared.commit_interval.saturating_mul(2))
        };
        match self.shared.next_job(idle_at) {
            Job::Commit => {
                let outcome = self.commit();
                self.busy_at = Instant::now();
                outcome?;
            }
            Job::Idle if more => {}
            Job::Idle => {
                self.store.checkpoint_idle(&self.shared)?;
            }
            Job::Aborted => {}
            Job::Stop(Stop::Close) => {
                self.close()?;
                return Ok(Next::End);
            }
            Job::Stop(_) => return Ok(Next::End),
        }
        Ok(Next::Continue)
    }

    /// Commits the running transaction.
    fn commit(&mut self) -> Result<()> {
        let transaction = self.shared.running();
        let tid = transaction.tid;
        transaction.lock();
        self.shared.wait_for_handles(&transaction)?;
        self.seal(&transaction)?;
        let frozen = transaction.freeze();
        let next = self.shared.swap();
        let outcome = if frozen.is_empty() {
            // Whoever waits, or comes to find it committed, relies on a flush that began when
            // handles had joined the next one.
            self.shared.flush()
        } else {
            self.store.commit(&self.shared, &frozen)
        };
        if let Err(error) = outcome {
            self.lost.push(frozen);
            return Err(error);
        }
        // Nobody uses again what it freed before the client is told.
        if !self.shared.is_mutant(Mutant::FreedNotKept) {
            let freed = frozen.revokes.iter().map(|block| block.0);
            self.shared.keep_for_snapshot(freed);
        }
        if let Some(bytes_max) = self.shared.snapshot_wanted(tid) {
            let not_home = self.store.not_home(&self.shared);
            let snapshot = Snapshot::new(&self.shared.buffers, not_home, bytes_max);
            self.shared.hand_over(tid, Arc::new(snapshot));
        }
        for block in &frozen.revokes {
            next.unless_set(*block, || self.shared.buffers.invalidate(block.0));
        }
        if let Some(client) = self.client.upgrade() {
            client.committed(tid);
        }
        self.shared.finish(tid);
        Ok(())
    }

    fn seal(&self, transaction: &Transaction) -> Result<()> {
        let mut sealing = Sealing::new(transaction, &self.shared.buffers, &self.shared.overdrawn);
        if !sealing.blocks().is_empty()
            && let Some(client) = self.client.upgrade()
        {
            client.seal(&mut sealing);
        }
        match sealing.missing() {
            Some(block) => Err(JournalError::Unsealed { block }),
            None => Ok(()),
        }
    }

    /// Commits what there is, for the last time, and empties the log.
    fn close(&mut self) -> Result<()> {
        loop {
            let last = self.shared.running();
            // From here on nobody joins it; who did before, or waits for it, has his commit. Who
            // comes later is told that the journal is closed, for there is no flush any more.
            last.lock();
            if !last.was_joined() && !self.shared.is_requested(last.tid) {
                break;
            }
            self.commit()?;
        }
        match &mut self.store {
            Store::Log(log) => log.close(&self.shared),
            Store::Home(_) => Ok(()),
        }
    }

    /// After an abort: leaves word, and waits for the end. Until then the blocks that are not home
    /// stay in the cache.
    fn wind_down(&mut self) {
        let Some(error) = self.shared.abort_cause() else {
            return;
        };
        if let Store::Log(log) = &mut self.store {
            log.write_errno(&self.shared, error.errno());
        }
        if let Some(client) = self.client.upgrade() {
            client.aborted(&error);
        }
        self.shared.wait_for_stop();
    }
}
