//! Which file a block of data belongs to, as far as was learnt since the file system was opened: from
//! blocks that were given to a file, and from those that a file wrote to where they were.
//!
//! The format has no such map: two files of a damaged image can claim one block, and each alone looks
//! sound. Here the first that writes to it has it; another that writes to it, or frees it, is refused.
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

/// A block that belongs to somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) block: u64,
    pub(super) by: InodeNo,
}

/// See the module's documentation. Its lock is of the level Counters.
#[derive(Debug, Default)]
pub(super) struct Owners(Mutex<Runs>);

/// Runs by their first block, with their ends. They do not overlap, and those of one owner do not
/// touch.
#[derive(Debug, Default)]
struct Runs(BTreeMap<u64, (u64, InodeNo)>);

impl Owners {
    fn with<T>(&self, visit: impl FnOnce(&mut Runs) -> T) -> T {
        let _rank = rank::enter::<Counters>(2);
        visit(&mut self.0.lock())
    }

    /// Gives `blocks` to `inode`, unless one belongs to another.
    pub(super) fn claim(&self, inode: InodeNo, blocks: Range<u64>) -> Result<(), Taken> {
        self.with(|runs| {
            runs.check(inode, &blocks)?;
            runs.add(inode, blocks);
            Ok(())
        })
    }

    /// Gives `blocks`, which were free, to `inode`: whoever claimed them has lost them.
    pub(super) fn give(&self, inode: InodeNo, blocks: Range<u64>) {
        self.with(|runs| {
            runs.remove(blocks.clone());
            runs.add(inode, blocks);
        });
    }

    /// Whether `inode` may free `blocks`: none of them belongs to another.
    pub(super) fn check(&self, inode: InodeNo, blocks: Range<u64>) -> Result<(), Taken> {
        self.with(|runs| runs.check(inode, &blocks))
    }

    /// `blocks` are free.
    pub(super) fn forget(&self, blocks: Range<u64>) {
        self.with(|runs| runs.remove(blocks));
    }

    /// Blocks of these files go to others.
    pub(super) fn forget_files(&self, inodes: [InodeNo; 2]) {
        self.with(|runs| runs.0.retain(|_, (_, owner)| !inodes.contains(owner)));
    }
}

impl Runs {
    fn check(&self, inode: InodeNo, blocks: &Range<u64>) -> Result<(), Taken> {
        self.0
            .range(..blocks.end)
            .rev()
            .take_while(|(_, (end, _))| *end > blocks.start)
            .find(|(_, (_, owner))| *owner != inode)
            .map_or(Ok(()), |(start, (_, by))| {
                Err(Taken {
                    block: blocks.start.max(*start),
                    by: *by,
                })
            })
    }

    /// None of them belongs to another.
    fn add(&mut self, inode: InodeNo, mut blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        if let Some((end, owner)) = self.0.get(&blocks.end).copied()
            && owner == inode
        {
            self.0.remove(&blocks.end);
            blocks.end = end;
        }
        while let Some((&start, &(end, owner))) = self.0.range(..blocks.end).next_back()
            && owner == inode
            && end >= blocks.start
        {
            self.0.remove(&start);
            blocks = start.min(blocks.start)..end.max(blocks.end);
        }
        if self.0.len() >= RUNS_MAX {
            self.0.clear();
        }
        self.0.insert(blocks.start, (blocks.end, inode));
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

    #[derive(Clone, Debug)]
    enum Step {
        Claim(u32, Range<u64>),
        Give(u32, Range<u64>),
        Forget(Range<u64>),
        ForgetFiles(u32, u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let blocks = (0..BLOCKS, 1..8_u64).prop_map(|(start, len)| start..start + len);
        let step = prop_oneof![
            4 => (1..4_u32, blocks.clone()).prop_map(|(inode, blocks)| Step::Claim(inode, blocks)),
            1 => (1..4_u32, blocks.clone()).prop_map(|(inode, blocks)| Step::Give(inode, blocks)),
            2 => blocks.prop_map(Step::Forget),
            1 => (1..4_u32, 1..4_u32).prop_map(|(one, other)| Step::ForgetFiles(one, other)),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        /// As with an owner for each block.
        #[test]
        fn runs_say_what_single_blocks_say(steps in steps()) {
            let owners = Owners::default();
            let mut expected = vec![0; usize::try_from(BLOCKS + 8).unwrap()];
            for step in steps {
                match step {
                    Step::Claim(inode, blocks) => {
                        let mine = &mut expected[blocks.start as usize..blocks.end as usize];
                        let is_free = mine.iter().all(|owner| [0, inode].contains(owner));
                        let number = InodeNo(inode);
                        prop_assert_eq!(owners.check(number, blocks.clone()).is_ok(), is_free);
                        match owners.claim(number, blocks.clone()) {
                            Ok(()) => {
                                prop_assert!(is_free);
                                mine.fill(inode);
                            }
                            Err(taken) => {
                                prop_assert!(blocks.contains(&taken.block));
                                prop_assert_eq!(expected[taken.block as usize], taken.by.0);
                                prop_assert_ne!(taken.by, number);
                            }
                        }
                    }
                    Step::Give(inode, blocks) => {
                        expected[blocks.start as usize..blocks.end as usize].fill(inode);
                        owners.give(InodeNo(inode), blocks);
                    }
                    Step::Forget(blocks) => {
                        expected[blocks.start as usize..blocks.end as usize].fill(0);
                        owners.forget(blocks);
                    }
                    Step::ForgetFiles(one, other) => {
                        owners.forget_files([InodeNo(one), InodeNo(other)]);
                        for owner in &mut expected {
                            if [one, other].contains(owner) {
                                *owner = 0;
                            }
                        }
                    }
                }
                let runs = owners.0.lock();
                let mut seen = vec![0; expected.len()];
                let mut before = (0, InodeNo(0));
                for (start, (end, owner)) in &runs.0 {
                    prop_assert!(before.0 < *start || before.0 == *start && before.1 != *owner);
                    seen[*start as usize..*end as usize].fill(owner.0);
                    before = (*end, *owner);
                }
                prop_assert_eq!(&seen, &expected);
            }
        }
    }

    /// What is too much is forgotten, not kept.
    #[test]
    fn no_more_runs_are_kept_than_there_is_room_for() {
        let owners = Owners::default();
        for run in 0..RUNS_MAX as u64 {
            owners.claim(InodeNo(12), 2 * run..2 * run + 1).unwrap();
        }
        assert!(owners.claim(InodeNo(13), 0..1).is_err());
        let last = 2 * RUNS_MAX as u64;
        owners.claim(InodeNo(12), last..last + 1).unwrap();
        owners.claim(InodeNo(13), 0..1).unwrap();
        assert_eq!(owners.0.lock().0.len(), 2);
    }
}
