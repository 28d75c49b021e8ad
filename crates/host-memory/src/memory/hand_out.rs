//! Descriptors of the memory for other processes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use pagefence_lock_order::primitives::Arc;
use rustix::fs::{CWD, Mode, OFlags, fchmod, openat};

use super::FileMemory;

impl FileMemory {
    /// A descriptor of the memory open for reading alone, which nobody can make one for writing of but
    /// processes of this one's own user, by changing its mode. It can be mapped private.
    ///
    /// # Errors
    /// /proc is not there; no descriptors are left.
    pub fn for_reading(&self) -> io::Result<Arc<OwnedFd>> {
        let mut for_reading = self.for_reading.lock();
        if let Some(fd) = &*for_reading {
            return Ok(Arc::clone(fd));
        }
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = Arc::new(openat(CWD, path, flags, Mode::empty())?);
        // Who gets a descriptor can open what it refers to anew by /proc, with the rights that the
        // mode gives.
        fchmod(&self.fd, Mode::empty())?;
        *for_reading = Some(Arc::clone(&fd));
        Ok(fd)
    }

    /// A descriptor of the memory for processes of this one's own user, who may also write to it.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn for_writing(&self) -> io::Result<OwnedFd> {
        // Later the mode would forbid to open it.
        self.for_reading()?;
        self.fd.as_fd().try_clone_to_owned()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use rustix::fs::fstat;

    use super::*;
    use crate::{FRAME_SIZE, View, ViewKind};

    #[test]
    fn a_descriptor_for_reading_can_be_mapped_private_and_not_shared_for_stores() {
        let memory = FileMemory::new().expect("memory");
        memory.write(1, 0, b"read me");
        let fd = memory.for_reading().expect("a descriptor");
        let mode = fstat(&*fd).expect("an open file").st_mode;
        assert_eq!(mode & 0o7777, 0);
        assert!(rustix::io::pwrite(&*fd, b"x", 0).is_err());
        assert!(View::of_fd(&*fd, 1, FRAME_SIZE, ViewKind::Shared).is_err());
        let view = View::of_fd(&*fd, 1, FRAME_SIZE, ViewKind::PrivateReadOnly).expect("a view");
        let mut bytes = [0; 7];
        view.load(0, &mut bytes);
        assert_eq!(&bytes, b"read me");
        let again = memory.for_reading().expect("a descriptor");
        assert!(Arc::ptr_eq(&fd, &again));
    }
}
