//! Names: inodes made, linked, unlinked.

use pagefence_vfs::{Credentials, Entry, Error, InodeId, New, Result};

use crate::filesystem::FileSystem;

impl FileSystem {
    pub(crate) fn forget_inode(&self, id: InodeId) {
        let _ = id;
    }

    pub(crate) fn create_entry(
        &self,
        parent: InodeId,
        name: &[u8],
        new: &New<'_>,
        who: &Credentials,
    ) -> Result<Entry> {
        let _ = (parent, name, new, who);
        Err(Error::ReadOnly)
    }

    pub(crate) fn link_entry(&self, id: InodeId, parent: InodeId, name: &[u8]) -> Result<Entry> {
        let _ = (id, parent, name);
        Err(Error::ReadOnly)
    }

    pub(crate) fn unlink_entry(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        let _ = (parent, name);
        Err(Error::ReadOnly)
    }

    pub(crate) fn remove_dir(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        let _ = (parent, name);
        Err(Error::ReadOnly)
    }
}
