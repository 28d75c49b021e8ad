//! A mapping of a file, as the schedules see it: a simulated one, or a real one whose faults can be
//! stopped before their page is mapped and after. That of a guard is in `remote::space`.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use pagefence_host_memory::{Userfault, View};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex};
use pagefence_page_cache::simulated::{AddressSpace, Entry};
use pagefence_page_cache::{Answer, FaultError, FaultKind};
use rustix::io::Errno;

use super::disk::{Disk, Failed};
use super::eyes::{Seen, look};
use super::{Bench, PAGE, Task};
use crate::{Ask, Cause, FaultSource, Kind, Obstacle, RealSource, Region, Woken};

/// What a program does to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    Load,
    Store,
}

/// Each kind of mapping with each touch.
pub(super) const ALL: [(Kind, Touch); 4] = [
    (Kind::Shared, Touch::Load),
    (Kind::Shared, Touch::Store),
    (Kind::Private, Touch::Load),
    (Kind::Private, Touch::Store),
];

/// The fault that it meets.
pub(super) fn fault_of(kind: Kind, touch: Touch) -> FaultKind {
    match (kind, touch) {
        (_, Touch::Load) => FaultKind::Read,
        (Kind::Private, Touch::Store) => FaultKind::PrivateWrite,
        (_, Touch::Store) => FaultKind::Write,
    }
}

/// What is mapped after it.
pub(super) fn entry_of(kind: Kind, touch: Touch) -> Entry {
    match (kind, touch) {
        (_, Touch::Load) => Entry::ReadOnly,
        (Kind::Private, Touch::Store) => Entry::Private,
        (_, Touch::Store) => Entry::Writable,
    }
}

/// A mapping of a file.
pub(super) trait Space: Send + Sync + Sized + 'static {
    /// The file's bytes lie in a memory of their own.
    const HAS_MEMORY: bool;

    /// Maps `pages` of the file of `bench`, shared or private.
    fn of(bench: &Bench, pages: Range<u64>, kind: Kind) -> Arc<Self>;

    /// Loads `len` bytes at `offset` of the file, which can be had.
    fn load(&self, offset: u64, len: usize) -> Vec<u8>;

    /// As [`Self::load`], by a thread that holds an inode lock: its faults are served by another one,
    /// which a simulated mapping has to be given.
    fn load_below(space: &Arc<Self>, offset: u64, len: usize) -> Vec<u8> {
        space.load(offset, len)
    }

    /// Stores at `offset` of the file, which can be done.
    fn store(&self, offset: u64, bytes: &[u8]);

    /// Has a fault served, without the access.
    fn fault(&self, index: u64, kind: FaultKind) -> Result<(), FaultError<Failed>>;

    /// Begins to touch the last byte of page `index`: a real one does that, a simulated one has its
    /// fault served. A zero is stored.
    fn start(space: &Arc<Self>, index: u64, kind: Kind, touch: Touch) -> Task<()>;

    /// What is mapped at page `index`.
    fn entry(&self, index: u64) -> Option<Entry>;

    /// Stops faults at K6: their page is locked, and not mapped.
    fn stop(&self);

    /// Waits until `count` faults have stopped.
    fn wait_stopped(&self, count: usize);

    /// Waits until private copies were taken away, or would have been.
    fn wait_unmapped(&self);

    /// Lets faults go on that have stopped until `touches` are done: those of a real mapping before
    /// their page is unlocked.
    fn finish(&self, touches: Vec<Task<()>>);
}

impl Space for AddressSpace<Disk> {
    const HAS_MEMORY: bool = false;

    fn of(bench: &Bench, pages: Range<u64>, kind: Kind) -> Arc<Self> {
        Arc::new(match kind {
            Kind::Private => Self::private(&bench.mapping, pages),
            _ => Self::shared(&bench.mapping, pages),
        })
    }

    fn load(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xEE; len];
        Self::load(self, offset, &mut bytes).expect("loaded");
        bytes
    }

    fn load_below(space: &Arc<Self>, offset: u64, len: usize) -> Vec<u8> {
        let space = Arc::clone(space);
        Task::start(move || Space::load(&*space, offset, len)).finish()
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        Self::store(self, offset, bytes).expect("stored");
    }

    fn fault(&self, index: u64, kind: FaultKind) -> Result<(), FaultError<Failed>> {
        Self::fault(self, index, kind)
    }

    fn start(space: &Arc<Self>, index: u64, kind: Kind, touch: Touch) -> Task<()> {
        let space = Arc::clone(space);
        let fault = fault_of(kind, touch);
        Task::start(move || Self::fault(&space, index, fault).expect("mapped"))
    }

    fn entry(&self, index: u64) -> Option<Entry> {
        Self::entry(self, index)
    }

    fn stop(&self) {
        Self::stop(self);
    }

    fn wait_stopped(&self, count: usize) {
        Self::wait_stopped(self, count);
    }

    fn wait_unmapped(&self) {
        self.wait_unmaps(1);
    }

    fn finish(&self, touches: Vec<Task<()>>) {
        self.go_on();
        touches.into_iter().for_each(Task::finish);
    }
}

/// Faults with gates.
#[derive(Debug)]
pub(super) struct Gated<S = RealSource> {
    inner: S,
    state: Mutex<Gates>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Gates {
    /// Faults stop before their page is mapped.
    before: bool,
    /// They stop when it is.
    after: bool,
    stopped: usize,
    zaps: usize,
}

/// A region with gates.
pub(super) type Real = Region<Disk, Gated>;

impl<S> Gated<S> {
    pub(super) fn new(inner: S) -> Self {
        Self {
            inner,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn set(&self, before: bool, after: bool) {
        let mut gates = self.state.lock();
        (gates.before, gates.after) = (before, after);
        drop(gates);
        self.changed.notify_all();
    }

    fn pass(&self, is_closed: impl Fn(&Gates) -> bool) {
        let mut gates = self.state.lock();
        if !is_closed(&gates) {
            return;
        }
        gates.stopped += 1;
        self.changed.notify_all();
        while is_closed(&gates) {
            self.changed.wait(&mut gates);
        }
        gates.stopped -= 1;
    }

    pub(super) fn wait_stopped(&self, count: usize) {
        self.wait_until(|gates| gates.stopped >= count);
    }

    pub(super) fn wait_zapped(&self) {
        self.wait_until(|gates| gates.zaps >= 1);
    }

    fn wait_until(&self, until: impl Fn(&Gates) -> bool) {
        let mut gates = self.state.lock();
        while !until(&gates) {
            self.changed.wait(&mut gates);
        }
    }
}

impl<S: FaultSource> FaultSource for Gated<S> {
    fn pages(&self) -> Range<u64> {
        self.inner.pages()
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn is_client(&self) -> bool {
        self.inner.is_client()
    }

    fn read(&self, stopped: &mut Vec<Cause>) -> io::Result<()> {
        self.inner.read(stopped)
    }

    fn wait(&self, bell: BorrowedFd<'_>, most: Option<Duration>) -> io::Result<Woken> {
        self.inner.wait(bell, most)
    }

    fn map(&self, pages: Range<u64>, writable: bool) -> Result<(), Obstacle> {
        self.pass(|gates| gates.before);
        let mapped = self.inner.map(pages, writable);
        self.pass(|gates| gates.after);
        mapped
    }

    fn protect(&self, pages: Range<u64>) -> Answer<'_> {
        self.inner.protect(pages)
    }

    fn unprotect(&self, pages: Range<u64>) {
        self.inner.unprotect(pages);
    }

    fn poison(&self, page: u64) -> bool {
        self.inner.poison(page)
    }

    fn wake(&self, page: u64) {
        self.inner.wake(page);
    }

    fn zap(&self, pages: Range<u64>) {
        self.inner.zap(pages);
        self.state.lock().zaps += 1;
        self.changed.notify_all();
    }

    fn settle(&self, pages: Range<u64>) -> Answer<'_> {
        self.inner.settle(pages)
    }

    fn is_settled(&self, pages: Range<u64>) -> bool {
        self.inner.is_settled(pages)
    }

    fn cure(&self, pages: &[u64]) {
        self.inner.cure(pages);
    }

    fn resized(&self) -> bool {
        self.inner.resized()
    }

    fn breathe(&self) {
        self.inner.breathe();
    }

    fn may_still_store(&self) -> bool {
        self.inner.may_still_store()
    }

    fn next_ask(&self) -> Option<Ask> {
        self.inner.next_ask()
    }

    fn populated(&self, outcome: Result<(), Errno>) {
        self.inner.populated(outcome);
    }
}

impl Space for Real {
    const HAS_MEMORY: bool = true;

    fn of(bench: &Bench, pages: Range<u64>, kind: Kind) -> Arc<Self> {
        let bytes = usize::try_from((pages.end - pages.start) * PAGE).expect("small");
        let view = View::new(&bench.memory(), pages.start, bytes, kind).expect("a view");
        let userfault = Userfault::open().expect("a userfaultfd");
        let source = Gated::new(RealSource::new(userfault, view).expect("registered"));
        Arc::new(Self::of_source(&bench.mapping, source, &bench.service).expect("a region"))
    }

    fn load(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xEE; len];
        self.source()
            .inner
            .view()
            .load(place(self, offset), &mut bytes);
        bytes
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        self.source().inner.view().store(place(self, offset), bytes);
    }

    fn fault(&self, index: u64, kind: FaultKind) -> Result<(), FaultError<Failed>> {
        self.range().fault(&mut Held::at_entry(), index, kind)
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
        match look(self.source().inner.view(), index) {
            Seen::Page(entry) => Some(entry),
            Seen::Nothing | Seen::Poison => None,
        }
    }

    fn stop(&self) {
        self.source().set(true, true);
    }

    fn wait_stopped(&self, count: usize) {
        self.source().wait_stopped(count);
    }

    fn wait_unmapped(&self) {
        self.source().wait_zapped();
    }

    fn finish(&self, touches: Vec<Task<()>>) {
        self.source().set(false, true);
        touches.into_iter().for_each(Task::finish);
        self.source().set(false, false);
    }
}

fn place(region: &Real, offset: u64) -> usize {
    usize::try_from(offset - region.pages().start * PAGE).expect("inside")
}

/// Defines a test of each schedule for simulated faults, for real ones, and for those of a guard.
macro_rules! for_both {
    ($($schedule:ident;)*) => {
        mod simulated {
            use crate::tests::disk::Disk;
            $(
                #[test]
                fn $schedule() {
                    super::$schedule::<pagefence_page_cache::simulated::AddressSpace<Disk>>();
                }
            )*
        }
        mod real {
            $(
                #[test]
                fn $schedule() {
                    super::$schedule::<crate::tests::space::Real>();
                }
            )*
        }
        mod remote {
            $(
                #[test]
                fn $schedule() {
                    super::$schedule::<crate::tests::remote::space::Remote>();
                }
            )*
        }
    };
}
pub(super) use for_both;
