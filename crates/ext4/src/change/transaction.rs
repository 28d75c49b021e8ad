//! Changes to metadata that belong together, gathered in memory.
//!
//! A changed block is kept by the buffer cache of the [`Instance`], pinned, so that everything
//! that reads metadata through the instance sees the change at once. A transaction that is
//! dropped takes its changes back; [`super::Store::commit`] makes them durable as a whole.

use std::collections::VecDeque;
use std::marker::PhantomData;

use hashbrown::{HashMap, HashSet};
use pagefence_block_io::{Buffer, DeviceError};
use pagefence_ext4_format::group_desc::GroupDesc;
use pagefence_ext4_format::inode::Inode as InodeRecord;
use pagefence_ext4_format::superblock::{SUPERBLOCK_OFFSET, Superblock};
use pagefence_ext4_format::{BlockNo, GroupNo, InodeNo};
use pagefence_jbd2::{Handle, Turn};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Error, Result};

use crate::alloc::{Allocator, BlockOwner, BusyRun, Claim, Reach, Reservation, Sink};
use crate::change::free_blocks::free_blocks;
use crate::change::space::Space;
use crate::error::{At, device};
use crate::instance::Instance;
use crate::live::Live;

mod prepare;

/// Changes that belong together. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Transaction<'a> {
    pub(crate) instance: &'a Instance,
    backend: Backend<'a>,
}

/// Who keeps the changes.
#[derive(Debug)]
enum Backend<'a> {
    Gathered(Gathered<'a>),
    Running(Running<'a>),
}

/// Changes that are part of the journal's running transaction, one handle's worth.
#[derive(Debug)]
struct Running<'a> {
    live: &'a Live,
    record: Recording<'a>,
    /// Blocks for metadata that it may take.
    reservation: Reservation,
    /// Blocks for metadata that were found, and where they may lie ([`Transaction::prepare`]).
    prepared: VecDeque<BusyRun>,
    prepared_reach: Reach,
}

/// A journal handle that knows whether anything was changed through it. The allocator has a block
/// deferred whenever it changes something, and only then: what it refuses costs nothing.
#[derive(Debug)]
pub(crate) struct Recording<'a> {
    handle: Handle<'a>,
    /// Something was changed, and it has not ended well so far.
    is_half_done: bool,
    /// Counts what was changed ([`Transaction::changes`]).
    changes: u64,
}

impl Recording<'_> {
    fn note_change(&mut self) {
        self.is_half_done = true;
        self.changes += 1;
    }
}

impl Sink for Recording<'_> {
    fn tid(&self) -> u64 {
        self.handle.tid().0
    }

    fn defer(&mut self, block: BlockNo) {
        self.note_change();
        self.handle.defer(block);
    }
}

/// Shows that the file system is not mounted yet: changes are gathered, and no file has pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recovering<'a>(PhantomData<&'a Instance>);

/// Credits below which a handle asks for more.
const CREDITS_LOW: u32 = 32;

/// Changes gathered in memory, to be written as a whole: while the file system is being mounted.
#[derive(Debug)]
struct Gathered<'a> {
    /// The superblock as it will be; written if it differs from what it was.
    superblock: Superblock,
    superblock_before: Superblock,
    changed: HashMap<BlockNo, Arc<Buffer>>,
    /// Those of `changed` that say what is free.
    allocation: HashSet<BlockNo>,
    blocks_max: usize,
    space: &'a Space,
}

/// What a transaction changed, to be written.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Ascending.
    pub(crate) blocks: Vec<(BlockNo, Arc<Buffer>)>,
    /// Those of `blocks` that say what is free: bitmaps and descriptors.
    pub(crate) allocation: HashSet<BlockNo>,
    /// The superblock as it is then, and the block that holds it.
    pub(crate) superblock: Superblock,
}

impl<'a> Transaction<'a> {
    /// A gathered transaction without changes, of at most about `blocks_max` blocks
    /// ([`Self::is_large`]).
    pub(crate) fn gathered(
        instance: &'a Instance,
        superblock: &Superblock,
        blocks_max: usize,
        space: &'a Space,
    ) -> Self {
        Self {
            instance,
            backend: Backend::Gathered(Gathered {
                superblock: superblock.clone(),
                superblock_before: superblock.clone(),
                changed: HashMap::new(),
                allocation: HashSet::new(),
                blocks_max,
                space,
            }),
        }
    }

    /// A transaction through a journal handle, for blocks of `reservation`.
    pub(crate) fn live(
        instance: &'a Instance,
        live: &'a Live,
        handle: Handle<'a>,
        reservation: Reservation,
    ) -> Self {
        Self {
            instance,
            backend: Backend::Running(Running {
                live,
                record: Recording {
                    handle,
                    is_half_done: false,
                    changes: 0,
                },
                reservation,
                prepared: VecDeque::new(),
                prepared_reach: Reach::Everywhere,
            }),
        }
    }

    /// Ends it where the file system is sound. One that has changed something and is dropped
    /// otherwise aborts the journal: half of an operation must not become durable.
    pub(crate) fn end(mut self) {
        if let Backend::Running(running) = &mut self.backend {
            running.record.is_half_done = false;
        }
    }

    /// Has what it changed committed soon after its end.
    pub(crate) fn sync(&mut self) {
        if let Backend::Running(running) = &mut self.backend {
            running.record.handle.sync();
        }
    }

    /// Makes a block part of it whose contents are given when the transaction is sealed.
    pub(crate) fn defer(&mut self, block: BlockNo) {
        if let Backend::Running(running) = &mut self.backend {
            running.record.defer(block);
        }
    }

    /// Adds to the blocks that a live one may take for metadata.
    pub(crate) fn lend(&mut self, space: Reservation) {
        if let Backend::Running(running) = &mut self.backend {
            running.reservation.join(space);
        }
    }

    /// What is left of the blocks that a live one may take for metadata, taken from it.
    pub(crate) fn take_rest(&mut self) -> Option<Reservation> {
        match &mut self.backend {
            Backend::Gathered(_) => None,
            Backend::Running(running) => {
                running.unprepare();
                let blocks = running.reservation.blocks();
                running.reservation.take(blocks)
            }
        }
    }

    /// The allocator of a live one, and what records its changes.
    pub(crate) fn allocation(&mut self) -> Option<(&'a Allocator, &mut Recording<'a>)> {
        match &mut self.backend {
            Backend::Gathered(_) => None,
            Backend::Running(running) => Some((&*running.live.allocator, &mut running.record)),
        }
    }

    /// Blocks for metadata that a live one has left to take; 0 for a gathered one, which takes
    /// what is free.
    pub(crate) fn blocks_left(&self) -> u64 {
        match &self.backend {
            Backend::Gathered(_) => 0,
            Backend::Running(running) => {
                running.reservation.blocks() + running.prepared.len() as u64
            }
        }
    }

    /// Whether it is part of the journal's running transaction.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.backend, Backend::Running(_))
    }

    /// That the file system is not mounted yet, if this is a gathered one.
    pub(crate) fn recovering(&self) -> Option<Recovering<'a>> {
        match &self.backend {
            Backend::Gathered(_) => Some(Recovering(PhantomData)),
            Backend::Running(_) => None,
        }
    }

    /// Whether it should end at the next sound state: there is room for a few more blocks only.
    pub(crate) fn is_large(&mut self) -> bool {
        match &mut self.backend {
            Backend::Gathered(gathered) => gathered.changed.len() >= gathered.blocks_max,
            Backend::Running(running) => {
                running.record.handle.credits() < CREDITS_LOW
                    && !running.record.handle.extend(CREDITS_LOW)
            }
        }
    }

    /// The number of the transaction in the journal; 0 for a gathered one.
    pub(crate) fn tid(&self) -> u64 {
        match &self.backend {
            Backend::Gathered(_) => 0,
            Backend::Running(running) => running.record.handle.tid().0,
        }
    }

    /// Whether nothing is changed.
    pub(crate) fn is_empty(&self) -> bool {
        match &self.backend {
            Backend::Gathered(gathered) => gathered.changed.is_empty(),
            Backend::Running(running) => !running.record.is_half_done,
        }
    }

    /// Changes a block of metadata.
    ///
    /// # Errors
    /// `Corrupt` if there is no such block; `Io`; what `edit` returns, and then nothing changed.
    pub(crate) fn change<T>(
        &mut self,
        block: BlockNo,
        edit: impl FnOnce(&mut [u8]) -> Result<T>,
    ) -> Result<T> {
        let instance = self.instance;
        match &mut self.backend {
            Backend::Gathered(gathered) => gathered.change(instance, block, edit),
            Backend::Running(running) => {
                instance.check_block(block)?;
                let done = running
                    .record
                    .handle
                    .change(block, |bytes| edit(bytes).map_err(EditError))
                    .map_err(|EditError(error)| error)?;
                running.record.note_change();
                Ok(done)
            }
        }
    }

    /// Makes `bytes` the contents of a block that was free until now.
    pub(crate) fn set(&mut self, block: BlockNo, bytes: &[u8]) {
        match &mut self.backend {
            Backend::Gathered(gathered) => {
                let buffer = self.instance.buffers.replace(block.0, bytes);
                gathered.changed.insert(block, buffer);
            }
            Backend::Running(running) => {
                running.record.note_change();
                running.record.handle.set(block, bytes);
            }
        }
    }

    /// Says when a block that was changed is written where there is no log
    /// ([`Handle::take_turn`]).
    pub(crate) fn take_turn(&mut self, block: BlockNo, turn: Turn) {
        if let Backend::Running(running) = &mut self.backend {
            running.record.handle.take_turn(block, turn);
        }
    }

    /// A free block to be written instead of `block`, of `inode`, half of whose contents move: where
    /// a crash may show what it is now beside what is made of others. Nothing if it may as well be
    /// changed; or if there is no free block, not even of those that are kept for maps.
    pub(crate) fn replacement(&mut self, inode: InodeNo, block: BlockNo) -> Option<BlockNo> {
        let Backend::Running(running) = &mut self.backend else {
            return None;
        };
        if !running.record.handle.may_come_back(block) {
            return None;
        }
        let spare = running.live.allocator.reserve(1, Claim::Map).ok()?;
        running.reservation.join(spare);
        let owner = BlockOwner::Map(inode);
        self.allocate(owner, block, Reach::Everywhere).ok()
    }

    /// Lets go of a block that became free: its contents need not be written.
    pub(crate) fn forget(&mut self, block: BlockNo) {
        match &mut self.backend {
            Backend::Gathered(gathered) => {
                if gathered.changed.remove(&block).is_some() {
                    self.instance.buffers.invalidate(block.0);
                }
            }
            Backend::Running(running) => running.record.handle.forget(block),
        }
    }

    /// Takes a free block for `owner`, near `goal`. A live one finds none outside `reach`; a
    /// gathered one may.
    ///
    /// # Errors
    /// `NoSpace`, or `Io` of the kind `StorageFull`, if there is none; `Corrupt`.
    pub(crate) fn allocate(
        &mut self,
        owner: BlockOwner,
        goal: BlockNo,
        reach: Reach,
    ) -> Result<BlockNo> {
        match &mut self.backend {
            Backend::Gathered(gathered) => {
                let space = gathered.space;
                space.allocate(self, owner.inode(), goal)
            }
            Backend::Running(running) => {
                let allocator = &running.live.allocator;
                let prepared = match running.prepared_reach == reach {
                    true => running.prepared.pop_front(),
                    false => None,
                };
                let run = match prepared {
                    Some(run) => run,
                    None => {
                        let space = &mut running.reservation;
                        allocator.allocate_within(self.instance, goal, reach, 1, space)?
                    }
                };
                let (block, _) = allocator.use_run(&mut running.record, owner, run);
                Ok(block)
            }
        }
    }

    /// Gives back a block that mapped blocks of `inode`.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn release(&mut self, inode: InodeNo, block: BlockNo) -> Result<()> {
        match &mut self.backend {
            Backend::Gathered(gathered) => {
                let space = gathered.space;
                space.mark(self, inode, block, 1, false)
            }
            Backend::Running(_) => free_blocks(self, BlockOwner::Map(inode), block, 1),
        }
    }

    /// Makes sure that blocks of a file are none of the file system's own.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn check_owned(&self, inode: InodeNo, start: BlockNo, count: u32) -> Result<()> {
        match &self.backend {
            Backend::Gathered(gathered) => gathered.space.check(self.instance, inode, start, count),
            Backend::Running(_) => self.instance.check_owned(inode, start, count),
        }
    }

    /// Counts blocks that became free, or are free no more.
    pub(crate) fn count_free_blocks(&mut self, more: i64) {
        match &mut self.backend {
            Backend::Gathered(gathered) => {
                let superblock = &mut gathered.superblock;
                let free = superblock.free_blocks_count().saturating_add_signed(more);
                superblock.set_free_blocks_count(free.min(superblock.blocks_count()));
            }
            // The allocator counts.
            Backend::Running(_) => {}
        }
    }

    /// Counts inodes that became free, or are free no more.
    pub(crate) fn count_free_inodes(&mut self, more: i32) {
        match &mut self.backend {
            Backend::Gathered(gathered) => {
                let superblock = &mut gathered.superblock;
                let free = superblock.free_inodes_count().saturating_add_signed(more);
                superblock.set_free_inodes_count(free.min(superblock.inodes_count()));
            }
            // The allocator counts.
            Backend::Running(_) => {}
        }
    }

    /// Sets the head of the list of orphans.
    pub(crate) fn set_last_orphan(&mut self, inode: Option<InodeNo>) {
        match &mut self.backend {
            Backend::Gathered(gathered) => gathered.superblock.set_last_orphan(inode),
            Backend::Running(running) => {
                let live = running.live;
                live.set_last_orphan(self, inode);
            }
        }
    }

    /// Changes a block that says what is free.
    pub(crate) fn change_allocation<T>(
        &mut self,
        block: BlockNo,
        edit: impl FnOnce(&mut [u8]) -> Result<T>,
    ) -> Result<T> {
        let result = self.change(block, edit)?;
        match &mut self.backend {
            Backend::Gathered(gathered) => {
                gathered.allocation.insert(block);
            }
            // Bitmaps and descriptors are the allocator's to write.
            Backend::Running(_) => debug_assert!(false, "the allocator was passed by"),
        }
        Ok(result)
    }

    /// Writes an inode's record, with its checksum.
    pub(crate) fn write_inode(&mut self, record: &mut InodeRecord) -> Result<()> {
        let instance = self.instance;
        let (block, offset) = instance.inode_block(record.ino())?;
        record.update_checksum();
        self.change(block, |bytes| {
            let place = bytes.get_mut(offset..).unwrap_or_default();
            record
                .write_to(place)
                .at(&instance.damage, Some(record.ino()), Some(block))
        })
    }

    /// Changes a group's descriptor, and refreshes its checksum.
    pub(crate) fn change_group(
        &mut self,
        group: GroupNo,
        edit: impl FnOnce(&mut GroupDesc),
    ) -> Result<()> {
        let instance = self.instance;
        let superblock = &instance.superblock;
        let mut desc = instance.group_desc(group)?;
        edit(&mut desc);
        desc.update_checksum(superblock);
        let (index, offset) =
            superblock
                .locate_descriptor(group)
                .at(&instance.damage, None, None)?;
        let block = superblock
            .descriptor_block(index)
            .at(&instance.damage, None, None)?;
        self.change_allocation(block, |bytes| {
            desc.write_to(bytes.get_mut(offset..).unwrap_or_default())
                .at(&instance.damage, None, Some(block))
        })
    }

    /// What a gathered transaction changed, the superblock included.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn finish(mut self) -> Result<Changes> {
        let instance = self.instance;
        let Backend::Gathered(gathered) = &mut self.backend else {
            return Err(Error::ReadOnly);
        };
        if gathered.superblock != gathered.superblock_before {
            gathered.superblock.update_checksum();
            let superblock = gathered.superblock.clone();
            let block_size = u64::from(superblock.block_size());
            let offset = usize::try_from(SUPERBLOCK_OFFSET % block_size).unwrap_or(0);
            gathered.change(instance, superblock.superblock_block(), |bytes| {
                for (to, from) in bytes.iter_mut().skip(offset).zip(superblock.as_bytes()) {
                    *to = *from;
                }
                Ok(())
            })?;
        }
        let mut blocks: Vec<_> = gathered.changed.drain().collect();
        blocks.sort_by_key(|(block, _)| *block);
        Ok(Changes {
            blocks,
            allocation: std::mem::take(&mut gathered.allocation),
            superblock: gathered.superblock.clone(),
        })
    }
}

impl Gathered<'_> {
    fn change<T>(
        &mut self,
        instance: &Instance,
        block: BlockNo,
        edit: impl FnOnce(&mut [u8]) -> Result<T>,
    ) -> Result<T> {
        let before = instance.read_block(block)?;
        let mut bytes = before.to_vec();
        let result = edit(&mut bytes)?;
        let buffer = instance.buffers.replace(block.0, &bytes);
        self.changed.insert(block, buffer);
        Ok(result)
    }
}

/// An error of a change, which may be the device's.
struct EditError(Error);

impl From<DeviceError> for EditError {
    fn from(error: DeviceError) -> Self {
        Self(device(error))
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        match &mut self.backend {
            Backend::Gathered(gathered) => {
                for (block, _) in gathered.changed.drain() {
                    self.instance.buffers.invalidate(block.0);
                }
            }
            Backend::Running(running) if running.record.is_half_done => {
                tracing::error!("an operation failed half way: the journal is aborted");
                running.live.abort_half_done();
            }
            Backend::Running(_) => {}
        }
    }
}
