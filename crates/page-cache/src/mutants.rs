//! Protections that a test can leave out, to show that another test would notice.

/// What is left out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mutants {
    /// Reads fill pages without the invalidate lock (S1.2).
    pub(crate) read_unlocked: bool,
    /// Readahead fills pages without the invalidate lock (S1.3).
    pub(crate) readahead_unlocked: bool,
    /// Writes fill pages without the invalidate lock (S1.14).
    pub(crate) write_unlocked: bool,
    /// Who has locked a page that it had found takes it for the file's (S4.3, S3.15).
    pub(crate) unrevalidated: Option<crate::mapping::Looker>,
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
    /// Faults fill and dirty pages without the invalidate lock (S0.3, S3.2).
    pub(crate) fault_unlocked: bool,
    /// A fault maps its page after it has unlocked it (S4.7).
    pub(crate) map_unlocked: bool,
    /// A fault does not look at the size under the page lock (S4.5).
    pub(crate) size_unchecked: bool,
    /// A truncate takes mappings away before it drops pages only (S4.14).
    pub(crate) unmap_once: bool,
    /// An invalidator leaves the mappings of the pages that it drops (S4.16).
    pub(crate) drop_mapped: bool,
    /// Reclaim leaves the mappings of the pages that it takes.
    pub(crate) reclaim_mapped: bool,
    /// Writeback samples pages that are stored to (RACES 4.3.6).
    pub(crate) write_unprotected: bool,
    /// The pages at the edges of a truncate or punch stay mapped for stores (RACES B20).
    pub(crate) edges_unprotected: bool,
    /// A write past the end leaves the page of the end mapped for stores (RACES B22).
    pub(crate) tail_unprotected: bool,
    /// Punching delayed allocations takes the space of dirty blocks (S3.9).
    pub(crate) punch_takes_dirty: bool,
    /// The pages of a direct write are dropped and unlocked before its I/O (RACES K16, T20).
    pub(crate) direct_unlocked: bool,
    /// A direct write drops dirty pages that it meets, unwritten.
    pub(crate) direct_drops_dirty: bool,
    /// A direct write does without the invalidate lock (RACES B4).
    pub(crate) direct_unfenced: bool,
    /// A direct write leaves the pages that were cached in the cache (RACES B18).
    pub(crate) direct_keeps_cached: bool,
    /// Who exchanges blocks leaves out the fence of the file with this number (RACES 3.11): its
    /// pages are filled whoever fences it.
    pub(crate) unfenced: Option<u64>,
    /// Who maps pages is asked to give them up when the one before has answered (ADR 17).
    pub(crate) asks_in_turn: bool,
    /// Reclaim takes pages whose mappers have to be waited for like others (ADR 17).
    pub(crate) reclaim_asks: bool,
}
