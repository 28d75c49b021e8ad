//! Brings what the log holds home, and empties it.
//!
//! Home blocks are written and flushed before the journal's superblock stops naming the log. A
//! crash at any moment leaves a log that says the same as before: no block of the journal but its
//! superblock is written, and the log never names a block of the journal. So recovery may start
//! over any number of times.

use pagefence_block_io::Device;
use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::journal::superblock::SuperblockUpdate;
use pagefence_ext4_format::journal::{MAGIC_BYTES, Sequence};

use crate::error::{JournalError, Result};
use crate::location::JournalLocation;
use crate::log::read_superblock;
use crate::recovery::{Recovery, block_bytes};

/// Bytes written at a time, at most (but one block at least).
const BATCH_BYTES: usize = 1 << 20;

/// What the journal is left as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emptied {
    /// Clean: nothing to recover. Fast commits are void from here on.
    Clean,
    /// The log is empty, but the journal still needs recovery for the sake of its fast commits,
    /// which stay valid: for a caller that is going to add what they say as a transaction
    /// ([`crate::commit_once()`]) and needs the room.
    KeepFastCommits,
}

/// Writes home what `recovery` found, and empties the journal. Does nothing if it was clean.
///
/// # Errors
/// The device failed: then the journal is as before, or already empty.
pub fn write_back<D: Device + ?Sized>(
    device: &D,
    location: &JournalLocation,
    recovery: &Recovery,
    emptied: Emptied,
) -> Result<()> {
    if recovery.is_clean() {
        return Ok(());
    }
    write_home(device, location, recovery)?;
    device.flush()?;
    let update = match emptied {
        Emptied::Clean => SuperblockUpdate {
            sequence: Some(first_unused(recovery)),
            start: Some(0),
            head: Some(recovery.head()),
            ..SuperblockUpdate::default()
        },
        Emptied::KeepFastCommits => SuperblockUpdate {
            sequence: Some(recovery.next_sequence()),
            start: Some(recovery.head()),
            ..SuperblockUpdate::default()
        },
    };
    update_superblock(device, location, &update)
}

/// The first transaction number that no block of the log can have. The transaction after the last
/// may have left blocks there; behind a damaged one there may be as many as the log has blocks.
fn first_unused(recovery: &Recovery) -> Sequence {
    let after = recovery.next_sequence().next();
    match recovery.damaged() {
        None => after,
        Some(_) => Sequence(after.0.wrapping_add(recovery.superblock().log_blocks())),
    }
}

/// Records in the journal that it was aborted with `errno` (a negative number of Linux), or with
/// 0 that the file system now knows.
///
/// # Errors
/// The device failed, or the journal's superblock is damaged.
pub fn set_errno<D: Device + ?Sized>(
    device: &D,
    location: &JournalLocation,
    errno: i32,
) -> Result<()> {
    let update = SuperblockUpdate {
        errno: Some(errno),
        ..SuperblockUpdate::default()
    };
    update_superblock(device, location, &update)
}

/// Changes the journal's superblock and makes the change durable.
pub(crate) fn update_superblock<D: Device + ?Sized>(
    device: &D,
    location: &JournalLocation,
    update: &SuperblockUpdate,
) -> Result<()> {
    let (_, mut block) = read_superblock(device, location)?;
    let corrupt = |source| JournalError::Corrupt { block: 0, source };
    update.apply(&mut block).map_err(corrupt)?;
    if let Some((physical, _)) = location.physical(0) {
        device.write(location.offset(physical), &block)?;
    }
    device.flush()?;
    Ok(())
}

fn write_home<D: Device + ?Sized>(
    device: &D,
    location: &JournalLocation,
    recovery: &Recovery,
) -> Result<()> {
    let size = block_bytes(recovery.superblock());
    let most = BATCH_BYTES.checked_div(size).unwrap_or_default().max(1);
    let mut rest = recovery.replacements();
    let mut contents = vec![0; size.saturating_mul(most.min(rest.len()))];
    while let Some(first) = rest.first() {
        // Blocks that lie one after the other at home.
        let count = rest
            .iter()
            .zip(first.block()..)
            .take(most)
            .take_while(|(replacement, block)| replacement.block() == *block)
            .count();
        let (now, later) = rest.split_at(count);
        for (replacement, target) in now.iter().zip(contents.chunks_exact_mut(size)) {
            device.read(location.offset(BlockNo(replacement.location())), target)?;
            if replacement.escaped()
                && let Some(magic) = target.first_chunk_mut()
            {
                *magic = MAGIC_BYTES;
            }
        }
        let written = contents
            .get(..size.saturating_mul(count))
            .unwrap_or_default();
        device.write(location.offset(BlockNo(first.block())), written)?;
        rest = later;
    }
    Ok(())
}
