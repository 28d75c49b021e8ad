//! Rules that tests break on purpose, each to see that another test notices. Outside of tests, and
//! without the feature `mutants`, which nobody but other crates' tests asks for, none is ever broken,
//! and the questions cost nothing.

/// A rule of the running journal, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The commit block is written before what it commits is durable.
    NoFlushBeforeCommitBlock,
    /// Somebody is told of a commit that is not durable.
    NoFlushBehindCommitBlock,
    /// Log space is used again before the superblock durably stops naming it.
    TailNotDurable,
    /// The tail moves before what it leaves behind is durable at home.
    HomeNotDurable,
    /// Revoked blocks are not named in the log: another is, which is nobody's.
    NoRevokeRecords,
    /// Revoked blocks are written home all the same.
    RevokedStayInCheckpoint,
    /// A block goes home as it is now, committed or not.
    HomeUncommitted,
    /// A commit does not wait for open handles.
    OpenHandlesCommitted,
    /// Without a log, what says which blocks are free goes home first.
    FreeFirst,
    /// Without a log, no block waits for its turn, but new ones come first.
    NoTurns,
    /// A snapshot does not keep what goes home.
    HomeNotKept,
    /// A snapshot does not keep what was freed and may be used again.
    FreedNotKept,
    /// A snapshot begins without what is committed and not home.
    NotHomeNotKept,
}

/// Says by name which rule every journal of a process breaks from the first.
#[cfg(all(feature = "mutants", not(test)))]
const VARIABLE: &str = "PAGEFENCE_LEAVE_OUT";

#[cfg(all(feature = "mutants", not(test)))]
impl Mutant {
    /// The one that the environment names.
    pub(crate) fn named() -> Option<Self> {
        match std::env::var(VARIABLE).ok()?.as_str() {
            "dropped-flush" => Some(Self::NoFlushBehindCommitBlock),
            "missing-revoke" => Some(Self::NoRevokeRecords),
            "home-not-kept" => Some(Self::HomeNotKept),
            _ => None,
        }
    }
}
