//! Where tests hold a migration, and protections that they leave out of it.

use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex};

use crate::inode::InodeCore;

type Hook = Arc<dyn Fn() + Send + Sync>;

/// What tests do to the migrations of a file system.
#[derive(Default)]
pub(crate) struct Probe {
    before_swap: Mutex<Option<Hook>>,
    /// The mutant: the flag is tested before the locks of the swap are taken.
    pub(crate) tests_flag_early: AtomicBool,
    tested: Mutex<Option<bool>>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").finish_non_exhaustive()
    }
}

impl Probe {
    /// Has `hook` run in each migration from now on, when the new map is built and none of the
    /// locks of the swap is held.
    #[cfg(not(shuttle))]
    pub(crate) fn hold_before_swap(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.before_swap.lock() = Some(Arc::new(hook));
    }

    /// Migrations run through again.
    #[cfg(not(shuttle))]
    pub(crate) fn release(&self) {
        *self.before_swap.lock() = None;
    }

    pub(super) fn before_swap(&self, core: &InodeCore) {
        let early = self.tests_flag_early.load(Ordering::Acquire);
        *self.tested.lock() = early.then(|| core.is_migrating());
        let hook = self.before_swap.lock().clone();
        if let Some(hook) = hook {
            hook();
        }
    }

    /// What the swap goes by, having found the flag `as_found`.
    pub(super) fn tested(&self, as_found: bool) -> bool {
        self.tested.lock().take().unwrap_or(as_found)
    }
}
