//! One transaction, written to the journal as a whole or not at all: what makes the steps of
//! recovery that follow the log (fast commits, orphans) atomic too.
//!
//! The transaction goes behind those that the log holds. It becomes valid by one write: of the
//! journal's superblock if the log was empty, of its commit block otherwise. In the second case
//! two things could already lie in the way, left by a commit that was interrupted: a block that
//! passes for our commit block, and blocks behind it that pass for a next transaction. Both places
//! are zeroed, and that made durable, before anything else is written.

use std::time::{SystemTime, UNIX_EPOCH};

use pagefence_block_io::Device;
use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::journal::checksum::crc32_be;
use pagefence_ext4_format::journal::superblock::SuperblockUpdate;
use pagefence_ext4_format::journal::{CommitBlock, DescriptorBuilder, LogFormat, Sequence};

use crate::error::{JournalError, Result};
use crate::location::JournalLocation;
use crate::log::to_usize;
use crate::recovery::{Recovery, block_bytes, recover};
use crate::revoke;
use crate::write_back::update_superblock;

/// Writes one transaction that sets each block of `blocks` to its bytes, and revokes `revokes`:
/// contents that older transactions have for those blocks are not replayed. `recovery` is what
/// [`recover`] says of the journal now. Returns what it says afterwards, which includes the new
/// transaction; [`crate::write_back()`] then brings it home. Fast commits are void from the moment
/// at which the transaction is valid.
///
/// A block that is both set and revoked counts as revoked.
///
/// # Errors
/// The transaction does not fit in the log ([`JournalError::LogFull`]), names a block that it must
/// not, or the log is damaged: then nothing was changed. Or the device failed: then the journal
/// holds the transaction or does not, but never a part of it.
pub fn commit_once<D: Device + ?Sized>(
    device: &D,
    location: &JournalLocation,
    recovery: &Recovery,
    blocks: &[(BlockNo, &[u8])],
    revokes: &[BlockNo],
) -> Result<Recovery> {
    if let Some(sequence) = recovery.damaged() {
        return Err(JournalError::DamagedLog {
            sequence: sequence.0,
        });
    }
    let superblock = recovery.superblock();
    let format = superblock.format;
    let size = block_bytes(superblock);
    for (block, bytes) in blocks {
        if !location.may_change(*block) || bytes.len() != size {
            return Err(JournalError::Block { block: *block });
        }
    }
    let must_set_revoke = !revokes.is_empty() && !format.features.revoke();
    if must_set_revoke && !superblock.version_2 {
        return Err(JournalError::RevokeUnsupported);
    }
    let free = superblock
        .log_blocks()
        .saturating_sub(recovery.used_blocks());
    let needed = blocks_needed(&format, blocks.len(), revokes.len());
    if needed > u64::from(free) {
        return Err(JournalError::LogFull { needed, free });
    }
    let sequence = recovery.next_sequence();
    let contents = build(&format, sequence, blocks, revokes)?;
    let writer = Writer {
        device,
        location,
        recovery,
    };
    let head = recovery.head();
    let commit_at = u32::try_from(needed.saturating_sub(1)).unwrap_or_default();
    let enable_revoke = SuperblockUpdate {
        enable_revoke: must_set_revoke,
        ..SuperblockUpdate::default()
    };
    if recovery.is_clean() {
        // Nothing in the log counts until the superblock names it.
        writer.put_all(head, 0, &contents.body)?;
        writer.put(head, commit_at, &contents.commit)?;
        writer.end_behind(head, commit_at, free)?;
        device.flush()?;
        update_superblock(
            device,
            location,
            &SuperblockUpdate {
                sequence: Some(sequence),
                start: Some(head),
                ..enable_revoke
            },
        )?;
    } else {
        if must_set_revoke {
            update_superblock(device, location, &enable_revoke)?;
        }
        writer.put(head, commit_at, &vec![0; size])?;
        writer.end_behind(head, commit_at, free)?;
        device.flush()?;
        writer.put_all(head, 0, &contents.body)?;
        device.flush()?;
        writer.put(head, commit_at, &contents.commit)?;
        device.flush()?;
    }
    recover(device, location)
}

/// Blocks of the log that a transaction takes.
fn blocks_needed(format: &LogFormat, blocks: usize, revokes: usize) -> u64 {
    let descriptors = blocks.div_ceil(to_usize(DescriptorBuilder::capacity(format).max(1)));
    let needed = blocks
        .saturating_add(descriptors)
        .saturating_add(revoke::blocks_needed(format, revokes))
        .saturating_add(1);
    u64::try_from(needed).unwrap_or(u64::MAX)
}

/// The blocks of a transaction, in the order of the log.
struct Contents {
    body: Vec<Vec<u8>>,
    commit: Vec<u8>,
}

fn build(
    format: &LogFormat,
    sequence: Sequence,
    blocks: &[(BlockNo, &[u8])],
    revokes: &[BlockNo],
) -> Result<Contents> {
    let mut body = revoke::build(format, sequence, revokes)?;
    let mut crc32 = !0;
    for some in blocks.chunks(to_usize(DescriptorBuilder::capacity(format).max(1))) {
        let mut descriptor = DescriptorBuilder::new(*format, sequence, [0; 16]);
        let mut data = Vec::with_capacity(some.len());
        for (block, bytes) in some {
            let mut bytes = bytes.to_vec();
            // The number of the block may have more bits than the journal's tags.
            let added = descriptor
                .push(*block, &mut bytes)
                .map_err(|_| JournalError::Block { block: *block })?;
            debug_assert!(added, "a chunk fits in its descriptor");
            data.push(bytes);
        }
        let descriptor = descriptor.finish();
        crc32 = crc32_be(crc32, &descriptor);
        crc32 = data.iter().fold(crc32, |crc32, data| crc32_be(crc32, data));
        body.push(descriptor);
        body.append(&mut data);
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let commit = CommitBlock::build(format, sequence, now.as_secs(), now.subsec_nanos(), crc32);
    Ok(Contents { body, commit })
}

/// Writes blocks of the log.
struct Writer<'a, D: ?Sized> {
    device: &'a D,
    location: &'a JournalLocation,
    recovery: &'a Recovery,
}

impl<D: Device + ?Sized> Writer<'_, D> {
    /// Writes the block that lies `count` blocks behind `head` in the log.
    fn put(&self, head: u32, count: u32, bytes: &[u8]) -> Result<()> {
        let at = self.recovery.superblock().advance(head, count);
        if let Some((physical, _)) = self.location.physical(at) {
            self.device.write(self.location.offset(physical), bytes)?;
        }
        Ok(())
    }

    fn put_all(&self, head: u32, from: u32, blocks: &[Vec<u8>]) -> Result<()> {
        for (block, count) in blocks.iter().zip(from..) {
            self.put(head, count, block)?;
        }
        Ok(())
    }

    /// Zeroes the block behind the commit block, if it is free: the log ends there.
    fn end_behind(&self, head: u32, commit_at: u32, free: u32) -> Result<()> {
        let behind = commit_at.saturating_add(1);
        if behind < free {
            let size = block_bytes(self.recovery.superblock());
            self.put(head, behind, &vec![0; size])?;
        }
        Ok(())
    }
}
