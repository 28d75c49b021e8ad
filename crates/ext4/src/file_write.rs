//! Writing to files.

use pagefence_vfs::{Error, Result, WriteMode};

use crate::filesystem::{File, FileSystem};

impl FileSystem {
    pub(crate) fn write_file(
        &self,
        file: &File,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<usize> {
        let _ = (file, offset, data, mode);
        Err(Error::ReadOnly)
    }

    pub(crate) fn copy_file_range(
        &self,
        from: (&File, u64),
        to: (&File, u64),
        length: u64,
    ) -> Result<u64> {
        let _ = (from, to, length);
        Err(Error::ReadOnly)
    }
}
