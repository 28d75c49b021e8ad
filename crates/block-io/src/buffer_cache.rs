//! The buffer cache: metadata blocks of one device, in memory under a byte budget.
//!
//! Owns: which blocks are in memory, and which reads are in flight. Stays outside: what the
//! bytes mean, and writing (a journal replaces whole buffers, [`BufferCache::replace`]).
//!
//! A block belongs to one of up to 64 shards. Each shard has a lock, an index, a CLOCK hand and
//! its part of the budget, so a hit takes one shard lock, sets the second-chance mark and clones
//! an `Arc`; no lock and no counter is shared by all requests.
//!
//! Invariants:
//! - A shard lock is never held across I/O, and a thread holds at most one.
//! - At most one read of a block is in flight; who misses meanwhile waits for it. A read that
//!   fails leaves nothing behind: each waiter then tries by itself and gets its own error.
//! - A thread that waits for another's read has none of its own unfinished ([`BufferCache::read_run`]
//!   finishes its I/O before it waits), so waiting can't form a circle.
//! - [`BufferCache::invalidate`] and [`BufferCache::replace`] win over a read in flight: what that
//!   read brings is not kept.
//! - The bytes that the index holds, and the memory kept for buffers to come, never
//!   exceed the budget. A buffer in use (its `Arc` is held
//!   outside) is not evicted; if every buffer of a shard is in use, a further block is handed out
//!   but not kept. Only [`BufferCache::replace`] always keeps, for the device does not have those
//!   bytes yet: its caller bounds how many of them it pins.

mod buffer;
mod spares;

use std::io::IoSliceMut;

use hashbrown::{HashMap, HashTable};
use pagefence_lock_order::levels::Counters;
use pagefence_lock_order::primitives::atomic::{AtomicU32, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, MutexGuard};
use pagefence_lock_order::rank::{self, RankGuard};

pub use buffer::Buffer;

use spares::Spares;

use crate::aligned::AlignedBytes;
use crate::device::{Device, DeviceError, Operation, Result};

/// Shards, at most (a power of two).
const SHARDS_MAX: usize = 64;
/// Buffers that a shard should have room for before there are more shards.
const SHARD_BUFFERS_MIN: usize = 16;
/// Bytes of one read of a run, at most.
const RUN_BYTES_MAX: usize = 1 << 20;
/// Neighbouring blocks share a shard in groups of `1 << GROUP_SHIFT`.
const GROUP_SHIFT: u32 = 2;
/// Bytes that a buffer costs beyond its contents: its own fields, allocation and index.
const BUFFER_OVERHEAD_BYTES: usize = 160;
/// Blocks of memory that are kept for buffers to come, at most, and one of how many buffers of the
/// budget is given up for one. A small budget has none.
const SPARES_MAX: usize = 2048;
const BUFFERS_PER_SPARE: usize = 16;
const SPARES_MIN: usize = 64;

/// A place of the CLOCK.
#[derive(Debug)]
struct Slot {
    buffer: Arc<Buffer>,
    /// Used since the hand passed last.
    referenced: bool,
}

/// A read in flight.
#[derive(Debug, Default)]
struct Load {
    /// The block was invalidated or replaced meanwhile: what arrives is not kept.
    stale: bool,
    /// Threads that wait for it.
    waiters: u32,
}

#[derive(Debug, Default)]
struct ShardState {
    /// Positions in `slots`, by block.
    index: HashTable<usize>,
    slots: Vec<Slot>,
    hand: usize,
    loading: HashMap<u64, Load>,
}

#[derive(Debug)]
struct Shard {
    state: Mutex<ShardState>,
    /// A read of a block of this shard ended.
    loaded: Condvar,
    spares: Arc<Spares>,
}

/// What a shard knows of a block.
enum Lookup {
    Hit(Arc<Buffer>),
    /// Nobody reads it; the asker now does, and must finish with `Claim`.
    Claimed,
    /// Somebody reads it.
    Loading,
}

/// The buffer cache of a device. See the module's documentation.
#[derive(Debug)]
pub struct BufferCache {
    device: Arc<dyn Device>,
    block_size: usize,
    /// Blocks of the device; a partial last block is not reachable.
    block_count: u64,
    alignment: usize,
    shards: Box<[Shard]>,
    shard_slots_max: usize,
}

/// Spreads consecutive keys over all bits (the 64-bit finaliser of MurmurHash3).
fn mix(mut key: u64) -> u64 {
    key ^= key >> 33;
    key = key.wrapping_mul(0xff51_afd7_ed55_8ccd);
    key ^= key >> 33;
    key = key.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    key ^ (key >> 33)
}

/// A shard lock and its place in the lock order: below everything, and nothing that sleeps on
/// other locks may be entered with it.
struct ShardGuard<'a> {
    state: MutexGuard<'a, ShardState>,
    _rank: RankGuard,
}

impl Shard {
    fn lock(&self) -> ShardGuard<'_> {
        let rank = rank::enter::<Counters>(0);
        ShardGuard {
            state: self.state.lock(),
            _rank: rank,
        }
    }
}

impl ShardState {
    fn find(&self, block: u64) -> Option<usize> {
        self.index
            .find(mix(block), |slot| self.slots[*slot].buffer.block == block)
            .copied()
    }

    fn hit(&mut self, block: u64) -> Option<Arc<Buffer>> {
        let slot = self.find(block)?;
        let slot = &mut self.slots[slot];
        slot.referenced = true;
        Some(slot.buffer.clone())
    }

    fn lookup(&mut self, block: u64) -> Lookup {
        if let Some(buffer) = self.hit(block) {
            Lookup::Hit(buffer)
        } else if self.loading.contains_key(&block) {
            Lookup::Loading
        } else {
            self.loading.insert(block, Load::default());
            Lookup::Claimed
        }
    }

    /// Keeps `buffer`, whose block is not kept yet, in the place of one that nobody uses if the
    /// shard is full. If every buffer is in use it is kept only if it `must` be.
    fn insert(&mut self, buffer: Arc<Buffer>, slots_max: usize, must: bool) {
        debug_assert!(self.find(buffer.block).is_none(), "a block is kept once");
        let block = buffer.block;
        let slot = Slot {
            buffer,
            // What is read once goes when the hand comes round; a second use spares it.
            referenced: false,
        };
        // Back under the budget, if buffers that had to be kept were over it.
        while self.slots.len() > slots_max {
            let Some(victim) = self.choose_victim() else {
                break;
            };
            self.remove_at(victim);
        }
        let position = if self.slots.len() < slots_max {
            self.slots.push(slot);
            self.slots.len() - 1
        } else if let Some(victim) = self.choose_victim() {
            self.unindex(victim);
            self.slots[victim] = slot;
            victim
        } else if must {
            self.slots.push(slot);
            self.slots.len() - 1
        } else {
            return;
        };
        let slots = &self.slots;
        self.index
            .insert_unique(mix(block), position, |slot| mix(slots[*slot].buffer.block));
    }

    /// The next position whose buffer nobody uses and nobody asked for since the hand passed.
    /// Two rounds: the first may only take marks away.
    fn choose_victim(&mut self) -> Option<usize> {
        for _ in 0..self.slots.len() * 2 {
            let position = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[position];
            // Clones are made only from the index, under this lock, or from a clone: a count
            // of one can't grow while the lock is held.
            if Arc::strong_count(&slot.buffer) > 1 {
                continue;
            }
            if !std::mem::take(&mut slot.referenced) {
                return Some(position);
            }
        }
        None
    }

    fn unindex(&mut self, position: usize) {
        let block = self.slots[position].buffer.block;
        if let Ok(entry) = self
            .index
            .find_entry(mix(block), |candidate| *candidate == position)
        {
            entry.remove();
        }
    }

    fn remove_at(&mut self, position: usize) {
        self.unindex(position);
        let last = self.slots.len() - 1;
        if position != last {
            self.unindex(last);
        }
        self.slots.swap_remove(position);
        if position != last {
            let moved = self.slots[position].buffer.block;
            let slots = &self.slots;
            self.index
                .insert_unique(mix(moved), position, |slot| mix(slots[*slot].buffer.block));
        }
        if self.hand >= self.slots.len() {
            self.hand = 0;
        }
    }

    /// A read in flight of `block` will bring old bytes.
    fn outdate(&mut self, block: u64) {
        if let Some(load) = self.loading.get_mut(&block) {
            load.stale = true;
        }
    }
}

/// The duty to finish a read that others may wait for; dropping it unpublished lets them try.
struct Claim<'a> {
    cache: &'a BufferCache,
    block: u64,
    published: bool,
}

impl Claim<'_> {
    /// Ends the read with `buffer`, and returns what is now the block's buffer.
    fn publish(mut self, buffer: Arc<Buffer>) -> Arc<Buffer> {
        self.published = true;
        let shard = self.cache.shard(self.block);
        let mut guard = shard.lock();
        let load = guard.state.loading.remove(&self.block).unwrap_or_default();
        let current = if let Some(newer) = guard.state.hit(self.block) {
            newer
        } else {
            if !load.stale {
                let slots_max = self.cache.shard_slots_max;
                guard.state.insert(buffer.clone(), slots_max, false);
            }
            buffer
        };
        drop(guard);
        if load.waiters > 0 {
            shard.loaded.notify_all();
        }
        current
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.published {
            let shard = self.cache.shard(self.block);
            shard.lock().state.loading.remove(&self.block);
            shard.loaded.notify_all();
        }
    }
}

impl BufferCache {
    /// A cache of blocks of `block_size` bytes of `device`, that holds at most `budget_bytes`,
    /// its own bookkeeping included (but one buffer at least).
    ///
    /// # Panics
    ///
    /// If `block_size` is no power of two, or below 512.
    #[must_use]
    pub fn new(device: Arc<dyn Device>, block_size: u32, budget_bytes: u64) -> Self {
        assert!(block_size.is_power_of_two() && block_size >= 512);
        let block_size = block_size as usize;
        // Address alignment wastes up to itself; small blocks of an aligned device are bounced
        // by the device anyway.
        let alignment = match device.capabilities().alignment as usize {
            alignment if alignment <= block_size => alignment.max(1),
            _ => 1,
        };
        let cost = block_size + alignment - 1 + BUFFER_OVERHEAD_BYTES;
        let buffers = usize::try_from(budget_bytes)
            .unwrap_or(usize::MAX)
            .div_euclid(cost)
            .max(1);
        let spares = match (buffers / BUFFERS_PER_SPARE).min(SPARES_MAX) {
            few if few < SPARES_MIN => 0,
            spares => spares,
        };
        let buffers = buffers - spares;
        let mut shards = 1;
        while shards < SHARDS_MAX && buffers / (shards * 2) >= SHARD_BUFFERS_MIN {
            shards *= 2;
        }
        Self {
            block_count: device.size() / block_size as u64,
            device,
            block_size,
            alignment,
            shards: (0..shards)
                .map(|_| Shard {
                    state: Mutex::new(ShardState::default()),
                    loaded: Condvar::new(),
                    spares: Arc::new(Spares::new(spares / shards, block_size, alignment)),
                })
                .collect(),
            shard_slots_max: buffers / shards,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Whether the whole block lies on the device.
    #[must_use]
    pub fn contains(&self, block: u64) -> bool {
        block < self.block_count
    }

    /// The device below.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Buffers that are kept, of all shards; for statistics: it takes every shard lock in turn.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().state.slots.len())
            .sum()
    }

    fn shard(&self, block: u64) -> &Shard {
        // The upper bits: the index uses the lower ones.
        let hash = mix(block >> GROUP_SHIFT) >> 32;
        &self.shards[hash as usize & (self.shards.len() - 1)]
    }

    fn past_end(&self, first: u64, count: u64) -> Option<DeviceError> {
        match first.checked_add(count) {
            Some(end) if end <= self.block_count => None,
            _ => Some(DeviceError {
                operation: Operation::Read,
                offset: first.saturating_mul(self.block_size as u64),
                length: count.saturating_mul(self.block_size as u64),
                source: std::io::Error::new(
                    std::io::ErrorKind::UnexpectedEof,
                    "past the end of the device",
                ),
            }),
        }
    }

    /// The block, if it is in memory. Takes one shard lock.
    #[must_use]
    pub fn peek(&self, block: u64) -> Option<Arc<Buffer>> {
        self.shard(block).lock().state.hit(block)
    }

    /// The block, read if it is not in memory. Takes one shard lock, for moments; waits for the
    /// device.
    ///
    /// # Errors
    /// The device failed, or the block lies past its end. An error is not kept: the next call
    /// tries again.
    pub fn read(&self, block: u64) -> Result<Arc<Buffer>> {
        let shard = self.shard(block);
        let mut guard = shard.lock();
        loop {
            match guard.state.lookup(block) {
                Lookup::Hit(buffer) => return Ok(buffer),
                Lookup::Claimed => break,
                Lookup::Loading => {
                    if let Some(load) = guard.state.loading.get_mut(&block) {
                        load.waiters += 1;
                    }
                    shard.loaded.wait(&mut guard.state);
                }
            }
        }
        drop(guard);
        let claim = Claim {
            cache: self,
            block,
            published: false,
        };
        if let Some(error) = self.past_end(block, 1) {
            return Err(error);
        }
        let mut bytes = AlignedBytes::zeroed(self.block_size, self.alignment);
        self.device
            .read(block * self.block_size as u64, &mut bytes)?;
        Ok(claim.publish(self.buffer(block, bytes)))
    }

    /// `count` blocks from `first` on; those not in memory are read, neighbours in one request
    /// of up to 1 MiB. For inode tables and readahead.
    ///
    /// # Errors
    /// As [`BufferCache::read`], if any of the blocks can't be read: who needs only one of them
    /// then reads it alone.
    pub fn read_run(&self, first: u64, count: usize) -> Result<Vec<Arc<Buffer>>> {
        if let Some(error) = self.past_end(first, count as u64) {
            return Err(error);
        }
        let mut found: Vec<Option<Arc<Buffer>>> = Vec::with_capacity(count);
        let mut run: Vec<Claim<'_>> = Vec::new();
        for block in first..first + count as u64 {
            let lookup = self.shard(block).lock().state.lookup(block);
            let (hit, claimed) = match lookup {
                Lookup::Hit(buffer) => (Some(buffer), false),
                Lookup::Claimed => (None, true),
                Lookup::Loading => (None, false),
            };
            found.push(hit);
            if claimed {
                run.push(Claim {
                    cache: self,
                    block,
                    published: false,
                });
            }
            if !claimed || (run.len() + 1) * self.block_size > RUN_BYTES_MAX {
                self.load_run(first, &mut run, &mut found)?;
            }
        }
        self.load_run(first, &mut run, &mut found)?;
        found
            .into_iter()
            .zip(first..)
            // Missing are those that another thread was reading.
            .map(|(buffer, block)| buffer.map_or_else(|| self.read(block), Ok))
            .collect()
    }

    /// Reads the consecutive blocks of `run` in one request and empties it.
    fn load_run(
        &self,
        first: u64,
        run: &mut Vec<Claim<'_>>,
        found: &mut [Option<Arc<Buffer>>],
    ) -> Result<()> {
        let Some(start) = run.first().map(|claim| claim.block) else {
            return Ok(());
        };
        let mut contents: Vec<AlignedBytes> = run
            .iter()
            .map(|_| AlignedBytes::zeroed(self.block_size, self.alignment))
            .collect();
        let mut slices: Vec<IoSliceMut<'_>> = contents
            .iter_mut()
            .map(|bytes| IoSliceMut::new(bytes))
            .collect();
        self.device
            .read_vectored(start * self.block_size as u64, &mut slices)?;
        for (claim, bytes) in run.drain(..).zip(contents) {
            let block = claim.block;
            found[(block - first) as usize] = Some(claim.publish(self.buffer(block, bytes)));
        }
        Ok(())
    }

    fn buffer(&self, block: u64, bytes: AlignedBytes) -> Arc<Buffer> {
        Arc::new(Buffer {
            block,
            verified: AtomicU32::new(0),
            owner: AtomicU64::new(0),
            bytes,
            spares: self.shard(block).spares.clone(),
        })
    }

    /// Forgets the block: the next read asks the device, also while a read is in flight. Who
    /// holds its buffer keeps that.
    pub fn invalidate(&self, block: u64) {
        let shard = self.shard(block);
        let mut guard = shard.lock();
        guard.state.outdate(block);
        if let Some(position) = guard.state.find(block) {
            guard.state.remove_at(position);
        }
    }

    /// Forgets every block.
    pub fn invalidate_all(&self) {
        for shard in &self.shards {
            let mut guard = shard.lock();
            for load in guard.state.loading.values_mut() {
                load.stale = true;
            }
            guard.state.index.clear();
            guard.state.slots.clear();
            guard.state.hand = 0;
        }
    }

    /// Makes `bytes` the contents of the block in memory, and returns its new buffer, which no
    /// check has passed yet. The device is not written. While the caller can't afford to lose
    /// the contents it keeps the returned buffer, which pins it.
    ///
    /// # Panics
    ///
    /// If `bytes` is not one block long.
    pub fn replace(&self, block: u64, bytes: &[u8]) -> Arc<Buffer> {
        self.replace_with(block, self.editable(bytes), None)
    }

    /// A copy of `bytes`, aligned for the device: to be changed and then given to
    /// [`BufferCache::replace_with`].
    #[must_use]
    pub fn editable(&self, bytes: &[u8]) -> AlignedBytes {
        // Who read a block last let go of it before it became a spare. The thread sanitizer does not see
        // that (`Arc` says it by a fence), and would take the next use for a race.
        let may_reuse = bytes.len() == self.block_size && !cfg!(sanitized = "thread");
        let spares = &self.shards[spares::next(self.shards.len())].spares;
        let spare = may_reuse.then(|| spares.take()).flatten();
        match spare {
            Some(mut spare) => {
                spare.copy_from_slice(bytes);
                spare
            }
            None => AlignedBytes::copy_of(bytes, self.alignment),
        }
    }

    /// As [`BufferCache::replace`] with no further copy; the new buffer has passed the checks that
    /// `before` has, which the caller vouches for, and has its owner.
    ///
    /// # Panics
    ///
    /// If `bytes` is not one block long.
    pub fn replace_with(
        &self,
        block: u64,
        bytes: AlignedBytes,
        before: Option<&Buffer>,
    ) -> Arc<Buffer> {
        assert_eq!(bytes.len(), self.block_size, "a whole block");
        let buffer = self.buffer(block, bytes);
        if let Some(before) = before {
            buffer.set_verified(before.verified.load(Ordering::Acquire));
            buffer.set_owner(before.owner());
        }
        let shard = self.shard(block);
        let mut guard = shard.lock();
        guard.state.outdate(block);
        if let Some(position) = guard.state.find(block) {
            guard.state.slots[position] = Slot {
                buffer: buffer.clone(),
                referenced: true,
            };
        } else {
            guard
                .state
                .insert(buffer.clone(), self.shard_slots_max, true);
        }
        buffer
    }
}

#[cfg(test)]
mod tests;
