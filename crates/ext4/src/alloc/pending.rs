//! What transactions freed that are not durable yet.

use std::collections::VecDeque;
use std::ops::Range;

use pagefence_ext4_format::{BlockNo, InodeNo};
use pagefence_lock_order::primitives::atomic::Ordering;

use crate::alloc::Allocator;

/// What one transaction freed.
#[derive(Debug, Default)]
struct Batch {
    tid: u64,
    /// In the order of their freeing.
    blocks: Vec<Range<u64>>,
    inodes: Vec<InodeNo>,
}

/// What transactions freed that are not durable, oldest first. Numbers of transactions are only
/// compared for being the same, so that they may wrap.
#[derive(Debug, Default)]
pub(super) struct Pending {
    batches: VecDeque<Batch>,
    /// The transaction whose batch is being let go: what it freed is on its way.
    releasing: Option<u64>,
    /// Blocks of all batches, and of that one.
    blocks: u64,
    /// Inodes of the last batch that became durable: used again only if there are no others.
    recent: Vec<InodeNo>,
}

impl Pending {
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    pub(super) fn newest(&self) -> Option<u64> {
        let waiting = self.batches.back().map(|batch| batch.tid);
        waiting.or(self.releasing)
    }

    pub(super) fn add_blocks(&mut self, tid: u64, run: Range<u64>) {
        self.blocks += run.end - run.start;
        let runs = &mut self.batch(tid).blocks;
        match runs.last_mut() {
            // Files are freed from their end.
            Some(last) if last.start == run.end => last.start = run.start,
            Some(last) if last.end == run.start => last.end = run.end,
            _ => runs.push(run),
        }
    }

    pub(super) fn add_inode(&mut self, tid: u64, inode: InodeNo) {
        self.batch(tid).inodes.push(inode);
    }

    fn batch(&mut self, tid: u64) -> &mut Batch {
        if self.batches.back().is_none_or(|batch| batch.tid != tid) {
            self.batches.push_back(Batch {
                tid,
                ..Batch::default()
            });
        }
        let last = self.batches.len() - 1;
        &mut self.batches[last]
    }

    /// The batches up to that of `tid`, as one; nothing if `tid` freed nothing.
    fn committed(&mut self, tid: u64) -> Option<Batch> {
        let last = self.batches.iter().rposition(|batch| batch.tid == tid)?;
        let mut all = Batch::default();
        self.releasing = Some(tid);
        for batch in self.batches.drain(..=last) {
            all.blocks.extend(batch.blocks);
            all.inodes.extend(batch.inodes);
        }
        Some(all)
    }
}

impl Allocator {
    /// Transaction `tid` is durable: what it freed can be had again. `discard` is told of each run
    /// of blocks before it can be had, so that what it tells a device is true.
    ///
    /// No group may be locked.
    pub(crate) fn committed(&self, tid: u64, mut discard: impl FnMut(BlockNo, u64)) {
        let (batch, recent) = self.with_pending(|pending| {
            let recent = std::mem::take(&mut pending.recent);
            (pending.committed(tid).unwrap_or_default(), recent)
        });
        for inode in recent {
            self.forget_recent_inode(inode);
        }
        let blocks = merged(batch.blocks);
        for run in &blocks {
            discard(BlockNo(run.start), run.end - run.start);
        }
        let mut count = 0;
        for run in blocks {
            count += run.end - run.start;
            self.release_blocks(run);
        }
        for inode in &batch.inodes {
            self.release_inode(*inode);
        }
        if count > 0 {
            self.note_returns();
            self.counts.give(count);
        }
        self.with_pending(|pending| {
            pending.blocks -= count;
            pending.releasing = None;
            pending.recent = batch.inodes;
        });
        self.shrink();
    }

    /// Puts blocks that no durable state refers to any more into the indexes of their groups.
    fn release_blocks(&self, run: Range<u64>) {
        let mut start = run.start;
        while start < run.end {
            let Ok((number, first)) = self.superblock.group_of_block(BlockNo(start)) else {
                return;
            };
            let room = u64::from(self.superblock.blocks_in_group(number) - first);
            let here = room.min(run.end - start);
            // As many as a group has blocks, at most.
            let len = here as u32;
            if let Some(blocks) = self.lock(number).blocks_mut() {
                blocks.pending -= len;
                blocks.index.give(first..first + len);
            }
            if let Some(low) = self.low_blocks(number) {
                low.give(here);
            }
            start += here;
        }
    }

    /// How often blocks came back to an index.
    pub(super) fn returns(&self) -> u64 {
        self.returns.load(Ordering::SeqCst)
    }
}

/// Runs in order, neighbours joined.
fn merged(mut runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(runs.len());
    for run in runs {
        match merged.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => merged.push(run),
        }
    }
    merged
}
