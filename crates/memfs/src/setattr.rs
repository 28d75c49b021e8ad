//! Attributes that are set. Rules: Linux's `notify_change` and chown(2).

use pagefence_lock_order::Held;
use pagefence_lock_order::levels;
use pagefence_page_cache::{Backing as _, Evict, Mapping};
use pagefence_vfs::{
    Attr, Credentials, Error, FileKind, InodeId, Result, SetAttr, SetTime, without_privileges,
};

use crate::clock;
use crate::data::{FileData, PAGE_BYTES};
use crate::filesystem::MemFs;
use crate::inode::{Inode, Record};
use crate::xattr::CAPABILITY;

const SET_GROUP_ID: u16 = 0o2000;
/// The id that stands for none.
const NO_ID: u32 = u32::MAX;
/// Where every file ends: the largest offset of the interface.
pub(crate) const SIZE_MAX: u64 = i64::MAX as u64;

impl MemFs {
    /// See [`pagefence_vfs::FileSystem::set_attr`]. Takes the inode lock exclusively, for a size
    /// what a truncate takes below it. Whether `who` may do so by mode and owner is the caller's
    /// matter.
    pub(crate) fn change_attr(
        &self,
        id: InodeId,
        change: &SetAttr,
        who: &Credentials,
    ) -> Result<Attr> {
        let inode = self.core.inodes.get(id)?;
        let mut held = Held::at_entry();
        {
            let (_alone, mut held) = inode.lock.write(&mut held);
            check(&inode, change)?;
            let mut is_resized = false;
            if let Some(size) = change.size {
                let mapping = inode.mapping()?;
                is_resized = mapping.backing().size() != size;
                Self::set_size(&mut held, mapping, size)?;
            }
            apply(&inode, change, is_resized, who);
        }
        self.core.release_memory();
        Ok(inode.attr())
    }

    /// Cuts a file off, or extends it. The caller holds the inode lock exclusively.
    ///
    /// # Errors
    /// `FileTooLarge`.
    pub(crate) fn set_size(
        held: &mut Held<'_, levels::Inode>,
        mapping: &Mapping<FileData>,
        size: u64,
    ) -> Result<()> {
        let data = mapping.backing();
        if size > SIZE_MAX {
            return Err(Error::FileTooLarge);
        }
        if size > data.size() {
            Self::zero_tail(held, mapping)?;
            data.set_size(size);
            return Ok(());
        }
        // Also if the size stays: what was promised behind it goes (Linux: `shmem_setattr`).
        let (mut fence, mut held) = mapping.fence(held, size..u64::MAX);
        let evicted = fence.evict_with(&mut held, Evict::Discard, || data.set_size(size))?;
        FileData::give_back(&evicted, &mut held);
        Ok(())
    }

    /// Makes sure that what lies behind the end in the last page reads as zeros, before the end
    /// moves. The caller holds the inode lock exclusively.
    pub(crate) fn zero_tail(
        held: &mut Held<'_, levels::Inode>,
        mapping: &Mapping<FileData>,
    ) -> Result<()> {
        let size = mapping.backing().size();
        let end = size.next_multiple_of(PAGE_BYTES);
        if size == end {
            return Ok(());
        }
        let (mut fence, mut held) = mapping.fence(held, size..end);
        let _evicted = fence.evict(&mut held, Evict::Discard)?;
        Ok(())
    }
}

/// Whether an inode can have these attributes changed at all, whoever asks.
fn check(inode: &Inode, change: &SetAttr) -> Result<()> {
    if change.size.is_some() {
        inode.mapping()?;
    }
    if change.permissions.is_some() && inode.kind == FileKind::Symlink {
        return Err(Error::Unsupported("a mode of a symbolic link"));
    }
    if change.uid == Some(NO_ID) || change.gid == Some(NO_ID) {
        return Err(Error::InvalidArgument);
    }
    let times = [change.accessed, change.modified];
    let stamps = times.into_iter().flatten().filter_map(|time| match time {
        SetTime::To(time) => Some(time),
        SetTime::Now => None,
    });
    if stamps
        .chain(change.changed)
        .any(|time| time.nanoseconds >= 1_000_000_000)
    {
        return Err(Error::InvalidArgument);
    }
    Ok(())
}

/// Changes the record. The caller holds the inode lock exclusively.
fn apply(inode: &Inode, change: &SetAttr, is_resized: bool, who: &Credentials) {
    let now = clock::now();
    let at = |time: SetTime| match time {
        SetTime::Now => now,
        SetTime::To(time) => time,
    };
    let is_owned_anew = change.uid.is_some() || change.gid.is_some();
    let mut freed = 0;
    {
        let mut record = inode.record.write();
        if let Some(permissions) = permissions(inode, &record, change, is_resized, who) {
            record.permissions = permissions;
        }
        if change.permissions.is_some() {
            // The list follows the mode; one that says no more than that goes.
            let list = record.access_acl.take();
            record.access_acl = list.map(|list| list.with_mode(record.permissions));
        }
        if !inode.is_directory() && (is_owned_anew || is_resized) {
            freed = record.remove_xattr(CAPABILITY);
        }
        record.uid = change.uid.unwrap_or(record.uid);
        record.gid = change.gid.unwrap_or(record.gid);
        if let Some(time) = change.accessed {
            record.accessed = at(time);
        }
        match change.modified {
            Some(time) => record.modified = at(time),
            None if is_resized => record.modified = now,
            None => {}
        }
        record.changed = change.changed.unwrap_or(now);
    }
    inode.discharge(freed);
}

/// The mode as it becomes: as asked for, but for the set-group-id bit of a group that the caller
/// is not in; without set-uid and set-group-id where another owner or size takes them off.
fn permissions(
    inode: &Inode,
    record: &Record,
    change: &SetAttr,
    is_resized: bool,
    who: &Credentials,
) -> Option<u16> {
    let in_group = |gid: u32| who.uid == 0 || who.gid == gid || who.groups.contains(&gid);
    if let Some(permissions) = change.permissions {
        let permissions = permissions & 0o7777;
        return Some(if in_group(change.gid.unwrap_or(record.gid)) {
            permissions
        } else {
            permissions & !SET_GROUP_ID
        });
    }
    let chown = (change.uid.is_some() || change.gid.is_some()) && !inode.is_directory();
    let write = is_resized && who.uid != 0;
    if !chown && !write {
        return None;
    }
    let mut kept = without_privileges(record.permissions);
    if !in_group(record.gid) {
        kept &= !SET_GROUP_ID;
    }
    Some(kept)
}
