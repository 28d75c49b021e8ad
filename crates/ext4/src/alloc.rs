//! Blocks and inodes: what is free, who has been promised what, and what a commit has yet to free.
//!
//! ```text
//! reservation   blocks promised, nowhere in particular     counts      how many are left
//! block_alloc   runs of blocks: found, busy, lent          free_runs   the index of a group
//! inode_alloc   inodes, and the groups they go to          spread      which groups those are
//! group_state   the truth of one group, in memory          summary     numbers of it, for searches
//! pending       what waits for a commit                    seal        the blocks of a commit
//! low_blocks    how many are left that block maps can name, where there are others
//! in_use        runs of blocks: in use, and free again      owners      whose data they hold
//! ```
//!
//! A group has two views. Its *bitmap* is as of the running transaction: what the next commit
//! writes. Its *index* is what can be had: not what is in use, nor what is busy (found for
//! somebody who has not mapped it yet), nor what was freed by a transaction that is not durable.
//!
//! Locks: one per group (level Group), by which both views, the descriptor and the counts of the
//! group change together; [`counts`] and [`pending`] have locks of the level Counters. Bitmaps are
//! read without any lock. What a search through the groups looks at first are copies of the
//! groups' numbers, published whenever a group's lock is given up.
//!
//! Invariants:
//! - The blocks in all indexes are at least as many as are promised: a block goes to the index
//!   before its number goes to the counts, and a number leaves the counts before its block leaves
//!   the index. So a reservation of n is good for n blocks.
//! - A bit is set in the index if it is set in the bitmap, or lies in a system zone.
//! - A block or inode freed by a transaction is in no index before [`Allocator::committed`].
//! - Bitmaps in memory are those that [`Seal::set`] was given last, but for groups marked dirty;
//!   only groups that are neither dirty, busy nor waiting are dropped from memory.

pub(crate) mod block_alloc;
mod counts;
mod free_runs;
mod group_state;
mod in_use;
pub(crate) mod inode_alloc;
mod low_blocks;
mod owners;
mod pending;
pub(crate) mod reservation;
mod seal;
mod spread;
mod summary;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use pagefence_block_io::BufferCache;
use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::{BlockNo, GroupNo};
use pagefence_lock_order::levels::Counters;
#[cfg(any(test, feature = "mutants"))]
use pagefence_lock_order::primitives::atomic::AtomicBool;
use pagefence_lock_order::primitives::atomic::{AtomicU32, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_lock_order::rank;
use pagefence_vfs::{Error, Result};

pub(crate) use block_alloc::{BusyRun, POINTERS_END, Reach};
pub(crate) use counts::Claim;
use counts::Counts;
use group_state::{Group, GroupGuard};
pub(crate) use inode_alloc::{NewInode, NewNumber};
use low_blocks::LowBlocks;
pub(crate) use owners::BlockOwner;
use owners::Owners;
use pending::Pending;
pub(crate) use reservation::Reservation;
use spread::Averages;
use summary::Summary;

use crate::error::At;
use crate::instance::Instance;
use crate::system_zones::SystemZones;

/// Groups that are kept in memory, at most: 128 TiB of 4 KiB blocks.
const GROUPS_MAX: u32 = 1 << 20;

/// Groups whose bitmaps may stay in memory, at least.
const RESIDENT_MIN: usize = 64;

/// What allocation needs of a transaction.
pub(crate) trait Sink {
    /// The transaction: grows from one to the next.
    fn tid(&self) -> u64;
    /// Makes a block part of the transaction; [`Allocator::seal`] gives its contents.
    fn defer(&mut self, block: BlockNo);
}

/// Where the contents of deferred blocks go when their transaction is committed.
pub(crate) trait Seal {
    /// The contents of a block, whoever reads it through the instance's buffers from now on.
    fn set(&mut self, block: BlockNo, bytes: &[u8]);
    /// Whether a block is part of the transaction.
    fn contains(&self, block: BlockNo) -> bool;
}

/// Numbers of the whole file system, of the running transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FreeCounts {
    /// Blocks not in use: those that reservations hold and that wait for a commit among them.
    pub(crate) blocks: u64,
    /// Of [`Self::blocks`], those that nobody was promised. Those kept back
    /// ([`Instance::kept_back`]) are among them.
    pub(crate) blocks_unreserved: u64,
    /// Inodes not in use.
    pub(crate) inodes: u64,
    /// Directories.
    pub(crate) directories: u64,
}

/// The blocks and inodes of a file system that is written to. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// For geometry and features: its counts are those of when it was opened.
    superblock: Superblock,
    buffers: Arc<BufferCache>,
    zones: SystemZones,
    groups: Box<[Group]>,
    /// Of each group.
    summaries: Box<[Summary]>,
    counts: Arc<Counts>,
    /// Groups whose blocks a block map can name, the first ones.
    low_groups: u32,
    pending: Mutex<Pending>,
    owners: Owners,
    /// Groups to be sealed, in no order, each once.
    dirty: Mutex<Vec<GroupNo>>,
    /// Groups with a bitmap in memory, each once, and how many there may be.
    resident: Mutex<VecDeque<GroupNo>>,
    resident_max: usize,
    /// How often blocks came back to an index: who searched meanwhile may have missed them.
    returns: AtomicU64,
    generation: AtomicU32,
    averages: Averages,
    /// Held while blocks are lent ([`block_alloc::LentRun`]). Groups are locked below it, and the
    /// device is told of the blocks under it; waited for with no group locked.
    lending: Mutex<()>,
    /// The mutant: what is freed can be had before the transaction that frees it is durable.
    #[cfg(any(test, feature = "mutants"))]
    pub(crate) reuses_at_once: AtomicBool,
}

impl Allocator {
    /// Reads all descriptors; bitmaps are read when they are needed. `own` are the journal's
    /// blocks, and whatever else is not for files besides the groups' metadata.
    ///
    /// # Errors
    /// `Corrupt` if a descriptor is damaged; `Unsupported` with clusters of several blocks;
    /// `OutOfMemory` past [`GROUPS_MAX`] groups; `Io`.
    pub(crate) fn new(
        instance: &Instance,
        own: impl IntoIterator<Item = Range<BlockNo>>,
    ) -> Result<Arc<Self>> {
        let superblock = &instance.superblock;
        if superblock.blocks_per_cluster() != 1 {
            return Err(Error::Unsupported(
                "writing with clusters of several blocks",
            ));
        }
        if superblock.group_count() > GROUPS_MAX {
            return Err(Error::OutOfMemory);
        }
        let zones = SystemZones::strict(instance, own)?;
        let mut groups = Vec::with_capacity(superblock.group_count() as usize);
        let mut summaries = Vec::with_capacity(superblock.group_count() as usize);
        let (mut free, mut low_free) = (0, 0);
        let low_groups = block_alloc::low_groups(superblock);
        for number in superblock.groups() {
            let desc = instance.group_desc(number)?;
            let (index, offset) =
                superblock
                    .locate_descriptor(number)
                    .at(&instance.damage, None, None)?;
            let home = superblock
                .descriptor_block(index)
                .at(&instance.damage, None, None)?;
            let counts = desc
                .check_counts(superblock)
                .at(&instance.damage, None, Some(home));
            let group = Group::new(desc, counts.is_ok(), home, offset);
            let summary = Summary::default();
            // Giving up the lock publishes the numbers.
            drop(group.lock(&summary));
            free += u64::from(summary.free());
            if number.0 < low_groups {
                low_free += u64::from(summary.free());
            }
            groups.push(group);
            summaries.push(summary);
        }
        // A loaded group takes about four blocks: both views, the index, inodes.
        let resident_bytes = 4 * u64::from(superblock.block_size());
        let resident_max = usize::try_from(instance.metadata_bytes / 2 / resident_bytes)
            .unwrap_or(usize::MAX)
            .max(RESIDENT_MIN);
        let allocator = Self {
            counts: Arc::new(Counts::new(
                free,
                superblock.reserved_blocks_count(),
                instance.kept_for_trees(),
                (low_groups < superblock.group_count()).then(|| LowBlocks::new(low_free)),
            )),
            low_groups,
            superblock: superblock.clone(),
            buffers: Arc::clone(&instance.buffers),
            zones,
            groups: groups.into_boxed_slice(),
            summaries: summaries.into_boxed_slice(),
            pending: Mutex::new(Pending::default()),
            owners: Owners::default(),
            dirty: Mutex::new(Vec::new()),
            resident: Mutex::new(VecDeque::new()),
            resident_max,
            returns: AtomicU64::new(0),
            // Numbers that nobody can guess from outside are no promise of the format; that
            // they differ from mount to mount keeps old handles from naming new files.
            generation: AtomicU32::new(RandomState::new().hash_one(0) as u32),
            averages: Averages::default(),
            lending: Mutex::new(()),
            #[cfg(feature = "mutants")]
            reuses_at_once: AtomicBool::new(crate::mutant::Mutant::EarlyReuse.is_named()),
            #[cfg(all(test, not(feature = "mutants")))]
            reuses_at_once: AtomicBool::new(false),
        };
        allocator.renew_averages();
        Ok(Arc::new(allocator))
    }

    /// Numbers of the whole file system; exact while nothing changes. Takes a moment per
    /// thousand groups.
    pub(crate) fn counts(&self) -> FreeCounts {
        let mut counts = FreeCounts {
            blocks_unreserved: self.counts.left() + self.with_pending(|pending| pending.blocks()),
            ..FreeCounts::default()
        };
        for summary in &self.summaries {
            counts.blocks += u64::from(summary.free_blocks());
            counts.inodes += u64::from(summary.free_inodes());
            counts.directories += u64::from(summary.directories());
        }
        counts
    }

    /// Whether blocks or inodes were freed that can be had only when a transaction is durable.
    #[cfg(test)]
    pub(crate) fn has_pending_frees(&self) -> bool {
        self.pending_tid().is_some()
    }

    /// The newest transaction that frees something and is not durable. Who meets `NoSpace` after
    /// this gave one has it committed and tries again.
    pub(crate) fn pending_tid(&self) -> Option<u64> {
        self.with_pending(|pending| pending.newest())
    }

    /// What no file may own: metadata, descriptors to come and the journal.
    #[cfg(test)]
    pub(crate) fn zones(&self) -> &SystemZones {
        &self.zones
    }

    fn group(&self, number: GroupNo) -> &Group {
        &self.groups[number.0 as usize]
    }

    /// Takes a group's lock, of the level Group.
    fn lock(&self, number: GroupNo) -> GroupGuard<'_> {
        self.group(number).lock(self.summary(number))
    }

    /// Numbers of a group, without its lock.
    fn summary(&self, number: GroupNo) -> &Summary {
        &self.summaries[number.0 as usize]
    }

    fn with_pending<T>(&self, visit: impl FnOnce(&mut Pending) -> T) -> T {
        let _rank = rank::enter::<Counters>(2);
        visit(&mut self.pending.lock())
    }

    /// Has a group sealed; called once until it is. The caller holds the group's lock.
    fn note_dirty(&self, number: GroupNo) {
        let _rank = rank::enter::<Counters>(2);
        self.dirty.lock().push(number);
    }

    /// Makes what a change of a group is written to part of the transaction, with the bitmap in
    /// `bitmap`.
    fn defer(&self, tx: &mut impl Sink, number: GroupNo, bitmap: BlockNo) {
        tx.defer(bitmap);
        tx.defer(self.group(number).home());
        tx.defer(self.superblock.superblock_block());
    }

    /// Blocks came back to an index; called before their number goes to the counts.
    fn note_returns(&self) {
        self.returns.fetch_add(1, Ordering::SeqCst);
    }
}
