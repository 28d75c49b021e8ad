//! When files were read last, as Linux keeps it with `relatime`.

use pagefence_ext4_format::inode::InodeFlags;

use crate::clock;
use crate::filesystem::FileSystem;
use crate::inode::Inode;

/// An access time that is older than this is renewed by any access, in seconds.
const OLD: i64 = 24 * 3600;

impl FileSystem {
    /// Somebody read from a file: its access time becomes now if it is not after the last change,
    /// or is a day old. In core only, until the inode is written for another reason.
    pub(crate) fn note_access(&self, inode: &Inode) {
        if !self.instance.access_times || self.instance.live().is_err() {
            return;
        }
        let disk = inode.disk();
        let record = &disk.record;
        if record.flags().contains(InodeFlags::NOATIME) {
            return;
        }
        let accessed = record.atime();
        let is_older = accessed <= record.mtime() || accessed <= record.ctime();
        let now = clock::now();
        if is_older || now.seconds.saturating_sub(accessed.seconds) >= OLD {
            inode.core.update(|record| record.set_atime(now));
        }
    }
}
