//! What is asked of a file system that is written to.

use bitflags::bitflags;

use crate::attr::Timestamp;

/// What a new inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewKind<'a> {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(&'a [u8]),
    /// A block device.
    BlockDevice {
        /// Device number.
        major: u32,
        /// Device number.
        minor: u32,
    },
    /// A character device.
    CharDevice {
        /// Device number.
        major: u32,
        /// Device number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// An inode to be made. Its owner is whoever makes it; its group is the directory's if that has
/// the set-group-id bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct New<'a> {
    /// What it is.
    pub kind: NewKind<'a>,
    /// The 12 low bits of the mode asked for; not used for symbolic links.
    pub permissions: u16,
    /// Bits that the caller's umask takes off `permissions`, unless the directory has a default
    /// ACL, which then decides instead.
    pub umask: u16,
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the change.
    Now,
    /// This one.
    To(Timestamp),
}

/// Attributes to be set; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// The 12 low bits of the mode.
    pub permissions: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub accessed: Option<SetTime>,
    /// Last change of the data.
    pub modified: Option<SetTime>,
    /// Last change of the inode; the time of the change if it is not given.
    pub changed: Option<Timestamp>,
}

bitflags! {
    /// How a rename treats what bears the new name.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RenameMode: u8 {
        /// It is an error.
        const NO_REPLACE = 1;
        /// The two change places.
        const EXCHANGE = 2;
        /// A directory that grows may take what is kept back for root.
        const USE_RESERVE = 4;
    }

    /// How a write is done.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct WriteMode: u8 {
        /// At the end of the file, wherever that is then; the offset does not count.
        const APPEND = 1;
        /// The data and what is needed to find it are durable when the call returns (O_DSYNC).
        const DATA_SYNC = 2;
        /// As `DATA_SYNC`, and all attributes (O_SYNC).
        const SYNC = 4;
        /// Set-uid, set-group-id and capabilities are taken off the file.
        const KILL_PRIVILEGES = 8;
        /// Comes from the kernel's page cache: times are the kernel's business.
        const WRITEBACK = 16;
        /// What is kept back for root may be taken.
        const USE_RESERVE = 32;
        /// To the device, past the cache of the file system, where that can be done (O_DIRECT):
        /// offset and length are whole blocks, and the file is nothing special. Elsewhere through
        /// the cache and then to the device. Advice: a file system may have nothing past its cache.
        const DIRECT = 64;
        /// Capabilities are taken off the file, whoever writes: they were given to other contents. The kernel
        /// does so itself before it sends a write. `KILL_PRIVILEGES` comprises it.
        const KILL_CAPABILITIES = 128;
    }

    /// What fallocate does to a range; nothing set: blocks for it, and the size grows.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FallocateMode: u8 {
        /// The size stays.
        const KEEP_SIZE = 1;
        /// The range becomes a hole; with `KEEP_SIZE`.
        const PUNCH_HOLE = 2;
        /// The range reads as zeros.
        const ZERO_RANGE = 4;
        /// The range is taken out, what follows moves down.
        const COLLAPSE_RANGE = 8;
        /// A hole is put in, what follows moves up.
        const INSERT_RANGE = 16;
        /// What is kept back for root may be taken.
        const USE_RESERVE = 32;
    }
}

/// How a file's blocks are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapFormat {
    /// An extent tree, as ext4 makes.
    Extents,
    /// Direct and indirect blocks, as ext2 and ext3 know.
    Blocks,
}

/// Whether an extended attribute may be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// It may or may not.
    Set,
    /// It must not: `Exists`.
    Create,
    /// It must: `NoAttribute`.
    Replace,
}

/// What is left of a file's 12 low mode bits when somebody changes its data or owner who may not
/// keep its privileges: no set-uid, and no set-group-id if the group may run the file.
#[must_use]
pub fn without_privileges(permissions: u16) -> u16 {
    const SET_USER_ID: u16 = 0o4000;
    const SET_GROUP_ID: u16 = 0o2000;
    const GROUP_EXECUTE: u16 = 0o010;
    let kept = permissions & !SET_USER_ID;
    if permissions & GROUP_EXECUTE == 0 {
        kept
    } else {
        kept & !SET_GROUP_ID
    }
}

#[cfg(test)]
mod tests {
    use super::without_privileges;

    #[test]
    fn set_group_id_stays_where_the_group_may_not_run_the_file() {
        assert_eq!(without_privileges(0o6755), 0o755);
        assert_eq!(without_privileges(0o6744), 0o2744);
        assert_eq!(without_privileges(0o1644), 0o1644);
    }
}
