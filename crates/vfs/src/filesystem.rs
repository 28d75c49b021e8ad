//! The trait a file system implements.

use bitflags::bitflags;

use crate::attr::{Attr, FileSystemStat, InodeId};
use crate::dir::{Cookie, DirSink};
use crate::error::Result;
use crate::xattr::XattrName;

/// What a lookup found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The inode's attributes; its number is `attr.id`.
    pub attr: Attr,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

bitflags! {
    /// Rights asked for (access(2)).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Access: u8 {
        /// Read, or list.
        const READ = 4;
        /// Write.
        const WRITE = 2;
        /// Execute, or search.
        const EXECUTE = 1;
    }
}

/// What lseek looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The next byte of data at or after the offset.
    Data,
    /// The next hole at or after the offset; the end of the file is one.
    Hole,
}

/// What lies behind a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentState {
    /// Blocks with data.
    Written,
    /// Blocks that read as zeros until written.
    Unwritten,
    /// Data kept within the inode; `physical` is 0.
    Inline,
}

/// One piece of a file's extent map; offsets and length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentInfo {
    /// Offset in the file.
    pub logical: u64,
    /// Offset in the image.
    pub physical: u64,
    /// Length.
    pub length: u64,
    /// What it is.
    pub state: ExtentState,
}

/// The attributes of FS_IOC_FSGETXATTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fsxattr {
    /// Flags, as FS_XFLAG_*.
    pub xflags: u32,
    /// Extent size hint in bytes.
    pub extent_size: u32,
    /// Number of extents.
    pub extents: u32,
    /// Project number.
    pub project: u32,
}

/// A file system, seen from its inodes.
///
/// Every method may be called from many threads at once, and takes what locks it needs from the
/// top of the chain: the caller holds none. Errors: [`Error::NotFound`](crate::Error::NotFound)
/// or [`Error::Stale`](crate::Error::Stale) if an inode does not exist,
/// [`Error::Corrupt`](crate::Error::Corrupt) and [`Error::Io`](crate::Error::Io) from any of
/// them; the others are named at the method.
pub trait FileSystem: Send + Sync + 'static {
    /// An open regular file. Dropping it closes it.
    type File: Send + Sync + 'static;
    /// An open directory. Dropping it closes it.
    type Directory: Send + Sync + 'static;

    /// The root directory's inode.
    fn root(&self) -> InodeId;

    /// Finds `name` in directory `parent`. `.` and `..` are found too.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NameTooLong`.
    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Entry>;

    /// The caller forgets `count` of the lookups that gave it this inode. May come for an inode
    /// that it was never given, and never comes for lookups that outlive the mount.
    fn forget(&self, id: InodeId, count: u64) {
        let _ = (id, count);
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// `NotFound`, `Stale`.
    fn attr(&self, id: InodeId) -> Result<Attr>;

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `InvalidArgument` if it is none.
    fn read_link(&self, id: InodeId) -> Result<Vec<u8>>;

    /// Whether `who` may do `access`, by mode and ACL.
    ///
    /// # Errors
    /// `PermissionDenied`, `ReadOnly`.
    fn access(&self, id: InodeId, access: Access, who: &Credentials) -> Result<()>;

    /// Opens a regular file.
    ///
    /// # Errors
    /// `IsDirectory`, `ReadOnly` if `write` and nothing can be written, `NoKey`.
    fn open(&self, id: InodeId, write: bool) -> Result<Self::File>;

    /// Reads into `buffer` from `offset` on; returns how many bytes, fewer only at end of file.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    fn read(&self, file: &Self::File, offset: u64, buffer: &mut [u8]) -> Result<usize>;

    /// The next data or hole at or after `offset`, which is below the file's size.
    ///
    /// # Errors
    /// `NoData` past the last of it or past end of file.
    fn seek(&self, file: &Self::File, offset: u64, whence: Whence) -> Result<u64>;

    /// The file's pieces within `offset .. offset + length`, ascending, at most `most` of them;
    /// holes are left out.
    ///
    /// # Errors
    /// `Corrupt`.
    fn extents(
        &self,
        id: InodeId,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<ExtentInfo>>;

    /// Opens a directory.
    ///
    /// # Errors
    /// `NotDirectory`, `NoKey`.
    fn open_dir(&self, id: InodeId) -> Result<Self::Directory>;

    /// Hands entries after `from` to `sink`, `.` and `..` first, each with its attributes if
    /// `with_attr`, until the sink breaks or the directory ends. An entry that the sink took with
    /// its attributes counts as one lookup of that inode.
    ///
    /// # Errors
    /// `Corrupt` if a block can't be trusted; entries before it have been handed over.
    fn read_dir(
        &self,
        dir: &Self::Directory,
        from: Cookie,
        with_attr: bool,
        sink: &mut dyn DirSink,
    ) -> Result<()>;

    /// Size and free space.
    ///
    /// # Errors
    /// `Io`.
    fn stat_fs(&self) -> Result<FileSystemStat>;

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `Unsupported` for a namespace that does not exist here.
    fn xattr(&self, id: InodeId, name: &[u8]) -> Result<Vec<u8>>;

    /// The names of an inode's extended attributes.
    ///
    /// # Errors
    /// `Corrupt`.
    fn xattr_names(&self, id: InodeId) -> Result<Vec<XattrName>>;

    /// The attributes of FS_IOC_FSGETXATTR.
    ///
    /// # Errors
    /// `Unsupported`.
    fn fsxattr(&self, id: InodeId) -> Result<Fsxattr>;

    /// Called once when the last user is gone: everything is on disk when it returns.
    ///
    /// # Errors
    /// `Io`.
    fn shut_down(&self) -> Result<()> {
        Ok(())
    }
}
