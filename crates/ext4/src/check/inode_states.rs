//! What is known of each inode: two bytes for each of a group that has any in use.

use std::collections::BTreeMap;

use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::{GroupNo, InodeNo, inode::FileKind};

use super::{Memory, Step};

/// The record is in use.
const IN_USE: u8 = 1 << 3;
/// It holds the value of an attribute.
const EA_INODE: u8 = 1 << 4;
/// Others own blocks of it, too.
const SHARES: u8 = 1 << 5;
/// The kind: as in a directory entry, or 0 if it is not known.
const KIND: u8 = 7;
/// Links that are counted here; more are in a map.
const COUNT_MAX: u8 = u8::MAX;

/// What is known of one inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InodeState {
    flags: u8,
    links: u8,
}

impl InodeState {
    pub(super) fn is_in_use(self) -> bool {
        self.flags & IN_USE != 0
    }

    pub(super) fn is_ea_inode(self) -> bool {
        self.flags & EA_INODE != 0
    }

    pub(super) fn shares_blocks(self) -> bool {
        self.flags & SHARES != 0
    }

    pub(super) fn kind(self) -> Option<FileKind> {
        FileKind::from_byte(self.flags & KIND)
    }
}

/// What is known of all inodes.
#[derive(Debug)]
pub(super) struct InodeStates {
    per_group: u32,
    last: u32,
    groups: BTreeMap<u32, Box<[InodeState]>>,
    more_links: BTreeMap<InodeNo, u32>,
}

impl InodeStates {
    pub(super) fn new(superblock: &Superblock) -> Self {
        Self {
            per_group: superblock.inodes_per_group().max(1),
            last: superblock.inodes_count(),
            groups: BTreeMap::new(),
            more_links: BTreeMap::new(),
        }
    }

    fn place(&self, number: InodeNo) -> Option<(u32, usize)> {
        let from_zero = number.0.checked_sub(1)?;
        (number.0 <= self.last).then_some((
            from_zero / self.per_group,
            (from_zero % self.per_group) as usize,
        ))
    }

    pub(super) fn get(&self, number: InodeNo) -> InodeState {
        self.place(number)
            .and_then(|(group, at)| self.groups.get(&group)?.get(at).copied())
            .unwrap_or_default()
    }

    fn slot(&mut self, number: InodeNo, memory: &mut Memory) -> Step<Option<&mut InodeState>> {
        let Some((group, at)) = self.place(number) else {
            return Ok(None);
        };
        let states = match self.groups.entry(group) {
            std::collections::btree_map::Entry::Occupied(states) => states.into_mut(),
            std::collections::btree_map::Entry::Vacant(room) => {
                let count = self.per_group as usize;
                memory.take((size_of::<InodeState>() * count) as u64 + 64)?;
                room.insert(vec![InodeState::default(); count].into())
            }
        };
        Ok(states.get_mut(at))
    }

    /// Says that an inode is in use.
    pub(super) fn use_inode(
        &mut self,
        number: InodeNo,
        kind: Option<FileKind>,
        is_ea_inode: bool,
        memory: &mut Memory,
    ) -> Step {
        if let Some(state) = self.slot(number, memory)? {
            state.flags |= IN_USE | kind.map_or(0, FileKind::to_byte);
            if is_ea_inode {
                state.flags |= EA_INODE;
            }
        }
        Ok(())
    }

    /// Says that an inode in use shares blocks.
    pub(super) fn set_sharing(&mut self, number: InodeNo, memory: &mut Memory) -> Step {
        if let Some(state) = self.slot(number, memory)? {
            state.flags |= SHARES;
        }
        Ok(())
    }

    /// Counts a link to an inode in use.
    pub(super) fn count_link(&mut self, number: InodeNo, memory: &mut Memory) -> Step {
        let Some(state) = self.slot(number, memory)? else {
            return Ok(());
        };
        if state.links < COUNT_MAX {
            state.links += 1;
            return Ok(());
        }
        if !self.more_links.contains_key(&number) {
            memory.take(64)?;
        }
        let more = self.more_links.entry(number).or_insert(0);
        *more = more.saturating_add(1);
        Ok(())
    }

    /// Links counted.
    pub(super) fn links(&self, number: InodeNo) -> u32 {
        let more = self.more_links.get(&number).copied().unwrap_or(0);
        u32::from(self.get(number).links).saturating_add(more)
    }

    /// The inodes in use of a group, in order, and what is known of each.
    pub(super) fn of_group(&self, group: GroupNo) -> Vec<(InodeNo, InodeState)> {
        let first = group.0.saturating_mul(self.per_group).saturating_add(1);
        let Some(states) = self.groups.get(&group.0) else {
            return Vec::new();
        };
        (first..)
            .zip(states.iter())
            .filter(|(_, state)| state.is_in_use())
            .map(|(number, state)| (InodeNo(number), *state))
            .collect()
    }

    /// Groups that have inodes in use.
    pub(super) fn groups(&self) -> Vec<GroupNo> {
        self.groups.keys().copied().map(GroupNo).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_counted_past_a_byte() {
        let mut states = InodeStates {
            per_group: 8,
            last: 16,
            groups: BTreeMap::new(),
            more_links: BTreeMap::new(),
        };
        let memory = &mut Memory(1 << 20);
        let number = InodeNo(9);
        states
            .use_inode(number, Some(FileKind::Regular), true, memory)
            .expect("room");
        for _ in 0..1000 {
            states.count_link(number, memory).expect("room");
        }
        assert_eq!(states.links(number), 1000);
        assert_eq!(states.links(InodeNo(10)), 0);
        let state = states.get(number);
        assert!(state.is_in_use() && state.is_ea_inode() && !state.shares_blocks());
        assert_eq!(state.kind(), Some(FileKind::Regular));
        assert_eq!(states.of_group(GroupNo(1)), [(number, state)]);
        assert!(states.count_link(InodeNo(17), memory).is_ok());
        assert_eq!(states.links(InodeNo(17)), 0);
    }
}
