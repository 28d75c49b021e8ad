//! Writing dirty pages back.
//!
//! Consecutive dirty pages are locked, write-protected for who maps them, marked as under writeback,
//! unlocked, copied, and handed to the file system in one piece. The mark goes when the file system
//! is done, the mapping of new blocks included, and its going takes no page lock; so whoever waits
//! for it may hold one.
//!
//! Who maps pages for stores may have to be waited for, which takes far longer than to write one. So pages of
//! several pieces are protected in one round before the first of them is written: a page that is stored to
//! again until its turn comes is protected again.
//!
//! Only the first page of a piece is waited for, its lock and its writeback by others, while no
//! other is gathered (docs/adr/0008): the rest is taken if it can be had at once. Neither the inode
//! lock nor the invalidate lock is taken (RACES U4); callers may hold them.

use std::ops::Range;

use pagefence_host_memory::PageBuffer;
use pagefence_lock_order::levels::{Entry, Inode, Level, PageLock, Writepages};
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_lock_order::{After, Held};

use crate::backing::{PAGE_SIZE, WriteBacking};
use crate::cache::Shared;
use crate::flusher::{Flush, Portion};
use crate::folio::{Folio, PageLockGuard};
use crate::mapping::{Mapping, PAGE_BYTES};
use crate::write_batch::{Mask, WriteBatch};

/// Pages written at a time, at most: 4 MiB.
pub(crate) const BATCH_PAGES: u64 = 1024;

/// Pieces whose pages are protected in one round. Each may be a message to each who stores to it.
const ROUND: usize = 16;

/// Whose writing [`Mapping::write_back`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// Only its own: pages that others write just now are left to them, though they may be dirty
    /// anew. To clean pages.
    Own,
    /// Everybody's: on return, what was dirty or under writeback in the range when the call began
    /// is written. For fsync, and before blocks change.
    All,
}

/// What came of a look for pages to write.
enum Written<E> {
    /// So many pages were written, or failed to be; what comes after them is next.
    Pages(Range<u64>, Result<(), E>),
    /// There is nothing to write before this page.
    Skipped(u64),
    /// There is nothing to write.
    Nothing,
}

impl<B: WriteBacking> Mapping<B> {
    /// Writes the dirty pages that bytes `range` touches. Pages made dirty meanwhile may or may
    /// not be among them. Pages that are the storage stay as they are.
    ///
    /// Called with any lock above page locks held, or none: it takes the lock of writeback shared,
    /// and page locks.
    ///
    /// # Errors
    ///
    /// The first error met by this call; the other pages are written all the same. With
    /// [`WaitFor::All`] also one that others met meanwhile, anywhere in the file: what they failed
    /// to write may be pages that this call waited for. It is noted for [`Mapping::check_errors`],
    /// too, which also tells of errors that came before: that is what fsync asks.
    pub fn write_back<P: Level>(
        &self,
        held: &mut Held<'_, P>,
        range: Range<u64>,
        wait: WaitFor,
    ) -> Result<(), B::Error>
    where
        Writepages: After<P>,
    {
        let pages = range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES);
        if range.is_empty() {
            return Ok(());
        }
        let before = self.errors.count();
        let (_, result) = self.write_dirty(held, pages.clone(), u64::MAX, wait);
        if wait == WaitFor::Own {
            return result;
        }
        self.wait_written(pages);
        result.and_then(|()| self.errors.since(before))
    }

    /// Writes up to `most` dirty pages of `pages`, ascending; how many, and the first error.
    fn write_dirty<P: Level>(
        &self,
        held: &mut Held<'_, P>,
        pages: Range<u64>,
        most: u64,
        wait: WaitFor,
    ) -> (u64, Result<(), B::Error>)
    where
        Writepages: After<P>,
    {
        let (mut at, mut done, mut result) = (pages.start, 0, Ok(()));
        let mut protected_to = at;
        while done < most && !self.pages().is_storage() {
            // For each piece anew, so that a change of format gets its turn.
            let (_lock, mut held) = self.writepages_lock().read(held);
            if at >= protected_to {
                protected_to = self.protect_round(at..pages.end, most - done);
            }
            match self.write_next(&mut held, at..pages.end, most - done, wait) {
                Written::Pages(written, outcome) => {
                    done += written.end - written.start;
                    at = written.end;
                    result = result.and(outcome);
                }
                Written::Skipped(next) => at = next,
                Written::Nothing => break,
            }
        }
        (done, result)
    }

    /// Protects the first dirty pages of `range`, `most` at most, as far as their locks are free, if they
    /// are several pieces; where that ends.
    fn protect_round(&self, range: Range<u64>, most: u64) -> u64 {
        if self.pages().rmap().is_empty() {
            return range.end;
        }
        let (mut at, mut left) = (range.start, most.min(BATCH_PAGES));
        let mut folios = Vec::new();
        let mut pieces = 0;
        while pieces < ROUND && left > 0 {
            let Some(dirty) = self.pages().dirty().next_dirty(at..range.end, left) else {
                at = range.end;
                break;
            };
            left -= dirty.end - dirty.start;
            at = dirty.end;
            self.pages().gather(dirty, usize::MAX, &mut folios);
            pieces += 1;
        }
        if pieces > 1 {
            let guards: Vec<_> = folios
                .iter()
                .filter(|folio| folio.state.is_writable())
                .filter_map(PageLockGuard::try_lock)
                .collect();
            self.protect(&guards);
        }
        at
    }

    /// Writes the first dirty pages of `range` that follow each other.
    fn write_next(
        &self,
        held: &mut Held<'_, Writepages>,
        range: Range<u64>,
        most: u64,
        wait: WaitFor,
    ) -> Written<B::Error> {
        let most = most.min(BATCH_PAGES);
        let Some(dirty) = self.pages().dirty().next_dirty(range, most) else {
            return Written::Nothing;
        };
        let count = usize::try_from(dirty.end - dirty.start).expect("at most a batch");
        let mut folios = Vec::with_capacity(count);
        self.pages().gather(dirty.clone(), count, &mut folios);
        let marked = {
            let (_rank, held) = held.descend::<PageLock>(dirty.end - 1);
            self.mark(&held, &folios, dirty.start, wait)
        };
        let Some(marked) = marked else {
            return Written::Skipped(dirty.start + 1);
        };
        #[cfg(test)]
        let marked = marked.or_unmarked_early();
        let pages = marked.pages();
        let result = self.write_marked(held, &marked);
        if let Err(error) = &result {
            self.errors.note(error.clone());
            self.shared().errors.note(());
        }
        // Noted before the mark goes: who waited for it asks for errors next.
        drop(marked);
        if result.is_err() {
            // After it: who finds the mark leaves the space to the next one who looks.
            self.unwritten.store(true, Ordering::Release);
        }
        Written::Pages(pages, result)
    }

    /// Marks `folios`, as far as they follow `first` and each other, are dirty, and can be locked,
    /// as under writeback. `None` if that is not even the first.
    fn mark<'a>(
        &'a self,
        held: &Held<'_, PageLock>,
        folios: &'a [Arc<Folio>],
        first: u64,
        wait: WaitFor,
    ) -> Option<Marked<'a>> {
        let head = folios.first().filter(|folio| folio.index == first)?;
        let guard = PageLockGuard::lock(head, held);
        if head.state.is_detached() || head.state.dirty() == 0 {
            return None;
        }
        if head.state.is_writeback() {
            if wait == WaitFor::Own {
                return None;
            }
            // With the page lock, so that nobody begins anew; with no page gathered.
            self.shared().page_queues.wait_writeback(head);
        }
        let mut guards = vec![guard];
        for (folio, index) in folios.iter().zip(first..).skip(1) {
            if folio.index != index {
                break;
            }
            let Some(guard) = PageLockGuard::try_lock(folio) else {
                break;
            };
            let state = &folio.state;
            if state.is_detached() || state.dirty() == 0 || state.is_writeback() {
                break;
            }
            guards.push(guard);
        }
        // Before the bytes are sampled, and before the pages are clean: a store after this faults,
        // and makes its page dirty again (RACES 4.3.6).
        self.protect(&guards);
        let masks: Vec<Mask> = guards
            .iter()
            .map(|guard| guard.folio().state.begin_writeback())
            .collect();
        let folios = &folios[..guards.len()];
        let end = first + u64::try_from(guards.len()).expect("at most a batch");
        // Counted as long as the index says so: a flusher that finds a file's pages under
        // writeback, and nothing else to do, waits for the count.
        self.shared().flusher.note_begun(guards.len());
        self.pages().dirty().begin_writeback(first..end);
        Some(Marked {
            shared: self.shared(),
            folios,
            masks,
            #[cfg(test)]
            ended: false,
        })
    }

    fn protect(&self, guards: &[PageLockGuard<'_>]) {
        #[cfg(test)]
        if self.shared().mutants.write_unprotected {
            for guard in guards {
                guard.folio().state.take_writable();
            }
            return;
        }
        let folios = guards.iter().map(PageLockGuard::folio);
        self.pages().write_protect_locked(folios);
    }

    /// Copies the pages of `marked` and has them written.
    fn write_marked(
        &self,
        held: &mut Held<'_, Writepages>,
        marked: &Marked<'_>,
    ) -> Result<(), B::Error> {
        let pages = marked.pages();
        // Looked up after the pages were locked: whoever made bytes past it dirty before had
        // grown the file by then ([`WriteBacking::grow`]), and who does so now makes them dirty
        // again. And before they are copied: what lies before it is in the copy then, so that a
        // size on disk that this batch raises covers no byte that is yet to be written.
        let size = self.size();
        let mut buffer = self.shared().buffers.take(marked.folios.len());
        let data = &mut buffer[..marked.folios.len() * PAGE_SIZE];
        for (folio, page) in marked.folios.iter().zip(data.chunks_mut(PAGE_SIZE)) {
            if let Some(frame) = folio.frame() {
                frame.copy_out(0, page);
            }
        }
        let start = pages.start * PAGE_BYTES;
        let inside = usize::try_from(size.saturating_sub(start)).unwrap_or(usize::MAX);
        if let Some(past) = data.get_mut(inside..) {
            past.fill(0);
        }
        let batch = WriteBatch::new(pages.start, &marked.masks, data, size);
        let result = self.backing().write_pages(held, &batch);
        self.shared().buffers.give(buffer);
        result
    }

    /// Waits for what others write of `pages`.
    pub(crate) fn wait_written(&self, pages: Range<u64>) {
        let mut at = pages.start;
        while let Some(page) = self.pages().dirty().next_writeback(at..pages.end) {
            if let Some(folio) = self.pages().get(page) {
                self.shared().page_queues.wait_writeback(&folio);
            }
            at = page + 1;
        }
    }

    /// The first bytes from `offset` on that the device may not have: those of blocks that are
    /// dirty or under writeback, as far as they go on. For lseek's `SEEK_DATA` and `SEEK_HOLE`,
    /// within the size.
    ///
    /// Ask here first and then the block map: a block that is neither dirty nor under writeback
    /// any more is mapped by then, but not the other way round.
    #[must_use]
    pub fn next_dirty(&self, offset: u64) -> Option<Range<u64>> {
        let mut found: Option<Range<u64>> = None;
        let mut at = offset;
        loop {
            let page = self.pages().dirty().next_unclean(at / PAGE_BYTES..u64::MAX);
            let start = page.map(|page| at.max(page * PAGE_BYTES));
            let next = start.filter(|&start| found.as_ref().is_none_or(|run| run.end == start));
            let Some(start) = next else { return found };
            let page = start / PAGE_BYTES;
            let mask = self
                .pages()
                .get(page)
                .map_or(0, |folio| folio.state.unclean());
            let base = page * PAGE_BYTES;
            match crate::write_batch::first_run(mask, start - base) {
                Some(run) => {
                    let run = base + run.start..base + run.end;
                    match &mut found {
                        Some(found) if found.end == run.start => found.end = run.end,
                        Some(_) => return found,
                        None => found = Some(run.clone()),
                    }
                    at = run.end;
                }
                // Written meanwhile, or clean from here on to the end of the page.
                None if found.is_some() => return found,
                None => at = base + PAGE_BYTES,
            }
        }
    }

    fn flush_portion<P: Level>(&self, held: &mut Held<'_, P>, portion: Portion) -> u64
    where
        Writepages: After<P>,
    {
        let all = 0..u64::MAX;
        match portion {
            Portion::Pages(most) => {
                // What becomes dirty behind the front is left for the next time.
                let dirty = self.dirty_pages().try_into().unwrap_or(u64::MAX);
                self.write_dirty(held, all, most.min(dirty), WaitFor::Own).0
            }
            Portion::All => {
                let (pages, _) = self.write_dirty(held, all.clone(), u64::MAX, WaitFor::All);
                self.wait_written(all);
                pages
            }
        }
    }
}

impl<B: WriteBacking> Flush for Mapping<B> {
    fn flush_at_entry(&self, held: &mut Held<'_, Entry>, portion: Portion) -> u64 {
        self.flush_portion(held, portion)
    }

    fn flush_below_inode(&self, held: &mut Held<'_, Inode>, portion: Portion) -> u64 {
        self.flush_portion(held, portion)
    }

    fn delist(&self) -> bool {
        self.pages().dirty().delist()
    }
}

/// Consecutive pages under writeback; they no longer are when this is dropped, whatever came of
/// it.
struct Marked<'a> {
    shared: &'a Shared,
    folios: &'a [Arc<Folio>],
    masks: Vec<Mask>,
    #[cfg(test)]
    ended: bool,
}

impl Marked<'_> {
    fn pages(&self) -> Range<u64> {
        let ends = self.folios.first().zip(self.folios.last());
        ends.map_or(0..0, |(first, last)| first.index..last.index + 1)
    }

    /// The mutant: readers, reclaim and fences take the pages for written now.
    #[cfg(test)]
    fn or_unmarked_early(mut self) -> Self {
        if self.shared.mutants.unmark_early {
            self.end();
            self.ended = true;
        }
        self
    }

    fn end(&self) {
        let Some(first) = self.folios.first() else {
            return;
        };
        first.pages.dirty().end_writeback(self.pages());
        for folio in self.folios {
            self.shared.page_queues.end_writeback(folio);
        }
        self.shared.flusher.note_written(self.folios.len());
        self.shared.frame_events.notify();
    }
}

impl Drop for Marked<'_> {
    fn drop(&mut self) {
        #[cfg(test)]
        if self.ended {
            return;
        }
        self.end();
    }
}

/// Buffers for pieces being written, kept for the next ones.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Mutex<Vec<PageBuffer>>);

/// Buffers kept, of 4 MiB each at most.
const KEPT: usize = 4;

impl Buffers {
    /// A buffer of `pages` pages or more; what it holds means nothing.
    fn take(&self, pages: usize) -> PageBuffer {
        let mut kept = self.0.lock();
        let fitting = kept.iter().position(|buffer| buffer.pages() >= pages);
        let buffer = fitting.map(|at| kept.swap_remove(at));
        drop(kept);
        buffer.unwrap_or_else(|| PageBuffer::new(pages.next_power_of_two()))
    }

    fn give(&self, buffer: PageBuffer) {
        let mut kept = self.0.lock();
        kept.push(buffer);
        kept.sort_unstable_by_key(PageBuffer::pages);
        let surplus = kept.len().saturating_sub(KEPT);
        // The smallest go: a larger one serves as well.
        let dropped: Vec<_> = kept.drain(..surplus).collect();
        drop(kept);
        drop(dropped);
    }
}
