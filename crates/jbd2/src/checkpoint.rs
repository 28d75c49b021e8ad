//! The checkpoint list: what is committed in the log and not yet durable at home.
//!
//! For each block it has the latest committed contents. A transaction in the log is *live* while
//! one of its blocks has no later version, was not revoked and is not durable at home; the log
//! begins with the oldest live one.

use std::collections::VecDeque;

use hashbrown::HashMap;
use pagefence_block_io::Buffer;
use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::journal::Sequence;
use pagefence_lock_order::primitives::Arc;

use crate::transaction::Frozen;

/// Blocks on each side of one that goes home that go with it, at most.
const NEIGHBOURS_MAX: u64 = 32;

/// A transaction in the log.
#[derive(Debug)]
struct Logged {
    sequence: Sequence,
    /// Block of the journal where it begins.
    start: u32,
    /// Blocks of the log that it takes.
    blocks: u32,
    /// Blocks that it sets, ascending.
    members: Box<[u64]>,
    /// Those of `members` before this one were given out to be written.
    given: usize,
    /// How many of `members` are still in the list with its contents.
    live: usize,
}

/// A block's latest committed contents.
#[derive(Debug)]
struct Pending {
    buffer: Arc<Buffer>,
    /// The transaction that it is of: how many were logged before.
    owner: u64,
    /// It was given out to be written.
    given: bool,
}

/// Where the log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) sequence: Sequence,
    /// Block of the journal.
    pub(crate) start: u32,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct CheckpointList {
    pending: HashMap<u64, Pending>,
    logged: VecDeque<Logged>,
    /// Transactions that left `logged`.
    gone: u64,
    /// Written home, not known to be durable.
    written: Vec<(u64, u64)>,
}

impl CheckpointList {
    /// Adds a transaction that is durable in the log.
    pub(crate) fn add(&mut self, frozen: &Frozen, tail: Tail, blocks: u32) {
        let owner = self.gone.saturating_add(len(self.logged.len()));
        let mut members = Vec::with_capacity(frozen.members().count());
        for buffer in frozen.members() {
            let pending = Pending {
                buffer: buffer.clone(),
                owner,
                given: false,
            };
            members.push(buffer.block());
            if let Some(older) = self.pending.insert(buffer.block(), pending) {
                self.release(older.owner);
            }
        }
        members.sort_unstable();
        self.logged.push_back(Logged {
            sequence: tail.sequence,
            start: tail.start,
            blocks,
            live: members.len(),
            members: members.into_boxed_slice(),
            given: 0,
        });
    }

    /// The blocks were revoked: they must not be written home any more.
    pub(crate) fn forget(&mut self, blocks: &[BlockNo]) {
        for block in blocks {
            if let Some(older) = self.pending.remove(&block.0) {
                self.release(older.owner);
            }
        }
    }

    fn release(&mut self, owner: u64) {
        let logged = owner
            .checked_sub(self.gone)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| self.logged.get_mut(at));
        debug_assert!(logged.is_some(), "live transactions are in the list");
        if let Some(logged) = logged {
            logged.live = logged.live.saturating_sub(1);
        }
    }

    /// Up to `most` blocks to write home next, ascending: of the oldest transactions, leaving out
    /// the youngest that together take no more than `keep` blocks of the log (`used` blocks of it
    /// are taken), but for neighbours of what is written anyway: one write for all of them costs
    /// little more, and they have theirs behind them. Empty if there are none. The caller must
    /// write them, or never use the list again.
    pub(crate) fn take_batch(&mut self, used: u32, keep: u32, most: usize) -> Vec<Arc<Buffer>> {
        let mut batch = Vec::new();
        let mut left = used;
        for (owner, logged) in (self.gone..).zip(&mut self.logged) {
            if left <= keep || batch.len() >= most {
                break;
            }
            left = left.saturating_sub(logged.blocks);
            while batch.len() < most
                && let Some(block) = logged.members.get(logged.given).copied()
            {
                logged.given = logged.given.saturating_add(1);
                let pending = self.pending.get(&block);
                if pending.is_none_or(|pending| pending.owner != owner) {
                    continue;
                }
                let mut give = |block: u64| {
                    let pending = self.pending.get_mut(&block);
                    let Some(pending) = pending.filter(|_| batch.len() < most) else {
                        return false;
                    };
                    if std::mem::replace(&mut pending.given, true) {
                        return false;
                    }
                    batch.push(pending.buffer.clone());
                    self.written.push((block, pending.owner));
                    true
                };
                if give(block) {
                    let behind = (1..=NEIGHBOURS_MAX).map_while(|more| block.checked_add(more));
                    behind.take_while(|block| give(*block)).for_each(drop);
                    let before = (1..=NEIGHBOURS_MAX).map_while(|less| block.checked_sub(less));
                    before.take_while(|block| give(*block)).for_each(drop);
                }
            }
        }
        batch.sort_unstable_by_key(|buffer| buffer.block());
        batch
    }

    /// Whether something was written home that may not be durable.
    pub(crate) fn has_written(&self) -> bool {
        !self.written.is_empty()
    }

    /// All that was given out is durable at home.
    pub(crate) fn home_is_durable(&mut self) {
        for (block, owner) in std::mem::take(&mut self.written) {
            if self
                .pending
                .get(&block)
                .is_some_and(|pending| pending.owner == owner)
            {
                self.pending.remove(&block);
                self.release(owner);
            }
        }
    }

    /// Takes off the oldest transactions that are not live; the blocks of the log that they take.
    pub(crate) fn pop_dead(&mut self) -> u32 {
        let mut blocks = 0_u32;
        while let Some(oldest) = self.logged.front()
            && oldest.live == 0
        {
            blocks = blocks.saturating_add(oldest.blocks);
            self.logged.pop_front();
            self.gone = self.gone.saturating_add(1);
        }
        blocks
    }

    /// Where the oldest transaction begins.
    pub(crate) fn tail(&self) -> Option<Tail> {
        self.logged.front().map(|oldest| Tail {
            sequence: oldest.sequence,
            start: oldest.start,
        })
    }

    /// The blocks of the list, in no order.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = &Arc<Buffer>> {
        self.pending.values().map(|pending| &pending.buffer)
    }

    /// Whether no transaction is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.logged.is_empty()
    }
}

fn len(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use pagefence_block_io::{BufferCache, MemoryDevice};

    use super::*;

    fn frozen(cache: &BufferCache, blocks: &[u64]) -> Frozen {
        let buffer = |block: &u64| cache.read(*block).unwrap();
        Frozen {
            blocks: blocks.iter().map(buffer).collect(),
            turns: Vec::new(),
            deferred: Vec::new(),
            revokes: Vec::new(),
        }
    }

    fn tail(start: u32) -> Tail {
        Tail {
            sequence: Sequence(start),
            start,
        }
    }

    #[test]
    fn neighbours_go_home_together_and_once() {
        let device = Arc::new(MemoryDevice::new(1 << 20));
        let cache = BufferCache::new(device, 1024, 1 << 20);
        let mut list = CheckpointList::default();
        list.add(&frozen(&cache, &[10, 20, 30]), tail(1), 5);
        list.add(&frozen(&cache, &[9, 11, 12, 14, 20, 31]), tail(6), 8);
        let numbers = |batch: Vec<Arc<Buffer>>| -> Vec<u64> {
            batch.iter().map(|buffer| buffer.block()).collect()
        };
        // Of the older one; 20 has a later version, and 14 is apart from 12.
        let batch = list.take_batch(13, 8, 100);
        assert_eq!(numbers(batch), [9, 10, 11, 12, 30, 31]);
        list.home_is_durable();
        assert_eq!(list.pop_dead(), 5);
        assert_eq!(list.tail(), Some(tail(6)));
        assert_eq!(numbers(list.take_batch(8, 0, 100)), [14, 20]);
        list.home_is_durable();
        assert_eq!(list.pop_dead(), 8);
        assert!(list.is_empty());
    }

    #[test]
    fn a_batch_has_its_bound() {
        let device = Arc::new(MemoryDevice::new(1 << 20));
        let cache = BufferCache::new(device, 1024, 1 << 20);
        let mut list = CheckpointList::default();
        list.add(&frozen(&cache, &[1, 2, 3, 4, 5]), tail(1), 7);
        assert_eq!(list.take_batch(7, 0, 3).len(), 3);
        assert_eq!(list.take_batch(7, 0, 3).len(), 2);
        assert!(list.take_batch(7, 0, 3).is_empty());
        // A later version goes home, too.
        list.add(&frozen(&cache, &[3]), tail(8), 3);
        assert_eq!(list.take_batch(10, 0, 3).len(), 1);
    }
}
