//! Putting names into directories and taking them out.

use pagefence_ext4_format::dir_entry::{self, DirFormat, EntryName, FileKind};
use pagefence_ext4_format::inode::{Inode as InodeRecord, InodeFlags};
use pagefence_ext4_format::{BlockNo, FileBlock, InodeNo, htree};
use pagefence_vfs::{Error, Result};

use crate::change::append_block::append_block;
use crate::change::split_htree;
use crate::change::transaction::Transaction;
use crate::disk_inode::{DiskInode, kind_of};
use crate::error::At;

/// Bytes of the parent's number that open an inline directory.
const INLINE_PARENT: usize = 4;

/// A directory that is being changed. `record` changes along; the caller writes it.
pub(crate) struct Directory<'a, 'b> {
    pub(crate) transaction: &'a mut Transaction<'b>,
    pub(crate) record: &'a mut InodeRecord,
}

/// A name found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) inode: InodeNo,
    /// The block that holds the entry; none if the directory lies in its inode.
    block: Option<FileBlock>,
    offset: usize,
}

impl Directory<'_, '_> {
    /// Finds a name.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn find(&self, name: &EntryName<'_>) -> Result<Option<Named>> {
        let instance = self.transaction.instance;
        let disk = self.disk()?;
        if disk.has_inline_data() {
            return instance.with_inline_dir(&disk, |dir| {
                dir.find(name.as_bytes())
                    .map(|entry| {
                        entry.map(|entry| Named {
                            inode: entry.inode,
                            block: None,
                            offset: entry.offset,
                        })
                    })
                    .at(&instance.damage, Some(disk.number), None)
            });
        }
        for block in self.candidates(&disk, name)? {
            let buffer = instance.dir_block(&disk, block)?;
            let found = instance
                .dir_entries(&disk, block, &buffer)
                .find(name.as_bytes())
                .at(
                    &instance.damage,
                    Some(disk.number),
                    Some(BlockNo(buffer.block())),
                )?;
            if let Some(entry) = found {
                return Ok(Some(Named {
                    inode: entry.inode,
                    block: Some(block),
                    offset: entry.offset,
                }));
            }
        }
        Ok(None)
    }

    /// Puts in a name that is not there.
    ///
    /// # Errors
    /// `Corrupt`; `Io` (also of the kind `StorageFull`); `Unsupported` if the directory lies in
    /// its inode and has no room there.
    pub(crate) fn insert(
        &mut self,
        name: &EntryName<'_>,
        inode: InodeNo,
        kind: Option<FileKind>,
    ) -> Result<()> {
        let disk = self.disk()?;
        if disk.has_inline_data() {
            return self.insert_inline(name, inode, kind);
        }
        let instance = self.transaction.instance;
        if instance.uses_index(&disk) {
            loop {
                let disk = self.disk()?;
                let major = instance.dx_hasher(&disk)?.hash(name.as_bytes()).major;
                let path = instance.dx_probe(&disk, major)?;
                let leaf = path.leaf().at(&instance.damage, Some(disk.number), None)?;
                if self.insert_into(&disk, leaf, name, inode, kind)? {
                    return Ok(());
                }
                split_htree::make_room(self, &disk, &path, leaf)?;
            }
        }
        let blocks = instance.dir_blocks(&disk)?;
        for block in (0..blocks).map(FileBlock) {
            if self.insert_into(&disk, block, name, inode, kind)? {
                return Ok(());
            }
        }
        let (_, block) = append_block(self.transaction, self.record)?;
        let mut bytes = vec![0; instance.superblock.block_size() as usize];
        let made = dir_entry::init_block(&mut bytes, &instance.dir_format);
        debug_assert!(made, "a block has room for an entry");
        let put = dir_entry::insert(&mut bytes, &instance.dir_format, inode, name, kind).at(
            &instance.damage,
            Some(disk.number),
            Some(block),
        )?;
        debug_assert!(put.is_some(), "an empty block has room for a name");
        self.set_entries(block, &mut bytes)
    }

    /// Takes out what [`Self::find`] found.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn remove(&mut self, named: &Named) -> Result<()> {
        let instance = self.transaction.instance;
        let number = self.record.ino();
        let Some(block) = named.block else {
            let mut removed = Ok(false);
            self.edit_inline(|base, bytes, format| {
                if let Some(offset) = named.offset.checked_sub(base)
                    && offset < bytes.len()
                {
                    removed = dir_entry::remove(bytes, format, offset);
                }
                removed == Ok(true)
            });
            return removed.map(|_| ()).at(&instance.damage, Some(number), None);
        };
        let disk = self.disk()?;
        let at = instance.metadata_block(&disk, block)?;
        // The root of an index has no entry that can be removed.
        let format = instance.dir_format;
        self.transaction.change(at, |bytes| {
            dir_entry::remove(bytes, &format, named.offset)
                .and_then(|_| seal(bytes, &format, &disk))
                .at(&instance.damage, Some(number), Some(at))
        })
    }

    /// Writes a block of entries, with its checksum.
    pub(crate) fn set_entries(&mut self, block: BlockNo, bytes: &mut [u8]) -> Result<()> {
        let instance = self.transaction.instance;
        let disk = self.disk()?;
        seal(bytes, &instance.dir_format, &disk).at(
            &instance.damage,
            Some(disk.number),
            Some(block),
        )?;
        self.transaction.set(block, bytes);
        Ok(())
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

    /// The blocks that may hold a name.
    fn candidates(&self, disk: &DiskInode, name: &EntryName<'_>) -> Result<Vec<FileBlock>> {
        let instance = self.transaction.instance;
        let blocks = instance.dir_blocks(disk)?;
        if !instance.uses_index(disk) {
            return Ok((0..blocks).map(FileBlock).collect());
        }
        let major = instance.dx_hasher(disk)?.hash(name.as_bytes()).major;
        let mut path = instance.dx_probe(disk, major)?;
        let mut leaves = Vec::new();
        for _ in 0..blocks {
            leaves.push(path.leaf().at(&instance.damage, Some(disk.number), None)?);
            match instance.dx_next_hash(disk, &path)? {
                Some(next) if htree::continues(next, major) => {
                    instance.dx_advance(disk, &mut path)?;
                }
                _ => break,
            }
        }
        Ok(leaves)
    }

    /// Puts a name into a block of entries, if it has room.
    fn insert_into(
        &mut self,
        disk: &DiskInode,
        block: FileBlock,
        name: &EntryName<'_>,
        inode: InodeNo,
        kind: Option<FileKind>,
    ) -> Result<bool> {
        let instance = self.transaction.instance;
        let at = instance.metadata_block(disk, block)?;
        let mut bytes = instance.dir_block(disk, block)?.to_vec();
        let put = dir_entry::insert(&mut bytes, &instance.dir_format, inode, name, kind).at(
            &instance.damage,
            Some(disk.number),
            Some(at),
        )?;
        if put.is_some() {
            self.set_entries(at, &mut bytes)?;
        }
        Ok(put.is_some())
    }

    fn insert_inline(
        &mut self,
        name: &EntryName<'_>,
        inode: InodeNo,
        kind: Option<FileKind>,
    ) -> Result<()> {
        let instance = self.transaction.instance;
        let number = self.record.ino();
        let mut put = Ok(None);
        self.edit_inline(|_, bytes, format| {
            put = dir_entry::insert(bytes, format, inode, name, kind);
            !matches!(put, Ok(None))
        });
        match put.at(&instance.damage, Some(number), None)? {
            Some(_) => Ok(()),
            None => Err(Error::Unsupported(
                "a directory that has to leave its inode",
            )),
        }
    }

    /// Shows the parts of an inline directory, and with each the offset at which its entries
    /// begin, until `edit` is done.
    fn edit_inline(&mut self, mut edit: impl FnMut(usize, &mut [u8], &DirFormat) -> bool) {
        let format = DirFormat {
            checksums: false,
            ..self.transaction.instance.dir_format
        };
        let limits = (&self.transaction.instance.superblock).into();
        let area = self.record.block_area_mut();
        let length = area.len();
        if let Some(entries) = area.get_mut(INLINE_PARENT..)
            && edit(INLINE_PARENT, entries, &format)
        {
            return;
        }
        if let Some(rest) = super::shorten_inline::inline_value_mut(&limits, self.record) {
            edit(length, rest, &format);
        }
    }
}

/// Stores the checksum of a block of entries, if it has one.
fn seal(
    bytes: &mut [u8],
    format: &DirFormat,
    disk: &DiskInode,
) -> std::result::Result<(), pagefence_ext4_format::Corruption> {
    if format.checksums {
        dir_entry::update_checksum(bytes, disk.seed)?;
    }
    Ok(())
}

/// The kind that a directory entry records of an inode.
pub(crate) fn entry_kind(record: &InodeRecord) -> Option<FileKind> {
    use pagefence_ext4_format::inode::FileKind as Kind;
    Some(match record.kind()? {
        Kind::Regular => FileKind::Regular,
        Kind::Directory => FileKind::Directory,
        Kind::CharDevice => FileKind::CharDevice,
        Kind::BlockDevice => FileKind::BlockDevice,
        Kind::Fifo => FileKind::Fifo,
        Kind::Socket => FileKind::Socket,
        Kind::Symlink => FileKind::Symlink,
    })
}

/// Makes the first block of a directory that has none.
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
