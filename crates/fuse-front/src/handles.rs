//! The table of open files (or directories): from the number the kernel keeps to what is open.
//!
//! A read takes the lock of one shard, shared, for as long as it takes to copy a pointer; opening
//! and closing take one shard exclusively. Shards are chosen by inode number, so no counter is
//! shared. The number holds shard, slot and how often the slot was used, so that a number of a
//! closed handle finds nothing even if its slot is taken again.
//!
//! Numbers can be guessed. Who names a handle other than by a request on it shows a proof that goes
//! with the number ([`Handles::proof`]), which only a request on that handle is told.

use std::hash::{BuildHasher, RandomState};

use pagefence_lock_order::primitives::{Arc, RwLock};

const SHARD_BITS: u32 = 6;
const SLOT_BITS: u32 = 26;
const SHARDS: usize = 1 << SHARD_BITS;

/// Handles of one kind.
pub(crate) struct Handles<T> {
    shards: Box<[RwLock<Shard<T>>]>,
    /// A random key, made with the table: hashing with it (SipHash) is what proofs are.
    key: RandomState,
}

struct Shard<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    uses: u32,
    value: Option<Arc<T>>,
}

impl<T> Handles<T> {
    /// An empty table.
    pub(crate) fn new() -> Self {
        let shard = || {
            RwLock::new(Shard {
                slots: Vec::new(),
                free: Vec::new(),
            })
        };
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            key: RandomState::new(),
        }
    }

    /// What shows that whoever names handle `number` of inode number `inode` was told of it by the
    /// table.
    pub(crate) fn proof(&self, number: u64, inode: u64) -> u64 {
        self.key.hash_one((number, inode))
    }

    /// Keeps `value`, and returns its number; `None` if 2^26 handles share the shard that
    /// `spread` chooses.
    pub(crate) fn insert(&self, spread: u64, value: T) -> Option<u64> {
        let shard_index = usize::try_from(spread % SHARDS as u64).unwrap_or(0);
        let mut shard = self.shards[shard_index].write();
        let slot_index = match shard.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(shard.slots.len()).ok()?;
                if index >> SLOT_BITS != 0 {
                    return None;
                }
                shard.slots.push(Slot {
                    uses: 0,
                    value: None,
                });
                index
            }
        };
        let slot = &mut shard.slots[slot_index as usize];
        debug_assert!(slot.value.is_none(), "a free slot is empty");
        slot.uses += 1;
        slot.value = Some(Arc::new(value));
        let low = (u64::from(slot_index) << SHARD_BITS) | shard_index as u64;
        Some((u64::from(slot.uses) << 32) | low)
    }

    /// What is open under `number`.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<T>> {
        let (shard, slot, uses) = split(number);
        let shard = self.shards[shard].read();
        let slot = shard.slots.get(slot).filter(|slot| slot.uses == uses)?;
        slot.value.clone()
    }

    /// Closes `number`, and returns what was open under it. Who still uses it keeps it alive.
    pub(crate) fn remove(&self, number: u64) -> Option<Arc<T>> {
        let (shard, slot_index, uses) = split(number);
        let mut shard = self.shards[shard].write();
        let slot = shard
            .slots
            .get_mut(slot_index)
            .filter(|slot| slot.uses == uses)?;
        let value = slot.value.take()?;
        // No number is given out twice.
        if slot.uses < u32::MAX {
            shard.free.push(u32::try_from(slot_index).ok()?);
        }
        Some(value)
    }
}

impl<T> Handles<T> {
    /// Closes all of them.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            // Dropped with no lock held: closing may be work.
            let slots = std::mem::take(&mut shard.write().slots);
            shard.write().free.clear();
            drop(slots);
        }
    }
}

/// Shard, slot, uses.
fn split(number: u64) -> (usize, usize, u32) {
    let low = number & 0xffff_ffff;
    (
        (low & (SHARDS as u64 - 1)) as usize,
        (low >> SHARD_BITS) as usize,
        (number >> 32) as u32,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_found_until_it_is_removed() {
        let handles = Handles::new();
        let a = handles.insert(5, "a").expect("there is room");
        let b = handles
            .insert(5 + SHARDS as u64, "b")
            .expect("there is room");
        assert_ne!(a, b);
        assert_eq!(handles.get(a).as_deref(), Some(&"a"));
        assert_eq!(handles.get(b).as_deref(), Some(&"b"));
        assert_eq!(handles.remove(a).as_deref(), Some(&"a"));
        assert!(handles.get(a).is_none());
        assert!(handles.remove(a).is_none());
        assert_eq!(handles.get(b).as_deref(), Some(&"b"));
    }

    #[test]
    fn the_number_of_a_closed_handle_does_not_find_its_successor() {
        let handles = Handles::new();
        let old = handles.insert(9, 1).expect("there is room");
        handles.remove(old);
        let new = handles.insert(9, 2).expect("there is room");
        assert_ne!(old, new);
        assert!(handles.get(old).is_none());
        assert!(handles.remove(old).is_none());
        assert_eq!(handles.get(new).as_deref(), Some(&2));
        assert!(handles.get(u64::MAX).is_none());
    }

    #[test]
    fn a_proof_goes_with_one_handle_of_one_table() {
        let (handles, others) = (Handles::<()>::new(), Handles::<()>::new());
        let proof = handles.proof(7, 12);
        assert_eq!(handles.proof(7, 12), proof);
        for other in [
            handles.proof(7, 13),
            handles.proof(8, 12),
            handles.proof(12, 7),
            others.proof(7, 12),
        ] {
            assert_ne!(other, proof);
        }
    }

    #[test]
    fn threads_open_and_close_at_once() {
        let handles = Handles::new();
        pagefence_lock_order::primitives::thread::scope(|scope| {
            for thread in 0..4u64 {
                let handles = &handles;
                scope.spawn(move || {
                    for round in 0..2000 {
                        let value = thread * 10_000 + round;
                        let number = handles.insert(round % 3, value).expect("there is room");
                        assert_eq!(handles.get(number).as_deref(), Some(&value));
                        assert_eq!(handles.remove(number).as_deref(), Some(&value));
                    }
                });
            }
        });
        for shard in &handles.shards {
            let shard = shard.read();
            assert_eq!(shard.free.len(), shard.slots.len());
        }
    }
}
