//! The rank checker: in debug builds every thread records what it holds, and taking a lock out
//! of order panics with both names. In release builds it is nothing.

use crate::levels::Level;

#[cfg(debug_assertions)]
mod checker {
    use std::cell::RefCell;

    /// One lock held by this thread.
    #[derive(Clone, Copy, Debug)]
    pub(super) struct Entry {
        pub(super) rank: u8,
        pub(super) order: u64,
        pub(super) name: &'static str,
        pub(super) id: u64,
    }

    #[derive(Debug, Default)]
    pub(super) struct Stack {
        pub(super) held: Vec<Entry>,
        pub(super) next: u64,
    }

    crate::primitives::thread_local! {
        pub(super) static STACK: RefCell<Stack> = RefCell::new(Stack::default());
    }
}

/// Keeps a lock on the thread's record; dropping it takes the lock off.
#[derive(Debug)]
#[must_use]
pub struct RankGuard {
    #[cfg(debug_assertions)]
    id: u64,
    /// A lock is given back on the thread that took it.
    _thread: std::marker::PhantomData<*const ()>,
}

/// Records that this thread is about to take a lock of level `L` with number `order`.
///
/// # Panics
///
/// In debug builds, if the thread holds a lock of a lower level, or one of the same level with a
/// number that is not smaller.
pub fn enter<L: Level>(order: u64) -> RankGuard {
    #[cfg(debug_assertions)]
    {
        let id = checker::STACK.with(|stack| {
            let mut stack = stack.borrow_mut();
            if let Some(worst) = stack
                .held
                .iter()
                .max_by_key(|entry| (entry.rank, entry.order))
            {
                assert!(
                    (worst.rank, worst.order) < (L::RANK, order),
                    "lock order: {} {order} taken while {} {} is held",
                    L::NAME,
                    worst.name,
                    worst.order,
                );
            }
            let id = stack.next;
            stack.next += 1;
            stack.held.push(checker::Entry {
                rank: L::RANK,
                order,
                name: L::NAME,
                id,
            });
            id
        });
        RankGuard {
            id,
            _thread: std::marker::PhantomData,
        }
    }
    #[cfg(not(debug_assertions))]
    {
        let _ = order;
        RankGuard {
            _thread: std::marker::PhantomData,
        }
    }
}

/// Asserts, in debug builds, that this thread holds no lock of any level: before it touches
/// memory of a client, waits for a notification, or enters the file system anew.
pub fn assert_nothing_held() {
    #[cfg(debug_assertions)]
    checker::STACK.with(|stack| {
        let stack = stack.borrow();
        assert!(
            stack.held.is_empty(),
            "locks held at entry: {:?}",
            stack.held
        );
    });
}

#[cfg(debug_assertions)]
impl Drop for RankGuard {
    fn drop(&mut self) {
        checker::STACK.with(|stack| {
            let mut stack = stack.borrow_mut();
            if let Some(at) = stack.held.iter().rposition(|entry| entry.id == self.id) {
                stack.held.remove(at);
            }
        });
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::{assert_nothing_held, enter};
    use crate::levels::{Inode, Invalidate, PageLock};

    #[test]
    fn downwards_and_out_of_order_release() {
        let inode = enter::<Inode>(1);
        let page = enter::<PageLock>(3);
        drop(inode);
        let next = enter::<PageLock>(4);
        drop(page);
        drop(next);
        assert_nothing_held();
    }

    #[test]
    #[should_panic(expected = "Inode 1 taken while Invalidate 1 is held")]
    fn upwards_panics() {
        let _fence = enter::<Invalidate>(1);
        let _inode = enter::<Inode>(1);
    }

    #[test]
    #[should_panic(expected = "PageLock 3 taken while PageLock 3 is held")]
    fn same_number_twice_panics() {
        let _page = enter::<PageLock>(3);
        let _again = enter::<PageLock>(3);
    }
}
