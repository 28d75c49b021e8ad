//! Inodes: taken near those they belong to, and free again.

use pagefence_ext4_format::group_desc::GroupFlags;
use pagefence_ext4_format::{GroupNo, InodeNo, bitmap};
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_vfs::{Error, Result};

#[cfg(test)]
use crate::alloc::group_state::Bits;
use crate::alloc::group_state::GroupGuard;
use crate::alloc::{Allocator, Sink};
use crate::error::At;
use crate::instance::Instance;

/// Between one generation and the next: odd, so that all 2^32 of them come.
const GENERATION_STEP: u32 = 0x9E37_79B1;

/// What a new inode is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewInode<'a> {
    /// The directory it is made in.
    pub(crate) parent: InodeNo,
    /// It will be a directory.
    pub(crate) is_directory: bool,
    /// Directories below the parent have little to do with each other: it is the root, or carries
    /// the flag that says so (`EXT4_TOPDIR_FL`).
    pub(crate) is_top_level: bool,
    /// Its name there.
    pub(crate) name: &'a [u8],
}

/// An inode that was free until now. Its record in the table may hold anything, even what fails
/// every check: it is to be written as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewNumber {
    /// Its number.
    pub(crate) number: InodeNo,
    /// Tells it from earlier inodes of that number.
    pub(crate) generation: u32,
}

impl Allocator {
    /// Takes a free inode.
    ///
    /// Takes locks of groups, one at a time, and reads bitmaps with none held. A transaction needs
    /// credits for three blocks: the bitmap, the descriptor's block, the superblock.
    ///
    /// # Errors
    /// `NoSpace` if there is none ([`Self::pending_tid`] says whether a commit may help); `Io` if
    /// there is none but where a bitmap can't be read. Nothing was changed then.
    pub(crate) fn new_inode(
        &self,
        instance: &Instance,
        tx: &mut impl Sink,
        request: NewInode<'_>,
    ) -> Result<NewNumber> {
        let found = if request.is_directory {
            let hash = instance.seed.checksum(request.name);
            let groups = self.groups_of_directory(request.parent, request.is_top_level, hash);
            self.take_inode(instance, groups, true)?
        } else {
            self.take_inode(instance, self.groups_of_file(request.parent), false)?
        };
        let (group, number) = found;
        let bitmap = self.lock(group).desc.inode_bitmap();
        self.defer(tx, group, bitmap);
        Ok(NewNumber {
            number,
            generation: self
                .generation
                .fetch_add(GENERATION_STEP, Ordering::Relaxed),
        })
    }

    /// Frees an inode, whose record was or will be written in the same transaction. It can be had
    /// again when that is durable.
    ///
    /// Takes the group's lock. A transaction needs credits for three blocks: the bitmap, the
    /// descriptor's block, the superblock.
    ///
    /// # Errors
    /// `Corrupt`, and then nothing was freed, if there is no such inode, it is none of a file, or
    /// it is free; or the bitmap is damaged; `Io`.
    pub(crate) fn free_inode(
        &self,
        instance: &Instance,
        tx: &mut impl Sink,
        inode: InodeNo,
        was_directory: bool,
    ) -> Result<()> {
        let (mut guard, group, index) = self.lock_inode(instance, inode)?;
        if let Some(inodes) = guard.inodes_mut() {
            bitmap::clear_range(&mut inodes.bits, index..index + 1);
            inodes.is_dirty = true;
            inodes.pending += 1;
        }
        let desc = &mut guard.desc;
        desc.set_free_inodes(desc.free_inodes().saturating_add(1));
        if was_directory {
            desc.set_used_dirs(desc.used_dirs().saturating_sub(1));
        }
        let block = desc.inode_bitmap();
        self.mark_dirty(&mut guard, group);
        drop(guard);
        self.defer(tx, group, block);
        self.with_pending(|pending| pending.add_inode(tx.tid(), inode));
        Ok(())
    }

    /// Makes sure that [`Self::free_inode`] can free an inode, whose owner asks.
    ///
    /// Takes the group's lock.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, as there.
    pub(crate) fn check_inode(&self, instance: &Instance, inode: InodeNo) -> Result<()> {
        self.lock_inode(instance, inode).map(drop)
    }

    /// Locks the group of an inode that can be freed, and finds its bit.
    fn lock_inode(
        &self,
        instance: &Instance,
        inode: InodeNo,
    ) -> Result<(GroupGuard<'_>, GroupNo, u32)> {
        let place = self
            .superblock
            .locate_inode(inode)
            .at(&instance.damage, Some(inode), None)?;
        if inode < self.superblock.first_inode() {
            return Err(instance.damaged(inode, None, "it is to be freed, and is reserved"));
        }
        let mut guard = self.lock_with_inodes(instance, place.group)?;
        let what = match guard.inodes_mut() {
            Some(inodes) if bitmap::test(&inodes.bits, place.index) => {
                return Ok((guard, place.group, place.index));
            }
            Some(_) => "it is to be freed, and is free",
            None => "the bitmap of its group is damaged",
        };
        drop(guard);
        Err(instance.damaged(inode, None, what))
    }

    /// Whether an inode is in use in the running transaction.
    ///
    /// # Errors
    /// `Corrupt` if there is no such inode, or the bitmap is damaged; `Io`.
    #[cfg(test)]
    pub(crate) fn is_inode_in_use(&self, instance: &Instance, inode: InodeNo) -> Result<bool> {
        let place = self
            .superblock
            .locate_inode(inode)
            .at(&instance.damage, Some(inode), None)?;
        let guard = self.lock_with_inodes(instance, place.group)?;
        match &guard.inodes {
            Bits::Loaded(inodes) => Ok(bitmap::test(&inodes.bits, place.index)),
            Bits::Absent | Bits::Damaged => {
                drop(guard);
                Err(instance.damaged(inode, None, "the bitmap of its group is damaged"))
            }
        }
    }

    /// Takes an inode in the first of `groups` that has one.
    fn take_inode(
        &self,
        instance: &Instance,
        groups: impl Iterator<Item = GroupNo>,
        is_directory: bool,
    ) -> Result<(GroupNo, InodeNo)> {
        let mut failure = None;
        for number in groups {
            if self.summary(number).inodes() == 0 {
                continue;
            }
            let mut guard = match self.lock_with_inodes(instance, number) {
                Ok(guard) => guard,
                Err(error) => {
                    failure = Some(error);
                    continue;
                }
            };
            let found = self
                .take_inode_of(&mut guard, is_directory)
                .and_then(|index| self.superblock.inode_of_group(number, index));
            if let Some(inode) = found {
                self.mark_dirty(&mut guard, number);
                return Ok((number, inode));
            }
        }
        Err(failure.unwrap_or(Error::NoSpace))
    }

    /// Takes the first inode of a group that was not freed a short time ago, or else the first.
    /// All before it were in use once: the records of those never used stay behind it.
    fn take_inode_of(&self, guard: &mut GroupGuard<'_>, is_directory: bool) -> Option<u32> {
        let per_group = self.superblock.inodes_per_group();
        let inodes = guard.inodes_mut()?;
        let index = bitmap::next_zero(&inodes.avoided, 0..per_group)
            .or_else(|| bitmap::next_zero(&inodes.taken, 0..per_group))?;
        for bits in [&mut inodes.bits, &mut inodes.taken, &mut inodes.avoided] {
            bitmap::set_range(bits, index..index + 1);
        }
        inodes.available -= 1;
        inodes.is_dirty = true;
        let desc = &mut guard.desc;
        desc.set_free_inodes(desc.free_inodes().saturating_sub(1));
        if is_directory {
            desc.set_used_dirs(desc.used_dirs().saturating_add(1));
        }
        if self.superblock.has_group_desc_csum() {
            let flags = desc.flags(&self.superblock);
            desc.set_flags(flags.difference(GroupFlags::INODE_UNINIT));
            let unused = per_group - (index + 1);
            desc.set_itable_unused(desc.itable_unused().min(unused));
        }
        Some(index)
    }

    /// The transaction that freed an inode is durable.
    pub(super) fn release_inode(&self, inode: InodeNo) {
        let Ok(place) = self.superblock.locate_inode(inode) else {
            return;
        };
        if let Some(inodes) = self.lock(place.group).inodes_mut() {
            bitmap::clear_range(&mut inodes.taken, place.index..place.index + 1);
            inodes.available += 1;
            inodes.pending -= 1;
        }
    }

    /// It is some time ago that an inode was freed.
    pub(super) fn forget_recent_inode(&self, inode: InodeNo) {
        let Ok(place) = self.superblock.locate_inode(inode) else {
            return;
        };
        if let Some(inodes) = self.lock(place.group).inodes_mut()
            && !bitmap::test(&inodes.taken, place.index)
        {
            bitmap::clear_range(&mut inodes.avoided, place.index..place.index + 1);
        }
    }
}
