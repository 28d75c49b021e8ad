//! The page, its blocks, and where everybody is.

use super::fault::Faulter;
use super::invalidate::Invalidator;
use super::read::Reader;
use super::writeback::{Reclaim, Writeback};

/// What a faulting thread wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// To load from a shared map.
    Load,
    /// To store into a shared map.
    Store,
    /// To store into a private map: it gets a copy of the page.
    PrivateStore,
}

/// What takes the page's block away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cut {
    /// The page becomes a hole.
    Punch,
    /// The file ends before the page from then on.
    Truncate,
}

/// One protection left out, each caught by a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// Reads fill the page without the invalidate lock.
    ReadWithoutLock,
    /// Faults fill the page without the invalidate lock.
    FaultWithoutLock,
    /// Blocks are taken away without the invalidate lock.
    CutWithoutLock,
    /// A fault unlocks the page before it maps it.
    MapAfterUnlock,
    /// A fault looks at the size neither before it fills a page nor when it has locked it.
    NoSizeCheck,
    /// The page is unmapped before it is locked, and not once more when it is removed.
    NoUnmapAtRemoval,
    /// A truncate unmaps once only, so private copies made meanwhile stay.
    NoSecondUnmap,
    /// The page is removed while it is being written.
    RemoveDuringWriteback,
    /// Reclaim leaves page tables as they are.
    ReclaimKeepsMaps,
    /// Writeback leaves the page writable while it takes its data.
    NoWriteProtect,
}

/// Who is there, and what is left out.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Printed with the number of states.
    pub name: &'static str,
    /// Reading threads.
    pub readers: usize,
    /// Faulting threads.
    pub faulters: Vec<Access>,
    /// Threads that take the block away.
    pub cuts: Vec<Cut>,
    /// The protection that is left out, if any.
    pub mutant: Option<Mutant>,
}

impl Scenario {
    /// The same with one protection left out.
    #[must_use]
    pub fn with(mut self, mutant: Mutant) -> Self {
        self.mutant = Some(mutant);
        self
    }

    pub(super) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}

/// What bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Data {
    /// What the file held at first.
    Old,
    Zeros,
    /// What a thread stored through its map.
    Stored,
    /// What the other file wrote.
    Foreign,
}

/// Who a block belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Nobody,
    File,
    OtherFile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Block {
    pub(super) owner: Owner,
    pub(super) data: Data,
}

/// The page in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Folio {
    /// Which one it is of those that were in the cache in turn.
    pub(super) number: u8,
    pub(super) locked: bool,
    pub(super) uptodate: bool,
    pub(super) dirty: bool,
    pub(super) writeback: bool,
    pub(super) data: Data,
}

/// What one thread's page table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Entry {
    /// This folio.
    Shared { folio: u8, writable: bool },
    /// A copy of its own.
    Private,
}

/// Rules that a step has broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    /// Somebody was shown data of another file, or data that was gone before he asked.
    pub(super) stale: bool,
    /// Data went to a block that was not the file's.
    pub(super) unowned: bool,
}

/// One moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) folio: Option<Folio>,
    pub(super) folios: u8,
    /// The block that the page is mapped to.
    pub(super) map: Option<u8>,
    pub(super) blocks: [Block; 2],
    /// A block is promised to the page.
    pub(super) reserved: bool,
    /// The file reaches as far as the page.
    pub(super) inside: bool,
    /// Cuts that are finished.
    pub(super) cuts: u8,
    pub(super) readers: Vec<Reader>,
    pub(super) faulters: Vec<Faulter>,
    pub(super) invalidators: Vec<Invalidator>,
    pub(super) reclaim: Reclaim,
    pub(super) writeback: Writeback,
    pub(super) faults: Faults,
}

impl State {
    pub(super) fn initial(scenario: &Scenario) -> Self {
        let block = |owner, data| Block { owner, data };
        Self {
            folio: None,
            folios: 0,
            map: Some(0),
            blocks: [
                block(Owner::File, Data::Old),
                block(Owner::Nobody, Data::Old),
            ],
            reserved: false,
            inside: true,
            cuts: 0,
            readers: vec![Reader::Start; scenario.readers],
            faulters: scenario
                .faulters
                .iter()
                .copied()
                .map(Faulter::new)
                .collect(),
            invalidators: scenario
                .cuts
                .iter()
                .copied()
                .map(Invalidator::new)
                .collect(),
            reclaim: Reclaim::Start,
            writeback: Writeback::Start,
            faults: Faults::default(),
        }
    }

    /// Threads of one kind are alike: their order is no part of the state.
    pub(super) fn normalize(&mut self) {
        self.readers.sort_unstable();
        self.faulters.sort_unstable();
        self.invalidators.sort_unstable();
    }

    /// Whether the invalidate lock can be had shared.
    pub(super) fn may_share(&self) -> bool {
        !self.invalidators.iter().any(Invalidator::holds_lock)
    }

    /// Whether the invalidate lock can be had exclusively.
    pub(super) fn may_exclude(&self) -> bool {
        self.may_share()
            && !self.readers.iter().any(Reader::holds_lock)
            && !self.faulters.iter().any(Faulter::holds_lock)
    }

    /// Puts a page into the cache, locked, for its data to be read.
    pub(super) fn insert_locked(&mut self) {
        self.folios += 1;
        self.folio = Some(Folio {
            number: self.folios,
            locked: true,
            uptodate: false,
            dirty: false,
            writeback: false,
            data: Data::Zeros,
        });
    }

    /// What a read of the block gives; of none, zeros.
    pub(super) fn read_block(&self, block: Option<u8>) -> Data {
        block.map_or(Data::Zeros, |block| self.blocks[usize::from(block)].data)
    }

    /// The page if it is in the cache and its lock is free; it is locked then.
    pub(super) fn lock_folio(&mut self) -> Option<Folio> {
        let folio = self.folio.as_mut().filter(|folio| !folio.locked)?;
        folio.locked = true;
        Some(*folio)
    }

    pub(super) fn unlock_folio(&mut self) {
        if let Some(folio) = &mut self.folio {
            folio.locked = false;
        }
    }

    /// Somebody sees `data` who came when `cuts` cuts were finished.
    pub(super) fn observe(&mut self, data: Data, cuts: u8) {
        self.faults.stale |= data == Data::Foreign || data == Data::Old && cuts > 0;
    }

    /// Takes the page out of shared page tables.
    pub(super) fn unmap_shared(&mut self) {
        for faulter in &mut self.faulters {
            if matches!(faulter.entry, Some(Entry::Shared { .. })) {
                faulter.entry = None;
            }
        }
    }

    /// Takes private copies away.
    pub(super) fn unmap_private(&mut self) {
        for faulter in &mut self.faulters {
            if faulter.entry == Some(Entry::Private) {
                faulter.entry = None;
            }
        }
    }

    /// The other file takes a free block and writes to it.
    pub(super) fn step_other_file(&mut self) -> bool {
        let free = self
            .blocks
            .iter_mut()
            .find(|block| block.owner == Owner::Nobody);
        let Some(block) = free else { return false };
        *block = Block {
            owner: Owner::OtherFile,
            data: Data::Foreign,
        };
        true
    }

    pub(super) fn is_finished(&self) -> bool {
        self.readers.iter().all(|reader| *reader == Reader::Done)
            && self.faulters.iter().all(Faulter::is_done)
            && self.invalidators.iter().all(Invalidator::is_done)
    }
}
