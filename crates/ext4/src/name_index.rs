//! An index of the names of one directory that has none on disk: from a name to the directory
//! blocks it may be in, so that a lookup scans one block instead of all; and how large a name each
//! block has room for, so that a new one finds its place at once.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use pagefence_ext4_format::FileBlock;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};

/// Blocks that names of one kept hash may be in, at most. Names of a sound directory differ, and
/// their hashes with them; a damaged one repeats a name at will.
const CANDIDATES_MAX: usize = 32;

/// Where names are. A hit is a candidate: its block is still searched for the name.
///
/// Weighs 10 to 20 bytes an entry. Belongs to one directory inode in core and goes with it.
#[derive(Debug)]
pub(crate) struct NameIndex {
    hasher: DefaultHashBuilder,
    places: HashTable<Candidate>,
    /// Bytes of the largest gap in each block.
    gaps: Vec<u16>,
    charge: Charge,
}

/// What an inode in core knows of its directory's names.
#[derive(Debug, Default)]
pub(crate) enum KnownNames {
    /// Nothing: nobody asked yet.
    #[default]
    Unknown,
    /// All of them. Who changes the directory keeps it right, under the inode lock.
    Index(NameIndex),
    /// There is no index: a block is damaged, or memory for indexes was used up.
    Refused,
}

/// A name that an index can't take: it would need more memory than there is for indexes, or one
/// name is everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Bounds the memory of all name indexes of a file system.
#[derive(Debug)]
pub(crate) struct NameIndexes {
    budget: Arc<Budget>,
}

#[derive(Debug)]
struct Budget {
    bytes_max: u64,
    bytes: AtomicU64,
}

/// What one index was allowed to take; given back when it goes.
#[derive(Debug)]
struct Charge {
    bytes: u64,
    of: Arc<Budget>,
}

impl NameIndexes {
    /// Indexes may take `bytes_max` together.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            budget: Arc::new(Budget {
                bytes_max,
                bytes: AtomicU64::new(0),
            }),
        }
    }

    /// An empty index, that takes its memory from what all may have.
    pub(crate) fn index(&self) -> NameIndex {
        NameIndex {
            hasher: DefaultHashBuilder::default(),
            places: HashTable::new(),
            gaps: Vec::new(),
            charge: Charge {
                bytes: 0,
                of: Arc::clone(&self.budget),
            },
        }
    }
}

impl Charge {
    /// Changes what is taken to `bytes`, if there is so much.
    fn set(&mut self, bytes: u64) -> Result<(), Full> {
        // Relaxed: only the sum counts. It may be too high for a moment, never too low.
        let more = bytes.saturating_sub(self.bytes);
        let before = self.of.bytes.fetch_add(more, Ordering::Relaxed);
        if more > 0 && before.saturating_add(more) > self.of.bytes_max {
            self.of.bytes.fetch_sub(more, Ordering::Relaxed);
            return Err(Full);
        }
        let less = self.bytes.saturating_sub(bytes);
        self.of.bytes.fetch_sub(less, Ordering::Relaxed);
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    hash: u32,
    block: FileBlock,
}

/// The part of a hash that is kept, to tell candidates apart and to grow the table.
fn kept(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The table's hash, from the part that is kept: spread over all bits again.
fn spread(kept: u32) -> u64 {
    u64::from(kept).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl NameIndex {
    /// Enters a name found in `block`.
    pub(crate) fn insert(&mut self, name: &[u8], block: FileBlock) -> Result<(), Full> {
        let hash = kept(self.hasher.hash_one(name));
        let mut candidates = 0;
        for known in self.places.iter_hash(spread(hash)) {
            if known.hash == hash {
                if known.block == block {
                    return Ok(());
                }
                candidates += 1;
            }
        }
        if candidates >= CANDIDATES_MAX {
            return Err(Full);
        }
        let grows = self.places.len() == self.places.capacity();
        if grows {
            // The old table and one of twice its size, for a moment.
            let bytes = self.places.allocation_size() as u64;
            self.charge.set(bytes * 3 + 256 + self.gap_bytes())?;
        }
        let candidate = Candidate { hash, block };
        self.places
            .insert_unique(spread(hash), candidate, |other| spread(other.hash));
        if grows {
            let bytes = self.places.allocation_size() as u64;
            self.charge.set(bytes + self.gap_bytes())?;
        }
        Ok(())
    }

    /// Forgets a name that was in `block`, where `others` still are. Names that look alike to the
    /// index share an entry.
    pub(crate) fn remove<'a>(
        &mut self,
        name: &[u8],
        block: FileBlock,
        mut others: impl Iterator<Item = &'a [u8]>,
    ) {
        let hash = kept(self.hasher.hash_one(name));
        if others.any(|other| kept(self.hasher.hash_one(other)) == hash) {
            return;
        }
        let found = self.places.find_entry(spread(hash), |known| {
            known.hash == hash && known.block == block
        });
        if let Ok(entry) = found {
            entry.remove();
        }
    }

    fn gap_bytes(&self) -> u64 {
        (self.gaps.capacity() * size_of::<u16>()) as u64
    }

    /// Notes the largest gap of a block: one that is known, or the one behind them.
    pub(crate) fn set_gap(&mut self, block: FileBlock, bytes: usize) -> Result<(), Full> {
        let bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
        if let Some(gap) = self.gaps.get_mut(block.0 as usize) {
            *gap = bytes;
            return Ok(());
        }
        if self.gaps.len() == self.gaps.capacity() {
            let places = self.places.allocation_size() as u64;
            self.charge.set(places + self.gap_bytes() * 3 + 256)?;
        }
        self.gaps.resize(block.0 as usize, 0);
        self.gaps.push(bytes);
        Ok(())
    }

    /// The first block that has room for `bytes`.
    pub(crate) fn first_gap(&self, bytes: usize) -> Option<FileBlock> {
        let at = self
            .gaps
            .iter()
            .position(|gap| usize::from(*gap) >= bytes)?;
        Some(FileBlock(at as u32))
    }

    /// The blocks that may hold `name`; none means that the directory has no such name.
    pub(crate) fn candidates(&self, name: &[u8]) -> impl Iterator<Item = FileBlock> + '_ {
        let hash = kept(self.hasher.hash_one(name));
        self.places
            .iter_hash(spread(hash))
            .filter(move |candidate| candidate.hash == hash)
            .map(|candidate| candidate.block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_block_and_few_others() {
        let indexes = NameIndexes::new(4 << 20);
        let mut index = indexes.index();
        let name = |number: u32| format!("name-{number}").into_bytes();
        for number in 0..50_000 {
            index
                .insert(&name(number), FileBlock(number / 40))
                .expect("room");
        }
        let mut candidates = 0;
        for number in 0..50_000 {
            let blocks: Vec<_> = index.candidates(&name(number)).collect();
            assert!(blocks.contains(&FileBlock(number / 40)));
            candidates += blocks.len();
        }
        assert!(candidates < 50_100, "{candidates}");
        let strangers =
            (50_000..60_000).filter(|&number| index.candidates(&name(number)).next().is_some());
        assert!(strangers.count() < 10);
    }

    #[test]
    fn room_is_bounded_by_what_is_allocated_and_given_back() {
        let indexes = NameIndexes::new(64 << 10);
        let taken = |indexes: &NameIndexes| indexes.budget.bytes.load(Ordering::Relaxed);
        let fill = |index: &mut NameIndex| {
            (0..1_000_000u32)
                .find(|number| index.insert(&number.to_le_bytes(), FileBlock(*number)) == Err(Full))
                .expect("a million names do not fit")
        };
        let mut first = indexes.index();
        let names = fill(&mut first);
        assert!(names > 1000, "{names}");
        assert!(first.places.allocation_size() as u64 <= taken(&indexes));
        assert!(taken(&indexes) <= 64 << 10);
        let mut second = indexes.index();
        assert!(fill(&mut second) < names);
        drop(first);
        drop(second);
        assert_eq!(taken(&indexes), 0);
        assert_eq!(fill(&mut indexes.index()), names);
    }

    #[test]
    fn names_that_go_are_forgotten_and_gaps_found() {
        let indexes = NameIndexes::new(1 << 20);
        let mut index = indexes.index();
        for round in 0..100_000u32 {
            let name = round.to_le_bytes();
            index.insert(&name, FileBlock(round % 7)).expect("room");
            index.remove(&name, FileBlock(round % 7), std::iter::empty());
            assert_eq!(index.candidates(&name).count(), 0);
        }
        index.insert(b"twin", FileBlock(3)).expect("room");
        index.remove(b"twin", FileBlock(3), [b"twin".as_slice()].into_iter());
        assert_eq!(index.candidates(b"twin").count(), 1);
        for (block, gap) in [(0, 12), (1, 40), (2, 12), (3, 300)] {
            index.set_gap(FileBlock(block), gap).expect("room");
        }
        assert_eq!(index.first_gap(12), Some(FileBlock(0)));
        assert_eq!(index.first_gap(16), Some(FileBlock(1)));
        index.set_gap(FileBlock(1), 12).expect("room");
        assert_eq!(index.first_gap(16), Some(FileBlock(3)));
        assert_eq!(index.first_gap(301), None);
        drop(index);
        assert_eq!(indexes.budget.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_name_everywhere_is_refused_and_one_block_counts_once() {
        let indexes = NameIndexes::new(1 << 20);
        let mut index = indexes.index();
        for _ in 0..100_000 {
            index.insert(b"again", FileBlock(7)).expect("one candidate");
        }
        assert_eq!(index.candidates(b"again").count(), 1);
        let refused = (0..1000).find(|&block| index.insert(b"again", FileBlock(block)).is_err());
        assert_eq!(refused, Some(CANDIDATES_MAX as u32));
    }
}
