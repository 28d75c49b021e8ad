//! Protections that a proof leaves out, to show that it would be noticed: only with the feature
//! `mutants`, which nobody but other crates' tests asks for.

/// Says by name what every file system of a process leaves out from the first.
const VARIABLE: &str = "PAGEFENCE_LEAVE_OUT";

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// What is freed can be had before the transaction that frees it is durable.
    EarlyReuse,
    /// Orphans are known in memory, and stand nowhere on the disk.
    ForgottenOrphan,
    /// A check does not compare links with names.
    UncountedLinks,
}

impl Mutant {
    fn name(self) -> &'static str {
        match self {
            Self::EarlyReuse => "early-reuse",
            Self::ForgottenOrphan => "forgotten-orphan",
            Self::UncountedLinks => "uncounted-links",
        }
    }

    /// Whether the environment names it. Asked once a file system, or a check.
    pub(crate) fn is_named(self) -> bool {
        std::env::var(VARIABLE).is_ok_and(|named| named == self.name())
    }
}
