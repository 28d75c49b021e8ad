//! From a block map to an extent tree and back, while the file is in use (S2.1 to S2.13).
//!
//! ```text
//! inode lock (x)
//!   writeback of what is dirty
//!   writepages lock (x): nothing is in flight → block map (x): the flag is set
//!   block map (s), piece by piece: the old map is read, to count what the new one takes
//!   handles: a temporary inode, and blocks for it                                 holder
//!   block map (s), piece by piece: the old map is read again; the device: the new one
//!   writepages lock (x) → handle → block map (x): the flag is tested, the maps change places
//! nothing held: the temporary inode is deleted, and with it the old map
//! ```
//!
//! For a directory the same: nothing of it is delayed, and who reads it has the inode lock, shared,
//! over every look at its map, so that no block of that is freed and another's meanwhile.
//!
//! There is no fence: pages stay, and so does every block of data. Who stores through a mapping in
//! between reserves space as ever. If that is written back in between, the block map gets blocks
//! that the new one has not: whoever maps blocks clears the flag, under the block map's lock, and
//! the migration ends with `Again`, the file as it was. Between its two ends the lock of writeback
//! is free, so that a long migration delays no fsync (docs/adr/0013).
//!
//! Why it is right:
//! - *One owner for each block.* What belongs to no file belongs to the temporary inode, in every
//!   committed state ([`holder`]).
//! - *The new map is that of the moment of the swap.* The flag is set before the old map is read
//!   first, and tested in the critical section in which the maps change places; whatever changes
//!   the map in between holds the inode lock, or clears it.
//! - *No lookup spans two maps.* Each holds the block map's lock from the record to the block.
//! - *No writeback spans two maps.* It holds its lock from looking blocks up until they are mapped
//!   (RACES B7).
//! - *What is promised stays promised.* What delayed blocks take of the new map is reserved in the
//!   same section, before anything changes. That a hole becomes delayed meanwhile, or was when the
//!   old map was read, changes nothing in that map: only its being given a place does. None of them
//!   is on its way to one in that section: who brings it there holds the lock of writeback.

mod holder;
mod new_map;
mod node_writer;
mod old_map;
#[cfg(test)]
pub(crate) mod probe;
#[cfg(all(test, not(shuttle)))]
mod tests;

use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::features::Incompat;
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_lock_order::levels::{self, BlockMap, Level};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::{After, Held};
use pagefence_page_cache::{Mapping, WaitFor};
use pagefence_vfs::{Credentials, Error, FileKind, InodeId, MapFormat, Result};

pub(crate) use holder::Holder;

use crate::alloc::{Claim, Reach};
use crate::backing::FileData;
use crate::change::extent_tree::count_blocks;
use crate::clock;
use crate::delalloc::MapShapeNow;
use crate::disk_inode::DiskInode;
use crate::filesystem::FileSystem;
use crate::inode::{Inode, InodeCore};
use crate::live::Need;
use new_map::{Count, NewMap, NodeSink, Root};
use node_writer::NodeWriter;
use old_map::{Walk, sort_nodes};

/// Runs of the old map that are read under one hold of the block map's lock.
const PIECE: usize = 512;

/// The swap: two inodes' records.
const SWAP: Need = Need {
    credits: 4,
    blocks: 0,
    privileged: true,
};

/// The flag of a migration; it is clear when this is gone.
struct Flag<'a>(&'a InodeCore);

impl Drop for Flag<'_> {
    fn drop(&mut self) {
        self.0.end_migration();
    }
}

/// What the swap puts in place.
struct Built {
    to: MapFormat,
    root: Root,
    /// Blocks that the new map takes more than the old one.
    more: i64,
    /// What the temporary inode, if there is one, owns from then on.
    left: Option<Left>,
}

/// What a temporary inode is left with.
struct Left {
    /// Its map.
    root: Root,
    /// What that leads to: the blocks of the file's old map and of its own.
    listed: Vec<BlockNo>,
    /// How many these are, and those of the map itself.
    blocks: u64,
}

impl FileSystem {
    /// See [`pagefence_vfs::FileSystem::migrate`]. Takes the inode lock, and what the module's
    /// documentation says.
    pub(crate) fn migrate_inode(
        &self,
        id: InodeId,
        to: MapFormat,
        who: &Credentials,
    ) -> Result<()> {
        let inode = self.changeable_inode(id)?;
        let mut holder = None;
        let migrated = {
            let mut entry = Held::at_entry();
            let (_alone, mut held) = inode.lock.write(&mut entry);
            let flags = inode.disk().record.flags();
            if flags.contains(InodeFlags::IMMUTABLE) {
                return Err(Error::NotPermitted);
            }
            self.migrate_locked(&mut held, &inode, to, who.uid == 0, &mut holder)
        };
        self.let_go(holder);
        migrated
    }

    /// Migrates the file, whose inode lock the caller holds exclusively, and who has
    /// [`FileSystem::let_go`] of what is left in `holder` with no lock held, whatever came of it.
    ///
    /// # Errors
    /// As [`Self::migrate_inode`]. The file is then as it was; without a journal it may also have its
    /// new map, if the device failed when the old one was to be given up.
    pub(crate) fn migrate_locked(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        to: MapFormat,
        privileged: bool,
        holder: &mut Option<Holder>,
    ) -> Result<()> {
        if !self.is_to_migrate(inode, to)? {
            return Ok(());
        }
        let instance = &self.instance;
        let mapping = inode.mapping(instance, &self.cache);
        // What has no place yet gets one now, so that only stores from here on are in the way.
        mapping.write_back(held, 0..u64::MAX, WaitFor::All)?;
        let _flag = {
            let (_drained, mut held) = mapping.writepages_lock().write(held);
            let (_map, _held) = inode.core.block_map.write(&mut held);
            inode.core.begin_migration();
            Flag(&inode.core)
        };
        let mut count = Count::default();
        let (_, mut old) = self.convert(held, inode, to, &mut count)?;
        sort_nodes(instance, &inode.disk(), &mut old)?;
        let mut built = Built {
            to,
            root: [0; _],
            more: i64::try_from(count.0).unwrap_or(i64::MAX) - old.len() as i64,
            left: None,
        };
        if count.0 == 0 && old.is_empty() {
            (built.root, _) = self.convert(held, inode, to, &mut count)?;
        } else {
            let holder = holder.insert(self.make_holder(held, inode)?);
            let claim = Claim::of(privileged);
            let listed = self.provide(held, inode, holder, (to, count.0, claim), old)?;
            let mut writer = NodeWriter::new(instance, holder.runs());
            (built.root, _) = self.convert(held, inode, to, &mut writer)?;
            let root = holder.list(instance, &listed, &mut writer)?;
            writer.flush()?;
            debug_assert!(writer.is_at_end(), "a block that nobody would own");
            if !writer.is_at_end() {
                let what = "a map took fewer blocks than reckoned";
                return Err(Error::Io(std::io::Error::other(what)));
            }
            let blocks = listed.len() as u64 + instance.nodes_of_list(listed.len());
            built.left = Some(Left {
                root,
                listed,
                blocks,
            });
        }
        #[cfg(test)]
        instance.migration_probe.before_swap(&inode.core);
        let tid = self.swap(held, inode, &mapping, &built, holder.as_ref())?;
        let turned = match (holder.as_mut(), &built.left) {
            (Some(holder), Some(left)) if !instance.has_log() => instance
                .live()
                .and_then(|live| live.commit(tid))
                .and_then(|()| self.turn_later(held, holder, &left.root, left.blocks)),
            _ => return Ok(()),
        };
        if turned.is_err() {
            // What it has on record is the file's by now: it must not be deleted.
            *holder = None;
        }
        turned
    }

    /// Whether there is anything to do, and it can be done. As Linux, but for what of a tree Linux
    /// takes for too much.
    fn is_to_migrate(&self, inode: &Inode, to: MapFormat) -> Result<bool> {
        let disk = inode.disk();
        match disk.kind {
            FileKind::Regular | FileKind::Directory => {}
            FileKind::Symlink if disk.record.is_fast_symlink() => return Ok(false),
            FileKind::Symlink => {}
            _ => return Err(Error::InvalidArgument),
        }
        if disk.has_inline_data() || !self.instance.superblock.has_incompat(Incompat::EXTENTS) {
            return Err(Error::InvalidArgument);
        }
        if disk.has_extents() == (to == MapFormat::Extents) {
            return Ok(false);
        }
        if disk.record.flags().contains(InodeFlags::VERITY) {
            return Err(Error::Unsupported("another kind of map of a sealed file"));
        }
        let becomes = with_format(&disk, to);
        if inode.core.size() > self.instance.max_file_size(&becomes) {
            return Err(Error::Unsupported("a block map that reaches so far"));
        }
        Ok(true)
    }

    /// Reads the whole map and builds it anew; its root, and the blocks of the old one.
    ///
    /// # Errors
    /// `Again` if it has changed since the flag was set; `Unsupported`, `Corrupt`, `Io`.
    fn convert<P: Level>(
        &self,
        held: &mut Held<'_, P>,
        inode: &Inode,
        to: MapFormat,
        sink: &mut impl NodeSink,
    ) -> Result<(Root, Vec<BlockNo>)>
    where
        BlockMap: After<P>,
    {
        let mut new = NewMap::new(&self.instance, to, inode.disk().record.checksum_seed());
        let mut old = Vec::new();
        let mut walk = Walk::default();
        loop {
            let piece = {
                let (_map, _held) = inode.core.block_map.read(held);
                if !inode.core.is_migrating() {
                    return Err(Error::Again);
                }
                walk.next(&self.instance, &inode.disk(), PIECE)?
            };
            let Some(piece) = piece else { break };
            old.extend(piece.nodes);
            for run in &piece.runs {
                new.push(run, sink)?;
            }
        }
        Ok((new.finish(sink)?, old))
    }

    /// Provides the temporary inode with the blocks for `count` blocks of the new map, and for the
    /// list of what it owns after the swap, which is returned: the blocks of the old map, and those
    /// of its own until then.
    fn provide(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        holder: &mut Holder,
        (to, count, claim): (MapFormat, u64, Claim),
        mut old: Vec<BlockNo>,
    ) -> Result<Vec<BlockNo>> {
        let reach = match to {
            MapFormat::Extents => Reach::Everywhere,
            MapFormat::Blocks => Reach::Pointers,
        };
        let mut for_list = self.instance.nodes_of_list(old.len());
        let mut wanted = count + for_list;
        // The more it has, the larger may its own map become, which is part of the list; a block
        // of that is good for many more, so that this comes to its end at once.
        let nodes = loop {
            if wanted > 0 {
                self.take_blocks(held, inode, holder, wanted, reach, claim)?;
            }
            let nodes = holder.nodes(&self.instance)?;
            let needed = self.instance.nodes_of_list(old.len() + nodes.len());
            wanted = needed.saturating_sub(for_list);
            if wanted == 0 {
                break nodes;
            }
            for_list = needed;
        };
        old.extend(nodes);
        Ok(old)
    }

    /// Puts the new map in place of the old one, if nobody has changed that; the transaction. The
    /// temporary inode gets what is left, in the same transaction if there is a journal.
    ///
    /// # Errors
    /// `Again`, `NoSpace`, `Corrupt`, `Io`, `ReadOnly`: the file has its old map.
    fn swap(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Inode,
        mapping: &Mapping<FileData>,
        built: &Built,
        holder: Option<&Holder>,
    ) -> Result<u64> {
        let instance = &self.instance;
        let live = instance.live()?;
        let (_drained, mut held) = mapping.writepages_lock().write(held);
        let (mut transaction, mut held) = instance.begin(&mut held, SWAP)?;
        let (mut delayed, _held) = inode.core.block_map.write(&mut held);
        let is_unchanged = inode.core.end_migration();
        #[cfg(test)]
        let is_unchanged = instance.migration_probe.tested(is_unchanged);
        if !is_unchanged {
            return Err(Error::Again);
        }
        let before = inode.disk();
        let mut after = with_format(&before, built.to);
        let record = &mut after.record;
        record.block_area_mut().copy_from_slice(&built.root);
        count_blocks(instance, record, built.more)?;
        record.set_ctime(clock::now());
        if record.flags().contains(InodeFlags::SYNC) {
            transaction.sync();
        }
        let old_shape = MapShapeNow::of(instance, &before)?;
        let new_shape = MapShapeNow::of(instance, &after)?;
        delayed.reserve_for_shape(&live.allocator, &new_shape)?;
        let turned = match (holder, &built.left) {
            (Some(holder), Some(left)) if instance.has_log() => {
                holder.turn(&mut transaction, &left.root, left.blocks)
            }
            _ => Ok(()),
        };
        // Nobody reads either map now: who has which of their blocks is learnt anew.
        if let (Some(holder), Some(left), Ok(())) = (holder, &built.left, &turned) {
            let old = left.listed.iter().map(|block| (*block, 1));
            let runs = old.chain(holder.runs().iter().copied());
            live.allocator.forget_owners(runs);
        }
        let swapped = turned.and_then(|()| {
            inode.core.adopt(&before.record, &after.record);
            let written = inode.core.write(&mut transaction, true);
            if written.is_err() {
                inode.core.adopt(&after.record, &before.record);
            }
            written
        });
        match &swapped {
            Ok(()) => delayed.settle(&new_shape, None),
            Err(_) => delayed.settle(&old_shape, None),
        }
        // One that is dropped after it changed something aborts the journal.
        swapped?;
        let tid = transaction.tid();
        transaction.end();
        Ok(tid)
    }
}

/// The inode as it is, but for the flag that says what kind of map it has.
fn with_format(disk: &DiskInode, to: MapFormat) -> DiskInode {
    let mut other = disk.clone();
    let mut flags = other.record.flags();
    flags.set(InodeFlags::EXTENTS, to == MapFormat::Extents);
    other.record.set_flags(flags);
    other
}
