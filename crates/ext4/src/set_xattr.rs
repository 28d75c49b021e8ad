//! Extended attributes that are set and removed.

use pagefence_vfs::{Error, InodeId, Result, XattrMode};

use crate::filesystem::FileSystem;

impl FileSystem {
    pub(crate) fn change_xattr(
        &self,
        id: InodeId,
        name: &[u8],
        value: Option<&[u8]>,
        mode: XattrMode,
    ) -> Result<()> {
        let _ = (id, name, value, mode);
        Err(Error::ReadOnly)
    }
}
