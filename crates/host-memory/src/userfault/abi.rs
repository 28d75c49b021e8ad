//! Numbers and structs of userfaultfd(2), as Linux gives them to programs
//! (`include/uapi/linux/userfaultfd.h`), under its own names.
//!
//! rustix has the system call alone, and no crate has POISON or the write-protecting CONTINUE.

use rustix::ioctl::{Opcode, opcode};

const UFFDIO: u8 = 0xaa;

/// `UFFD_API`: the version of the interface.
pub(super) const UFFD_API: u64 = 0xaa;

/// `UFFD_USER_MODE_ONLY`: faults of system calls are not told; they fail with EFAULT.
pub(super) const UFFD_USER_MODE_ONLY: u32 = 1;

pub(super) const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
pub(super) const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
pub(super) const UFFD_FEATURE_MINOR_SHMEM: u64 = 1 << 10;
pub(super) const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
pub(super) const UFFD_FEATURE_POISON: u64 = 1 << 14;

pub(super) const UFFDIO_REGISTER_MODE_MISSING: u64 = 1 << 0;
pub(super) const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
pub(super) const UFFDIO_REGISTER_MODE_MINOR: u64 = 1 << 2;

pub(super) const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub(super) const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;

pub(super) const UFFDIO_CONTINUE_MODE_DONTWAKE: u64 = 1 << 0;

/// Linux 6.4; no feature tells of it, but POISON is younger.
pub(super) const UFFDIO_CONTINUE_MODE_WP: u64 = 1 << 1;

pub(super) const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
pub(super) const UFFD_PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;
pub(super) const UFFD_PAGEFAULT_FLAG_WP: u64 = 1 << 1;
pub(super) const UFFD_PAGEFAULT_FLAG_MINOR: u64 = 1 << 2;

/// `struct uffdio_api`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Api {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_range`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// `struct uffdio_register`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Register {
    pub(super) range: Range,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct WriteProtect {
    pub(super) range: Range,
    pub(super) mode: u64,
}

/// `struct uffdio_continue` and `struct uffdio_poison`, which are alike.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Install {
    pub(super) range: Range,
    pub(super) mode: u64,
    /// `mapped` or `updated`: bytes that were done, or a negated errno. Not written if the ioctl fails
    /// early.
    pub(super) done: i64,
}

/// Bytes of `struct uffd_msg`: an event, a byte; then, for a fault, flags at 8 and an address at 16.
pub(super) const MESSAGE: usize = 32;
pub(super) const MESSAGE_FLAGS: usize = 8;
pub(super) const MESSAGE_ADDRESS: usize = 16;

pub(super) const UFFDIO_API: Opcode = opcode::read_write::<Api>(UFFDIO, 0x3f);
pub(super) const UFFDIO_REGISTER: Opcode = opcode::read_write::<Register>(UFFDIO, 0x00);
pub(super) const UFFDIO_WAKE: Opcode = opcode::read::<Range>(UFFDIO, 0x02);
pub(super) const UFFDIO_WRITEPROTECT: Opcode = opcode::read_write::<WriteProtect>(UFFDIO, 0x06);
pub(super) const UFFDIO_CONTINUE: Opcode = opcode::read_write::<Install>(UFFDIO, 0x07);
pub(super) const UFFDIO_POISON: Opcode = opcode::read_write::<Install>(UFFDIO, 0x08);

/// Asks `/dev/userfaultfd` for a new one; the argument is its flags.
pub(super) const USERFAULTFD_IOC_NEW: Opcode = opcode::none(UFFDIO, 0x00);

const _: () = {
    assert!(size_of::<Api>() == 24 && size_of::<Range>() == 16);
    assert!(size_of::<Register>() == 32 && size_of::<WriteProtect>() == 24);
    assert!(size_of::<Install>() == 32);
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers as a C compiler makes them of the header, where `_IOC` is the common one.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[test]
    fn numbers_are_those_of_the_header() {
        assert_eq!(UFFDIO_API, 0xc018_aa3f);
        assert_eq!(UFFDIO_REGISTER, 0xc020_aa00);
        assert_eq!(UFFDIO_WAKE, 0x8010_aa02);
        assert_eq!(UFFDIO_WRITEPROTECT, 0xc018_aa06);
        assert_eq!(UFFDIO_CONTINUE, 0xc020_aa07);
        assert_eq!(UFFDIO_POISON, 0xc020_aa08);
        assert_eq!(USERFAULTFD_IOC_NEW, 0xaa00);
    }
}
