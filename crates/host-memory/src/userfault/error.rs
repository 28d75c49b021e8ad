//! What a userfaultfd refuses.

use std::io;

/// Why there is no userfaultfd that serves.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserfaultError {
    /// The kernel was built without.
    #[error("this kernel has no userfaultfd (CONFIG_USERFAULTFD), which memory maps need")]
    NotBuilt,
    /// Not even faults of user code may be handled.
    #[error(
        "userfaultfd is denied, which memory maps need: allow the system call in the \
         container's or the service's filter (seccomp)"
    )]
    Denied,
    /// Faults of user code alone may be handled, not those of system calls.
    #[error(
        "faults of system calls may not be handled: run as root, give access to \
         /dev/userfaultfd, or set the sysctl vm.unprivileged_userfaultfd to 1"
    )]
    KernelFaultsDenied,
    /// The kernel is too old, or built for another architecture.
    #[error("this kernel's userfaultfd lacks {}, which memory maps need (Linux 6.6)", .missing.join(", "))]
    Lacks {
        /// The features' names, as the kernel's header has them.
        missing: Vec<&'static str>,
    },
    /// Something else.
    #[error("userfaultfd can't be opened")]
    System(#[source] io::Error),
}

/// How far a run of pages was continued, when not to its end. Those before `page` were.
#[derive(Debug, thiserror::Error)]
pub enum Continue {
    /// Something is mapped there already: whoever waits for it is not woken by this.
    #[error("page {page} is mapped already")]
    AlreadyMapped {
        /// The page of the file.
        page: u64,
    },
    /// The memory has no such page (any more): it was never written, or has been punched.
    #[error("page {page} is a hole")]
    Hole {
        /// The page of the file.
        page: u64,
    },
    /// The view is not registered there (any more): the user has unmapped it.
    #[error("page {page} is not registered")]
    Gone {
        /// The page of the file.
        page: u64,
    },
    /// The operating system refuses: no memory for a page table, or a page that is broken.
    #[error("page {page} can't be mapped")]
    Refused {
        /// The page of the file.
        page: u64,
        /// Its reason.
        source: io::Error,
    },
}

/// Why an operation was not done on all of a range of a view.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    /// The view is not registered in some place (any more): the user has unmapped it. It was done in
    /// all others.
    #[error("a part of the range is not registered")]
    Gone,
    /// The operating system refuses: no memory for a page table. It may have been done in a part.
    #[error("the range can't be changed")]
    Refused(#[source] io::Error),
}
