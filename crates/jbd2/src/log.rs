//! Reads blocks of the journal, many at a time where they lie one after the other.

use pagefence_block_io::Device;
use pagefence_ext4_format::Corruption;
use pagefence_ext4_format::journal::JournalSuperblock;

use crate::error::{JournalError, Result};
use crate::location::JournalLocation;

/// Bytes read at a time, at most (but one block at least).
const WINDOW_BYTES: u32 = 256 << 10;

/// A window over the journal.
#[derive(Debug)]
pub(crate) struct LogReader<'a, D: ?Sized> {
    device: &'a D,
    location: &'a JournalLocation,
    /// Contents of the blocks from `first` on.
    window: Vec<u8>,
    first: u32,
    count: u32,
}

/// `u32` to `usize`: exact wherever Linux runs.
pub(crate) fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl<'a, D: Device + ?Sized> LogReader<'a, D> {
    pub(crate) fn new(device: &'a D, location: &'a JournalLocation) -> Self {
        Self {
            device,
            location,
            window: Vec::new(),
            first: 0,
            count: 0,
        }
    }

    /// The contents of a block of the journal.
    pub(crate) fn block(&mut self, logical: u32) -> Result<&[u8]> {
        let within = logical
            .checked_sub(self.first)
            .filter(|within| *within < self.count);
        let within = match within {
            Some(within) => within,
            None => {
                self.fill(logical)?;
                0
            }
        };
        let size = to_usize(self.location.block_size());
        let start = to_usize(within).saturating_mul(size);
        self.window
            .get(start..start.saturating_add(size))
            .ok_or(JournalError::Corrupt {
                block: logical,
                source: missing(size),
            })
    }

    fn fill(&mut self, logical: u32) -> Result<()> {
        let size = self.location.block_size();
        self.count = 0;
        let Some((physical, rest)) = self.location.physical(logical) else {
            return Err(JournalError::Corrupt {
                block: logical,
                source: missing(to_usize(size)),
            });
        };
        let most = WINDOW_BYTES.checked_div(size).unwrap_or_default().max(1);
        let count = rest.min(most);
        self.window.resize(to_usize(count.saturating_mul(size)), 0);
        self.device
            .read(self.location.offset(physical), &mut self.window)?;
        self.first = logical;
        self.count = count;
        Ok(())
    }
}

/// A block that the journal does not have: it is shorter than its superblock said.
fn missing(size: usize) -> Corruption {
    Corruption::Truncated {
        what: "the journal",
        needed: size,
        have: 0,
    }
}

/// Reads and checks the journal's superblock; also gives the contents of its block.
///
/// # Errors
/// The device failed, or the superblock is damaged.
pub fn read_superblock<D: Device + ?Sized>(
    device: &D,
    location: &JournalLocation,
) -> Result<(JournalSuperblock, Vec<u8>)> {
    let mut block = vec![0; to_usize(location.block_size())];
    let Some((physical, _)) = location.physical(0) else {
        return Err(JournalError::Corrupt {
            block: 0,
            source: missing(block.len()),
        });
    };
    device.read(location.offset(physical), &mut block)?;
    let superblock = JournalSuperblock::parse(&block, location.block_size(), location.length())
        .map_err(|source| JournalError::Corrupt { block: 0, source })?;
    Ok((superblock, block))
}
