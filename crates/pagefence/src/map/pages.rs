//! Whose page cache a map's pages are in: this process's own, or that of a mount's server.

use std::ops::Range;

use pagefence_ext4::FileData;
use pagefence_lock_order::Held;
use pagefence_page_mmap::remote::{Advised, Guard};
use pagefence_page_mmap::{FaultError, Hint, Region, View};
use pagefence_vfs::Error;
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::PAGE;
use super::options::Advice;
use super::problem::Problem;
use crate::file::Closed;

/// The pages that a map shows, and what is asked about their file.
pub(crate) enum Pages {
    /// Of a volume of this process.
    Own(Box<Own>),
    /// Of a mount, which another process serves.
    Mounted(Box<OfMount>),
}

/// Pages of a volume of this process.
pub(crate) struct Own {
    /// Dropped first: it unmaps, and waits for its faults.
    pub(crate) region: Region<FileData>,
    pub(crate) file: pagefence_ext4::File,
    pub(crate) closed: Closed,
}

/// Pages of a mount.
pub(crate) struct OfMount {
    /// Dropped first: it unmaps, and takes leave of the server.
    pub(crate) guard: Guard,
    /// Keeps the file, and the mount; makes it durable and tells its size.
    pub(crate) file: std::fs::File,
}

impl Pages {
    pub(crate) fn view(&self) -> &View {
        match self {
            Self::Own(own) => own.region.view(),
            Self::Mounted(mounted) => mounted.guard.view(),
        }
    }

    /// Checks that the first `end` bytes of the file are there, as far as can be known.
    ///
    /// # Errors
    /// They are not, or nobody serves them any more.
    pub(crate) fn reach(&self, end: u64) -> Result<(), Problem> {
        let size = match self {
            Self::Own(own) => own.file.size(),
            Self::Mounted(mounted) => mounted.size(end)?,
        };
        if end > size {
            return Err(Problem::PastEnd { end, size });
        }
        Ok(())
    }

    /// Checks that accesses are served.
    ///
    /// # Errors
    /// Not any more.
    pub(crate) fn check_served(&self) -> Result<(), Problem> {
        match self {
            Self::Own(_) => Ok(()),
            Self::Mounted(mounted) => mounted.check_served(),
        }
    }

    /// Those of `pages` that are in the file.
    ///
    /// # Errors
    /// Nobody serves them any more.
    pub(crate) fn inside(&self, pages: Range<u64>) -> Result<Range<u64>, Problem> {
        let size = match self {
            Self::Own(own) => own.file.size(),
            Self::Mounted(mounted) => mounted.size(pages.end.saturating_mul(PAGE))?,
        };
        Ok(pages.start..pages.end.min(size.div_ceil(PAGE)))
    }

    /// Makes `pages` durable: of a mount, all that the file has.
    pub(crate) fn sync(&self, pages: &Range<u64>) -> Result<(), Error> {
        match self {
            Self::Own(own) => {
                let bytes = pages.start * PAGE..pages.end * PAGE;
                own.closed.fs.sync_range(&own.file, bytes)
            }
            Self::Mounted(mounted) => Ok(mounted.file.sync_data()?),
        }
    }

    /// Maps `pages`, which are in the file, for loads.
    pub(crate) fn populate(&self, pages: Range<u64>) -> Result<(), Error> {
        match self {
            Self::Own(own) => match own.region.populate(&mut Held::at_entry(), pages) {
                // It has been cut off since.
                Ok(()) | Err(FaultError::Beyond) => Ok(()),
                Err(FaultError::Read(source) | FaultError::NoSpace(source)) => Err(source.into()),
                Err(_) => Err(Error::OutOfMemory),
            },
            Self::Mounted(mounted) => Ok(mounted.guard.populate(pages)?),
        }
    }

    /// Takes advice on how `pages`, all that the map has, are going to be used.
    pub(crate) fn advise(&self, advice: Advice, pages: Range<u64>) {
        match self {
            Self::Own(own) => match advice {
                Advice::Normal => own.region.range().advise(Hint::Normal),
                Advice::Sequential => own.region.range().advise(Hint::Sequential),
                Advice::Random => own.region.range().advise(Hint::Random),
                Advice::WillNeed => {
                    let end = pages.end.min(own.file.size().div_ceil(PAGE));
                    own.region.will_need(pages.start..end);
                }
            },
            Self::Mounted(mounted) => mounted.guard.advise(match advice {
                Advice::Normal => Advised::Normal,
                Advice::Sequential => Advised::Sequential,
                Advice::Random => Advised::Random,
                Advice::WillNeed => Advised::WillNeed,
            }),
        }
    }
}

impl OfMount {
    fn check_served(&self) -> Result<(), Problem> {
        if self.guard.is_over() {
            return Err(Problem::NotConnected);
        }
        Ok(())
    }

    /// How many bytes the file has, for who wants to know whether it has `end`. What makes it shorter is
    /// told to the guard; what makes it longer is asked for here, where it matters.
    fn size(&self, end: u64) -> Result<u64, Problem> {
        self.check_served()?;
        if end > self.guard.size() {
            return self.guard.ask_size().map_err(|_| Problem::NotConnected);
        }
        Ok(self.guard.size())
    }
}

/// Bytes that a file of a mount has, by its server rather than by the kernel's memory of it.
pub(crate) fn size_of(file: &std::fs::File) -> Result<u64, Problem> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let found = statx(file, c"", flags, StatxFlags::SIZE).map_err(Problem::of_mount)?;
    Ok(found.stx_size)
}
