//! The clock of the file system's times: the coarse one, as in Linux, so that no file is from the
//! future for who asks time(2).

use pagefence_vfs::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// The time of an operation.
pub(crate) fn now() -> Timestamp {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    Timestamp {
        seconds: now.tv_sec,
        nanoseconds: u32::try_from(now.tv_nsec).unwrap_or(0),
    }
}
