//! A transaction in memory: who has joined it, and the blocks that it changes.
//!
//! Joining is one compare-and-swap of a word that holds the handles that are open, the blocks that
//! are spoken for, whether anybody has joined, and whether the transaction is locked. A locked transaction admits nobody; once
//! its last handle has ended nothing of it changes but by its sealing.
//!
//! The blocks lie in shards, each under a lock of level `Buffer`. Contents are immutable buffers of
//! the buffer cache, so a frozen transaction is a list of references, which also keep the cache
//! from evicting what the device does not have yet. Of the transactions of a journal at most one
//! has open handles, so its shard lock covers every change of a block.

use hashbrown::HashMap;
use hashbrown::hash_map;
use pagefence_block_io::{Buffer, BufferCache, DeviceError};
use pagefence_ext4_format::BlockNo;
use pagefence_lock_order::levels;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex, MutexGuard};
use pagefence_lock_order::rank::{self, RankGuard};

/// Number of a transaction of a running journal. It counts up from 1 each time a journal is
/// opened; 0 is committed from the start. Not the number in the log, which wraps around and is
/// not spent on transactions that change nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tid(pub u64);

impl Tid {
    /// The transaction after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl std::fmt::Display for Tid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// No handle may join.
const LOCKED: u64 = 1 << 63;
/// Some handle has joined. In the word, so that who locks it knows of everybody who was in time.
const JOINED: u64 = 1 << 62;
/// One open handle; the credits lie below.
const HANDLE: u64 = 1 << 32;
/// Credits in the word.
const CREDITS: u64 = HANDLE.wrapping_sub(1);
const SHARDS: usize = 16;

/// When a block goes home where there is no log: once all that has an earlier turn is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// It was free before: nothing that is durable refers to it. So is what [`crate::Handle::set`]
    /// sets, and stays so.
    New,
    /// It has less at its end, and another block says where that is.
    Shrinks,
    /// It may refer to new blocks, or say where others end: every block of which nothing is said.
    Refers,
    /// It has more at its end, and another block says where that is.
    Grows,
    /// It lost what other blocks have now.
    Yields,
}

/// What a transaction does to a block.
#[derive(Debug)]
enum Entry {
    /// Sets it to these contents.
    Set(Arc<Buffer>, Turn),
    /// Sets it to contents that the client gives when the transaction is sealed (then they are
    /// here; before, what a handle made of it, pinned).
    Deferred(Option<Arc<Buffer>>),
    /// It was freed. Its contents are pinned for who changes his mind.
    Forgotten(Option<Arc<Buffer>>),
}

impl Entry {
    fn buffer(&self) -> Option<&Arc<Buffer>> {
        match self {
            Self::Set(buffer, _) => Some(buffer),
            Self::Deferred(buffer) | Self::Forgotten(buffer) => buffer.as_ref(),
        }
    }
}

/// What came of an attempt to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    /// Joined; `first` if nobody had before.
    Joined { first: bool },
    /// The transaction is about to be committed.
    Locked,
    /// It has no room for that many credits.
    Full,
}

/// How a transaction stands after a handle left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// It is locked, and that was the last handle.
    pub(crate) ready: bool,
    /// Blocks that are spoken for.
    pub(crate) credits: u32,
}

/// A transaction that handles can join.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) tid: Tid,
    /// [`LOCKED`], [`JOINED`], handles, credits.
    state: AtomicU64,
    /// Somebody was told that the transaction grows large.
    told_large: AtomicBool,
    /// Blocks that were forgotten, those that came back included.
    forgotten: AtomicU32,
    shards: [Mutex<HashMap<u64, Entry>>; SHARDS],
}

/// A transaction that no longer changes.
#[derive(Debug, Default)]
pub(crate) struct Frozen {
    /// What it sets, ascending by block, without those that were deferred.
    pub(crate) blocks: Vec<Arc<Buffer>>,
    /// The turns of those of these blocks that do not just refer to others, ascending by block.
    pub(crate) turns: Vec<(u64, Turn)>,
    /// Of those that were deferred the contents, ascending.
    pub(crate) deferred: Vec<Arc<Buffer>>,
    /// Blocks that it revokes, ascending.
    pub(crate) revokes: Vec<BlockNo>,
}

impl Frozen {
    /// When a block of it goes home without a log.
    pub(crate) fn turn(&self, block: u64) -> Turn {
        let found = self.turns.binary_search_by_key(&block, |(block, _)| *block);
        let turn = found.ok().and_then(|at| self.turns.get(at));
        turn.map_or(Turn::Refers, |(_, turn)| *turn)
    }

    /// Everything that it sets.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Arc<Buffer>> {
        self.blocks.iter().chain(&self.deferred)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.deferred.is_empty() && self.revokes.is_empty()
    }
}

/// A shard's lock and its place in the lock order.
struct ShardGuard<'a> {
    entries: MutexGuard<'a, HashMap<u64, Entry>>,
    _rank: RankGuard,
}

fn has_handles(state: u64) -> bool {
    state & !(LOCKED | JOINED) >= HANDLE
}

fn credits_of(state: u64) -> u32 {
    u32::try_from(state & CREDITS).unwrap_or(u32::MAX)
}

impl Transaction {
    pub(crate) fn new(tid: Tid) -> Self {
        Self {
            tid,
            state: AtomicU64::new(0),
            told_large: AtomicBool::new(false),
            forgotten: AtomicU32::new(0),
            shards: std::array::from_fn(|_| Mutex::new(HashMap::new())),
        }
    }

    /// Opens a handle with `credits`, unless the transaction is locked or would then hold more
    /// than `credits_max`.
    pub(crate) fn join(&self, credits: u32, credits_max: u32) -> Join {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if state & LOCKED != 0 {
                return Join::Locked;
            }
            let sum = credits_of(state).checked_add(credits);
            if sum.is_none_or(|sum| sum > credits_max) {
                return Join::Full;
            }
            let next = state.wrapping_add(HANDLE).wrapping_add(u64::from(credits)) | JOINED;
            match self
                .state
                .compare_exchange_weak(state, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => {
                    let first = state & JOINED == 0;
                    return Join::Joined { first };
                }
                Err(found) => state = found,
            }
        }
    }

    /// Gives an open handle `credits` more, unless the transaction is locked or would then hold
    /// more than `credits_max`.
    pub(crate) fn extend(&self, credits: u32, credits_max: u32) -> bool {
        let add = |state: u64| {
            let sum = credits_of(state).checked_add(credits)?;
            (state & LOCKED == 0 && sum <= credits_max)
                .then(|| state.wrapping_add(u64::from(credits)))
        };
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add)
            .is_ok()
    }

    /// Takes a credit beyond every limit, for a handle that has asked for too few.
    fn overdraw(&self) {
        // The handle that does it keeps the transaction open, and there are far fewer blocks in
        // memory than would overflow the field.
        self.state.fetch_add(1, Ordering::AcqRel);
    }

    /// Ends a handle that has not used `unused` of its credits.
    pub(crate) fn leave(&self, unused: u32) -> Left {
        let gone = HANDLE.wrapping_add(u64::from(unused));
        let state = self
            .state
            .fetch_sub(gone, Ordering::AcqRel)
            .wrapping_sub(gone);
        Left {
            ready: state & LOCKED != 0 && !has_handles(state),
            credits: credits_of(state),
        }
    }

    /// Admits no more handles.
    pub(crate) fn lock(&self) {
        self.state.fetch_or(LOCKED, Ordering::AcqRel);
    }

    /// Whether handles are open.
    pub(crate) fn is_open(&self) -> bool {
        has_handles(self.state.load(Ordering::Acquire))
    }

    /// Whether anybody has joined. Of a locked transaction the last word.
    pub(crate) fn was_joined(&self) -> bool {
        self.state.load(Ordering::Acquire) & JOINED != 0
    }

    /// True for the first who asks.
    pub(crate) fn tell_large(&self) -> bool {
        !self.told_large.load(Ordering::Relaxed) && !self.told_large.swap(true, Ordering::AcqRel)
    }

    fn shard(&self, block: BlockNo) -> ShardGuard<'_> {
        // Neighbours share a shard; the golden ratio spreads the groups of them.
        let hash = (block.0 >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        let rank = rank::enter::<levels::Buffer>(hash);
        let index = usize::try_from(hash).unwrap_or_default();
        let [first, ..] = &self.shards;
        ShardGuard {
            entries: self.shards.get(index).unwrap_or(first).lock(),
            _rank: rank,
        }
    }

    /// Changes the block's contents by `edit`, which sees the newest ones. `before` is what the
    /// cache had when the handle was already open.
    pub(crate) fn change<T, E>(
        &self,
        buffers: &BufferCache,
        before: &Arc<Buffer>,
        credits: &mut Credits<'_>,
        edit: impl FnOnce(&mut [u8]) -> Result<T, E>,
    ) -> Result<T, E> {
        let block = BlockNo(before.block());
        let mut shard = self.shard(block);
        let entry = shard.entries.entry(block.0);
        let current = match &entry {
            // What a handle of this transaction made of it since `before` was read.
            hash_map::Entry::Occupied(entry) => entry.get().buffer().unwrap_or(before),
            hash_map::Entry::Vacant(_) => before,
        };
        let mut bytes = buffers.editable(current);
        let outcome = edit(&mut bytes)?;
        let buffer = buffers.replace_with(block.0, bytes, Some(current));
        put(entry, buffer, Turn::Refers, credits);
        Ok(outcome)
    }

    /// Makes `bytes` the block's contents.
    pub(crate) fn set(
        &self,
        buffers: &BufferCache,
        block: BlockNo,
        bytes: &[u8],
        credits: &mut Credits<'_>,
    ) {
        let bytes = buffers.editable(bytes);
        let mut shard = self.shard(block);
        let entry = shard.entries.entry(block.0);
        let buffer = buffers.replace_with(block.0, bytes, None);
        put(entry, buffer, Turn::New, credits);
    }

    /// Gives a block that the transaction sets, and that was not free before, its turn; the last
    /// of those that it is given counts.
    pub(crate) fn take_turn(&self, block: BlockNo, turn: Turn) {
        let mut shard = self.shard(block);
        if let Some(Entry::Set(_, old)) = shard.entries.get_mut(&block.0) {
            *old = match *old {
                Turn::New => Turn::New,
                Turn::Refers => turn,
                Turn::Shrinks | Turn::Grows | Turn::Yields => turn.max(*old),
            };
        }
    }

    /// Whether the transaction sets the block, which was free before.
    pub(crate) fn is_new(&self, block: BlockNo) -> bool {
        let shard = self.shard(block);
        matches!(shard.entries.get(&block.0), Some(Entry::Set(_, Turn::New)))
    }

    /// Leaves the block's contents to the sealing.
    pub(crate) fn defer(&self, block: BlockNo, credits: &mut Credits<'_>) {
        let mut shard = self.shard(block);
        match shard.entries.entry(block.0) {
            hash_map::Entry::Vacant(entry) => {
                credits.take();
                entry.insert(Entry::Deferred(None));
            }
            hash_map::Entry::Occupied(mut entry) => {
                let buffer = match entry.get() {
                    Entry::Deferred(_) => return,
                    Entry::Set(buffer, _) => Some(buffer.clone()),
                    Entry::Forgotten(buffer) => {
                        credits.take();
                        buffer.clone()
                    }
                };
                entry.insert(Entry::Deferred(buffer));
            }
        }
    }

    /// Takes the block out and revokes it. `revokes_a_block` records fit in a block of the log.
    pub(crate) fn forget(&self, block: BlockNo, revokes_a_block: u32, credits: &mut Credits<'_>) {
        let mut shard = self.shard(block);
        let entry = shard.entries.entry(block.0);
        let buffer = match &entry {
            hash_map::Entry::Occupied(entry) => match entry.get() {
                Entry::Forgotten(_) => return,
                other => other.buffer().cloned(),
            },
            hash_map::Entry::Vacant(_) => None,
        };
        // The first record of each block of them pays for it.
        let before = self.forgotten.fetch_add(1, Ordering::AcqRel);
        if before.checked_rem(revokes_a_block) == Some(0) {
            credits.take();
        }
        entry.insert(Entry::Forgotten(buffer));
    }

    /// Runs `action` unless the transaction sets the block: nobody can make it do so meanwhile.
    pub(crate) fn unless_set(&self, block: BlockNo, action: impl FnOnce()) {
        let shard = self.shard(block);
        if !matches!(
            shard.entries.get(&block.0),
            Some(Entry::Set(..) | Entry::Deferred(_))
        ) {
            action();
        }
    }

    /// The blocks whose contents the sealing must give, ascending.
    pub(crate) fn deferred(&self) -> Vec<BlockNo> {
        let mut blocks = Vec::new();
        for shard in &self.shards {
            let deferred = shard
                .lock()
                .iter()
                .filter(|(_, entry)| matches!(entry, Entry::Deferred(_)))
                .map(|(block, _)| BlockNo(*block))
                .collect::<Vec<_>>();
            blocks.extend(deferred);
        }
        blocks.sort_unstable();
        blocks
    }

    /// What the transaction does. Its entries move out: nobody may add any more.
    pub(crate) fn freeze(&self) -> Frozen {
        let mut frozen = Frozen::default();
        for shard in &self.shards {
            for (block, entry) in std::mem::take(&mut *shard.lock()) {
                match entry {
                    Entry::Set(buffer, turn) => {
                        frozen.blocks.push(buffer);
                        if turn != Turn::Refers {
                            frozen.turns.push((block, turn));
                        }
                    }
                    Entry::Deferred(buffer) => frozen.deferred.extend(buffer),
                    Entry::Forgotten(_) => frozen.revokes.push(BlockNo(block)),
                }
            }
        }
        frozen.blocks.sort_unstable_by_key(|buffer| buffer.block());
        frozen
            .deferred
            .sort_unstable_by_key(|buffer| buffer.block());
        frozen.turns.sort_unstable();
        frozen.revokes.sort_unstable();
        frozen
    }
}

/// Puts new contents into a transaction. A block that was forgotten is no longer: the newer
/// contents stand in this transaction, and its revoke would take them away.
fn put(
    entry: hash_map::Entry<'_, u64, Entry, hashbrown::DefaultHashBuilder>,
    buffer: Arc<Buffer>,
    turn: Turn,
    credits: &mut Credits<'_>,
) {
    let new = match &entry {
        hash_map::Entry::Occupied(old) => match old.get() {
            Entry::Set(_, Turn::Refers) => Entry::Set(buffer, turn),
            Entry::Set(_, before) => Entry::Set(buffer, *before),
            Entry::Deferred(_) => Entry::Deferred(Some(buffer)),
            Entry::Forgotten(_) => {
                credits.take();
                Entry::Set(buffer, turn)
            }
        },
        hash_map::Entry::Vacant(_) => {
            credits.take();
            Entry::Set(buffer, turn)
        }
    };
    entry.insert(new);
}

/// What pays for blocks that a transaction did not have yet.
pub(crate) struct Credits<'a> {
    pub(crate) transaction: &'a Transaction,
    /// What is left.
    pub(crate) left: &'a mut u32,
    /// Credits that were taken beyond what was asked for.
    pub(crate) overdrawn: &'a AtomicU64,
}

impl Credits<'_> {
    fn take(&mut self) {
        match self.left.checked_sub(1) {
            Some(left) => *self.left = left,
            None => {
                self.transaction.overdraw();
                self.overdrawn.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A transaction with no open handles whose deferred blocks get their contents.
#[derive(Debug)]
pub struct Sealing<'a> {
    transaction: &'a Transaction,
    buffers: &'a BufferCache,
    overdrawn: &'a AtomicU64,
    blocks: Vec<BlockNo>,
    /// Those of `blocks` that have contents; by their place in it.
    done: Vec<bool>,
}

impl<'a> Sealing<'a> {
    pub(crate) fn new(
        transaction: &'a Transaction,
        buffers: &'a BufferCache,
        overdrawn: &'a AtomicU64,
    ) -> Self {
        let blocks = transaction.deferred();
        Self {
            transaction,
            buffers,
            overdrawn,
            done: vec![false; blocks.len()],
            blocks,
        }
    }

    /// The transaction.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.transaction.tid
    }

    /// The blocks that need contents, ascending. One that gets none aborts the journal.
    #[must_use]
    pub fn blocks(&self) -> &[BlockNo] {
        &self.blocks
    }

    /// Makes `bytes` the contents of the block. One that was not deferred is part of the
    /// transaction from now on; that must remain the exception, for nobody has asked for room.
    ///
    /// # Panics
    ///
    /// If `bytes` is not one block long.
    pub fn set(&mut self, block: BlockNo, bytes: &[u8]) {
        self.mark(block);
        self.transaction.set(
            self.buffers,
            block,
            bytes,
            &mut Credits {
                transaction: self.transaction,
                left: &mut 0,
                overdrawn: self.overdrawn,
            },
        );
    }

    /// Changes the block by `edit`, as [`crate::Handle::change`] does; that gives it contents as
    /// [`Sealing::set`] does.
    ///
    /// # Errors
    /// The block can't be read, or what `edit` returns; then it has no contents yet.
    pub fn change<T, E: From<DeviceError>>(
        &mut self,
        block: BlockNo,
        edit: impl FnOnce(&mut [u8]) -> Result<T, E>,
    ) -> Result<T, E> {
        let before = self.buffers.read(block.0)?;
        let outcome = self.transaction.change(
            self.buffers,
            &before,
            &mut Credits {
                transaction: self.transaction,
                left: &mut 0,
                overdrawn: self.overdrawn,
            },
            edit,
        )?;
        self.mark(block);
        Ok(outcome)
    }

    fn mark(&mut self, block: BlockNo) {
        if let Ok(at) = self.blocks.binary_search(&block)
            && let Some(done) = self.done.get_mut(at)
        {
            *done = true;
        }
    }

    /// A block that still needs contents.
    pub(crate) fn missing(&self) -> Option<BlockNo> {
        self.blocks
            .iter()
            .zip(&self.done)
            .find_map(|(block, done)| (!done).then_some(*block))
    }
}
