//! The inodes in core: at most one object per inode, and a bounded number that nobody uses.

use hashbrown::HashMap;
use pagefence_ext4_format::InodeNo;
use pagefence_lock_order::primitives::{Arc, Mutex};

const SHARDS: usize = 16;

/// What may be dropped, or not.
pub(crate) trait Idle {
    /// Whether nothing is lost if it is dropped. Asked when nobody else has it.
    fn is_idle(&self) -> bool;
}

/// One shard: a clock over the objects it holds.
#[derive(Debug)]
struct Shard<T> {
    slots: Vec<Slot<T>>,
    index: HashMap<InodeNo, usize>,
    hand: usize,
    /// Objects that were dropped so far.
    evicted: u64,
}

#[derive(Debug)]
struct Slot<T> {
    number: InodeNo,
    object: Arc<T>,
    referenced: bool,
}

/// Objects by inode number.
///
/// Owns one reference to each; an object that somebody else holds too, or that is not idle, is
/// never dropped, so two objects of one inode can't exist. Beyond `capacity` the ones not used lately go (second chance). Each
/// shard's mutex is a leaf: nothing is taken under it.
#[derive(Debug)]
pub(crate) struct InodeCache<T> {
    shards: Vec<Mutex<Shard<T>>>,
    capacity_per_shard: usize,
}

impl<T: Idle> InodeCache<T> {
    /// A cache that keeps about `capacity` unused objects.
    pub(crate) fn new(capacity: usize) -> Self {
        let shard = || Shard {
            slots: Vec::new(),
            index: HashMap::new(),
            hand: 0,
            evicted: 0,
        };
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
            capacity_per_shard: (capacity / SHARDS).max(1),
        }
    }

    fn shard(&self, number: InodeNo) -> &Mutex<Shard<T>> {
        &self.shards[number.0 as usize % SHARDS]
    }

    /// The object of an inode, if it is in core.
    pub(crate) fn get(&self, number: InodeNo) -> Option<Arc<T>> {
        self.shard(number).lock().get(number)
    }

    /// The object of an inode; `load` makes it, with no lock held, if it is not in core. If two
    /// threads load at once, both get the one that came first. It may load again.
    pub(crate) fn get_or_load<E>(
        &self,
        number: InodeNo,
        load: impl Fn() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let mut evicted = Vec::new();
        let (mut shard, loaded) = loop {
            let before = {
                let mut shard = self.shard(number).lock();
                if let Some(object) = shard.get(number) {
                    return Ok(object);
                }
                shard.evicted
            };
            let loaded = Arc::new(load()?);
            let mut shard = self.shard(number).lock();
            if let Some(object) = shard.get(number) {
                return Ok(object);
            }
            // What was loaded may be old news, if another came, changed and went meanwhile.
            if shard.evicted == before {
                break (shard, loaded);
            }
        };
        let slot = Slot {
            number,
            object: Arc::clone(&loaded),
            referenced: false,
        };
        // Two for one, until what came in while everything was held is gone again.
        for _ in 0..2 {
            if shard.slots.len() >= self.capacity_per_shard
                && let Some(at) = shard.victim()
            {
                evicted.push(shard.remove(at));
            }
        }
        let at = shard.slots.len();
        shard.slots.push(slot);
        shard.index.insert(number, at);
        drop(shard);
        // An inode's last reference takes its pages along: not under the shard's lock.
        drop(evicted);
        Ok(loaded)
    }

    /// All objects in core at about this moment.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            all.extend(shard.slots.iter().map(|slot| Arc::clone(&slot.object)));
        }
        all
    }

    /// Lets go of an object if nobody has it but this cache and the `owners` that the caller knows
    /// of, itself among them; says whether nobody has. Who asks for the number from then on loads
    /// it anew.
    pub(crate) fn remove_unused(&self, number: InodeNo, object: &Arc<T>, owners: usize) -> bool {
        let mut shard = self.shard(number).lock();
        let at = shard
            .index
            .get(&number)
            .copied()
            .filter(|at| Arc::ptr_eq(&shard.slots[*at].object, object));
        // All further references come from the cache, under this lock, or from one that is counted.
        let unused = Arc::strong_count(object) <= owners + usize::from(at.is_some());
        let removed = at.filter(|_| unused).map(|at| shard.remove(at));
        drop(shard);
        drop(removed);
        unused
    }

    /// Number of objects in core.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().slots.len())
            .sum()
    }
}

impl<T: Idle> Shard<T> {
    fn get(&mut self, number: InodeNo) -> Option<Arc<T>> {
        let at = *self.index.get(&number)?;
        let slot = &mut self.slots[at];
        slot.referenced = true;
        Some(Arc::clone(&slot.object))
    }

    fn remove(&mut self, at: usize) -> Arc<T> {
        self.evicted += 1;
        let slot = self.slots.swap_remove(at);
        self.index.remove(&slot.number);
        if let Some(moved) = self.slots.get(at) {
            self.index.insert(moved.number, at);
        }
        slot.object
    }

    /// A slot that nobody uses and that was not used lately; moves the hand.
    fn victim(&mut self) -> Option<usize> {
        for _ in 0..2 * self.slots.len() {
            let at = self.hand % self.slots.len();
            self.hand = at + 1;
            let slot = &mut self.slots[at];
            if Arc::strong_count(&slot.object) > 1 {
                continue;
            }
            if !std::mem::take(&mut slot.referenced) && slot.object.is_idle() {
                return Some(at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Idle for u32 {
        fn is_idle(&self) -> bool {
            true
        }
    }

    fn load(cache: &InodeCache<u32>, number: u32) -> Arc<u32> {
        cache
            .get_or_load(InodeNo(number), || Ok::<_, ()>(number))
            .expect("loads")
    }

    #[test]
    fn stays_within_capacity_and_keeps_what_is_used() {
        let cache = InodeCache::new(64);
        let held = load(&cache, 7);
        for number in 100..10_000 {
            load(&cache, number);
        }
        assert!(cache.len() <= 64 + 1, "{}", cache.len());
        let again = cache.get(InodeNo(7)).expect("held objects stay");
        assert!(Arc::ptr_eq(&held, &again));
    }

    #[test]
    fn grows_past_capacity_only_while_everything_is_held() {
        let cache = InodeCache::new(16);
        let held: Vec<_> = (0..320).map(|number| load(&cache, number)).collect();
        assert_eq!(cache.len(), 320);
        drop(held);
        assert!(cache.get(InodeNo(3)).is_some());
        for number in 1000..1400 {
            load(&cache, number);
        }
        assert!(cache.len() <= 2 * 16, "{}", cache.len());
        for number in 0..2000 {
            if let Some(object) = cache.get(InodeNo(number)) {
                assert_eq!(*object, number);
            }
        }
    }

    /// At no moment are there two objects of one inode, however small the cache.
    #[cfg(not(shuttle))]
    #[test]
    fn one_object_per_inode_among_many_threads() {
        use pagefence_lock_order::primitives::atomic::{AtomicU32, Ordering};
        use pagefence_lock_order::primitives::thread;

        /// An object that counts itself.
        struct Counted(Arc<Vec<AtomicU32>>, u32);

        impl Idle for Counted {
            fn is_idle(&self) -> bool {
                true
            }
        }

        impl Drop for Counted {
            fn drop(&mut self) {
                self.0[self.1 as usize].fetch_sub(1, Ordering::SeqCst);
            }
        }

        let cache = Arc::new(InodeCache::new(16));
        let alive: Arc<Vec<AtomicU32>> = Arc::new((0..64).map(|_| AtomicU32::new(0)).collect());
        let users: Vec<_> = (0..8u32)
            .map(|user| {
                let (cache, alive) = (Arc::clone(&cache), Arc::clone(&alive));
                thread::spawn("user", move || {
                    let mut random = user;
                    for _ in 0..20_000 {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let number = random >> 26;
                        let load = || {
                            alive[number as usize].fetch_add(1, Ordering::SeqCst);
                            Ok::<_, ()>(Counted(Arc::clone(&alive), number))
                        };
                        let object = cache.get_or_load(InodeNo(number), load).expect("loads");
                        assert_eq!(object.1, number);
                        let again = cache.get(InodeNo(number)).expect("what is held stays");
                        assert!(Arc::ptr_eq(&object, &again));
                    }
                })
                .expect("a thread")
            })
            .collect();
        for user in users {
            user.join().expect("no user fails");
        }
        let kept: u32 = alive.iter().map(|count| count.load(Ordering::SeqCst)).sum();
        assert_eq!(kept as usize, cache.len());
    }

    #[test]
    fn a_failed_load_leaves_nothing() {
        let cache: InodeCache<u32> = InodeCache::new(16);
        assert_eq!(
            cache.get_or_load(InodeNo(1), || Err("broken")),
            Err("broken")
        );
        assert!(cache.get(InodeNo(1)).is_none());
    }

    #[test]
    fn second_chance_for_what_was_used() {
        let cache = InodeCache::new(16 * 4);
        for number in 0..4 {
            load(&cache, number * 16);
        }
        assert!(cache.get(InodeNo(0)).is_some());
        for number in 4..7 {
            load(&cache, number * 16);
        }
        assert!(
            cache.get(InodeNo(0)).is_some(),
            "the one in use survives a round"
        );
    }

    #[test]
    fn only_what_nobody_has_is_let_go() {
        let cache = InodeCache::new(16);
        let (mine, other) = (load(&cache, 5), load(&cache, 5));
        assert!(!cache.remove_unused(InodeNo(5), &mine, 1));
        assert!(cache.get(InodeNo(5)).is_some());
        drop(other);
        assert!(cache.remove_unused(InodeNo(5), &mine, 1));
        assert!(cache.get(InodeNo(5)).is_none());
        let again = load(&cache, 5);
        assert!(!Arc::ptr_eq(&again, &mine));
        assert!(
            cache.remove_unused(InodeNo(5), &mine, 1),
            "it is in no cache"
        );
        assert!(cache.get(InodeNo(5)).is_some(), "another one stays");
    }

    #[test]
    fn what_is_not_idle_stays() {
        struct Dirty;
        impl Idle for Dirty {
            fn is_idle(&self) -> bool {
                false
            }
        }
        let cache = InodeCache::new(16);
        for number in 0..200 {
            let loaded = cache.get_or_load(InodeNo(number), || Ok::<_, ()>(Dirty));
            assert!(loaded.is_ok());
        }
        assert_eq!(cache.len(), 200);
    }

    #[test]
    fn what_was_loaded_before_another_came_and_went_is_loaded_again() {
        use std::cell::Cell;

        let cache: InodeCache<u32> = InodeCache::new(16);
        let (version, loads) = (Cell::new(1), Cell::new(0));
        let object = cache.get_or_load(InodeNo(0), || {
            let seen = version.get();
            loads.set(loads.get() + 1);
            if loads.get() == 1 {
                // Another thread's: it loads the inode, changes it, and it is dropped again.
                version.set(2);
                load(&cache, 16);
                load(&cache, 32);
                load(&cache, 48);
            }
            Ok::<_, ()>(seen)
        });
        assert_eq!(object.map(|object| *object), Ok(2));
    }
}
