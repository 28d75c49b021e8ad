//! The journal of a file system in use: transactions that handles join, commits, checkpoints.
//!
//! Owns: the log, the order in which it and the blocks it holds are written, and a thread that
//! does that. Stays outside: what blocks mean, which are free ([`Client`]), and file data; a
//! commit waits for no data, it only flushes the device after the last handle of its transaction
//! has ended.
//!
//! At any time one transaction *runs*, that is, is joined by handles; at most one is being
//! committed; older ones are in the log, not home yet, or gone. All changes are made to buffers of
//! the buffer cache, each change a new buffer, so a transaction is frozen by keeping references,
//! and handles join the next one while it is written.
//!
//! Invariants:
//! - A block goes home only with contents that are committed.
//! - Space in the log is used again only after the journal's superblock durably begins behind it,
//!   and that only after what lay there is durable at home, superseded by a later commit, or
//!   revoked by one.
//! - The buffer cache can't evict a block whose newest contents are not home: the transaction or
//!   the checkpoint list holds its buffer. At most [`Options::pinned_bytes_max`] are held so, or a
//!   fourth of the log in each of two transactions.
//! - What a [`Snapshot`] needs is kept before it is overwritten, or may be by others.
//! - The journal's thread takes no lock but the journal's own, except in [`Client`]'s methods.

use std::time::Duration;

use pagefence_block_io::BufferCache;
use pagefence_ext4_format::journal::DescriptorBuilder;
use pagefence_lock_order::levels::{self, After, Level};
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_lock_order::primitives::thread::{self, JoinHandle};
use pagefence_lock_order::primitives::{Arc, Mutex, Weak};
use pagefence_lock_order::{Held, rank};

use crate::commit::{Store, Worker};
use crate::error::{JournalError, Result};
use crate::handle::Handle;
use crate::location::JournalLocation;
use crate::log::to_usize;
use crate::recovery::recover;
use crate::running_log::RunningLog;
use crate::shared::{Parts, Shared, Stop};
use crate::snapshot::Snapshot;
use crate::transaction::{Join, Sealing, Tid};
use crate::without_log::WithoutLog;

/// What a journal asks of its file system. Its methods are called on the journal's thread, with no
/// lock held; they must not start handles, wait for a commit, or wait for who does.
pub trait Client: Send + Sync + 'static {
    /// No handle is open and none can be started: gives every block of
    /// [`Sealing::blocks`] its contents (bitmaps, group descriptors, the superblock). Called at
    /// most once per transaction, and not for one that deferred nothing.
    fn seal(&self, sealing: &mut Sealing<'_>);

    /// The transaction is durable: what it freed may be used for something else, and discarded.
    /// Called in order, for each transaction, before anybody who waits for it wakes.
    fn committed(&self, tid: Tid);

    /// The journal was aborted; nothing is written any more. Called once at most.
    fn aborted(&self, error: &JournalError);
}

/// How a journal behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How old a transaction may grow before it is committed unasked. 5 s by default. A
    /// journal without commits for twice as long brings home what is in the log.
    pub commit_interval: Duration,
    /// Bytes of the buffer cache that are kept from eviction because the log holds them and home
    /// does not, before they are written home; a single transaction holds at most a fourth of
    /// that. 64 MiB by default.
    pub pinned_bytes_max: u64,
    #[cfg(test)]
    pub(crate) mutant: Option<crate::mutant::Mutant>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            commit_interval: Duration::from_secs(5),
            pinned_bytes_max: 64 << 20,
            #[cfg(test)]
            mutant: None,
        }
    }
}

impl Options {
    /// [`Options::pinned_bytes_max`] in blocks.
    fn pinned_blocks_max(&self, block_size: usize) -> u32 {
        let size = u64::try_from(block_size).unwrap_or(u64::MAX);
        let blocks = self.pinned_bytes_max.checked_div(size).unwrap_or_default();
        u32::try_from(blocks).unwrap_or(u32::MAX).max(4)
    }
}

/// A journal in use. See the module's documentation.
///
/// Dropping it without [`Journal::close`] ends its thread and leaves the log to be recovered,
/// without the transaction that runs.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Opens the journal at `location`, whose log must be empty (recovered), and starts its thread.
    /// All changes of metadata blocks go through it from now on. Blocks are those of `buffers`.
    /// Nothing is written before the first commit. If `client` is gone when it is needed, the
    /// journal is aborted.
    ///
    /// # Errors
    /// The journal can't be read, is not empty, damaged, or too small; it is of version 1, which
    /// can't revoke; its blocks are not of the size of the buffers; no thread can be started.
    pub fn open(
        buffers: Arc<BufferCache>,
        location: JournalLocation,
        client: Weak<dyn Client>,
        options: Options,
    ) -> Result<Arc<Self>> {
        let recovery = recover(&**buffers.device(), &location)?;
        if !recovery.is_clean() {
            return Err(JournalError::NotEmpty);
        }
        let superblock = recovery.superblock();
        let format = superblock.format;
        if !superblock.version_2 {
            return Err(JournalError::RevokeUnsupported);
        }
        let block_size = buffers.block_size();
        let pinned = options.pinned_blocks_max(block_size);
        let credits_max = (superblock.log_blocks() >> 2).min(pinned >> 2);
        let sizes_agree = to_usize(format.block_size) == block_size;
        if credits_max == 0 || !sizes_agree || DescriptorBuilder::capacity(&format) == 0 {
            return Err(JournalError::LogFull {
                needed: 4,
                free: superblock.log_blocks(),
            });
        }
        let shared = Arc::new(Shared::new(Parts {
            buffers,
            location: Some(location.clone()),
            wide: format.features.is_64bit(),
            credits_max,
            revokes_a_block: pagefence_ext4_format::journal::revoke::capacity(&format),
            options,
        }));
        let log = RunningLog::open(&shared, location, &recovery, pinned)?;
        Self::run(shared, client, Store::Log(Box::new(log)))
    }

    /// The same without a log, for ext2 and for an ext4 without a journal. A commit writes the
    /// blocks home: first those that refer to blocks, then the deferred ones, which say what is
    /// free, each group flushed. A crash in the middle is for e2fsck to mend, and loses space at
    /// worst.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn without_log(
        buffers: Arc<BufferCache>,
        client: Weak<dyn Client>,
        options: Options,
    ) -> Result<Arc<Self>> {
        let credits_max = options.pinned_blocks_max(buffers.block_size()) >> 2;
        let shared = Arc::new(Shared::new(Parts {
            buffers,
            location: None,
            wide: true,
            credits_max,
            revokes_a_block: u32::MAX,
            options,
        }));
        Self::run(shared, client, Store::Home(WithoutLog))
    }

    fn run(shared: Arc<Shared>, client: Weak<dyn Client>, store: Store) -> Result<Arc<Self>> {
        let worker = Worker::new(shared.clone(), client, store);
        let thread =
            thread::spawn("pagefence-jbd2", || worker.run()).map_err(JournalError::Thread)?;
        Ok(Arc::new(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// Starts a handle in the running transaction, with room for `credits` blocks. Waits while
    /// that transaction is full or about to be committed, so nothing may be held that the end of
    /// another handle or [`Client::seal`] needs.
    ///
    /// # Errors
    /// The journal was aborted or closed, or `credits` are more than [`Journal::max_credits`].
    pub fn start<'a, P: Level>(
        &'a self,
        held: &'a mut Held<'_, P>,
        credits: u32,
    ) -> Result<(Handle<'a>, Held<'a, levels::Handle>)>
    where
        levels::Handle: After<P>,
    {
        let shared = &*self.shared;
        if credits > shared.credits_max {
            return Err(JournalError::LogFull {
                needed: u64::from(credits),
                free: shared.credits_max,
            });
        }
        let (rank, held) = held.descend::<levels::Handle>(0);
        loop {
            if shared.is_aborted() {
                return Err(shared.aborted_error());
            }
            let transaction = shared.running();
            let tid = transaction.tid;
            match transaction.join(credits, shared.credits_max) {
                Join::Joined { first } => {
                    if first {
                        shared.first_joined(tid);
                    }
                    return Ok((Handle::new(shared, transaction, credits, rank), held));
                }
                Join::Locked => shared.wait_for_swap(tid)?,
                Join::Full => {
                    shared.request_commit(tid);
                    shared.wait_for_swap(tid)?;
                }
            }
        }
    }

    /// The transaction that a handle would join now.
    #[must_use]
    pub fn running(&self) -> Tid {
        self.shared.running().tid
    }

    /// The last transaction that is durable, with all before it.
    #[must_use]
    pub fn committed_tid(&self) -> Tid {
        self.shared.committed()
    }

    /// Waits until `tid` is durable, after having its commit started if it runs. Does nothing if
    /// it is durable already: then data written since may not be ([`Journal::flush_data`]).
    /// Called with no handle and nothing below it held.
    ///
    /// # Errors
    /// The journal was aborted, or closed before.
    pub fn commit(&self, tid: Tid) -> Result<()> {
        let _rank = rank::enter::<levels::Handle>(0);
        self.shared.commit(tid)
    }

    /// Has the commit of `tid` started if it runs. Does not wait.
    pub fn request_commit(&self, tid: Tid) {
        self.shared.request_commit(tid);
    }

    /// The metadata as of the commit of `tid`, or of a later transaction, which is started; waits
    /// for it. The snapshot keeps at most `bytes_max` bytes of what is overwritten from then on, and
    /// is lost beyond that. Nobody else waits for anything but that commit. Called with no handle
    /// and nothing below it held.
    ///
    /// # Errors
    /// [`JournalError::SnapshotInUse`]: there is one, or somebody waits for one. The journal was
    /// aborted or closed.
    pub fn snapshot(&self, tid: Tid, bytes_max: u64) -> Result<Arc<Snapshot>> {
        let _rank = rank::enter::<levels::Handle>(0);
        self.shared.take_snapshot(tid, bytes_max)
    }

    /// Makes everything durable that was written to the device before the call, for an fsync that
    /// needs no commit. Callers that come while a flush is in flight share the next one.
    ///
    /// # Errors
    /// The device failed, now or earlier: the journal is aborted, for what it wrote may be lost
    /// as well.
    pub fn flush_data(&self) -> Result<()> {
        self.shared.flush()
    }

    /// Aborts the journal: what is not durable yet will not be, waiters get an error, handles
    /// can't be started. The error's number is written into the journal's superblock if that can
    /// be done. Only the first abort counts.
    pub fn abort(&self, error: JournalError) {
        self.shared.abort(error);
    }

    /// Whether the journal was aborted.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.shared.is_aborted()
    }

    /// The most credits that a handle can have.
    #[must_use]
    pub fn max_credits(&self) -> u32 {
        self.shared.credits_max
    }

    /// Credits that handles used beyond what they had asked for. Anything but 0 is a mistake of
    /// who counted them.
    #[must_use]
    pub fn overdrawn(&self) -> u64 {
        self.shared.overdrawn.load(Ordering::Relaxed)
    }

    /// Waits for open handles, commits, brings everything home, marks the log empty, durably, and
    /// ends the thread. Handles can't be started from the next transaction on. A second call does
    /// nothing but wait for the first.
    ///
    /// # Errors
    /// The journal was aborted; its thread ends all the same.
    pub fn close(&self) -> Result<()> {
        let _rank = rank::enter::<levels::Handle>(0);
        self.shared.stop(Stop::Close);
        self.join();
        match self.shared.is_aborted() {
            true => Err(self.shared.aborted_error()),
            false => Ok(()),
        }
    }

    fn join(&self) {
        // Held until it has ended: nobody else takes it for ended before.
        let mut thread = self.thread.lock();
        // The last reference may go on the thread itself, with that of its client.
        if let Some(thread) = thread.take()
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the journal's thread panicked");
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.stop(Stop::Drop);
        self.join();
    }
}
