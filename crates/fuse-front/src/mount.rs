//! Attaching a /dev/fuse descriptor to a directory, and taking it off.
//!
//! Root (also of a user namespace) calls mount(2); everyone else goes through the set-uid helper
//! fusermount3, which hands the descriptor back.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::fusermount;
use crate::session::REQUEST_BYTES;

/// What to mount, and how.
#[derive(Clone, Copy, Debug)]
pub struct MountRequest<'a> {
    /// What mount(8) and df show as source: the image.
    pub source: &'a OsStr,
    /// The type shows as `fuse.` followed by this.
    pub subtype: &'a str,
    /// The directory, absolute, with no symbolic link.
    pub mountpoint: &'a Path,
    /// Refuse writing before it gets to the server.
    pub read_only: bool,
    /// Honour set-uid and set-gid bits; root only, others ask in vain.
    pub suid: bool,
    /// Let device nodes work; root only, others ask in vain.
    pub dev: bool,
    /// Let programs be executed.
    pub exec: bool,
    /// Let users other than the caller in: with `default_permissions` only.
    pub allow_other: bool,
    /// Let the kernel check permissions.
    pub default_permissions: bool,
}

/// Why a file system could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Everybody is to be let in, and nobody checked.
    #[error(
        "allow_other without default_permissions would let every user read and change every file: ask for both"
    )]
    Unchecked,
    /// There is no /dev/fuse.
    #[error("there is no /dev/fuse: load the kernel's module with `modprobe fuse`")]
    NoDevice,
    /// /dev/fuse can't be opened.
    #[error("/dev/fuse can't be opened ({0}): its mode should be 666")]
    Device(io::Error),
    /// mount(2) failed.
    #[error("the kernel refused to mount on {mountpoint}: {error}")]
    Kernel {
        /// Where.
        mountpoint: String,
        /// Why.
        error: io::Error,
    },
    /// fusermount3 can't be run.
    #[error(
        "fusermount3, which mounts for users other than root, can't be run ({0}): install the package fuse3"
    )]
    NoFusermount(io::Error),
    /// fusermount3 failed, and said why.
    #[error("fusermount3 refused to mount: {0}")]
    Fusermount(String),
    /// fusermount3 handed over no descriptor.
    #[error("fusermount3 handed over no descriptor: {0}")]
    NoDescriptor(io::Error),
}

/// Why a file system could not be unmounted.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Someone has a file open or a directory as its own in it.
    #[error("it is in use")]
    Busy,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Mounts, and returns the connection that a [`Server`](crate::Server) answers on. Until it does,
/// whoever touches the mount waits; if the descriptor is closed, the mount is dead.
///
/// # Errors
/// See [`MountError`]; nothing is mounted then.
pub fn mount(request: &MountRequest<'_>) -> Result<OwnedFd, MountError> {
    if request.allow_other && !request.default_permissions {
        return Err(MountError::Unchecked);
    }
    if rustix::process::geteuid().is_root() {
        match mount_directly(request) {
            // Root without CAP_SYS_ADMIN.
            Err(MountError::Kernel { error, .. })
                if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {}
            result => return result,
        }
    }
    fusermount::mount(request)
}

fn mount_directly(request: &MountRequest<'_>) -> Result<OwnedFd, MountError> {
    let refused = |error: io::Error| MountError::Kernel {
        mountpoint: request.mountpoint.display().to_string(),
        error,
    };
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => MountError::NoDevice,
            _ => MountError::Device(error),
        })?;
    let mode = std::fs::metadata(request.mountpoint)
        .map_err(refused)?
        .mode();
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={}",
        device.as_raw_fd(),
        mode & 0o170_000,
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    for option in kernel_options(request) {
        data.push(',');
        data.push_str(&option);
    }
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, request.read_only);
    flags.set(MountFlags::NOSUID, !request.suid);
    flags.set(MountFlags::NODEV, !request.dev);
    flags.set(MountFlags::NOEXEC, !request.exec);
    let data = CString::new(data).map_err(|error| refused(error.into()))?;
    let kind = format!("fuse.{}", request.subtype);
    rustix::mount::mount(
        request.source,
        request.mountpoint,
        kind,
        flags,
        data.as_c_str(),
    )
    .map_err(|error| refused(error.into()))?;
    Ok(device.into())
}

/// The options that the kernel's fuse understands, whoever calls it.
pub(crate) fn kernel_options(request: &MountRequest<'_>) -> Vec<String> {
    let mut options = vec![format!("max_read={REQUEST_BYTES}")];
    if request.default_permissions {
        options.push("default_permissions".into());
    }
    if request.allow_other {
        options.push("allow_other".into());
    }
    options
}

/// Unmounts what is on top at `mountpoint`: an absolute path, no symbolic link. With `lazily` the
/// mount disappears at once, and ends when its last user does.
///
/// # Errors
/// `Busy` if it is in use (never if `lazily`).
pub fn unmount(mountpoint: &Path, lazily: bool) -> Result<(), UnmountError> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazily);
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(UnmountError::Busy),
        Err(Errno::PERM) => fusermount::unmount(mountpoint, lazily),
        Err(error) => Err(UnmountError::Other(io::Error::from(error).to_string())),
    }
}

/// Lets the kernel read ahead 1 MiB, and use as much memory for the mount as for any disk: what
/// it gives a FUSE mount at first is 128 KiB and next to nothing. Needs root, and a mount that
/// answers; without effect otherwise.
pub fn tune(mountpoint: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let device = match std::fs::metadata(mountpoint) {
        Ok(metadata) => metadata.dev(),
        Err(error) => return tracing::debug!(%error, "the mount's device is unknown"),
    };
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    for (name, value) in [
        ("read_ahead_kb", "1024"),
        ("strict_limit", "0"),
        ("max_ratio", "100"),
    ] {
        let path = format!("/sys/class/bdi/{major}:{minor}/{name}");
        if let Err(error) = std::fs::write(&path, value) {
            tracing::debug!(%error, path, "not tuned");
        }
    }
}

/// A path as one word of fusermount3's option list, where commas part options.
pub(crate) fn escape(source: &OsStr) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(source.len());
    for &byte in source.as_bytes() {
        if byte == b',' || byte == b'\\' {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_let_in_unchecked() {
        let request = MountRequest {
            source: OsStr::new("image"),
            subtype: "pagefence",
            mountpoint: Path::new("/nowhere"),
            read_only: true,
            suid: false,
            dev: false,
            exec: false,
            allow_other: true,
            default_permissions: false,
        };
        let refused = mount(&request).expect_err("before anything is tried");
        assert!(matches!(refused, MountError::Unchecked), "{refused}");
    }

    #[test]
    fn commas_in_the_name_of_an_image_are_no_options() {
        assert_eq!(escape(OsStr::new(r"/a,suid\b")), br"/a\,suid\\b");
    }
}
