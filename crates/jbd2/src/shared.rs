//! What handles, those who wait for a commit, and the journal's thread share.
//!
//! Under the lock of [`Control`] no I/O is done and nothing else taken but, by [`Shared::swap`], the
//! lock that publishes the running transaction, which is a leaf.
//! Everybody who waits looks at the abort in each round, so an abort wakes everybody.

use std::time::{Duration, Instant};

use pagefence_block_io::BufferCache;
use pagefence_ext4_format::BlockNo;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, MutexGuard, RwLock, Weak};

use crate::error::{JournalError, Result};
use crate::flush_group::FlushGroup;
use crate::location::JournalLocation;
use crate::mutant::Mutant;
use crate::snapshot::{Keeper, Snapshot};
use crate::transaction::{Tid, Transaction};

/// Whether the journal's thread is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    No,
    /// After everything is committed and home.
    Close,
    /// At once.
    Drop,
}

#[derive(Debug)]
pub(crate) struct Control {
    /// The transaction that handles join.
    pub(crate) running: Tid,
    /// When the first handle joined it.
    pub(crate) born: Option<Instant>,
    /// It, or an older one, was asked to be committed.
    pub(crate) requested: Tid,
    pub(crate) committed: Tid,
    pub(crate) aborted: Option<Arc<JournalError>>,
    pub(crate) stop: Stop,
    /// The thread has ended.
    pub(crate) ended: bool,
    pub(crate) wish: Wish,
    /// The one that there is, if anybody has it: never taken, or it would outlive who has it.
    snapshot: Weak<Snapshot>,
    keeper: Weak<Keeper>,
}

/// A snapshot that somebody waits for.
#[derive(Debug)]
pub(crate) enum Wish {
    None,
    /// As of this transaction or a later one, to keep so many bytes.
    Wanted(Tid, u64),
    /// Here it is, as of this transaction.
    Fulfilled(Tid, Arc<Snapshot>),
}

/// What the journal's thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Commits the running transaction.
    Commit,
    /// Nothing was asked for until the deadline.
    Idle,
    Aborted,
    Stop(Stop),
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) buffers: Arc<BufferCache>,
    /// Of a journal with a log.
    pub(crate) location: Option<JournalLocation>,
    /// Whether the log has room for 64 bits of a block's number.
    pub(crate) wide: bool,
    /// Credits of one transaction, at most.
    pub(crate) credits_max: u32,
    /// Blocks that a block of the log can revoke.
    pub(crate) revokes_a_block: u32,
    pub(crate) commit_interval: Duration,
    pub(crate) overdrawn: AtomicU64,
    running: RwLock<Arc<Transaction>>,
    committed: AtomicU64,
    aborted: AtomicBool,
    control: Mutex<Control>,
    /// For the thread: there may be something to do.
    work: Condvar,
    /// For those who want to join: another transaction runs.
    swapped: Condvar,
    /// For those who wait for a commit or for the thread's end.
    done: Condvar,
    flushes: FlushGroup,
    #[cfg(any(test, feature = "mutants"))]
    mutant: Option<Mutant>,
}

/// What a journal is made of.
pub(crate) struct Parts {
    pub(crate) buffers: Arc<BufferCache>,
    pub(crate) location: Option<JournalLocation>,
    pub(crate) wide: bool,
    pub(crate) credits_max: u32,
    pub(crate) revokes_a_block: u32,
    pub(crate) options: crate::Options,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> Self {
        let first = Tid(1);
        Self {
            buffers: parts.buffers,
            location: parts.location,
            wide: parts.wide,
            credits_max: parts.credits_max,
            revokes_a_block: parts.revokes_a_block.max(1),
            commit_interval: parts.options.commit_interval,
            overdrawn: AtomicU64::new(0),
            running: RwLock::new(Arc::new(Transaction::new(first))),
            committed: AtomicU64::new(0),
            aborted: AtomicBool::new(false),
            control: Mutex::new(Control {
                running: first,
                born: None,
                requested: Tid(0),
                committed: Tid(0),
                aborted: None,
                stop: Stop::No,
                ended: false,
                wish: Wish::None,
                snapshot: Weak::new(),
                keeper: Weak::new(),
            }),
            work: Condvar::new(),
            swapped: Condvar::new(),
            done: Condvar::new(),
            flushes: FlushGroup::new(),
            #[cfg(test)]
            mutant: parts.options.mutant,
            #[cfg(all(feature = "mutants", not(test)))]
            mutant: Mutant::named(),
        }
    }

    /// Whether a test breaks this rule.
    pub(crate) fn is_mutant(&self, mutant: Mutant) -> bool {
        #[cfg(any(test, feature = "mutants"))]
        return self.mutant == Some(mutant);
        #[cfg(not(any(test, feature = "mutants")))]
        {
            let _ = mutant;
            false
        }
    }

    pub(crate) fn may_change(&self, block: BlockNo) -> bool {
        let on_device = match &self.location {
            Some(location) => location.may_change(block),
            None => self.buffers.contains(block.0),
        };
        on_device && (self.wide || u32::try_from(block.0).is_ok())
    }

    pub(crate) fn running(&self) -> Arc<Transaction> {
        self.running.read().clone()
    }

    pub(crate) fn committed(&self) -> Tid {
        Tid(self.committed.load(Ordering::Acquire))
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// The first handle joined the transaction: the time until its commit begins.
    pub(crate) fn first_joined(&self, tid: Tid) {
        let mut control = self.control.lock();
        if control.running == tid {
            control.born = Some(Instant::now());
            drop(control);
            self.work.notify_all();
        }
    }

    /// Waits until handles join another transaction than `tid`.
    pub(crate) fn wait_for_swap(&self, tid: Tid) -> Result<()> {
        let mut control = self.control.lock();
        while control.running == tid {
            usable(&control)?;
            self.swapped.wait(&mut control);
        }
        usable(&control)
    }

    pub(crate) fn request_commit(&self, tid: Tid) {
        if self.committed() >= tid {
            return;
        }
        let mut control = self.control.lock();
        if control.requested < tid {
            control.requested = tid.min(control.running);
            drop(control);
            self.work.notify_all();
        }
    }

    /// Asks for the commit of `tid` and waits until it is done.
    pub(crate) fn commit(&self, tid: Tid) -> Result<()> {
        if self.committed() >= tid {
            return Ok(());
        }
        self.request_commit(tid);
        let mut control = self.control.lock();
        let tid = tid.min(control.running);
        while control.committed < tid {
            if let Some(error) = &control.aborted {
                return Err(aborted(error));
            }
            if control.ended {
                return Err(JournalError::Closed);
            }
            self.done.wait(&mut control);
        }
        Ok(())
    }

    /// Waits for a snapshot as of the commit of `tid`, or of a later transaction, and has that
    /// committed.
    pub(crate) fn take_snapshot(&self, tid: Tid, bytes_max: u64) -> Result<Arc<Snapshot>> {
        let mut control = self.control.lock();
        usable(&control)?;
        let is_free = matches!(control.wish, Wish::None) && control.snapshot.strong_count() == 0;
        if !is_free {
            return Err(JournalError::SnapshotInUse);
        }
        // What is committed already can't be had any more as it was.
        let due = if control.committed >= tid {
            control.running
        } else {
            tid.min(control.running)
        };
        control.wish = Wish::Wanted(due, bytes_max);
        control.requested = control.requested.max(due);
        self.work.notify_all();
        loop {
            match std::mem::replace(&mut control.wish, Wish::None) {
                Wish::Fulfilled(at, snapshot) if control.committed >= at => return Ok(snapshot),
                wish => control.wish = wish,
            }
            if control.aborted.is_some() || control.ended {
                control.wish = Wish::None;
                return Err(control
                    .aborted
                    .as_deref()
                    .map_or(JournalError::Closed, aborted));
            }
            self.done.wait(&mut control);
        }
    }

    /// Makes what was written before the call durable; an error of the device aborts the journal.
    pub(crate) fn flush(&self) -> Result<()> {
        if self.is_aborted() {
            return Err(self.aborted_error());
        }
        let device = self.buffers.device();
        let failed = |error| self.abort(JournalError::Device(error));
        // Who leaves word of an abort flushes by himself, and the host tells a failure to one flush
        // only: what another says meanwhile is worth nothing.
        if self.flushes.flush(&**device, failed) && !self.is_aborted() {
            Ok(())
        } else {
            Err(self.aborted_error())
        }
    }

    /// The error of who comes after an abort.
    pub(crate) fn aborted_error(&self) -> JournalError {
        match &self.control.lock().aborted {
            Some(error) => aborted(error),
            None => JournalError::Closed,
        }
    }

    /// Aborts the journal: nothing is written to it any more. The first error counts.
    pub(crate) fn abort(&self, error: JournalError) {
        let mut control = self.control.lock();
        if control.aborted.is_none() {
            tracing::error!(%error, "the journal is aborted");
            control.aborted = Some(Arc::new(error));
            self.aborted.store(true, Ordering::Release);
        }
        drop(control);
        self.wake_all();
    }

    fn wake_all(&self) {
        self.work.notify_all();
        self.swapped.notify_all();
        self.done.notify_all();
    }

    /// Wakes the thread, which may wait for handles to end.
    pub(crate) fn wake_thread(&self) {
        // Whoever waits has looked under this lock, so the news can't come between his look and
        // his sleep.
        drop(self.control.lock());
        self.work.notify_all();
    }

    /// Asks the thread to end. What was asked first counts.
    pub(crate) fn stop(&self, stop: Stop) {
        let mut control = self.control.lock();
        if control.stop == Stop::No {
            control.stop = stop;
        }
        drop(control);
        self.wake_all();
    }

    // What follows is the thread's.

    /// Waits for something to do, at most until `idle_at`.
    pub(crate) fn next_job(&self, idle_at: Option<Instant>) -> Job {
        let mut control = self.control.lock();
        loop {
            if control.stop == Stop::Drop {
                return Job::Stop(Stop::Drop);
            }
            if control.aborted.is_some() {
                return Job::Aborted;
            }
            if control.requested >= control.running {
                return Job::Commit;
            }
            if control.stop != Stop::No {
                return Job::Stop(control.stop);
            }
            let now = Instant::now();
            let due = control
                .born
                .and_then(|born| born.checked_add(self.commit_interval));
            if due.is_some_and(|due| due <= now) {
                return Job::Commit;
            }
            if idle_at.is_some_and(|at| at <= now) {
                return Job::Idle;
            }
            let deadline = [due, idle_at].into_iter().flatten().min();
            self.wait_for_work(&mut control, deadline);
        }
    }

    fn wait_for_work(&self, control: &mut MutexGuard<'_, Control>, deadline: Option<Instant>) {
        #[cfg(not(shuttle))]
        if let Some(deadline) = deadline {
            self.work.wait_until(control, deadline);
            return;
        }
        // A scheduler that chooses interleavings has no clock: there is no timer.
        #[cfg(shuttle)]
        let _ = deadline;
        self.work.wait(control);
    }

    /// Waits until the locked `transaction` has no open handle.
    pub(crate) fn wait_for_handles(&self, transaction: &Transaction) -> Result<()> {
        let mut control = self.control.lock();
        loop {
            // A handle that aborts does so before it ends: what it left half done is not
            // committed.
            if let Some(error) = &control.aborted {
                return Err(aborted(error));
            }
            if control.stop == Stop::Drop {
                return Err(JournalError::Closed);
            }
            if !transaction.is_open() || self.is_mutant(Mutant::OpenHandlesCommitted) {
                return Ok(());
            }
            self.work.wait(&mut control);
        }
    }

    /// Whether somebody asked for the commit of `tid`.
    pub(crate) fn is_requested(&self, tid: Tid) -> bool {
        self.control.lock().requested >= tid
    }

    /// Lets handles join a new transaction, which it returns.
    ///
    /// The number in [`Control`] changes under the same lock as the transaction itself: who waits
    /// for the commit of the one that he joined must never be told that an older one runs.
    pub(crate) fn swap(&self) -> Arc<Transaction> {
        let mut control = self.control.lock();
        let mut running = self.running.write();
        let next = Arc::new(Transaction::new(running.tid.next()));
        if control.stop != Stop::No {
            // Or those who go on starting handles would put off the end for ever.
            next.lock();
        }
        *running = next.clone();
        drop(running);
        control.running = next.tid;
        // Who joins it first sets this, and waits for the lock.
        control.born = None;
        drop(control);
        self.swapped.notify_all();
        next
    }

    /// Bytes that a snapshot may keep which somebody wants as of `tid`.
    pub(crate) fn snapshot_wanted(&self, tid: Tid) -> Option<u64> {
        match self.control.lock().wish {
            Wish::Wanted(due, bytes_max) if due <= tid => Some(bytes_max),
            _ => None,
        }
    }

    /// Gives the snapshot, as of `tid`, to who waits for it and will see it when that is finished.
    pub(crate) fn hand_over(&self, tid: Tid, snapshot: Arc<Snapshot>) {
        let mut control = self.control.lock();
        // Or he was told of an abort.
        if matches!(control.wish, Wish::Wanted(..)) {
            control.snapshot = Arc::downgrade(&snapshot);
            control.keeper = Arc::downgrade(snapshot.keeper());
            control.wish = Wish::Fulfilled(tid, snapshot);
        }
    }

    /// `blocks`, ascending, are about to be overwritten, by the journal or with its leave.
    pub(crate) fn keep_for_snapshot(&self, blocks: impl Iterator<Item = u64>) {
        let keeper = self.control.lock().keeper.upgrade();
        if let Some(keeper) = keeper {
            keeper.keep(blocks);
        }
    }

    /// `tid` is durable.
    pub(crate) fn finish(&self, tid: Tid) {
        self.committed.store(tid.0, Ordering::Release);
        let mut control = self.control.lock();
        control.committed = tid;
        if matches!(control.wish, Wish::Wanted(due, _) if due <= tid) {
            // It was wished for too late for this commit: the next one is for it.
            control.requested = control.requested.max(control.running);
        }
        drop(control);
        self.done.notify_all();
    }

    /// Why the journal was aborted.
    pub(crate) fn abort_cause(&self) -> Option<Arc<JournalError>> {
        self.control.lock().aborted.clone()
    }

    /// Waits, after an abort, until the thread is asked to end.
    pub(crate) fn wait_for_stop(&self) {
        let mut control = self.control.lock();
        while control.stop == Stop::No {
            self.work.wait(&mut control);
        }
    }

    /// The thread has ended: nobody waits for it any longer. If it panicked, what it was about to
    /// do is not done.
    pub(crate) fn end(&self, panicked: bool) {
        self.control.lock().ended = true;
        if panicked {
            self.abort(JournalError::Closed);
        }
        self.wake_all();
    }
}

fn usable(control: &Control) -> Result<()> {
    match &control.aborted {
        Some(error) => Err(aborted(error)),
        None if control.stop != Stop::No => Err(JournalError::Closed),
        None => Ok(()),
    }
}

fn aborted(error: &JournalError) -> JournalError {
    JournalError::Aborted {
        errno: error.errno(),
    }
}
