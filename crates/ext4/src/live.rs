//! What a file system that is written to has besides: the journal, the allocator, the orphans and
//! the superblock that is kept up.
//!
//! Invariants:
//! - The superblock says that it needs recovery (with a journal), or that it was not closed
//!   properly (without), before anything else is written; that is taken back when all is on disk,
//!   and stays after an error.
//! - Bitmaps, descriptors and the superblock are written when a transaction is sealed, and no
//!   handle is open: they agree with each other and with all else of their transaction.

use std::time::Duration;

use pagefence_block_io::Device;
use pagefence_ext4_format::features::{Compat, Incompat, RoCompat};
use pagefence_ext4_format::superblock::{State, Superblock};
use pagefence_ext4_format::{BlockNo, InodeNo};
use pagefence_jbd2::{Client, Journal, JournalError, JournalLocation, Options, Sealing, Tid};
use pagefence_lock_order::levels::{self, Level};
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex, Weak};
use pagefence_lock_order::{After, Held, OrderedRwLock};
use pagefence_vfs::{Error, Result};

use crate::alloc::{Allocator, Claim, Reach, Seal};
use crate::change::Transaction;
use crate::clock;
use crate::instance::Instance;
use crate::mount::MountError;
use crate::orphans::Orphans;
use crate::recovery::{blocks_of, mark_error, write_superblock};
use crate::unsound::Unsound;

/// How long a change waits until it is committed, unless told otherwise.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);

/// Bytes of metadata that wait to be brought home, between which the budget decides.
const PINNED_MIN: u64 = 8 << 20;
const PINNED_MAX: u64 = 64 << 20;

/// Blocks that a log has at least (Linux: `JBD2_MIN_JOURNAL_BLOCKS`, the superblock included). In less,
/// an operation might not fit.
const LOG_BLOCKS_MIN: u32 = 1023;

/// What an operation may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// Blocks of metadata that it changes at most, bitmaps and descriptors among them.
    pub(crate) credits: u32,
    /// Blocks for metadata that it takes at most.
    pub(crate) blocks: u32,
    /// Whether it may take what is kept for root.
    pub(crate) privileged: bool,
}

impl Need {
    /// A change of an inode's record alone.
    pub(crate) const RECORD: Self = Self {
        credits: 2,
        blocks: 0,
        privileged: true,
    };
}

/// What a file system that is written to has besides.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) journal: Arc<Journal>,
    pub(crate) allocator: Arc<Allocator>,
    pub(crate) orphans: Orphans,
    /// Held while a directory moves into another one: nothing else changes then which directory
    /// lies in which.
    pub(crate) renames: OrderedRwLock<levels::Rename, ()>,
    /// Where a commit is not always sound in itself.
    pub(crate) unsound: Arc<Unsound>,
    keeper: Arc<Keeper>,
    closed: AtomicBool,
    /// The last transaction by which blocks with data moved within a file or to another one; 0 if it is
    /// known to be durable.
    moved: AtomicU64,
}

/// What the journal asks when it commits; keeps the superblock.
#[derive(Debug)]
struct Keeper {
    allocator: Arc<Allocator>,
    device: Arc<dyn Device>,
    block_size: u32,
    /// Whether the device is told of space that became free.
    discard: bool,
    /// Whether the file system was sound when it was opened.
    was_valid: bool,
    /// The superblock as it is written next. A leaf.
    superblock: Mutex<Superblock>,
    /// What it said of the transaction that was sealed last, and of the last that is durable. A
    /// leaf.
    versions: Mutex<Versions>,
    aborted: AtomicBool,
}

/// What the superblock says of one transaction.
#[derive(Clone, Copy, Debug)]
struct Said {
    first_orphan: Option<InodeNo>,
    free_blocks: u64,
    free_inodes: u32,
}

impl Said {
    fn by(superblock: &Superblock) -> Self {
        Self {
            first_orphan: superblock.last_orphan(),
            free_blocks: superblock.free_blocks_count(),
            free_inodes: superblock.free_inodes_count(),
        }
    }
}

/// What the superblock says as of several transactions.
#[derive(Debug)]
struct Versions {
    sealed: Said,
    durable: Said,
}

impl Live {
    /// Makes a file system one that is written to: from here on it needs recovery unless
    /// [`Self::close`] ends it.
    ///
    /// # Errors
    /// The device failed; a thread can't be started; descriptors are damaged.
    pub(crate) fn start(
        instance: &Instance,
        journal: Option<JournalLocation>,
        commit_interval: Option<Duration>,
        discard: bool,
    ) -> Result<Self, MountError> {
        let damaged = |error: Error| match error {
            // Nothing is wrong with it.
            Error::OutOfMemory => MountError::ReadOnly(
                "it has more groups, or its metadata lies in more pieces, than can be kept in \
                 memory"
                    .to_owned(),
            ),
            other => MountError::Damaged(other.to_string()),
        };
        let own = journal.as_ref().map(blocks_of).unwrap_or_default();
        let allocator = Allocator::new(instance, own).map_err(damaged)?;
        let orphans = Orphans::open(instance, &allocator).map_err(damaged)?;
        let mut superblock = instance.superblock.clone();
        let was_valid = superblock.state().contains(State::VALID);
        let mut features = superblock.features();
        if journal.is_some() {
            features.incompat.insert(Incompat::RECOVER);
        } else {
            superblock.set_state(superblock.state().difference(State::VALID));
        }
        if features.compat.contains(Compat::ORPHAN_FILE) {
            features.ro_compat.insert(RoCompat::ORPHAN_PRESENT);
        }
        superblock.set_features(features);
        let now = clock::seconds();
        superblock.set_mount_time(now.into());
        let raw = superblock.raw_mut();
        raw.s_mnt_count = raw.s_mnt_count.get().saturating_add(1).into();
        let device = Arc::clone(instance.device());
        let keeper = Arc::new(Keeper {
            allocator: Arc::clone(&allocator),
            device,
            block_size: superblock.block_size(),
            discard,
            was_valid,
            versions: Mutex::new(Versions {
                sealed: Said::by(&superblock),
                durable: Said::by(&superblock),
            }),
            superblock: Mutex::new(superblock),
            aborted: AtomicBool::new(false),
        });
        let options = Options {
            commit_interval: commit_interval.unwrap_or(COMMIT_INTERVAL),
            pinned_bytes_max: instance.metadata_bytes.clamp(PINNED_MIN, PINNED_MAX),
        };
        let keeping: Weak<Keeper> = Arc::downgrade(&keeper);
        let client: Weak<dyn Client> = keeping;
        let buffers = Arc::clone(&instance.buffers);
        let has_log = journal.is_some();
        let journal = match journal {
            Some(location) => Journal::open(buffers, location, client, options),
            None => Journal::without_log(buffers, client, options),
        }
        .map_err(|error| MountError::Damaged(error.to_string()))?;
        if has_log && journal.max_credits() < LOG_BLOCKS_MIN / 4 {
            let reason = "its journal is shorter than the shortest that there may be";
            return Err(MountError::ReadOnly(reason.to_owned()));
        }
        // The journal writes nothing before it commits. One that can't be opened leaves the image as
        // it was: nobody could do the recovery that it would ask for.
        {
            let mut superblock = keeper.superblock.lock();
            write_superblock(&*keeper.device, &mut superblock)?;
            instance.buffers.invalidate(superblock.superblock_block().0);
        }
        Ok(Self {
            journal,
            allocator,
            orphans,
            renames: OrderedRwLock::new(0, ()),
            unsound: Arc::default(),
            keeper,
            closed: AtomicBool::new(false),
            moved: AtomicU64::new(0),
        })
    }

    /// Whether an error has made the file system read-only.
    pub(crate) fn is_aborted(&self) -> bool {
        self.keeper.aborted.load(Ordering::Acquire)
    }

    /// Whether [`Self::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Aborts the journal, since an operation ended half way.
    pub(crate) fn abort_half_done(&self) {
        let source = std::io::Error::other("an operation failed half way");
        self.journal
            .abort(JournalError::Device(pagefence_block_io::DeviceError {
                operation: pagefence_block_io::device::Operation::Write,
                offset: 0,
                length: 0,
                source,
            }));
    }

    /// Waits until transaction `tid` is durable. No lock that a commit needs is held.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn commit(&self, tid: u64) -> Result<()> {
        self.journal.commit(Tid(tid)).map_err(journal_error)
    }

    /// Blocks with data move by transaction `tid`, which has not ended, or nobody can write to them yet.
    pub(crate) fn note_move(&self, tid: u64) {
        self.moved.fetch_max(tid, Ordering::AcqRel);
    }

    /// Waits until blocks that moved are durable where they are. Whoever writes to blocks that have data
    /// waits for this first: a power cut that undid the move would show what is written where they were,
    /// in another file even. No lock that a commit needs is held; page locks may be.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn commit_moves(&self) -> Result<()> {
        let tid = self.moved.load(Ordering::Acquire);
        if tid == 0 {
            return Ok(());
        }
        self.commit(tid)?;
        // Unless more has moved meanwhile.
        let _ = self
            .moved
            .compare_exchange(tid, 0, Ordering::AcqRel, Ordering::Acquire);
        Ok(())
    }

    /// Sets the head of the list of orphans; the transaction writes it.
    pub(crate) fn set_last_orphan(&self, transaction: &mut Transaction<'_>, head: Option<InodeNo>) {
        let mut superblock = self.keeper.superblock.lock();
        superblock.set_last_orphan(head);
        transaction.defer(superblock.superblock_block());
    }

    /// Makes all that was committed durable in its place and marks the file system as closed. The
    /// caller has seen to it that nothing is open. Does nothing the second time.
    ///
    /// # Errors
    /// The device or the journal failed; the file system is then left to recovery.
    pub(crate) fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.journal.close().map_err(journal_error)?;
        let keeper = &self.keeper;
        let mut superblock = keeper.superblock.lock();
        let counts = keeper.allocator.counts();
        superblock.set_free_blocks_count(counts.blocks);
        superblock.set_free_inodes_count(u32::try_from(counts.inodes).unwrap_or(u32::MAX));
        let mut features = superblock.features();
        features.incompat.remove(Incompat::RECOVER);
        // What could not be deleted is left to the next mount, which looks only if it is told.
        if !self.orphans.is_file_in_use() {
            features.ro_compat.remove(RoCompat::ORPHAN_PRESENT);
        }
        superblock.set_features(features);
        if keeper.was_valid && !superblock.state().contains(State::ERROR) {
            let state = superblock.state() | State::VALID;
            superblock.set_state(state);
        }
        write_superblock(&*keeper.device, &mut superblock)
            .map_err(|error| Error::Io(std::io::Error::other(error.to_string())))
    }
}

/// What is sealed, as the allocator sees it.
struct Sealed<'a, 'b>(&'a mut Sealing<'b>);

impl Seal for Sealed<'_, '_> {
    fn set(&mut self, block: BlockNo, bytes: &[u8]) {
        self.0.set(block, bytes);
    }

    fn contains(&self, block: BlockNo) -> bool {
        self.0.blocks().binary_search(&block).is_ok()
    }
}

impl Client for Keeper {
    fn seal(&self, sealing: &mut Sealing<'_>) {
        let sealed = self.allocator.seal(&mut Sealed(sealing), |blocks, inodes| {
            let mut superblock = self.superblock.lock();
            superblock.set_free_blocks_count(blocks);
            superblock.set_free_inodes_count(inodes);
            let now = clock::seconds();
            superblock.set_write_time(now.into());
            self.versions.lock().sealed = Said::by(&superblock);
            superblock.clone()
        });
        // A block then has no contents, which aborts the journal.
        if let Err(error) = sealed {
            tracing::error!(%error, "what is free can't be written");
        }
    }

    fn committed(&self, tid: Tid) {
        {
            let mut versions = self.versions.lock();
            versions.durable = versions.sealed;
        }
        self.allocator.committed(tid.0, |start, count| {
            if !self.discard {
                return;
            }
            let bytes = u64::from(self.block_size);
            // Advice: nothing is lost if it is not taken.
            if let Err(error) = self.device.discard(start.0 * bytes, count * bytes) {
                tracing::debug!(%error, "the device takes no advice");
            }
        });
    }

    fn aborted(&self, error: &JournalError) {
        self.aborted.store(true, Ordering::Release);
        tracing::error!(%error, "the file system is read-only from now on: run e2fsck");
        let durable = self.versions.lock().durable;
        let mut superblock = self.superblock.lock();
        mark_error(&mut superblock, "journal", 0);
        // As recovery leaves it: of the last transaction that is whole.
        superblock.set_last_orphan(durable.first_orphan);
        superblock.set_free_blocks_count(durable.free_blocks);
        superblock.set_free_inodes_count(durable.free_inodes);
        if let Err(error) = write_superblock(&*self.device, &mut superblock) {
            tracing::error!(%error, "the error can't be recorded in the superblock");
        }
    }
}

impl Instance {
    /// What is needed to write.
    ///
    /// # Errors
    /// `ReadOnly` if the file system was opened so, or has turned so.
    pub(crate) fn live(&self) -> Result<&Live> {
        self.live
            .as_ref()
            .filter(|live| !live.is_aborted())
            .ok_or(Error::ReadOnly)
    }

    /// Starts a transaction that changes no more than `need` says. Takes a journal handle, and
    /// waits for a commit if the running transaction is full: nothing that a commit needs may be
    /// held, nor a page lock be waited for before the transaction ends.
    ///
    /// # Errors
    /// `NoSpace` if there are not as many free blocks as it may take; `ReadOnly`; `Io`.
    pub(crate) fn begin<'a, P: Level>(
        &'a self,
        held: &'a mut Held<'_, P>,
        need: Need,
    ) -> Result<(Transaction<'a>, Held<'a, levels::Handle>)>
    where
        levels::Handle: After<P>,
    {
        self.begin_within(held, need, Reach::Everywhere)
    }

    /// As [`Self::begin`], with blocks within `reach`; where all maps are block maps, within theirs.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub(crate) fn begin_within<'a, P: Level>(
        &'a self,
        held: &'a mut Held<'_, P>,
        need: Need,
        reach: Reach,
    ) -> Result<(Transaction<'a>, Held<'a, levels::Handle>)>
    where
        levels::Handle: After<P>,
    {
        #[cfg(test)]
        self.probe.stop_before_transaction();
        let live = self.live()?;
        let has_trees = self.superblock.has_incompat(Incompat::EXTENTS);
        let reach = if has_trees { reach } else { Reach::Pointers };
        let claim = Claim::of(need.privileged);
        let reservation = live
            .allocator
            .reserve_within(u64::from(need.blocks), claim, reach)?;
        let (handle, held) = live
            .journal
            .start(held, need.credits)
            .map_err(journal_error)?;
        Ok((Transaction::live(self, live, handle, reservation), held))
    }
}

/// A journal's error as the interface has it.
pub(crate) fn journal_error(error: JournalError) -> Error {
    match error {
        JournalError::Aborted { .. } | JournalError::Closed => Error::ReadOnly,
        JournalError::Device(error) => crate::error::device(error),
        other => Error::Io(std::io::Error::other(other.to_string())),
    }
}

#[cfg(test)]
mod tests;
