//! The first pass: follows the log and finds its end.

use pagefence_block_io::Device;
use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::journal::checksum::crc32_be;
use pagefence_ext4_format::journal::commit::commit_seconds;
use pagefence_ext4_format::journal::descriptor::{self, TagChecksum, TagFlags};
use pagefence_ext4_format::journal::{
    BlockKind, CommitBlock, Header, JournalSuperblock, Sequence, revoke,
};

use crate::error::{JournalError, Result};
use crate::log::LogReader;

/// A data block in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Where it belongs.
    pub(super) block: BlockNo,
    /// Where it lies in the journal.
    pub(super) at: u32,
    pub(super) sequence: Sequence,
    pub(super) checksum: TagChecksum,
    pub(super) escaped: bool,
    /// Its data and its place are known to be sound.
    pub(super) checked: bool,
}

/// A committed transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transaction {
    sequence: Sequence,
    /// Block of the journal where it begins.
    start: u32,
    first_entry: usize,
    first_revoke: usize,
}

/// The committed part of a log.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) entries: Vec<Entry>,
    /// Revoke blocks: where in the journal, and of which transaction.
    pub(super) revoke_blocks: Vec<(u32, Sequence)>,
    pub(super) transactions: Vec<Transaction>,
    pub(super) next_sequence: Sequence,
    /// Where the next transaction would begin.
    pub(super) head: u32,
    /// A transaction that was committed and is damaged.
    pub(super) damaged: Option<Sequence>,
}

impl Log {
    /// Takes off the transaction that entry `at` belongs to and all later ones: its data is
    /// damaged. Only the last transaction of a journal with asynchronous commits may be so
    /// without fault.
    pub(super) fn end_before(&mut self, at: usize, async_commit: bool) {
        let after = self
            .transactions
            .partition_point(|transaction| transaction.first_entry <= at);
        let Some(index) = after.checked_sub(1) else {
            return;
        };
        let was_last = after == self.transactions.len();
        let Some(transaction) = self.transactions.get(index).copied() else {
            return;
        };
        self.transactions.truncate(index);
        self.entries.truncate(transaction.first_entry);
        self.revoke_blocks.truncate(transaction.first_revoke);
        self.next_sequence = transaction.sequence;
        self.head = transaction.start;
        self.damaged =
            (!was_last || !async_commit || self.damaged.is_some()).then_some(transaction.sequence);
    }
}

/// The scan's place in the log and what it knows of the transaction there.
struct Scan<'a> {
    superblock: &'a JournalSuperblock,
    log: Log,
    position: u32,
    /// Blocks of the log passed so far.
    passed: u32,
    current: Transaction,
    /// A descriptor or revoke block of the current transaction has a wrong checksum.
    broken: bool,
    /// Running checksum of the transaction (version 1).
    crc32: u32,
    last_seconds: u64,
    /// With asynchronous commits: the transaction before this one has a wrong checksum. If this
    /// one is committed that was damage, else an interrupted commit.
    suspect: Option<Sequence>,
}

/// Whether the scan goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Continue,
    End,
}

/// Follows the log that `superblock` says is not empty.
pub(super) fn scan<D: Device + ?Sized>(
    reader: &mut LogReader<'_, D>,
    superblock: &JournalSuperblock,
) -> Result<Log> {
    let current = Transaction {
        sequence: superblock.sequence,
        start: superblock.start,
        first_entry: 0,
        first_revoke: 0,
    };
    let mut scan = Scan {
        superblock,
        log: Log {
            entries: Vec::new(),
            revoke_blocks: Vec::new(),
            transactions: Vec::new(),
            next_sequence: superblock.sequence,
            head: superblock.start,
            damaged: None,
        },
        position: superblock.start,
        passed: 0,
        current,
        broken: false,
        crc32: !0,
        last_seconds: 0,
        suspect: None,
    };
    while scan.step(reader)? == Next::Continue {}
    let Scan { mut log, .. } = scan;
    // What the transaction that did not end, or is damaged, had so far.
    let unfinished = scan.current;
    log.entries.truncate(unfinished.first_entry);
    log.revoke_blocks.truncate(unfinished.first_revoke);
    Ok(log)
}

impl Scan<'_> {
    /// Passes one block; false once the whole log was passed.
    fn pass(&mut self) -> bool {
        if self.passed >= self.superblock.log_blocks() {
            return false;
        }
        self.passed = self.passed.saturating_add(1);
        self.position = self.superblock.advance(self.position, 1);
        true
    }

    fn step<D: Device + ?Sized>(&mut self, reader: &mut LogReader<'_, D>) -> Result<Next> {
        let at = self.position;
        if !self.pass() {
            return Ok(Next::End);
        }
        let block = reader.block(at)?;
        let expected = match self.suspect {
            Some(suspect) => suspect.next(),
            None => self.current.sequence,
        };
        let Some(header) = Header::parse(block).filter(|header| header.sequence == expected) else {
            return Ok(Next::End);
        };
        match header.kind {
            BlockKind::Descriptor => self.descriptor(reader, at),
            BlockKind::Commit => Ok(self.commit(block)),
            BlockKind::Revoke => {
                self.broken |= revoke::check(&self.superblock.format, block).is_err();
                self.log.revoke_blocks.push((at, self.current.sequence));
                Ok(Next::Continue)
            }
            BlockKind::SuperblockV1 | BlockKind::SuperblockV2 => Ok(Next::End),
        }
    }

    fn descriptor<D: Device + ?Sized>(
        &mut self,
        reader: &mut LogReader<'_, D>,
        at: u32,
    ) -> Result<Next> {
        let format = &self.superblock.format;
        let block = reader.block(at)?;
        // Even a block with a wrong checksum says where the commit block is: that is how Linux
        // tells damage from blocks of an older life of the journal.
        self.broken |= descriptor::check(format, block).is_err();
        let sums = format.features.checksum_v1();
        if sums {
            self.crc32 = crc32_be(self.crc32, block);
        }
        let first = self.log.entries.len();
        let tags = descriptor::tags(format, block)
            .map_err(|source| JournalError::Corrupt { block: at, source })?;
        for tag in tags {
            let entry = Entry {
                block: tag.block,
                at: self.position,
                sequence: self.current.sequence,
                checksum: tag.checksum,
                escaped: tag.flags.contains(TagFlags::ESCAPE),
                checked: false,
            };
            if !self.pass() {
                return Ok(Next::End);
            }
            self.log.entries.push(entry);
        }
        if sums {
            for entry in self.log.entries.get(first..).unwrap_or_default() {
                self.crc32 = crc32_be(self.crc32, reader.block(entry.at)?);
            }
        }
        Ok(Next::Continue)
    }

    /// The commit block `block` of the current transaction.
    fn commit(&mut self, block: &[u8]) -> Next {
        if let Some(suspect) = self.suspect {
            self.log.damaged = Some(suspect);
            return Next::End;
        }
        let format = &self.superblock.format;
        let seconds = commit_seconds(block).unwrap_or_default();
        let sound = !self.broken
            && CommitBlock::parse(format, block).is_ok_and(|commit| {
                commit
                    .transaction_crc32
                    .is_none_or(|crc32| crc32 == self.crc32)
            });
        if !sound {
            // An older commit time than the transaction before: left over from an older life of
            // the journal.
            if seconds < self.last_seconds {
                return Next::End;
            }
            if format.features.async_commit() {
                self.suspect = Some(self.current.sequence);
                return Next::Continue;
            }
            self.log.damaged = Some(self.current.sequence);
            return Next::End;
        }
        self.last_seconds = seconds;
        self.log.transactions.push(self.current);
        self.log.next_sequence = self.current.sequence.next();
        self.log.head = self.position;
        self.crc32 = !0;
        self.current = Transaction {
            sequence: self.log.next_sequence,
            start: self.position,
            first_entry: self.log.entries.len(),
            first_revoke: self.log.revoke_blocks.len(),
        };
        Next::Continue
    }
}
