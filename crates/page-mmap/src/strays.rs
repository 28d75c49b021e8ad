//! Memory that programs in other processes fill by loading where nobody has given them anything: it is looked
//! for from time to time, and when such a program has gone.

use std::time::{Duration, Instant};

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_page_cache::WriteBacking;

use crate::fault_source::FaultSource;
use crate::region::{InService, Shared};
use crate::service::Service;

/// How often it is looked for while a program has a map.
const EVERY: Duration = Duration::from_secs(2);

/// Pages that are not worth a fence: a MiB.
const TOLERATED: u64 = 256;

/// When to look next, for one program.
#[derive(Debug)]
pub(crate) struct Strays {
    /// `None` in this process, where each view is watched.
    next: Option<Instant>,
    /// Some are being taken.
    is_busy: Arc<AtomicBool>,
}

impl Strays {
    pub(crate) fn of(source: &impl FaultSource, now: Instant) -> Self {
        Self {
            next: source.is_client().then(|| now + EVERY),
            is_busy: Arc::default(),
        }
    }

    /// Has those taken by `service` that are there, if it is time; says when the next look is due.
    pub(crate) fn look<B: WriteBacking, S: FaultSource>(
        &mut self,
        shared: &Arc<Shared<B, S>>,
        in_service: &Arc<InService>,
        service: &Service,
        now: Instant,
    ) -> Option<Duration> {
        let next = self.next.as_mut()?;
        if *next <= now {
            *next = now + EVERY;
            let is_worth_it = shared.range.mapping().strays() > TOLERATED;
            if is_worth_it && !self.is_busy.swap(true, Ordering::AcqRel) {
                let (shared, is_busy) = (Arc::clone(shared), Arc::clone(&self.is_busy));
                in_service.do_later(service, move || {
                    shared.range.mapping().punch_strays(&mut Held::at_entry());
                    is_busy.store(false, Ordering::Release);
                });
            }
        }
        Some(next.saturating_duration_since(now))
    }
}
