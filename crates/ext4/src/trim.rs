//! Free space that the device is told of.

use pagefence_vfs::{Error, Result};

use crate::filesystem::FileSystem;

impl FileSystem {
    pub(crate) fn trim_free_space(&self, offset: u64, length: u64, least: u64) -> Result<u64> {
        let _ = (offset, length, least);
        Err(Error::ReadOnly)
    }
}
