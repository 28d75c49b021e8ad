//! Changing the extended attributes of an inode: in its record, in its attribute block (which is
//! copied first if others share it), in inodes of their own.
//!
//! An [`XattrChange`] is worked out first, on copies: whether all fits is known before anything is
//! changed. Then it says what it costs, and is applied in one transaction. Placement is Linux's:
//! the record first, then the block, then an inode of its own if the feature `ea_inode` is on.

use std::collections::BTreeMap;

use pagefence_ext4_format::features::Incompat;
use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord, RawInode, RawInodeExtra};
use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::xattr::{
    self, NewValue, Value, XattrEntry, XattrSet, ea_inode_hash, least_large_value, name,
};
use pagefence_ext4_format::{BlockNo, Corruption, InodeNo};
use pagefence_vfs::{Error, Result};

use crate::alloc::{BlockOwner, NewNumber, Reach};
use crate::change::ea_inode;
use crate::change::release_xattrs::{free_attributes, give_up_share};
use crate::change::remove_blocks::Progress;
use crate::change::transaction::Transaction;
use crate::clock;
use crate::error::At;
use crate::instance::Instance;
use crate::xattr::VALUE_MAX;

/// Longest name behind its prefix, in bytes.
const NAME_MAX: usize = 255;

/// Credits that a release of a value must leave, so that it does not ask to be cut in two.
const SLACK: u32 = 40;

/// What a change needs of a transaction at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Blocks that it changes: the inode's own, bitmaps, descriptors and the superblock among
    /// them.
    pub(crate) credits: u32,
    /// Blocks that it takes.
    pub(crate) blocks: u32,
}

impl Cost {
    /// Of a change of the inode's record alone.
    pub(crate) fn of_inode() -> Self {
        Self {
            credits: 1,
            blocks: 0,
        }
    }
}

/// The attributes of an inode in both places.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Places {
    /// In the record, if it has room for any.
    body: Option<XattrSet>,
    /// In the block, if there is one.
    block: Option<XattrSet>,
}

/// A change of an inode's attributes, worked out and not yet made.
///
/// Lifecycle: [`Self::of`] under the inode lock, which is held until [`Self::apply`] is done;
/// [`Self::set`] and [`Self::remove`]; [`Self::cost`]; then, in a transaction, [`Self::take_inodes`]
/// and [`Self::apply`].
#[derive(Debug)]
pub(crate) struct XattrChange<'a> {
    instance: &'a Instance,
    before: Places,
    after: Places,
    /// The attribute block, if there is one.
    block: Option<BlockNo>,
    /// Whether others used it, too, when the change was begun: they may have gone since, and no
    /// others come.
    is_shared: bool,
    /// Values that get inodes of their own, by the numbers that stand for those meanwhile.
    large: Vec<(InodeNo, Vec<u8>)>,
    /// Those inodes, once they are taken.
    taken: Vec<NewNumber>,
    /// `i_extra_isize` as it becomes, if it changes.
    extra_isize: Option<u16>,
}

impl Places {
    fn entries(&self) -> impl Iterator<Item = XattrEntry<'_>> {
        let places = [&self.body, &self.block];
        places.into_iter().flatten().flat_map(XattrSet::entries)
    }

    /// Sectors that Linux counts for what the attributes take outside the record.
    fn sectors(&self, superblock: &Superblock) -> u64 {
        let block = self.block.as_ref().map_or(0, |_| superblock.block_size());
        let cluster = u64::from(superblock.cluster_size());
        let values = self.entries().map(|entry| match entry.value {
            Value::Bytes(_) => 0,
            Value::Inode { len, .. } => u64::from(len).next_multiple_of(cluster),
        });
        (u64::from(block) + values.sum::<u64>()) / 512
    }

    /// How often each inode with a value is named.
    fn count_users(place: Option<&XattrSet>, sign: i64, users: &mut BTreeMap<InodeNo, i64>) {
        for entry in place.into_iter().flat_map(XattrSet::entries) {
            if let Value::Inode { inode, .. } = entry.value {
                *users.entry(inode).or_default() += sign;
            }
        }
    }
}

impl<'a> XattrChange<'a> {
    /// No change yet of the attributes of `record`. A record without extra fields that has room
    /// for them has been given them ([`InodeRecord::ensure_extra`]).
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn of(instance: &'a Instance, record: &InodeRecord) -> Result<Self> {
        let limits = instance.xattr_limits();
        let (inode, log) = (Some(record.ino()), &instance.damage);
        let body = match record.xattr_region() {
            Some(region) => XattrSet::of_inode(region, &limits).at(log, inode, None)?,
            None => None,
        };
        let (block, set, users) = match instance.xattr_block(record)? {
            Some((block, buffer)) => {
                let set = XattrSet::of_block(&buffer, &limits).at(log, inode, Some(block))?;
                let users = xattr::refcount(&buffer).at(log, inode, Some(block))?;
                if users == 0 {
                    let what = "an attribute block that says nobody uses it";
                    return Err(instance.damaged(record.ino(), Some(block), what));
                }
                (Some(block), Some(set), users)
            }
            None => (None, None, 0),
        };
        if ![&body, &set].into_iter().flatten().all(XattrSet::is_sound) {
            return Err(instance.damaged(record.ino(), block, "values of attributes overlap"));
        }
        let before = Places { body, block: set };
        Ok(Self {
            instance,
            after: before.clone(),
            before,
            block,
            is_shared: users > 1,
            large: Vec::new(),
            taken: Vec::new(),
            extra_isize: None,
        })
    }

    /// An attribute as it is after the change. A value that is new may be said to be in an inode
    /// that is not there yet.
    pub(crate) fn find(&self, index: u8, name: &[u8]) -> Option<XattrEntry<'_>> {
        let places = [&self.after.body, &self.after.block];
        let mut places = places.into_iter().flatten();
        places.find_map(|place| place.find(index, name))
    }

    /// Sets an attribute, which may be there or not.
    ///
    /// # Errors
    /// `TooLarge` for more than 64 KiB; `NameTooLong`; `NoSpace` if it fits nowhere;
    /// `InvalidArgument` for NUL in the name; `Unsupported`, `Corrupt`, `Io` if the old value can't
    /// be given up. Nothing changes then.
    pub(crate) fn set(&mut self, index: u8, name: &[u8], value: &[u8]) -> Result<()> {
        if value.len() > VALUE_MAX {
            return Err(Error::TooLarge);
        }
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        if name.contains(&0) {
            return Err(Error::InvalidArgument);
        }
        self.check_old(index, name)?;
        if let Some(Value::Bytes(old)) = self.find(index, name).map(|entry| entry.value)
            && old == value
        {
            return Ok(());
        }
        let superblock = &self.instance.superblock;
        let may_be_large = superblock.has_incompat(Incompat::EA_INODE) && !value.is_empty();
        let block_size = superblock.block_size() as usize;
        let is_large = may_be_large && value.len() > least_large_value(block_size);
        if !is_large && self.place(index, name, NewValue::Bytes(value)) {
            return Ok(());
        }
        let inode = InodeNo(u32::MAX - self.large.len() as u32);
        let stand_in = NewValue::Inode {
            inode,
            len: value.len() as u32,
            hash: ea_inode_hash(value, self.instance.seed),
        };
        if !may_be_large || !self.place(index, name, stand_in) {
            return Err(Error::NoSpace);
        }
        self.large.push((inode, value.to_vec()));
        Ok(())
    }

    /// Takes an attribute out; false if it is not there.
    ///
    /// # Errors
    /// `Unsupported`, `Corrupt`, `Io` if the value can't be given up.
    pub(crate) fn remove(&mut self, index: u8, name: &[u8]) -> Result<bool> {
        self.check_old(index, name)?;
        let places = [&mut self.after.body, &mut self.after.block];
        let mut removed = false;
        for place in places.into_iter().flatten() {
            removed |= place.remove(index, name);
        }
        self.drop_empty_block();
        Ok(removed)
    }

    /// Makes sure that the value that an attribute has now can be given up.
    fn check_old(&self, index: u8, name: &[u8]) -> Result<()> {
        let Some(Value::Inode { inode, len }) = self.find(index, name).map(|entry| entry.value)
        else {
            return Ok(());
        };
        if self.large.iter().any(|(stand_in, _)| *stand_in == inode) {
            return Ok(());
        }
        if len as usize > VALUE_MAX {
            // The format has room for it; no interface carries it, Linux's neither.
            return Err(Error::Unsupported("an attribute of more than 64 KiB"));
        }
        ea_inode::check(self.instance, inode)
    }

    /// Puts an attribute where it fits, and takes it away where it was; false if it fits nowhere.
    fn place(&mut self, index: u8, name: &[u8], value: NewValue<'_>) -> bool {
        if let Some(body) = &mut self.after.body
            && body.set(index, name, value).is_ok()
        {
            if let Some(block) = &mut self.after.block {
                block.remove(index, name);
            }
            self.drop_empty_block();
            return true;
        }
        let mut block = self.block_or_new();
        let fits = block.set(index, name, value).is_ok();
        if fits {
            self.after.block = Some(block);
            if let Some(body) = &mut self.after.body {
                body.remove(index, name);
            }
        }
        fits
    }

    fn block_or_new(&self) -> XattrSet {
        self.after.block.clone().unwrap_or_else(|| {
            let block_size = self.instance.superblock.block_size() as usize;
            XattrSet::new_block(block_size, &self.instance.xattr_limits())
        })
    }

    fn drop_empty_block(&mut self) {
        if self.after.block.as_ref().is_some_and(XattrSet::is_empty) {
            self.after.block = None;
        }
    }

    /// Has the record given all extra fields known here, for which attributes move to the block if
    /// they must. What a file or directory keeps inline stays.
    ///
    /// # Errors
    /// `Unsupported` if the record has no room for the fields at all; `NoSpace` if attributes
    /// would have to go and the block is full.
    pub(crate) fn grow_extra(&mut self, record: &InodeRecord) -> Result<()> {
        let known = size_of::<RawInodeExtra>();
        let superblock = &self.instance.superblock;
        let room = superblock
            .inode_size()
            .saturating_sub(size_of::<RawInode>());
        if record.extra_isize() >= known {
            return Ok(());
        }
        if room < known {
            return Err(Error::Unsupported(
                "a project number in an inode of that size",
            ));
        }
        let wanted = usize::from(superblock.raw().s_want_extra_isize.get());
        let fits = wanted.is_multiple_of(4) && wanted <= room;
        let extra = if fits { wanted.max(known) } else { known };
        if let Some(mut body) = self.after.body.take() {
            let mut block = self.block_or_new();
            while !body.resize(room - extra) {
                let movable: Vec<_> = body
                    .entries()
                    .filter(|entry| entry.index != name::SYSTEM)
                    .map(|entry| (entry.index, entry.name.to_vec()))
                    .collect();
                let moved = |(index, name): &(u8, Vec<u8>)| body.move_to(&mut block, *index, name);
                if !movable.iter().any(moved) {
                    return Err(Error::NoSpace);
                }
            }
            self.after.body = Some(body);
            self.after.block = Some(block);
            self.drop_empty_block();
        }
        self.extra_isize = u16::try_from(extra).ok();
        Ok(())
    }

    /// Whether the attributes stay as they are, and where they are.
    pub(crate) fn is_nothing(&self) -> bool {
        self.before == self.after && self.extra_isize.is_none()
    }

    /// What [`Self::apply`] needs at most, the inode's own block included. The last check before
    /// the transaction.
    ///
    /// # Errors
    /// `Corrupt` if a value that gets another user can't have one; `Io`.
    pub(crate) fn cost(&self) -> Result<Cost> {
        let superblock = &self.instance.superblock;
        // Bitmaps and descriptors that taking and freeing so many blocks or inodes changes.
        let groups = |count: u64| {
            let groups = count.min(superblock.group_count().into());
            groups + count.min(superblock.descriptor_blocks().into())
        };
        let (mut credits, mut blocks) = (1_u64, 0_u64);
        let has_new_block = self.after.block.is_some() && self.before.block != self.after.block;
        if self.before.block != self.after.block {
            // The old one, the new one, the superblock.
            credits += 3 + groups(2);
        }
        blocks += u64::from(has_new_block);
        for (_, value) in self.large.iter().filter(|(inode, _)| self.is_used(*inode)) {
            let (data, map) = ea_inode::blocks_of(superblock, value.len() as u64);
            blocks += data + map;
            credits += 2 + data + map + groups(data + map) + groups(1);
        }
        if !self.is_nothing() {
            let mut met = Vec::new();
            for entry in self.before.entries() {
                let Value::Inode { inode, len } = entry.value else {
                    continue;
                };
                if met.contains(&inode) {
                    continue;
                }
                met.push(inode);
                if self.is_shared && self.before.block != self.after.block {
                    ea_inode::check(self.instance, inode)?;
                }
                // Its record; and all of it, if it may go.
                credits += 1;
                let stays = self.find(entry.index, entry.name);
                if stays.is_none_or(|stays| stays.value != entry.value) {
                    let (data, map) = ea_inode::blocks_of(superblock, len.into());
                    credits += 2 + map + groups(data + map) + groups(1) + u64::from(SLACK);
                }
            }
        }
        let most = |count| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(Cost {
            credits: most(credits),
            blocks: most(blocks),
        })
    }

    fn is_used(&self, stand_in: InodeNo) -> bool {
        self.after
            .entries()
            .any(|entry| matches!(entry.value, Value::Inode { inode, .. } if inode == stand_in))
    }

    /// Takes the inodes that values need. Done first in the transaction: the last step that finds
    /// no space.
    ///
    /// # Errors
    /// `NoSpace` if there are not enough; `Io`. What was taken was given back then, and the
    /// transaction, if that has changed nothing else, is to be ended.
    pub(crate) fn take_inodes(
        &mut self,
        transaction: &mut Transaction<'_>,
        owner: InodeNo,
    ) -> Result<()> {
        let mut large = std::mem::take(&mut self.large);
        large.retain(|(stand_in, _)| self.is_used(*stand_in));
        for _ in &large {
            match ea_inode::take(transaction, owner) {
                Ok(new) => self.taken.push(new),
                Err(error) => {
                    for new in self.taken.drain(..) {
                        ea_inode::give_back(transaction, new)?;
                    }
                    return Err(error);
                }
            }
        }
        self.large = large;
        Ok(())
    }

    /// Makes the change. `record` is the inode's, with the attributes that the change was worked
    /// out for; it changes along, and the caller writes it. The caller holds the block map's lock
    /// for the block count, unless nobody else knows the inode.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; the transaction must then be dropped.
    pub(crate) fn apply(
        mut self,
        transaction: &mut Transaction<'_>,
        record: &mut InodeRecord,
    ) -> Result<()> {
        if self.is_nothing() {
            return Ok(());
        }
        let (instance, inode) = (self.instance, record.ino());
        let wrong = |error: Result<(), Corruption>| error.at(&instance.damage, Some(inode), None);
        let superblock = &instance.superblock;
        let made = self.make_inodes(transaction, record)?;
        let is_shared = self.apply_block(transaction, record)?;
        if let Some(extra_isize) = self.extra_isize {
            *record = with_extra(record, superblock, extra_isize).at(
                &instance.damage,
                Some(inode),
                None,
            )?;
        }
        if let (Some(body), Some(region)) = (&self.after.body, record.xattr_region_mut()) {
            wrong(body.write_to(region))?;
        }
        let mut users = BTreeMap::new();
        Places::count_users(self.after.body.as_ref(), 1, &mut users);
        Places::count_users(self.after.block.as_ref(), 1, &mut users);
        Places::count_users(self.before.body.as_ref(), -1, &mut users);
        if !is_shared {
            Places::count_users(self.before.block.as_ref(), -1, &mut users);
        }
        for (value, more) in users {
            if made.contains(&value) {
                continue;
            }
            if let Some(more) = u64::try_from(more).ok().filter(|more| *more > 0) {
                ea_inode::add_users(transaction, value, more)?;
            }
            for _ in more..0 {
                let deleted_at = clock::seconds();
                if ea_inode::release(transaction, value, deleted_at)? == Progress::More {
                    let what = "a value takes more blocks than its length says";
                    return Err(instance.damaged(value, None, what));
                }
            }
        }
        let sectors = record
            .sectors()
            .saturating_sub(self.before.sectors(superblock))
            .saturating_add(self.after.sectors(superblock));
        wrong(record.set_sectors(sectors))
    }

    /// Makes the inodes of the values that get their own.
    fn make_inodes(
        &mut self,
        transaction: &mut Transaction<'_>,
        record: &InodeRecord,
    ) -> Result<Vec<InodeNo>> {
        debug_assert_eq!(self.large.len(), self.taken.len(), "inodes come first");
        let mut made = Vec::new();
        let values = std::mem::take(&mut self.large);
        for ((stand_in, value), new) in values.into_iter().zip(self.taken.drain(..)) {
            ea_inode::fill(transaction, new, record, &value)?;
            let places = [&mut self.after.body, &mut self.after.block];
            for place in places.into_iter().flatten() {
                place.rename_inode(stand_in, new.number);
            }
            made.push(new.number);
        }
        Ok(made)
    }

    /// Writes the attribute block; says whether others go on using the old one.
    fn apply_block(
        &self,
        transaction: &mut Transaction<'_>,
        record: &mut InodeRecord,
    ) -> Result<bool> {
        if self.before.block == self.after.block {
            return Ok(false);
        }
        let (instance, inode) = (self.instance, record.ino());
        let mut is_shared = false;
        if let Some(old) = self.block {
            let users = xattr::refcount(&instance.read_owned(BlockOwner::Attributes(inode), old)?);
            let users = users.at(&instance.damage, Some(inode), Some(old))?;
            is_shared = users > 1 && give_up_share(transaction, inode, old)?;
            if !is_shared {
                if let Some(after) = &self.after.block {
                    let bytes = self.encoded(after, inode, old)?;
                    transaction.change(old, |place| {
                        place.copy_from_slice(&bytes);
                        Ok(())
                    })?;
                    return Ok(false);
                }
                free_attributes(transaction, inode, old)?;
            }
            record.set_file_acl(None);
        }
        if let Some(after) = &self.after.block {
            let goal = instance.inode_block(inode)?.0;
            let owner = BlockOwner::Attributes(inode);
            let block = transaction.allocate(owner, goal, Reach::Everywhere)?;
            transaction.set(block, &self.encoded(after, inode, block)?);
            record.set_file_acl(Some(block));
        }
        Ok(is_shared)
    }

    /// The attribute block as it is written.
    fn encoded(&self, set: &XattrSet, inode: InodeNo, block: BlockNo) -> Result<Vec<u8>> {
        let instance = self.instance;
        let mut bytes = vec![0; instance.superblock.block_size() as usize];
        let mut written = set.write_to(&mut bytes);
        if written.is_ok() && instance.checksums {
            written = xattr::update_checksum(&mut bytes, block, instance.seed);
        }
        written.at(&instance.damage, Some(inode), Some(block))?;
        Ok(bytes)
    }
}

/// The record with that many bytes of extra fields, the new ones and the room of attributes zero.
fn with_extra(
    record: &InodeRecord,
    superblock: &Superblock,
    extra_isize: u16,
) -> Result<InodeRecord, Corruption> {
    let base = size_of::<RawInode>();
    let mut bytes = vec![0; superblock.inode_size()];
    record.write_to(&mut bytes)?;
    if let Some(field) = bytes.get_mut(base..base + 2) {
        field.copy_from_slice(&extra_isize.to_le_bytes());
    }
    if let Some(rest) = bytes.get_mut(base + record.extra_isize().max(2)..) {
        rest.fill(0);
    }
    InodeRecord::read(&bytes, record.ino(), superblock)
}

/// What [`set_initial`] needs at most for a new inode of that kind, the inode's own block
/// included.
///
/// # Errors
/// `NoSpace` if the attributes fit nowhere, so that the inode must not be made.
pub(crate) fn cost_of_initial(
    instance: &Instance,
    kind: FileKind,
    attributes: &[(u8, &[u8], &[u8])],
) -> Result<Cost> {
    if attributes.is_empty() {
        return Ok(Cost::of_inode());
    }
    let record = InodeRecord::create(InodeNo(0), &instance.superblock, kind, 0, 0);
    let mut change = XattrChange::of(instance, &record)?;
    for (index, name, value) in attributes {
        change.set(*index, name, value)?;
    }
    change.cost()
}

/// Gives a new inode, which nobody knows yet, its first attributes: prefix, rest of the name, value
/// of each. `record` changes along; the caller writes it.
///
/// # Errors
/// `NoSpace` if they do not fit ([`cost_of_initial`] tells beforehand), or one needs an inode of
/// its own and there is none: this changed nothing then. `Corrupt`, `Io`.
pub(crate) fn set_initial(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    attributes: &[(u8, &[u8], &[u8])],
) -> Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    let mut change = XattrChange::of(transaction.instance, record)?;
    for (index, name, value) in attributes {
        change.set(*index, name, value)?;
    }
    change.take_inodes(transaction, record.ino())?;
    change.apply(transaction, record)
}
