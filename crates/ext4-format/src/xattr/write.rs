//! Attributes to be changed: those of one place, taken out, edited, and written back as Linux lays
//! them out.
//!
//! Linux keeps the entries of a block sorted (by prefix, length of the name, name), those of an
//! inode in the order of their coming. Values lie back to back at the end, the last that came in
//! front; a value replaced by one that takes as many bytes keeps its place.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{
    END, RawXattrEntry, RawXattrHeader, RawXattrInodeHeader, Value, XATTR_MAGIC, XattrEntry,
    XattrLimits, Xattrs, block_hash, entry_len,
};
use crate::{Corruption, InodeNo};

/// Bytes of the header of a block.
const BLOCK_HEADER: usize = size_of::<RawXattrHeader>();
/// Bytes of the header in an inode.
const INODE_HEADER: usize = size_of::<RawXattrInodeHeader>();

/// A value to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewValue<'a> {
    /// These bytes, at most 2^16.
    Bytes(&'a [u8]),
    /// The contents of an inode of its own.
    Inode {
        /// The inode.
        inode: InodeNo,
        /// Bytes.
        len: u32,
        /// [`ea_inode_hash`](super::ea_inode_hash) of the bytes.
        hash: u32,
    },
}

/// The attribute does not fit into the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the attribute does not fit")]
pub struct NoRoom;

/// Where attributes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Site {
    Inode,
    /// `reserve`: bytes that values leave free at the start, for entries with values elsewhere.
    Block {
        reserve: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stored {
    Bytes(Vec<u8>),
    Inode { inode: InodeNo, len: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    index: u8,
    name: Vec<u8>,
    value: Stored,
    hash: u32,
    /// Where the value lies among the others: higher is nearer to the end.
    height: i64,
}

/// The attributes of one place, to be changed.
///
/// Owns copies of names and values; the place itself changes by [`Self::write_to`] alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XattrSet {
    site: Site,
    /// Bytes of the place, its header included.
    room: usize,
    entries: Vec<Entry>,
}

impl Site {
    /// `e_hash` of an entry whose value is here, too.
    fn hash(self, name: &[u8], value: &[u8]) -> u32 {
        match self {
            Self::Inode => 0,
            Self::Block { .. } => XattrEntry::hash_of(name, value),
        }
    }
}

impl Entry {
    /// Bytes that the value takes in the place.
    fn value_len(&self) -> usize {
        match &self.value {
            Stored::Bytes(bytes) => padded(bytes.len()),
            Stored::Inode { .. } => 0,
        }
    }

    fn is(&self, index: u8, name: &[u8]) -> bool {
        self.index == index && self.name == name
    }

    fn len(&self) -> usize {
        entry_len(self.name.len())
    }
}

/// Bytes that a value of `len` bytes takes.
fn padded(len: usize) -> usize {
    len.saturating_add(3) & !3
}

/// The order of entries in a block.
fn order(a: (u8, &[u8]), b: (u8, &[u8])) -> Ordering {
    (a.0, a.1.len(), a.1).cmp(&(b.0, b.1.len(), b.1))
}

impl XattrSet {
    /// The attributes behind an inode's extra fields: `region` goes from 128 + `i_extra_isize` to
    /// the inode's end. Nothing if it is too small for any.
    ///
    /// # Errors
    ///
    /// As [`Xattrs::in_inode`].
    pub fn of_inode(region: &[u8], limits: &XattrLimits) -> Result<Option<Self>, Corruption> {
        let smallest = INODE_HEADER
            .saturating_add(END)
            .saturating_add(entry_len(0));
        let found = Xattrs::in_inode(region, limits)?;
        if found.is_none() && region.len() < smallest {
            return Ok(None);
        }
        Ok(Some(Self::copied(
            Site::Inode,
            region.len(),
            found.as_ref(),
        )))
    }

    /// The attributes of a block.
    ///
    /// # Errors
    ///
    /// As [`Xattrs::in_block`].
    pub fn of_block(block: &[u8], limits: &XattrLimits) -> Result<Self, Corruption> {
        let found = Xattrs::in_block(block, limits)?;
        let site = block_site(block.len(), limits);
        Ok(Self::copied(site, block.len(), Some(&found)))
    }

    /// A block of that size without attributes.
    #[must_use]
    pub fn new_block(block_size: usize, limits: &XattrLimits) -> Self {
        Self::copied(block_site(block_size, limits), block_size, None)
    }

    fn copied(site: Site, room: usize, found: Option<&Xattrs<'_>>) -> Self {
        let entries = found.map_or_else(Vec::new, |found| {
            let offsets = found.offsets();
            let entries = found.entries().zip(offsets);
            entries.map(|(entry, at)| copied(&entry, at)).collect()
        });
        Self {
            site,
            room,
            entries,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The attributes, in the order of the entries.
    pub fn entries(&self) -> impl Iterator<Item = XattrEntry<'_>> {
        self.entries.iter().map(view)
    }

    /// The attribute of that prefix and name.
    #[must_use]
    pub fn find(&self, index: u8, name: &[u8]) -> Option<XattrEntry<'_>> {
        let found = self.entries.iter().find(|entry| entry.is(index, name));
        found.map(view)
    }

    /// Sets an attribute, which may be there or not. `name` is without its prefix, of at most 255
    /// bytes and without NUL.
    ///
    /// # Errors
    ///
    /// [`NoRoom`], and nothing changed.
    pub fn set(&mut self, index: u8, name: &[u8], value: NewValue<'_>) -> Result<(), NoRoom> {
        let new = self.entry(index, name, value)?;
        self.put(new)
    }

    /// Moves an attribute to another place of the same inode; false if it does not fit there, or
    /// is not here, and then nothing changed.
    pub fn move_to(&mut self, other: &mut Self, index: u8, name: &[u8]) -> bool {
        let Some(at) = self.entries.iter().position(|entry| entry.is(index, name)) else {
            return false;
        };
        let Some(mut entry) = self.entries.get(at).cloned() else {
            return false;
        };
        if let Stored::Bytes(bytes) = &entry.value {
            entry.hash = other.site.hash(name, bytes);
        }
        entry.height = other.next_height();
        let fits = other.put(entry).is_ok();
        if fits {
            self.entries.remove(at);
        }
        fits
    }

    fn put(&mut self, new: Entry) -> Result<(), NoRoom> {
        let new_len = new.value_len();
        let (index, name) = (new.index, new.name.clone());
        let name = name.as_slice();
        let at = self.entries.iter().position(|entry| entry.is(index, name));
        let old_len = at.and_then(|at| self.entries.get(at)).map(Entry::value_len);
        let in_place = new_len > 0 && old_len == Some(new_len);
        if !in_place && !self.fits(old_len, &new) {
            return Err(NoRoom);
        }
        let place = at.and_then(|at| self.entries.get_mut(at));
        match place {
            // The value keeps its place, too.
            Some(old) if in_place => {
                let height = old.height;
                *old = Entry { height, ..new };
            }
            Some(old) => *old = new,
            None => {
                let after = |entry: &Entry| {
                    order((entry.index, &entry.name), (index, name)) == Ordering::Greater
                };
                let at = match self.site {
                    Site::Inode => None,
                    Site::Block { .. } => self.entries.iter().position(after),
                };
                self.entries.insert(at.unwrap_or(self.entries.len()), new);
            }
        }
        Ok(())
    }

    /// Whether there is room for `new` in place of what has a value of `old` bytes here.
    fn fits(&self, old: Option<usize>, new: &Entry) -> bool {
        let values: usize = self.entries.iter().map(Entry::value_len).sum();
        let values = values
            .saturating_sub(old.unwrap_or(0))
            .saturating_add(new.value_len());
        let entry = if old.is_some() { 0 } else { new.len() };
        let used = self.entries_end().saturating_add(entry);
        if used.saturating_add(values) > self.room {
            return false;
        }
        match self.site {
            Site::Block { reserve } if new.value_len() > 0 => {
                self.room.saturating_sub(values) >= reserve
            }
            _ => true,
        }
    }

    fn entry(&self, index: u8, name: &[u8], value: NewValue<'_>) -> Result<Entry, NoRoom> {
        if name.len() > usize::from(u8::MAX) || name.contains(&0) {
            return Err(NoRoom);
        }
        let (value, hash) = match value {
            NewValue::Bytes(bytes) => (Stored::Bytes(bytes.to_vec()), self.site.hash(name, bytes)),
            NewValue::Inode { inode, len, hash } => {
                let hash = XattrEntry::hash_of(name, &hash.to_le_bytes());
                (Stored::Inode { inode, len }, hash)
            }
        };
        Ok(Entry {
            index,
            name: name.to_vec(),
            value,
            hash,
            height: self.next_height(),
        })
    }

    fn next_height(&self) -> i64 {
        let lowest = self.entries.iter().map(|entry| entry.height).min();
        lowest.unwrap_or(0).saturating_sub(1)
    }

    /// Takes an attribute out; false if it is not there.
    pub fn remove(&mut self, index: u8, name: &[u8]) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| !entry.is(index, name));
        self.entries.len() < before
    }

    /// Says of every value in inode `from` that it is in inode `to`.
    pub fn rename_inode(&mut self, from: InodeNo, to: InodeNo) {
        for entry in &mut self.entries {
            match &mut entry.value {
                Stored::Inode { inode, .. } if *inode == from => *inode = to,
                _ => {}
            }
        }
    }

    /// Gives the place another size; false, and nothing changed, if the attributes do not fit
    /// then.
    pub fn resize(&mut self, room: usize) -> bool {
        let values: usize = self.entries.iter().map(Entry::value_len).sum();
        if self.entries_end().saturating_add(values) > room {
            return false;
        }
        self.room = room;
        true
    }

    /// Whether the place has room for what it says it holds. It has not if values lie on each
    /// other, which no system writes; what is set and removed later changes nothing about it.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let values: usize = self.entries.iter().map(Entry::value_len).sum();
        self.entries_end().saturating_add(values) <= self.room
    }

    /// Bytes of the place that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        let values: usize = self.entries.iter().map(Entry::value_len).sum();
        let used = self.entries_end().saturating_add(values);
        self.room.saturating_sub(used)
    }

    /// Bytes of the header, the entries and the zeroes that end them.
    fn entries_end(&self) -> usize {
        let entries: usize = self.entries.iter().map(Entry::len).sum();
        self.header().saturating_add(entries).saturating_add(END)
    }

    fn header(&self) -> usize {
        match self.site {
            Site::Inode => INODE_HEADER,
            Site::Block { .. } => BLOCK_HEADER,
        }
    }

    /// Writes the place: an inode's region, zeroes if there are no attributes; or a block, with
    /// its hash and one user, if there are any. [`update_checksum`](super::update_checksum) comes
    /// after.
    ///
    /// # Errors
    ///
    /// [`Corruption::Truncated`] if `out` has not the size of the place.
    pub fn write_to(&self, out: &mut [u8]) -> Result<(), Corruption> {
        let truncated = Corruption::Truncated {
            what: "room of attributes",
            needed: self.room,
            have: out.len(),
        };
        if out.len() != self.room {
            return Err(truncated);
        }
        out.fill(0);
        if self.entries.is_empty() && self.site == Site::Inode {
            return Ok(());
        }
        let (header, area) = out
            .split_at_mut_checked(self.header())
            .ok_or(truncated.clone())?;
        // What the offsets of values count from, before the area.
        let base = match self.site {
            Site::Inode => {
                header.copy_from_slice(&XATTR_MAGIC.to_le_bytes());
                0
            }
            Site::Block { .. } => {
                let mut raw = RawXattrHeader::new_zeroed();
                raw.h_magic = XATTR_MAGIC.into();
                raw.h_refcount = 1.into();
                raw.h_blocks = 1.into();
                header.copy_from_slice(raw.as_bytes());
                BLOCK_HEADER
            }
        };
        self.fill(area, base).ok_or(truncated)?;
        if let Site::Block { .. } = self.site {
            let limits = XattrLimits::any();
            let hash = block_hash(&Xattrs::in_block(out, &limits)?);
            if let Ok((header, _)) = RawXattrHeader::mut_from_prefix(out) {
                header.h_hash = hash.into();
            }
        }
        Ok(())
    }

    /// Fills the zeroed area behind the header; nothing if it is too small.
    fn fill(&self, area: &mut [u8], base: usize) -> Option<()> {
        // Values from the end on.
        let mut by_height: Vec<(usize, &Entry)> = self.entries.iter().enumerate().collect();
        by_height.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.height));
        let mut offsets = vec![0_u16; self.entries.len()];
        let mut back = area.len();
        for (at, entry) in by_height {
            let Stored::Bytes(bytes) = &entry.value else {
                continue;
            };
            if bytes.is_empty() {
                continue;
            }
            back = back.checked_sub(padded(bytes.len()))?;
            let value = area.get_mut(back..)?.get_mut(..bytes.len())?;
            value.copy_from_slice(bytes);
            *offsets.get_mut(at)? = u16::try_from(back.checked_add(base)?).ok()?;
        }
        let mut front = 0_usize;
        for (entry, offset) in self.entries.iter().zip(offsets) {
            let mut raw = RawXattrEntry::new_zeroed();
            raw.e_name_len = u8::try_from(entry.name.len()).ok()?;
            raw.e_name_index = entry.index;
            raw.e_value_offs = offset.into();
            raw.e_hash = entry.hash.into();
            match &entry.value {
                Stored::Bytes(bytes) => {
                    raw.e_value_size = u32::try_from(bytes.len()).ok()?.into();
                }
                Stored::Inode { inode, len } => {
                    raw.e_value_inum = inode.0.into();
                    raw.e_value_size = (*len).into();
                }
            }
            let slot = area.get_mut(front..)?.get_mut(..entry.len())?;
            let (head, rest) = slot.split_at_mut_checked(size_of::<RawXattrEntry>())?;
            head.copy_from_slice(raw.as_bytes());
            rest.get_mut(..entry.name.len())?
                .copy_from_slice(&entry.name);
            front = front.checked_add(entry.len())?;
        }
        (front.checked_add(END)? <= back).then_some(())
    }
}

fn block_site(block_size: usize, limits: &XattrLimits) -> Site {
    let reserve = if limits.ea_inode {
        (block_size / 8).min(1024)
    } else {
        0
    };
    Site::Block { reserve }
}

fn copied(entry: &XattrEntry<'_>, offset: u16) -> Entry {
    Entry {
        index: entry.index,
        name: entry.name.to_vec(),
        value: match entry.value {
            Value::Bytes(bytes) => Stored::Bytes(bytes.to_vec()),
            Value::Inode { inode, len } => Stored::Inode { inode, len },
        },
        hash: entry.hash,
        height: i64::from(offset),
    }
}

fn view(entry: &Entry) -> XattrEntry<'_> {
    XattrEntry {
        index: entry.index,
        name: &entry.name,
        value: match &entry.value {
            Stored::Bytes(bytes) => Value::Bytes(bytes),
            Stored::Inode { inode, len } => Value::Inode {
                inode: *inode,
                len: *len,
            },
        },
        hash: entry.hash,
    }
}

/// Values longer than this go into an inode of their own at once, if the feature `ea_inode` is
/// on: longer than a block holds besides the shortest entry.
#[must_use]
pub fn least_large_value(block_size: usize) -> usize {
    let taken = entry_len(3)
        .saturating_add(BLOCK_HEADER)
        .saturating_add(END);
    block_size.saturating_sub(taken)
}
