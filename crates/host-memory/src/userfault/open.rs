//! How a userfaultfd is come by, with the features that maps need.
#![expect(unsafe_code, reason = "system calls that make descriptors")]

use std::ffi::c_void;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl};
use rustix::mm::UserfaultfdFlags;

use super::{UserfaultError, abi};

/// The features that maps need, and their names.
const FEATURES: [(u64, &str); 5] = [
    (
        abi::UFFD_FEATURE_PAGEFAULT_FLAG_WP,
        "UFFD_FEATURE_PAGEFAULT_FLAG_WP",
    ),
    (
        abi::UFFD_FEATURE_MISSING_SHMEM,
        "UFFD_FEATURE_MISSING_SHMEM",
    ),
    (abi::UFFD_FEATURE_MINOR_SHMEM, "UFFD_FEATURE_MINOR_SHMEM"),
    (
        abi::UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
        "UFFD_FEATURE_WP_HUGETLBFS_SHMEM",
    ),
    (abi::UFFD_FEATURE_POISON, "UFFD_FEATURE_POISON"),
];

/// How a userfaultfd is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// The system call, for faults of user code alone: anybody may.
    UserFaults,
    /// The device, for all faults: who may open it.
    Device,
    /// The system call, for all faults: root, or anybody where a sysctl says so.
    KernelFaults,
}

/// Opens a userfaultfd and turns on the features that maps need.
pub(super) fn open(way: Way) -> Result<OwnedFd, UserfaultError> {
    let fd = way.open()?;
    let needed = FEATURES.iter().fold(0, |all, (feature, _)| all | feature);
    match enable(&fd, needed) {
        Ok(_) => Ok(fd),
        // Features can be chosen once: what this kernel has, another one must be asked.
        Err(Errno::INVAL) => match enable(&way.open()?, 0) {
            Ok(has) => Err(lacking(has)),
            Err(errno) => Err(UserfaultError::System(errno.into())),
        },
        Err(errno) => Err(UserfaultError::System(errno.into())),
    }
}

impl Way {
    fn open(self) -> Result<OwnedFd, UserfaultError> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        let opened = match self {
            Self::UserFaults => {
                let user_mode_only = UserfaultfdFlags::from_bits_retain(abi::UFFD_USER_MODE_ONLY);
                // SAFETY: it watches nothing until a view is registered.
                unsafe { rustix::mm::userfaultfd(flags | user_mode_only) }
            }
            Self::KernelFaults => {
                // SAFETY: as above.
                unsafe { rustix::mm::userfaultfd(flags) }
            }
            Self::Device => {
                let access = OFlags::RDWR | OFlags::CLOEXEC;
                rustix::fs::open(c"/dev/userfaultfd", access, rustix::fs::Mode::empty()).and_then(
                    |device| {
                        // SAFETY: of this device the ioctl makes a new descriptor; the argument
                        // is its flags.
                        unsafe { ioctl(&device, New(flags.bits())) }
                    },
                )
            }
        };
        opened.map_err(|errno| match errno {
            Errno::NOSYS => UserfaultError::NotBuilt,
            Errno::PERM | Errno::ACCESS => match self {
                Self::UserFaults => UserfaultError::Denied,
                Self::Device | Self::KernelFaults => UserfaultError::KernelFaultsDenied,
            },
            errno => UserfaultError::System(errno.into()),
        })
    }
}

/// `USERFAULTFD_IOC_NEW`, with the flags of the new descriptor.
struct New(u32);

// SAFETY: the argument is an integer, and what the ioctl gives is a descriptor that is nobody else's.
unsafe impl Ioctl for New {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        abi::USERFAULTFD_IOC_NEW
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(usize::try_from(self.0).expect("32 bits or more"))
    }

    // SAFETY (of callers): `new` is what this ioctl gave, without an error.
    unsafe fn output_from_ptr(new: IoctlOutput, _: *mut c_void) -> Result<OwnedFd, Errno> {
        // SAFETY: a new descriptor, open, and owned by nobody.
        Ok(unsafe { OwnedFd::from_raw_fd(new) })
    }
}

/// Turns `features` on; says which ones there are.
fn enable(fd: &OwnedFd, features: u64) -> Result<u64, Errno> {
    let mut argument = abi::Api {
        api: abi::UFFD_API,
        features,
        ioctls: 0,
    };
    // SAFETY: `argument` is this ioctl's struct.
    unsafe {
        let call = Updater::<{ abi::UFFDIO_API }, _>::new(&mut argument);
        ioctl(fd, call)?;
    }
    Ok(argument.features)
}

/// What `has` lacks of the features that are needed.
fn lacking(has: u64) -> UserfaultError {
    let missing: Vec<_> = FEATURES
        .iter()
        .filter(|(feature, _)| has & feature == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return UserfaultError::System(Errno::INVAL.into());
    }
    UserfaultError::Lacks { missing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_named() {
        let all = FEATURES.iter().fold(0, |all, (feature, _)| all | feature);
        let error = lacking(all & !abi::UFFD_FEATURE_POISON & !abi::UFFD_FEATURE_MINOR_SHMEM);
        let text = error.to_string();
        assert!(
            text.contains("UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_POISON"),
            "{text}"
        );
        assert!(!text.contains("MISSING"), "{text}");
    }
}
