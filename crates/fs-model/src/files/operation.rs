//! What is done to a tree, and what comes of it.

/// Why an operation can't be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// ENOENT.
    NotFound,
    /// ENOTDIR.
    NotDirectory,
    /// EISDIR.
    IsDirectory,
    /// EEXIST.
    Exists,
    /// ENOTEMPTY.
    NotEmpty,
    /// EINVAL.
    Invalid,
    /// ENAMETOOLONG.
    NameTooLong,
    /// EPERM, EACCES.
    NotPermitted,
    /// ELOOP.
    TooManySymlinks,
    /// EFBIG.
    FileTooLarge,
    /// EOPNOTSUPP.
    Unsupported,
    /// ENOSPC. Only of an attribute that may be too large for where it goes: of how full the
    /// device is the model knows nothing.
    NoSpace,
}

/// What an operation gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// Whether there was anything to be done.
    Was(bool),
    /// What was read.
    Bytes(Vec<u8>),
}

/// How a rename treats what bears the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameHow {
    /// It is replaced.
    Replace,
    /// It is an error.
    NoReplace,
    /// The two change places.
    Exchange,
}

/// What is done to a range of a file, as fallocate(2) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeChange {
    /// It gets space; the size stays.
    Reserve,
    /// It becomes a hole; the size stays.
    Punch,
    /// It reads as zeros and has space; the file grows.
    Zero,
    /// As `Zero`; the size stays.
    ZeroInside,
    /// Whole blocks are taken out.
    Collapse,
    /// A hole of whole blocks is put in.
    Insert,
}

/// One operation. Paths start at the root without a slash; what is written is
/// [`contents`](super::contents).
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what their names say")]
pub enum Operation {
    /// Makes a regular file; it must not be there.
    Create { path: String },
    /// Writes into a file that is there.
    Write {
        path: String,
        offset: u64,
        length: usize,
        tag: u64,
    },
    /// Writes past the cache.
    WriteDirect {
        path: String,
        offset: u64,
        length: usize,
        tag: u64,
    },
    /// Stores through a shared map; the range lies inside the file.
    Store {
        path: String,
        offset: u64,
        length: usize,
        tag: u64,
    },
    /// Writes at a file's end.
    Append {
        path: String,
        length: usize,
        tag: u64,
    },
    /// Reads.
    Read {
        path: String,
        offset: u64,
        length: usize,
    },
    /// Cuts off or extends.
    SetSize { path: String, size: u64 },
    /// Gives a range space; the file grows.
    Allocate {
        path: String,
        offset: u64,
        length: u64,
    },
    /// Changes a range.
    ChangeRange {
        path: String,
        offset: u64,
        length: u64,
        how: RangeChange,
    },
    /// Whole blocks of two files, which lie inside both, change places.
    ExchangeRange {
        path: String,
        offset: u64,
        other: String,
        other_offset: u64,
        length: u64,
    },
    /// Gives a file that has no unwritten space another kind of map.
    Migrate { path: String, to_extents: bool },
    /// Makes a file durable.
    Sync { path: String },
    /// Makes a file's data durable, and what is needed to find it.
    SyncData { path: String },
    /// Makes the names in a directory durable.
    SyncDirectory { path: String },
    /// Makes everything durable.
    SyncAll,
    /// mkdir.
    MakeDirectory { path: String },
    /// rmdir.
    RemoveDirectory { path: String },
    /// unlink.
    Remove { path: String },
    /// renameat2.
    Rename {
        from: String,
        to: String,
        how: RenameHow,
    },
    /// link.
    Link { original: String, link: String },
    /// symlink.
    Symlink { target: String, path: String },
    /// mkfifo.
    Fifo { path: String },
    /// chmod, following links.
    SetPermissions { path: String, permissions: u16 },
    /// lchown.
    SetOwner {
        path: String,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    /// lsetxattr.
    SetXattr {
        path: String,
        name: String,
        value: Vec<u8>,
    },
    /// lremovexattr; whether there was one.
    RemoveXattr { path: String, name: String },
    /// Opens a file and keeps it open; what the slot held is closed first.
    Hold { slot: u8, path: String },
    /// Writes to an open file.
    WriteHeld {
        slot: u8,
        offset: u64,
        length: usize,
        tag: u64,
    },
    /// Reads an open file.
    ReadHeld {
        slot: u8,
        offset: u64,
        length: usize,
    },
    /// Closes it.
    LetGo { slot: u8 },
    /// Closes everything, and opens the file system again.
    Reopen,
}

impl Operation {
    /// The paths that it names.
    #[must_use]
    pub fn paths(&self) -> Vec<&str> {
        match self {
            Self::Create { path }
            | Self::Write { path, .. }
            | Self::WriteDirect { path, .. }
            | Self::Store { path, .. }
            | Self::Append { path, .. }
            | Self::Read { path, .. }
            | Self::SetSize { path, .. }
            | Self::Allocate { path, .. }
            | Self::ChangeRange { path, .. }
            | Self::Migrate { path, .. }
            | Self::Sync { path }
            | Self::SyncData { path }
            | Self::SyncDirectory { path }
            | Self::MakeDirectory { path }
            | Self::RemoveDirectory { path }
            | Self::Remove { path }
            | Self::Symlink { path, .. }
            | Self::Fifo { path }
            | Self::SetPermissions { path, .. }
            | Self::SetOwner { path, .. }
            | Self::SetXattr { path, .. }
            | Self::RemoveXattr { path, .. }
            | Self::Hold { path, .. } => vec![path],
            Self::ExchangeRange { path, other, .. } => vec![path, other],
            Self::Rename { from, to, .. } => vec![from, to],
            Self::Link { original, link } => vec![original, link],
            Self::SyncAll
            | Self::WriteHeld { .. }
            | Self::ReadHeld { .. }
            | Self::LetGo { .. }
            | Self::Reopen => Vec::new(),
        }
    }
}
