//! Space for a range of a file.

use pagefence_vfs::{Error, FallocateMode, Result};

use crate::filesystem::{File, FileSystem};

impl FileSystem {
    pub(crate) fn fallocate(
        &self,
        file: &File,
        offset: u64,
        length: u64,
        mode: FallocateMode,
    ) -> Result<()> {
        let _ = (file, offset, length, mode);
        Err(Error::ReadOnly)
    }
}
