//! Several locks of one level, taken in the order of their numbers; one lock, taken once (RACES U5).

use crate::held::{Held, OrderedRwLock, OrderedWriteGuard, token};
use crate::levels::{After, Level};

/// Takes both locks exclusively, the lower number first; if both are the same lock, takes it
/// once. The guards come in the order of the arguments.
///
/// # Panics
///
/// If two different locks of the level carry the same number: their order is then undefined.
pub fn write_both<'a, L, P: Level, T>(
    first: &'a OrderedRwLock<L, T>,
    second: &'a OrderedRwLock<L, T>,
    _above: &'a mut Held<'_, P>,
) -> (
    OrderedWriteGuard<'a, T>,
    Option<OrderedWriteGuard<'a, T>>,
    Held<'a, L>,
)
where
    L: After<P>,
{
    if std::ptr::eq(first, second) {
        return (first.write_in_pair(), None, token());
    }
    assert_ne!(first.order(), second.order(), "two locks with one number");
    if first.order() < second.order() {
        let a = first.write_in_pair();
        let b = second.write_in_pair();
        (a, Some(b), token())
    } else {
        let b = second.write_in_pair();
        let a = first.write_in_pair();
        (a, Some(b), token())
    }
}

/// Takes all of these locks exclusively, in the order of their numbers; one that is named twice is
/// taken once.
///
/// # Panics
///
/// If two different locks carry the same number: their order is then undefined.
pub fn write_all<'a, L, P: Level, T>(
    locks: &[&'a OrderedRwLock<L, T>],
    _above: &'a mut Held<'_, P>,
) -> (Vec<OrderedWriteGuard<'a, T>>, Held<'a, L>)
where
    L: After<P>,
{
    let mut locks = locks.to_vec();
    locks.sort_by_key(|lock| lock.order());
    locks.dedup_by(|a, b| std::ptr::eq(*a, *b));
    for pair in locks.windows(2) {
        assert_ne!(
            pair[0].order(),
            pair[1].order(),
            "two locks with one number"
        );
    }
    let guards = locks.iter().map(|lock| lock.write_in_pair()).collect();
    (guards, token())
}

#[cfg(test)]
mod tests {
    use super::{write_all, write_both};
    use crate::levels::Inode;
    use crate::{Held, OrderedRwLock};

    #[test]
    fn same_lock_is_taken_once() {
        let lock: OrderedRwLock<Inode, u32> = OrderedRwLock::new(7, 1);
        let mut entry = Held::at_entry();
        let (guard, other, _held) = write_both(&lock, &lock, &mut entry);
        assert_eq!(*guard, 1);
        assert!(other.is_none());
    }

    #[test]
    fn guards_come_in_the_order_of_the_arguments() {
        let low: OrderedRwLock<Inode, u32> = OrderedRwLock::new(1, 10);
        let high: OrderedRwLock<Inode, u32> = OrderedRwLock::new(2, 20);
        let mut entry = Held::at_entry();
        let (a, b, _held) = write_both(&high, &low, &mut entry);
        assert_eq!((*a, *b.expect("two locks")), (20, 10));
    }

    #[test]
    fn many_locks_are_taken_once_each_by_number() {
        let locks: Vec<OrderedRwLock<Inode, u32>> = [5, 2, 9]
            .iter()
            .map(|number| OrderedRwLock::new(*number, *number as u32))
            .collect();
        let mut entry = Held::at_entry();
        let named = [&locks[0], &locks[2], &locks[1], &locks[0]];
        let (guards, _held) = write_all(&named, &mut entry);
        let values: Vec<u32> = guards.iter().map(|guard| **guard).collect();
        assert_eq!(values, [2, 5, 9]);
    }
}
