//! Extended attributes that are set and removed.

use pagefence_ext4_format::inode::InodeFlags;
use pagefence_ext4_format::xattr::acl::Acl;
use pagefence_ext4_format::xattr::name::{self, POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT};
use pagefence_lock_order::Held;
use pagefence_vfs::{Error, FileKind, InodeId, Result, XattrMode};

use crate::change::set_xattr::XattrChange;
use crate::clock;
use crate::disk_inode::DiskInode;
use crate::filesystem::FileSystem;
use crate::setattr::Attributes;

/// What a list of access asks of an inode.
enum Wanted {
    /// The attribute gets this value.
    Value(Vec<u8>),
    /// The attribute goes, and need not be there.
    Nothing,
}

impl FileSystem {
    /// Sets an attribute (`value`), or removes it. Takes the inode lock and a transaction.
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
        let (index, rest) = name::split(name)
            .filter(|(index, _)| name::is_exposed(*index))
            .ok_or(Error::Unsupported("extended attributes of that namespace"))?;
        let inode = self.changeable_inode(id)?;
        let mut held = Held::at_entry();
        let (_exclusive, mut held) = inode.lock.write(&mut held);
        let disk = inode.disk();
        check_kind(&disk, index)?;
        let now = clock::now();
        let mut attributes = Attributes {
            changed: Some(now),
            ..Attributes::default()
        };
        let wanted = match index {
            POSIX_ACL_ACCESS | POSIX_ACL_DEFAULT => Some(acl(&disk, index, value)?),
            _ => None,
        };
        let mut record = disk.record.clone();
        record.ensure_extra();
        let mut change = XattrChange::of(&self.instance, &record)?;
        let is_there = change.find(index, rest).is_some();
        match (wanted, value) {
            (Some((Wanted::Value(value), permissions)), _) => {
                check_mode(mode, is_there)?;
                change.set(index, rest, &value)?;
                attributes.permissions = permissions;
            }
            (Some((Wanted::Nothing, permissions)), _) => {
                change.remove(index, rest)?;
                attributes.permissions = permissions;
            }
            (None, Some(value)) => {
                check_mode(mode, is_there)?;
                change.set(index, rest, value)?;
            }
            (None, None) => {
                if !change.remove(index, rest)? {
                    return Err(Error::NoAttribute);
                }
            }
        }
        self.apply_attributes(&mut held, &inode, &attributes, Some(change), false)
    }
}

/// Whether an inode can have attributes of that namespace set.
fn check_kind(disk: &DiskInode, index: u8) -> Result<()> {
    let flags = disk.record.flags();
    if flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
        return Err(Error::NotPermitted);
    }
    let holds_data = matches!(disk.kind, FileKind::Regular | FileKind::Directory);
    match index {
        name::USER if !holds_data => Err(Error::NotPermitted),
        POSIX_ACL_ACCESS | POSIX_ACL_DEFAULT if disk.kind == FileKind::Symlink => {
            Err(Error::Unsupported("access lists of symbolic links"))
        }
        _ => Ok(()),
    }
}

fn check_mode(mode: XattrMode, is_there: bool) -> Result<()> {
    match (mode, is_there) {
        (XattrMode::Create, true) => Err(Error::Exists),
        (XattrMode::Replace, false) => Err(Error::NoAttribute),
        _ => Ok(()),
    }
}

/// What becomes of an access list or a default list that is set, and the permissions then.
fn acl(disk: &DiskInode, index: u8, value: Option<&[u8]>) -> Result<(Wanted, Option<u16>)> {
    let list = match value {
        Some(value) => Acl::from_xattr(value).map_err(|_| Error::InvalidArgument)?,
        None => None,
    };
    let Some(list) = list else {
        return Ok((Wanted::Nothing, None));
    };
    if index == POSIX_ACL_DEFAULT {
        if disk.kind != FileKind::Directory {
            return Err(Error::PermissionDenied);
        }
        return Ok((Wanted::Value(list.to_disk()), None));
    }
    let permissions = (disk.record.mode() & 0o7000) | list.permissions();
    let wanted = if list.is_mode_only() {
        Wanted::Nothing
    } else {
        Wanted::Value(list.to_disk())
    };
    Ok((wanted, Some(permissions)))
}
