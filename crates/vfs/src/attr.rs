//! What an inode is, apart from its data.

/// Number of an inode in its file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub u64);

impl std::fmt::Display for InodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A moment: seconds since the epoch and nanoseconds within the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z; negative before.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// Attributes of an inode (stat).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub id: InodeId,
    /// Tells apart two inodes that used the same number one after the other.
    pub generation: u32,
    /// Kind.
    pub kind: FileKind,
    /// The low 12 bits of the mode: permissions, set-uid, set-gid, sticky.
    pub permissions: u16,
    /// Number of hard links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Space used, in units of 512 bytes.
    pub blocks_512: u64,
    /// Preferred I/O size in bytes.
    pub block_size: u32,
    /// Device number of a block or character device.
    pub device_major: u32,
    /// Device number of a block or character device.
    pub device_minor: u32,
    /// Last access.
    pub accessed: Timestamp,
    /// Last change of the data.
    pub modified: Timestamp,
    /// Last change of the inode.
    pub changed: Timestamp,
    /// Creation, where the format keeps it.
    pub created: Option<Timestamp>,
    /// The inode's flags as FS_IOC_GETFLAGS shows them.
    pub flags: u32,
}

/// Attributes of a whole file system (statfs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystemStat {
    /// Size of a block in bytes; the unit of the counts below.
    pub block_size: u32,
    /// Blocks for data (overhead taken off).
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for users other than root.
    pub blocks_available: u64,
    /// Inodes.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// Longest name in bytes.
    pub name_length: u32,
}
