//! What does not compile: each order that the chain forbids, one example for each kind.
//!
//! For every two levels the tests of this module show that the upper one can't be taken below the
//! lower one, nor a second lock of one level but by [`crate::pair`]. The examples are those whose
//! running twins have hung or corrupted file systems.
//!
//! The inode lock by a fault, which holds the invalidate lock (S2.2, S3.1):
//! ```compile_fail,E0277
//! use pagefence_lock_order::{Held, OrderedRwLock, levels::{Inode, Invalidate}};
//! fn fault(held: &mut Held<'_, Invalidate>, inode: &OrderedRwLock<Inode, ()>) {
//!     let (_inode, _held) = inode.write(held);
//! }
//! ```
//! The invalidate lock by who has it already, shared: it would wait behind a fence that waits for it
//! (RACES U2):
//! ```compile_fail,E0277
//! use pagefence_lock_order::{Held, OrderedRwLock, levels::Invalidate};
//! fn fault_in_fill(held: &mut Held<'_, Invalidate>, lock: &OrderedRwLock<Invalidate, ()>) {
//!     let (_section, _held) = lock.read(held);
//! }
//! ```
//! The invalidate lock below a page lock: a fence waits for page locks.
//! ```compile_fail,E0277
//! use pagefence_lock_order::{Held, OrderedRwLock, levels::{Invalidate, PageLock}};
//! fn fill_late(held: &mut Held<'_, PageLock>, lock: &OrderedRwLock<Invalidate, ()>) {
//!     let (_section, _held) = lock.read(held);
//! }
//! ```
//! The invalidate lock inside a handle: it spans several (S0.4).
//! ```compile_fail,E0277
//! use pagefence_lock_order::{Held, OrderedRwLock, levels::{Handle, Invalidate}};
//! fn fence_in_handle(held: &mut Held<'_, Handle>, lock: &OrderedRwLock<Invalidate, ()>) {
//!     let (_fence, _held) = lock.write(held);
//! }
//! ```
//! A page lock inside a handle: its holder may be waiting for a handle, which waits for this commit.
//! ```compile_fail,E0277
//! use pagefence_lock_order::{Held, levels::{Handle, PageLock}};
//! fn page_in_handle(held: &mut Held<'_, Handle>) {
//!     let (_rank, _held) = held.descend::<PageLock>(0);
//! }
//! ```
//! The lock of writeback inside a handle, or below a page lock: a migration holds it and begins
//! transactions (S2, B7).
//! ```compile_fail,E0277
//! use pagefence_lock_order::{Held, OrderedRwLock, levels::{Handle, Writepages}};
//! fn write_back_in_handle(held: &mut Held<'_, Handle>, lock: &OrderedRwLock<Writepages, ()>) {
//!     let (_lock, _held) = lock.read(held);
//! }
//! ```
//! ```compile_fail,E0277
//! use pagefence_lock_order::{Held, OrderedRwLock, levels::{PageLock, Writepages}};
//! fn write_back_below_page(held: &mut Held<'_, PageLock>, lock: &OrderedRwLock<Writepages, ()>) {
//!     let (_lock, _held) = lock.read(held);
//! }
//! ```
//! A handle with the block map locked: room in the log is made by others, who need the map (S2.9).
//! ```compile_fail,E0277
//! use pagefence_lock_order::{Held, levels::{BlockMap, Handle}};
//! fn begin_below_map(held: &mut Held<'_, BlockMap>) {
//!     let (_rank, _held) = held.descend::<Handle>(0);
//! }
//! ```
//! A second inode but by number (RACES U5):
//! ```compile_fail,E0277
//! use pagefence_lock_order::{Held, OrderedRwLock, levels::Inode};
//! fn other_inode(held: &mut Held<'_, Inode>, other: &OrderedRwLock<Inode, ()>) {
//!     let (_other, _held) = other.write(held);
//! }
//! ```
//! A token that outlives what it was lent from, or that another thread uses:
//! ```compile_fail,E0505
//! use pagefence_lock_order::{Held, OrderedRwLock, levels::{Inode, Invalidate}};
//! fn keep(inode: &OrderedRwLock<Inode, ()>, lock: &OrderedRwLock<Invalidate, ()>) {
//!     let mut entry = Held::at_entry();
//!     let (_inode, mut held) = inode.write(&mut entry);
//!     drop(entry);
//!     let (_fence, _held) = lock.write(&mut held);
//! }
//! ```
//! ```compile_fail,E0277
//! use pagefence_lock_order::{Held, levels::Inode};
//! fn elsewhere(held: &mut Held<'_, Inode>) {
//!     std::thread::scope(|scope| {
//!         scope.spawn(move || held);
//!     });
//! }
//! ```

#[cfg(test)]
mod tests {
    use static_assertions::{assert_impl_all, assert_not_impl_any};

    use crate::levels::*;

    /// Every pair of levels: none may be taken below itself or a later one, each below all before.
    macro_rules! all_pairs {
        ($upper:ident $(, $lower:ident)*) => {
            assert_not_impl_any!($upper: After<$upper> $(, After<$lower>)*);
            $(assert_impl_all!($lower: After<$upper>);)*
            all_pairs!($($lower),*);
        };
        () => {};
    }

    all_pairs!(
        Entry, Freeze, Rename, Inode, Invalidate, Writepages, PageLock, Handle, BlockMap, Group,
        Buffer, Counters
    );

    /// The list above has every level: their ranks are the places in it.
    #[test]
    fn the_last_level_is_the_twelfth() {
        assert_eq!((Entry::RANK, Counters::RANK), (0, 11));
    }
}
