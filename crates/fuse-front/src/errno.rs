//! The only table from errors to error numbers.

use fuser::Errno;
use pagefence_vfs::Error;

/// EUCLEAN, "structure needs cleaning": what Linux's file systems answer for a damaged structure.
pub(crate) fn euclean() -> Errno {
    Errno::from_i32(rustix::io::Errno::UCLEAN.raw_os_error())
}

/// The number that a caller of the kernel sees for an error.
///
/// Invariant: never ENOSYS, which would tell the kernel not to send such requests any more.
pub(crate) fn errno(error: &Error) -> Errno {
    match error {
        Error::NotFound => Errno::ENOENT,
        Error::Stale => Errno::ESTALE,
        Error::NotDirectory => Errno::ENOTDIR,
        Error::IsDirectory => Errno::EISDIR,
        Error::Exists => Errno::EEXIST,
        Error::NotEmpty => Errno::ENOTEMPTY,
        Error::InvalidArgument => Errno::EINVAL,
        Error::NameTooLong => Errno::ENAMETOOLONG,
        Error::TooManySymlinks => Errno::ELOOP,
        Error::NoAttribute => Errno::ENODATA,
        Error::NoData => Errno::ENXIO,
        Error::PermissionDenied => Errno::EACCES,
        Error::NotPermitted => Errno::EPERM,
        Error::CrossesDevices => Errno::EXDEV,
        Error::ReadOnly => Errno::EROFS,
        // EOPNOTSUPP, never EINVAL: programs fall back on the former only.
        Error::Unsupported(_) => Errno::EOPNOTSUPP,
        Error::NoKey => Errno::from_i32(rustix::io::Errno::NOKEY.raw_os_error()),
        Error::NoSpace => Errno::ENOSPC,
        Error::FileTooLarge => Errno::EFBIG,
        Error::TooManyLinks => Errno::EMLINK,
        Error::TooLarge => Errno::E2BIG,
        Error::Busy => Errno::EBUSY,
        Error::Again => Errno::EAGAIN,
        Error::OutOfMemory => Errno::ENOMEM,
        Error::Corrupt { .. } => euclean(),
        // Whatever the image's own file system said (EBADF, ENOSYS, …) is not about this file.
        Error::Io(_) => Errno::EIO,
        // A kind that this table does not know yet.
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_linux() {
        let corrupt = Error::Corrupt {
            what: String::new(),
            place: pagefence_vfs::Place::default(),
        };
        assert_eq!(errno(&corrupt).code(), 117);
        assert_eq!(errno(&Error::NoKey).code(), 126);
        assert_eq!(errno(&Error::CrossesDevices).code(), 18);
        assert_eq!(errno(&Error::NoAttribute).code(), 61);
        assert_eq!(errno(&Error::NoData).code(), 6);
        assert_eq!(errno(&Error::Again).code(), 11);
        assert_eq!(errno(&Error::Unsupported("x")).code(), 95);
    }

    #[test]
    fn an_error_of_the_image_never_turns_an_operation_off() {
        let enosys = std::io::Error::from_raw_os_error(Errno::ENOSYS.code());
        assert_eq!(errno(&Error::Io(enosys)).code(), Errno::EIO.code());
    }
}
