//! What a journal that was not closed holds: which blocks it replaces and by what. Nothing is
//! changed; [`Recovery::overlay`] shows the result, [`crate::write_back()`] makes it so.
//!
//! As in Linux: the log is followed from its start, transaction by transaction, as long as each
//! has its commit block; blocks that a transaction revokes are not replayed from it and from
//! older ones; of what is left, the newest contents of a block count.
//!
//! Where a checksum is wrong the log ends before that transaction, as if it had not been
//! committed, and [`Recovery::damaged`] says whether that is more than an interrupted commit:
//! then later changes are lost, and the file system needs a check. (Linux goes on behind a
//! damaged data block, skips that block alone, and refuses the mount afterwards.)
//!
//! Invariants: each block of the log is looked at once per pass, so a log whose descriptors go
//! round in a circle ends; memory is bounded by the number of tags, of which each takes a block
//! of the log.

use std::ops::Range;

use hashbrown::HashMap;
use pagefence_block_io::overlay::sort_last_wins;
use pagefence_block_io::{Device, Overlay, Replacement};
use pagefence_ext4_format::journal::fast_commit::{FastCommitScan, tags};
use pagefence_ext4_format::journal::{FastCommitTag, JournalSuperblock, Sequence, revoke};
use pagefence_ext4_format::{BlockNo, Corruption};
use pagefence_lock_order::primitives::Arc;

use crate::error::{JournalError, Result};
use crate::location::JournalLocation;
use crate::log::{LogReader, read_superblock, to_usize};

mod scan;

use scan::{Entry, Log, scan};

/// How often data blocks may turn out damaged, each time an earlier transaction, before the
/// journal as a whole counts as damaged. Every round but the first needs a block that was
/// revoked by a damaged transaction and is damaged itself.
const ROUNDS_MAX: u32 = 16;

/// What recovery found. Holds no contents of blocks: they lie in the journal.
#[derive(Debug)]
pub struct Recovery {
    superblock: JournalSuperblock,
    replacements: Vec<Replacement>,
    transactions: u32,
    revoke_records: u64,
    revoked_blocks: u64,
    next_sequence: Sequence,
    head: u32,
    damaged: Option<Sequence>,
    fast_commits: FastCommits,
}

/// The valid fast commits of a journal, which lie in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FastCommits {
    sequence: Sequence,
    valid_tags: u64,
    blocks: Range<u32>,
}

/// Finds out what the journal at `location` holds. Changes nothing.
///
/// # Errors
/// The device failed, or the journal is damaged in a way that Linux refuses too: its superblock,
/// a revoke block that claims more than it has, or a tag for a block that is not there or belongs
/// to the journal.
pub fn recover<D: Device + ?Sized>(device: &D, location: &JournalLocation) -> Result<Recovery> {
    let (superblock, _) = read_superblock(device, location)?;
    if superblock.start == 0 {
        return Ok(Recovery {
            replacements: Vec::new(),
            transactions: 0,
            revoke_records: 0,
            revoked_blocks: 0,
            next_sequence: superblock.sequence.next(),
            head: superblock.first,
            damaged: None,
            fast_commits: FastCommits::none(superblock.sequence),
            superblock,
        });
    }
    let mut reader = LogReader::new(device, location);
    let mut log = scan(&mut reader, &superblock)?;
    let revokes = settle(&mut reader, location, &superblock, &mut log)?;
    let mut replacements = Vec::with_capacity(log.entries.len());
    let mut revoked_blocks = 0_u64;
    for entry in &log.entries {
        if revokes.covers(entry) {
            revoked_blocks = revoked_blocks.saturating_add(1);
            continue;
        }
        let replacement = location
            .physical(entry.at)
            .and_then(|(from, _)| Replacement::new(entry.block.0, from.0, entry.escaped))
            .ok_or(JournalError::Corrupt {
                block: entry.at,
                source: Corruption::JournalBlockRange { block: entry.block },
            })?;
        replacements.push(replacement);
    }
    sort_last_wins(&mut replacements);
    let fast_commits = FastCommits::find(&mut reader, &superblock, log.next_sequence)?;
    if let Some(sequence) = log.damaged {
        tracing::warn!(%sequence, "a transaction in the journal is damaged");
    }
    Ok(Recovery {
        replacements,
        transactions: u32::try_from(log.transactions.len()).unwrap_or(u32::MAX),
        revoke_records: revokes.records,
        revoked_blocks,
        next_sequence: log.next_sequence,
        head: log.head,
        damaged: log.damaged,
        fast_commits,
        superblock,
    })
}

/// The revokes that concern blocks of the log.
struct Revokes {
    /// For each block that a tag names, the last transaction that revoked it.
    last: HashMap<BlockNo, Option<Sequence>>,
    records: u64,
}

impl Revokes {
    /// Reads the revoke blocks of the transactions of `log`.
    fn read<D: Device + ?Sized>(
        reader: &mut LogReader<'_, D>,
        superblock: &JournalSuperblock,
        log: &Log,
    ) -> Result<Self> {
        let mut revokes = Self {
            last: log
                .entries
                .iter()
                .map(|entry| (entry.block, None))
                .collect(),
            records: 0,
        };
        for (at, sequence) in &log.revoke_blocks {
            let block = reader.block(*at)?;
            let records = revoke::records(&superblock.format, block)
                .map_err(|source| JournalError::Corrupt { block: *at, source })?;
            for record in records {
                revokes.records = revokes.records.saturating_add(1);
                // The log is read in order, so the last one met is the latest.
                if let Some(last) = revokes.last.get_mut(&record) {
                    *last = Some(*sequence);
                }
            }
        }
        Ok(revokes)
    }

    fn covers(&self, entry: &Entry) -> bool {
        self.last
            .get(&entry.block)
            .copied()
            .flatten()
            .is_some_and(|revoked| revoked.is_at_least(entry.sequence))
    }
}

/// Checks the blocks that will be replayed, and shortens the log to what is sound.
fn settle<D: Device + ?Sized>(
    reader: &mut LogReader<'_, D>,
    location: &JournalLocation,
    superblock: &JournalSuperblock,
    log: &mut Log,
) -> Result<Revokes> {
    for _ in 0..ROUNDS_MAX {
        let revokes = Revokes::read(reader, superblock, log)?;
        let Some((at, source)) = check(reader, location, superblock, log, &revokes)? else {
            return Ok(revokes);
        };
        let sequence = match log.entries.get(at) {
            Some(entry) => entry.sequence,
            None => return Ok(revokes),
        };
        tracing::debug!(%sequence, %source, "the log ends early");
        log.end_before(at, superblock.format.features.async_commit());
    }
    Err(JournalError::Corrupt {
        block: log.head,
        source: Corruption::JournalData {
            block: BlockNo(0),
            sequence: log.next_sequence.0,
        },
    })
}

/// Checks each entry that is not revoked and was not checked before. Gives the first whose data
/// is damaged.
fn check<D: Device + ?Sized>(
    reader: &mut LogReader<'_, D>,
    location: &JournalLocation,
    superblock: &JournalSuperblock,
    log: &mut Log,
    revokes: &Revokes,
) -> Result<Option<(usize, Corruption)>> {
    let format = &superblock.format;
    for (at, entry) in log.entries.iter_mut().enumerate() {
        if entry.checked || revokes.covers(entry) {
            continue;
        }
        if !location.may_change(entry.block) {
            return Err(JournalError::Corrupt {
                block: entry.at,
                source: Corruption::JournalBlockRange { block: entry.block },
            });
        }
        if format.has_checksums() {
            let data = reader.block(entry.at)?;
            if !entry.checksum.matches(format.seed, entry.sequence, data) {
                let source = Corruption::JournalData {
                    block: entry.block,
                    sequence: entry.sequence.0,
                };
                return Ok(Some((at, source)));
            }
        }
        entry.checked = true;
    }
    Ok(None)
}

impl Recovery {
    /// The journal was closed: there is nothing to recover.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.superblock.start == 0
    }

    /// The journal's superblock, as it was read.
    #[must_use]
    pub fn superblock(&self) -> &JournalSuperblock {
        &self.superblock
    }

    /// The blocks that the log replaces, ascending, and where in the journal their contents lie.
    #[must_use]
    pub fn replacements(&self) -> &[Replacement] {
        &self.replacements
    }

    /// Transactions in the log.
    #[must_use]
    pub fn transactions(&self) -> u32 {
        self.transactions
    }

    /// Revoke records in them.
    #[must_use]
    pub fn revoke_records(&self) -> u64 {
        self.revoke_records
    }

    /// Blocks in the log that are not replayed because they are revoked.
    #[must_use]
    pub fn revoked_blocks(&self) -> u64 {
        self.revoked_blocks
    }

    /// The transaction that comes after the last in the log.
    #[must_use]
    pub fn next_sequence(&self) -> Sequence {
        self.next_sequence
    }

    /// Block of the journal where the next transaction would begin.
    #[must_use]
    pub fn head(&self) -> u32 {
        self.head
    }

    /// Blocks of the log that its transactions take.
    #[must_use]
    pub fn used_blocks(&self) -> u32 {
        match (self.superblock.start, self.transactions) {
            (0, _) | (_, 0) => 0,
            (start, _) if self.head > start => self.head.saturating_sub(start),
            (start, _) => self
                .superblock
                .log_blocks()
                .saturating_sub(start.saturating_sub(self.head)),
        }
    }

    /// The error with which the journal was aborted (a negative number of Linux), or 0. The file
    /// system must be marked as having errors before it is cleared ([`crate::set_errno`]).
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.superblock.errno
    }

    /// A transaction that was committed and is damaged. The log ends before it; what it and later
    /// ones changed is lost, and the file system must be marked as having errors.
    #[must_use]
    pub fn damaged(&self) -> Option<Sequence> {
        self.damaged
    }

    /// The fast commits made after the last transaction. Empty if the journal has none.
    #[must_use]
    pub fn fast_commits(&self) -> &FastCommits {
        &self.fast_commits
    }

    /// A view of `device` with the journal applied (not its fast commits).
    #[must_use]
    pub fn overlay(&self, device: Arc<dyn Device>) -> Overlay {
        Overlay::new(
            device,
            self.superblock.format.block_size,
            self.replacements.clone(),
        )
    }
}

impl FastCommits {
    fn none(sequence: Sequence) -> Self {
        Self {
            sequence,
            valid_tags: 0,
            blocks: 0..0,
        }
    }

    fn find<D: Device + ?Sized>(
        reader: &mut LogReader<'_, D>,
        superblock: &JournalSuperblock,
        sequence: Sequence,
    ) -> Result<Self> {
        let mut scan = FastCommitScan::new(sequence);
        for at in superblock.fast_commit.clone() {
            let more = scan
                .block(reader.block(at)?)
                .map_err(|source| JournalError::Corrupt { block: at, source })?;
            if !more {
                break;
            }
        }
        Ok(Self {
            sequence,
            valid_tags: scan.valid_tags(),
            blocks: superblock.fast_commit.clone(),
        })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.valid_tags == 0
    }

    /// The transaction that was running when they were made.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Shows each tag in order, HEAD, PAD and TAIL tags included, from `device`, which must be
    /// the one that was recovered (an overlay of it serves as well).
    ///
    /// # Errors
    /// The device failed; or whatever `visit` returns, which ends the walk.
    pub fn visit<D: Device + ?Sized, E: From<JournalError>>(
        &self,
        device: &D,
        location: &JournalLocation,
        mut visit: impl FnMut(FastCommitTag<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut reader = LogReader::new(device, location);
        let mut left = self.valid_tags;
        for at in self.blocks.clone() {
            for tag in tags(reader.block(at)?) {
                if left == 0 {
                    return Ok(());
                }
                let tag = tag.map_err(|source| JournalError::Corrupt { block: at, source })?;
                visit(tag)?;
                left = left.saturating_sub(1);
            }
        }
        Ok(())
    }
}

/// Bytes of a block, for buffers.
pub(crate) fn block_bytes(superblock: &JournalSuperblock) -> usize {
    to_usize(superblock.format.block_size)
}
