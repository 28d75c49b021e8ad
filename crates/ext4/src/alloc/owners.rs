//! Which inode a block belongs to, as far as was learnt since the file system was opened: from blocks
//! that were given to one; from blocks of data that a file wrote to where they were; and from
//! metadata that was read: blocks of directories, of maps, of symbolic links and of attributes.
//!
//! The format has no such map: two inodes of a damaged image can claim one block, and each alone
//! looks sound. Here the first that writes data to it, or reads it as metadata, has it; another that
//! writes to it, reads it as metadata, or frees it, is refused.
//!
//! Invariant: no block has two owners, and a block that is free by its bitmap has none.

use std::collections::BTreeMap;
use std::ops::Range;

use pagefence_ext4_format::InodeNo;
use pagefence_lock_order::levels::Counters;
use pagefence_lock_order::primitives::Mutex;
use pagefence_lock_order::rank;

/// Runs that are remembered, at most: some 6 MiB of them. Past it all are forgotten.
const RUNS_MAX: usize = 1 << 17;

/// Whose a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockOwner {
    /// It holds data of this inode, or is a block of its map.
    Inode(InodeNo),
    /// It holds attributes, which inodes share.
    Attributes,
}

impl BlockOwner {
    /// A number for the buffer cache, which is not 0.
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Inode(number) => number.0.into(),
            Self::Attributes => 1 << 32,
        }
    }
}

/// A block that belongs to somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) block: u64,
    pub(super) by: BlockOwner,
}

/// See the module's documentation. Its lock is of the level Counters.
#[derive(Debug, Default)]
pub(super) struct Owners(Mutex<Runs>);

/// Runs by their first block, with their ends. They do not overlap, and those of one owner do not
/// touch.
#[derive(Debug, Default)]
struct Runs(BTreeMap<u64, (u64, BlockOwner)>);

impl Owners {
    fn with<T>(&self, visit: impl FnOnce(&mut Runs) -> T) -> T {
        let _rank = rank::enter::<Counters>(2);
        visit(&mut self.0.lock())
    }

    /// Gives `blocks` to `owner`, unless one belongs to another.
    pub(super) fn claim(&self, owner: BlockOwner, blocks: Range<u64>) -> Result<(), Taken> {
        self.with(|runs| {
            runs.check(owner, &blocks)?;
            runs.add(owner, blocks);
            Ok(())
        })
    }

    /// Gives `blocks`, which nobody else has a right to, to `owner`: whoever claimed them has lost
    /// them.
    pub(super) fn give(&self, owner: BlockOwner, blocks: Range<u64>) {
        self.with(|runs| {
            runs.remove(blocks.clone());
            runs.add(owner, blocks);
        });
    }

    /// Whether `owner` may free `blocks`: none of them belongs to another.
    pub(super) fn check(&self, owner: BlockOwner, blocks: Range<u64>) -> Result<(), Taken> {
        self.with(|runs| runs.check(owner, &blocks))
    }

    /// `blocks` are free.
    pub(super) fn forget(&self, blocks: Range<u64>) {
        self.with(|runs| runs.remove(blocks));
    }

    /// Blocks of these inodes go to others.
    pub(super) fn forget_inodes(&self, inodes: [InodeNo; 2]) {
        let owners = inodes.map(BlockOwner::Inode);
        self.with(|runs| runs.0.retain(|_, (_, owner)| !owners.contains(owner)));
    }
}

impl Runs {
    fn check(&self, owner: BlockOwner, blocks: &Range<u64>) -> Result<(), Taken> {
        self.0
            .range(..blocks.end)
            .rev()
            .take_while(|(_, (end, _))| *end > blocks.start)
            .find(|(_, (_, other))| *other != owner)
            .map_or(Ok(()), |(start, (_, by))| {
                Err(Taken {
                    block: blocks.start.max(*start),
                    by: *by,
                })
            })
    }

    /// None of them belongs to another.
    fn add(&mut self, owner: BlockOwner, mut blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        if let Some((end, other)) = self.0.get(&blocks.end).copied()
            && other == owner
        {
            self.0.remove(&blocks.end);
            blocks.end = end;
        }
        while let Some((&start, &(end, other))) = self.0.range(..blocks.end).next_back()
            && other == owner
            && end >= blocks.start
        {
            self.0.remove(&start);
            blocks = start.min(blocks.start)..end.max(blocks.end);
        }
        if self.0.len() >= RUNS_MAX {
            self.0.clear();
        }
        self.0.insert(blocks.start, (blocks.end, owner));
    }

    fn remove(&mut self, blocks: Range<u64>) {
        while let Some((&start, &(end, owner))) = self.0.range(..blocks.end).next_back()
            && end > blocks.start
        {
            self.0.remove(&start);
            if start < blocks.start {
                self.0.insert(start, (blocks.start, owner));
            }
            if end > blocks.end {
                self.0.insert(blocks.end, (end, owner));
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = 24;

    const INODES: [InodeNo; 3] = [InodeNo(12), InodeNo(13), InodeNo(14)];

    #[derive(Clone, Debug)]
    enum Step {
        Claim(BlockOwner, Range<u64>),
        Give(BlockOwner, Range<u64>),
        Forget(Range<u64>),
        ForgetInodes([InodeNo; 2]),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let blocks = (0..BLOCKS, 1..8_u64).prop_map(|(start, len)| start..start + len);
        let inode = prop::sample::select(&INODES[..]);
        let owner = prop_oneof![
            3 => inode.clone().prop_map(BlockOwner::Inode),
            1 => Just(BlockOwner::Attributes),
        ];
        let step = prop_oneof![
            4 => (owner.clone(), blocks.clone()).prop_map(|(owner, run)| Step::Claim(owner, run)),
            1 => (owner, blocks.clone()).prop_map(|(owner, run)| Step::Give(owner, run)),
            2 => blocks.prop_map(Step::Forget),
            1 => (inode.clone(), inode).prop_map(|(one, other)| Step::ForgetInodes([one, other])),
        ];
        prop::collection::vec(step, 1..60)
    }

    fn within(blocks: &Range<u64>) -> Range<usize> {
        blocks.start as usize..blocks.end as usize
    }

    proptest! {
        /// As with an owner for each block.
        #[test]
        fn runs_say_what_single_blocks_say(steps in steps()) {
            let owners = Owners::default();
            let mut expected = vec![None; usize::try_from(BLOCKS + 8).unwrap()];
            for step in steps {
                match step {
                    Step::Claim(owner, blocks) => {
                        let mine = &mut expected[within(&blocks)];
                        let is_free = mine.iter().flatten().all(|other| *other == owner);
                        prop_assert_eq!(owners.check(owner, blocks.clone()).is_ok(), is_free);
                        match owners.claim(owner, blocks.clone()) {
                            Ok(()) => {
                                prop_assert!(is_free);
                                mine.fill(Some(owner));
                            }
                            Err(taken) => {
                                prop_assert!(blocks.contains(&taken.block));
                                prop_assert_eq!(expected[taken.block as usize], Some(taken.by));
                                prop_assert_ne!(taken.by, owner);
                            }
                        }
                    }
                    Step::Give(owner, blocks) => {
                        expected[within(&blocks)].fill(Some(owner));
                        owners.give(owner, blocks);
                    }
                    Step::Forget(blocks) => {
                        expected[within(&blocks)].fill(None);
                        owners.forget(blocks);
                    }
                    Step::ForgetInodes(inodes) => {
                        owners.forget_inodes(inodes);
                        for owner in &mut expected {
                            owner.take_if(|owner| inodes.map(BlockOwner::Inode).contains(owner));
                        }
                    }
                }
                let runs = owners.0.lock();
                let mut seen = vec![None; expected.len()];
                let mut before = (0, None);
                for (start, (end, owner)) in &runs.0 {
                    let touches = before == (*start, Some(*owner));
                    prop_assert!(before.0 <= *start && !touches);
                    seen[within(&(*start..*end))].fill(Some(*owner));
                    before = (*end, Some(*owner));
                }
                prop_assert_eq!(&seen, &expected);
            }
        }
    }

    /// What is too much is forgotten, not kept.
    #[test]
    fn no_more_runs_are_kept_than_there_is_room_for() {
        let owners = Owners::default();
        let [one, other, _] = INODES.map(BlockOwner::Inode);
        for run in 0..RUNS_MAX as u64 {
            owners.claim(one, 2 * run..2 * run + 1).unwrap();
        }
        assert!(owners.claim(other, 0..1).is_err());
        let last = 2 * RUNS_MAX as u64;
        owners.claim(one, last..last + 1).unwrap();
        owners.claim(other, 0..1).unwrap();
        assert_eq!(owners.0.lock().0.len(), 2);
    }

    /// Buffers remember it by its number.
    #[test]
    fn each_owner_has_a_number_of_its_own_that_is_not_zero() {
        assert_ne!(BlockOwner::Inode(InodeNo(1)).number(), 0);
        let last = BlockOwner::Inode(InodeNo(u32::MAX));
        assert_ne!(last.number(), BlockOwner::Attributes.number());
    }
}
