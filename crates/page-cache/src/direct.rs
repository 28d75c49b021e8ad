//! Writing past the cache (O_DIRECT).
//!
//! A direct write is a filler that leaves nothing in the cache. From before its I/O until its blocks
//! are mapped and converted, it holds the invalidate lock, shared, and in the place of each page of its
//! range a page of its own, locked and without a frame. So whoever wants to read, store to or write
//! back such a page waits for the page lock, looks again, and finds the new data; what others do with
//! the rest of the file goes on beside it. There is no moment between an invalidation before the I/O
//! and one after it in which old data could be read again (RACES 3.9, K16, T20; B17 to B19): the
//! cache is empty from the one to the other.
//!
//! # What is dirty
//!
//! Dirty pages of the range are written back first, and what delays their blocks is mapped by that. A
//! page that is dirty when it is locked was stored to meanwhile: everything is given up and begun
//! again; after some tries with the invalidate lock exclusively, so that nobody stores. No dirty page
//! is dropped, however little of it is overwritten.
//!
//! # What takes blocks away
//!
//! The caller holds the inode lock all along, which whoever truncates, punches, shifts, exchanges or
//! migrates holds exclusively: waiting for it is what Linux calls draining (S0.5, RACES B4). What
//! takes the invalidate lock exclusively without the inode lock waits for the write, too.
//!
//! # Who waits for whom
//!
//! With page locks held, this waits for page locks further up in the file and for the writeback of
//! pages it has locked, as a buffered write and a fence do; and for I/O and journal handles, as
//! writeback does. Who has a handle waits for no page, so neither does a commit.

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Inode, PageLock};
use pagefence_lock_order::primitives::Arc;

use crate::backing::DirectBacking;
use crate::cache::Shared;
use crate::folio::Folio;
use crate::mapping::{Filler, LARGEST, Mapping, PAGE_BYTES};
use crate::pages::Pages;
use crate::write::CHUNK_PAGES;
use crate::write_batch::{WriteBatch, masks_of};
use crate::writeback::WaitFor;

/// How often a write that meets stores tries again before it keeps them out.
const SHARED_TRIES: u32 = 3;

/// What came of trying to write a chunk.
enum Chunk {
    /// So many bytes, at least one.
    Written(usize),
    /// A page was stored to after it had been written back: try again.
    Dirty,
}

/// Why a chunk was not written.
enum Failed<E> {
    /// There is no space.
    Reserve(E),
    /// The device, or the block map.
    Write(E),
}

impl<B: DirectBacking> Mapping<B> {
    /// Writes `data` at byte `offset`, both whole blocks, to the device, past the cache; whoever
    /// reads the file when this has returned finds it. It is with the device then, not necessarily
    /// durable. Says how many bytes, which is less than asked for only before an error. A write past
    /// the end raises the size by [`crate::WriteBacking::grow`], once its data is mapped.
    ///
    /// The caller holds the inode lock: exclusively if this reaches past the end of the file, shared
    /// or exclusively otherwise. Direct writes that share pages wait for each other, others do not.
    /// Readers see each page before or after, or some of its bytes before and some after, and never
    /// before when they have seen it after.
    ///
    /// `data` is touched with page locks held: it must be private memory, never a mapping of a file in
    /// this cache (RACES U1).
    ///
    /// # Errors
    ///
    /// If nothing could be written: no space, after all was tried that [`Self::write`] tries; what is
    /// dirty in the range can't be written back; or the device fails. The size is as before, no block
    /// was added and no space kept; blocks that had data may have some of the new. No dirty data was
    /// dropped.
    pub fn write_direct(
        &self,
        held: &mut Held<'_, Inode>,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, B::Error> {
        debug_assert!(!B::IS_STORAGE, "nothing lies behind the cache");
        let block_size = u64::from(self.backing().block_size());
        debug_assert!(offset.is_multiple_of(block_size), "not at a block");
        debug_assert!((data.len() as u64).is_multiple_of(block_size), "no block");
        let most = CHUNK_PAGES;
        let (mut done, mut limit, mut tries, mut dirtied) = (0, most, 0, 0);
        while done < data.len() {
            let at = offset + data_len(done);
            let room = (LARGEST / PAGE_BYTES).min(at / PAGE_BYTES + limit) * PAGE_BYTES;
            let len = usize::try_from(room.saturating_sub(at)).unwrap_or(usize::MAX);
            let chunk = &data[done..][..len.min(data.len() - done)];
            if chunk.is_empty() {
                break;
            }
            let error = match self.write_direct_chunk(held, at, chunk, dirtied) {
                Ok(Chunk::Written(len)) => {
                    done += len;
                    (limit, tries, dirtied) = (most, 0, 0);
                    continue;
                }
                Ok(Chunk::Dirty) => {
                    dirtied += 1;
                    continue;
                }
                Err(Failed::Reserve(error)) => {
                    match self.look_for_space(held, error, &mut tries, &mut limit) {
                        None => continue,
                        Some(error) => error,
                    }
                }
                Err(Failed::Write(error)) => error,
            };
            return if done > 0 { Ok(done) } else { Err(error) };
        }
        Ok(done)
    }

    /// Writes `data`, which lies in few pages, having met a dirty page `dirtied` times.
    fn write_direct_chunk(
        &self,
        held: &mut Held<'_, Inode>,
        offset: u64,
        data: &[u8],
        dirtied: u32,
    ) -> Result<Chunk, Failed<B::Error>> {
        let bytes = offset..offset + data_len(data.len());
        let pages = bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES);
        if !self.drops_dirty() {
            let clean = self.write_back(held, bytes.clone(), WaitFor::All);
            clean.map_err(Failed::Write)?;
        }
        let size = self.size();
        let leaves_gap = offset > size && !size.is_multiple_of(PAGE_BYTES);
        let alone = leaves_gap || dirtied >= SHARED_TRIES;
        let (_section, mut held) = if alone {
            self.fill_section_alone(held)
        } else {
            self.fill_section(held, Filler::Direct)
        };
        if leaves_gap {
            self.zero_stores_past_end(&mut held, size);
        }
        if alone {
            // From here on nobody stores to what is clean.
            let clean = self.write_back(&mut held, bytes.clone(), WaitFor::All);
            clean.map_err(Failed::Write)?;
        }
        let (_rank, mut held) = held.descend::<PageLock>(pages.end - 1);
        let Some(mut run) = DirectRun::lock(self.pages(), &held, pages) else {
            return Ok(Chunk::Dirty);
        };
        let reserved = self.backing().reserve(&mut held, bytes.clone());
        reserved.map_err(Failed::Reserve)?;
        run.take_out_cached();
        let masks = masks_of(&bytes, u64::from(self.backing().block_size()));
        let batch = WriteBatch::direct(offset, &masks, data, size.max(bytes.end));
        let outcome = self.backing().write_direct(&mut held, &batch);
        let end = *outcome.as_ref().unwrap_or(&offset);
        if end < bytes.end {
            // No page of these is dirty, nor can become so before they are unlocked. So nobody
            // relies on the space that they still have, whoever reserved it.
            self.backing().release(&mut held, end..bytes.end);
        }
        let written = usize::try_from(end.saturating_sub(offset)).expect("inside a chunk");
        outcome.map_err(Failed::Write)?;
        debug_assert!(written > 0, "nothing was written, and no error");
        if end > size {
            self.grow(&mut held, end);
        }
        Ok(Chunk::Written(written))
    }

    /// The mutant: what is dirty is dropped.
    fn drops_dirty(&self) -> bool {
        #[cfg(test)]
        return self.shared().mutants.direct_drops_dirty;
        #[cfg(not(test))]
        false
    }
}

fn data_len(len: usize) -> u64 {
    u64::try_from(len).expect("memory")
}

/// Consecutive locked pages, in which nothing is dirty or under writeback. At first some are cached;
/// from [`DirectRun::take_out_cached`] on all are of this run, and nobody has seen what they hold.
///
/// However it is left, the pages that are not up to date go out of the index before any is
/// unlocked, and every one is unlocked.
struct DirectRun<'a> {
    pages: &'a Arc<Pages>,
    folios: Vec<Arc<Folio>>,
}

impl<'a> DirectRun<'a> {
    /// Locks the pages `wanted`, ascending, inserting those that are absent, and waits for those that
    /// are being written. `None` if one is dirty.
    fn lock(
        pages: &'a Arc<Pages>,
        held: &Held<'_, PageLock>,
        wanted: std::ops::Range<u64>,
    ) -> Option<Self> {
        let queues = &pages.shared().page_queues;
        let count = usize::try_from(wanted.end - wanted.start).expect("a chunk");
        let mut run = Self {
            pages,
            folios: Vec::with_capacity(count),
        };
        let mut present = Vec::new();
        let mut at = wanted.start;
        // Ends: whoever takes a place, or leaves one, meanwhile, makes progress.
        while at < wanted.end {
            present.clear();
            pages.gather(at..wanted.end, 1, &mut present);
            let next = present.first().map_or(wanted.end, |folio| folio.index);
            let new: Vec<_> = (at..next)
                .map(|index| Arc::new(Folio::locked(pages, index, false)))
                .collect();
            if !new.is_empty() {
                let inserted = pages.insert_absent(&new);
                // What found its place taken was seen by nobody.
                run.folios.extend(new.into_iter().take(inserted));
                at += data_len(inserted);
                if at < next {
                    continue;
                }
            }
            let Some(folio) = present.pop() else { continue };
            queues.lock(&folio);
            if folio.state.is_detached() {
                queues.unlock(&folio);
                continue;
            }
            debug_assert!(folio.is_uptodate(), "cached, unlocked and not up to date");
            at = folio.index + 1;
            run.folios.push(Arc::clone(&folio));
            // Holders of the mark wait for no page.
            queues.wait_writeback(&folio);
            if run.refuses_dirty(&folio) {
                return None;
            }
        }
        let _ = held;
        Some(run)
    }

    /// Whether `folio`, which is locked, is dirty.
    fn refuses_dirty(&self, folio: &Arc<Folio>) -> bool {
        let is_dirty = folio.state.dirty() != 0;
        #[cfg(test)]
        if is_dirty && self.shared().mutants.direct_drops_dirty {
            self.pages.write_protect_locked(std::iter::once(folio));
            self.pages.discard_locked(folio);
            return false;
        }
        is_dirty
    }

    fn shared(&self) -> &Shared {
        self.pages.shared()
    }

    /// Takes the pages that are cached away from whoever maps them, and out of the index, with a page
    /// that has no frame in the place of each. Private copies stay with who made them (S4.15).
    fn take_out_cached(&mut self) {
        #[cfg(test)]
        if self.is_mutated() {
            return;
        }
        let cached = || self.folios.iter().filter(|folio| folio.is_uptodate());
        if cached().next().is_none() {
            return;
        }
        self.pages.unmap_locked(cached());
        let old: Vec<_> = cached().map(Arc::clone).collect();
        let new: Vec<_> = old
            .iter()
            .map(|folio| Arc::new(Folio::locked(self.pages, folio.index, false)))
            .collect();
        self.pages.replace(old.iter().zip(&new));
        let mut places = new.into_iter();
        for folio in &mut self.folios {
            if folio.is_uptodate()
                && let Some(place) = places.next()
            {
                *folio = place;
            }
        }
        for folio in &old {
            // Who waits for it finds that it is gone, and looks again.
            self.shared().page_queues.unlock(folio);
        }
        drop(old);
        self.shared().frame_events.notify();
    }

    /// The mutants: the pages are dropped and unlocked; or those that are cached stay.
    #[cfg(test)]
    fn is_mutated(&mut self) -> bool {
        let mutants = self.shared().mutants;
        if mutants.direct_unlocked {
            self.pages.unmap_locked(self.folios.iter());
            self.pages.remove(self.folios.iter());
            for folio in std::mem::take(&mut self.folios) {
                self.shared().page_queues.unlock(&folio);
            }
        }
        mutants.direct_unlocked || mutants.direct_keeps_cached
    }
}

impl Drop for DirectRun<'_> {
    fn drop(&mut self) {
        let new = || self.folios.iter().filter(|folio| !folio.is_uptodate());
        if new().next().is_some() {
            self.pages.remove(new());
        }
        for folio in &self.folios {
            self.shared().page_queues.unlock(folio);
        }
        self.shared().frame_events.notify();
    }
}
