//! Tests of the cache as a whole, on a device that the test is in command of.

mod device;

#[cfg(not(shuttle))]
mod budget;
#[cfg(not(shuttle))]
mod direct;
#[cfg(not(shuttle))]
mod direct_mutants;
#[cfg(not(shuttle))]
mod edges;
#[cfg(not(shuttle))]
mod failed_writes;
#[cfg(not(shuttle))]
mod fault_mutants;
#[cfg(not(shuttle))]
mod faults;
#[cfg(not(shuttle))]
mod fence_mutants;
#[cfg(not(shuttle))]
mod mappers;
#[cfg(not(shuttle))]
mod memories;
#[cfg(not(shuttle))]
mod model;
#[cfg(not(shuttle))]
mod mutants;
#[cfg(not(shuttle))]
mod races;
#[cfg(shuttle)]
mod shuttle;
#[cfg(shuttle)]
mod shuttle_direct;
#[cfg(shuttle)]
mod shuttle_exchange;
#[cfg(shuttle)]
mod shuttle_faults;
#[cfg(shuttle)]
mod shuttle_memories;
#[cfg(shuttle)]
mod shuttle_writes;
#[cfg(not(shuttle))]
mod storage;
#[cfg(not(shuttle))]
mod strays;
#[cfg(not(shuttle))]
mod streams;
#[cfg(not(shuttle))]
mod writeback;
#[cfg(not(shuttle))]
mod writes;

#[cfg(not(shuttle))]
use std::time::Duration;

use pagefence_lock_order::Held;
#[cfg(not(shuttle))]
use pagefence_lock_order::OrderedRwLock;
#[cfg(not(shuttle))]
use pagefence_lock_order::levels::Inode;
#[cfg(not(shuttle))]
use pagefence_lock_order::primitives::thread;

use crate::backing::PAGE_SIZE;
use crate::{Config, Readahead};
use device::TestMapping;

/// The least budget: 59 pages.
const SMALL: u64 = 256 << 10;

/// A cache without threads, whose readahead and writeback the test runs by hand.
fn config(budget_bytes: u64) -> Config {
    Config {
        readahead_workers: 0,
        flusher_threads: 0,
        ..Config::new(budget_bytes)
    }
}

/// Reads `len` bytes at `offset`, as a file opened just now.
#[cfg(not(shuttle))]
fn read(mapping: &TestMapping, offset: u64, len: usize) -> Result<Vec<u8>, device::Failed> {
    read_with(mapping, &Readahead::new(), offset, len)
}

fn read_with(
    mapping: &TestMapping,
    readahead: &Readahead,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, device::Failed> {
    let mut buffer = vec![0xEE; len];
    match mapping.read(&mut Held::at_entry(), readahead, offset, &mut buffer) {
        Ok(read) => {
            buffer.truncate(read);
            Ok(buffer)
        }
        Err(crate::ReadError::Backing(failed)) => Err(failed),
    }
}

/// The one range there is.
#[cfg(not(shuttle))]
fn only(mut ranges: Vec<std::ops::Range<u64>>) -> std::ops::Range<u64> {
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    ranges.remove(0)
}

/// Writes `data` at `offset` as the only writer.
#[cfg(not(shuttle))]
fn write(mapping: &TestMapping, offset: u64, data: &[u8]) -> Result<usize, device::Failed> {
    let inode: OrderedRwLock<Inode, ()> = OrderedRwLock::new(mapping.number(), ());
    let mut entry = Held::at_entry();
    let (_lock, mut held) = inode.write(&mut entry);
    mapping.write(&mut held, offset, data)
}

/// Writes `data` at `offset` past the cache.
#[cfg(not(shuttle))]
fn write_direct(mapping: &TestMapping, offset: u64, data: &[u8]) -> Result<usize, device::Failed> {
    let inode: OrderedRwLock<Inode, ()> = OrderedRwLock::new(mapping.number(), ());
    let mut entry = Held::at_entry();
    let (_lock, mut held) = inode.read(&mut entry);
    mapping.write_direct(&mut held, offset, data)
}

/// Writes everything back and waits for it.
fn sync(mapping: &TestMapping) -> Result<(), device::Failed> {
    mapping.write_back(&mut Held::at_entry(), 0..u64::MAX, crate::WaitFor::All)
}

/// What page `index` of version `version` holds.
fn stamped(index: usize, version: u8) -> Vec<u8> {
    let mut page = vec![version; PAGE_SIZE];
    page[..8].copy_from_slice(&(index as u64).to_le_bytes());
    page
}

/// A thread of a test.
#[cfg(not(shuttle))]
struct Task<T>(thread::JoinHandle<T>);

/// Long enough for a thread that is not held up to finish.
#[cfg(not(shuttle))]
const SHORTLY: Duration = Duration::from_millis(200);

/// A thread that takes this long hangs.
#[cfg(not(shuttle))]
const NEVER: Duration = Duration::from_secs(30);

#[cfg(not(shuttle))]
impl<T: Send + 'static> Task<T> {
    fn start(body: impl FnOnce() -> T + Send + 'static) -> Self {
        Self(thread::spawn("test", body).expect("a thread"))
    }

    /// Whether it is over, or will be in a moment.
    fn is_over_shortly(&self) -> bool {
        self.wait(SHORTLY)
    }

    /// What it came to; panics if it panicked or hangs.
    fn finish(self) -> T {
        self.result().expect("no panic")
    }

    /// What it came to, or its panic; panics if it hangs.
    fn result(self) -> std::thread::Result<T> {
        assert!(self.wait(NEVER), "a thread hangs");
        self.0.join()
    }

    fn wait(&self, most: Duration) -> bool {
        let start = std::time::Instant::now();
        while !self.0.is_finished() && start.elapsed() < most {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.0.is_finished()
    }
}
