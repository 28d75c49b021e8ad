//! One group in memory: its descriptor and its bitmaps as the running transaction has them, and
//! the index of what can be had of it.

use std::ops::{Deref, DerefMut};

use pagefence_ext4_format::bitmap;
use pagefence_ext4_format::group_desc::{GroupDesc, GroupFlags};
use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::{BlockNo, GroupNo};
use pagefence_lock_order::levels::{self, Counters};
use pagefence_lock_order::primitives::{Mutex, MutexGuard};
use pagefence_lock_order::rank::{self, RankGuard};
use pagefence_vfs::{Error, Result};

use crate::alloc::Allocator;
use crate::alloc::free_runs::FreeRuns;
use crate::alloc::summary::Summary;
use crate::change::free_blocks::verified_bitmap;
use crate::error::{At, place};
use crate::instance::Instance;

/// Groups that are looked at for one to be dropped from memory, at most, for each that comes.
const DROP_TRIES: usize = 8;

/// A group: its state, and where its descriptor lies.
#[derive(Debug)]
pub(super) struct Group {
    number: GroupNo,
    /// Block of its descriptor, and the offset there.
    home: BlockNo,
    offset: usize,
    state: Mutex<GroupState>,
}

/// What is known of a bitmap.
#[derive(Debug)]
pub(super) enum Bits<T> {
    /// It was not read, or is not in memory any more.
    Absent,
    /// It can't be believed: the group is left alone.
    Damaged,
    Loaded(Box<T>),
}

/// What the lock of a group guards.
#[derive(Debug)]
pub(super) struct GroupState {
    /// Counts and flags are current; checksums are as of the last seal.
    pub(super) desc: GroupDesc,
    /// Whether it is on the allocator's list of groups to be sealed.
    pub(super) is_dirty: bool,
    pub(super) blocks: Bits<BlockBits>,
    pub(super) inodes: Bits<InodeBits>,
    /// The longest free run, if the block bitmap was in memory once.
    longest: Option<u32>,
    /// Blocks that are free by the bitmap and are not to be had: the room for descriptors to
    /// come, on some file systems.
    excluded: u32,
    /// Changes when a bitmap is dropped from memory: what was read before may be old.
    stamp: u64,
    is_resident: bool,
    /// Threads that need the block bitmap in memory when they have locked other groups too.
    pub(super) pins: u32,
    /// Asked for since it was last considered to be dropped.
    is_recent: bool,
}

/// A block bitmap in memory.
#[derive(Debug)]
pub(super) struct BlockBits {
    /// As of the running transaction.
    pub(super) bits: Vec<u8>,
    /// Whether they were changed since they were last sealed.
    pub(super) is_dirty: bool,
    pub(super) index: FreeRuns,
    /// Blocks neither in use nor in the index: found for somebody.
    pub(super) busy: u32,
    /// Blocks neither in use nor in the index: freed by what is not durable.
    pub(super) pending: u32,
}

/// An inode bitmap in memory.
#[derive(Debug)]
pub(super) struct InodeBits {
    /// As of the running transaction.
    pub(super) bits: Vec<u8>,
    /// Whether they were changed since they were last sealed.
    pub(super) is_dirty: bool,
    /// Those in use, reserved, or freed by what is not durable: not to be had.
    pub(super) taken: Vec<u8>,
    /// Those of `taken`, and such as were freed a short time ago: to be had if all else is gone.
    pub(super) avoided: Vec<u8>,
    /// Inodes not in `taken`.
    pub(super) available: u32,
    /// Inodes of `taken` that wait for a commit.
    pub(super) pending: u32,
}

/// The lock of a group; its numbers are published when it is given up.
#[derive(Debug)]
pub(super) struct GroupGuard<'a> {
    state: MutexGuard<'a, GroupState>,
    summary: &'a Summary,
    _rank: RankGuard,
}

impl Group {
    /// The group of `desc`, which lies at `offset` in block `home`. Nothing is allocated in a
    /// group whose counts are not `sound`.
    pub(super) fn new(desc: GroupDesc, sound: bool, home: BlockNo, offset: usize) -> Self {
        fn of<T>(sound: bool) -> Bits<T> {
            if sound { Bits::Absent } else { Bits::Damaged }
        }
        let state = GroupState {
            is_dirty: false,
            blocks: of(sound),
            inodes: of(sound),
            longest: None,
            excluded: 0,
            stamp: 0,
            is_resident: false,
            pins: 0,
            is_recent: false,
            desc,
        };
        Self {
            number: state.desc.group(),
            home,
            offset,
            state: Mutex::new(state),
        }
    }

    /// Takes the group's lock, of the level Group; `summary` is the group's.
    pub(super) fn lock<'a>(&'a self, summary: &'a Summary) -> GroupGuard<'a> {
        let rank = rank::enter::<levels::Group>(u64::from(self.number.0));
        GroupGuard {
            state: self.state.lock(),
            summary,
            _rank: rank,
        }
    }

    /// Block of its descriptor.
    pub(super) fn home(&self) -> BlockNo {
        self.home
    }

    /// Offset of its descriptor in that block.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }
}

impl Deref for GroupGuard<'_> {
    type Target = GroupState;
    fn deref(&self) -> &GroupState {
        &self.state
    }
}

impl DerefMut for GroupGuard<'_> {
    fn deref_mut(&mut self) -> &mut GroupState {
        &mut self.state
    }
}

impl Drop for GroupGuard<'_> {
    fn drop(&mut self) {
        self.summary.publish(&self.state);
    }
}

impl GroupState {
    /// The longest free run when the block bitmap was in memory last; it has not changed since.
    pub(super) fn longest_known(&self) -> Option<u32> {
        self.longest
    }

    /// Blocks that are free by the bitmap and are not to be had.
    pub(super) fn excluded(&self) -> u32 {
        self.excluded
    }

    /// The block bitmap, unless it is not in memory.
    pub(super) fn blocks_mut(&mut self) -> Option<&mut BlockBits> {
        match &mut self.blocks {
            Bits::Loaded(blocks) => Some(blocks),
            Bits::Absent | Bits::Damaged => None,
        }
    }

    /// The inode bitmap, unless it is not in memory.
    pub(super) fn inodes_mut(&mut self) -> Option<&mut InodeBits> {
        match &mut self.inodes {
            Bits::Loaded(inodes) => Some(inodes),
            Bits::Absent | Bits::Damaged => None,
        }
    }

    /// Drops the bitmaps that nothing but memory would lose; whether none is left.
    fn drop_bitmaps(&mut self) -> bool {
        if let Bits::Loaded(blocks) = &self.blocks
            && self.pins == 0
            && !blocks.is_dirty
            && blocks.busy == 0
            && blocks.pending == 0
        {
            self.longest = Some(blocks.index.longest());
            self.blocks = Bits::Absent;
            self.stamp += 1;
        }
        if let Bits::Loaded(inodes) = &self.inodes
            && !inodes.is_dirty
            && inodes.pending == 0
        {
            self.inodes = Bits::Absent;
            self.stamp += 1;
        }
        !matches!(self.blocks, Bits::Loaded(_)) && !matches!(self.inodes, Bits::Loaded(_))
    }
}

impl<T> Bits<T> {
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl Allocator {
    /// Blocks of a group turned out not to be there.
    fn lose(&self, number: GroupNo, blocks: u32) {
        if let Some(low) = self.low_blocks(number) {
            low.lose(blocks.into());
        }
        self.counts.lose(blocks.into());
    }

    /// Locks a group with its block bitmap in memory, or known to be damaged. Reads it, with no
    /// lock held, if need be; no group may be locked.
    ///
    /// # Errors
    /// `Io`. Damage is logged, and is no error.
    pub(super) fn lock_with_blocks(
        &self,
        instance: &Instance,
        number: GroupNo,
    ) -> Result<GroupGuard<'_>> {
        loop {
            let mut guard = self.lock_to_load(number, |state| state.blocks.is_absent());
            if !guard.blocks.is_absent() {
                return Ok(guard);
            }
            let (stamp, desc) = (guard.stamp, guard.desc.clone());
            drop(guard);
            let loaded = self.read_blocks(instance, &desc);
            guard = self.lock(number);
            if guard.stamp != stamp || !guard.blocks.is_absent() {
                continue;
            }
            match loaded {
                Ok(blocks) => {
                    let excluded = desc.free_clusters() - blocks.index.free();
                    let before = std::mem::replace(&mut guard.excluded, excluded);
                    guard.blocks = Bits::Loaded(Box::new(blocks));
                    self.note_resident(&mut guard);
                    if excluded > before {
                        self.lose(number, excluded - before);
                    }
                }
                Err(Error::Corrupt { .. }) => {
                    guard.blocks = Bits::Damaged;
                    let free = desc.free_clusters().saturating_sub(guard.excluded);
                    self.lose(number, free);
                }
                Err(error) => return Err(error),
            }
            return Ok(guard);
        }
    }

    /// As [`Self::lock_with_blocks`], with the inode bitmap.
    pub(super) fn lock_with_inodes(
        &self,
        instance: &Instance,
        number: GroupNo,
    ) -> Result<GroupGuard<'_>> {
        loop {
            let mut guard = self.lock_to_load(number, |state| state.inodes.is_absent());
            if !guard.inodes.is_absent() {
                return Ok(guard);
            }
            let (stamp, desc) = (guard.stamp, guard.desc.clone());
            drop(guard);
            let loaded = self.read_inodes(instance, &desc);
            guard = self.lock(number);
            if guard.stamp != stamp || !guard.inodes.is_absent() {
                continue;
            }
            match loaded {
                Ok(inodes) => {
                    guard.inodes = Bits::Loaded(Box::new(inodes));
                    self.note_resident(&mut guard);
                }
                Err(Error::Corrupt { .. }) => guard.inodes = Bits::Damaged,
                Err(error) => return Err(error),
            }
            return Ok(guard);
        }
    }

    /// The block bitmap of a group that was not changed since it was sealed.
    fn read_blocks(&self, instance: &Instance, desc: &GroupDesc) -> Result<BlockBits> {
        let superblock = &self.superblock;
        let number = desc.group();
        let bits = if desc.flags(superblock).contains(GroupFlags::BLOCK_UNINIT) {
            // The groups of a flex group hold each other's metadata.
            let per_flex = superblock.groups_per_flex();
            let first = number.0 / per_flex * per_flex;
            let descs = (first..first.saturating_add(per_flex).min(superblock.group_count()))
                .map(|group| instance.group_desc(GroupNo(group)))
                .collect::<Result<Vec<_>>>()?;
            bitmap::uninit_block_bitmap(number, &descs, superblock)
        } else {
            verified_bitmap(instance, desc)?.to_vec()
        };
        let damaged = |what: &str| {
            instance
                .damage
                .report(place(None, Some(desc.block_bitmap())), what)
        };
        let blocks = superblock.blocks_in_group(number);
        let mut index = FreeRuns::new(&bits, blocks);
        if index.free() != desc.free_clusters() {
            return Err(damaged(
                "the bitmap has not as many free blocks as the group's descriptor says",
            ));
        }
        let start = superblock.first_block_of_group(number);
        let to_come = superblock.reserved_descriptor_blocks(number);
        for run in bitmap::zero_runs(&bits, 0..blocks) {
            if !self
                .zones
                .overlap(BlockNo(start.0 + u64::from(run.start)), run.end - run.start)
            {
                continue;
            }
            for bit in run {
                let block = BlockNo(start.0 + u64::from(bit));
                if !self.zones.overlap(block, 1) {
                    continue;
                }
                // Only the room for descriptors to come may be free, and is left so.
                if !to_come.contains(&block) {
                    return Err(damaged("a block of the file system's own metadata is free"));
                }
                index.take(bit..bit + 1);
            }
        }
        Ok(BlockBits {
            bits,
            is_dirty: false,
            index,
            busy: 0,
            pending: 0,
        })
    }

    /// The inode bitmap of a group that was not changed since it was sealed.
    fn read_inodes(&self, instance: &Instance, desc: &GroupDesc) -> Result<InodeBits> {
        let superblock = &self.superblock;
        let bits = if desc.flags(superblock).contains(GroupFlags::INODE_UNINIT) {
            bitmap::uninit_inode_bitmap(superblock)
        } else {
            let block = desc.inode_bitmap();
            let buffer = instance.read_block(block)?;
            bitmap::verify_inode_bitmap(&buffer, desc, superblock).at(
                &instance.damage,
                None,
                Some(block),
            )?;
            buffer.to_vec()
        };
        let mut taken = bits.clone();
        taken.truncate((superblock.inodes_per_group() as usize).div_ceil(8));
        let first = superblock.first_inode().0.saturating_sub(1);
        bitmap::set_range(&mut taken, reserved_inodes(desc.group(), first, superblock));
        Ok(InodeBits {
            available: bitmap::count_zeros(&taken, 0..superblock.inodes_per_group()),
            avoided: taken.clone(),
            taken,
            bits,
            is_dirty: false,
            pending: 0,
        })
    }

    /// Locks a group, for a bitmap of it that may be `absent`: there is room for it then.
    fn lock_to_load(
        &self,
        number: GroupNo,
        absent: impl Fn(&GroupState) -> bool,
    ) -> GroupGuard<'_> {
        let mut guard = self.lock(number);
        guard.is_recent = true;
        if !absent(&guard) || !self.is_full() {
            return guard;
        }
        drop(guard);
        self.make_room(DROP_TRIES);
        self.lock(number)
    }

    fn is_full(&self) -> bool {
        let _rank = rank::enter::<Counters>(2);
        self.resident.lock().len() >= self.resident_max
    }

    /// Drops bitmaps of a commit, and others, until there are as many as there may be, or all were
    /// looked at. No group is locked.
    pub(super) fn shrink(&self) {
        let len = {
            let _rank = rank::enter::<Counters>(2);
            self.resident.lock().len()
        };
        if len > self.resident_max {
            self.make_room(len);
        }
    }

    /// Drops bitmaps that were not asked for lately, if there are too many. No group is locked.
    fn make_room(&self, tries: usize) {
        for _ in 0..tries {
            let oldest = {
                let _rank = rank::enter::<Counters>(2);
                let mut resident = self.resident.lock();
                if resident.len() < self.resident_max {
                    return;
                }
                resident.pop_front()
            };
            let Some(number) = oldest else { return };
            let mut guard = self.lock(number);
            if std::mem::take(&mut guard.is_recent) || !guard.drop_bitmaps() {
                let _rank = rank::enter::<Counters>(2);
                self.resident.lock().push_back(number);
            } else {
                guard.is_resident = false;
            }
        }
    }

    fn note_resident(&self, guard: &mut GroupGuard<'_>) {
        if !std::mem::replace(&mut guard.is_resident, true) {
            let _rank = rank::enter::<Counters>(2);
            self.resident.lock().push_back(guard.desc.group());
        }
    }
}

/// The inodes of a group, as bits of its bitmap, that are for no file.
fn reserved_inodes(group: GroupNo, first: u32, superblock: &Superblock) -> std::ops::Range<u32> {
    let before = group.0.saturating_mul(superblock.inodes_per_group());
    0..first
        .saturating_sub(before)
        .min(superblock.inodes_per_group())
}
