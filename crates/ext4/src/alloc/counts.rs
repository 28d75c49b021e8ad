//! How many blocks are left to be promised.
//!
//! The number is the free blocks of all groups less what reservations and busy runs hold and what
//! waits for a commit. Most of it lies in one pool; each shard has a little of it, so that
//! promising and taking back touch nothing that all threads touch. Who finds too little gathers
//! all shards into the pool, one thread at a time: then the answer is exact.
//!
//! Invariant: shards hold only what is for everybody. While the pool is below what is kept back,
//! whatever comes back goes to the pool.

#[cfg(test)]
mod tests;

use std::hash::{DefaultHasher, Hash, Hasher};

use pagefence_lock_order::levels::Counters;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Mutex, MutexGuard, thread, thread_local};
use pagefence_lock_order::rank::{self, RankGuard};

use crate::alloc::low_blocks::LowBlocks;

/// Shards of the number.
const SHARDS: usize = 16;

/// Blocks that a shard is filled up with at a time, at most.
const BATCH: u64 = 1024;

thread_local! {
    /// The shard of this thread.
    static SHARD: usize = {
        let mut hasher = DefaultHasher::new();
        thread::current().id().hash(&mut hasher);
        (hasher.finish() % SHARDS as u64) as usize
    };
}

/// What blocks are for, and so how far the number may fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Data and names of everybody.
    Everybody,
    /// Data and names of root: what is kept for root may be taken as well.
    Root,
    /// The map of a file, whoever writes it: all there is. So what has its data blocks can be
    /// written, and a hole be punched, on a full disk.
    Map,
}

impl Claim {
    /// Root's, or everybody's.
    pub(crate) fn of(is_root: bool) -> Self {
        if is_root { Self::Root } else { Self::Everybody }
    }
}

/// A part of the number that few threads touch.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    blocks: AtomicU64,
    /// Counts what came back to this shard, each after it came: who gathered meanwhile may have
    /// missed it, and sees so.
    returns: AtomicU64,
}

/// How many blocks are left to be promised.
#[derive(Debug)]
pub(super) struct Counts {
    shards: [Shard; SHARDS],
    /// Below zero only while damage took away what had been promised.
    pool: Mutex<i64>,
    /// Whether the pool is below what is kept back.
    is_low: AtomicBool,
    /// What not everybody may bring it below: for root and for maps.
    kept_back: i64,
    /// What only maps may bring it below.
    for_maps: i64,
    /// Of those that block maps can name, where there are others.
    pub(super) low: Option<LowBlocks>,
}

struct Pool<'a> {
    blocks: MutexGuard<'a, i64>,
    _rank: RankGuard,
}

impl Counts {
    /// `free` blocks, of which `for_root` and `for_maps` are not for everybody.
    pub(super) fn new(free: u64, for_root: u64, for_maps: u64, low: Option<LowBlocks>) -> Self {
        let (free, for_maps) = (signed(free), signed(for_maps));
        let kept_back = signed(for_root).saturating_add(for_maps);
        Self {
            shards: Default::default(),
            pool: Mutex::new(free),
            is_low: AtomicBool::new(free < kept_back),
            kept_back,
            for_maps,
            low,
        }
    }

    /// Promises `blocks`, or nothing if there are too few.
    pub(super) fn take(&self, blocks: u64, claim: Claim) -> bool {
        let shard = self.shard();
        let less = |have: u64| have.checked_sub(blocks);
        if blocks == 0
            || shard
                .blocks
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
                .is_ok()
        {
            return true;
        }
        let blocks = signed(blocks);
        let mut pool = self.pool();
        let plenty = pool
            .blocks
            .saturating_sub(blocks)
            .saturating_sub(self.kept_back);
        if plenty >= 0 {
            // The less there is, the less is put aside.
            let aside = BATCH.min(plenty.unsigned_abs() / (4 * SHARDS as u64));
            *pool.blocks -= blocks + signed(aside);
            shard.blocks.fetch_add(aside, Ordering::SeqCst);
            return true;
        }
        let floor = match claim {
            Claim::Everybody => self.kept_back,
            Claim::Root => self.for_maps,
            Claim::Map => 0,
        };
        loop {
            let returns = self.returns();
            self.gather(&mut pool);
            if pool.blocks.saturating_sub(blocks) >= floor {
                *pool.blocks -= blocks;
                self.note(&pool);
                return true;
            }
            if returns == self.returns() {
                self.note(&pool);
                return false;
            }
        }
    }

    /// Takes back `blocks` that were promised, or that became free.
    pub(super) fn give(&self, blocks: u64) {
        if blocks == 0 {
            return;
        }
        let shard = self.shard();
        let has_room = shard.blocks.load(Ordering::Relaxed).saturating_add(blocks) <= 2 * BATCH;
        if !has_room || self.is_low.load(Ordering::SeqCst) {
            let mut pool = self.pool();
            *pool.blocks = pool.blocks.saturating_add(signed(blocks));
            self.note(&pool);
            return;
        }
        shard.blocks.fetch_add(blocks, Ordering::SeqCst);
        shard.returns.fetch_add(1, Ordering::SeqCst);
        if self.is_low.load(Ordering::SeqCst) {
            let mut pool = self.pool();
            self.gather(&mut pool);
            self.note(&pool);
        }
    }

    /// Takes away `blocks` that turned out not to be there.
    pub(super) fn lose(&self, blocks: u64) {
        let mut pool = self.pool();
        self.gather(&mut pool);
        *pool.blocks = pool.blocks.saturating_sub(signed(blocks));
        self.note(&pool);
    }

    /// Blocks left to be promised to maps; exact while nobody else changes them.
    pub(super) fn left(&self) -> u64 {
        let mut pool = self.pool();
        self.gather(&mut pool);
        self.note(&pool);
        u64::try_from(*pool.blocks).unwrap_or(0)
    }

    fn shard(&self) -> &Shard {
        SHARD.with(|shard| &self.shards[*shard])
    }

    fn pool(&self) -> Pool<'_> {
        let rank = rank::enter::<Counters>(1);
        Pool {
            blocks: self.pool.lock(),
            _rank: rank,
        }
    }

    /// Moves what all shards have into the pool.
    fn gather(&self, pool: &mut Pool<'_>) {
        for shard in &self.shards {
            let blocks = signed(shard.blocks.swap(0, Ordering::SeqCst));
            *pool.blocks = pool.blocks.saturating_add(blocks);
        }
    }

    fn note(&self, pool: &Pool<'_>) {
        self.is_low
            .store(*pool.blocks < self.kept_back, Ordering::SeqCst);
    }

    fn returns(&self) -> [u64; SHARDS] {
        std::array::from_fn(|shard| self.shards[shard].returns.load(Ordering::SeqCst))
    }
}

fn signed(blocks: u64) -> i64 {
    i64::try_from(blocks).unwrap_or(i64::MAX)
}
