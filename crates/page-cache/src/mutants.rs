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
}
