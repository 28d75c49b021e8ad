//! Requests about extended attributes.

use fuser::{Errno, INodeNo};
use pagefence_vfs::xattr::{POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT};
use pagefence_vfs::{FileSystem, InodeId, XattrMode};

use crate::dispatch::Dispatch;
use crate::errno::errno;
use crate::server_id::{SERVER_ID_XATTR, ServerId};

fn is_acl(name: &[u8]) -> bool {
    name == POSIX_ACL_ACCESS || name == POSIX_ACL_DEFAULT
}

impl<F: FileSystem> Dispatch<F> {
    /// The value of an attribute.
    ///
    /// ACLs name users as the image knows them; a mount that shows other owners has none.
    pub(crate) fn xattr(&self, node: INodeNo, name: &[u8]) -> Result<Vec<u8>, Errno> {
        if node == INodeNo::ROOT && name == SERVER_ID_XATTR.as_bytes() {
            return Ok(ServerId::own().encode());
        }
        if is_acl(name) && self.overrides.any() {
            return Err(Errno::EOPNOTSUPP);
        }
        let id = self.nodes.inode(node)?;
        self.fs.xattr(id, name).map_err(|error| errno(&error))
    }

    /// Sets an attribute; `flags` are those of setxattr(2).
    pub(crate) fn set_xattr(
        &self,
        node: INodeNo,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Result<(), Errno> {
        const XATTR_CREATE: i32 = 1;
        const XATTR_REPLACE: i32 = 2;
        let mode = match flags {
            0 => XattrMode::Set,
            XATTR_CREATE => XattrMode::Create,
            XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        let id = self.xattr_owner(node, name)?;
        self.fs
            .set_xattr(id, name, value, mode)
            .map_err(|error| errno(&error))?;
        self.attributes_changed(node);
        Ok(())
    }

    /// Removes an attribute.
    pub(crate) fn remove_xattr(&self, node: INodeNo, name: &[u8]) -> Result<(), Errno> {
        let id = self.xattr_owner(node, name)?;
        self.fs
            .remove_xattr(id, name)
            .map_err(|error| errno(&error))?;
        self.attributes_changed(node);
        Ok(())
    }

    /// The inode whose attribute `name` may be changed.
    fn xattr_owner(&self, node: INodeNo, name: &[u8]) -> Result<InodeId, Errno> {
        let is_ours = node == INodeNo::ROOT && name == SERVER_ID_XATTR.as_bytes();
        if is_ours || (is_acl(name) && self.overrides.any()) {
            return Err(Errno::EOPNOTSUPP);
        }
        self.nodes.inode(node)
    }

    /// The names of an inode's attributes, each with its NUL, for a caller with id `uid`.
    ///
    /// As Linux does, `trusted.` attributes are listed for root alone; the kernel lets no one
    /// else read them.
    pub(crate) fn xattr_list(&self, node: INodeNo, uid: u32) -> Result<Vec<u8>, Errno> {
        let id = self.nodes.inode(node)?;
        let names = self.fs.xattr_names(id).map_err(|error| errno(&error))?;
        let mut list = Vec::new();
        for name in &names {
            let hidden = (is_acl(&name.0) && self.overrides.any())
                || (uid != 0 && name.0.starts_with(b"trusted."));
            if !hidden {
                list.extend_from_slice(&name.0);
                list.push(0);
            }
        }
        Ok(list)
    }
}
