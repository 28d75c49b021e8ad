//! Attributes that are set. Rules: Linux's `notify_change` and `chown(2)`, and ext4's for flags
//! and projects.

mod flags;

pub(crate) use flags::XFLAGS;

use pagefence_ext4_format::inode::{
    Inode as InodeRecord, InodeFlags, MAX_SECONDS, MAX_SECONDS_SHORT, MIN_SECONDS,
    Timestamp as DiskTime,
};
use pagefence_ext4_format::xattr::name::{POSIX_ACL_ACCESS, SECURITY};
use pagefence_lock_order::levels::{self, Level};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::{After, Held};
use pagefence_vfs::{
    Attr, Credentials, Error, FileKind, InodeId, Result, SetAttr, SetTime, Timestamp,
    without_privileges,
};

use crate::acl::chmod;
use crate::change::set_xattr::{Cost, XattrChange};
use crate::clock;
use crate::disk_inode::DiskInode;
use crate::filesystem::FileSystem;
use crate::inode::Inode;
use crate::live::Need;

const SET_GID: u16 = 0o2000;
/// The id that stands for none.
const NO_ID: u32 = u32::MAX;
/// The rest of the name of the attribute that gives a program capabilities.
const CAPABILITY: &[u8] = b"capability";

/// Flags that can be set. The others may change with the file's data at any time.
pub(crate) const SETTABLE: InodeFlags = InodeFlags::USER_MODIFIABLE
    .difference(InodeFlags::EXTENTS)
    .difference(InodeFlags::EOFBLOCKS);

/// Fields of an inode's record as they become; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// The low twelve bits of the mode.
    pub(crate) permissions: Option<u16>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) accessed: Option<DiskTime>,
    pub(crate) modified: Option<DiskTime>,
    pub(crate) changed: Option<DiskTime>,
    /// Those of [`SETTABLE`].
    pub(crate) flags: Option<InodeFlags>,
    pub(crate) project: Option<u32>,
}

impl Attributes {
    fn apply_to(&self, record: &mut InodeRecord) {
        if let Some(permissions) = self.permissions {
            record.set_permissions(permissions);
        }
        if let Some(uid) = self.uid {
            record.set_uid(uid);
        }
        if let Some(gid) = self.gid {
            record.set_gid(gid);
        }
        if let Some(time) = self.accessed {
            record.set_atime(clamped(record, time));
        }
        if let Some(time) = self.modified {
            record.set_mtime(clamped(record, time));
        }
        if let Some(time) = self.changed {
            record.set_ctime(clamped(record, time));
        }
        if let Some(flags) = self.flags {
            record.set_flags(record.flags().difference(SETTABLE) | (flags & SETTABLE));
        }
        if let Some(project) = self.project {
            record.set_project(project);
        }
    }
}

/// A time as the record can hold it. At the ends of its range Linux drops the nanoseconds.
fn clamped(record: &InodeRecord, time: DiskTime) -> DiskTime {
    let latest = if record.extra_isize() > 0 {
        MAX_SECONDS
    } else {
        MAX_SECONDS_SHORT
    };
    if (MIN_SECONDS..latest).contains(&time.seconds) {
        return time;
    }
    DiskTime {
        seconds: time.seconds.clamp(MIN_SECONDS, latest),
        nanoseconds: 0,
    }
}

impl FileSystem {
    /// Sets attributes. Takes the inode lock, and for a size what [`FileSystem::set_size`] takes;
    /// then a transaction. Whether `who` may do so by mode and owner is the caller's matter.
    pub(crate) fn change_attr(
        &self,
        id: InodeId,
        change: &SetAttr,
        who: &Credentials,
    ) -> Result<Attr> {
        let inode = self.changeable_inode(id)?;
        let mut held = Held::at_entry();
        let (_exclusive, mut held) = inode.lock.write(&mut held);
        let disk = inode.disk();
        check(&disk, change)?;
        let size = change.size.filter(|size| *size != inode.core.size());
        let attributes = attributes(&disk, change, size.is_some(), who)?;
        let keeps_capability = disk.kind == FileKind::Directory
            || (change.uid.is_none() && change.gid.is_none() && size.is_none());
        // The access list changes with the mode, if it is there.
        let mode = change.permissions.and(attributes.permissions);
        let has_xattrs = mode.is_some() || !keeps_capability;
        let xattrs = |disk: &DiskInode| {
            has_xattrs
                .then(|| self.xattrs_of_attributes(disk, mode, keeps_capability))
                .transpose()
        };
        if let Some(size) = change.size {
            // What can't be done to them shows before the size changes.
            if let Some(xattrs) = xattrs(&disk)? {
                xattrs.cost()?;
            }
            self.set_size(&mut held, &inode, size)?;
        }
        // What lies in the inode may have moved.
        let xattrs = xattrs(&inode.disk())?;
        self.apply_attributes(&mut held, &inode, &attributes, xattrs, who.uid == 0)?;
        Ok(inode.attr(&self.instance))
    }

    /// An inode of the users'; those that hold values of attributes are nobody's files.
    ///
    /// # Errors
    /// `Stale`, `Corrupt`, `Io`; `ReadOnly` if nothing can be changed.
    pub(crate) fn changeable_inode(&self, id: InodeId) -> Result<Arc<Inode>> {
        self.instance.live()?;
        let inode = self.inode(id)?;
        if inode.disk().is_ea_inode() {
            return Err(Error::Stale);
        }
        Ok(inode)
    }

    /// What becomes of the extended attributes when the mode becomes `mode`, if it is one, and when
    /// capabilities go.
    fn xattrs_of_attributes(
        &self,
        disk: &DiskInode,
        mode: Option<u16>,
        keeps_capability: bool,
    ) -> Result<XattrChange<'_>> {
        let mut xattrs = self.xattr_change(disk)?;
        if !keeps_capability {
            xattrs.remove(SECURITY, CAPABILITY)?;
        }
        if let Some(mode) = mode
            && let Some(list) = self.instance.access_acl(disk)?
        {
            match chmod(&list, mode) {
                Some(value) => xattrs.set(POSIX_ACL_ACCESS, &[], &value)?,
                None => {
                    xattrs.remove(POSIX_ACL_ACCESS, &[])?;
                }
            }
        }
        Ok(xattrs)
    }

    /// A change of the inode's extended attributes; the caller holds the inode lock.
    fn xattr_change(&self, disk: &DiskInode) -> Result<XattrChange<'_>> {
        let mut record = disk.record.clone();
        record.ensure_extra();
        XattrChange::of(&self.instance, &record)
    }

    /// Changes attributes of both sorts in one transaction. The caller holds the inode lock
    /// exclusively, and worked out `xattrs` under it.
    ///
    /// # Errors
    /// `NoSpace`, and nothing was changed; `Corrupt`, `Io`, `ReadOnly`.
    pub(crate) fn apply_attributes<P: Level>(
        &self,
        held: &mut Held<'_, P>,
        inode: &Inode,
        attributes: &Attributes,
        xattrs: Option<XattrChange<'_>>,
        privileged: bool,
    ) -> Result<()>
    where
        levels::Handle: After<P>,
    {
        let xattrs = xattrs.filter(|xattrs| !xattrs.is_nothing());
        let cost = match &xattrs {
            Some(xattrs) => xattrs.cost()?,
            None => Cost::of_inode(),
        };
        let need = Need {
            credits: cost.credits,
            blocks: cost.blocks,
            privileged,
        };
        let (mut transaction, mut held) = self.instance.begin(held, need)?;
        if inode.disk().record.flags().contains(InodeFlags::SYNC) {
            transaction.sync();
        }
        // For the block count, and flags that lie beside those of the block map.
        let (_map, _held) = inode.core.block_map.write(&mut held);
        let before = inode.disk();
        let mut record = before.record.clone();
        record.ensure_extra();
        if let Some(mut xattrs) = xattrs {
            if let Err(error) = xattrs.take_inodes(&mut transaction, inode.core.number) {
                transaction.end();
                return Err(error);
            }
            xattrs.apply(&mut transaction, &mut record)?;
        }
        attributes.apply_to(&mut record);
        inode.core.adopt(&before.record, &record);
        inode.core.write(&mut transaction, false)?;
        transaction.end();
        Ok(())
    }
}

/// Whether an inode can have these attributes changed at all, whoever asks.
fn check(disk: &DiskInode, change: &SetAttr) -> Result<()> {
    let flags = disk.record.flags();
    let times = [change.accessed, change.modified];
    let is_set = |time: &Option<SetTime>| matches!(time, Some(SetTime::To(_)));
    let mut names = [change.permissions.is_some(), change.uid.is_some()]
        .into_iter()
        .chain([change.gid.is_some()]);
    let changes_owner_or_mode = names.any(|named| named);
    // Times that the kernel kept for a file written through it come with the change time: whoever
    // wrote had the file open before it became what it is.
    let brings_times = change.changed.is_some();
    let refused = changes_owner_or_mode || (times.iter().any(is_set) && !brings_times);
    if flags.contains(InodeFlags::IMMUTABLE) && (refused || change.size.is_some() || !brings_times)
    {
        return Err(Error::NotPermitted);
    }
    if flags.contains(InodeFlags::APPEND) && (refused || change.size.is_some()) {
        return Err(Error::NotPermitted);
    }
    if change.size.is_some() {
        match disk.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Error::IsDirectory),
            _ => return Err(Error::InvalidArgument),
        }
    }
    if change.permissions.is_some() && disk.kind == FileKind::Symlink {
        return Err(Error::Unsupported("a mode of a symbolic link"));
    }
    if change.uid == Some(NO_ID) || change.gid == Some(NO_ID) {
        return Err(Error::InvalidArgument);
    }
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

/// The fields as they become. `resized`: the size becomes another.
fn attributes(
    disk: &DiskInode,
    change: &SetAttr,
    resized: bool,
    who: &Credentials,
) -> Result<Attributes> {
    let now = clock::now();
    let at = |time: SetTime| match time {
        SetTime::Now => now,
        SetTime::To(time) => disk_time(time),
    };
    let modified = match change.modified {
        Some(time) => Some(at(time)),
        None => resized.then_some(now),
    };
    Ok(Attributes {
        permissions: permissions(disk, change, resized, who),
        uid: change.uid,
        gid: change.gid,
        accessed: change.accessed.map(at),
        modified,
        changed: Some(change.changed.map_or(now, disk_time)),
        flags: None,
        project: None,
    })
}

fn disk_time(time: Timestamp) -> DiskTime {
    DiskTime {
        seconds: time.seconds,
        nanoseconds: time.nanoseconds,
    }
}

/// The mode as it becomes: as asked for, but for the set-group-id bit of a group that the caller is
/// not in; without set-uid and set-group-id where another owner or size takes them off.
fn permissions(
    disk: &DiskInode,
    change: &SetAttr,
    resized: bool,
    who: &Credentials,
) -> Option<u16> {
    let in_group = |gid: u32| who.uid == 0 || who.gid == gid || who.groups.contains(&gid);
    let (mode, gid) = (disk.record.mode() & 0o7777, disk.record.gid());
    if let Some(permissions) = change.permissions {
        let permissions = permissions & 0o7777;
        return Some(if in_group(change.gid.unwrap_or(gid)) {
            permissions
        } else {
            permissions & !SET_GID
        });
    }
    let chown = (change.uid.is_some() || change.gid.is_some()) && disk.kind != FileKind::Directory;
    let write = resized && who.uid != 0;
    if !chown && !write {
        return None;
    }
    let mut kept = without_privileges(mode);
    if !in_group(gid) {
        kept &= !SET_GID;
    }
    (kept != mode).then_some(kept)
}

#[cfg(all(test, not(shuttle)))]
mod tests;
