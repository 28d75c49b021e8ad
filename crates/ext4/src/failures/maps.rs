//! A mapping of a file, as tests see it: one of a simulated process, or one in the memory of this
//! process, with the kernel's page faults.
//!
//! A schedule is the same with either. What only a simulated one has is left to it: the checker of its
//! page table. What a real one answers by SIGBUS is asked for by [`Space::fault`], which maps the page,
//! or says why not, and touches nothing.

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_page_cache::simulated::AddressSpace;
use pagefence_page_cache::{FaultError, FaultKind};
use pagefence_page_mmap::{Faults, Kind, Region, Service};

use super::BLOCK;
use crate::backing::FileData;
use crate::error::FillError;
use crate::filesystem::File;

/// Where page faults come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A page table that is a data structure.
    Simulated,
    /// The kernel (userfaultfd).
    Real,
}

/// Runs `test` with each source of faults.
pub(crate) fn with_either(test: impl Fn(Source)) {
    for source in [Source::Simulated, Source::Real] {
        // Shown if it fails.
        println!("faults: {source:?}");
        test(source);
    }
}

/// A shared mapping of a file; unmapped when dropped.
#[derive(Debug)]
pub(crate) enum Space {
    Simulated(AddressSpace<FileData>),
    Real(Region<FileData>),
}

impl Space {
    /// Maps `pages` of a file, which may reach past its end.
    ///
    /// A real one takes the inode lock, writes what is dirty and drops the file's pages: a schedule
    /// begins when that is done.
    pub(crate) fn of(source: Source, file: &File, pages: Range<u64>) -> Self {
        match source {
            Source::Simulated => Self::Simulated(AddressSpace::shared(&file.mapping, pages)),
            Source::Real => Self::Real(map(file, pages)),
        }
    }

    /// Loads from byte `offset` of the file, where there is something to be had. With no lock held, as
    /// whatever follows.
    pub(crate) fn load(&self, offset: u64, buffer: &mut [u8]) {
        match self {
            Self::Simulated(space) => space.load(offset, buffer).expect("loaded"),
            Self::Real(region) => region.view().load(place(region, offset), buffer),
        }
    }

    /// Stores at byte `offset` of the file, inside it, and where there is space.
    pub(crate) fn store(&self, offset: u64, bytes: &[u8]) {
        match self {
            Self::Simulated(space) => space.store(offset, bytes).expect("stored"),
            Self::Real(region) => region.view().store(place(region, offset), bytes),
        }
    }

    /// Stores at byte `offset` of the file, in one page that others may cut off meanwhile: a real one
    /// has the page mapped for that, and leaves it at that.
    pub(crate) fn try_store(&self, offset: u64, bytes: &[u8]) -> Result<(), FaultError<FillError>> {
        match self {
            Self::Simulated(space) => space.store(offset, bytes),
            Self::Real(_) => self.fault(offset / BLOCK, FaultKind::Write),
        }
    }

    /// Has a fault on page `index` served.
    pub(crate) fn fault(&self, index: u64, kind: FaultKind) -> Result<(), FaultError<FillError>> {
        match self {
            Self::Simulated(space) => space.fault(index, kind),
            Self::Real(region) => region.range().fault(&mut Held::at_entry(), index, kind),
        }
    }

    /// The checker of what is mapped, at any moment, as far as it can be looked at.
    pub(crate) fn check(&self) {
        if let Self::Simulated(space) = self {
            space.check();
        }
    }
}

/// Maps `pages` of a file into this process's memory: see [`Space::of`].
pub(crate) fn map(file: &File, pages: Range<u64>) -> Region<FileData> {
    let memory = {
        let mut entry = Held::at_entry();
        let (_alone, mut held) = file.inode.lock.write(&mut entry);
        let shared = file.mapping.share_memory(&mut held);
        shared.expect("memory that can be mapped")
    };
    let bytes = usize::try_from((pages.end - pages.start) * BLOCK).expect("small");
    let range = (pages.start, bytes);
    let (kind, faults, service) = (Kind::Shared, Faults::OfPrograms, Service::new(4));
    let region = Region::map(&file.mapping, &memory, range, kind, faults, &service);
    region.expect("this process may serve its page faults")
}

/// Where in the view of `region` byte `offset` of the file is.
fn place(region: &Region<FileData>, offset: u64) -> usize {
    usize::try_from(offset - region.pages().start * BLOCK).expect("inside")
}
