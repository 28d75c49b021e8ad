//! Looking a name up in a block of entries, and room for it, in one walk.

use super::{DirBlock, DirEntry, Walk, split_tail};
use crate::Corruption;

/// What one walk over a block says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search<'a> {
    /// The entry of that name. The walk ends there.
    pub entry: Option<DirEntry<'a>>,
    /// Where the first entry, used or not, starts that has room behind it for a new one; of the
    /// part of the block that was walked over. See [`insert_at`](super::insert_at).
    pub gap: Option<usize>,
}

impl<'a> DirBlock<'a> {
    /// Whether every entry is sound. Then [`DirBlock::search`] of these contents may be told so.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.entries().all(|entry| entry.is_ok())
    }

    /// Finds the entry of `name`, and room for an entry of `needed` bytes
    /// ([`entry_len`](super::entry_len)).
    ///
    /// Of a block that [is sound](Self::is_sound) only the entry of that name is looked at
    /// closely. Whatever the caller says, what is handed out has been checked.
    ///
    /// # Errors
    ///
    /// A corruption met before the name.
    pub fn search(
        &self,
        name: &[u8],
        needed: usize,
        is_sound: bool,
    ) -> Result<Search<'a>, Corruption> {
        let entries = self.entries();
        // Without a tail where one is due nothing can be put in.
        let is_writable = !self.format.checksums || split_tail(self.block).is_some();
        let mut gap = None;
        let mut place = 0_u8;
        for slot in Walk::new(self.block, &self.format) {
            let slot = slot?;
            let here = place;
            place = place.saturating_add(1).min(2);
            if gap.is_none() && is_writable && slot.room() >= needed {
                gap = Some(slot.offset);
            }
            if slot.inode != 0 && (!is_sound || slot.name == name) {
                let entry = entries.check(&slot, here)?;
                if entry.name == name {
                    let entry = Some(entry);
                    return Ok(Search { entry, gap });
                }
            }
        }
        Ok(Search { entry: None, gap })
    }
}

#[cfg(test)]
mod tests {
    use crate::dir_entry::{
        DirBlock, DirCorruption, DirFormat, EntryName, FileKind, RawDirEntry, entry_len,
        init_block, insert, insert_at, remove,
    };
    use crate::{Corruption, InodeNo};

    const FORMAT: DirFormat = DirFormat {
        filetype: true,
        checksums: true,
        last_inode: InodeNo(10_000),
    };

    fn name(number: u32) -> Vec<u8> {
        let mut name = number.to_string().into_bytes();
        name.resize(name.len() + number as usize % 40, b'x');
        name
    }

    /// A block in which names came and went, and the numbers of those that are there.
    fn worn_block() -> (Vec<u8>, Vec<u32>) {
        let mut block = vec![0; 1024];
        assert!(init_block(&mut block, &FORMAT));
        let mut there = Vec::new();
        let mut random = 7_u32;
        for number in 1..400 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bytes = name(number);
            let entry = EntryName::new(&bytes).expect("a name");
            let kind = Some(FileKind::Regular);
            let put = insert(&mut block, &FORMAT, InodeNo(number), &entry, kind);
            if put.expect("a sound block").is_some() {
                there.push(number);
            }
            if !there.is_empty() && random >> 30 != 0 {
                let gone = there.swap_remove(random as usize % there.len());
                let view = DirBlock::new(&block, &FORMAT, false);
                let found = view.find(&name(gone)).expect("sound");
                let offset = found.expect("there").offset;
                assert!(remove(&mut block, &FORMAT, offset).expect("sound"));
            }
        }
        assert!(there.len() > 3);
        (block, there)
    }

    #[test]
    fn a_search_finds_what_find_and_insert_find() {
        let (block, there) = worn_block();
        let view = DirBlock::new(&block, &FORMAT, false);
        assert!(view.is_sound());
        let (mut free, mut tight) = (0, 0);
        for number in 1..600 {
            let bytes = name(number);
            let needed = entry_len(bytes.len());
            let search = view.search(&bytes, needed, true).expect("sound");
            assert_eq!(search, view.search(&bytes, needed, false).expect("sound"));
            assert_eq!(search.entry, view.find(&bytes).expect("sound"));
            assert_eq!(search.entry.is_some(), there.contains(&number));
            if search.entry.is_some() {
                continue;
            }
            let entry = EntryName::new(&bytes).expect("a name");
            let (mut one, mut other) = (block.clone(), block.clone());
            let put = insert(&mut one, &FORMAT, InodeNo(number), &entry, None).expect("sound");
            match search.gap {
                Some(gap) => {
                    free += 1;
                    let inode = InodeNo(number);
                    let again = insert_at(&mut other, &FORMAT, gap, inode, &entry, None);
                    assert_eq!(again.expect("sound"), put);
                    assert!(put.is_some());
                }
                None => {
                    tight += 1;
                    assert_eq!(put, None);
                }
            }
            assert_eq!(one, other);
        }
        assert!(free > 10, "{free} names had room");
        let none = view.search(b"nobody", 1024, true).expect("sound");
        assert_eq!((none.entry, none.gap), (None, None), "{tight}");
    }

    #[test]
    fn what_is_damaged_is_found_and_never_handed_out() {
        let (mut block, there) = worn_block();
        let victim = name(there[0]);
        let view = DirBlock::new(&block, &FORMAT, false);
        let offset = view.find(&victim).expect("sound").expect("there").offset;
        let (raw, _) = <RawDirEntry as zerocopy::FromBytes>::mut_from_prefix(&mut block[offset..])
            .expect("an entry");
        raw.inode.set(FORMAT.last_inode.0 + 1);
        let view = DirBlock::new(&block, &FORMAT, false);
        assert!(!view.is_sound());
        for is_sound in [false, true] {
            assert!(matches!(
                view.search(&victim, 12, is_sound),
                Err(Corruption::DirEntry(DirCorruption::Inode { .. }))
            ));
        }
        assert!(view.search(b"nobody", 12, false).is_err());
    }

    #[test]
    fn nothing_goes_where_no_entry_is_or_no_room() {
        let (mut block, there) = worn_block();
        let long = vec![b'y'; 255];
        let entry = EntryName::new(&long).expect("a name");
        let view = DirBlock::new(&block, &FORMAT, false);
        let offset = view
            .find(&name(there[0]))
            .expect("sound")
            .expect("there")
            .offset;
        let before = block.clone();
        let put = insert_at(&mut block, &FORMAT, offset, InodeNo(5), &entry, None);
        assert_eq!(put.expect("an entry is there"), None);
        assert!(insert_at(&mut block, &FORMAT, 2048, InodeNo(5), &entry, None).is_err());
        assert_eq!(block, before);
        // Without its tail the block offers no room.
        let tail = block.len() - 12;
        block[tail..].fill(0);
        let view = DirBlock::new(&block[..], &FORMAT, false);
        let search = view.search(&name(there[0]), 12, true).expect("an entry");
        assert!(search.entry.is_some() && search.gap.is_none());
        assert!(insert_at(&mut block, &FORMAT, 0, InodeNo(5), &entry, None).is_err());
    }
}
