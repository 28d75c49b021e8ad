//! Protections that a test can leave out, to show that another test would notice.

/// What is left out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mutants {
    /// Reads fill pages without the invalidate lock (S1.2).
    pub(crate) read_unlocked: bool,
    /// Readahead fills pages without the invalidate lock (S1.3).
    pub(crate) readahead_unlocked: bool,
    /// Pages can be seen before they are up to date (RACES 4.3.4).
    pub(crate) publish_first: bool,
    /// The writeback mark goes before the blocks are written and mapped (docs/adr/0008).
    pub(crate) unmark_early: bool,
    /// A fence drops pages that are being written (S4.16).
    pub(crate) evict_unwaited: bool,
    /// Reclaim takes dirty pages.
    pub(crate) reclaim_takes_dirty: bool,
    /// A page is unlocked before it is dirty (RACES 3.0, K9).
    pub(crate) dirty_unlocked: bool,
}
