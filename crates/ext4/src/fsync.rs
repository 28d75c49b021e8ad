//! What is made durable when, and the end of a mount.

use pagefence_vfs::Result;

use crate::filesystem::{File, FileSystem};
use crate::live::Live;
use crate::read_dir::Directory;

impl FileSystem {
    pub(crate) fn fsync(&self, file: &File, data_only: bool) -> Result<()> {
        let _ = (file, data_only);
        Ok(())
    }

    pub(crate) fn fsync_dir(&self, dir: &Directory) -> Result<()> {
        let _ = dir;
        Ok(())
    }

    pub(crate) fn sync_all(&self) -> Result<()> {
        let Ok(live) = self.instance.live() else {
            return Ok(());
        };
        live.commit(live.journal.running().0)
    }

    pub(crate) fn unmount(&self) -> Result<()> {
        self.delete_orphans();
        self.instance.live.as_ref().map_or(Ok(()), Live::close)
    }
}
