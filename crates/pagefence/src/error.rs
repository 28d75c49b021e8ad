//! Errors of the library: what was tried, on which path, and why it failed.

use std::io;
use std::path::{Path, PathBuf};

use crate::map::problem::Problem;

/// Result of the library's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation on a volume failed. Its text is one sentence that names the path.
///
/// ```
/// # let image = pagefence::doc_image();
/// use pagefence::{Options, Volume};
/// let volume = Volume::open(&image, Options::new())?;
/// let error = volume.read("/no/such/file").expect_err("there is none");
/// assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
/// assert_eq!(error.path(), Some(std::path::Path::new("/no/such/file")));
/// # Ok::<(), pagefence::Error>(())
/// ```
#[derive(Debug)]
pub struct Error {
    path: Option<PathBuf>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Operation(pagefence_vfs::Error),
    Open(Box<pagefence_ext4::MountError>),
    Make(Box<pagefence_ext4::mkfs::MkfsError>),
    Map(Box<Problem>),
}

impl Error {
    pub(crate) fn at(path: &Path, source: pagefence_vfs::Error) -> Self {
        Self {
            path: Some(path.to_path_buf()),
            source: Source::Operation(source),
        }
    }

    pub(crate) fn open(path: Option<&Path>, source: pagefence_ext4::MountError) -> Self {
        Self {
            path: path.map(Path::to_path_buf),
            source: Source::Open(Box::new(source)),
        }
    }

    pub(crate) fn make(path: Option<&Path>, source: pagefence_ext4::mkfs::MkfsError) -> Self {
        Self {
            path: path.map(Path::to_path_buf),
            source: Source::Make(Box::new(source)),
        }
    }

    pub(crate) fn of_map(path: &Path, source: Problem) -> Self {
        Self {
            path: Some(path.to_path_buf()),
            source: Source::Map(Box::new(source)),
        }
    }

    /// The path in the volume (or the image's own) that the operation was about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The kind of the error, as `std::io` sorts them. Damage of the file system is
    /// [`io::ErrorKind::InvalidData`].
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        use pagefence_vfs::Error as E;
        match &self.source {
            Source::Open(error) => error.kind(),
            Source::Make(error) => error.kind(),
            Source::Map(problem) => problem.kind(),
            Source::Operation(error) => match error {
                E::NotFound | E::Stale => io::ErrorKind::NotFound,
                E::NotDirectory => io::ErrorKind::NotADirectory,
                E::IsDirectory => io::ErrorKind::IsADirectory,
                E::Exists => io::ErrorKind::AlreadyExists,
                E::NotEmpty => io::ErrorKind::DirectoryNotEmpty,
                E::InvalidArgument => io::ErrorKind::InvalidInput,
                E::NameTooLong => io::ErrorKind::InvalidFilename,
                E::PermissionDenied | E::NotPermitted => io::ErrorKind::PermissionDenied,
                E::CrossesDevices => io::ErrorKind::CrossesDevices,
                E::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
                E::Unsupported(_) => io::ErrorKind::Unsupported,
                E::NoSpace => io::ErrorKind::StorageFull,
                E::FileTooLarge => io::ErrorKind::FileTooLarge,
                E::TooManyLinks => io::ErrorKind::TooManyLinks,
                E::TooLarge => io::ErrorKind::ArgumentListTooLong,
                E::Busy => io::ErrorKind::ResourceBusy,
                E::Again => io::ErrorKind::WouldBlock,
                E::OutOfMemory => io::ErrorKind::OutOfMemory,
                E::Corrupt { .. } => io::ErrorKind::InvalidData,
                E::Io(error) => error.kind(),
                _ => io::ErrorKind::Other,
            },
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.display())?;
        }
        match &self.source {
            Source::Operation(error) => error.fmt(f),
            Source::Open(error) => error.fmt(f),
            Source::Make(error) => error.fmt(f),
            Source::Map(problem) => problem.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.source {
            Source::Operation(error) => error.source(),
            Source::Open(error) => error.source(),
            Source::Make(error) => error.source(),
            Source::Map(problem) => problem.source(),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}
