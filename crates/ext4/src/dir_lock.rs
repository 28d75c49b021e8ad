//! The inode locks of an operation on names: the directories', and those of what the names mean.
//!
//! All of them are taken in the order of their numbers. A name is therefore looked up first, with
//! its directory locked shared for just that long, then everything is locked at once, then it is
//! made sure that the name still means the same; else it starts over. So no order among directories
//! matters, a thread never waits for a lock with a higher one held, and no circle can close.

use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::dir_entry::{EntryName, MAX_NAME_LEN};
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_lock_order::levels::{self, Level};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::{After, Held, OrderedWriteGuard, pair};
use pagefence_vfs::{Error, FileKind, InodeId, Result};

use crate::dir::Named;
use crate::disk_inode::DiskInode;
use crate::filesystem::FileSystem;
use crate::inode::Inode;

/// What a name meant when it was looked up.
#[derive(Clone, Debug)]
pub(crate) struct Child {
    pub(crate) named: Named,
    pub(crate) inode: Arc<Inode>,
    /// The changes of the directory's entries that were counted then.
    version: u64,
}

impl Child {
    /// The same inode, whose name is there now.
    pub(crate) fn at(&self, named: Named) -> Self {
        Self {
            named,
            ..self.clone()
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.inode.core.kind == FileKind::Directory
    }
}

/// Locks inodes exclusively, each once.
pub(crate) fn lock_all<'a, P: Level>(
    inodes: &[&'a Inode],
    held: &'a mut Held<'_, P>,
) -> (Vec<OrderedWriteGuard<'a, ()>>, Held<'a, levels::Inode>)
where
    levels::Inode: After<P>,
{
    let locks: Vec<_> = inodes.iter().map(|inode| &inode.lock).collect();
    pair::write_all(&locks, held)
}

/// Checks a name that an operation puts in or takes out.
///
/// # Errors
/// `NameTooLong`; `InvalidArgument` for one that no entry can have.
pub(crate) fn checked_name(name: &[u8]) -> Result<EntryName<'_>> {
    if name.len() > MAX_NAME_LEN {
        return Err(Error::NameTooLong);
    }
    EntryName::new(name).ok_or(Error::InvalidArgument)
}

/// Whether the directory is one whose entries we can write, and is still there. The caller holds
/// its inode lock.
///
/// # Errors
/// `NotFound` if it was removed, `NotPermitted`, `NoKey`, `Unsupported`.
pub(crate) fn check_directory(disk: &DiskInode) -> Result<()> {
    if disk.record.links() == 0 {
        return Err(Error::NotFound);
    }
    if disk.record.flags().contains(InodeFlags::IMMUTABLE) {
        return Err(Error::NotPermitted);
    }
    if disk.is_encrypted() {
        return Err(Error::NoKey);
    }
    if disk.is_casefolded() {
        return Err(Error::Unsupported("changing a directory that ignores case"));
    }
    Ok(())
}

/// Whether a name of this inode may be taken out of the directory.
///
/// # Errors
/// `NotPermitted`.
pub(crate) fn check_removable(directory: &DiskInode, child: &DiskInode) -> Result<()> {
    let fixed = InodeFlags::IMMUTABLE | InodeFlags::APPEND;
    if directory.record.flags().contains(InodeFlags::APPEND)
        || child.record.flags().intersects(fixed)
    {
        return Err(Error::NotPermitted);
    }
    Ok(())
}

impl FileSystem {
    /// Looks a name up and brings what it means into core. Takes the directory's lock shared.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn find_child<P: Level>(
        &self,
        directory: &Inode,
        name: &[u8],
        held: &mut Held<'_, P>,
    ) -> Result<Option<Child>>
    where
        levels::Inode: After<P>,
    {
        let (_entries, _held) = directory.lock.read(held);
        let Some(named) = self.instance.find_named(directory, name)? else {
            return Ok(None);
        };
        // While the directory is locked, what it names is not deleted.
        Ok(Some(Child {
            inode: self.named_inode(named.inode)?,
            named,
            version: directory.entries_version(),
        }))
    }

    /// The inode that a directory entry names.
    fn named_inode(&self, number: InodeNo) -> Result<Arc<Inode>> {
        match self.inode(InodeId(u64::from(number.0))) {
            Err(Error::Stale) => {
                let what = "a directory entry names an inode that is not in use, or not for files";
                Err(self.instance.damaged(number, None, what))
            }
            other => other,
        }
    }

    /// Where a name is now that everything is locked; nothing if it does not mean what it meant.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn still_named(
        &self,
        directory: &Inode,
        name: &[u8],
        child: &Child,
    ) -> Result<Option<Named>> {
        if directory.entries_version() == child.version {
            return Ok(Some(child.named));
        }
        let found = self.instance.find_named(directory, name)?;
        Ok(found.filter(|named| named.inode == child.named.inode))
    }
}
