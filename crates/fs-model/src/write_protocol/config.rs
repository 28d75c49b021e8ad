//! What is run: files, device, journal, the threads' operations, and which rule is broken.

/// One operation of a thread. Pages are numbered through all files; files by their own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A buffered write of a whole page: under the inode lock.
    Write(u8),
    /// A store through a shared map: a write fault, under the shared invalidate lock.
    Store(u8),
    /// A read of a page, filled from the device if it is not cached.
    Read(u8),
    /// Background writeback of a file: skips pages that are under writeback already.
    Writeback(u8),
    /// fsync of a file.
    Fsync(u8),
    /// Punch of the pages `first..=last` of one file; a truncate, if they are the last ones.
    Punch {
        /// The first page.
        first: u8,
        /// The last page, of the same file.
        last: u8,
        /// A page that the range ends inside of: its edge is zeroed and written in the fence.
        edge: Option<u8>,
    },
    /// Reclaim takes a page if it is clean, unlocked and not under writeback.
    Reclaim(u8),
}

/// One rule broken, each caught by a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// Writeback maps the blocks first and writes the data after.
    MapBeforeWrite,
    /// A fill marks the page uptodate before its read completes.
    UptodateBeforeRead,
    /// A fill goes on without the invalidate lock.
    FillWithoutInvalidateLock,
    /// The allocator does not know which blocks writeback has chosen.
    BusyLooksFree,
    /// A freed block can be allocated at once.
    ReuseBeforeCommit,
    /// The mapping handle takes the page locks.
    PageLockInHandle,
    /// Writeback has a handle open while it locks pages: Linux's order, against our fence.
    HandleBeforePageLock,
    /// The completion of the data takes the page locks.
    CompletionTakesPageLock,
    /// A fence keeps a handle open while it evicts.
    HandleAcrossEvict,
    /// The commit waits for data under writeback: ordered mode.
    CommitWaitsForWriteback,
    /// A dirty page reserves its own block and nothing for the tree.
    NoTreeReservation,
    /// A punch that may split an extent takes a tree block without having reserved it.
    PunchWithoutReservation,
    /// An emptied tree block is freed although reservations of its file count on it.
    TreeFreedUnderReservation,
    /// A store through a map dirties the page without a reservation.
    StoreWithoutReservation,
    /// Evicting a dirty page keeps its reservation.
    EvictKeepsReservation,
    /// Evicting does not wait for writeback.
    FenceIgnoresWriteback,
    /// The commit record is written before the flush of what it commits has completed.
    RecordBeforeFlush,
    /// The writeback mark goes before the handle maps the block.
    WritebackClearedBeforeMap,
    /// fsync does not flush when no transaction that it could wait for flushes for it.
    FsyncWithoutFlush,
    /// fsync does not wait for pages that somebody else is writing.
    FsyncIgnoresOthersWriteback,
    /// The log's tail moves on before the checkpoint's writes are flushed.
    CheckpointWithoutFlush,
    /// Freeing a tree block writes no revoke record.
    NoRevoke,
    /// The edge of a punch is written after the handle that frees the blocks.
    EdgeAfterHandle,
}

/// A bounded world.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Printed with the number of states.
    pub name: &'static str,
    /// The file of each page, ascending; at most 4 pages and 2 files.
    pub file_of: Vec<u8>,
    /// The block of each page at the start, written and durable.
    pub mapped: Vec<Option<u8>>,
    /// The tree block of each file at the start.
    pub trees: Vec<Option<u8>>,
    /// Blocks of the device, at most 8.
    pub blocks: u8,
    /// Credits that the journal holds; a handle takes 2.
    pub journal: u8,
    /// What each thread does, in order.
    pub threads: Vec<Vec<Op>>,
    /// Whether the running transaction may be committed at any time, as by the timer.
    pub timer: bool,
    /// Whether writeback reserves its credits before it submits, instead of starting a new handle.
    pub reserved_credits: bool,
    /// The rule that is broken, if any.
    pub mutant: Option<Mutant>,
}

impl Scenario {
    /// The same world with one rule broken.
    #[must_use]
    pub fn with(mut self, mutant: Mutant) -> Self {
        self.mutant = Some(mutant);
        self
    }

    /// The same world with credits reserved before the data is submitted.
    #[must_use]
    pub fn with_reserved_credits(mut self) -> Self {
        self.reserved_credits = true;
        self
    }

    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(crate) fn pages(&self) -> std::ops::Range<usize> {
        0..self.file_of.len()
    }

    pub(crate) fn pages_of(&self, file: usize) -> impl Iterator<Item = usize> + '_ {
        self.pages()
            .filter(move |&page| usize::from(self.file_of[page]) == file)
    }

    pub(crate) fn files(&self) -> std::ops::Range<usize> {
        0..self.trees.len()
    }
}
