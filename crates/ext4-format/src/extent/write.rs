//! Writing nodes of an extent tree, entry by entry, in place.

use std::ops::Range;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    Child, ENTRY, EXTENT_MAGIC, Extent, MAX_DEPTH, RawExtentHeader, RawExtentIndex,
    entries_that_fit, read_header, split_block,
};
use crate::Corruption;

type Slot = [u8; ENTRY];

/// A node whose entries are changed in place. It keeps count and places; that entries stay in
/// order and do not overlap is the caller's part (a later parse checks it).
#[derive(Debug)]
pub struct ExtentNodeMut<'a> {
    header: &'a mut RawExtentHeader,
    slots: &'a mut [Slot],
}

impl<'a> ExtentNodeMut<'a> {
    /// Makes an empty node of `bytes` (a block, or the 60 of the root): zeroes, then a header.
    /// Nothing if not even one entry fits, or `depth` is above [`MAX_DEPTH`].
    #[must_use]
    pub fn init(bytes: &'a mut [u8], depth: u16) -> Option<Self> {
        let max = entries_that_fit(bytes.len());
        if max == 0 || depth > MAX_DEPTH {
            return None;
        }
        bytes.fill(0);
        let (header, _) = RawExtentHeader::mut_from_prefix(bytes).ok()?;
        *header = RawExtentHeader {
            eh_magic: U16::new(EXTENT_MAGIC),
            eh_entries: U16::new(0),
            eh_max: U16::new(max),
            eh_depth: U16::new(depth),
            eh_generation: U32::new(0),
        };
        Self::open(bytes).ok()
    }

    /// Opens a node that has been parsed before.
    ///
    /// # Errors
    ///
    /// [`Corruption::Extent`] or [`Corruption::Truncated`] if the header makes no sense.
    pub fn open(bytes: &'a mut [u8]) -> Result<Self, Corruption> {
        let (header, _) = read_header(bytes)?;
        let (max, entries) = (header.eh_max.get(), header.eh_entries.get());
        if entries > max {
            return Err(super::ExtentCorruption::Entries { entries, max }.into());
        }
        let have = bytes.len();
        let short = || Corruption::Truncated {
            what: "extent node",
            needed: usize::from(max).saturating_mul(ENTRY),
            have,
        };
        let (header, rest) = RawExtentHeader::mut_from_prefix(bytes).map_err(|_| short())?;
        let (slots, _) =
            <[Slot]>::mut_from_prefix_with_elems(rest, max.into()).map_err(|_| short())?;
        Ok(Self { header, slots })
    }

    /// Entries in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.header.eh_entries.get().into()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no further entry fits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len() >= self.slots.len()
    }

    /// Levels below this one; 0 in a leaf.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.header.eh_depth.get()
    }

    /// Puts `extent` at number `at` of a leaf, moving the later ones up. Returns whether it did:
    /// not if the node is full, is no leaf, has no place `at`, or a field is out of range.
    #[must_use]
    pub fn insert_extent(&mut self, at: usize, extent: &Extent) -> bool {
        self.depth() == 0 && encode_extent(extent).is_some_and(|slot| self.insert(at, slot))
    }

    /// Replaces extent number `at` of a leaf. Returns whether it did.
    #[must_use]
    pub fn set_extent(&mut self, at: usize, extent: &Extent) -> bool {
        self.depth() == 0 && encode_extent(extent).is_some_and(|slot| self.set(at, slot))
    }

    /// Puts `child` at number `at` of an index node, moving the later ones up. Its `end` is not
    /// stored: the next entry gives it. Returns whether it did: not if the node is full, has
    /// another depth than one above the child, has no place `at`, or the block needs more than 48
    /// bits.
    #[must_use]
    pub fn insert_child(&mut self, at: usize, child: &Child) -> bool {
        self.is_parent_of(child) && encode_child(child).is_some_and(|slot| self.insert(at, slot))
    }

    /// Replaces child number `at` of an index node. Returns whether it did.
    #[must_use]
    pub fn set_child(&mut self, at: usize, child: &Child) -> bool {
        self.is_parent_of(child) && encode_child(child).is_some_and(|slot| self.set(at, slot))
    }

    /// Takes entries out, moving the later ones down and zeroing what they leave. A range past the
    /// last entry is cut to it.
    pub fn remove(&mut self, range: Range<usize>) {
        let len = self.len();
        let end = range.end.min(len);
        let Some(gone) = end.checked_sub(range.start).filter(|gone| *gone > 0) else {
            return;
        };
        self.slots.copy_within(end..len, range.start);
        let kept = len.saturating_sub(gone);
        if let Some(freed) = self.slots.get_mut(kept..len) {
            freed.fill([0; ENTRY]);
        }
        self.set_len(kept);
    }

    /// Moves the entries from number `at` on to the end of `right`, a node of the same depth.
    /// Returns whether it did: not if they do not fit there.
    #[must_use]
    pub fn move_tail(&mut self, at: usize, right: &mut ExtentNodeMut<'_>) -> bool {
        let (len, start) = (self.len(), right.len());
        let Some(tail) = self.slots.get(at..len) else {
            return false;
        };
        let end = start.saturating_add(tail.len());
        let Some(place) = right.slots.get_mut(start..end) else {
            return false;
        };
        if self.header.eh_depth != right.header.eh_depth {
            return false;
        }
        place.copy_from_slice(tail);
        right.set_len(end);
        self.remove(at..len);
        true
    }

    fn is_parent_of(&self, child: &Child) -> bool {
        child.depth.checked_add(1) == Some(self.depth())
    }

    fn insert(&mut self, at: usize, slot: Slot) -> bool {
        let len = self.len();
        if at > len || self.is_full() {
            return false;
        }
        let longer = len.saturating_add(1);
        if let Some(moved) = self.slots.get_mut(at..longer) {
            moved.rotate_right(1);
        }
        self.set_len(longer);
        self.set(at, slot)
    }

    fn set(&mut self, at: usize, slot: Slot) -> bool {
        if at >= self.len() {
            return false;
        }
        match self.slots.get_mut(at) {
            Some(place) => {
                *place = slot;
                true
            }
            None => false,
        }
    }

    fn set_len(&mut self, len: usize) {
        debug_assert!(len <= self.slots.len(), "entries stay within eh_max");
        if let Ok(len) = u16::try_from(len) {
            self.header.eh_entries.set(len);
        }
    }
}

fn encode_extent(extent: &Extent) -> Option<Slot> {
    Slot::read_from_bytes(extent.to_raw()?.as_bytes()).ok()
}

fn encode_child(child: &Child) -> Option<Slot> {
    let (hi, lo) = split_block(child.block)?;
    let raw = RawExtentIndex {
        ei_block: U32::new(child.first.0),
        ei_leaf_lo: U32::new(lo),
        ei_leaf_hi: U16::new(hi),
        ei_unused: U16::new(0),
    };
    Slot::read_from_bytes(raw.as_bytes()).ok()
}
