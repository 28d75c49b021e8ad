//! Descriptors of the memory for other processes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, fchmod, openat};

use super::FileMemory;

impl FileMemory {
    /// A descriptor of the memory that is open for reading alone. It can be mapped private. Nobody can make one
    /// for writing of it, but processes of this one's own user.
    ///
    /// # Errors
    /// /proc is not there; no descriptors are left.
    pub fn for_reading(&self) -> io::Result<OwnedFd> {
        self.reopened(OFlags::RDONLY)
    }

    /// A descriptor of the memory for processes of this one's own user, who may also write to it.
    ///
    /// # Errors
    /// As [`Self::for_reading`].
    pub fn for_writing(&self) -> io::Result<OwnedFd> {
        self.reopened(OFlags::RDWR)
    }

    /// Opened anew, so that flags that somebody sets (`O_APPEND`) are not those of this process.
    fn reopened(&self, access: OFlags) -> io::Result<OwnedFd> {
        // Who gets a descriptor can do this, too, with the rights that the mode gives.
        fchmod(&self.fd, Mode::RUSR | Mode::WUSR)?;
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        Ok(openat(CWD, path, access | OFlags::CLOEXEC, Mode::empty())?)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use rustix::fs::{fcntl_getfl, fcntl_setfl, fstat};

    use super::*;
    use crate::{FRAME_SIZE, View, ViewKind};

    #[test]
    fn a_descriptor_for_reading_can_be_mapped_private_and_not_shared_for_stores() {
        let memory = FileMemory::new().expect("memory");
        memory.write(1, 0, b"read me");
        let fd = memory.for_reading().expect("a descriptor");
        let mode = fstat(&fd).expect("an open file").st_mode;
        assert_eq!(mode & 0o7777, 0o600, "other users can't open it anew");
        assert!(rustix::io::pwrite(&fd, b"x", 0).is_err());
        assert!(View::of_fd(&fd, 1, FRAME_SIZE, ViewKind::Shared).is_err());
        let view = View::of_fd(&fd, 1, FRAME_SIZE, ViewKind::PrivateReadOnly).expect("a view");
        let mut bytes = [0; 7];
        view.load(0, &mut bytes);
        assert_eq!(&bytes, b"read me");
    }

    #[test]
    fn flags_of_a_descriptor_that_was_handed_out_are_its_own() {
        let memory = FileMemory::new().expect("memory");
        let fd = memory.for_writing().expect("a descriptor");
        let flags = fcntl_getfl(&fd).expect("flags");
        fcntl_setfl(&fd, flags | OFlags::APPEND).expect("set");
        memory.write(3, 0, b"here");
        let mut bytes = [0; 4];
        rustix::io::pread(&fd, &mut bytes, 3 * FRAME_SIZE as u64).expect("read");
        assert_eq!(&bytes, b"here");
    }
}
