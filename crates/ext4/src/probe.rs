//! Where tests stop a file system.

use pagefence_lock_order::primitives::{Arc, Mutex};

type Hook = Arc<dyn Fn() + Send + Sync>;

/// What tests do to a file system.
#[derive(Default)]
pub(crate) struct Probe {
    before_transaction: Mutex<Option<Hook>>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").finish_non_exhaustive()
    }
}

impl Probe {
    /// Has `hook` run from now on by each thread that is about to start a transaction; between two
    /// of one operation that is K13.
    pub(crate) fn before_transaction(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.before_transaction.lock() = Some(Arc::new(hook));
    }

    pub(crate) fn stop_before_transaction(&self) {
        let hook = self.before_transaction.lock().clone();
        if let Some(hook) = hook {
            hook();
        }
    }
}
