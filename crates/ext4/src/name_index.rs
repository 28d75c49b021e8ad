//! An index of the names of one directory that has none on disk: from a name to the directory
//! blocks it may be in, so that a lookup scans one block instead of all.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use pagefence_ext4_format::FileBlock;

/// Where names are. A hit is a candidate: its block is still searched for the name.
///
/// Weighs about 9 bytes an entry. Belongs to one directory inode in core and goes with it.
#[derive(Debug, Default)]
pub(crate) struct NameIndex {
    hasher: DefaultHashBuilder,
    places: HashTable<Candidate>,
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
        let mut index = NameIndex::default();
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
        let strangers = (50_000..60_000).filter(|&number| index.candidates(&name(number)).next().is_some());
        assert!(strangers.count() < 10);
    }
}
