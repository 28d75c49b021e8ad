//! Blocks that are in use: from when they are found to when they are free again, and whether who
//! claims them may write to them.

use std::ops::Range;

use pagefence_ext4_format::group_desc::GroupFlags;
use pagefence_ext4_format::{BlockNo, InodeNo, bitmap};
use pagefence_vfs::{Error, Result};

use crate::alloc::block_alloc::BusyRun;
use crate::alloc::group_state::{Bits, GroupGuard};
use crate::alloc::owners::{BlockOwner, Taken};
use crate::alloc::{Allocator, Sink};
use crate::change::free_blocks::{Piece, pieces};
use crate::instance::Instance;

impl Allocator {
    /// Marks a busy run as in use: it is its owner's from now on. Gives its first block and its
    /// length.
    ///
    /// Takes the group's lock. A transaction needs credits for three blocks: the bitmap, the
    /// descriptor's block, the superblock.
    pub(crate) fn use_run(
        &self,
        tx: &mut impl Sink,
        owner: BlockOwner,
        run: BusyRun,
    ) -> (BlockNo, u32) {
        let (start, len) = run.used_in(self);
        // As long as they are free by the bitmap nobody else can claim them for data.
        self.owners.give(owner, blocks_of(start, len));
        let Ok((number, first)) = self.superblock.group_of_block(start) else {
            return (start, 0);
        };
        let mut guard = self.lock(number);
        let bitmap = guard.desc.block_bitmap();
        if let Some(blocks) = guard.blocks_mut() {
            let changed = bitmap::set_range(&mut blocks.bits, first..first + len);
            debug_assert_eq!(changed, len, "busy blocks are not in use");
            blocks.is_dirty = true;
            blocks.busy -= len;
            let desc = &mut guard.desc;
            desc.set_free_clusters(desc.free_clusters().saturating_sub(changed));
            let flags = desc.flags(&self.superblock);
            desc.set_flags(flags.difference(GroupFlags::BLOCK_UNINIT));
        }
        self.mark_dirty(&mut guard, number);
        drop(guard);
        self.defer(tx, number, bitmap);
        (start, len)
    }

    /// Frees `count` blocks from `start` on, which `owner` has. They can be had again when the
    /// transaction is durable. Blocks of a group whose bitmap is damaged are left as they are, as
    /// Linux does: e2fsck finds them.
    ///
    /// Takes the locks of the groups, all at a time. A transaction needs credits for a bitmap and
    /// a descriptor's block for each group that the run lies in, and the superblock.
    ///
    /// # Errors
    /// `Corrupt`, and then nothing was freed, if the blocks are not all there, one belongs to the
    /// file system itself or to another file, or one is not in use; `Io`.
    pub(crate) fn free(
        &self,
        instance: &Instance,
        tx: &mut impl Sink,
        owner: BlockOwner,
        start: BlockNo,
        count: u32,
    ) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.check_owner(instance, owner, start, count)?;
        let (pieces, mut guards) = self.lock_used(instance, owner.inode(), start, count)?;
        let mut changed = Vec::with_capacity(pieces.len());
        for (piece, guard) in pieces.iter().zip(&mut guards) {
            let Some(blocks) = guard.blocks_mut() else {
                continue;
            };
            let freed = bitmap::clear_range(&mut blocks.bits, piece.first..piece.end);
            blocks.is_dirty = true;
            blocks.pending += freed;
            let desc = &mut guard.desc;
            desc.set_free_clusters(desc.free_clusters().saturating_add(freed));
            changed.push((piece, desc.block_bitmap()));
            self.mark_dirty(guard, piece.group);
        }
        drop(guards);
        for (piece, bitmap) in changed {
            self.defer(tx, piece.group, bitmap);
            let first = self.superblock.first_block_of_group(piece.group).0;
            let run = first + u64::from(piece.first)..first + u64::from(piece.end);
            self.owners.forget([run.clone()]);
            self.with_pending(|pending| pending.add_blocks(tx.tid(), run));
        }
        #[cfg(any(test, feature = "mutants"))]
        if self
            .reuses_at_once
            .load(pagefence_lock_order::primitives::atomic::Ordering::Acquire)
        {
            self.committed(tx.tid(), |_, _| ());
        }
        Ok(())
    }

    /// Makes sure that blocks which `owner` claims are in use, and not the file system's own: they
    /// may be written to, and [`Self::free`] won't refuse them. No group may be locked.
    ///
    /// # Errors
    /// As [`Self::free`].
    pub(crate) fn check_in_use(
        &self,
        instance: &Instance,
        owner: BlockOwner,
        start: BlockNo,
        count: u32,
    ) -> Result<()> {
        self.check_owner(instance, owner, start, count)?;
        self.lock_used(instance, owner.inode(), start, count)
            .map(drop)
    }

    /// Makes sure that data of `inode` may be written to blocks which it claims: as
    /// [`Self::check_in_use`]; and they are its own from now on. A bitmap that can't be read says
    /// nothing, and is no reason to lose the data. No group may be locked.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn claim_in_use(
        &self,
        instance: &Instance,
        inode: InodeNo,
        start: BlockNo,
        count: u32,
    ) -> Result<()> {
        match self.lock_used(instance, inode, start, count).map(drop) {
            Ok(()) | Err(Error::Io(_)) => {}
            Err(error) => return Err(error),
        }
        self.claim(instance, BlockOwner::Contents(inode), start, count)
    }

    /// Makes sure that a block of metadata which `owner` claims is no other's; it is its own from now on.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn claim_metadata(
        &self,
        instance: &Instance,
        owner: BlockOwner,
        block: BlockNo,
    ) -> Result<()> {
        self.claim(instance, owner, block, 1)
    }

    /// What a buffer of `owner`'s has noted as its owner ([`Buffer::set_owner`]), asked for before the
    /// block is claimed; another number means that it has to be claimed.
    ///
    /// [`Buffer::set_owner`]: pagefence_block_io::Buffer::set_owner
    pub(crate) fn owner_note(&self, owner: BlockOwner) -> u64 {
        self.owners.note(owner)
    }

    /// Blocks that go from one inode to another, neither of which reads or writes them meanwhile: whose
    /// they are is learnt anew.
    pub(crate) fn forget_owners(&self, runs: impl IntoIterator<Item = (BlockNo, u32)>) {
        let runs = runs.into_iter();
        self.owners
            .forget(runs.map(|(start, count)| blocks_of(start, count)));
    }

    fn claim(
        &self,
        instance: &Instance,
        owner: BlockOwner,
        start: BlockNo,
        count: u32,
    ) -> Result<()> {
        self.owners
            .claim(owner, blocks_of(start, count))
            .map_err(|taken| owned_by_another(instance, owner, taken))
    }

    /// Makes sure that none of these blocks is known to be another's.
    fn check_owner(
        &self,
        instance: &Instance,
        owner: BlockOwner,
        start: BlockNo,
        count: u32,
    ) -> Result<()> {
        self.owners
            .check(owner, blocks_of(start, count))
            .map_err(|taken| owned_by_another(instance, owner, taken))
    }

    /// The pieces of a run of blocks that `inode` owns, and the locks of their groups; all of them
    /// are in use.
    fn lock_used(
        &self,
        instance: &Instance,
        inode: InodeNo,
        start: BlockNo,
        count: u32,
    ) -> Result<(Vec<Piece>, Vec<GroupGuard<'_>>)> {
        let refuse = |at: BlockNo, what: &str| Err(instance.damaged(inode, Some(at), what));
        if !instance.limits.contains(start, count) {
            return refuse(start, "it owns blocks outside the file system");
        }
        if self.zones.overlap(start, count) {
            return refuse(start, "it owns blocks of the file system itself");
        }
        let pieces = pieces(instance, inode, start, count)?;
        let guards = self.lock_pieces(instance, &pieces)?;
        for (piece, guard) in pieces.iter().zip(&guards) {
            if let Bits::Loaded(blocks) = &guard.blocks
                && let Some(bit) = bitmap::next_zero(&blocks.bits, piece.first..piece.end)
            {
                let first = self.superblock.first_block_of_group(piece.group);
                drop(guards);
                let at = BlockNo(first.0 + u64::from(bit));
                return refuse(at, "it owns a block that is free");
            }
        }
        Ok((pieces, guards))
    }

    /// Locks the groups of all pieces, their bitmaps in memory or damaged.
    fn lock_pieces(&self, instance: &Instance, pieces: &[Piece]) -> Result<Vec<GroupGuard<'_>>> {
        let mut pinned = 0;
        let loaded = pieces.iter().try_for_each(|piece| {
            self.lock_with_blocks(instance, piece.group)?.pins += 1;
            pinned += 1;
            Ok(())
        });
        // Ascending, as locks of one level are to be taken.
        let guards: Vec<_> = pieces
            .iter()
            .take(pinned)
            .map(|piece| {
                let mut guard = self.lock(piece.group);
                guard.pins -= 1;
                guard
            })
            .collect();
        loaded.map(|()| guards)
    }
}

fn blocks_of(start: BlockNo, count: u32) -> Range<u64> {
    start.0..start.0.saturating_add(count.into())
}

fn owned_by_another(instance: &Instance, owner: BlockOwner, taken: Taken) -> Error {
    let what = format_args!("it owns a block of {}", taken.by);
    instance.damaged(owner.inode(), Some(BlockNo(taken.block)), what)
}
