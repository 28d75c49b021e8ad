//! Set-uid and set-group-id bits, which the kernel leaves to us to take off
//! (`FUSE_HANDLE_KILLPRIV_V2`); capabilities it takes off itself, by REMOVEXATTR.
//!
//! WRITE says whether the writer may keep them (`CAP_FSETID`). FALLOCATE and `copy_file_range` do
//! not, nor does a SETATTR of the size as it reaches us; there root may, and nobody else. The file
//! system does it for SETATTR and WRITE, as for any user of it.

use fuser::{Errno, INodeNo, Request};
use pagefence_vfs::{FileKind, FileSystem, SetAttr, without_privileges};

use crate::dispatch::Dispatch;
use crate::errno::errno;

impl<F: FileSystem> Dispatch<F> {
    /// The mode of a file without its privileges, if it has any.
    pub(crate) fn privileges(&self, node: INodeNo) -> Result<Option<u16>, Errno> {
        let id = self.nodes.inode(node)?;
        let attr = self.fs.attr(id).map_err(|error| errno(&error))?;
        let kept = without_privileges(attr.permissions);
        Ok((attr.kind == FileKind::Regular && kept != attr.permissions).then_some(kept))
    }

    /// Whether who asks counts as root.
    pub(crate) fn is_root(&self, request: &Request) -> bool {
        self.fakeroot || request.uid() == 0
    }

    /// Takes a file's privileges off before somebody but root changes its data.
    pub(crate) fn take_privileges(&self, request: &Request, node: INodeNo) -> Result<(), Errno> {
        if self.is_root(request) {
            return Ok(());
        }
        let Some(kept) = self.privileges(node)? else {
            return Ok(());
        };
        let change = SetAttr {
            permissions: Some(kept),
            ..SetAttr::default()
        };
        let id = self.nodes.inode(node)?;
        // Set-group-id that stays must not go for want of the caller's other groups.
        let who = self.member(request, id).map_err(|error| errno(&error))?;
        self.fs
            .set_attr(id, &change, &who)
            .map_err(|error| errno(&error))?;
        self.attributes_changed(node);
        Ok(())
    }
}
