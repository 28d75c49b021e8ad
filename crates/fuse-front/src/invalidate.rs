//! How long the kernel may keep attributes, and how it learns that they changed.
//!
//! Entries, and names that are missing, are the kernel's for good: whatever changes them comes
//! through it, with the directory locked. Attributes are not so simple. What the kernel does itself
//! after a request has succeeded:
//!
//! | request | what the kernel drops | what may pass it by |
//! |---|---|---|
//! | CREATE, MKNOD, MKDIR, SYMLINK | all of the directory | an answer on its way |
//! | LINK | all of the directory; the inode comes with the answer | an answer on its way (directory) |
//! | UNLINK, RMDIR | all of the directory; the inode's link count and change time | an answer on its way (directory) |
//! | RENAME | all of both directories; the change time of what moved, as UNLINK of what went | an answer on its way (directories, what moved) |
//! | SETATTR | what comes with the answer | nothing |
//! | WRITE, `copy_file_range` | times, size and blocks | the mode, if set-uid goes |
//! | FALLOCATE | times, size and blocks | the mode, if set-uid goes; an answer on its way, if the size stays |
//! | SETXATTR, REMOVEXATTR | the change time; with ACLs negotiated, all of it for an ACL | an answer on its way; the mode that an ACL makes, if they are not negotiated |
//! | SETFLAGS, FSSETXATTR | nothing | the change time |
//! | our own FALLOCATE | nothing | times, size, blocks, the mode; and pages: `stale_pages` |
//! | READ, READLINK, READDIR | the time of access | nothing that is kept here |
//! | none: data is written back | | the number of blocks |
//! | none: a store by a map of another process | | times, blocks; and pages: `map_door` |
//!
//! "An answer on its way": attributes that were read before the change and that the kernel takes in
//! after it has dropped the old ones. It would keep them until they are out of date. A notification
//! gives the inode a new version, and answers to requests from before then are not taken in. So
//! each of these requests is followed by a notification, sent before its own answer. What no request
//! tells is the reason why attributes that changed a short time ago, and those of files that are
//! mapped, are kept for a short time only.

use std::time::{Duration, SystemTime};

use fuser::{INodeNo, Notifier};
use pagefence_lock_order::primitives::RwLock;
use pagefence_vfs::{Attr, FileSystem, InodeId, Timestamp};

use crate::attributes::{LIFETIME, system_time};
use crate::dispatch::Dispatch;

/// How long the kernel keeps attributes of what may still have data to be written back.
pub(crate) const SHORT: Duration = Duration::from_secs(1);

/// How long after its last change everything of a file has been written back. Twice as long as
/// dirty pages live.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// The way to tell the kernel something that it did not ask for; there is none before the session
/// has begun.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    notifier: RwLock<Option<Notifier>>,
}

impl Notices {
    /// From here on the kernel is told.
    pub(crate) fn connect(&self, notifier: Notifier) {
        *self.notifier.write() = Some(notifier);
    }

    /// Has the kernel drop the attributes that it keeps of a node, and not take in those that are
    /// on their way. Its pages stay. The kernel takes no lock of the inode for that, so a request
    /// for which it holds one may be under way.
    fn drop_attributes(&self, node: INodeNo) {
        let Some(notifier) = self.notifier.read().clone() else {
            return;
        };
        // Before the first byte: no pages. Fails if the kernel does not know the node, or is gone.
        if let Err(error) = notifier.inval_inode(node, -1, 0) {
            tracing::trace!(%node, %error, "the kernel has no attributes to drop");
        }
    }
}

impl<F: FileSystem> Dispatch<F> {
    /// Tells the kernel that attributes of a node changed in a way that it does not see by itself
    /// (see the module's documentation). Called after the change and before the answer.
    pub(crate) fn attributes_changed(&self, node: INodeNo) {
        self.notices.drop_attributes(node);
    }

    /// As [`Self::attributes_changed`], for an inode; one that has no node is not known.
    pub(crate) fn inode_changed(&self, id: InodeId) {
        if let Ok(node) = self.nodes.node(id) {
            self.attributes_changed(node);
        }
    }

    /// How long the kernel may keep these attributes.
    pub(crate) fn lifetime(&self, attr: &Attr) -> Duration {
        if self.read_only {
            return LIFETIME;
        }
        if self.is_mapped(attr.id) {
            return SHORT;
        }
        lifetime(attr.changed, SystemTime::now())
    }
}

/// How long attributes are kept of an inode that changed then.
fn lifetime(changed: Timestamp, now: SystemTime) -> Duration {
    match now.duration_since(system_time(changed)) {
        Ok(since) if since > SETTLED_AFTER => LIFETIME,
        // Or a time to come: clocks are set.
        _ => SHORT,
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn what_changed_lately_is_kept_for_a_short_time() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |seconds| {
            let nanoseconds = 0;
            let changed = Timestamp {
                seconds,
                nanoseconds,
            };
            lifetime(changed, now)
        };
        assert_eq!(at(999_999), SHORT);
        assert_eq!(at(999_940), SHORT);
        assert_eq!(at(999_939), LIFETIME);
        assert_eq!(at(-5), LIFETIME);
        assert_eq!(at(1_000_001), SHORT, "the clock was set back");
    }
}
