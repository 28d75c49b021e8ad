//! What is wrong with a map, or with an access to one.

use std::io::ErrorKind;

use pagefence_page_mmap::remote::GuardError;
use pagefence_page_mmap::{MapError, UserfaultError};
use rustix::io::Errno;

/// Why a file can't be mapped, or its map not be used like that.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("there is nothing to map: the range is empty")]
    Empty,
    #[error("the range to be mapped ends before it begins")]
    Backwards,
    #[error("the range to be mapped reaches further than files can")]
    TooFar,
    #[error("a file that is mapped has to be open for reading")]
    NotReadable,
    #[error("a shared map for stores needs the file to be open for writing")]
    NotWritable,
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("{count} bytes at byte {at} are not inside the map, which has {len}")]
    Outside { at: usize, count: usize, len: usize },
    #[error("byte {end} is past the end of the file, which has {size} now")]
    PastEnd { end: u64, size: u64 },
    #[error("the map is for reading only")]
    ReadOnly,
    #[error("byte {at} of the file is no place for an atomic of {size} bytes: it is not aligned")]
    NotAligned { at: u64, size: usize },
    #[error("atomic {what} have no such ordering")]
    Ordering { what: &'static str },
    #[error("the slice of the map has {have} bytes and the buffer {given}")]
    Length { have: usize, given: usize },
    #[error(
        "nobody serves this any more: the mount has ended, or its server has cut this program off"
    )]
    NotConnected,
    #[error(
        "this is no mount of pagefence: `pagefence mount IMAGE DIRECTORY` makes one of an image"
    )]
    NotPagefence,
    #[error(
        "this mount is another user's, who has to mount it with `-o allow_other` to let others in"
    )]
    OfAnotherUser,
    #[error(
        "files of this mount can't be mapped from outside: it is a file system in memory, or its server \
         is an older version of pagefence"
    )]
    NoMaps,
    #[error(
        "files of this mount can't be mapped from outside: it was mounted with `-o writeback`, by \
         which the kernel keeps what is written to itself; mount it without"
    )]
    Writeback,
    #[error(
        "only processes of the user who serves the mount (user id {server}) may have maps whose stores \
         everybody sees; map it read_only() or private()"
    )]
    NotTheServersUser { server: u32 },
    #[error(
        "a map whose stores everybody sees needs a file that can be written to anywhere, which is \
         neither immutable nor append-only; map it read_only() or private()"
    )]
    NotWritableAnywhere,
    #[error("the mount is read-only; map it read_only() or private()")]
    ReadOnlyMount,
    #[error("the mount serves as many maps as it can: try again when others have been dropped")]
    TooManyMaps,
    #[error(
        "the mount's server can't be reached by its socket ({0}): it has ended, or this program is in \
         another network namespace, of a container, say"
    )]
    Unreachable(#[source] std::io::Error),
    #[error(
        "the mount's server and this program don't understand each other: they are of different versions"
    )]
    Nonsense,
    #[error("it can't be opened: {0}")]
    Open(#[source] std::io::Error),
    #[error("only regular files can be mapped")]
    NotRegular,
    #[error("the file is not on the mount at {mount}")]
    OtherMount { mount: String },
    #[error("the mount's server: {0}")]
    Mount(#[source] std::io::Error),
}

impl Problem {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Empty
            | Self::Backwards
            | Self::Outside { .. }
            | Self::NotAligned { .. }
            | Self::Ordering { .. }
            | Self::Length { .. } => ErrorKind::InvalidInput,
            Self::TooFar => ErrorKind::FileTooLarge,
            Self::NotReadable | Self::NotWritable | Self::ReadOnly => ErrorKind::PermissionDenied,
            Self::PastEnd { .. } => ErrorKind::UnexpectedEof,
            Self::Map(MapError::System(error)) => error.kind(),
            Self::Map(MapError::Userfault(error)) => match error {
                UserfaultError::Denied | UserfaultError::KernelFaultsDenied => {
                    ErrorKind::PermissionDenied
                }
                UserfaultError::NotBuilt | UserfaultError::Lacks { .. } => ErrorKind::Unsupported,
                UserfaultError::System(error) => error.kind(),
                _ => ErrorKind::Other,
            },
            Self::Map(_) => ErrorKind::Other,
            Self::NotConnected => ErrorKind::NotConnected,
            Self::NotPagefence | Self::NoMaps | Self::Writeback => ErrorKind::Unsupported,
            Self::OfAnotherUser | Self::NotTheServersUser { .. } | Self::NotWritableAnywhere => {
                ErrorKind::PermissionDenied
            }
            Self::ReadOnlyMount => ErrorKind::ReadOnlyFilesystem,
            Self::TooManyMaps => ErrorKind::ResourceBusy,
            Self::Nonsense => ErrorKind::InvalidData,
            Self::NotRegular => ErrorKind::InvalidInput,
            Self::OtherMount { .. } => ErrorKind::CrossesDevices,
            Self::Unreachable(error) | Self::Open(error) | Self::Mount(error) => error.kind(),
        }
    }

    /// Why a system call on a file of a mount failed.
    pub(crate) fn of_mount(errno: Errno) -> Self {
        match errno {
            Errno::NOTCONN | Errno::CONNABORTED => Self::NotConnected,
            errno => Self::Mount(errno.into()),
        }
    }

    /// Why there is no ticket for a map.
    pub(crate) fn of_ticket(error: &std::io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::NOTTY) => Self::NoMaps,
            Some(Errno::OPNOTSUPP) => Self::Writeback,
            Some(Errno::AGAIN) => Self::TooManyMaps,
            Some(errno) => Self::of_mount(errno),
            None => Self::Nonsense,
        }
    }

    /// Why there is no map although there was a ticket; `server` is the user whom the server belongs to.
    pub(crate) fn of_guard(error: GuardError, server: Option<u32>) -> Self {
        match error {
            GuardError::Userfault(error) => Self::Map(error.into()),
            GuardError::System(error) if error.kind() == ErrorKind::InvalidData => Self::Nonsense,
            GuardError::System(error) => Self::Map(error.into()),
            GuardError::Gone => Self::NotConnected,
            GuardError::Refused(Errno::ACCESS | Errno::PERM) => match server {
                Some(server) if server != rustix::process::geteuid().as_raw() => {
                    Self::NotTheServersUser { server }
                }
                _ => Self::NotWritableAnywhere,
            },
            GuardError::Refused(Errno::ROFS) => Self::ReadOnlyMount,
            GuardError::Refused(errno) => Self::of_ticket(&errno.into()),
            other => Self::Map(std::io::Error::other(other).into()),
        }
    }
}
