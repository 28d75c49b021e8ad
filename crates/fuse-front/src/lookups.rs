//! How often the kernel was given each node, and has not forgotten it.
//!
//! An inode without a name may go once nobody can name it by its number either: when its count is
//! back at nothing. An entry weighs 16 bytes and a byte of the table; a table is at most half empty
//! when it has just grown.

use pagefence_lock_order::primitives::Mutex;
use std::collections::HashMap;

const SHARDS: usize = 64;

/// Counts by node number. A shard's lock is held for moments: a leaf.
#[derive(Debug)]
pub(crate) struct Lookups {
    shards: Box<[Mutex<HashMap<u64, u32>>]>,
}

impl Lookups {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, node: u64) -> &Mutex<HashMap<u64, u32>> {
        &self.shards[usize::try_from(node % SHARDS as u64).unwrap_or(0)]
    }

    /// The kernel is being given `node` once more. Called before the reply is sent: the kernel may
    /// forget as soon as it has it.
    pub(crate) fn add(&self, node: u64) {
        let mut shard = self.shard(node).lock();
        let count = shard.entry(node).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// The kernel forgets `node` `count` times; true if it was the last of them. A node that the
    /// kernel was never given, or whose reply it refused, is none.
    pub(crate) fn forget(&self, node: u64, count: u64) -> bool {
        let mut shard = self.shard(node).lock();
        let Some(known) = shard.get_mut(&node) else {
            return false;
        };
        let left = u64::from(*known).saturating_sub(count);
        *known = u32::try_from(left).unwrap_or(u32::MAX);
        if left == 0 {
            shard.remove(&node);
        }
        left == 0
    }

    /// Nodes that the kernel knows.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::Lookups;

    #[test]
    fn the_last_one_to_be_forgotten_is_told() {
        let lookups = Lookups::new();
        lookups.add(12);
        lookups.add(12);
        lookups.add(12 + 64);
        assert!(!lookups.forget(12, 1));
        assert!(lookups.forget(12, 1));
        assert!(!lookups.forget(12, 1), "it is not known any more");
        assert!(lookups.forget(12 + 64, 9), "more than there were");
        assert_eq!(lookups.len(), 0);
    }
}
