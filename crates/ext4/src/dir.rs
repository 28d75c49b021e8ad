//! Directories: blocks of entries, and finding a name.

use pagefence_block_io::Buffer;
use pagefence_ext4_format::dir_entry::{self, DirBlock, DirEntry, DirFormat, EntryName, InlineDir};
use pagefence_ext4_format::{BlockNo, FileBlock, InodeNo, htree};
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_vfs::{Error, FileKind, Result};

use crate::alloc::BlockOwner;
use crate::change::inline_dir;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::inode::Inode;
use crate::instance::{Instance, checked};
use crate::map_blocks::Target;
use crate::name_index::{KnownNames, NameIndex};

/// Blocks from which on a directory without an index on disk gets one in memory.
const NAME_INDEX_BLOCKS_MIN: u32 = 3;

/// Damaged blocks that a search leaves out before it gives up.
const DAMAGED_BLOCKS_MAX: u32 = 4;

/// What is wrong with an index in which names of one hash are in too many blocks.
pub(crate) const CIRCLES: &str = "a directory index in circles";

/// Blocks of entries over which names of one hash spread at most. A sound index needs a second one
/// at times; one that leads in circles would never end.
pub(crate) const HASH_BLOCKS_MAX: usize = 64;

/// Bytes of a directory that are read together when it is listed.
const DIR_WINDOW_BYTES: u32 = 128 << 10;

/// Buffers whose entries were all checked remember it so.
const SOUND_ENTRIES: u32 = 1 << 11;

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Is {
    There,
    Gone,
}

/// A name found, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) inode: InodeNo,
    /// The block that holds the entry; none if the directory lies in its inode.
    pub(crate) block: Option<FileBlock>,
    /// Where the entry starts, as [`DirEntry::offset`] counts.
    pub(crate) offset: usize,
}

/// Room for a name in a block of entries, found by the walk that did not find the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) block: FileBlock,
    /// Where that block is.
    pub(crate) at: BlockNo,
    /// Which of its entries has room behind it ([`dir_entry::Search::gap`]).
    pub(crate) gap: usize,
}

/// What a directory says of a name that is to come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vacancy {
    Taken(Named),
    /// It is free; perhaps it was seen where it can go. That holds while the directory is locked
    /// and as long as none of its entries changes.
    Free(Option<Spot>),
}

impl Named {
    fn new(entry: &DirEntry<'_>, block: Option<FileBlock>) -> Self {
        Self {
            inode: entry.inode,
            block,
            offset: entry.offset,
        }
    }
}

impl Instance {
    /// Number of blocks of a directory. It has no holes, so there are no more than the file system
    /// has.
    pub(crate) fn dir_blocks(&self, inode: &DiskInode) -> Result<u32> {
        let size = inode.size();
        let block_size = u64::from(self.superblock.block_size());
        let most = self.superblock.blocks_count();
        match u32::try_from(size / block_size) {
            Ok(blocks)
                if size.is_multiple_of(block_size) && (1..=most).contains(&blocks.into()) =>
            {
                Ok(blocks)
            }
            _ => Err(self.damaged(
                inode.number,
                None,
                format_args!("a directory of {size} bytes"),
            )),
        }
    }

    /// A block of the directory, its checksum checked once while it is in memory. Blocks of the
    /// index pass as blocks without entries.
    pub(crate) fn dir_block(&self, inode: &DiskInode, block: FileBlock) -> Result<Arc<Buffer>> {
        let at = self.metadata_block(inode, block)?;
        let buffer = self.read_owned(BlockOwner::Contents(inode.number), at)?;
        if self.checksums && !buffer.verified(checked::DIR_BLOCK) {
            let verified = if is_index_block(inode, block, &buffer) {
                htree::verify_checksum(&buffer, inode.seed)
            } else {
                dir_entry::verify_checksum(&buffer, inode.seed)
            };
            verified.at(&self.damage, Some(inode.number), Some(at))?;
            buffer.set_verified(checked::DIR_BLOCK);
        }
        Ok(buffer)
    }

    /// A block of entries that the directory's index leads to. Another block of the index is none,
    /// and its names would be missed in silence; without checksums an empty block looks the same.
    pub(crate) fn leaf_block(&self, inode: &DiskInode, leaf: FileBlock) -> Result<Arc<Buffer>> {
        let buffer = self.dir_block(inode, leaf)?;
        if self.checksums && is_index_block(inode, leaf, &buffer) {
            let what = "an index that leads to one of its own blocks";
            return Err(self.damaged(inode.number, Some(block_no(&buffer)), what));
        }
        Ok(buffer)
    }

    /// Reads a block of the directory into memory along with its neighbours, for who is going to
    /// want them all. Failures show when the block is asked for.
    pub(crate) fn prefetch_dir_block(&self, inode: &DiskInode, block: FileBlock) {
        let (Ok(run), Ok(blocks)) = (self.map_blocks(inode, block), self.dir_blocks(inode)) else {
            return;
        };
        let Target::Written(at) = run.target else {
            return;
        };
        // In a directory that memory can't hold, neighbours would be gone before they are wanted:
        // the order of hashes is not that of blocks.
        let bytes = u64::from(blocks) * u64::from(self.superblock.block_size());
        if bytes > self.metadata_bytes / 4 || self.buffers.peek(at.0).is_some() {
            return;
        }
        let window = (DIR_WINDOW_BYTES >> self.superblock.block_size_bits()).max(1);
        let mut at = block.0 / window * window;
        let end = blocks.min(at.saturating_add(window));
        while at < end {
            let Ok(run) = self.map_blocks(inode, FileBlock(at)) else {
                return;
            };
            let len = run.len.min(end - at);
            if let Target::Written(start) = run.target
                && len > 1
            {
                // A failure may be a neighbour's.
                let _ = self.buffers.read_run(start.0, len as usize);
            }
            at += len;
        }
    }

    /// The view of a block's entries; blocks of the index have no checksum of entries.
    pub(crate) fn dir_entries<'a>(
        &self,
        inode: &DiskInode,
        block: FileBlock,
        buffer: &'a Buffer,
    ) -> DirBlock<'a> {
        let format = DirFormat {
            checksums: self.checksums && !is_index_block(inode, block, buffer),
            ..self.dir_format
        };
        DirBlock::new(buffer, &format, block == FileBlock(0))
    }

    /// The entries of a directory kept inside its inode; `read` sees them.
    pub(crate) fn with_inline_dir<T>(
        &self,
        inode: &DiskInode,
        read: impl FnOnce(&InlineDir<'_>) -> Result<T>,
    ) -> Result<T> {
        let rest = self.inline_rest(inode)?;
        let dir = InlineDir::parse(inode.i_block(), &rest, &self.dir_format).at(
            &self.damage,
            Some(inode.number),
            None,
        )?;
        read(&dir)
    }

    /// The inode of "..".
    pub(crate) fn dot_dot(&self, inode: &DiskInode) -> Result<InodeNo> {
        if inode.has_inline_data() {
            return self.with_inline_dir(inode, |dir| Ok(dir.parent()));
        }
        let buffer = self.dir_block(inode, FileBlock(0))?;
        self.dir_entries(inode, FileBlock(0), &buffer)
            .dots()
            .map(|(_, parent)| parent)
            .at(&self.damage, Some(inode.number), Some(block_no(&buffer)))
    }

    /// Makes sure that an entry that was found can be taken out or pointed elsewhere: who does
    /// so walks over its whole block.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn check_entry_changeable(&self, inode: &DiskInode, named: &Named) -> Result<()> {
        let Some(block) = named.block else {
            return inline_dir::has_room(self, &inode.record, usize::MAX).map(drop);
        };
        let buffer = self.dir_block(inode, block)?;
        self.gap(inode, block, &buffer).map(drop)
    }

    /// Makes sure that ".." can be pointed elsewhere.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn check_parent_changeable(&self, inode: &DiskInode) -> Result<()> {
        self.dot_dot(inode)?;
        if inode.has_inline_data() {
            return Ok(());
        }
        let first = FileBlock(0);
        let buffer = self.dir_block(inode, first)?;
        let format = DirFormat {
            checksums: self.checksums && !is_index_block(inode, first, &buffer),
            ..self.dir_format
        };
        dir_entry::largest_gap(&buffer, &format).map(drop).at(
            &self.damage,
            Some(inode.number),
            Some(block_no(&buffer)),
        )
    }

    /// Whether the directory has an index on disk that we can use.
    pub(crate) fn uses_index(&self, inode: &DiskInode) -> bool {
        inode.has_index() && self.has_dir_index() && !inode.is_encrypted() && !inode.is_casefolded()
    }

    pub(crate) fn has_dir_index(&self) -> bool {
        self.superblock
            .has_compat(pagefence_ext4_format::features::Compat::DIR_INDEX)
    }

    /// Finds the inode of a name (neither "." nor "..").
    pub(crate) fn find_entry(&self, inode: &Inode, name: &[u8]) -> Result<Option<InodeNo>> {
        Ok(self.find_named(inode, name)?.map(|named| named.inode))
    }

    /// Finds a name (neither "." nor ".."). The caller holds the directory's inode lock.
    pub(crate) fn find_named(&self, inode: &Inode, name: &[u8]) -> Result<Option<Named>> {
        match self.find_or_room(inode, name, usize::MAX)? {
            Vacancy::Taken(named) => Ok(Some(named)),
            Vacancy::Free(_) => Ok(None),
        }
    }

    /// Finds a name, or that it is free and perhaps where it can go. The caller holds the
    /// directory's inode lock exclusively.
    pub(crate) fn find_vacancy(&self, inode: &Inode, name: &EntryName<'_>) -> Result<Vacancy> {
        let name = name.as_bytes();
        self.find_or_room(inode, name, dir_entry::entry_len(name.len()))
    }

    fn find_or_room(&self, inode: &Inode, name: &[u8], needed: usize) -> Result<Vacancy> {
        let disk = &*inode.disk();
        let named = if disk.has_inline_data() {
            self.find_inline(disk, name)?
        } else {
            if self.uses_index(disk) {
                match self.find_by_index(disk, name, needed) {
                    // It was logged; the blocks of entries may be sound nevertheless.
                    Err(Error::Corrupt { .. }) => {}
                    result => return result,
                }
            }
            let blocks = self.dir_blocks(disk)?;
            let candidates = if blocks >= NAME_INDEX_BLOCKS_MIN {
                self.candidates(inode, blocks, name)?
            } else {
                None
            };
            match candidates {
                Some(candidates) => self.find_in_blocks(disk, candidates.into_iter(), name)?,
                None => self.find_in_blocks(disk, (0..blocks).map(FileBlock), name)?,
            }
        };
        Ok(named.map_or(Vacancy::Free(None), Vacancy::Taken))
    }

    /// Finds a name by what the disk says alone: for directories that are not in core.
    pub(crate) fn find_on_disk(&self, disk: &DiskInode, name: &[u8]) -> Result<Option<Named>> {
        if disk.has_inline_data() {
            return self.find_inline(disk, name);
        }
        if self.uses_index(disk) {
            return match self.find_by_index(disk, name, usize::MAX)? {
                Vacancy::Taken(named) => Ok(Some(named)),
                Vacancy::Free(_) => Ok(None),
            };
        }
        let blocks = self.dir_blocks(disk)?;
        self.find_in_blocks(disk, (0..blocks).map(FileBlock), name)
    }

    fn find_inline(&self, disk: &DiskInode, name: &[u8]) -> Result<Option<Named>> {
        self.with_inline_dir(disk, |dir| {
            dir.find(name)
                .map(|entry| entry.map(|entry| Named::new(&entry, None)))
                .at(&self.damage, Some(disk.number), None)
        })
    }

    /// Finds a name by the index on disk; if it is not there, room for `needed` bytes in the block
    /// where it belongs.
    fn find_by_index(&self, inode: &DiskInode, name: &[u8], needed: usize) -> Result<Vacancy> {
        let (major, mut path) = self.dx_find(inode, name)?;
        let mut spot = None;
        for round in 0..HASH_BLOCKS_MAX {
            let leaf = path.leaf().at(&self.damage, Some(inode.number), None)?;
            let buffer = self.leaf_block(inode, leaf)?;
            let (found, gap) = self.search_block(inode, leaf, &buffer, name, needed)?;
            if let Some(found) = found {
                return Ok(Vacancy::Taken(found));
            }
            if round == 0 {
                spot = gap.map(|gap| Spot {
                    block: leaf,
                    at: block_no(&buffer),
                    gap,
                });
            }
            match self.dx_next_hash(inode, &path)? {
                Some(next) if htree::continues(next, major) => {
                    self.dx_advance(inode, &mut path)?;
                }
                _ => return Ok(Vacancy::Free(spot)),
            }
        }
        Err(self.damaged(inode.number, None, CIRCLES))
    }

    fn find_in_blocks(
        &self,
        inode: &DiskInode,
        blocks: impl Iterator<Item = FileBlock>,
        name: &[u8],
    ) -> Result<Option<Named>> {
        let (mut damage, mut damaged) = (None, 0);
        for block in blocks {
            // The root of an index has no names, and nothing that matters here can be wrong there.
            if inode.has_index() && block == FileBlock(0) {
                continue;
            }
            let found = self
                .dir_block(inode, block)
                .and_then(|buffer| self.search_block(inode, block, &buffer, name, usize::MAX))
                .map(|(found, _)| found);
            match found {
                Ok(None) => {}
                // The name may be in another block; if it is not, nobody knows.
                Err(error @ Error::Corrupt { .. }) if damaged < DAMAGED_BLOCKS_MAX => {
                    damage = damage.or(Some(error));
                    damaged += 1;
                }
                found_or_failed => return found_or_failed,
            }
        }
        damage.map_or(Ok(None), Err)
    }

    /// Looks for a name in a block of entries, and for an entry with room for `needed` bytes, all in
    /// one walk. The block's entries are checked once while it is in memory.
    fn search_block(
        &self,
        inode: &DiskInode,
        block: FileBlock,
        buffer: &Buffer,
        name: &[u8],
        needed: usize,
    ) -> Result<(Option<Named>, Option<usize>)> {
        let view = self.dir_entries(inode, block, buffer);
        let is_sound = buffer.verified(SOUND_ENTRIES) || {
            let is_sound = view.is_sound();
            if is_sound {
                buffer.set_verified(SOUND_ENTRIES);
            }
            is_sound
        };
        let search = view.search(name, needed, is_sound).at(
            &self.damage,
            Some(inode.number),
            Some(block_no(buffer)),
        )?;
        let found = search.entry.map(|entry| Named::new(&entry, Some(block)));
        Ok((found, search.gap))
    }

    /// The blocks that may hold a name, by the directory's index in memory, made when it is first
    /// asked for; nothing if a block is damaged or the memory for such indexes is used up, which
    /// is remembered.
    fn candidates(
        &self,
        inode: &Inode,
        blocks: u32,
        name: &[u8],
    ) -> Result<Option<Vec<FileBlock>>> {
        match &*inode.names.lock() {
            KnownNames::Unknown => {}
            KnownNames::Index(index) => return Ok(Some(index.candidates(name).collect())),
            KnownNames::Refused => return Ok(None),
        }
        // Not under the mutex: two threads may make one each, and one of them goes again. Nobody
        // changes the directory meanwhile, for that needs the inode lock.
        let index = match self.make_name_index(&inode.disk(), blocks) {
            Ok(index) => index,
            Err(Error::Corrupt { .. }) => None,
            Err(error) => return Err(error),
        };
        let candidates = index
            .as_ref()
            .map(|index| index.candidates(name).collect::<Vec<_>>());
        *inode.names.lock() = index.map_or(KnownNames::Refused, KnownNames::Index);
        Ok(candidates)
    }

    fn make_name_index(&self, inode: &DiskInode, blocks: u32) -> Result<Option<NameIndex>> {
        let mut index = self.name_indexes.index();
        for block in (u32::from(inode.has_index())..blocks).map(FileBlock) {
            let buffer = self.dir_block(inode, block)?;
            for entry in self.dir_entries(inode, block, &buffer).entries() {
                let at = Some(block_no(&buffer));
                let entry = entry.at(&self.damage, Some(inode.number), at)?;
                if index.insert(entry.name, block).is_err() {
                    return Ok(None);
                }
            }
            if index
                .set_gap(block, self.gap(inode, block, &buffer)?)
                .is_err()
            {
                return Ok(None);
            }
        }
        Ok(Some(index))
    }

    /// Bytes of the largest gap of a block of entries; 0 in a block of an index.
    fn gap(&self, inode: &DiskInode, block: FileBlock, buffer: &Buffer) -> Result<usize> {
        if is_index_block(inode, block, buffer) && self.checksums {
            return Ok(0);
        }
        dir_entry::largest_gap(buffer, &self.dir_format).at(
            &self.damage,
            Some(inode.number),
            Some(block_no(buffer)),
        )
    }

    /// The first block of a directory without an index that has room for `bytes`; nothing if none
    /// has.
    pub(crate) fn first_gap(
        &self,
        names: &Mutex<KnownNames>,
        inode: &DiskInode,
        bytes: usize,
    ) -> Result<Option<FileBlock>> {
        if let KnownNames::Index(index) = &*names.lock() {
            return Ok(index.first_gap(bytes));
        }
        for block in (0..self.dir_blocks(inode)?).map(FileBlock) {
            let buffer = self.dir_block(inode, block)?;
            if self.gap(inode, block, &buffer)? >= bytes {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    /// Takes into the index in memory that `name` came into `block` (none: into the inode), or
    /// went from there. The caller holds the inode lock exclusively.
    pub(crate) fn note_name(&self, inode: &Inode, name: &[u8], block: Option<FileBlock>, is: Is) {
        let mut names = inode.names.lock();
        let KnownNames::Index(index) = &mut *names else {
            return;
        };
        let disk = &*inode.disk();
        let noted = block
            .filter(|_| !self.uses_index(disk))
            .is_some_and(|block| self.note_in(index, disk, name, block, is).is_some());
        if !noted {
            *names = KnownNames::Unknown;
        }
    }

    fn note_in(
        &self,
        index: &mut NameIndex,
        disk: &DiskInode,
        name: &[u8],
        block: FileBlock,
        is: Is,
    ) -> Option<()> {
        let buffer = self.dir_block(disk, block).ok()?;
        index
            .set_gap(block, self.gap(disk, block, &buffer).ok()?)
            .ok()?;
        match is {
            Is::There => index.insert(name, block).ok()?,
            Is::Gone => {
                let entries = self.dir_entries(disk, block, &buffer).entries();
                index.remove(name, block, entries.flatten().map(|entry| entry.name));
            }
        }
        Some(())
    }
}

/// Whether the block belongs to the directory's index. A block of entries that ends in a checksum
/// is never one unused entry of its whole length, as a node of the index is; without checksums an
/// empty block may be, and it makes no difference.
pub(crate) fn is_index_block(inode: &DiskInode, block: FileBlock, buffer: &Buffer) -> bool {
    inode.has_index() && (block == FileBlock(0) || htree::is_node(buffer))
}

/// The number of a buffer's block.
pub(crate) fn block_no(buffer: &Buffer) -> BlockNo {
    BlockNo(buffer.block())
}

/// The kind that a directory entry records.
pub(crate) fn kind_of(kind: dir_entry::FileKind) -> FileKind {
    match kind {
        dir_entry::FileKind::Regular => FileKind::Regular,
        dir_entry::FileKind::Directory => FileKind::Directory,
        dir_entry::FileKind::CharDevice => FileKind::CharDevice,
        dir_entry::FileKind::BlockDevice => FileKind::BlockDevice,
        dir_entry::FileKind::Fifo => FileKind::Fifo,
        dir_entry::FileKind::Socket => FileKind::Socket,
        dir_entry::FileKind::Symlink => FileKind::Symlink,
    }
}
