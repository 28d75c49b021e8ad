//! The log of a journal in use: its space, the order of its writes, and what brings it home.
//!
//! Only the journal's thread is here. `used` counts from where the superblock *durably* begins, so
//! that what is not used may be overwritten at once.
//!
//! A commit flushes twice: before its commit block, so that the block commits what is there, and
//! behind it. Home writes that were made since the last commit become durable by the first of the
//! two; the superblock that moves the tail past them is written beside the commit block, and is
//! durable by the second. So a checkpoint costs flushes of its own only when the log runs out of
//! space, or nothing is committed any more.

use std::time::{SystemTime, UNIX_EPOCH};

use pagefence_block_io::Buffer;
use pagefence_block_io::aligned::AlignedBytes;
use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::journal::superblock::SuperblockUpdate;
use pagefence_ext4_format::journal::{CommitBlock, JournalSuperblock, Sequence};
use pagefence_lock_order::primitives::Arc;

use crate::checkpoint::{CheckpointList, Tail};
use crate::error::{JournalError, Result};
use crate::home;
use crate::location::JournalLocation;
use crate::log::read_superblock;
use crate::log_writer::{LogWriter, Target, blocks_per_descriptor};
use crate::mutant::Mutant;
use crate::recovery::Recovery;
use crate::revoke;
use crate::shared::Shared;
use crate::transaction::Frozen;

/// Blocks that one batch of a checkpoint writes home, at most.
const BATCH_BLOCKS_MAX: usize = 1024;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct RunningLog {
    location: JournalLocation,
    superblock: JournalSuperblock,
    /// The block of the superblock, as it was written last.
    superblock_block: AlignedBytes,
    /// Whether the superblock durably says that there is a log.
    begun: bool,
    writer: LogWriter,
    /// Where the next transaction begins, and its number.
    head: Tail,
    /// Blocks from the durable tail to the head.
    used: u32,
    /// Of these the blocks behind the tail as it is in memory, or as the superblock says that was
    /// written and is not durable.
    dead: u32,
    list: CheckpointList,
    /// More blocks in the log than these are brought home at once.
    used_max: u32,
}

impl RunningLog {
    /// The empty log that `recovery` found; `pinned_max` blocks may wait in it for their way home
    /// before they are sent there.
    pub(crate) fn open(
        shared: &Shared,
        location: JournalLocation,
        recovery: &Recovery,
        pinned_max: u32,
    ) -> Result<Self> {
        let device = shared.buffers.device();
        let (superblock, block) = read_superblock(&**device, &location)?;
        let alignment = usize::try_from(device.capabilities().alignment).unwrap_or(1);
        let alignment = alignment.max(1);
        Ok(Self {
            writer: LogWriter::new(&superblock.format, alignment),
            head: Tail {
                sequence: recovery.next_sequence(),
                start: recovery.head(),
            },
            used: 0,
            dead: 0,
            list: CheckpointList::default(),
            used_max: (superblock.log_blocks() >> 1).min(pinned_max),
            begun: false,
            superblock_block: AlignedBytes::copy_of(&block, alignment),
            superblock,
            location,
        })
    }

    /// Blocks of the log that a transaction takes.
    fn needed(&self, frozen: &Frozen) -> u32 {
        let format = &self.superblock.format;
        let members = frozen.blocks.len().saturating_add(frozen.deferred.len());
        let blocks = members
            .saturating_add(members.div_ceil(blocks_per_descriptor(format)))
            .saturating_add(revoke::blocks_needed(format, frozen.revokes.len()))
            .saturating_add(1);
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }

    /// Writes the transaction to the log. On return it is durable.
    pub(crate) fn commit(&mut self, shared: &Shared, frozen: &Frozen) -> Result<()> {
        let needed = self.needed(frozen);
        self.make_room(shared, needed)?;
        let start = self.head;
        let crc32 = self.write_body(shared, frozen)?;
        self.announce(shared, frozen)?;
        if !shared.is_mutant(Mutant::NoFlushBeforeCommitBlock) {
            shared.flush()?;
        }
        self.begun = true;
        self.home_is_durable();
        let commit_at = self
            .superblock
            .advance(start.start, needed.saturating_sub(1));
        self.write_commit_block(shared, start.sequence, commit_at, crc32)?;
        self.head = Tail {
            sequence: start.sequence.next(),
            start: self.superblock.advance(start.start, needed),
        };
        self.used = self.used.saturating_add(needed);
        debug_assert!(self.used < self.superblock.log_blocks(), "the log overruns");
        let dead = self.dead;
        if dead > 0 {
            // If nothing else is left, the log begins with this very transaction.
            let tail = self.list.tail().unwrap_or(start);
            self.write_tail(shared, tail)?;
        }
        if !shared.is_mutant(Mutant::NoFlushBehindCommitBlock) {
            shared.flush()?;
        }
        self.tail_is_durable(dead);
        if !shared.is_mutant(Mutant::RevokedStayInCheckpoint) {
            self.list.forget(&frozen.revokes);
        }
        self.list.add(frozen, start, needed);
        self.pop_dead();
        Ok(())
    }

    fn write_body(&mut self, shared: &Shared, frozen: &Frozen) -> Result<u32> {
        let sequence = self.head.sequence;
        let target = Target {
            shared,
            location: &self.location,
            superblock: &self.superblock,
        };
        let format = &self.superblock.format;
        self.writer.seek(self.head.start);
        let nobodys;
        let revokes = if shared.is_mutant(Mutant::NoRevokeRecords) {
            // As many, so that nothing else is missing.
            nobodys = vec![BlockNo(u64::from(u32::MAX)); frozen.revokes.len()];
            &nobodys
        } else {
            &frozen.revokes
        };
        for block in revoke::build(format, sequence, revokes)? {
            self.writer.push(target, &block)?;
        }
        let members: Vec<&Arc<Buffer>> = frozen.members().collect();
        let mut crc32 = !0;
        for some in members.chunks(blocks_per_descriptor(format)) {
            crc32 = self.writer.push_described(target, sequence, some, crc32)?;
        }
        // Where the commit block goes: all of it but its first sector is zeros, so with these in
        // place it is there as a whole or not at all, also where sectors are torn apart.
        self.writer
            .push(target, &vec![0; shared.buffers.block_size()])?;
        self.writer.write_out(target)?;
        Ok(crc32)
    }

    /// Has the superblock say that there is a log, and revokes in it, before the first commit that
    /// needs it. Durable with the body.
    fn announce(&mut self, shared: &Shared, frozen: &Frozen) -> Result<()> {
        let enable_revoke = !frozen.revokes.is_empty() && !self.superblock.format.features.revoke();
        if self.begun && !enable_revoke {
            return Ok(());
        }
        let begin = (!self.begun).then_some(self.head);
        self.write_superblock(
            shared,
            &SuperblockUpdate {
                sequence: begin.map(|head| head.sequence),
                start: begin.map(|head| head.start),
                enable_revoke,
                ..SuperblockUpdate::default()
            },
        )
    }

    fn write_commit_block(
        &mut self,
        shared: &Shared,
        sequence: Sequence,
        at: u32,
        crc32: u32,
    ) -> Result<()> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let format = &self.superblock.format;
        let block = CommitBlock::build(format, sequence, now.as_secs(), now.subsec_nanos(), crc32);
        self.writer.seek(at);
        let target = Target {
            shared,
            location: &self.location,
            superblock: &self.superblock,
        };
        self.writer.push(target, &block)?;
        self.writer.write_out(target)
    }

    fn write_superblock(&mut self, shared: &Shared, update: &SuperblockUpdate) -> Result<()> {
        let corrupt = |source| JournalError::Corrupt { block: 0, source };
        update.apply(&mut self.superblock_block).map_err(corrupt)?;
        // What the block says of features may have changed.
        let superblock = JournalSuperblock::parse(
            &self.superblock_block,
            self.location.block_size(),
            self.location.length(),
        )
        .map_err(corrupt)?;
        self.superblock = superblock;
        if let Some((physical, _)) = self.location.physical(0) {
            let offset = self.location.offset(physical);
            let device = shared.buffers.device();
            device.write(offset, &self.superblock_block)?;
        }
        Ok(())
    }

    fn write_tail(&mut self, shared: &Shared, tail: Tail) -> Result<()> {
        self.write_superblock(
            shared,
            &SuperblockUpdate {
                sequence: Some(tail.sequence),
                start: Some(tail.start),
                ..SuperblockUpdate::default()
            },
        )
    }

    /// What was written home is durable there.
    fn home_is_durable(&mut self) {
        self.list.home_is_durable();
        self.pop_dead();
    }

    fn pop_dead(&mut self) {
        self.dead = self.dead.saturating_add(self.list.pop_dead());
    }

    /// The superblock that leaves `dead` blocks behind is durable: they may be overwritten.
    fn tail_is_durable(&mut self, dead: u32) {
        self.used = self.used.saturating_sub(dead);
        self.dead = self.dead.saturating_sub(dead);
    }

    /// Brings home what is in the way of a transaction of `needed` blocks.
    fn make_room(&mut self, shared: &Shared, needed: u32) -> Result<()> {
        let blocks = self.superblock.log_blocks();
        // One block stays free, so that a full log is not taken for an empty one.
        let used_max = blocks.saturating_sub(1).checked_sub(needed);
        let Some(used_max) = used_max else {
            return Err(JournalError::LogFull {
                needed: u64::from(needed),
                free: blocks.saturating_sub(1),
            });
        };
        while self.used > used_max {
            if self.list.is_empty() && self.dead == 0 {
                debug_assert!(false, "an empty log has no used blocks");
                return Err(JournalError::LogFull {
                    needed: u64::from(needed),
                    free: blocks.saturating_sub(self.used),
                });
            }
            // Some more than needed, or every commit would have to do this.
            while self.write_batch(shared, used_max.min(blocks >> 2))? {}
            self.settle(shared)?;
        }
        Ok(())
    }

    /// Writes some blocks home that stand in the way of using no more than `keep` blocks of the
    /// log. False if there are none.
    fn write_batch(&mut self, shared: &Shared, keep: u32) -> Result<bool> {
        let live = self.used.saturating_sub(self.dead);
        let batch = self.list.take_batch(live, keep, BATCH_BLOCKS_MAX);
        let batch = if shared.is_mutant(Mutant::HomeUncommitted) {
            let newest = |buffer: Arc<Buffer>| shared.buffers.peek(buffer.block());
            batch.into_iter().filter_map(newest).collect()
        } else {
            batch
        };
        home::write(shared, &batch)?;
        Ok(!batch.is_empty())
    }

    /// Makes what was written home durable, and then the tail that this allows.
    fn settle(&mut self, shared: &Shared) -> Result<()> {
        if self.list.has_written() {
            if !shared.is_mutant(Mutant::HomeNotDurable) {
                shared.flush()?;
            }
            self.home_is_durable();
        }
        let dead = self.dead;
        if dead > 0 {
            let tail = self.list.tail().unwrap_or(self.head);
            self.write_tail(shared, tail)?;
            if !shared.is_mutant(Mutant::TailNotDurable) {
                shared.flush()?;
            }
            self.tail_is_durable(dead);
        }
        Ok(())
    }

    /// One batch, if the log holds too much. True: there may be more to do.
    pub(crate) fn checkpoint_some(&mut self, shared: &Shared) -> Result<bool> {
        let live = self.used.saturating_sub(self.dead);
        Ok(live > self.used_max && self.write_batch(shared, self.used_max >> 1)?)
    }

    /// One batch of a log that nobody needs for the moment. True: there is more to do.
    pub(crate) fn checkpoint_idle(&mut self, shared: &Shared) -> Result<bool> {
        if self.write_batch(shared, 0)? {
            return Ok(true);
        }
        self.settle(shared)?;
        Ok(false)
    }

    /// What is committed and may not be home, the latest of each block.
    pub(crate) fn not_home(&self) -> impl Iterator<Item = Arc<Buffer>> {
        self.list.buffers().cloned()
    }

    /// Whether something is in the log that is not home.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty() && self.dead == 0
    }

    /// Brings everything home and marks the log as empty, durably.
    pub(crate) fn close(&mut self, shared: &Shared) -> Result<()> {
        while self.checkpoint_idle(shared)? {}
        debug_assert!(self.is_empty() && self.used == 0, "all is home");
        if !self.begun {
            return Ok(());
        }
        let head = self.head;
        self.write_superblock(
            shared,
            &SuperblockUpdate {
                sequence: Some(head.sequence),
                start: Some(0),
                head: Some(head.start),
                ..SuperblockUpdate::default()
            },
        )?;
        shared.flush()
    }

    /// Leaves the error for the next mount, if the device still lets us.
    pub(crate) fn write_errno(&mut self, shared: &Shared, errno: i32) {
        let update = SuperblockUpdate {
            errno: Some(errno.saturating_neg()),
            ..SuperblockUpdate::default()
        };
        let written = self.write_superblock(shared, &update);
        let flushed = written.and_then(|()| Ok(shared.buffers.device().flush()?));
        if let Err(error) = flushed {
            tracing::warn!(%error, "the journal's error is not recorded");
        }
    }
}
