//! Errors of writing back, reported to each open file once (Linux: errseq_t).
//!
//! Writeback fails when nobody waits for it. The failure is noted here, and every file that was
//! open then hears of it at its next fsync, once; if none was, the first one that is opened. The
//! cache has such a log as well, of all its files, for who syncs them all.

use pagefence_lock_order::primitives::Mutex;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};

/// How much an open file has heard of the errors of its mapping: one per open file description,
/// from [`crate::Mapping::error_cursor`] at its opening. Or how much a file system has heard of the
/// errors of all its files, from [`crate::PageCache::error_cursor`].
#[derive(Debug)]
pub struct ErrorCursor(AtomicU64);

/// The errors of one mapping, or of all.
#[derive(Debug)]
pub(crate) struct ErrorLog<E> {
    /// Errors so far.
    count: AtomicU64,
    /// The last one. A box: most mappings never have any.
    last: Mutex<Option<Box<Last<E>>>>,
}

#[derive(Debug)]
struct Last<E> {
    error: E,
    /// Some file has heard of it.
    seen: bool,
}

impl<E: Clone> ErrorLog<E> {
    pub(crate) fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            last: Mutex::new(None),
        }
    }

    /// Notes that writing back failed.
    pub(crate) fn note(&self, error: E) {
        let mut last = self.last.lock();
        *last = Some(Box::new(Last { error, seen: false }));
        self.count.fetch_add(1, Ordering::Release);
    }

    /// A cursor for a file opened now: it will hear of later errors, and of one that nobody has
    /// heard of yet.
    pub(crate) fn cursor(&self) -> ErrorCursor {
        let last = self.last.lock();
        let unseen = last.as_ref().is_some_and(|last| !last.seen);
        ErrorCursor(AtomicU64::new(
            self.count.load(Ordering::Relaxed) - u64::from(unseen),
        ))
    }

    /// Errors so far, for [`Self::since`].
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// The last error, if there were any after so many. No cursor has heard of it by that.
    pub(crate) fn since(&self, count: u64) -> Result<(), E> {
        if self.count() == count {
            return Ok(());
        }
        let last = self.last.lock();
        last.as_ref().map_or(Ok(()), |last| Err(last.error.clone()))
    }

    /// The last error, if it came after what `cursor` has heard of; now it has.
    pub(crate) fn check(&self, cursor: &ErrorCursor) -> Result<(), E> {
        if cursor.0.load(Ordering::Acquire) == self.count.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut last = self.last.lock();
        let count = self.count.load(Ordering::Relaxed);
        if cursor.0.swap(count, Ordering::AcqRel) == count {
            return Ok(());
        }
        last.as_mut().map_or(Ok(()), |last| {
            last.seen = true;
            Err(last.error.clone())
        })
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::ErrorLog;

    #[test]
    fn each_cursor_hears_of_an_error_once() {
        let log = ErrorLog::new();
        let (first, second) = (log.cursor(), log.cursor());
        assert_eq!(log.check(&first), Ok(()));
        log.note("a");
        assert_eq!(log.check(&first), Err("a"));
        assert_eq!(log.check(&first), Ok(()));
        assert_eq!(log.check(&log.cursor()), Ok(()), "opened after it was seen");
        assert_eq!(log.check(&second), Err("a"));
        assert_eq!(log.check(&second), Ok(()));
    }

    #[test]
    fn an_error_that_nobody_saw_waits_for_the_next_file() {
        let log = ErrorLog::new();
        log.note("a");
        log.note("b");
        let opened = [log.cursor(), log.cursor()];
        for cursor in &opened {
            assert_eq!(log.check(cursor), Err("b"));
            assert_eq!(log.check(cursor), Ok(()));
        }
        assert_eq!(log.check(&log.cursor()), Ok(()));
    }
}
