//! Dropping a range of pages (Linux: `truncate_inode_pages_range`), and zeroing its edges.

use std::iter::once;
use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Invalidate, PageLock};
use pagefence_lock_order::primitives::Arc;

use crate::backing::{Segment, WriteBacking};
use crate::fill::Filled;
use crate::folio::{Folio, PageLockGuard};
use crate::mapping::{Looker, Mapping, PAGE_BYTES, pages_in};
use crate::pages::Pages;
use crate::write_batch::{Mask, WHOLE, blocks_inside, blocks_touched};
use crate::writeback::WaitFor;

/// Pages looked up at a time.
const BATCH: usize = 64;

impl Pages {
    /// Takes every page of `range` out of the cache, in two passes (S4.16): the first takes what
    /// it can lock at once, the second waits for the rest. Each page is unmapped under its lock, and
    /// removed before it is unlocked (S4.1). The invalidate lock is held exclusively, so nobody
    /// brings a page back, and only those hold page locks who never wait for this thread. What is
    /// dirty is forgotten; what is being written is waited for.
    pub(crate) fn drop_range(&self, held: &mut Held<'_, Invalidate>, range: Range<u64>) {
        self.assert_fenced();
        self.drop_unlocked(range.clone());
        self.drop_waiting(held, range);
    }

    fn drop_unlocked(&self, range: Range<u64>) {
        let mut found: Vec<Arc<Folio>> = Vec::with_capacity(BATCH);
        let mut at = range.start;
        loop {
            found.clear();
            self.gather(at..range.end, BATCH, &mut found);
            let Some(last) = found.last() else { return };
            at = last.index + 1;
            let locked: Vec<_> = found
                .iter()
                .filter_map(PageLockGuard::try_lock)
                .filter(|guard| self.may_drop(guard.folio()))
                .collect();
            self.unmap_for_drop(locked.iter().map(PageLockGuard::folio));
            for guard in &locked {
                self.clear_dirty(guard, WHOLE);
            }
            self.remove(locked.iter().map(PageLockGuard::folio));
        }
    }

    fn drop_waiting(&self, held: &mut Held<'_, Invalidate>, range: Range<u64>) {
        let mut found: Vec<Arc<Folio>> = Vec::with_capacity(BATCH);
        loop {
            found.clear();
            self.gather(range.clone(), BATCH, &mut found);
            if found.is_empty() {
                return;
            }
            for folio in &found {
                let (_rank, held) = held.descend::<PageLock>(folio.index);
                let guard = PageLockGuard::lock(folio, &held);
                if !self.may_drop(folio) {
                    self.shared().page_queues.wait_writeback(folio);
                }
                self.unmap_for_drop(once(folio));
                // Reclaim may have been faster.
                self.clear_dirty(&guard, WHOLE);
                self.remove_locked(&guard);
            }
        }
    }

    fn unmap_for_drop<'a>(&self, folios: impl Iterator<Item = &'a Arc<Folio>>) {
        #[cfg(test)]
        if self.shared().mutants.drop_mapped {
            folios.for_each(|folio| _ = folio.state.take_mapped());
            return;
        }
        self.unmap_locked(folios);
    }

    /// Whether nobody writes `folio`, which is locked, so that nobody will.
    fn may_drop(&self, folio: &Folio) -> bool {
        #[cfg(test)]
        if self.shared().mutants.evict_unwaited {
            return true;
        }
        !folio.state.is_writeback()
    }
}

impl<B: WriteBacking> Mapping<B> {
    /// Makes `parts`, each less than a page, in different pages, ascending, read as zeros: from the
    /// cache and, where they share a block with bytes that stay, from the device. Blocks wholly
    /// in them are no longer dirty: they are about to be taken away. Nothing is allocated: what is
    /// a hole or unwritten has zeros.
    ///
    /// Inside the fence: nobody fills or dirties pages, or takes blocks away; writeback goes on.
    /// All that can fail comes first, but for the writing.
    pub(crate) fn zero_edges(
        &self,
        held: &mut Held<'_, Invalidate>,
        parts: &[Range<u64>],
    ) -> Result<(), B::Error> {
        self.pages().assert_fenced();
        // What others fail to write between the zeros and the writing counts, too.
        let before = self.errors.count();
        loop {
            let mut edges = Vec::with_capacity(parts.len());
            for part in parts {
                edges.extend(self.look_at_edge(held, part)?);
            }
            let Some(rewritten) = self.zero_cached(held, &edges) else {
                // Reclaim took one of the pages.
                continue;
            };
            if rewritten.is_empty() {
                return Ok(());
            }
            self.tell_flusher();
            if self.leaves_edges() {
                return Ok(());
            }
            rewritten.into_iter().try_for_each(|index| {
                let bytes = index * PAGE_BYTES..(index + 1) * PAGE_BYTES;
                self.write_back(held, bytes, WaitFor::All)
            })?;
            return self.errors.since(before);
        }
    }

    /// What is to be done at `part`, with its page brought into the cache if that takes part in
    /// it; `None` if all of it reads as zeros.
    fn look_at_edge(
        &self,
        held: &mut Held<'_, Invalidate>,
        part: &Range<u64>,
    ) -> Result<Option<Edge>, B::Error> {
        let (index, inside) = inside_page(part);
        loop {
            let folio = self.pages().get(index);
            let unclean = folio.as_ref().map(|folio| folio.state.unclean());
            // Asked after that: a block that writeback has mapped by now was unclean then.
            let written = self.written_blocks_cut_by(held, index, &inside)?;
            if let Some(unclean) = unclean {
                return Ok(Some(Edge {
                    index,
                    inside,
                    written,
                    unclean,
                }));
            }
            if written == 0 || index >= pages_in(self.size()) {
                // A hole; or past the end, where nobody keeps a byte.
                return Ok(None);
            }
            let pages = index..index + 1;
            if let Filled::NoFrame = self.fill_data(held, pages, index + 1, None)? {
                self.shared().wait_for_frame();
            }
        }
    }

    /// Zeroes `edges` in the cache and makes dirty what the device has to get; says in which pages
    /// that is something. `None`, with nothing done, if a page is not in the cache any more.
    fn zero_cached(&self, held: &mut Held<'_, Invalidate>, edges: &[Edge]) -> Option<Vec<u64>> {
        let folios: Vec<Arc<Folio>> = edges
            .iter()
            .map(|edge| self.pages().get(edge.index))
            .collect::<Option<_>>()?;
        let last = folios.last().map_or(0, |folio| folio.index);
        let (_rank, held) = held.descend::<PageLock>(last);
        let guards: Vec<_> = folios
            .iter()
            .map(|folio| PageLockGuard::lock(folio, &held))
            .collect();
        let gone = |folio: &Arc<Folio>| self.has_gone(folio, Looker::Edge) || !folio.is_uptodate();
        if folios.iter().any(gone) {
            return None;
        }
        let block_size = u64::from(self.backing().block_size());
        let mut rewritten = Vec::new();
        // Blocks of them lose their dirtiness and their space, and blocks past the old end may get
        // some: the next store has to ask for it (B20). It waits for the fence.
        self.protect_edges(&folios);
        for (edge, guard) in edges.iter().zip(&guards) {
            let folio = guard.folio();
            // So that what is in flight is not of the bytes before, and lands before.
            self.shared().page_queues.wait_writeback(folio);
            if let Some(frame) = folio.frame() {
                let at = |offset: u64| usize::try_from(offset).expect("inside a page");
                let (start, end) = (at(edge.inside.start), at(edge.inside.end));
                frame.zero(start, end - start);
            }
            let taken_away = blocks_inside(edge.inside.clone(), block_size);
            self.pages().clear_dirty(guard, taken_away);
            // A block that was unclean and is no longer dirty was written meanwhile: it has a
            // block, with the bytes before. One that is still dirty and has none gets its zeros
            // when it is written.
            let cut = blocks_cut(&edge.inside, block_size);
            let blocks = edge.written | edge.unclean & cut & !folio.state.dirty();
            if blocks != 0 {
                self.pages().set_dirty(once((folio, blocks)));
                rewritten.push(edge.index);
            }
        }
        Some(rewritten)
    }

    /// The mutant: the zeros get to the device some time.
    fn leaves_edges(&self) -> bool {
        #[cfg(any(test, feature = "mutants"))]
        return self.shared().probe.leaves_edges();
        #[cfg(not(any(test, feature = "mutants")))]
        false
    }

    fn protect_edges(&self, folios: &[Arc<Folio>]) {
        #[cfg(test)]
        if self.shared().mutants.edges_unprotected {
            return;
        }
        self.pages().write_protect_locked(folios.iter());
    }

    /// The blocks that `inside` of page `index` cuts and that hold data.
    fn written_blocks_cut_by(
        &self,
        held: &mut Held<'_, Invalidate>,
        index: u64,
        inside: &Range<u64>,
    ) -> Result<Mask, B::Error> {
        let block_size = u64::from(self.backing().block_size());
        let mut written = 0;
        for start in starts_cut(inside, block_size) {
            let (segment, _) = self.backing().segment(held, index * PAGE_BYTES + start)?;
            if segment == Segment::Data {
                written |= blocks_touched(start..start + 1, block_size);
            }
        }
        Ok(written)
    }
}

/// A part of a page that is to read as zeros.
struct Edge {
    index: u64,
    inside: Range<u64>,
    /// The blocks that it cuts and that hold data.
    written: Mask,
    /// The blocks of the page that were dirty or under writeback before that was asked.
    unclean: Mask,
}

/// Where the blocks begin that `inside` of a page shares with bytes outside.
fn starts_cut(inside: &Range<u64>, block_size: u64) -> impl Iterator<Item = u64> {
    [inside.start, inside.end]
        .into_iter()
        .filter(move |end| !end.is_multiple_of(block_size))
        .map(move |end| end / block_size * block_size)
}

fn blocks_cut(inside: &Range<u64>, block_size: u64) -> Mask {
    starts_cut(inside, block_size).fold(0, |mask, start| {
        mask | blocks_touched(start..start + 1, block_size)
    })
}

/// The page that `part` lies in, and which of its bytes that is.
fn inside_page(part: &Range<u64>) -> (u64, Range<u64>) {
    let index = part.start / PAGE_BYTES;
    let base = index * PAGE_BYTES;
    debug_assert!(part.end - base <= PAGE_BYTES, "an edge is less than a page");
    (index, part.start - base..part.end - base)
}
