//! An index of the names of one directory that has none on disk: from a name to the directory
//! blocks it may be in, so that a lookup scans one block instead of all.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use pagefence_ext4_format::FileBlock;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};

/// Where names are. A hit is a candidate: its block is still searched for the name.
///
/// Weighs about 9 bytes an entry. Belongs to one directory inode in core and goes with it.
#[derive(Debug)]
pub(crate) struct NameIndex {
    hasher: DefaultHashBuilder,
    places: HashTable<Candidate>,
    _charge: Charge,
}

/// Bounds the memory of all name indexes of a file system.
#[derive(Debug)]
pub(crate) struct NameIndexes {
    bytes_max: u64,
    bytes: Arc<AtomicU64>,
}

/// What one index was allowed to take; given back when it goes.
#[derive(Debug)]
pub(crate) struct Charge {
    bytes: u64,
    of: Arc<AtomicU64>,
}

impl NameIndexes {
    /// Indexes may take `bytes_max` together.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            bytes: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Room for the index of a directory of `dir_bytes`, if there is any left. An entry takes at
    /// least 12 bytes of the directory, mostly two or three times that.
    pub(crate) fn charge(&self, dir_bytes: u64) -> Option<Charge> {
        let bytes = dir_bytes / 2;
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let charge = Charge {
            bytes,
            of: Arc::clone(&self.bytes),
        };
        (before.saturating_add(bytes) <= self.bytes_max).then_some(charge)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
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
    /// An empty index that was given its room.
    pub(crate) fn charged(charge: Charge) -> Self {
        Self {
            hasher: DefaultHashBuilder::default(),
            places: HashTable::new(),
            _charge: charge,
        }
    }

    /// Enters a name found in `block`.
    pub(crate) fn insert(&mut self, name: &[u8], block: FileBlock) {
        let hash = kept(self.hasher.hash_one(name));
        let candidate = Candidate { hash, block };
        self.places
            .insert_unique(spread(hash), candidate, |other| spread(other.hash));
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
        let indexes = NameIndexes::new(1 << 20);
        let mut index = NameIndex::charged(indexes.charge(1 << 20).expect("room"));
        let name = |number: u32| format!("name-{number}").into_bytes();
        for number in 0..50_000 {
            index.insert(&name(number), FileBlock(number / 40));
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
    fn room_is_bounded_and_given_back() {
        let indexes = NameIndexes::new(1000);
        let first = indexes.charge(1200).expect("600 of 1000");
        assert!(indexes.charge(1200).is_none());
        drop(first);
        assert!(indexes.charge(2000).is_some());
    }
}
