//! The table of inodes, by number.

use hashbrown::HashMap;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, RwLock};
use pagefence_vfs::{Error, InodeId, Result};

use crate::inode::Inode;

const SHARDS: usize = 64;

type Shard = RwLock<HashMap<u64, Arc<Inode>>>;

/// Every inode that has a name, or is known or open. Numbers go up and are never used again.
///
/// Locks: one of 64, by number; a leaf, held for a lookup.
#[derive(Debug)]
pub(crate) struct Inodes {
    shards: Box<[Shard]>,
    next: AtomicU64,
}

impl Inodes {
    /// None. Numbers begin with `first`.
    pub(crate) fn new(first: u64) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::new(HashMap::new())).collect(),
            next: AtomicU64::new(first),
        }
    }

    fn shard(&self, number: u64) -> &Shard {
        &self.shards[(number % SHARDS as u64) as usize]
    }

    /// A number for a new inode.
    pub(crate) fn new_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn insert(&self, inode: Arc<Inode>) {
        let number = inode.number;
        let before = self.shard(number).write().insert(number, inode);
        debug_assert!(before.is_none(), "a number was given twice");
    }

    /// # Errors
    /// `Stale`.
    pub(crate) fn get(&self, id: InodeId) -> Result<Arc<Inode>> {
        let shard = self.shard(id.0).read();
        shard.get(&id.0).cloned().ok_or(Error::Stale)
    }

    /// Takes an inode out; the caller drops it, and what it holds with it, with no lock held.
    pub(crate) fn remove(&self, number: u64) -> Option<Arc<Inode>> {
        self.shard(number).write().remove(&number)
    }
}
