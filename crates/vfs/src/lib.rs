//! The inode-level interface between a file system and what serves it.
//!
//! [`FileSystem`] is implemented by `ext4` (and by in-memory file systems), and served by
//! `fuse-front` and by the library `pagefence`. Neither side knows the other. Every call is made
//! with no lock held, from any thread.

pub mod attr;
pub mod change;
pub mod check;
pub mod copy;
pub mod dir;
pub mod error;
pub mod filesystem;
pub mod xattr;

pub use attr::{Attr, FileKind, FileSystemStat, InodeId, Timestamp};
pub use change::{
    FallocateMode, MapFormat, New, NewKind, RenameMode, SetAttr, SetTime, WriteMode, XattrMode,
    without_privileges,
};
pub use check::{CheckEvent, CheckProgress, CheckSummary};
pub use copy::{Copy, copy_in_pieces};
pub use dir::{Cookie, DirEntry, DirSink};
pub use error::{Error, Place, Result};
pub use filesystem::{
    Access, Credentials, Entry, ExtentInfo, ExtentState, FileSystem, Fsxattr, Whence,
};
pub use xattr::XattrName;
