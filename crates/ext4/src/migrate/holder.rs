//! The temporary inode of a migration, which owns what has no other owner (S2.7, S2.11, RACES B6).
//!
//! It owns blocks as *data*, never a map of the file's data: first those of the new map; and from
//! the transaction on that puts the new map in place those of the old one. It is an orphan all
//! the time, so that wherever a crash comes, recovery, ours as any other, frees what it owns, once,
//! and no block of the file. What it owns changes in the same transaction as the file's map, and
//! that takes two inodes' records, however large the maps are.
//!
//! Without a journal those two records are not written at once. It becomes an orphan only when
//! the file's is on disk, so that no recovery frees what the file owns: e2fsck finds what is lost.

use pagefence_ext4_format::extent::{Extent, entries_that_fit};
use pagefence_ext4_format::inode::{FileKind as DiskKind, Inode as InodeRecord, InodeFlags};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_lock_order::Held;
use pagefence_lock_order::levels;
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Error, FileKind, Result};

use super::new_map::{ExtentTree, Root, nodes_for};
use super::node_writer::NodeWriter;
use super::old_map::nodes_of;
use crate::alloc::{BlockOwner, Claim, NewInode, Reach};
use crate::change::Transaction;
use crate::change::extent_tree::count_blocks;
use crate::change::inline_dir::init_map;
use crate::change::insert_blocks::{NewRun, insert_blocks};
use crate::clock;
use crate::disk_inode::DiskInode;
use crate::filesystem::FileSystem;
use crate::inode::Inode;
use crate::instance::Instance;
use crate::live::Need;
use crate::orphans;
use crate::unsound::Inside;

/// Making it: bitmap, descriptor, superblock, its record.
const MAKE: Need = Need {
    credits: 8 + orphans::CREDITS,
    blocks: 0,
    privileged: true,
};

/// A run of blocks for it: bitmap, descriptor and superblock, a node and its neighbour on each
/// level of its map, with bitmap and descriptor of each that is new.
const TAKE: Need = Need {
    credits: 40,
    blocks: 0,
    privileged: true,
};

/// Making it an orphan that owns something else.
const TURN: Need = Need {
    credits: 4 + orphans::CREDITS,
    blocks: 0,
    privileged: true,
};

/// The temporary inode.
#[derive(Debug)]
pub(crate) struct Holder {
    inode: Arc<Inode>,
    /// The blocks that it has as data, in their order in it.
    runs: Vec<(BlockNo, u32)>,
    count: u32,
    /// It is no orphan yet.
    unlisted: Option<Inside>,
}

impl Instance {
    fn extents_per_node(&self) -> u64 {
        entries_that_fit(self.superblock.block_size() as usize).into()
    }

    /// Blocks that a list of `blocks` blocks takes, made by [`Holder::list`].
    pub(super) fn nodes_of_list(&self, blocks: usize) -> u64 {
        nodes_for(blocks as u64, self.extents_per_node())
    }
}

impl Holder {
    /// Blocks that it has as data.
    pub(super) fn runs(&self) -> &[(BlockNo, u32)] {
        &self.runs
    }

    /// The blocks of its map.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(super) fn nodes(&self, instance: &Instance) -> Result<Vec<BlockNo>> {
        nodes_of(instance, &self.inode.disk())
    }

    /// Builds a map for it that has `blocks` as data, one by one, of blocks of `writer`: exactly
    /// [`Instance::nodes_of_list`] of them, which are told beforehand.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn list(
        &self,
        instance: &Instance,
        blocks: &[BlockNo],
        writer: &mut NodeWriter<'_>,
    ) -> Result<Root> {
        let seed = self.inode.disk().record.checksum_seed();
        let mut tree = ExtentTree::new(instance, seed);
        for (at, block) in (0..).zip(blocks) {
            let extent = Extent {
                first: FileBlock(at),
                len: 1,
                start: *block,
                unwritten: false,
            };
            tree.add(extent, writer)?;
        }
        tree.finish(writer)
    }

    /// Gives it another map, of `blocks` blocks, those of the map itself included. Nobody else
    /// knows the inode: its block map's lock is not needed.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, and then it has the map that it had.
    pub(super) fn turn(
        &self,
        transaction: &mut Transaction<'_>,
        root: &Root,
        blocks: u64,
    ) -> Result<()> {
        let before = self.inode.disk();
        let mut record = before.record.clone();
        record.block_area_mut().copy_from_slice(root);
        let sectors = i64::try_from(record.sectors()).unwrap_or(i64::MAX);
        let per_block = i64::from(transaction.instance.superblock.block_size() / 512);
        let more = i64::try_from(blocks).unwrap_or(i64::MAX) - sectors / per_block;
        count_blocks(transaction.instance, &mut record, more)?;
        self.inode.core.adopt(&before.record, &record);
        let written = self.inode.core.write(transaction, true);
        if written.is_err() {
            self.inode.core.adopt(&record, &before.record);
        }
        written
    }
}

impl FileSystem {
    /// Makes a temporary inode for the migration of `file`.
    ///
    /// # Errors
    /// `NoSpace` if no inode is free; `Corrupt`, `Io`, `ReadOnly`.
    pub(super) fn make_holder(
        &self,
        held: &mut Held<'_, levels::Inode>,
        file: &Inode,
    ) -> Result<Holder> {
        let instance = &self.instance;
        let live = instance.live()?;
        let unlisted = (!instance.has_log()).then(|| live.unsound.enter());
        let (mut transaction, _held) = instance.begin(held, MAKE)?;
        let Some((allocator, handle)) = transaction.allocation() else {
            return Err(Error::ReadOnly);
        };
        let request = NewInode {
            parent: file.core.number,
            is_directory: false,
            is_top_level: false,
            name: &[],
        };
        let new = allocator.new_inode(instance, handle, request)?;
        let superblock = &instance.superblock;
        let kind = DiskKind::Regular;
        let mut record = InodeRecord::create(new.number, superblock, kind, 0, new.generation);
        let owner = file.disk();
        record.set_uid(owner.record.uid());
        record.set_gid(owner.record.gid());
        let now = clock::now();
        record.set_atime(now);
        record.set_mtime(now);
        record.set_ctime(now);
        record.set_crtime(now);
        init_map(instance, &mut record);
        // What it owns is metadata: when it is freed, no replay may bring it back.
        record.set_flags(record.flags() | InodeFlags::JOURNAL_DATA);
        let disk = DiskInode {
            number: new.number,
            kind: FileKind::Regular,
            seed: record.checksum_seed(),
            record,
        };
        let load = || Ok::<_, Error>(Inode::new(disk.clone()));
        let inode = self.inodes.get_or_load(new.number, load)?;
        if unlisted.is_none() {
            // Nobody knows it: its inode lock is not needed.
            live.orphans.add(&mut transaction, &inode)?;
        } else {
            inode.core.write(&mut transaction, true)?;
        }
        transaction.end();
        Ok(Holder {
            inode,
            runs: Vec::new(),
            count: 0,
            unlisted,
        })
    }

    /// Takes `blocks` more blocks for the temporary inode, within `reach`.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, `Io`, `ReadOnly`; it owns what it has then.
    pub(super) fn take_blocks(
        &self,
        held: &mut Held<'_, levels::Inode>,
        file: &Arc<Inode>,
        holder: &mut Holder,
        blocks: u64,
        reach: Reach,
        claim: Claim,
    ) -> Result<()> {
        let instance = &self.instance;
        let live = instance.live()?;
        let total = u64::from(holder.count) + blocks;
        // Its last leaf splits off one entry when it is full: the others stay almost full.
        let for_map = 2 * nodes_for(total, instance.extents_per_node() - 1);
        let mut space = self.reserve_all(held, file, blocks + for_map, claim)?;
        let mut map_space = space.take(for_map);
        let mut goal = match holder.runs.last() {
            Some((start, len)) => BlockNo(start.0 + u64::from(*len)),
            None => live.allocator.data_goal(file.core.number, false),
        };
        let allocator = &live.allocator;
        while space.blocks() > 0 {
            let want = u32::try_from(space.blocks()).unwrap_or(u32::MAX);
            let run = allocator.allocate_within(instance, goal, reach, want, &mut space)?;
            let new = NewRun {
                first: FileBlock(holder.count),
                start: run.start(),
                len: run.len(),
                unwritten: false,
            };
            let (mut transaction, mut held) = instance.begin(held, TAKE)?;
            let core = &holder.inode.core;
            let (_map, _held) = core.block_map.write(&mut held);
            if let Some(space) = map_space.take() {
                transaction.lend(space);
            }
            let before = core.disk();
            let mut record = before.record.clone();
            insert_blocks(&mut transaction, &mut record, &new)?;
            if let Some((allocator, handle)) = transaction.allocation() {
                allocator.use_run(handle, BlockOwner::Contents(core.number), run);
            }
            core.adopt(&before.record, &record);
            core.write(&mut transaction, true)?;
            map_space = transaction.take_rest();
            transaction.end();
            goal = BlockNo(new.start.0 + u64::from(new.len));
            holder.runs.push((new.start, new.len));
            holder.count = holder.count.checked_add(new.len).ok_or(Error::NoSpace)?;
        }
        Ok(())
    }

    /// As [`Holder::turn`], in a transaction of its own, in which the inode becomes an orphan: for
    /// a file system without a journal, when the file's record is on disk.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `ReadOnly`.
    pub(super) fn turn_later(
        &self,
        held: &mut Held<'_, levels::Inode>,
        holder: &mut Holder,
        root: &Root,
        blocks: u64,
    ) -> Result<()> {
        let (mut transaction, _held) = self.instance.begin(held, TURN)?;
        holder.turn(&mut transaction, root, blocks)?;
        let orphans = &self.instance.live()?.orphans;
        orphans.add(&mut transaction, &holder.inode)?;
        transaction.end();
        holder.unlisted = None;
        Ok(())
    }

    /// Deletes the temporary inode of a migration, and with it frees what it owns, in as many
    /// transactions as it takes. No lock is held. What fails is left to the next mount.
    pub(crate) fn let_go(&self, holder: Option<Holder>) {
        let (Some(holder), Ok(live)) = (holder, self.instance.live()) else {
            return;
        };
        if holder.unlisted.is_some()
            && let Err(error) = self.make_orphan(&holder)
        {
            tracing::error!(%error, "what a migration took could not be freed: run e2fsck");
            return;
        }
        let number = holder.inode.core.number;
        drop(holder);
        live.orphans.forget(number);
        self.delete_due();
    }

    fn make_orphan(&self, holder: &Holder) -> Result<()> {
        let mut entry = Held::at_entry();
        let (mut transaction, _held) = self.instance.begin(&mut entry, TURN)?;
        let orphans = &self.instance.live()?.orphans;
        orphans.add(&mut transaction, &holder.inode)?;
        transaction.end();
        Ok(())
    }
}
