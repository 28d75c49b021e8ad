//! Tokens that prove which level is held, and the locks that hand them out.
//!
//! Taking a lock needs `&mut` of the token of a level above it and gives the token of its own
//! level, which borrows from the first: until the guard is gone, the upper token can't be used
//! to take anything else.
//!
//! Downwards compiles:
//! ```
//! use pagefence_lock_order::{Held, OrderedRwLock, levels::{Inode, Invalidate}};
//! let inode: OrderedRwLock<Inode, ()> = OrderedRwLock::new(1, ());
//! let invalidate: OrderedRwLock<Invalidate, ()> = OrderedRwLock::new(1, ());
//! let mut entry = Held::at_entry();
//! let (_inode, mut held) = inode.write(&mut entry);
//! let (_fence, _held) = invalidate.write(&mut held);
//! ```
//! Upwards does not:
//! ```compile_fail,E0277
//! use pagefence_lock_order::{Held, OrderedRwLock, levels::{Inode, Invalidate}};
//! let inode: OrderedRwLock<Inode, ()> = OrderedRwLock::new(1, ());
//! let invalidate: OrderedRwLock<Invalidate, ()> = OrderedRwLock::new(1, ());
//! let mut entry = Held::at_entry();
//! let (_fence, mut held) = invalidate.write(&mut entry);
//! let (_inode, _held) = inode.write(&mut held);
//! ```
//! Nor does taking a second lock with a token that is lent out:
//! ```compile_fail,E0499
//! use pagefence_lock_order::{Held, OrderedRwLock, levels::Inode};
//! let a: OrderedRwLock<Inode, ()> = OrderedRwLock::new(1, ());
//! let b: OrderedRwLock<Inode, ()> = OrderedRwLock::new(2, ());
//! let mut entry = Held::at_entry();
//! let (_a, held) = a.write(&mut entry);
//! let (_b, _) = b.write(&mut entry);
//! drop(held);
//! ```

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use crate::levels::{After, Entry, Level};
use crate::primitives::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::rank::{self, RankGuard};

/// Proof that the lowest level held by this thread is `L`, for as long as `'a`.
///
/// It weighs nothing, and can't leave its thread.
#[derive(Debug)]
pub struct Held<'a, L: Level> {
    scope: PhantomData<(&'a mut (), *const L)>,
}

impl Held<'static, Entry> {
    /// The token of a thread that holds no lock: made where a request or a thread enters.
    #[must_use]
    pub fn at_entry() -> Self {
        rank::assert_nothing_held();
        Held { scope: PhantomData }
    }
}

impl<L: Level> Held<'_, L> {
    /// Descends to level `M` for a lock that is not an [`OrderedRwLock`] (the page lock, a
    /// journal handle). `order` is the lock's position among the locks of its level.
    ///
    /// The caller keeps the guard for as long as it holds that lock.
    pub fn descend<M: After<L>>(&mut self, order: u64) -> (RankGuard, Held<'_, M>) {
        (rank::enter::<M>(order), Held { scope: PhantomData })
    }
}

/// A reader-writer lock of level `L`; `order` is its number among the locks of its level.
#[derive(Debug)]
pub struct OrderedRwLock<L: Level, T> {
    order: u64,
    lock: RwLock<T>,
    level: PhantomData<fn() -> L>,
}

/// Shared access; the lock is released when it is dropped.
#[derive(Debug)]
pub struct OrderedReadGuard<'a, T> {
    guard: RwLockReadGuard<'a, T>,
    _rank: RankGuard,
}

/// Exclusive access; the lock is released when it is dropped.
#[derive(Debug)]
pub struct OrderedWriteGuard<'a, T> {
    guard: RwLockWriteGuard<'a, T>,
    _rank: RankGuard,
}

impl<L: Level, T> OrderedRwLock<L, T> {
    /// A lock whose number among the locks of its level is `order` (an inode number, say).
    pub fn new(order: u64, value: T) -> Self {
        Self {
            order,
            lock: RwLock::new(value),
            level: PhantomData,
        }
    }

    /// The lock's number among the locks of its level.
    #[must_use]
    pub fn order(&self) -> u64 {
        self.order
    }

    /// Takes the lock shared; waits while it is held exclusively or a writer queues.
    ///
    /// Not recursive: a thread that holds it shared and takes it again can wait behind a queued
    /// writer for ever (RACES U2). The token forbids it.
    pub fn read<'a, P: Level>(
        &'a self,
        _above: &'a mut Held<'_, P>,
    ) -> (OrderedReadGuard<'a, T>, Held<'a, L>)
    where
        L: After<P>,
    {
        let rank = rank::enter::<L>(self.order);
        let guard = self.lock.read();
        (
            OrderedReadGuard { guard, _rank: rank },
            Held { scope: PhantomData },
        )
    }

    /// Takes the lock exclusively; waits for every holder.
    pub fn write<'a, P: Level>(
        &'a self,
        _above: &'a mut Held<'_, P>,
    ) -> (OrderedWriteGuard<'a, T>, Held<'a, L>)
    where
        L: After<P>,
    {
        let rank = rank::enter::<L>(self.order);
        let guard = self.lock.write();
        (
            OrderedWriteGuard { guard, _rank: rank },
            Held { scope: PhantomData },
        )
    }

    /// Takes the lock shared if that needs no wait.
    pub fn try_read<'a, P: Level>(
        &'a self,
        _above: &'a mut Held<'_, P>,
    ) -> Option<(OrderedReadGuard<'a, T>, Held<'a, L>)>
    where
        L: After<P>,
    {
        let guard = self.lock.try_read()?;
        let rank = rank::enter::<L>(self.order);
        Some((
            OrderedReadGuard { guard, _rank: rank },
            Held { scope: PhantomData },
        ))
    }

    /// The raw lock, for [`crate::pair`], which takes two of one level.
    pub(crate) fn write_in_pair(&self) -> OrderedWriteGuard<'_, T> {
        let rank = rank::enter::<L>(self.order);
        let guard = self.lock.write();
        OrderedWriteGuard { guard, _rank: rank }
    }
}

pub(crate) fn token<'a, L: Level>() -> Held<'a, L> {
    Held { scope: PhantomData }
}

impl<T> OrderedWriteGuard<'_, T> {
    /// Releases the lock to who has waited longest, readers with the readers behind it, rather than to
    /// who is quickest: a thread that takes it again at once waits for them.
    pub fn hand_over(self) {
        let Self { guard, _rank } = self;
        RwLockWriteGuard::unlock_fair(guard);
    }
}

impl<T> Deref for OrderedReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> Deref for OrderedWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for OrderedWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::fs::{read_link, read_to_string};
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use super::{Held, OrderedRwLock};
    use crate::levels::Invalidate;
    use crate::primitives::Mutex;
    use crate::primitives::atomic::{AtomicBool, Ordering};
    use crate::primitives::thread::{scope, yield_now};

    /// Waits until the thread that left its name there sleeps, at each of several looks.
    fn wait_asleep(thread: &Mutex<Option<PathBuf>>) {
        let sleeps = |thread: &PathBuf| {
            let status = Path::new("/proc").join(thread).join("status");
            let status = read_to_string(status).expect("it runs");
            status.contains("\nState:\tS")
        };
        let (start, mut looks) = (Instant::now(), 0);
        while looks < 5 {
            let is_asleep = thread.lock().as_ref().is_some_and(sleeps);
            looks = if is_asleep { looks + 1 } else { 0 };
            assert!(start.elapsed() < Duration::from_secs(30), "it never comes");
            yield_now();
        }
    }

    /// Many times one after the other: a lock that belongs to the quickest is handed over now and then.
    #[test]
    fn who_waits_has_the_lock_when_it_is_handed_over() {
        for _ in 0..50 {
            let lock = OrderedRwLock::<Invalidate, ()>::new(1, ());
            let waiters = [Mutex::new(None), Mutex::new(None)];
            let is_looked_at = AtomicBool::new(false);
            scope(|scope| {
                let (lock, is_looked_at) = (&lock, &is_looked_at);
                let mut entry = Held::at_entry();
                let (first, _held) = lock.write(&mut entry);
                for (number, waiter) in waiters.iter().enumerate() {
                    scope.spawn(move || {
                        let mut entry = Held::at_entry();
                        *waiter.lock() = Some(read_link("/proc/thread-self").expect("it is known"));
                        let (mine, _held) = lock.write(&mut entry);
                        if number == 0 {
                            mine.hand_over();
                            let is_free = lock.lock.try_write().is_some();
                            is_looked_at.store(true, Ordering::Release);
                            assert!(!is_free, "the second one waits");
                        } else {
                            while !is_looked_at.load(Ordering::Acquire) {
                                yield_now();
                            }
                        }
                    });
                    wait_asleep(waiter);
                }
                first.hand_over();
            });
        }
    }
}
