//! Protections of a region that a test can leave out, to show that it would be noticed.
//!
//! There is none of it but in tests and with the feature `mutants`, which nobody but other crates'
//! tests asks for.

use pagefence_lock_order::primitives::atomic::{AtomicU8, Ordering};
use pagefence_page_cache::WriteBacking;

use crate::fault_source::FaultSource;
use crate::region::Region;

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mutant {
    /// Writeback leaves pages mapped for stores (RACES 4.3.6).
    WriteProtection,
    /// Pages are mapped for stores as well when somebody loads (RACES 4.3.5).
    LoadProtection,
    /// Poison stays for ever.
    Cure,
    /// Nobody waits until a program in another process has protected its pages (ADR 17).
    ProtectWait,
    /// The pages of one that does not answer are left to it when they are written back (ADR 17).
    Freeze,
    /// A page is taken away while somebody may still make use of a right to map it (ADR 17).
    Settle,
    /// A right is made use of however old it is (ADR 17).
    Age,
}

/// Says by name what every region and every end of a connection of a process leaves out from the first.
const VARIABLE: &str = "PAGEFENCE_LEAVE_OUT";

/// Those that are left out of one region, or of one end of a connection.
#[derive(Debug)]
pub(crate) struct Mutants(AtomicU8);

impl Default for Mutants {
    fn default() -> Self {
        let named = std::env::var(VARIABLE).unwrap_or_default();
        let left_out = Mutant::ALL
            .iter()
            .filter(|mutant| format!("{mutant:?}") == named);
        Self(AtomicU8::new(left_out.map(|mutant| mutant.bit()).sum()))
    }
}

impl Mutants {
    pub(crate) fn has(&self, mutant: Mutant) -> bool {
        self.0.load(Ordering::Relaxed) & mutant.bit() != 0
    }

    pub(crate) fn leave_out(&self, mutant: Mutant) {
        self.0.fetch_or(mutant.bit(), Ordering::SeqCst);
    }
}

impl Mutant {
    const ALL: [Self; 7] = [
        Self::WriteProtection,
        Self::LoadProtection,
        Self::Cure,
        Self::ProtectWait,
        Self::Freeze,
        Self::Settle,
        Self::Age,
    ];

    fn bit(self) -> u8 {
        match self {
            Self::WriteProtection => 1,
            Self::LoadProtection => 2,
            Self::Cure => 4,
            Self::ProtectWait => 8,
            Self::Freeze => 16,
            Self::Settle => 32,
            Self::Age => 64,
        }
    }
}

impl<B: WriteBacking, S: FaultSource> Region<B, S> {
    /// Leaves `mutant` out from now on.
    pub fn leave_out(&self, mutant: Mutant) {
        self.shared.entries.mutants.leave_out(mutant);
    }
}
