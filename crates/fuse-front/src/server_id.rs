//! Which process serves a mount: an attribute of its root that is answered but never listed.
//!
//! `umount` waits for that process. It is an attribute and no ioctl because reading it needs no
//! open root directory (which its mode may forbid to who mounted it), and because getxattr can be
//! called from safe code.

use std::io;
use std::path::Path;

/// Name of the attribute.
pub const SERVER_ID_XATTR: &str = "system.pagefence.server";

/// A process, as told by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerId {
    /// Its number in its own namespace.
    pub pid: u32,
    /// Inode number of that namespace (/proc/self/ns/pid); 0 if /proc does not tell.
    pub pid_namespace: u64,
}

impl ServerId {
    /// The calling process.
    pub fn own() -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            pid: std::process::id(),
            pid_namespace: std::fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino()),
        }
    }

    /// Asks the server of the mount whose root is `mountpoint`.
    ///
    /// # Errors
    /// `NotConnected` (ENOTCONN) or ECONNABORTED if the server is gone, EACCES if the mount
    /// belongs to another user, `InvalidData` if the answer is not understood.
    pub fn ask(mountpoint: &Path) -> io::Result<Self> {
        let mut buffer = [0u8; 64];
        let length = rustix::fs::getxattr(mountpoint, SERVER_ID_XATTR, &mut buffer[..])?;
        Self::parse(&buffer[..length]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The attribute's value: pid, a space, namespace, in decimal.
    pub(crate) fn encode(self) -> Vec<u8> {
        format!("{} {}", self.pid, self.pid_namespace).into_bytes()
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let (pid, namespace) = std::str::from_utf8(value).ok()?.split_once(' ')?;
        Some(Self {
            pid: pid.parse().ok()?,
            pid_namespace: namespace.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood() {
        let own = ServerId::own();
        assert_eq!(own.pid, std::process::id());
        assert_eq!(ServerId::parse(&own.encode()), Some(own));
        assert_eq!(ServerId::parse(b""), None);
        assert_eq!(ServerId::parse(b"1 x"), None);
    }
}
