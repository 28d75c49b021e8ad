//! A simulated memory-management unit: processes that map files, for tests.
//!
//! An [`AddressSpace`] is one mapping of a file in one process. Loads and stores go through its page
//! table, and through faults where that has no entry that allows them. Its page table is an oracle
//! as well (O4, O3): at no moment does an entry lead to a page that has left the cache, or allow
//! stores to a page that is not dirty; and an entry is never replaced by one of another page.
//!
//! A test can stop a fault between its page's being locked and its being mapped (K6).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex};

use crate::answer::Answer;
use crate::backing::{PAGE_SIZE, WriteBacking};
use crate::fault::{FaultError, FaultKind};
use crate::mapping::Mapping;
use crate::rmap::{Access, CannotMap, MapTarget, MappedPage, MappedRange, PageRun, Unmap};

/// An entry of a page table, as a test sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The page of the cache, for loads.
    ReadOnly,
    /// The page of the cache, for loads and stores.
    Writable,
    /// A private copy of it.
    Private,
}

/// What is mapped at a page.
enum Pte {
    Shared { page: MappedPage, writable: bool },
    Private(Box<[u8]>),
}

impl Pte {
    fn find_wrong(&self) -> Option<String> {
        let Self::Shared { page, writable } = self else {
            return None;
        };
        let index = page.index();
        if !page.is_current() {
            return Some(format!("page {index} is mapped and has left the cache"));
        }
        (*writable && !page.is_dirty())
            .then(|| format!("page {index} is clean and can be stored to"))
    }
}

/// The page table.
#[derive(Default)]
struct Mmu {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    table: BTreeMap<u64, Pte>,
    is_stopping: bool,
    stopped: usize,
    /// Calls of [`MapTarget::unmap`].
    unmaps: usize,
    /// Faults that will find no memory for their entry.
    failing: usize,
}

impl Mmu {
    /// K6, for a test that asked for it; then, whether there is memory for an entry.
    fn enter(&self) -> Result<(), CannotMap> {
        let mut state = self.state.lock();
        if state.is_stopping {
            state.stopped += 1;
            self.changed.notify_all();
            while state.is_stopping {
                self.changed.wait(&mut state);
            }
            state.stopped -= 1;
        }
        if state.failing > 0 {
            state.failing -= 1;
            return Err(CannotMap);
        }
        Ok(())
    }
}

impl MapTarget for Mmu {
    fn map(&self, run: &PageRun<'_>, access: Access) -> Result<(), CannotMap> {
        self.enter()?;
        let allowed = access == Access::Store;
        for page in run.iter() {
            let is_other = {
                let table = &mut self.state.lock().table;
                let entry = table.entry(page.index()).or_insert_with(|| Pte::Shared {
                    page: page.clone(),
                    writable: false,
                });
                match entry {
                    Pte::Shared {
                        page: old,
                        writable,
                    } => {
                        *writable |= allowed;
                        !old.is_same(&page)
                    }
                    Pte::Private(_) => false,
                }
            };
            assert!(!is_other, "stale: two pages mapped at one place");
        }
        Ok(())
    }

    fn map_copy(&self, page: &MappedPage) -> Result<(), CannotMap> {
        let mut copy = vec![0; PAGE_SIZE].into_boxed_slice();
        page.copy_out(0, &mut copy);
        self.enter()?;
        let table = &mut self.state.lock().table;
        if !matches!(table.get(&page.index()), Some(Pte::Private(_))) {
            table.insert(page.index(), Pte::Private(copy));
        }
        Ok(())
    }

    fn unmap(&self, pages: Range<u64>, which: Unmap) -> Answer<'_> {
        let gone: Vec<Pte> = {
            let mut state = self.state.lock();
            state.unmaps += 1;
            self.changed.notify_all();
            let taken =
                |pte: &Pte| which == Unmap::EvenPrivate || matches!(pte, Pte::Shared { .. });
            state
                .table
                .extract_if(pages, |_, pte| taken(pte))
                .map(|(_, pte)| pte)
                .collect()
        };
        // Pages are given back with no lock held.
        drop(gone);
        Answer::done()
    }

    fn write_protect(&self, pages: Range<u64>) -> Answer<'_> {
        let mut state = self.state.lock();
        for (_, pte) in state.table.range_mut(pages) {
            if let Pte::Shared { writable, .. } = pte {
                *writable = false;
            }
        }
        Answer::done()
    }
}

/// A mapping of pages of a file in a simulated process; unmapped when dropped.
pub struct AddressSpace<B: WriteBacking> {
    /// Dropped first: unmaps what the table has.
    range: MappedRange<B>,
    mmu: Arc<Mmu>,
    is_private: bool,
}

/// Of a fault that a load or a store met.
pub type Fault<B> = FaultError<<B as crate::Backing>::Error>;

impl<B: WriteBacking> AddressSpace<B> {
    /// Maps `pages` of the file shared (`MAP_SHARED`).
    #[must_use]
    pub fn shared(mapping: &Arc<Mapping<B>>, pages: Range<u64>) -> Self {
        Self::of(mapping, pages, false)
    }

    /// Maps `pages` of the file privately (`MAP_PRIVATE`): stores are seen here alone.
    #[must_use]
    pub fn private(mapping: &Arc<Mapping<B>>, pages: Range<u64>) -> Self {
        Self::of(mapping, pages, true)
    }

    fn of(mapping: &Arc<Mapping<B>>, pages: Range<u64>, is_private: bool) -> Self {
        let mmu = Arc::new(Mmu::default());
        let target: Arc<dyn MapTarget> = Arc::<Mmu>::clone(&mmu);
        Self {
            range: mapping.map_range(pages, target),
            mmu,
            is_private,
        }
    }

    /// Loads from byte `offset` of the file. With no lock held.
    ///
    /// # Errors
    ///
    /// Of the first fault that fails; what came before it is loaded.
    pub fn load(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault<B>> {
        let mut rest = buffer;
        let mut at = offset;
        while !rest.is_empty() {
            let (index, inside) = place(at);
            let len = rest.len().min(PAGE_SIZE - inside);
            let (part, after) = rest.split_at_mut(len);
            while !self.try_load(index, inside, part) {
                self.fault(index, FaultKind::Read)?;
            }
            at += len as u64;
            rest = after;
        }
        Ok(())
    }

    /// Stores at byte `offset` of the file. With no lock held.
    ///
    /// # Errors
    ///
    /// Of the first fault that fails; what came before it is stored.
    pub fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), Fault<B>> {
        let kind = if self.is_private {
            FaultKind::PrivateWrite
        } else {
            FaultKind::Write
        };
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let (index, inside) = place(at);
            let (part, after) = rest.split_at(rest.len().min(PAGE_SIZE - inside));
            while !self.try_store(index, inside, part) {
                self.fault(index, kind)?;
            }
            at += part.len() as u64;
            rest = after;
        }
        Ok(())
    }

    /// Faults on page `index`, as hardware does that was here before another fault was served.
    ///
    /// # Errors
    ///
    /// The fault's.
    pub fn fault(&self, index: u64, kind: FaultKind) -> Result<(), Fault<B>> {
        self.range.fault(&mut Held::at_entry(), index, kind)
    }

    /// A load that allows no fault: false if there is no entry.
    fn try_load(&self, index: u64, inside: usize, target: &mut [u8]) -> bool {
        let state = self.mmu.state.lock();
        match state.table.get(&index) {
            Some(Pte::Shared { page, .. }) => page.copy_out(inside, target),
            Some(Pte::Private(copy)) => {
                target.copy_from_slice(&copy[inside..inside + target.len()]);
            }
            None => return false,
        }
        true
    }

    /// A store that allows no fault: false if there is no entry for it.
    fn try_store(&self, index: u64, inside: usize, source: &[u8]) -> bool {
        // With the table locked: an entry that was taken away or protected is not stored through.
        let mut state = self.mmu.state.lock();
        match state.table.get_mut(&index) {
            Some(Pte::Shared {
                page,
                writable: true,
            }) => page.copy_in(inside, source),
            Some(Pte::Private(copy)) => {
                copy[inside..inside + source.len()].copy_from_slice(source);
            }
            _ => return false,
        }
        true
    }

    /// What is mapped at page `index`.
    #[must_use]
    pub fn entry(&self, index: u64) -> Option<Entry> {
        let state = self.mmu.state.lock();
        state.table.get(&index).map(|pte| match pte {
            Pte::Shared { writable: true, .. } => Entry::Writable,
            Pte::Shared { .. } => Entry::ReadOnly,
            Pte::Private(_) => Entry::Private,
        })
    }

    /// Entries that there are.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.mmu.state.lock().table.len()
    }

    /// How often entries were taken away, whether there were any or not.
    #[must_use]
    pub fn unmaps(&self) -> usize {
        self.mmu.state.lock().unmaps
    }

    /// The mapping checker, at any moment: every entry leads to a page in the cache, and one that
    /// allows stores to a dirty one.
    ///
    /// # Panics
    ///
    /// If that is not so.
    pub fn check(&self) {
        // An entry goes under this lock before its page leaves the cache or becomes clean.
        let find = |state: &State| state.table.values().find_map(Pte::find_wrong);
        let wrong = find(&self.mmu.state.lock());
        // With the lock given up: who unwinds takes it.
        if let Some(wrong) = wrong {
            panic!("stale: {wrong}");
        }
    }

    /// Stops faults at K6 from now on: their page is locked, and not mapped.
    pub fn stop(&self) {
        self.mmu.state.lock().is_stopping = true;
    }

    /// Waits until `count` faults have stopped.
    pub fn wait_stopped(&self, count: usize) {
        let mut state = self.mmu.state.lock();
        while state.stopped < count {
            self.mmu.changed.wait(&mut state);
        }
    }

    /// Waits until entries were taken away `count` times.
    pub fn wait_unmaps(&self, count: usize) {
        let mut state = self.mmu.state.lock();
        while state.unmaps < count {
            self.mmu.changed.wait(&mut state);
        }
    }

    /// Lets faults that stopped go on, and stops no more.
    pub fn go_on(&self) {
        self.mmu.state.lock().is_stopping = false;
        self.mmu.changed.notify_all();
    }

    /// Leaves the next `count` faults without memory for their entry.
    pub fn fail_faults(&self, count: usize) {
        self.mmu.state.lock().failing = count;
    }
}

impl<B: WriteBacking> fmt::Debug for AddressSpace<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace")
            .field("range", &self.range)
            .field("is_private", &self.is_private)
            .finish_non_exhaustive()
    }
}

fn place(offset: u64) -> (u64, usize) {
    let inside = usize::try_from(offset % PAGE_SIZE as u64).expect("inside a page");
    (offset / PAGE_SIZE as u64, inside)
}
