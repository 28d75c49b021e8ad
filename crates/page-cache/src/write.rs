//! Writing a file through the cache.
//!
//! The caller holds the inode lock, so there is one writer a file. A chunk at a time: inside the
//! invalidate lock, shared, the pages are locked in ascending order, absent ones inserted; what a
//! partial page keeps is read; space is reserved, the last step that can fail; then the bytes are
//! copied, the pages made dirty, the size raised, and the pages unlocked. No block is allocated.
//!
//! # Writes that end early
//!
//! Other caches map or reserve a range first and copy into it afterwards, so that a copy that ends
//! early leaves reservations to be punched, in a race with faults (S3). Here there is nothing to
//! punch, by the order of the steps: what is copied lies in private memory before a page is locked
//! ([`Mapping::write_from`]); a page that can't be read and frames that are missing cut the run short
//! before anything is reserved; and between the reservation and dirty pages nothing can fail. Both
//! happen in one hold of the page locks and the invalidate lock. So no reservation of a write is ever
//! without its dirty page (S3.6 to S3.8, S3.10, S3.11, S3.16, S3.18), and a dirty page never without
//! its reservation (S3.2, S3.3). Nothing that was looked up in the block map outlives the page locks
//! it was looked up under, so there is no cached mapping to go stale (S3.15). For what writing back
//! leaves when it fails: [`crate::Fence::punch_delalloc`].
//!
//! A write that leaves a gap behind an end of the file that lies inside a page has the invalidate
//! lock exclusively: what was stored past the end through a map would come to lie inside.
//!
//! # Who waits for whom
//!
//! Nothing is waited for with page locks held but other page locks, further up in the file: their
//! holders (fillers, writeback gathering) wait for no lock of ours. Too many dirty pages, missing
//! frames and missing space are waited for before the first page lock.

use std::iter::once;
use std::ops::Range;

use pagefence_host_memory::FrameMut;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Inode, Invalidate, PageLock};
use pagefence_lock_order::primitives::{Arc, Weak};

use crate::backing::{PAGE_SIZE, WriteBacking};
use crate::cache::Shared;
use crate::flusher::Flush;
use crate::folio::{Folio, PageLockGuard};
use crate::mapping::{Filler, Looker, Mapping, PAGE_BYTES};
use crate::write_batch::{Mask, blocks_touched};

/// Pages written under one hold of the locks, at most: 1 MiB.
pub(crate) const CHUNK_PAGES: u64 = 256;

/// Bytes copied from a source at a time: as many as are written under one hold of the locks.
const BOUNCE_BYTES: usize = 256 * PAGE_SIZE;

/// How often a write that found no space asks the file system to make some, before it tries to
/// write less.
pub(crate) const ROOM_TRIES: u32 = 3;

/// What came of trying to write a chunk.
enum Chunk {
    /// So many bytes, at least one.
    Written(u64),
    /// Another thread changed the pages meanwhile: try again.
    Changed,
    /// No frame is to be had: wait with no page lock held, then try again.
    NoFrame,
}

/// Why a chunk was not written.
enum Failed<E> {
    /// What a partial page keeps could not be read.
    Read(E),
    /// There is no space.
    Reserve(E),
}

impl<B: WriteBacking> Mapping<B> {
    /// Writes `data` at byte `offset`: into the cache, with space reserved for it. Says how many
    /// bytes, which is less than asked for only before an error, or where files end (2^63 - 1, or
    /// the last page of a memory that can be mapped).
    /// A write past the end raises the size by [`WriteBacking::grow`]; what lies between reads as
    /// zeros, and a hole stays one.
    ///
    /// The caller holds the inode lock exclusively. A page is read first only if the write leaves
    /// some of its bytes inside the file alone. Readers see each page before or after, or some of
    /// its bytes before and some after.
    ///
    /// `data` is touched with page locks held: it must be private memory, never a mapping of a
    /// file in this cache (RACES U1); for those there is [`Self::write_from`].
    ///
    /// # Errors
    ///
    /// If nothing could be written: no space, after what failed writes keep was given back
    /// ([`Self::give_back_unwritten`]) and [`WriteBacking::make_room`] had its chances, or
    /// the old contents of a page that is written in part can't be read.
    pub fn write(
        &self,
        held: &mut Held<'_, Inode>,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, B::Error> {
        let room = self.pages().largest().saturating_sub(offset);
        let len = u64::try_from(data.len()).unwrap_or(room).min(room);
        let done = self.write_chunks(held, offset..offset.saturating_add(len), Some(data))?;
        Ok(usize::try_from(done).expect("at most all of it"))
    }

    /// Makes bytes `range`, as far as they lie inside the file, dirty as they are, with space
    /// reserved for them: where there is a hole, the zeros that it reads as. Says how many bytes,
    /// as [`Self::write`], whose rules and locks these are.
    ///
    /// Nothing that a reader sees changes: so this loses nothing that others store through maps at
    /// the same time, as a write of zeros would.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub fn rewrite(&self, held: &mut Held<'_, Inode>, range: Range<u64>) -> Result<u64, B::Error> {
        let end = range.end.min(self.size());
        self.write_chunks(held, range.start.min(end)..end, None)
    }

    /// Writes to `range` what `data` begins with, or what is there; how many bytes.
    fn write_chunks(
        &self,
        held: &mut Held<'_, Inode>,
        range: Range<u64>,
        data: Option<&[u8]>,
    ) -> Result<u64, B::Error> {
        let portion = self.shared().flusher.limits().portion;
        let most = portion.min(CHUNK_PAGES);
        let (mut at, mut limit, mut tries) = (range.start, most, 0);
        while at < range.end {
            self.shared().flusher.throttle(held, self);
            let done = usize::try_from(at - range.start).expect("at most the data");
            let rest = data.map(|data| &data[done..]);
            let failed = match self.write_chunk(held, at..range.end, rest, limit) {
                Ok(Chunk::Written(len)) => {
                    at += len;
                    (limit, tries) = (most, 0);
                    continue;
                }
                Ok(Chunk::Changed) => continue,
                Ok(Chunk::NoFrame) => {
                    self.shared().wait_for_frame();
                    continue;
                }
                Err(failed) => failed,
            };
            let error = match failed {
                Failed::Reserve(error) => {
                    match self.look_for_space(held, error, &mut tries, &mut limit) {
                        None => continue,
                        Some(error) => error,
                    }
                }
                Failed::Read(error) => error,
            };
            return if at > range.start {
                Ok(at - range.start)
            } else {
                Err(error)
            };
        }
        Ok(at - range.start)
    }

    /// No space was found for `limit` pages: has some made, in the first `tries`, or says to write
    /// less. The error, if nothing is left to be done. With no page locked.
    pub(crate) fn look_for_space(
        &self,
        held: &mut Held<'_, Inode>,
        error: B::Error,
        tries: &mut u32,
        limit: &mut u64,
    ) -> Option<B::Error> {
        if self.give_back_unwritten(held) {
            return None;
        }
        if *tries < ROOM_TRIES && self.backing().make_room(held, &error) {
            *tries += 1;
            return None;
        }
        if *limit > 1 {
            // There may be space for less.
            *limit /= 2;
            return None;
        }
        Some(error)
    }

    /// As [`Self::write`], of `len` bytes that `source` copies into the buffers it is given, one
    /// after the other: for memory of others, which may fault, be a mapping of a file in this cache,
    /// or of this very range. It says how many bytes it copied; fewer than there is room for are the
    /// last ones, and written.
    ///
    /// `source` is called with no lock of this cache held, before anything is reserved for what it
    /// gives (RACES U1). So a source that ends early leaves nothing to give back.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub fn write_from(
        &self,
        held: &mut Held<'_, Inode>,
        offset: u64,
        len: usize,
        mut source: impl FnMut(&mut [u8]) -> usize,
    ) -> Result<usize, B::Error> {
        let mut buffer = vec![0; len.min(BOUNCE_BYTES)];
        let mut done = 0;
        while done < len {
            let room = (len - done).min(buffer.len());
            let copied = source(&mut buffer[..room]).min(room);
            let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            let written = match self.write(held, at, &buffer[..copied]) {
                Ok(written) => written,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            done += written;
            if written < room {
                break;
            }
        }
        Ok(done)
    }

    /// Writes the front of `range`, up to `limit` pages of it.
    fn write_chunk(
        &self,
        held: &mut Held<'_, Inode>,
        range: Range<u64>,
        data: Option<&[u8]>,
        limit: u64,
    ) -> Result<Chunk, Failed<B::Error>> {
        let offset = range.start;
        let first = offset / PAGE_BYTES;
        let bytes = offset..range.end.min((first + limit) * PAGE_BYTES);
        let written = {
            let size = self.size();
            let leaves_gap = offset > size && !size.is_multiple_of(PAGE_BYTES);
            let (_section, mut held) = if leaves_gap {
                self.fill_section_alone(held)
            } else {
                self.fill_section(held, Filler::Write)
            };
            if leaves_gap {
                self.zero_stores_past_end(&mut held, size);
            }
            let pages = first..bytes.end.div_ceil(PAGE_BYTES);
            let (_rank, mut held) = held.descend::<PageLock>(pages.end - 1);
            let mut run = WriteRun::lock(self, &held, pages, bytes);
            if run.slots.is_empty() {
                return Ok(if run.starved {
                    Chunk::NoFrame
                } else {
                    Chunk::Changed
                });
            }
            self.read_kept(&mut held, &mut run, data.is_none())?;
            let block_size = u64::from(self.backing().block_size());
            debug_assert!([1024, 2048, 4096].contains(&block_size));
            let blocks = run.bytes.start / block_size * block_size
                ..run.bytes.end.next_multiple_of(block_size);
            self.backing()
                .reserve(&mut held, blocks)
                .map_err(Failed::Reserve)?;
            self.store(&mut held, run, data, block_size)
        };
        self.tell_flusher();
        Ok(Chunk::Written(written))
    }

    /// Makes what the last page has past the end of the file, which is `size`, zeros: it may have been
    /// stored to, and is about to be inside. Whoever stores to it from now on has to ask, and the
    /// invalidate lock, held exclusively, keeps them waiting until the file is longer.
    pub(crate) fn zero_stores_past_end(&self, held: &mut Held<'_, Invalidate>, size: u64) {
        #[cfg(test)]
        if self.shared().mutants.tail_unprotected {
            return;
        }
        let Some(folio) = self.pages().get(size / PAGE_BYTES) else {
            return;
        };
        let (_rank, held) = held.descend::<PageLock>(folio.index);
        let guard = PageLockGuard::lock(&folio, &held);
        if self.has_gone(&folio, Looker::Edge) {
            // Clean, so nobody had stored to it; its place in a mapped file's memory is no longer its own.
            return;
        }
        self.pages().write_protect_locked(once(guard.folio()));
        if let Some(frame) = folio.frame() {
            let end = usize::try_from(size % PAGE_BYTES).expect("inside a page");
            frame.zero(end, PAGE_SIZE - end);
        }
    }

    /// Makes the new pages of `run` complete where the write does not, which may keep everything,
    /// cutting the run short before one that can't be read.
    fn read_kept(
        &self,
        held: &mut Held<'_, PageLock>,
        run: &mut WriteRun<'_>,
        keeps_all: bool,
    ) -> Result<(), Failed<B::Error>> {
        let size = self.size();
        let last = run.slots.len() - 1;
        for at in 0..=last {
            if !keeps_all && at > 0 && at < last {
                // Between the ends pages are overwritten in full.
                continue;
            }
            let slot = &mut run.slots[at];
            let Some(frame) = &mut slot.frame else {
                continue;
            };
            let (start, index) = (slot.folio.index * PAGE_BYTES, slot.folio.index);
            let part = part_of(&run.bytes, index);
            let keeps_head = part.start > 0 && start < size;
            let keeps_tail = part.end < PAGE_BYTES && start + part.end < size;
            if keeps_all || keeps_head || keeps_tail {
                let read = self
                    .backing()
                    .read_pages(held, index, std::slice::from_mut(frame));
                match read {
                    Ok(()) => {}
                    Err(error) if at == 0 => return Err(Failed::Read(error)),
                    Err(_) => {
                        run.shorten(at);
                        return Ok(());
                    }
                }
            } else {
                frame.fill(0);
            }
        }
        Ok(())
    }

    /// Copies the bytes, if they are others than are there, makes the pages dirty, raises the size,
    /// and unlocks; how many bytes.
    fn store(
        &self,
        held: &mut Held<'_, PageLock>,
        mut run: WriteRun<'_>,
        data: Option<&[u8]>,
        block_size: u64,
    ) -> u64 {
        let bytes = run.bytes.clone();
        let mut rest = data;
        for slot in &mut run.slots {
            let part = part_of(&bytes, slot.folio.index);
            let at = usize::try_from(part.start).expect("inside a page");
            let len = usize::try_from(part.end - part.start).expect("inside a page");
            let source = rest.map(|rest| rest.split_at(len));
            rest = source.map(|(_, after)| after);
            slot.blocks = blocks_touched(part, block_size);
            match slot.frame.take() {
                Some(mut frame) => {
                    if let Some((source, _)) = source {
                        frame[at..at + len].copy_from_slice(source);
                    }
                    slot.folio.publish(frame);
                }
                None => {
                    if let (Some(frame), Some((source, _))) = (slot.folio.frame(), source) {
                        frame.copy_in(at, source);
                    }
                }
            }
        }
        let len = bytes.end - bytes.start;
        #[cfg(test)]
        if self.shared().mutants.dirty_unlocked {
            return self.store_dirtying_late(held, run, len);
        }
        self.pages().set_dirty(run.dirtied());
        self.grow(held, bytes.end);
        drop(run);
        len
    }

    /// The mutant: the pages are unlocked, and dirty a moment later.
    #[cfg(test)]
    fn store_dirtying_late(
        &self,
        held: &mut Held<'_, PageLock>,
        run: WriteRun<'_>,
        len: u64,
    ) -> u64 {
        let end = run.bytes.end;
        let late: Vec<_> = run
            .dirtied()
            .map(|(folio, blocks)| (Arc::clone(folio), blocks))
            .collect();
        drop(run);
        self.grow(held, end);
        for (folio, blocks) in late {
            if let Some(guard) = PageLockGuard::try_lock(&folio)
                && !folio.state.is_detached()
            {
                self.pages().set_dirty(once((guard.folio(), blocks)));
            }
        }
        len
    }

    /// Puts the mapping on the flusher's list if it is not, and wakes a thread if one is needed.
    /// With no page lock held.
    pub(crate) fn tell_flusher(&self) {
        self.enlist_dirty();
        if !self.pages().is_storage() {
            self.shared().flusher.wake_if_needed();
        }
    }

    /// Has whoever writes everything know of this file, if it has dirty pages. Page locks may be held.
    pub(crate) fn enlist_dirty(&self) {
        let (flusher, dirty) = (&self.shared().flusher, self.pages().dirty());
        if !self.pages().is_storage() && dirty.is_unknown() {
            let this: Weak<dyn Flush> = Weak::<Self>::clone(self.this());
            flusher.enlist(self.shared(), this, || dirty.enlist());
        }
    }
}

/// The bytes of page `index` that `bytes` of the file covers, counted from the page's start.
fn part_of(bytes: &Range<u64>, index: u64) -> Range<u64> {
    let start = index * PAGE_BYTES;
    bytes.start.saturating_sub(start)..(bytes.end - start).min(PAGE_BYTES)
}

/// Consecutive locked pages that are about to be written, and the bytes of the file that they will
/// get.
///
/// However it is left, the pages that are not up to date go out of the index before any is
/// unlocked, and every one is unlocked.
struct WriteRun<'a> {
    shared: &'a Shared,
    slots: Vec<Slot>,
    bytes: Range<u64>,
    /// It ends for want of a frame.
    starved: bool,
}

struct Slot {
    folio: Arc<Folio>,
    /// The frame that a new page will get; `None` if it is up to date.
    frame: Option<FrameMut>,
    /// The blocks that are written.
    blocks: Mask,
}

impl<'a> WriteRun<'a> {
    /// Locks the pages `wanted`, ascending, inserting those that are absent: up to the first that
    /// has no frame or changes hands meanwhile. They are to get `bytes`.
    fn lock<B: WriteBacking>(
        mapping: &'a Mapping<B>,
        held: &Held<'_, PageLock>,
        wanted: Range<u64>,
        bytes: Range<u64>,
    ) -> Self {
        let (pages, shared): (_, &Shared) = (mapping.pages(), mapping.shared());
        let count = usize::try_from(wanted.end - wanted.start).expect("a chunk");
        let mut present = Vec::with_capacity(count);
        pages.gather(wanted.clone(), count, &mut present);
        let absent = count - present.len();
        let mut frames = if absent > 0 {
            shared.allocate(absent).into_iter()
        } else {
            Vec::new().into_iter()
        };
        let mut run = Self {
            shared,
            slots: Vec::with_capacity(count),
            starved: frames.len() < absent,
            bytes,
        };
        let mut at = wanted.start;
        let ends = present.iter().map(|folio| (folio.index, Some(folio)));
        for (next, folio) in ends.chain([(wanted.end, None)]) {
            let gap = usize::try_from(next - at).expect("a chunk");
            let new: Vec<_> = (at..next)
                .take(frames.len())
                .map(|index| Arc::new(Folio::locked(pages, index, false)))
                .collect();
            let inserted = if new.is_empty() {
                0
            } else {
                pages.insert_absent(&new)
            };
            // What found its place taken was seen by nobody.
            run.slots
                .extend(new.into_iter().take(inserted).map(|folio| Slot {
                    folio,
                    frame: frames.next(),
                    blocks: 0,
                }));
            if inserted < gap {
                run.starved &= frames.len() == 0;
                break;
            }
            let Some(folio) = folio else { break };
            shared.page_queues.lock(folio);
            if mapping.has_gone(folio, Looker::Write) || !folio.is_uptodate() {
                shared.page_queues.unlock(folio);
                run.starved = false;
                break;
            }
            run.slots.push(Slot {
                folio: Arc::clone(folio),
                frame: None,
                blocks: 0,
            });
            at = next + 1;
        }
        let _ = held;
        run.cut();
        run
    }

    /// Gives up the pages from slot `at` on.
    fn shorten(&mut self, at: usize) {
        let rest = Self {
            shared: self.shared,
            slots: self.slots.split_off(at),
            bytes: self.bytes.clone(),
            starved: false,
        };
        drop(rest);
        self.cut();
    }

    /// Makes the bytes end where the pages do.
    fn cut(&mut self) {
        let end = self
            .slots
            .last()
            .map_or(self.bytes.start, |slot| (slot.folio.index + 1) * PAGE_BYTES);
        self.bytes.end = self.bytes.end.min(end);
    }

    fn dirtied(&self) -> impl Iterator<Item = (&Arc<Folio>, Mask)> {
        self.slots.iter().map(|slot| (&slot.folio, slot.blocks))
    }
}

impl Drop for WriteRun<'_> {
    fn drop(&mut self) {
        let failed = || {
            let folios = self.slots.iter().map(|slot| &slot.folio);
            folios.filter(|folio| !folio.is_uptodate())
        };
        if let Some(folio) = failed().next() {
            folio.pages.remove(failed());
        }
        for slot in &self.slots {
            self.shared.page_queues.unlock(&slot.folio);
        }
        self.shared.frame_events.notify();
    }
}

const _: () = assert!(CHUNK_PAGES.is_power_of_two() && PAGE_SIZE == 4096);
