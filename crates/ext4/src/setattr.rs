//! Attributes that are set.

use pagefence_vfs::{Attr, Credentials, Error, Fsxattr, InodeId, Result, SetAttr};

use crate::filesystem::FileSystem;

impl FileSystem {
    pub(crate) fn change_attr(
        &self,
        id: InodeId,
        change: &SetAttr,
        who: &Credentials,
    ) -> Result<Attr> {
        let _ = (id, change, who);
        Err(Error::ReadOnly)
    }

    pub(crate) fn change_flags(&self, id: InodeId, flags: u32, who: &Credentials) -> Result<()> {
        let _ = (id, flags, who);
        Err(Error::ReadOnly)
    }

    pub(crate) fn change_fsxattr(
        &self,
        id: InodeId,
        attributes: &Fsxattr,
        who: &Credentials,
    ) -> Result<()> {
        let _ = (id, attributes, who);
        Err(Error::ReadOnly)
    }
}
