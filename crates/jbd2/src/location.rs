//! Where the blocks of the journal lie on the device.

use pagefence_ext4_format::BlockNo;

/// Blocks of the journal that lie one after the other on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalRun {
    /// First block, counted in the journal.
    pub logical: u32,
    /// First block, counted on the device.
    pub physical: BlockNo,
    /// Blocks; not 0.
    pub count: u32,
}

/// Why runs are no journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocationError {
    /// Blocks are no power of two between 512 bytes and 64 KiB.
    #[error("a journal can't have blocks of {block_size} bytes")]
    BlockSize {
        /// Bytes of a block.
        block_size: u32,
    },
    /// A block of the journal lies nowhere, or twice.
    #[error("block {logical} of the journal is not mapped once")]
    Gap {
        /// The block.
        logical: u32,
    },
    /// A block of the journal lies past the end of the device, or where another one lies.
    #[error("block {logical} of the journal lies at block {physical}, where it can't")]
    Place {
        /// The block.
        logical: u32,
        /// Where it lies.
        physical: BlockNo,
    },
}

/// The place of a journal: every one of its blocks lies once on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalLocation {
    block_size: u32,
    device_blocks: u64,
    length: u32,
    /// Ascending by logical block, without gaps from 0 on.
    runs: Box<[JournalRun]>,
    /// First block and end on the device, ascending.
    physical: Box<[(u64, u64)]>,
}

impl JournalLocation {
    /// The journal that the `runs`, in any order, map from its block 0 on. `device_blocks` is
    /// how many blocks of `block_size` bytes the *device* has, not the file system: a journal
    /// may hold blocks of a file system that was just grown.
    ///
    /// # Errors
    /// See [`LocationError`].
    pub fn new(
        block_size: u32,
        device_blocks: u64,
        runs: impl IntoIterator<Item = JournalRun>,
    ) -> Result<Self, LocationError> {
        if !block_size.is_power_of_two() || !(512..=65536).contains(&block_size) {
            return Err(LocationError::BlockSize { block_size });
        }
        let mut runs: Vec<JournalRun> = runs.into_iter().collect();
        runs.sort_by_key(|run| run.logical);
        let mut length = 0_u32;
        let mut physical = Vec::with_capacity(runs.len());
        for run in &runs {
            let end = run.physical.0.checked_add(u64::from(run.count));
            let next = length
                .checked_add(run.count)
                .filter(|next| run.logical == length && *next > length);
            let Some(next) = next else {
                return Err(LocationError::Gap {
                    logical: run.logical.min(length),
                });
            };
            length = next;
            let place = LocationError::Place {
                logical: run.logical,
                physical: run.physical,
            };
            let end = end.filter(|end| *end <= device_blocks).ok_or(place)?;
            physical.push((run.physical.0, end, run.logical));
        }
        physical.sort_unstable();
        for (before, after) in physical.iter().zip(physical.iter().skip(1)) {
            if after.0 < before.1 {
                return Err(LocationError::Place {
                    logical: after.2,
                    physical: BlockNo(after.0),
                });
            }
        }
        Ok(Self {
            block_size,
            device_blocks,
            length,
            runs: runs.into_boxed_slice(),
            physical: physical
                .into_iter()
                .map(|(start, end, _)| (start, end))
                .collect(),
        })
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Blocks of the journal.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Where a block of the journal lies, and how many blocks from it on lie one after the other
    /// (at least 1).
    #[must_use]
    pub fn physical(&self, logical: u32) -> Option<(BlockNo, u32)> {
        let after = self.runs.partition_point(|run| run.logical <= logical);
        let run = self.runs.get(after.checked_sub(1)?)?;
        let within = logical.checked_sub(run.logical)?;
        let rest = run.count.checked_sub(within).filter(|rest| *rest > 0)?;
        let block = run.physical.checked_add(u64::from(within))?;
        Some((block, rest))
    }

    /// Whether the journal may change the block: it lies on the device and not in the journal.
    #[must_use]
    pub fn may_change(&self, block: BlockNo) -> bool {
        let after = self.physical.partition_point(|run| run.0 <= block.0);
        let inside = after
            .checked_sub(1)
            .and_then(|at| self.physical.get(at))
            .is_some_and(|run| block.0 < run.1);
        block.0 < self.device_blocks && !inside
    }

    /// Byte offset of a block of the device.
    pub(crate) fn offset(&self, block: BlockNo) -> u64 {
        // Only blocks of the device are asked for, and those have an offset.
        block.0.saturating_mul(u64::from(self.block_size))
    }
}
