//! Descriptors that a process was started with.

#![expect(unsafe_code, reason = "no safe library makes this system call")]

use std::io;

/// Has every descriptor from number `first` on closed when this process comes to run another program, and in
/// the programs that it starts: also what whoever started it left open. None is closed now.
///
/// # Errors
/// The kernel (before Linux 5.11) or a filter of system calls has no such call; nothing has changed then.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: three numbers are passed and no memory; with this flag no descriptor is closed under who owns it.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    match outcome {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd as _;
    use std::process::{Command, Stdio};

    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

    use super::*;

    #[test]
    fn what_was_left_open_is_closed_by_exec() {
        let left_open = File::open("/proc/self/exe").expect("this test");
        fcntl_setfd(&left_open, FdFlags::empty()).expect("it is ours");
        let number = left_open.as_raw_fd().unsigned_abs();
        let is_inherited = || {
            let path = format!("/proc/self/fd/{number}");
            let mut test = Command::new("test");
            test.args(["-e", &path]).stdin(Stdio::null());
            test.status().expect("it can be run").success()
        };
        assert!(is_inherited());
        close_on_exec_from(number + 1).expect("this kernel can");
        assert!(is_inherited());
        close_on_exec_from(number).expect("this kernel can");
        assert!(!is_inherited());
        let flags = fcntl_getfd(&left_open).expect("it is open here");
        assert_eq!(flags, FdFlags::CLOEXEC);
    }
}
