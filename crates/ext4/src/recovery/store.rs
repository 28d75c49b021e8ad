//! Where the changes of a transaction go.

use std::ops::Range;

use pagefence_block_io::Device;
use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::superblock::Superblock;
use pagefence_jbd2::{Emptied, JournalLocation};
use pagefence_lock_order::primitives::Arc;

use crate::change::transaction::{Changes, Transaction};
use crate::mount::MountError;
use crate::recovery::journal::{mount_error, of_map};

/// Blocks that a transaction changes at most, whatever room the log has: bounds memory.
const BLOCKS_MAX: u32 = 2048;

/// Blocks that a transaction changes at least: an extent tree's path, a run that reaches into
/// another group, and what counts them.
const BLOCKS_MIN: u32 = 16;

/// Where changes go.
#[derive(Debug)]
pub(crate) enum Store {
    /// Through the journal: all of a transaction is there after a crash, or nothing.
    Journal {
        device: Arc<dyn Device>,
        location: JournalLocation,
    },
    /// Onto a file system without a journal, in an order that e2fsck mends: the superblock, then
    /// what no longer refers to a block, then what says that the block is free.
    InPlace { device: Arc<dyn Device> },
}

impl Store {
    /// Whether changes go through a journal.
    pub(crate) fn is_journal(&self) -> bool {
        matches!(self, Self::Journal { .. })
    }

    /// The journal's own blocks.
    pub(crate) fn journal_blocks(&self) -> Vec<Range<BlockNo>> {
        match self {
            Self::Journal { location, .. } => blocks_of(location),
            Self::InPlace { .. } => Vec::new(),
        }
    }

    /// How many blocks a transaction may change.
    pub(crate) fn blocks_max(&self) -> usize {
        let most = match self {
            // The rest is for descriptors, and for what a last step adds.
            Self::Journal { location, .. } => (location.length() / 4).clamp(BLOCKS_MIN, BLOCKS_MAX),
            Self::InPlace { .. } => BLOCKS_MAX,
        };
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// Makes a transaction durable; gives the superblock as it is now.
    ///
    /// # Errors
    /// The device or the journal failed: then the changes are there or not (through a journal all
    /// or none).
    pub(crate) fn commit(&self, transaction: Transaction<'_>) -> Result<Superblock, MountError> {
        let instance = transaction.instance;
        let changes = transaction.finish().map_err(of_map)?;
        let written = match self {
            Self::Journal {
                device, location, ..
            } => through_journal(&**device, location, &changes),
            Self::InPlace { device } => {
                let home = changes.superblock.superblock_block();
                let size = u64::from(changes.superblock.block_size());
                let rank = |block: &BlockNo| {
                    if *block == home {
                        0
                    } else if changes.allocation.contains(block) {
                        2
                    } else {
                        1
                    }
                };
                (0..3).try_for_each(|turn| {
                    for (block, buffer) in &changes.blocks {
                        if rank(block) == turn {
                            device.write(block.0.saturating_mul(size), buffer)?;
                        }
                    }
                    Ok(device.flush()?)
                })
            }
        };
        if written.is_err() {
            // What is on the device is not known.
            instance.buffers.invalidate_all();
        }
        written.map(|()| changes.superblock)
    }
}

/// Makes changes durable as one transaction, and brings them home. Fast commits are void then.
///
/// # Errors
/// The device or the journal failed: all of the changes are there, or none.
pub(super) fn through_journal(
    device: &dyn Device,
    location: &JournalLocation,
    changes: &Changes,
) -> Result<(), MountError> {
    let blocks: Vec<(BlockNo, &[u8])> = changes
        .blocks
        .iter()
        .map(|(block, buffer)| (*block, &***buffer))
        .collect();
    // The log holds nothing older than this transaction, so nothing has to be revoked.
    let mut recovery = pagefence_jbd2::recover(device, location).map_err(mount_error)?;
    debug_assert_eq!(recovery.replacements(), []);
    if !blocks.is_empty() {
        recovery = pagefence_jbd2::commit_once(device, location, &recovery, &blocks, &[])
            .map_err(mount_error)?;
    }
    pagefence_jbd2::write_back(device, location, &recovery, Emptied::Clean).map_err(mount_error)
}

/// The journal's blocks, in runs.
pub(crate) fn blocks_of(location: &JournalLocation) -> Vec<Range<BlockNo>> {
    let mut runs = Vec::new();
    let mut logical = 0;
    while let Some((first, count)) = location.physical(logical) {
        runs.push(first..BlockNo(first.0.saturating_add(u64::from(count))));
        logical = logical.saturating_add(count);
    }
    runs
}
