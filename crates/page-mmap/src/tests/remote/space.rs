//! The mapping of a guard, as the schedules see it: its faults are stopped in the daemon.

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::simulated::Entry;
use pagefence_page_cache::{FaultError, FaultKind};

use super::{connect, kind_of};
use crate::remote::{Guard, RemoteSource};
use crate::tests::disk::{Disk, Failed};
use crate::tests::eyes::{Seen, look};
use crate::tests::space::{Gated, Space, Touch};
use crate::tests::{Bench, PAGE, Task};
use crate::{Kind, Region};

/// Both ends of a map.
pub(in crate::tests) struct Remote {
    guard: Guard,
    served: Region<Disk, Gated<RemoteSource>>,
}

impl Space for Remote {
    const HAS_MEMORY: bool = true;

    fn of(bench: &Bench, pages: Range<u64>, kind: Kind) -> Arc<Self> {
        let (guard, source) = connect(bench, pages, kind_of(kind));
        let source = Gated::new(source);
        let served = Region::of_source(&bench.mapping, source, &bench.service).expect("a region");
        let guard = guard.finish();
        Arc::new(Self { guard, served })
    }

    fn load(&self, offset: u64, len: usize) -> Vec<u8> {
        super::load(&self.guard, offset, len)
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        super::store(&self.guard, offset, bytes);
    }

    fn fault(&self, index: u64, kind: FaultKind) -> Result<(), FaultError<Failed>> {
        self.served
            .range()
            .fault(&mut Held::at_entry(), index, kind)
    }

    fn start(space: &Arc<Self>, index: u64, _kind: Kind, touch: Touch) -> Task<()> {
        let space = Arc::clone(space);
        let offset = (index + 1) * PAGE - 1;
        Task::start(move || match touch {
            Touch::Load => drop(space.load(offset, 1)),
            Touch::Store => space.store(offset, &[0]),
        })
    }

    fn entry(&self, index: u64) -> Option<Entry> {
        match look(self.guard.view(), index) {
            Seen::Page(entry) => Some(entry),
            Seen::Nothing | Seen::Poison => None,
        }
    }

    fn stop(&self) {
        self.served.source().set(true, true);
    }

    fn wait_stopped(&self, count: usize) {
        self.served.source().wait_stopped(count);
    }

    fn wait_unmapped(&self) {
        self.served.source().wait_zapped();
    }

    fn finish(&self, touches: Vec<Task<()>>) {
        self.served.source().set(false, true);
        touches.into_iter().for_each(Task::finish);
        self.served.source().set(false, false);
    }
}
