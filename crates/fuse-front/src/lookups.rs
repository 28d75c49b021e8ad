//! How often the kernel has been given each inode, and the moment it has forgotten one.
//!
//! Each answer that hands out an inode counts once: LOOKUP, CREATE, MKNOD, MKDIR, SYMLINK, LINK,
//! and each entry of a READDIRPLUS. FORGET takes counts back. An inode whose count falls to
//! nothing is unknown to the kernel, and the file system is told so: what has no name left can be
//! deleted then.
//!
//! The file system is told with no lock held (deleting a large file takes long). Meanwhile the
//! inode stays in the table with a count of nothing, and whoever is about to hand it out waits.
//! Without that wait a `forget` that is late could meet an inode that was handed out again and
//! lost its last name since, and delete what the kernel holds. With it, a `forget` that runs
//! beside a lookup ends before the lookup is answered; until then the kernel keeps the directory
//! locked, so the name is still there, and nothing is deleted.
//!
//! Memory: 12 bytes a slot. As it grows, a table has 1.25 to 1.9 slots an inode: 15 to 23 bytes
//! an inode (measured up to a million of them). As inodes are forgotten it shrinks, at 4 slots an
//! inode to 2.
//!
//! Locks: one of 64, chosen by inode number; a leaf, held for a probe of its table (or for
//! growing that one table), never while the file system is called.

use pagefence_lock_order::primitives::{Condvar, Mutex};
use pagefence_vfs::InodeId;

const SHARD_BITS: u32 = 6;

/// A count this high stays as it is: the inode is known until the mount ends.
const FOREVER: u32 = u32::MAX;

/// The count of an inode of which the file system is being told that nobody knows it.
const BEING_FORGOTTEN: u32 = 0;

/// The counts of all inodes that the kernel knows, but for the root.
pub(crate) struct Lookups {
    shards: Box<[Shard]>,
}

struct Shard {
    table: Mutex<Table>,
    /// Told whenever an inode of this shard has been forgotten.
    forgotten: Condvar,
}

impl Lookups {
    /// No inode is known.
    pub(crate) fn new() -> Self {
        let shard = |_| Shard {
            table: Mutex::new(Table::default()),
            forgotten: Condvar::new(),
        };
        Self {
            shards: (0..1 << SHARD_BITS).map(shard).collect(),
        }
    }

    /// Counts that the kernel is given `id` once more. Call it before the answer is sent, and
    /// with no lock held: it waits while the file system is told that the inode is forgotten.
    pub(crate) fn add(&self, id: InodeId) {
        debug_assert_ne!(id.0, 0, "no inode has number 0");
        let shard = self.shard(id);
        let mut table = shard.table.lock();
        while table.get(id.0) == Some(BEING_FORGOTTEN) {
            shard.forgotten.wait(&mut table);
        }
        table.add(id.0);
    }

    /// Takes `count` back; if nothing is left of it, calls `forget`, with no lock held.
    pub(crate) fn take(&self, id: InodeId, count: u64, forget: impl FnOnce()) {
        let shard = self.shard(id);
        {
            let mut table = shard.table.lock();
            match table.get_mut(id.0) {
                // The kernel gives back what it was given, so these two do not happen.
                None => return tracing::debug!(%id, "an unknown inode is forgotten"),
                Some(&mut BEING_FORGOTTEN) => return,
                Some(&mut FOREVER) => return,
                Some(known) if u64::from(*known) > count => {
                    *known -= u32::try_from(count).unwrap_or(0);
                    return;
                }
                Some(known) => *known = BEING_FORGOTTEN,
            }
        }
        // Also if `forget` panics: whoever waits goes on.
        let _forgotten = Forgotten { shard, id };
        forget();
    }

    fn shard(&self, id: InodeId) -> &Shard {
        let index = hash(id.0) >> (u64::BITS - SHARD_BITS);
        &self.shards[usize::try_from(index).unwrap_or(0)]
    }
}

/// Takes an inode out of its table and wakes who waits for that.
struct Forgotten<'a> {
    shard: &'a Shard,
    id: InodeId,
}

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        self.shard.table.lock().remove(self.id.0);
        self.shard.forgotten.notify_all();
    }
}

fn hash(id: u64) -> u64 {
    id.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Counts by number: open addressing, linear probing, no tombstones. A number of 0 marks a free
/// slot. Numbers and counts lie apart, as together they would be padded to 16 bytes.
#[derive(Default)]
struct Table {
    ids: Box<[u64]>,
    counts: Box<[u32]>,
    used: usize,
}

impl Table {
    const LEAST_SLOTS: usize = 8;

    fn get(&self, id: u64) -> Option<u32> {
        self.find(id).ok().map(|slot| self.counts[slot])
    }

    fn get_mut(&mut self, id: u64) -> Option<&mut u32> {
        let slot = self.find(id).ok()?;
        Some(&mut self.counts[slot])
    }

    fn add(&mut self, id: u64) {
        // At most four of five slots are used, so that a probe always ends.
        if (self.used + 1) * 5 > self.ids.len() * 4 {
            self.rebuild((self.ids.len() + self.ids.len() / 2).max(Self::LEAST_SLOTS));
        }
        match self.find(id) {
            Ok(slot) => self.counts[slot] = self.counts[slot].saturating_add(1),
            Err(slot) => self.put(slot, id, 1),
        }
    }

    fn remove(&mut self, id: u64) {
        let Ok(mut hole) = self.find(id) else {
            return;
        };
        // What was pushed past the hole moves back into it.
        let slots = self.ids.len();
        let mut next = hole;
        loop {
            next = (next + 1) % slots;
            if self.ids[next] == 0 {
                break;
            }
            let from_home = (next + slots - self.home(self.ids[next])) % slots;
            let from_hole = (next + slots - hole) % slots;
            if from_home >= from_hole {
                self.ids[hole] = self.ids[next];
                self.counts[hole] = self.counts[next];
                hole = next;
            }
        }
        self.ids[hole] = 0;
        self.used -= 1;
        if slots > Self::LEAST_SLOTS && self.used * 4 < slots {
            self.rebuild((self.used * 2).max(Self::LEAST_SLOTS));
        }
    }

    /// The slot of `id`, or the free one where it belongs; no table, no slot.
    fn find(&self, id: u64) -> Result<usize, usize> {
        if self.ids.is_empty() {
            return Err(0);
        }
        let mut slot = self.home(id);
        loop {
            match self.ids[slot] {
                found if found == id => return Ok(slot),
                0 => return Err(slot),
                _ => slot = (slot + 1) % self.ids.len(),
            }
        }
    }

    /// Where a probe for `id` starts: its hash, less the bits that chose the shard, scaled to the
    /// number of slots.
    fn home(&self, id: u64) -> usize {
        let scaled = u128::from(hash(id) << SHARD_BITS) * self.ids.len() as u128;
        (scaled >> u64::BITS) as usize
    }

    fn put(&mut self, slot: usize, id: u64, count: u32) {
        self.ids[slot] = id;
        self.counts[slot] = count;
        self.used += 1;
    }

    fn rebuild(&mut self, slots: usize) {
        let old = std::mem::replace(
            self,
            Self {
                ids: vec![0; slots].into(),
                counts: vec![0; slots].into(),
                used: 0,
            },
        );
        for (&id, &count) in old.ids.iter().zip(&old.counts) {
            if id != 0
                && let Err(slot) = self.find(id)
            {
                self.put(slot, id, count);
            }
        }
    }
}

#[cfg(test)]
#[path = "lookups_tests.rs"]
mod tests;
