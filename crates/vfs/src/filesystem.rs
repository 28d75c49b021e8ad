//! The trait a file system implements.

use std::ops::ControlFlow;

use bitflags::bitflags;

use crate::attr::{Attr, FileSystemStat, InodeId};
use crate::change::{FallocateMode, MapFormat, New, RenameMode, SetAttr, WriteMode, XattrMode};
use crate::check::{CheckEvent, CheckSummary};
use crate::dir::{Cookie, DirSink};
use crate::error::{Error, Result};
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

    /// Why nothing can be written, as a sentence's end (`because …`); nothing if it can.
    fn read_only_because(&self) -> Option<String> {
        Some("it was opened so".to_owned())
    }

    /// Finds `name` in directory `parent`. `.` and `..` are found too.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NameTooLong`.
    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Entry>;

    /// Nobody knows the inode by its number any more: the last of the lookups (and of whatever
    /// else gave its number away) is forgotten. An inode without a name is deleted by this, or by
    /// its last close if that comes later. May come for an inode that was never given away, and
    /// never comes for those that outlive the mount: [`Self::shut_down`] deletes what is left.
    ///
    /// Whoever numbers lookups (a mount) calls it when its count falls to nothing; whoever does
    /// not (a library) calls it after each operation that may have taken the last name.
    fn forget(&self, id: InodeId) {
        let _ = id;
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

    /// Reads into `buffer` from `offset` on; returns how many bytes, fewer than there is room for only at
    /// the end of the file, or before what can't be read.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    fn read(&self, file: &Self::File, offset: u64, buffer: &mut [u8]) -> Result<usize>;

    /// As [`Self::read`], past the cache of the file system, where that can be done (O_DIRECT): what
    /// is dirty of the range is written to the device, and the bytes are read from there. `buffer` is
    /// not memory that a mapping of this file system backs.
    ///
    /// # Errors
    /// As [`Self::read`]; `Io` also if what is dirty can't be written.
    fn read_direct(&self, file: &Self::File, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.read(file, offset, buffer)
    }

    /// The next data or hole at or after `offset`.
    ///
    /// # Errors
    /// `NoData` past the last of it, and at or past the end of the file.
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

    /// Makes an inode and gives it the name `name` in directory `parent`. The entry counts as one
    /// lookup.
    ///
    /// # Errors
    /// `Exists`, `NameTooLong`, `NotFound` if the directory was removed, `NoSpace`,
    /// `TooManyLinks`, `NotPermitted`, `ReadOnly`.
    fn create(
        &self,
        parent: InodeId,
        name: &[u8],
        new: &New<'_>,
        who: &Credentials,
    ) -> Result<Entry> {
        let _ = (parent, name, new, who);
        Err(Error::ReadOnly)
    }

    /// Gives an inode that is no directory one more name. The entry counts as one lookup. Of `who`
    /// it matters only whether what is kept back for root may be taken.
    ///
    /// # Errors
    /// As [`Self::create`]; `NotPermitted` for a directory.
    fn link(&self, id: InodeId, parent: InodeId, name: &[u8], who: &Credentials) -> Result<Entry> {
        let _ = (id, parent, name, who);
        Err(Error::ReadOnly)
    }

    /// Takes the name `name` of what is no directory out of directory `parent`. Without names
    /// left the inode lives until it is closed and forgotten ([`Self::forget`]).
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `NotPermitted`, `ReadOnly`.
    fn unlink(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        let _ = (parent, name);
        Err(Error::ReadOnly)
    }

    /// Removes the empty directory `name` from directory `parent`.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NotEmpty`, `InvalidArgument` for `.`, `NotPermitted`,
    /// `ReadOnly`.
    fn rmdir(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        let _ = (parent, name);
        Err(Error::ReadOnly)
    }

    /// Gives what is called `name` in `parent` the name `new_name` in `new_parent` instead; what
    /// was called that is replaced, if it is of the same sort and not a directory with entries.
    ///
    /// # Errors
    /// `NotFound`, `Exists` with [`RenameMode::NO_REPLACE`], `NotEmpty`, `IsDirectory`,
    /// `NotDirectory`, `InvalidArgument` if a directory would become its own descendant,
    /// `NoSpace`, `TooManyLinks`, `NotPermitted`, `ReadOnly`.
    fn rename(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let _ = (parent, name, new_parent, new_name, mode);
        Err(Error::ReadOnly)
    }

    /// Sets attributes, all or none of them, and returns what they are then. A change of owner or
    /// size takes set-uid, set-group-id and capabilities off a file, as chown(2) says.
    ///
    /// # Errors
    /// `FileTooLarge`, `IsDirectory` for a size of a directory, `NoSpace`, `NotPermitted`,
    /// `ReadOnly`, `InvalidArgument`.
    fn set_attr(&self, id: InodeId, change: &SetAttr, who: &Credentials) -> Result<Attr> {
        let _ = (id, change, who);
        Err(Error::ReadOnly)
    }

    /// Writes `data` from `offset` on; returns how many bytes, fewer only if something failed
    /// behind them. What was accepted has its space. `data` is not memory that a mapping of this
    /// file system backs.
    ///
    /// # Errors
    /// `NoSpace`, `FileTooLarge`, `NotPermitted`, `ReadOnly`.
    fn write(&self, file: &Self::File, offset: u64, data: &[u8], mode: WriteMode) -> Result<usize> {
        let _ = (file, offset, data, mode);
        Err(Error::ReadOnly)
    }

    /// Changes what lies behind a range (fallocate(2)).
    ///
    /// # Errors
    /// `Unsupported` for a mode that this file can't do, `InvalidArgument`, `NoSpace`,
    /// `FileTooLarge`, `NotPermitted`, `ReadOnly`.
    fn allocate(
        &self,
        file: &Self::File,
        offset: u64,
        length: u64,
        mode: FallocateMode,
    ) -> Result<()> {
        let _ = (file, offset, length, mode);
        Err(Error::ReadOnly)
    }

    /// Copies up to `length` bytes from one file to another, or within one if the ranges are
    /// apart; returns how many. `mode` is that of each write, without `APPEND`.
    ///
    /// # Errors
    /// As [`Self::read`] and [`Self::write`].
    fn copy_range(
        &self,
        from: &Self::File,
        from_offset: u64,
        to: &Self::File,
        to_offset: u64,
        length: u64,
        mode: WriteMode,
    ) -> Result<u64> {
        let _ = (from, from_offset, to, to_offset, length, mode);
        Err(Error::ReadOnly)
    }

    /// What the bytes `first_offset .. first_offset + length` of one file hold, and as many from
    /// `second_offset` on of another one, change places: data, holes and unwritten blocks. Offsets
    /// and length are multiples of the block size; the length may be less where a file ends. Both
    /// ranges lie within the last blocks of their files, and are apart if it is one file. What would
    /// come to lie behind the end of a file must be zeros. Sizes stay. Where it fails half-way, some
    /// from the beginning of the ranges has changed places.
    ///
    /// # Errors
    /// `InvalidArgument` for other ranges, `Unsupported` for files that can't have each other's
    /// blocks, `NotPermitted` (also if one of them is not open for writing), `NoSpace`, `ReadOnly`.
    fn exchange_range(
        &self,
        first: &Self::File,
        first_offset: u64,
        second: &Self::File,
        second_offset: u64,
        length: u64,
    ) -> Result<()> {
        let _ = (first, first_offset, second, second_offset, length);
        Err(Error::Unsupported("exchanging ranges"))
    }

    /// Moves the data of a range of a file to the blocks that `donor` has there, which gets the
    /// file's blocks for them and reads as zeros where they are (EXT4_IOC_MOVE_EXT). Where one of
    /// them has a hole, all stays as it is. What lies behind the last block of either file is left
    /// out; returns how many bytes were gone through, fewer also if something failed behind them.
    /// Nobody who reads or writes the file sees that something happens to it.
    ///
    /// # Errors
    /// As [`Self::exchange_range`]; `InvalidArgument` also if no block of the ranges is left, and if
    /// it is one file.
    fn move_blocks(
        &self,
        file: &Self::File,
        offset: u64,
        donor: &Self::File,
        donor_offset: u64,
        length: u64,
    ) -> Result<u64> {
        let _ = (file, offset, donor, donor_offset, length);
        Err(Error::Unsupported("moving data to other blocks"))
    }

    /// Makes a file durable; with `data_only` without those attributes that are not needed to
    /// find its data. An error of writing back is told once to each open file.
    ///
    /// # Errors
    /// `Io`, `ReadOnly` once the file system has turned read-only.
    fn sync_file(&self, file: &Self::File, data_only: bool) -> Result<()> {
        let _ = (file, data_only);
        Ok(())
    }

    /// Makes the changes of a directory durable.
    ///
    /// # Errors
    /// As [`Self::sync_file`].
    fn sync_dir(&self, dir: &Self::Directory) -> Result<()> {
        let _ = dir;
        Ok(())
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// As [`Self::sync_file`].
    fn sync(&self) -> Result<()> {
        Ok(())
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `Exists`, `NoAttribute` by `mode`; `NoSpace`, `TooLarge`, `Unsupported` for a namespace
    /// that does not exist here, `InvalidArgument`, `NotPermitted`, `ReadOnly`.
    fn set_xattr(&self, id: InodeId, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        let _ = (id, name, value, mode);
        Err(Error::ReadOnly)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, and as [`Self::set_xattr`].
    fn remove_xattr(&self, id: InodeId, name: &[u8]) -> Result<()> {
        let _ = (id, name);
        Err(Error::ReadOnly)
    }

    /// Sets the flags of FS_IOC_SETFLAGS.
    ///
    /// # Errors
    /// `Unsupported` for one that can't be changed, `NotPermitted`, `ReadOnly`.
    fn set_flags(&self, id: InodeId, flags: u32, who: &Credentials) -> Result<()> {
        let _ = (id, flags, who);
        Err(Error::ReadOnly)
    }

    /// Sets the attributes of FS_IOC_FSSETXATTR: the flags and the project.
    ///
    /// # Errors
    /// As [`Self::set_flags`].
    fn set_fsxattr(&self, id: InodeId, attributes: &Fsxattr, who: &Credentials) -> Result<()> {
        let _ = (id, attributes, who);
        Err(Error::ReadOnly)
    }

    /// Gives the blocks of a file, a directory or a link another kind of map; they stay where they are,
    /// and readers and writers of a file go on meanwhile. Does nothing if the file has such a map already.
    ///
    /// # Errors
    /// `Again` if blocks were mapped meanwhile, and the file is as before; `Unsupported` if such a
    /// map can't say what the file's says, `InvalidArgument` if the file or the file system can't
    /// have one; `NoSpace`, `NotPermitted`, `ReadOnly`.
    fn migrate(&self, id: InodeId, to: MapFormat, who: &Credentials) -> Result<()> {
        let _ = (id, to, who);
        Err(Error::ReadOnly)
    }

    /// Tells the device of free space in the bytes `offset .. offset + length` of the file system,
    /// in runs of at least `least` bytes; returns how many bytes it told of.
    ///
    /// # Errors
    /// `Unsupported` if the device takes no advice, `ReadOnly`.
    fn trim(&self, offset: u64, length: u64, least: u64) -> Result<u64> {
        let _ = (offset, length, least);
        Err(Error::Unsupported("telling the device of free space"))
    }

    /// Checks all of the file system, as it is at one moment, while it is in use. `event` is told of
    /// findings and progress, with no lock held; if it breaks, the check ends there. May take long.
    ///
    /// # Errors
    /// It can't be checked: `Busy` while another check goes on, `Unsupported`, `Io`, `ReadOnly`,
    /// `OutOfMemory`. Damage is a finding and no error.
    fn check(
        &self,
        event: &mut dyn FnMut(CheckEvent<'_>) -> ControlFlow<()>,
    ) -> Result<CheckSummary> {
        let _ = event;
        Err(Error::Unsupported("a check"))
    }

    /// A request that may have changed something ended by a panic, so that nobody knows what of it
    /// was done: nothing more may be written, nor may what is not durable yet become so. May be
    /// called more than once, and by any thread, also while others change something.
    fn poisoned(&self) {}

    /// Called once when the last user is gone: everything is on disk when it returns.
    ///
    /// # Errors
    /// `Io`.
    fn shut_down(&self) -> Result<()> {
        Ok(())
    }
}
