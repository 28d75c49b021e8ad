//! Names: inodes made, found, linked, unlinked.
//!
//! A name is looked up first, then everything is locked in the order of the inodes' numbers, then
//! it is made sure that the name still means the same; else it starts over.

use std::collections::BTreeMap;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::Mapping;
use pagefence_posix_acl::Acl;
use pagefence_vfs::{
    Credentials, Entry, Error, FileKind, InodeId, New, NewKind, Result, Timestamp,
};

use crate::clock;
use crate::data::{FileData, PAGE_BYTES};
use crate::directory::Directory;
use crate::filesystem::{MemFs, NAME_MAX};
use crate::inode::{Body, Identity, Inode, Record, lock_all};
use crate::limits::INODE_BYTES;

const SET_GROUP_ID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;
/// Bytes of a symbolic link's target that go with the inode (Linux: `SHORT_SYMLINK_LEN`).
const SHORT_TARGET: u64 = 128;

/// Checks a name that is put in or taken out.
///
/// # Errors
/// `NameTooLong`; `InvalidArgument` for one that no entry can have.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong);
    }
    let is_valid = !name.is_empty() && !name.contains(&b'/') && !name.contains(&0);
    if is_valid {
        Ok(())
    } else {
        Err(Error::InvalidArgument)
    }
}

/// That a directory still is one: whose inode lock the caller holds.
///
/// # Errors
/// `NotFound` if it was removed.
pub(crate) fn check_alive(directory: &Inode) -> Result<()> {
    if directory.is_linked() {
        Ok(())
    } else {
        Err(Error::NotFound)
    }
}

/// One name more for an inode, or one subdirectory more for a directory.
///
/// # Errors
/// `TooManyLinks`.
pub(crate) fn add_link(inode: &Inode) -> Result<()> {
    let mut record = inode.record.write();
    record.links = record.links.checked_add(1).ok_or(Error::TooManyLinks)?;
    Ok(())
}

/// One subdirectory less.
pub(crate) fn remove_subdirectory(directory: &Inode) {
    let mut record = directory.record.write();
    record.links = record.links.saturating_sub(1).max(2);
}

impl MemFs {
    /// The inode of a directory.
    ///
    /// # Errors
    /// `Stale`, `NotDirectory`.
    pub(crate) fn directory(&self, id: InodeId) -> Result<Arc<Inode>> {
        let inode = self.core.inodes.get(id)?;
        inode.directory()?;
        Ok(inode)
    }

    /// What a name means.
    pub(crate) fn find_child(&self, parent: &Inode, name: &[u8]) -> Result<Option<Arc<Inode>>> {
        // While the name is there, so is the inode.
        let found = parent
            .directory()?
            .find_with(name, |named| self.core.inodes.get(InodeId(named.number)));
        found.transpose()
    }

    /// Whether a name means this inode. The caller holds the directory's inode lock exclusively,
    /// so that it stays so.
    pub(crate) fn still_means(parent: &Inode, name: &[u8], child: &Inode) -> Result<bool> {
        let named = parent.directory()?.find(name);
        Ok(named.is_some_and(|named| named.number == child.number))
    }

    pub(crate) fn lookup_entry(&self, parent: InodeId, name: &[u8]) -> Result<Entry> {
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        let directory = self.directory(parent)?;
        // So that a rename is seen done or not begun.
        let mut held = Held::at_entry();
        let (_shared, _held) = directory.lock.read(&mut held);
        let inode = match name {
            b"." => Arc::clone(&directory),
            b".." => self
                .core
                .inodes
                .get(InodeId(directory.directory()?.parent()))?,
            _ => self.find_child(&directory, name)?.ok_or(Error::NotFound)?,
        };
        Ok(Entry { attr: inode.attr() })
    }

    pub(crate) fn create_entry(
        &self,
        parent: InodeId,
        name: &[u8],
        new: &New<'_>,
        who: &Credentials,
    ) -> Result<Entry> {
        if matches!(name, b"." | b"..") {
            return Err(Error::Exists);
        }
        check_name(name)?;
        let directory = self.directory(parent)?;
        let mut held = Held::at_entry();
        let (_alone, _held) = directory.lock.write(&mut held);
        check_alive(&directory)?;
        let entries = directory.directory()?;
        if entries.find(name).is_some() {
            return Err(Error::Exists);
        }
        let now = clock::now();
        let inode = self.make_inode(&directory, new, who, now)?;
        if inode.is_directory() {
            add_link(&directory)?;
        }
        // In the table first: who finds the name finds the inode.
        self.core.inodes.insert(Arc::clone(&inode));
        entries.insert(name, &inode);
        directory.touch(now);
        Ok(Entry { attr: inode.attr() })
    }

    /// An inode that nobody sees yet. The caller holds the directory's inode lock.
    ///
    /// # Errors
    /// `NoSpace`; `InvalidArgument`, `NameTooLong` for a target.
    fn make_inode(
        &self,
        parent: &Inode,
        new: &New<'_>,
        who: &Credentials,
        now: Timestamp,
    ) -> Result<Arc<Inode>> {
        let core = &self.core;
        let (kind, device) = match new.kind {
            NewKind::Regular => (FileKind::Regular, (0, 0)),
            NewKind::Directory => (FileKind::Directory, (0, 0)),
            NewKind::Symlink(target) => {
                check_target(target)?;
                (FileKind::Symlink, (0, 0))
            }
            NewKind::BlockDevice { major, minor } => (FileKind::BlockDevice, (major, minor)),
            NewKind::CharDevice { major, minor } => (FileKind::CharDevice, (major, minor)),
            NewKind::Fifo => (FileKind::Fifo, (0, 0)),
            NewKind::Socket => (FileKind::Socket, (0, 0)),
        };
        let mut record = inherit(&parent.record.read(), kind, new, who, now);
        record.charged = INODE_BYTES + acl_bytes(&record);
        if let NewKind::Symlink(target) = new.kind {
            record.charged += (target.len() as u64).saturating_sub(SHORT_TARGET);
        }
        core.limits.take_inode_bytes(record.charged)?;
        let number = core.inodes.new_number();
        let body = match new.kind {
            NewKind::Regular => {
                let data = FileData::new(number, Arc::clone(&core.limits));
                Body::File(Mapping::new(&core.cache, number, data))
            }
            NewKind::Directory => Body::Directory(Directory::new(parent.number)),
            NewKind::Symlink(target) => Body::Symlink(target.into()),
            _ => Body::Special,
        };
        let identity = Identity {
            number,
            generation: core.generation,
            kind,
            device,
        };
        Ok(Inode::new(
            &identity,
            record,
            body,
            Arc::clone(&core.limits),
        ))
    }

    pub(crate) fn link_entry(&self, id: InodeId, parent: InodeId, name: &[u8]) -> Result<Entry> {
        if matches!(name, b"." | b"..") {
            return Err(Error::Exists);
        }
        check_name(name)?;
        let (directory, inode) = (self.directory(parent)?, self.core.inodes.get(id)?);
        if inode.is_directory() {
            // A name that is taken comes first, as Linux has it.
            return Err(match directory.directory()?.find(name) {
                Some(_) => Error::Exists,
                None => Error::NotPermitted,
            });
        }
        let mut held = Held::at_entry();
        let (_alone, _held) = lock_all(&[&directory, &inode], &mut held);
        check_alive(&directory)?;
        if !inode.is_linked() {
            return Err(Error::NotFound);
        }
        let entries = directory.directory()?;
        if entries.find(name).is_some() {
            return Err(Error::Exists);
        }
        // As an inode: a name takes memory, too (Linux: `shmem_link`).
        inode.charge(INODE_BYTES)?;
        if let Err(error) = add_link(&inode) {
            inode.discharge(INODE_BYTES);
            return Err(error);
        }
        let now = clock::now();
        inode.record.write().changed = now;
        entries.insert(name, &inode);
        directory.touch(now);
        Ok(Entry { attr: inode.attr() })
    }

    pub(crate) fn unlink_entry(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        if matches!(name, b"." | b"..") {
            return Err(Error::IsDirectory);
        }
        self.remove_name(parent, name, |child| match child.is_directory() {
            true => Err(Error::IsDirectory),
            false => Ok(()),
        })
    }

    pub(crate) fn remove_directory(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        match name {
            b"." => return Err(Error::InvalidArgument),
            b".." => return Err(Error::NotEmpty),
            _ => {}
        }
        self.remove_name(parent, name, |child| match child.directory()?.is_empty() {
            true => Ok(()),
            false => Err(Error::NotEmpty),
        })
    }

    /// Takes a name out, unless `check` speaks against it, with everything locked.
    fn remove_name(
        &self,
        parent: InodeId,
        name: &[u8],
        check: impl Fn(&Inode) -> Result<()>,
    ) -> Result<()> {
        check_name(name)?;
        let directory = self.directory(parent)?;
        loop {
            let child = self.find_child(&directory, name)?.ok_or(Error::NotFound)?;
            let mut held = Held::at_entry();
            let (_alone, _held) = lock_all(&[&directory, &child], &mut held);
            check_alive(&directory)?;
            if !Self::still_means(&directory, name, &child)? {
                continue;
            }
            check(&child)?;
            directory.directory()?.remove(name);
            let now = clock::now();
            if child.is_directory() {
                remove_subdirectory(&directory);
            }
            directory.touch(now);
            child.drop_name(now);
            return Ok(());
        }
    }
}

/// As Linux: a target fits into a page, with a byte to end it.
fn check_target(target: &[u8]) -> Result<()> {
    if target.is_empty() || target.contains(&0) {
        return Err(Error::InvalidArgument);
    }
    if target.len() as u64 >= PAGE_BYTES {
        return Err(Error::NameTooLong);
    }
    Ok(())
}

/// The record of a new inode: what it takes of its directory and of whoever makes it.
fn inherit(
    parent: &Record,
    kind: FileKind,
    new: &New<'_>,
    who: &Credentials,
    now: Timestamp,
) -> Record {
    let is_directory = kind == FileKind::Directory;
    let default = parent
        .default_acl
        .as_ref()
        .filter(|_| kind != FileKind::Symlink);
    let asked = match kind {
        FileKind::Symlink => 0o777,
        _ => new.permissions & 0o7777,
    };
    // With a default list in the directory, the umask does not count.
    let (mut permissions, access) = match default {
        None if kind == FileKind::Symlink => (asked, None),
        None => (asked & !(new.umask & 0o777), None),
        Some(default) => {
            let access = default.inherited(asked);
            let permissions = (asked & 0o7000) | access.permissions();
            (permissions, (!access.is_mode_only()).then_some(access))
        }
    };
    let mut gid = who.gid;
    if parent.permissions & SET_GROUP_ID != 0 {
        gid = parent.gid;
        if is_directory {
            permissions |= SET_GROUP_ID;
        }
    }
    let is_member = who.uid == 0 || who.gid == gid || who.groups.contains(&gid);
    let both = SET_GROUP_ID | GROUP_EXECUTE;
    if kind == FileKind::Regular && permissions & both == both && !is_member {
        permissions &= !SET_GROUP_ID;
    }
    Record {
        permissions,
        uid: who.uid,
        gid,
        links: if is_directory { 2 } else { 1 },
        accessed: now,
        modified: now,
        changed: now,
        xattrs: BTreeMap::new(),
        access_acl: access,
        default_acl: default.filter(|_| is_directory).cloned(),
        charged: 0,
    }
}

/// What the lists of a record are charged.
fn acl_bytes(record: &Record) -> u64 {
    let lists = [&record.access_acl, &record.default_acl];
    lists.into_iter().flatten().map(list_bytes).sum()
}

/// What a list is charged.
pub(crate) fn list_bytes(list: &Acl) -> u64 {
    size_of_val(list.entries()) as u64
}
