//! How much the file system may take, and takes.

use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_vfs::{Error, Result};

/// What an inode counts for, in bytes of memory: itself, its name, what the cache keeps about an
/// empty file (Linux: `BOGO_INODE_SIZE`).
pub(crate) const INODE_BYTES: u64 = 1024;

/// Two counts, each with an end: pages of data, and bytes of memory for inodes, names and
/// attributes. Whoever charges something gives it back.
#[derive(Debug)]
pub(crate) struct Limits {
    pages: Count,
    inode_bytes: Count,
    /// Pages given back since [`Limits::freed`] was asked last.
    freed: AtomicU64,
}

#[derive(Debug)]
struct Count {
    most: u64,
    used: AtomicU64,
}

impl Limits {
    pub(crate) fn new(pages: u64, inodes: u64) -> Self {
        Self {
            pages: Count::new(pages),
            inode_bytes: Count::new(inodes.saturating_mul(INODE_BYTES)),
            freed: AtomicU64::new(0),
        }
    }

    /// Takes `pages` pages, all or none; false if there are not so many.
    pub(crate) fn take_pages(&self, pages: u64) -> bool {
        self.pages.take(pages)
    }

    pub(crate) fn give_pages(&self, pages: u64) {
        self.pages.give(pages);
        self.freed.fetch_add(pages, Ordering::Relaxed);
    }

    /// Whether `most` pages or more were given back since this was true last.
    pub(crate) fn freed(&self, most: u64) -> bool {
        self.freed.load(Ordering::Relaxed) >= most && self.freed.swap(0, Ordering::Relaxed) >= most
    }

    /// Takes `bytes` for an inode, a further name of it, or its attributes.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn take_inode_bytes(&self, bytes: u64) -> Result<()> {
        if self.inode_bytes.take(bytes) {
            Ok(())
        } else {
            Err(Error::NoSpace)
        }
    }

    pub(crate) fn give_inode_bytes(&self, bytes: u64) {
        self.inode_bytes.give(bytes);
    }

    /// Pages there are, and those that are free.
    pub(crate) fn pages(&self) -> (u64, u64) {
        (self.pages.most, self.pages.left())
    }

    /// Inodes there can be, and how many more.
    pub(crate) fn inodes(&self) -> (u64, u64) {
        let inodes = |bytes| bytes / INODE_BYTES;
        (
            inodes(self.inode_bytes.most),
            inodes(self.inode_bytes.left()),
        )
    }
}

impl Count {
    fn new(most: u64) -> Self {
        Self {
            most,
            used: AtomicU64::new(0),
        }
    }

    fn left(&self) -> u64 {
        self.most - self.used.load(Ordering::Relaxed)
    }

    fn take(&self, count: u64) -> bool {
        let taken = |used: u64| used.checked_add(count).filter(|sum| *sum <= self.most);
        // Acquire: what was given back is free for who takes it, its frame included.
        self.used
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, taken)
            .is_ok()
    }

    fn give(&self, count: u64) {
        let before = self.used.fetch_sub(count, Ordering::Release);
        debug_assert!(before >= count, "more is given back than was taken");
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::Limits;

    #[test]
    fn all_or_nothing_up_to_the_last_page() {
        let limits = Limits::new(10, 1);
        assert!(limits.take_pages(6));
        assert!(!limits.take_pages(5));
        assert!(!limits.take_pages(u64::MAX));
        assert!(limits.take_pages(4));
        assert_eq!(limits.pages(), (10, 0));
        limits.give_pages(1);
        assert_eq!(limits.pages(), (10, 1));
    }
}
