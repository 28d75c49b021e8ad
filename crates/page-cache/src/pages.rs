//! The pages of one file: an index that lookups share.
//!
//! A tree of chunks of 16 slots under a reader-writer lock. Lookups take it shared, once a batch
//! of pages; inserting and removing take it exclusively, once a batch. It is a leaf: nothing is
//! taken, allocated from the arena, or waited for under it. The tree's shape bounds what a page
//! can cost beside its frame, whatever the pattern of access ([`PAGE_OVERHEAD`]).

use std::collections::BTreeMap;
use std::ops::Range;

use pagefence_host_memory::FileMemory;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, RwLock};

use crate::cache::Shared;
use crate::dirty::DirtyIndex;
use crate::folio::{Folio, PageLockGuard};
use crate::mapping::LARGEST;
use crate::memory::{LARGEST_SHARED, take_memory};
use crate::rmap::Rmap;
use crate::write_batch::Mask;

const SLOTS: usize = 16;
const SLOTS_U64: u64 = 16;

/// Bytes that one cached page costs at most beside its frame: the folio, a chunk that it is
/// alone in, its share of a half-full tree node, its place on reclaim's clock, and the same share
/// of the index of dirty pages.
pub(crate) const PAGE_OVERHEAD: u64 = 352;

// Shuttle's atomics and locks are larger than real ones.
#[cfg(not(shuttle))]
const _: () = {
    const REFERENCE_COUNTS: usize = 16;
    const ALLOCATOR: usize = 16;
    const TREE_ENTRY: usize = 48;
    const CLOCK: usize = 8;
    const DIRTY: usize = 2 * crate::dirty::ENTRY;
    let folio = size_of::<Folio>() + REFERENCE_COUNTS + ALLOCATOR;
    let chunk = size_of::<Chunk>() + ALLOCATOR;
    assert!((folio + chunk + TREE_ENTRY + CLOCK + DIRTY) as u64 <= PAGE_OVERHEAD);
};

/// The pages of one file, and what every page of it needs to know: outlives the mapping only as
/// long as somebody still copies from one of its pages.
#[derive(Debug)]
pub(crate) struct Pages {
    shared: Arc<Shared>,
    number: u64,
    tree: RwLock<BTreeMap<u64, Box<Chunk>>>,
    count: AtomicU64,
    dirty: DirtyIndex,
    rmap: Rmap,
    /// Where the pages' bytes are, once the file is mapped into memory ([`crate::memory`]).
    memory: RwLock<Option<Arc<FileMemory>>>,
    /// Where the file ends at the latest, in bytes: for that memory.
    largest: AtomicU64,
    /// That memory is on the list of those that nobody may have a use for.
    is_listed: AtomicBool,
    /// [`crate::Backing::IS_STORAGE`].
    is_storage: bool,
    /// The invalidate lock is held exclusively; for assertions (S1.11).
    #[cfg(debug_assertions)]
    fenced: AtomicBool,
}

#[derive(Debug, Default)]
struct Chunk {
    slots: [Option<Arc<Folio>>; SLOTS],
    used: u8,
}

impl Pages {
    pub(crate) fn new(shared: Arc<Shared>, number: u64, is_storage: bool) -> Self {
        #[cfg(test)]
        let rmap = Rmap::with(shared.mutants);
        #[cfg(not(test))]
        let rmap = Rmap::default();
        Self {
            shared,
            number,
            tree: RwLock::new(BTreeMap::new()),
            count: AtomicU64::new(0),
            dirty: DirtyIndex::default(),
            rmap,
            memory: RwLock::new(None),
            largest: AtomicU64::new(LARGEST),
            is_listed: AtomicBool::new(false),
            is_storage,
            #[cfg(debug_assertions)]
            fenced: AtomicBool::new(false),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether dirty pages stay dirty: there is nowhere to write them.
    pub(crate) fn is_storage(&self) -> bool {
        self.is_storage
    }

    /// The file's number.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The index of the dirty pages.
    pub(crate) fn dirty(&self) -> &DirtyIndex {
        &self.dirty
    }

    /// Who maps the file.
    pub(crate) fn rmap(&self) -> &Rmap {
        &self.rmap
    }

    /// Where the file ends at the latest, in bytes: what lies behind is not there, whatever the size. It
    /// changes with the invalidate lock held exclusively.
    pub(crate) fn largest(&self) -> u64 {
        self.largest.load(Ordering::Relaxed)
    }

    /// Where the pages' bytes are, if not in private frames.
    pub(crate) fn memory(&self) -> Option<Arc<FileMemory>> {
        self.memory.read().clone()
    }

    /// The pages' bytes are in `memory` from now on. The file has no page, and gets none meanwhile:
    /// the invalidate lock is held exclusively.
    pub(crate) fn set_memory(&self, memory: Arc<FileMemory>) {
        self.assert_fenced();
        debug_assert_eq!(self.count(), 0, "pages with frames of their own");
        *self.memory.write() = Some(memory);
        self.largest.store(LARGEST_SHARED, Ordering::Relaxed);
    }

    /// The pages' bytes are in private frames again, if nobody has a use for the memory: nobody maps
    /// the file, is about to, or copies from one of its pages. The file has no page, and gets none
    /// meanwhile: the invalidate lock is held exclusively.
    ///
    /// Whoever is about to map it has a reference until it is on the list of who does, and references
    /// come from here alone: so who is alone under the lock, and then finds nobody on the list, is
    /// the last.
    pub(crate) fn give_memory_back(&self) -> bool {
        self.assert_fenced();
        debug_assert_eq!(self.count(), 0, "pages whose bytes are there");
        let mut memory = self.memory.write();
        let is_alone = memory
            .as_mut()
            .is_some_and(|memory| Arc::get_mut(memory).is_some());
        if !is_alone || !self.rmap.is_empty() {
            return false;
        }
        let unused = memory.take();
        self.largest.store(LARGEST, Ordering::Relaxed);
        drop(memory);
        unused.is_some()
    }

    /// Notes that the memory is on the list of those that nobody may have a use for, or is not any more;
    /// whether it was.
    pub(crate) fn set_listed(&self, listed: bool) -> bool {
        self.is_listed.swap(listed, Ordering::AcqRel)
    }

    /// Makes blocks of `folios`, all locked, dirty.
    pub(crate) fn set_dirty<'a>(&self, folios: impl Iterator<Item = (&'a Arc<Folio>, Mask)>) {
        let mut count = 0;
        let new = folios.filter_map(|(folio, blocks)| {
            debug_assert!(folio.state.is_locked(), "dirtied without its lock");
            debug_assert!(self.may_be_dirtied(folio), "dirtied outside the cache");
            folio.state.set_dirty(blocks).then_some(folio.index)
        });
        self.dirty.add(new.inspect(|_| count += 1));
        if !self.is_storage {
            self.shared.flusher.note_dirtied(count);
        }
    }

    /// Forgets that `blocks` of the page under `guard` are dirty: their bytes are not wanted.
    pub(crate) fn clear_dirty(&self, guard: &PageLockGuard<'_>, blocks: Mask) {
        let folio = guard.folio();
        if folio.state.clear_dirty(blocks) {
            self.dirty.remove(folio.index);
            self.note_discarded(1);
        }
    }

    fn note_discarded(&self, pages: usize) {
        if !self.is_storage {
            self.shared.flusher.note_discarded(pages);
        }
    }

    /// Whether `folio` is in the cache; mutants find out by themselves.
    fn may_be_dirtied(&self, folio: &Folio) -> bool {
        #[cfg(test)]
        if self.shared.mutants.unrevalidated.is_some() {
            return true;
        }
        !folio.state.is_detached()
    }

    /// The mutant: what is dirty in `folio`, which is locked, is not any more.
    #[cfg(test)]
    pub(crate) fn discard_locked(&self, folio: &Folio) {
        if folio.state.clear_dirty(crate::write_batch::WHOLE) {
            self.dirty.remove(folio.index);
            self.note_discarded(1);
        }
    }

    /// The mutant: what is dirty is not, for reclaim.
    #[cfg(test)]
    pub(crate) fn discard_for_mutant(&self, guard: &PageLockGuard<'_>) {
        if self.shared.mutants.reclaim_takes_dirty {
            self.clear_dirty(guard, crate::write_batch::WHOLE);
        }
    }

    /// Pages in the index.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The page at `index`.
    pub(crate) fn get(&self, index: u64) -> Option<Arc<Folio>> {
        let (key, slot) = split(index);
        self.tree.read().get(&key)?.slots[slot].clone()
    }

    /// Appends the up to date pages that follow each other from `first` on, `limit` at most.
    pub(crate) fn uptodate_run(&self, first: u64, limit: usize, found: &mut Vec<Arc<Folio>>) {
        let tree = self.tree.read();
        let (key, mut slot) = split(first);
        for (expected, (&key, chunk)) in (key..).zip(tree.range(key..)) {
            if key != expected {
                return;
            }
            for folio in &chunk.slots[slot..] {
                match folio {
                    Some(folio) if found.len() < limit && folio.is_uptodate() => {
                        found.push(Arc::clone(folio));
                    }
                    _ => return,
                }
            }
            slot = 0;
        }
    }

    /// Appends the pages in `range`, ascending, `limit` at most.
    pub(crate) fn gather(&self, range: Range<u64>, limit: usize, found: &mut Vec<Arc<Folio>>) {
        if range.is_empty() {
            return;
        }
        let tree = self.tree.read();
        let (last, _) = split(range.end - 1);
        for (_, chunk) in tree.range(split(range.start).0..=last) {
            for folio in chunk.slots.iter().flatten() {
                if range.contains(&folio.index) {
                    if found.len() == limit {
                        return;
                    }
                    found.push(Arc::clone(folio));
                }
            }
        }
    }

    /// How many pages from `first` on are not in the index, `most` at most.
    pub(crate) fn absent_run(&self, first: u64, most: u64) -> u64 {
        let end = first.saturating_add(most);
        let mut found = Vec::with_capacity(1);
        self.gather(first..end, 1, &mut found);
        found.first().map_or(end, |folio| folio.index) - first
    }

    /// Inserts `folios`, which are locked and follow each other, up to the first whose place is
    /// taken; says how many.
    pub(crate) fn insert_absent(&self, folios: &[Arc<Folio>]) -> usize {
        let mut tree = self.tree.write();
        let mut inserted = 0;
        for folio in folios {
            debug_assert!(folio.state.is_locked(), "inserted without its lock");
            let (key, slot) = split(folio.index);
            let chunk = tree.entry(key).or_default();
            if chunk.slots[slot].is_some() {
                break;
            }
            chunk.slots[slot] = Some(Arc::clone(folio));
            chunk.used += 1;
            inserted += 1;
        }
        self.count.fetch_add(inserted, Ordering::Relaxed);
        usize::try_from(inserted).expect("no more than folios")
    }

    /// Takes locked pages out of the index. One that was taken out already stays out.
    ///
    /// Every page leaves the index here or with the whole mapping, under its page lock, and nobody
    /// maps it then (S4.1, S4.17).
    pub(crate) fn remove<'a>(&self, locked: impl Iterator<Item = &'a Arc<Folio>>) -> usize {
        match self.memory() {
            Some(memory) => {
                let locked: Vec<_> = locked.collect();
                take_memory(&memory, locked.iter().copied());
                self.take_out(locked.into_iter())
            }
            None => self.take_out(locked),
        }
    }

    fn take_out<'a>(&self, locked: impl Iterator<Item = &'a Arc<Folio>>) -> usize {
        let mut tree = self.tree.write();
        let mut removed = 0;
        for folio in locked {
            debug_assert!(folio.state.is_locked(), "removed without its lock");
            debug_assert!(!folio.state.is_mapped(), "removed while it is mapped");
            let (key, slot) = split(folio.index);
            let Some(chunk) = tree.get_mut(&key) else {
                continue;
            };
            if !chunk.slots[slot]
                .as_ref()
                .is_some_and(|present| Arc::ptr_eq(present, folio))
            {
                continue;
            }
            // Not the last reference: the caller has one, so nothing is freed under the lock.
            chunk.slots[slot] = None;
            chunk.used -= 1;
            if chunk.used == 0 {
                tree.remove(&key);
            }
            folio.state.set_detached();
            removed += 1;
        }
        self.count.fetch_sub(removed, Ordering::Relaxed);
        usize::try_from(removed).expect("no more than pages")
    }

    /// Puts locked pages without a frame in the places of locked ones, which leave the index; nobody
    /// maps those.
    pub(crate) fn replace<'a>(
        &self,
        pairs: impl Iterator<Item = (&'a Arc<Folio>, &'a Arc<Folio>)> + Clone,
    ) {
        if let Some(memory) = self.memory() {
            take_memory(&memory, pairs.clone().map(|(old, _)| old));
        }
        let mut tree = self.tree.write();
        for (old, new) in pairs {
            debug_assert!(old.state.is_locked() && new.state.is_locked());
            debug_assert!(!old.state.is_mapped(), "replaced while it is mapped");
            debug_assert_eq!(old.index, new.index, "another place");
            let (key, slot) = split(old.index);
            let place = tree.get_mut(&key).map(|chunk| &mut chunk.slots[slot]);
            let present =
                place.filter(|place| place.as_ref().is_some_and(|at| Arc::ptr_eq(at, old)));
            debug_assert!(present.is_some(), "replaced outside the index");
            if let Some(place) = present {
                // Not the last reference: the caller has one, so nothing is freed under the lock.
                *place = Some(Arc::clone(new));
                old.state.set_detached();
            }
        }
    }

    /// Takes every page out, when nobody can look any more.
    pub(crate) fn clear(&self) {
        let tree = std::mem::take(&mut *self.tree.write());
        self.count.store(0, Ordering::Relaxed);
        let unclean = self.dirty.clear();
        debug_assert_eq!(unclean.writeback, 0, "who writes keeps the mapping");
        self.note_discarded(unclean.dirty);
        for folio in tree.values().flat_map(|chunk| chunk.slots.iter().flatten()) {
            // Who maps a range keeps the mapping, but the bit may be older than that.
            folio.state.take_mapped();
            folio.state.set_detached();
        }
    }

    /// Notes, in debug builds, that the invalidate lock is held exclusively or no longer.
    pub(crate) fn set_fenced(&self, fenced: bool) {
        #[cfg(debug_assertions)]
        self.fenced.store(fenced, Ordering::Relaxed);
        #[cfg(not(debug_assertions))]
        let _ = fenced;
    }

    /// Asserts, in debug builds, that an invalidator holds the invalidate lock exclusively
    /// (S1.11).
    pub(crate) fn assert_fenced(&self) {
        #[cfg(debug_assertions)]
        assert!(
            self.fenced.load(Ordering::Relaxed),
            "pages of file {} dropped without the invalidate lock",
            self.number
        );
    }

    /// Takes a page out under the page lock that `guard` is.
    pub(crate) fn remove_locked(&self, guard: &PageLockGuard<'_>) -> bool {
        self.remove(std::iter::once(guard.folio())) == 1
    }
}

/// The chunk of a page and its slot there.
fn split(index: u64) -> (u64, usize) {
    let slot = usize::try_from(index % SLOTS_U64).expect("below 16");
    (index / SLOTS_U64, slot)
}
