//! The clock of a file system's times: the coarse one, as in Linux. The precise clock is up to a
//! tick ahead of time(2), and whoever compares (e2fsck the superblock's times, make those of
//! files) would take what was written just now for the future.

use pagefence_ext4_format::inode::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime};

fn read() -> Timespec {
    clock_gettime(ClockId::RealtimeCoarse)
}

/// The time of an operation.
pub(crate) fn now() -> Timestamp {
    let now = read();
    Timestamp {
        seconds: now.tv_sec,
        nanoseconds: u32::try_from(now.tv_nsec).unwrap_or(0),
    }
}

/// Whole seconds since the epoch, as deletion times have them: 0 before it.
pub(crate) fn seconds() -> u32 {
    let seconds = read().tv_sec.max(0);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use rustix::time::{ClockId, clock_gettime};

    use super::now;

    /// What time(2) answers is the coarse clock.
    #[test]
    fn is_never_ahead_of_the_clock_that_programs_compare_with() {
        for _ in 0..1000 {
            let mine = now();
            let theirs = clock_gettime(ClockId::RealtimeCoarse);
            assert!((mine.seconds, i64::from(mine.nanoseconds)) <= (theirs.tv_sec, theirs.tv_nsec));
        }
    }
}
