//! Names that change.

use pagefence_vfs::{Error, InodeId, RenameMode, Result};

use crate::filesystem::FileSystem;

impl FileSystem {
    pub(crate) fn rename_entry(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let _ = (parent, name, new_parent, new_name, mode);
        Err(Error::ReadOnly)
    }
}
