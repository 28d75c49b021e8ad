//! Putting names into directories, taking them out, and pointing them elsewhere.
//!
//! Where a name will go is found first, with nothing changed ([`Instance::find_room`]): that says
//! what the change needs at most. Names in an inode itself are the matter of
//! [`super::inline_dir`], full blocks of an index that of [`super::split_htree`].

use pagefence_ext4_format::dir_entry::{self, EntryName, FileKind, Role, entry_len};
use pagefence_ext4_format::inode::{Inode as InodeRecord, InodeFlags};
use pagefence_ext4_format::{BlockNo, Corruption, FileBlock, InodeNo, htree};
use pagefence_lock_order::primitives::Mutex;
use pagefence_vfs::{Error, Result};

use crate::change::append_block::append_block;
use crate::change::transaction::Transaction;
use crate::change::{inline_dir, split_htree};
use crate::dir::{Named, Spot, block_no, is_index_block};
use crate::disk_inode::{DiskInode, kind_of};
use crate::error::At;
use crate::instance::Instance;
use crate::name_index::KnownNames;

/// A directory that is being changed. `record` changes along; the caller writes it.
pub(crate) struct Directory<'a, 'b> {
    pub(crate) transaction: &'a mut Transaction<'b>,
    pub(crate) record: &'a mut InodeRecord,
}

/// Where a directory has room for a name, or what has to be done to make some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// In the inode itself.
    Inline,
    /// Nowhere in the inode: the entries have to move into a block.
    LeaveInode,
    /// In this block.
    Block(FileBlock),
    /// In this block, behind this entry: of a directory with an index, none of whose entries
    /// changes in between.
    Spot(Spot),
    /// In a block to be added at the end.
    Append,
    /// In one of two blocks, once an index leads to them.
    MakeIndex,
    /// In one of the halves of a block of entries, which splits; blocks of the index may, too.
    Split,
}

impl Room {
    /// Blocks that the directory grows by, at most: one for entries, and of an index with up to
    /// `levels` levels below the root a node for each level, and one when it gets another level.
    pub(crate) fn new_blocks(self, levels: u32) -> u32 {
        match self {
            Self::Inline | Self::Block(_) | Self::Spot(_) => 0,
            Self::Append => 1,
            Self::Split => 1 + levels + 1,
            // The block that takes all entries is full and splits.
            Self::MakeIndex => 2,
            Self::LeaveInode => 1 + Self::MakeIndex.new_blocks(levels),
        }
    }

    /// Blocks that the directory has and that change, at most.
    pub(crate) fn changed_blocks(self, levels: u32) -> u32 {
        match self {
            Self::Inline | Self::LeaveInode | Self::Append => 0,
            Self::Block(_) | Self::Spot(_) => 1,
            // The first becomes the root.
            Self::MakeIndex => 1,
            // The block that splits, and the blocks of the index that lead to it.
            Self::Split => 1 + levels + 1,
        }
    }
}

impl Instance {
    /// Levels of nodes that an index may have below its root.
    pub(crate) fn dx_levels_max(&self) -> u32 {
        let features = pagefence_ext4_format::features::Incompat::LARGE_DIR;
        if self.superblock.has_incompat(features) {
            2
        } else {
            1
        }
    }

    /// Finds room for a name that is not in the directory. `names` is what is known of a directory
    /// in core.
    ///
    /// # Errors
    /// `NoSpace` if its index is as large as an index can be; `Unsupported` if its entries are not
    /// ours to write; `Corrupt`, `Io`.
    pub(crate) fn find_room(
        &self,
        disk: &DiskInode,
        names: Option<&Mutex<KnownNames>>,
        name: &EntryName<'_>,
    ) -> Result<Room> {
        let needed = entry_len(name.as_bytes().len());
        if disk.has_inline_data() {
            let room = inline_dir::has_room(self, &disk.record, needed)?;
            return Ok(if room { Room::Inline } else { Room::LeaveInode });
        }
        if self.uses_index(disk) {
            let (_, path) = self.dx_find(disk, name.as_bytes())?;
            let leaf = path.leaf().at(&self.damage, Some(disk.number), None)?;
            let buffer = self.leaf_block(disk, leaf)?;
            let gap = dir_entry::largest_gap(&buffer, &self.dir_format).at(
                &self.damage,
                Some(disk.number),
                Some(block_no(&buffer)),
            )?;
            if gap >= needed {
                return Ok(Room::Block(leaf));
            }
            let mut full = path.levels() >= self.dx_levels_max() as usize;
            for level in 0..=path.levels() {
                full &= path
                    .is_full(level)
                    .at(&self.damage, Some(disk.number), None)?;
            }
            if full {
                return Err(Error::NoSpace);
            }
            self.check_append(disk, Room::Split.new_blocks(self.dx_levels_max()))?;
            self.check_split(disk, leaf, name)?;
            return Ok(Room::Split);
        }
        if disk.has_index() && self.checksums {
            return Err(Error::Unsupported("an index of a kind that is not written"));
        }
        let found = match names {
            Some(names) => self.first_gap(names, disk, needed)?,
            None => self.first_gap(&Mutex::new(KnownNames::Refused), disk, needed)?,
        };
        Ok(match found {
            Some(block) => Room::Block(block),
            None => {
                let room = if self.dir_blocks(disk)? == 1 && self.has_dir_index() {
                    Room::MakeIndex
                } else {
                    Room::Append
                };
                self.check_append(disk, room.new_blocks(self.dx_levels_max()))?;
                if room == Room::MakeIndex {
                    self.check_index(disk)?;
                }
                room
            }
        })
    }
}

impl Directory<'_, '_> {
    /// Finds a name.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn find(&self, name: &EntryName<'_>) -> Result<Option<Named>> {
        self.transaction
            .instance
            .find_on_disk(&self.disk()?, name.as_bytes())
    }

    /// Puts in a name that is not there.
    ///
    /// # Errors
    /// As [`Self::insert_at`] and [`Instance::find_room`].
    pub(crate) fn insert(
        &mut self,
        name: &EntryName<'_>,
        inode: InodeNo,
        kind: Option<FileKind>,
    ) -> Result<()> {
        let room = self
            .transaction
            .instance
            .find_room(&self.disk()?, None, name)?;
        self.insert_at(room, name, inode, kind)?;
        Ok(())
    }

    /// Puts in a name that is not there, where [`Instance::find_room`] found room for it; says in
    /// which block it is then, if it is in one.
    ///
    /// # Errors
    /// `Corrupt`; `Io` (also of the kind `StorageFull`) or `NoSpace` if the transaction has no
    /// block to give.
    pub(crate) fn insert_at(
        &mut self,
        room: Room,
        name: &EntryName<'_>,
        inode: InodeNo,
        kind: Option<FileKind>,
    ) -> Result<Option<FileBlock>> {
        let instance = self.transaction.instance;
        let dx = self.record.flags().contains(InodeFlags::INDEX);
        if dx && !instance.has_dir_index() {
            // Nobody keeps the index: from here on it is wrong.
            let flags = self.record.flags().difference(InodeFlags::INDEX);
            self.record.set_flags(flags);
        }
        match room {
            Room::Inline => {
                inline_dir::insert(self, name, inode, kind)?;
                Ok(None)
            }
            Room::LeaveInode => {
                inline_dir::leave_inode(self)?;
                let room = instance.find_room(&self.disk()?, None, name)?;
                debug_assert_ne!(room, Room::LeaveInode, "it left");
                self.insert_at(room, name, inode, kind)
            }
            Room::Block(block) => {
                let at = instance.metadata_block(&self.disk()?, block)?;
                self.insert_into(at, name, inode, kind)?;
                Ok(Some(block))
            }
            Room::Spot(spot) => {
                let format = instance.dir_format;
                self.put(spot.at, |bytes| {
                    dir_entry::insert_at(bytes, &format, spot.gap, inode, name, kind)
                })?;
                Ok(Some(spot.block))
            }
            Room::Append => {
                let (block, at) = append_block(self.transaction, self.record)?;
                let mut bytes = vec![0; instance.superblock.block_size() as usize];
                let mut fits = dir_entry::init_block(&mut bytes, &instance.dir_format);
                fits &= dir_entry::insert(&mut bytes, &instance.dir_format, inode, name, kind)
                    .at(&instance.damage, Some(self.record.ino()), Some(at))?
                    .is_some();
                debug_assert!(fits, "an empty block has room for a name");
                self.set_entries(at, &mut bytes)?;
                Ok(Some(block))
            }
            Room::MakeIndex => {
                split_htree::make_index(self)?;
                split_htree::insert(self, name, inode, kind).map(Some)
            }
            Room::Split => split_htree::insert(self, name, inode, kind).map(Some),
        }
    }

    /// Takes out what was found.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn remove(&mut self, named: &Named) -> Result<()> {
        let Some(block) = named.block else {
            return inline_dir::remove(self, named.offset);
        };
        let format = self.transaction.instance.dir_format;
        let at = self
            .transaction
            .instance
            .metadata_block(&self.disk()?, block)?;
        // The root of an index has no entry that can be removed.
        self.edit(at, |bytes| {
            dir_entry::remove(bytes, &format, named.offset).map(|_| ())
        })
    }

    /// Points what was found to another inode.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn redirect(
        &mut self,
        named: &Named,
        inode: InodeNo,
        kind: Option<FileKind>,
    ) -> Result<()> {
        let Some(block) = named.block else {
            return inline_dir::redirect(self, named.offset, inode, kind);
        };
        let format = self.transaction.instance.dir_format;
        let at = self
            .transaction
            .instance
            .metadata_block(&self.disk()?, block)?;
        self.edit(at, |bytes| {
            dir_entry::set_inode(bytes, &format, named.offset, inode, kind).map(|_| ())
        })
    }

    /// Points ".." to another directory.
    ///
    /// # Errors
    /// `Corrupt` if ".." is not where it belongs; `Io`.
    pub(crate) fn set_parent(&mut self, parent: InodeNo) -> Result<()> {
        let instance = self.transaction.instance;
        let disk = self.disk()?;
        if disk.has_inline_data() {
            inline_dir::set_parent(self.record, parent);
            return Ok(());
        }
        let first = FileBlock(0);
        let buffer = instance.dir_block(&disk, first)?;
        let at = block_no(&buffer);
        // The root of an index ends in another kind of checksum than entries do.
        let is_root = is_index_block(&disk, first, &buffer);
        let dot_dot = instance
            .dir_entries(&disk, first, &buffer)
            .entries()
            .flatten()
            .find(|entry| entry.role == Role::DotDot)
            .map(|entry| entry.offset);
        let Some(offset) = dot_dot else {
            let what = "a directory without \"..\"";
            return Err(instance.damaged(disk.number, Some(at), what));
        };
        let format = dir_entry::DirFormat {
            checksums: instance.checksums && !is_root,
            ..instance.dir_format
        };
        let kind = Some(FileKind::Directory);
        self.transaction.change(at, |bytes| {
            dir_entry::set_inode(bytes, &format, offset, parent, kind)
                .and_then(|_| match (instance.checksums, is_root) {
                    (true, true) => htree::update_checksum(bytes, disk.seed),
                    _ => seal(bytes, instance, &disk),
                })
                .at(&instance.damage, Some(disk.number), Some(at))
        })
    }

    /// Changes a block of entries, and refreshes its checksum.
    fn edit(
        &mut self,
        at: BlockNo,
        edit: impl FnOnce(&mut [u8]) -> Result<(), Corruption>,
    ) -> Result<()> {
        let instance = self.transaction.instance;
        let disk = self.disk()?;
        self.transaction.change(at, |bytes| {
            edit(bytes).and_then(|()| seal(bytes, instance, &disk)).at(
                &instance.damage,
                Some(disk.number),
                Some(at),
            )
        })
    }

    /// Puts a name into a block of entries that has room.
    pub(super) fn insert_into(
        &mut self,
        at: BlockNo,
        name: &EntryName<'_>,
        inode: InodeNo,
        kind: Option<FileKind>,
    ) -> Result<()> {
        let format = self.transaction.instance.dir_format;
        self.put(at, |bytes| {
            dir_entry::insert(bytes, &format, inode, name, kind)
        })
    }

    /// Changes a block of entries that was found to have room for one more, which `put` says where
    /// it put.
    fn put(
        &mut self,
        at: BlockNo,
        put: impl FnOnce(&mut [u8]) -> Result<Option<usize>, Corruption>,
    ) -> Result<()> {
        let mut place = None;
        self.edit(at, |bytes| {
            place = put(bytes)?;
            Ok(())
        })?;
        if place.is_none() {
            let what = "the room for a name that it had is gone";
            let instance = self.transaction.instance;
            return Err(instance.damaged(self.record.ino(), Some(at), what));
        }
        Ok(())
    }

    /// Writes a block of entries that is new to the directory, with its checksum.
    pub(super) fn set_entries(&mut self, block: BlockNo, bytes: &mut [u8]) -> Result<()> {
        let instance = self.transaction.instance;
        let disk = self.disk()?;
        seal(bytes, instance, &disk).at(&instance.damage, Some(disk.number), Some(block))?;
        self.transaction.set(block, bytes);
        Ok(())
    }

    /// Writes a block of entries that the directory has as a whole, with its checksum.
    pub(super) fn change_entries(&mut self, block: BlockNo, entries: &[u8]) -> Result<()> {
        self.edit(block, |bytes| {
            bytes.copy_from_slice(entries);
            Ok(())
        })
    }

    /// What reads the directory as it is now.
    pub(crate) fn disk(&self) -> Result<DiskInode> {
        let instance = self.transaction.instance;
        let Some(kind) = self.record.kind() else {
            return Err(instance.damaged(self.record.ino(), None, "it is no directory"));
        };
        Ok(DiskInode {
            number: self.record.ino(),
            kind: kind_of(kind),
            seed: self.record.checksum_seed(),
            record: self.record.clone(),
        })
    }
}

/// Stores the checksum of a block of entries, if it has one.
fn seal(bytes: &mut [u8], instance: &Instance, disk: &DiskInode) -> Result<(), Corruption> {
    if instance.checksums {
        dir_entry::update_checksum(bytes, disk.seed)?;
    }
    Ok(())
}

/// The kind that a directory entry records of an inode.
pub(crate) fn entry_kind(record: &InodeRecord) -> Option<FileKind> {
    record.kind()
}

/// Makes the first block of a directory that has none; one that keeps its entries in its inode
/// already has all it needs.
///
/// # Errors
/// `Corrupt`, `Io` (also of the kind `StorageFull`).
pub(crate) fn make_directory(
    transaction: &mut Transaction<'_>,
    record: &mut InodeRecord,
    parent: InodeNo,
) -> Result<()> {
    if record.flags().contains(InodeFlags::INLINE_DATA) {
        return Ok(());
    }
    let instance = transaction.instance;
    record.set_size(0);
    let (_, block) = append_block(transaction, record)?;
    let mut bytes = vec![0; instance.superblock.block_size() as usize];
    let number = record.ino();
    let made = dir_entry::init_first_block(&mut bytes, &instance.dir_format, number, parent);
    debug_assert!(made, "a block has room for two entries");
    let mut directory = Directory {
        transaction,
        record,
    };
    directory.set_entries(block, &mut bytes)
}
