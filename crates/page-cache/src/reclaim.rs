//! Taking pages back when frames run out: a clock over the frames of the arena.
//!
//! Every frame that holds a page of a file has its place on the clock, by its number. The hand
//! goes round; a page that was used again since the hand last passed gets another round (up to
//! three), the others go. Neighbouring frames are reclaimed together, so the next batch that is
//! read finds neighbours to lie in. A page is in no list, so nothing is to be kept up on a hit,
//! and a page that leaves the cache otherwise leaves no stale entry behind.
//!
//! A page that is mapped is unmapped under its lock first. That its mapper was there shows as use
//! only when it faults, so a page that is only loaded from goes after some rounds, and comes back. One
//! whose mapper would have to be waited for ([`crate::MapTarget::is_free`]) is passed over: only who gets
//! no frame otherwise asks, for one page, and goes round again, as who has answered has done so for all. So
//! a program that answers late holds up nobody who can have a page that it has not just been given, and
//! others for one page at a time.
//!
//! Pages that are dirty or under writeback stay; whoever finds no frame has the flusher write some.
//!
//! Reclaim only ever tries locks, and a [`crate::MapTarget`] ends by itself. So it may run wherever
//! memory is needed, whatever is held, and a fence, a filler or a reader that holds a page is never
//! waited for. A page of a mapped file is punched out of the file's memory, which waits for the kernel's
//! own work on that memory, and for nobody of ours.

use pagefence_host_memory::Frame;
use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex, Weak};

use crate::folio::{Folio, PageLockGuard};

/// Places that one lock guards.
const GROUP: usize = 64;

/// Places that the hand passes at most while it still spares pages in use.
const SPARING: usize = 8192;

/// The clock.
#[derive(Debug)]
pub(crate) struct Clock {
    /// Leaves: only weak references are handled under them. Empty until first needed.
    groups: Box<[Mutex<Vec<Weak<Folio>>>]>,
    hand: AtomicUsize,
}

/// Which pages reclaim takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pressure {
    /// Those not used again since the last round, and that nobody copies from just now.
    Sparing,
    /// Any whose lock is free, and whose mappers need not be waited for.
    Any,
    /// Any whose lock is free.
    Asking,
}

impl Clock {
    pub(crate) fn new(frames: usize) -> Self {
        Self {
            groups: (0..frames.div_ceil(GROUP))
                .map(|_| Mutex::default())
                .collect(),
            hand: AtomicUsize::new(0),
        }
    }

    /// The page in frame `number` is `folio` from now on.
    pub(crate) fn enter(&self, number: u32, folio: &Arc<Folio>) {
        let (group, place) = place(number);
        let mut group = self.groups[group].lock();
        if group.is_empty() {
            group.resize_with(GROUP, Weak::new);
        }
        group[place] = Arc::downgrade(folio);
    }

    /// Frame `number` holds no page any more.
    pub(crate) fn leave(&self, number: u32) {
        let (group, place) = place(number);
        self.groups[group].lock()[place] = Weak::new();
    }

    /// Takes `want` pages or more out of the cache, if it can, and says how many went.
    ///
    /// Waits for nothing but who maps a page ([`MapTarget::unmap`](crate::MapTarget::unmap)), a second at most
    /// if that is another process, and only if it `may_ask` and has no other page. A page that somebody still
    /// copies from gives its frame back when that is done.
    pub(crate) fn reclaim(&self, want: usize, may_ask: bool) -> usize {
        let sparing = SPARING.div_ceil(GROUP).min(4 * self.groups.len());
        let all = self.groups.len();
        let mut freed = self.sweep(want, sparing, Pressure::Sparing);
        if freed == 0 {
            freed = self.sweep(want, all, Pressure::Any);
        }
        if freed == 0 && may_ask {
            freed = self.sweep(1, all, Pressure::Asking);
            if freed > 0 && freed < want {
                freed += self.sweep(want - freed, all, Pressure::Any);
            }
        }
        freed
    }

    /// Passes `groups` groups of places, or until `want` pages went.
    pub(crate) fn sweep(&self, want: usize, groups: usize, pressure: Pressure) -> usize {
        let mut freed = 0;
        let mut passed: Vec<Arc<Folio>> = Vec::with_capacity(GROUP);
        for _ in 0..groups {
            if freed >= want {
                break;
            }
            let at = self.hand.fetch_add(1, Ordering::Relaxed) % self.groups.len();
            // References are dropped after the group's lock: the last one takes it again.
            passed.extend(self.groups[at].lock().iter().filter_map(Weak::upgrade));
            for folio in passed.drain(..) {
                if freed >= want && pressure == Pressure::Asking {
                    break;
                }
                freed += usize::from(take(&folio, pressure));
            }
        }
        freed
    }
}

/// Takes one page out of the cache, unless it is to be spared, not on the device, or its lock is
/// held.
fn take(folio: &Arc<Folio>, pressure: Pressure) -> bool {
    // The index and we: whoever else has a reference copies from it now.
    const UNPINNED: usize = 2;
    let is_pinned = Arc::strong_count(folio) > UNPINNED;
    if pressure == Pressure::Sparing && (folio.state.take_use() || is_pinned) {
        return false;
    }
    if is_pinned && folio.frame().is_some_and(Frame::is_in_memory) {
        // It would lose its bytes at once, and who copies would have to begin again.
        return false;
    }
    if !may_go(folio) {
        return false;
    }
    let Some(guard) = PageLockGuard::try_lock(folio) else {
        return false;
    };
    #[cfg(test)]
    folio.pages.discard_for_mutant(&guard);
    // Pages become dirty under the page lock only, so now the answer stays. A mapping that is being
    // dropped has pages that are in no index any more.
    let taken = may_go(folio) && (pressure == Pressure::Asking || is_free(folio)) && {
        // Clean, so nobody can store to it; whoever loads from it faults it in again.
        unmap(folio);
        folio.pages.remove_locked(&guard)
    };
    if !taken {
        guard.give_up_quietly();
    }
    taken
}

/// Whether nobody has to be waited for who maps `folio`, which is locked.
fn is_free(folio: &Folio) -> bool {
    #[cfg(test)]
    if folio.shared().mutants.reclaim_asks {
        return true;
    }
    !folio.state.is_mapped() || folio.pages.rmap().is_free(folio.index)
}

fn unmap(folio: &Arc<Folio>) {
    #[cfg(test)]
    if folio.shared().mutants.reclaim_mapped {
        folio.state.take_mapped();
        return;
    }
    folio.pages.unmap_locked(std::iter::once(folio));
}

/// Whether `folio` is in the cache and the device has all that it holds: a page under writeback is
/// not there yet, or its blocks are not mapped.
fn may_go(folio: &Folio) -> bool {
    #[cfg(test)]
    if folio.shared().mutants.reclaim_takes_dirty && !folio.state.is_writeback() {
        return !folio.state.is_detached();
    }
    folio.state.unclean() == 0 && !folio.state.is_detached()
}

fn place(number: u32) -> (usize, usize) {
    let number = usize::try_from(number).expect("usize has 32 bits or more");
    (number / GROUP, number % GROUP)
}
