//! Which inode a block belongs to, as far as was learnt since the file system was opened: from blocks
//! that were given to one; from blocks of data that a file wrote to where they were; and from
//! metadata that was read: blocks of directories, of maps, of symbolic links and of attributes.
//!
//! The format has no such map: two inodes of a damaged image can claim one block, and each alone
//! looks sound. Here the first that writes data to it, or reads it as metadata, has it; another that
//! writes to it, reads it as metadata, or frees it, is refused.
//!
//! Invariant: no block has two owners. What an inode claims of blocks that are free by their bitmap ends
//! when they are given to another.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use pagefence_ext4_format::InodeNo;
use pagefence_lock_order::levels::Counters;
use pagefence_lock_order::primitives::Mutex;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::rank;

/// Runs that are remembered, at most: some 6 MiB of them. Past it all are forgotten.
const RUNS_MAX: usize = 1 << 17;

/// Bits of [`BlockOwner::key`].
const KEY_BITS: u32 = 34;

/// Who claims a block, and for what. Two that claim one for attributes are the same: inodes share those.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BlockOwner {
    /// For what the inode holds, be it a file, a directory, or a symbolic link.
    Contents(InodeNo),
    /// For its map: a node of its extent tree, or an indirect block.
    Map(InodeNo),
    /// For a block of attributes.
    Attributes(InodeNo),
}

impl BlockOwner {
    /// The inode that claims it.
    pub(crate) fn inode(self) -> InodeNo {
        match self {
            Self::Contents(inode) | Self::Map(inode) | Self::Attributes(inode) => inode,
        }
    }

    /// A number of [`KEY_BITS`] bits for each that is not the same; never 0.
    fn key(self) -> u64 {
        match self {
            Self::Contents(inode) => 1 << 32 | u64::from(inode.0),
            Self::Map(inode) => 2 << 32 | u64::from(inode.0),
            Self::Attributes(_) => 3 << 32,
        }
    }
}

impl PartialEq for BlockOwner {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for BlockOwner {}

impl fmt::Display for BlockOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contents(inode) => write!(f, "inode {inode}"),
            Self::Map(inode) => write!(f, "the map of inode {inode}"),
            Self::Attributes(_) => f.write_str("attributes"),
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
pub(super) struct Owners {
    runs: Mutex<Runs>,
    /// Counts how often somebody lost blocks without having freed them: who noted with a buffer that a
    /// block was his looks again.
    losses: AtomicU64,
}

/// Runs by their first block, with their ends. They do not overlap, and those of one owner do not
/// touch.
#[derive(Debug, Default)]
struct Runs(BTreeMap<u64, (u64, BlockOwner)>);

impl Owners {
    fn with<T>(&self, visit: impl FnOnce(&mut Runs) -> T) -> T {
        let _rank = rank::enter::<Counters>(2);
        visit(&mut self.runs.lock())
    }

    /// What to note with a buffer whose block is claimed for `owner` after this was asked for. It is good
    /// until it changes; never 0.
    pub(super) fn note(&self, owner: BlockOwner) -> u64 {
        self.losses.load(Ordering::Acquire) << KEY_BITS | owner.key()
    }

    /// Called with the lock held.
    fn note_loss(&self) {
        self.losses.fetch_add(1, Ordering::AcqRel);
    }

    /// Gives `blocks` to `owner`, unless one belongs to another.
    pub(super) fn claim(&self, owner: BlockOwner, blocks: Range<u64>) -> Result<(), Taken> {
        self.with(|runs| {
            runs.check(owner, &blocks)?;
            if runs.add(owner, blocks) == Memory::Lost {
                self.note_loss();
            }
            Ok(())
        })
    }

    /// Gives `blocks`, which were free, to `owner`: whoever claimed them has lost them.
    pub(super) fn give(&self, owner: BlockOwner, blocks: Range<u64>) {
        self.with(|runs| {
            let is_claimed = runs.check(owner, &blocks).is_err();
            if is_claimed {
                runs.remove(blocks.clone());
            }
            if runs.add(owner, blocks) == Memory::Lost || is_claimed {
                self.note_loss();
            }
        });
    }

    /// Whether `owner` may free `blocks`: none of them belongs to another.
    pub(super) fn check(&self, owner: BlockOwner, blocks: Range<u64>) -> Result<(), Taken> {
        self.with(|runs| runs.check(owner, &blocks))
    }

    /// These blocks are free, or are to be another's.
    pub(super) fn forget(&self, blocks: impl IntoIterator<Item = Range<u64>>) {
        self.with(|runs| blocks.into_iter().for_each(|run| runs.remove(run)));
    }
}

/// Whether all is still known that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Kept,
    Lost,
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
    fn add(&mut self, owner: BlockOwner, mut blocks: Range<u64>) -> Memory {
        if blocks.is_empty() {
            return Memory::Kept;
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
        let memory = match self.0.len() {
            RUNS_MAX.. => {
                self.0.clear();
                Memory::Lost
            }
            _ => Memory::Kept,
        };
        self.0.insert(blocks.start, (blocks.end, owner));
        memory
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

    const OWNERS: [BlockOwner; 5] = [
        BlockOwner::Contents(InodeNo(12)),
        BlockOwner::Contents(InodeNo(13)),
        BlockOwner::Contents(InodeNo(u32::MAX)),
        BlockOwner::Map(InodeNo(12)),
        BlockOwner::Attributes(InodeNo(12)),
    ];

    #[derive(Clone, Debug)]
    enum Step {
        Claim(BlockOwner, Range<u64>),
        Give(BlockOwner, Range<u64>),
        Forget(Range<u64>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let blocks = (0..BLOCKS, 1..8_u64).prop_map(|(start, len)| start..start + len);
        let owner = prop::sample::select(&OWNERS[..]);
        let step = prop_oneof![
            4 => (owner.clone(), blocks.clone()).prop_map(|(owner, run)| Step::Claim(owner, run)),
            1 => (owner, blocks.clone()).prop_map(|(owner, run)| Step::Give(owner, run)),
            2 => blocks.prop_map(Step::Forget),
        ];
        prop::collection::vec(step, 1..60)
    }

    fn within(blocks: &Range<u64>) -> Range<usize> {
        blocks.start as usize..blocks.end as usize
    }

    proptest! {
        /// As with an owner for each block; and what was noted of one is good as long as nobody else
        /// is given what it has.
        #[test]
        fn runs_say_what_single_blocks_say(steps in steps()) {
            let owners = Owners::default();
            let mut expected = vec![None; usize::try_from(BLOCKS + 8).unwrap()];
            for step in steps {
                let before = owners.note(OWNERS[0]);
                let mut is_loss = false;
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
                        let mine = &mut expected[within(&blocks)];
                        is_loss = mine.iter().flatten().any(|other| *other != owner);
                        mine.fill(Some(owner));
                        owners.give(owner, blocks);
                    }
                    Step::Forget(blocks) => {
                        expected[within(&blocks)].fill(None);
                        owners.forget([blocks]);
                    }
                }
                prop_assert_eq!(owners.note(OWNERS[0]) != before, is_loss);
                let runs = owners.runs.lock();
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

    /// What is too much is forgotten, not kept; and what was noted is good no more.
    #[test]
    fn no_more_runs_are_kept_than_there_is_room_for() {
        let owners = Owners::default();
        let [one, other, ..] = OWNERS;
        let note = owners.note(one);
        for run in 0..RUNS_MAX as u64 {
            owners.claim(one, 2 * run..2 * run + 1).unwrap();
        }
        assert!(owners.claim(other, 0..1).is_err());
        assert_eq!(owners.note(one), note);
        let last = 2 * RUNS_MAX as u64;
        owners.claim(one, last..last + 1).unwrap();
        assert_ne!(owners.note(one), note);
        owners.claim(other, 0..1).unwrap();
        assert_eq!(owners.runs.lock().0.len(), 2);
    }

    #[test]
    fn what_is_noted_differs_where_owners_do() {
        let owners = Owners::default();
        for one in OWNERS {
            assert_ne!(owners.note(one), 0);
            for other in OWNERS {
                assert_eq!(owners.note(one) == owners.note(other), one == other);
            }
        }
        let shared = BlockOwner::Attributes(InodeNo(99));
        assert_eq!(owners.note(shared), owners.note(OWNERS[4]));
    }
}
