//! Extended attributes, and the access control lists among them.

use pagefence_lock_order::Held;
use pagefence_posix_acl::Acl;
use pagefence_vfs::{Error, FileKind, InodeId, Result, XattrMode, XattrName};

use crate::clock;
use crate::filesystem::MemFs;
use crate::inode::{Inode, Record};
use crate::namespace::list_bytes;

/// The attribute that gives a program capabilities.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";
const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const USER: &[u8] = b"user.";
/// Beginnings of the names that there can be.
const PREFIXES: [&[u8]; 3] = [USER, b"trusted.", b"security."];
/// The longest name and the largest value of Linux's interface.
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 64 << 10;
/// What an attribute is charged beside its bytes.
const OVERHEAD: u64 = 64;

/// The sorts of attributes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Access,
    Default,
    User,
    Other,
}

/// # Errors
/// `Unsupported` for a namespace that is not here, or a name with nothing behind its prefix.
fn sort_of(name: &[u8]) -> Result<Sort> {
    match name {
        ACCESS => return Ok(Sort::Access),
        DEFAULT => return Ok(Sort::Default),
        _ => {}
    }
    let prefix = PREFIXES.iter().find(|prefix| {
        let rest = name.strip_prefix(**prefix);
        rest.is_some_and(|rest| !rest.is_empty())
    });
    match prefix {
        Some(&USER) => Ok(Sort::User),
        Some(_) => Ok(Sort::Other),
        None => Err(Error::Unsupported("extended attributes of that namespace")),
    }
}

fn cost(name: &[u8], value: &[u8]) -> u64 {
    OVERHEAD + (name.len() + value.len()) as u64
}

impl Record {
    /// Takes an attribute off; the bytes that are to be given back for it.
    pub(crate) fn remove_xattr(&mut self, name: &[u8]) -> u64 {
        let value = self.xattrs.remove(name);
        value.map_or(0, |value| cost(name, &value))
    }

    fn list(&mut self, sort: Sort) -> &mut Option<Acl> {
        match sort {
            Sort::Default => &mut self.default_acl,
            _ => &mut self.access_acl,
        }
    }
}

impl MemFs {
    pub(crate) fn find_xattr(&self, id: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        let sort = sort_of(name)?;
        let inode = self.core.inodes.get(id)?;
        let record = inode.record.read();
        let value = match sort {
            Sort::Access => record.access_acl.as_ref().map(Acl::to_xattr),
            Sort::Default => record.default_acl.as_ref().map(Acl::to_xattr),
            Sort::User | Sort::Other => record.xattrs.get(name).map(|value| value.to_vec()),
        };
        value.ok_or(Error::NoAttribute)
    }

    pub(crate) fn list_xattrs(&self, id: InodeId) -> Result<Vec<XattrName>> {
        let inode = self.core.inodes.get(id)?;
        let record = inode.record.read();
        let lists = [
            (ACCESS, record.access_acl.is_some()),
            (DEFAULT, record.default_acl.is_some()),
        ];
        let lists = lists.into_iter().filter(|(_, is_there)| *is_there);
        let names = record.xattrs.keys().map(|name| &**name);
        let all = lists.map(|(name, _)| name).chain(names);
        Ok(all.map(|name| XattrName(name.to_vec())).collect())
    }

    /// Sets an attribute (`value`), or removes it. Takes the inode lock exclusively.
    ///
    /// An access list that is set makes the mode's low nine bits, too. Whether the caller may do
    /// so, and whether the mode's set-group-id bit goes, is the caller's matter: who it is is not
    /// known here.
    pub(crate) fn change_xattr(
        &self,
        id: InodeId,
        name: &[u8],
        value: Option<&[u8]>,
        mode: XattrMode,
    ) -> Result<()> {
        let sort = sort_of(name)?;
        if name.len() > NAME_MAX {
            return Err(Error::InvalidArgument);
        }
        if value.is_some_and(|value| value.len() > VALUE_MAX) {
            return Err(Error::TooLarge);
        }
        let inode = self.core.inodes.get(id)?;
        let mut held = Held::at_entry();
        let (_alone, _held) = inode.lock.write(&mut held);
        match sort {
            Sort::Access | Sort::Default => change_list(&inode, sort, value, mode)?,
            Sort::User | Sort::Other => {
                let holds_data = matches!(inode.kind, FileKind::Regular | FileKind::Directory);
                if sort == Sort::User && !holds_data {
                    return Err(Error::NotPermitted);
                }
                change_value(&inode, name, value, mode)?;
            }
        }
        inode.record.write().changed = clock::now();
        Ok(())
    }
}

fn check_mode(mode: XattrMode, is_there: bool) -> Result<()> {
    match (mode, is_there) {
        (XattrMode::Create, true) => Err(Error::Exists),
        (XattrMode::Replace, false) => Err(Error::NoAttribute),
        _ => Ok(()),
    }
}

fn change_value(inode: &Inode, name: &[u8], value: Option<&[u8]>, mode: XattrMode) -> Result<()> {
    let is_there = inode.record.read().xattrs.contains_key(name);
    check_mode(mode, is_there)?;
    if let Some(value) = value {
        // The new one first: what is replaced stays if there is no space.
        inode.charge(cost(name, value))?;
    }
    let freed = {
        let mut record = inode.record.write();
        let freed = record.remove_xattr(name);
        if let Some(value) = value {
            record.xattrs.insert(name.into(), value.into());
        }
        freed
    };
    inode.discharge(freed);
    Ok(())
}

/// Sets a list, or removes it; one without entries removes it, and so does an access list that
/// says no more than the mode.
fn change_list(inode: &Inode, sort: Sort, value: Option<&[u8]>, mode: XattrMode) -> Result<()> {
    if inode.kind == FileKind::Symlink {
        return Err(Error::Unsupported("access lists of symbolic links"));
    }
    let list = match value {
        Some(value) => Acl::from_xattr(value).map_err(|_| Error::InvalidArgument)?,
        None => None,
    };
    if list.is_some() {
        if sort == Sort::Default && !inode.is_directory() {
            return Err(Error::PermissionDenied);
        }
        check_mode(mode, inode.record.write().list(sort).is_some())?;
    }
    let permissions = list.as_ref().map(Acl::permissions);
    let kept = list.filter(|list| sort == Sort::Default || !list.is_mode_only());
    inode.charge(kept.as_ref().map_or(0, list_bytes))?;
    let freed = {
        let mut record = inode.record.write();
        if let (Sort::Access, Some(permissions)) = (sort, permissions) {
            record.permissions = (record.permissions & 0o7000) | permissions;
        }
        std::mem::replace(record.list(sort), kept)
    };
    inode.discharge(freed.as_ref().map_or(0, list_bytes));
    Ok(())
}
