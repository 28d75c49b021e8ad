//! One state of the world: cache, locks, reservations, journal, device, threads.

use super::config::{Op, Scenario};
use super::disk::{Block, GARBAGE, TREE, Tag, ZEROS, data_tag};
use super::journal::Journal;

pub(super) const PAGES: usize = 4;
pub(super) const FILES: usize = 2;
pub(super) const BLOCKS: usize = 8;

/// No block.
pub(super) const NONE: u8 = u8::MAX;

/// A page of a file, cached or not, with what an observer knows about its past.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Page {
    /// In the cache, and uptodate.
    pub(super) present: bool,
    pub(super) dirty: bool,
    pub(super) writeback: bool,
    /// Holds a reservation of one block.
    pub(super) reserved: bool,
    /// The block that writeback has chosen and not mapped: busy in memory only.
    pub(super) chosen: u8,
    pub(super) locked_by: Option<u8>,
    pub(super) content: Tag,
    /// Observer: the version that a read must return now. A punch under way has it, and nobody can
    /// have seen it.
    pub(super) version: u8,
    /// Observer: the version that an fsync which starts now must make durable.
    pub(super) settled: u8,
    /// Observer: the versions that are holes, a mask.
    pub(super) holes: u8,
    /// Observer: the version that the last fsync promised.
    pub(super) promised: u8,
}

/// The locks of an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Locks {
    pub(super) inode: Option<u8>,
    pub(super) invalidate_exclusive: Option<u8>,
    pub(super) invalidate_shared: u8,
}

/// What the metadata says. Bitmaps are the complement of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Metadata {
    /// The block of each page.
    pub(super) map: [u8; PAGES],
    /// The tree block of each file.
    pub(super) tree: [u8; FILES],
}

/// A reservation that a thread holds and no page yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Hand {
    Empty,
    /// For a page that will be dirty.
    Page,
    /// For a split.
    Tree,
}

/// Where a thread is in its operation. The names say what it does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pc {
    Start,
    Reserve,
    WaitForSpace { sequence: u8 },
    Dirty,
    FillOrUse,
    FillLock,
    FillComplete { block: u8 },
    FillUnlock,
    Gather,
    ReserveCredits,
    Choose,
    Submit,
    Complete,
    MapStart,
    Map,
    MapEnd,
    ClearWriteback,
    FsyncCommit,
    WaitForCommit { sequence: u8, then_flush: bool },
    WaitForFlush,
    InFlush,
    FsyncDone,
    Fence,
    SplitReserve,
    EarlyPunchStart,
    Evict,
    EvictWait,
    Edge,
    EdgeComplete { block: u8 },
    PunchStart,
    Punch,
    PunchEnd,
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Thread {
    /// The index of its operation.
    pub(super) at: u8,
    pub(super) pc: Pc,
    /// The page that a scan is at.
    pub(super) cursor: u8,
    /// The pages that writeback has taken, a mask.
    pub(super) gathered: u8,
    /// The block of each gathered page.
    pub(super) batch: [u8; PAGES],
    /// The gathered pages that the handle must map, a mask.
    pub(super) fresh: u8,
    /// What was sent to the device for each gathered page.
    pub(super) sent: [Tag; PAGES],
    pub(super) hand: Hand,
    /// Credits are reserved, or (a mutant) a handle is open, before its time.
    pub(super) early: bool,
    /// A read: the versions that it may return, a mask.
    pub(super) allowed: u8,
    /// An fsync: the version of each page that it must make durable.
    pub(super) target: [u8; PAGES],
}

impl Thread {
    fn at(at: u8) -> Self {
        Self {
            at,
            pc: Pc::Start,
            cursor: 0,
            gathered: 0,
            batch: [NONE; PAGES],
            fresh: 0,
            sent: [GARBAGE; PAGES],
            hand: Hand::Empty,
            early: false,
            allowed: 0,
            target: [0; PAGES],
        }
    }
}

/// A violation that only the step sees which does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    pub(super) late_enospc: bool,
    pub(super) stale_read: bool,
    pub(super) foreign_write: bool,
}

/// What happened at all: shows that a scenario reaches what it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    pub(super) enospc: bool,
    pub(super) full_journal: bool,
}

/// The promise of a punch that ends inside a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct EdgePromise {
    /// The transaction of the punch.
    pub(super) sequence: u8,
    pub(super) page: u8,
    /// Where that transaction is recovered, the page is at this version or a later one.
    pub(super) version: u8,
}

/// One state of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) pages: [Page; PAGES],
    pub(super) locks: [Locks; FILES],
    pub(super) metadata: Metadata,
    pub(super) blocks: [Block; BLOCKS],
    /// The counter of reserved blocks, kept step by step.
    pub(super) reserved: u8,
    pub(super) journal: Journal,
    pub(super) threads: Vec<Thread>,
    pub(super) edge: Option<EdgePromise>,
    pub(super) faults: Faults,
    pub(super) seen: Seen,
}

impl State {
    pub(super) fn initial(scenario: &Scenario) -> Self {
        assert!(scenario.file_of.len() <= PAGES && scenario.trees.len() <= FILES);
        assert!(usize::from(scenario.blocks) <= BLOCKS);
        let mut metadata = Metadata {
            map: [NONE; PAGES],
            tree: [NONE; FILES],
        };
        let mut blocks = [Block::durable(GARBAGE); BLOCKS];
        for (page, block) in scenario.mapped.iter().enumerate() {
            if let Some(block) = *block {
                metadata.map[page] = block;
                blocks[usize::from(block)] = Block::durable(data_tag(page, 0));
            }
        }
        for (file, block) in scenario.trees.iter().enumerate() {
            if let Some(block) = *block {
                metadata.tree[file] = block;
                blocks[usize::from(block)] = Block::durable(TREE);
            }
        }
        let pages = std::array::from_fn(|page| Page {
            present: false,
            dirty: false,
            writeback: false,
            reserved: false,
            chosen: NONE,
            locked_by: None,
            content: ZEROS,
            version: 0,
            settled: 0,
            holes: u8::from(metadata.map[page] == NONE),
            promised: 0,
        });
        Self {
            pages,
            locks: Default::default(),
            journal: Journal::new(metadata.clone()),
            metadata,
            blocks,
            reserved: 0,
            threads: scenario.threads.iter().map(|_| Thread::at(0)).collect(),
            edge: None,
            faults: Faults::default(),
            seen: Seen::default(),
        }
    }

    /// The operation that a thread is in.
    pub(super) fn op(&self, scenario: &Scenario, thread: usize) -> Option<Op> {
        scenario.threads[thread]
            .get(usize::from(self.threads[thread].at))
            .copied()
    }

    /// Everything is done, and the journal rests.
    pub(super) fn is_finished(&self, scenario: &Scenario) -> bool {
        self.journal.is_idle()
            && (0..self.threads.len()).all(|thread| self.op(scenario, thread).is_none())
    }

    pub(super) fn goto(&mut self, thread: usize, pc: Pc) -> bool {
        self.threads[thread].pc = pc;
        true
    }

    pub(super) fn finish_op(&mut self, thread: usize) -> bool {
        let next = self.threads[thread].at + 1;
        assert!(self.threads[thread].hand == Hand::Empty);
        self.threads[thread] = Thread::at(next);
        true
    }

    /// Gives a page its next version; reads of it under way may return either.
    pub(super) fn change(&mut self, scenario: &Scenario, page: usize, is_hole: bool) {
        let changed = &mut self.pages[page];
        changed.version += 1;
        let version = changed.version;
        if is_hole {
            changed.holes |= 1 << version;
            changed.content = ZEROS;
        } else {
            changed.content = data_tag(page, version);
        }
        for thread in 0..self.threads.len() {
            if let Some(Op::Read(read)) = self.op(scenario, thread)
                && usize::from(read) == page
                && self.threads[thread].pc != Pc::Start
            {
                self.threads[thread].allowed |= 1 << version;
            }
        }
    }

    pub(super) fn is_locked_by_other(&self, page: usize, thread: usize) -> bool {
        self.pages[page]
            .locked_by
            .is_some_and(|owner| owner != id(thread))
    }

    pub(super) fn lock_invalidate_shared(&mut self, file: usize) -> bool {
        let locks = &mut self.locks[file];
        let is_free = locks.invalidate_exclusive.is_none();
        locks.invalidate_shared += u8::from(is_free);
        is_free
    }

    pub(super) fn lock_inode(&mut self, file: usize, thread: usize) -> bool {
        let owner = &mut self.locks[file].inode;
        let is_free = owner.is_none();
        owner.get_or_insert(id(thread));
        is_free
    }
}

/// A thread's number as its name in a lock.
pub(super) fn id(thread: usize) -> u8 {
    u8::try_from(thread).expect("few threads")
}

/// Whether a mask has a member.
pub(super) fn has(mask: u8, member: usize) -> bool {
    mask & (1 << member) != 0
}
