//! Tests of the buffer cache: what it reads, keeps, shares and forgets.

use std::io::{IoSlice, IoSliceMut};

use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex, thread};
use proptest::prelude::*;

use super::{BUFFER_OVERHEAD_BYTES, BufferCache};
use crate::device::{Capabilities, Device, DeviceError, Operation, Result};
use crate::memory_device::MemoryDevice;

const BLOCK: usize = 1024;

/// Counts reads, fails those of chosen bytes, and holds reads back while it is shut.
#[derive(Debug)]
struct Gate {
    below: MemoryDevice,
    reads: Mutex<Vec<(u64, usize)>>,
    bad_offset: Mutex<Option<u64>>,
    shut: Mutex<bool>,
    changed: Condvar,
    arrived: AtomicUsize,
}

impl Gate {
    fn new(blocks: u64) -> Arc<Self> {
        let below = MemoryDevice::new(blocks * BLOCK as u64);
        for block in 0..blocks {
            below
                .write(block * BLOCK as u64, &[block as u8; BLOCK])
                .unwrap();
        }
        Arc::new(Self {
            below,
            reads: Mutex::new(Vec::new()),
            bad_offset: Mutex::new(None),
            shut: Mutex::new(false),
            changed: Condvar::new(),
            arrived: AtomicUsize::new(0),
        })
    }

    fn set_shut(&self, shut: bool) {
        *self.shut.lock() = shut;
        self.changed.notify_all();
    }

    fn wait_for_arrivals(&self, count: usize) {
        while self.arrived.load(Ordering::SeqCst) < count {
            thread::yield_now();
        }
    }

    fn reads(&self) -> usize {
        self.reads.lock().len()
    }
}

impl Device for Gate {
    fn size(&self) -> u64 {
        self.below.size()
    }
    fn capabilities(&self) -> Capabilities {
        self.below.capabilities()
    }
    fn read_vectored(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let length: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        self.reads.lock().push((offset, length));
        // The bytes are taken before the gate: what a slow read brings is old.
        let outcome = self.below.read_vectored(offset, buffers);
        self.arrived.fetch_add(1, Ordering::SeqCst);
        let mut shut = self.shut.lock();
        while *shut {
            self.changed.wait(&mut shut);
        }
        drop(shut);
        if let Some(bad) = *self.bad_offset.lock()
            && (offset..offset + length as u64).contains(&bad)
        {
            return Err(DeviceError {
                operation: Operation::Read,
                offset,
                length: length as u64,
                source: std::io::Error::other("bad sector"),
            });
        }
        outcome
    }
    fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        self.below.write_vectored(offset, buffers)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.below.write_zeroes(offset, length)
    }
}

fn budget(buffers: usize) -> u64 {
    (buffers * (BLOCK + BUFFER_OVERHEAD_BYTES)) as u64
}

fn cache(device: &Arc<Gate>, buffers: usize) -> BufferCache {
    BufferCache::new(device.clone(), BLOCK as u32, budget(buffers))
}

#[test]
fn second_read_is_a_hit_and_shares_the_buffer() {
    let device = Gate::new(8);
    let cache = cache(&device, 8);
    assert!(cache.peek(3).is_none());
    let first = cache.read(3).unwrap();
    let second = cache.read(3).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(first.block(), 3);
    assert!(first.iter().all(|byte| *byte == 3));
    assert_eq!(device.reads(), 1);
    assert!(cache.peek(3).is_some());
}

#[test]
fn verified_bits_stay_with_the_contents() {
    let device = Gate::new(8);
    let cache = cache(&device, 8);
    let buffer = cache.read(1).unwrap();
    assert!(!buffer.verified(1));
    buffer.set_verified(1 | 4);
    assert!(cache.read(1).unwrap().verified(5));
    assert!(!buffer.verified(2));
    assert!(!buffer.verified(3));
    let changed = cache.replace(1, &[9; BLOCK]);
    assert!(!changed.verified(1));
    assert!(cache.read(1).unwrap().iter().all(|byte| *byte == 9));
    // Who holds the old contents keeps them.
    assert!(buffer.iter().all(|byte| *byte == 1));
}

#[test]
fn past_the_end_is_an_error_and_not_a_read() {
    let device = Gate::new(4);
    let cache = cache(&device, 8);
    for block in [4, 5, u64::MAX] {
        assert!(cache.read(block).is_err());
    }
    assert!(cache.read_run(3, 2).is_err());
    assert!(cache.read_run(u64::MAX, 2).is_err());
    assert_eq!(device.reads(), 0);
    assert!(cache.read_run(4, 0).unwrap().is_empty());
}

#[test]
fn errors_are_not_kept() {
    let device = Gate::new(8);
    let cache = cache(&device, 8);
    *device.bad_offset.lock() = Some(2 * BLOCK as u64);
    assert!(cache.read(2).is_err());
    assert!(cache.read_run(0, 4).is_err());
    *device.bad_offset.lock() = None;
    assert_eq!(cache.read(2).unwrap()[0], 2);
    assert_eq!(cache.read_run(0, 4).unwrap().len(), 4);
}

#[test]
fn a_run_reads_what_is_missing_in_few_requests() {
    let device = Gate::new(32);
    let cache = cache(&device, 64);
    cache.read(5).unwrap();
    device.reads.lock().clear();
    let run = cache.read_run(2, 8).unwrap();
    assert_eq!(
        run.iter().map(|buffer| buffer[0]).collect::<Vec<_>>(),
        (2..10).collect::<Vec<_>>()
    );
    assert_eq!(
        *device.reads.lock(),
        [(2 * BLOCK as u64, 3 * BLOCK), (6 * BLOCK as u64, 4 * BLOCK)]
    );
    cache.read_run(2, 8).unwrap();
    assert_eq!(device.reads(), 2);
}

#[test]
fn the_budget_holds_and_pinned_buffers_stay() {
    let device = Gate::new(256);
    for buffers in [1, 7, 40, 100] {
        let cache = cache(&device, buffers);
        let pinned = cache.read(0).unwrap();
        for block in 0..256 {
            cache.read(block).unwrap();
            assert!(cache.kept() <= buffers, "{} of {buffers}", cache.kept());
        }
        assert!(Arc::ptr_eq(&pinned, &cache.read(0).unwrap()));
    }
}

#[test]
fn all_pinned_hands_out_without_keeping_but_replace_keeps() {
    let device = Gate::new(16);
    let cache = cache(&device, 2);
    let pinned: Vec<_> = (0..2).map(|block| cache.read(block).unwrap()).collect();
    assert_eq!(cache.read(5).unwrap()[0], 5);
    assert!(cache.peek(5).is_none());
    let replaced = cache.replace(5, &[77; BLOCK]);
    assert_eq!(cache.read(5).unwrap()[0], 77);
    assert_eq!(cache.kept(), 3);
    drop((pinned, replaced));
    // The next that comes brings the shard back under its budget.
    cache.read(6).unwrap();
    assert!(cache.kept() <= 2);
}

#[test]
fn what_is_used_again_outlives_a_scan() {
    let device = Gate::new(200);
    let cache = cache(&device, 10);
    cache.read(0).unwrap();
    for block in 1..200 {
        cache.read(block).unwrap();
        cache.read(0).unwrap();
    }
    let zero_reads = device.reads.lock().iter().filter(|r| r.0 == 0).count();
    assert!(zero_reads <= 2, "block 0 was read {zero_reads} times");
}

#[test]
fn concurrent_misses_of_one_block_read_once() {
    let device = Gate::new(16);
    let cache = Arc::new(cache(&device, 16));
    device.set_shut(true);
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let cache = cache.clone();
            thread::spawn("reader", move || {
                if number % 2 == 0 {
                    cache.read(3).unwrap()
                } else {
                    cache.read_run(3, 1).unwrap().remove(0)
                }
            })
            .unwrap()
        })
        .collect();
    device.wait_for_arrivals(1);
    device.set_shut(false);
    let buffers: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    assert!(
        buffers
            .iter()
            .all(|buffer| Arc::ptr_eq(buffer, &buffers[0]))
    );
    assert_eq!(device.reads(), 1);
}

#[test]
fn waiters_of_a_failed_read_get_their_own_answer() {
    let device = Gate::new(16);
    let cache = Arc::new(cache(&device, 16));
    device.set_shut(true);
    *device.bad_offset.lock() = Some(3 * BLOCK as u64);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let cache = cache.clone();
            thread::spawn("reader", move || cache.read(3).is_err()).unwrap()
        })
        .collect();
    device.wait_for_arrivals(1);
    device.set_shut(false);
    for thread in threads {
        assert!(thread.join().unwrap());
    }
    assert_eq!(device.reads(), 4);
    *device.bad_offset.lock() = None;
    assert_eq!(cache.read(3).unwrap()[0], 3);
}

#[test]
fn invalidate_and_replace_win_over_a_read_in_flight() {
    for replace in [false, true] {
        let device = Gate::new(16);
        let cache = Arc::new(cache(&device, 16));
        device.set_shut(true);
        let reader = {
            let cache = cache.clone();
            thread::spawn("reader", move || cache.read(3).unwrap()).unwrap()
        };
        device.wait_for_arrivals(1);
        device.below.write(3 * BLOCK as u64, &[50; BLOCK]).unwrap();
        if replace {
            cache.replace(3, &[50; BLOCK]);
        } else {
            cache.invalidate(3);
        }
        device.set_shut(false);
        reader.join().unwrap();
        assert_eq!(cache.read(3).unwrap()[0], 50, "replace: {replace}");
    }
}

proptest! {
    /// Whatever the order of calls, the cache shows what the device holds, within its budget.
    #[test]
    fn agrees_with_the_device(
        steps in prop::collection::vec((0_u8..5, 0_u64..64, 1_usize..9, any::<u8>()), 1..200),
        buffers in 1_usize..80,
    ) {
        let device = Gate::new(64);
        let cache = cache(&device, buffers);
        let mut held = Vec::new();
        for (kind, block, count, byte) in steps {
            match kind {
                0 => held.push(cache.read(block).unwrap()),
                1 => {
                    let count = count.min(64 - block as usize);
                    for (buffer, block) in cache.read_run(block, count).unwrap().iter().zip(block..) {
                        let mut raw = [0];
                        device.below.read(block * BLOCK as u64, &mut raw).unwrap();
                        prop_assert_eq!(buffer[0], raw[0]);
                        prop_assert_eq!(buffer.block(), block);
                    }
                }
                2 => {
                    device.below.write(block * BLOCK as u64, &[byte; BLOCK]).unwrap();
                    cache.replace(block, &[byte; BLOCK]);
                }
                3 => {
                    device.below.write(block * BLOCK as u64, &[byte; BLOCK]).unwrap();
                    cache.invalidate(block);
                }
                _ => { held.clear(); }
            }
            let mut raw = [0];
            device.below.read(block * BLOCK as u64, &mut raw).unwrap();
            prop_assert_eq!(cache.read(block).unwrap()[0], raw[0]);
        }
        held.clear();
        cache.invalidate_all();
        prop_assert_eq!(cache.kept(), 0);
    }
}

#[test]
fn a_replaced_buffer_keeps_the_checks_and_the_owner_of_the_one_it_is_given() {
    let device = Gate::new(8);
    let cache = cache(&device, 8);
    let old = cache.read(3).unwrap();
    old.set_verified(6);
    assert_eq!(old.owner(), 0);
    old.set_owner(12);
    let mut bytes = cache.editable(&old);
    bytes[0] = 0x55;
    let new = cache.replace_with(3, bytes, Some(&old));
    assert!(new.verified(6) && !new.verified(1));
    assert_eq!(new.owner(), 12);
    assert_eq!((old[0], new[0], new[1]), (3, 0x55, 3));
    assert!(Arc::ptr_eq(&new, &cache.read(3).unwrap()));
    let other = cache.replace(3, &[0; BLOCK]);
    assert!(!other.verified(2));
    assert_eq!(other.owner(), 0);
    assert!(cache.contains(7) && !cache.contains(8));
}

#[test]
fn memory_that_comes_again_has_only_new_contents() {
    let device: Arc<dyn Device> = Arc::new(MemoryDevice::new(64 * BLOCK as u64));
    let cost = (BLOCK + BUFFER_OVERHEAD_BYTES) as u64;
    let cache = BufferCache::new(device, BLOCK as u32, 4096 * cost);
    for round in 0..=255_u8 {
        for block in 0..64 {
            let buffer = cache.replace(block, &vec![round; BLOCK]);
            assert!(buffer.iter().all(|byte| *byte == round));
        }
    }
    let spares = |shard: &super::Shard| {
        let taken = std::iter::from_fn(|| shard.spares.take());
        taken.count()
    };
    let spares: usize = cache.shards.iter().map(spares).sum();
    assert!(
        (1..=4096 / super::BUFFERS_PER_SPARE).contains(&spares),
        "{spares}"
    );
}
