//! What is wrong with a map, or with an access to one.

use std::io::ErrorKind;

use pagefence_page_mmap::{MapError, UserfaultError};

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
        }
    }
}
