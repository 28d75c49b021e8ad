//! Tests of the cache as a whole, on a device that the test is in command of.

mod device;

#[cfg(not(shuttle))]
mod budget;
#[cfg(not(shuttle))]
mod model;
#[cfg(not(shuttle))]
mod mutants;
#[cfg(not(shuttle))]
mod races;
#[cfg(shuttle)]
mod shuttle;
#[cfg(not(shuttle))]
mod streams;

use pagefence_lock_order::Held;

use crate::backing::PAGE_SIZE;
use crate::{Config, Readahead};
use device::TestMapping;

/// The least budget: 59 pages.
const SMALL: u64 = 256 << 10;

/// A cache without threads, whose readahead the test runs by hand.
fn config(budget_bytes: u64) -> Config {
    Config {
        readahead_workers: 0,
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

/// What page `index` of version `version` holds.
fn stamped(index: usize, version: u8) -> Vec<u8> {
    let mut page = vec![version; PAGE_SIZE];
    page[..8].copy_from_slice(&(index as u64).to_le_bytes());
    page
}
