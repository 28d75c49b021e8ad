//! The file system as the interface sees it.

use std::ops::ControlFlow;

use pagefence_ext4_format::dir_entry::MAX_NAME_LEN;
use pagefence_ext4_format::features::RoCompat;
use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::{FileBlock, InodeNo};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_page_cache::{ErrorCursor, Mapping, PageCache, ReadError, Readahead};
use pagefence_vfs::{
    Access, Attr, CheckEvent, CheckSummary, Cookie, Credentials, DirSink, Entry, Error, ExtentInfo,
    ExtentState, FallocateMode, FileKind, FileSystemStat, Fsxattr, InodeId, MapFormat, New,
    RenameMode, Result, SetAttr, Whence, WriteMode, XattrMode, XattrName,
};

use crate::backing::FileData;
use crate::disk_inode::DiskInode;
use crate::inode::Inode;
use crate::inode_cache::InodeCache;
use crate::instance::Instance;
use crate::map_blocks::Target;
use crate::read_dir::Directory;
use crate::setattr::XFLAGS;

/// How a note begins that says why a file system is read-only.
pub(crate) const READ_ONLY: &str = "opened read-only, because ";

/// An open ext2, ext3 or ext4 file system.
///
/// Owns: the inodes in core and the pages of their data. All methods may be called from many
/// threads at once; a cached read or lookup takes no lock that another file's would.
#[derive(Debug)]
pub struct FileSystem {
    pub(crate) instance: Arc<Instance>,
    pub(crate) cache: Arc<PageCache>,
    pub(crate) inodes: InodeCache<Inode>,
    /// Which errors of writing back, in any file, sync has told.
    pub(crate) errors: ErrorCursor,
    stat: Mutex<Option<FileSystemStat>>,
    notes: Vec<String>,
}

/// An open regular file.
#[derive(Debug)]
pub struct File {
    pub(crate) inode: Arc<Inode>,
    pub(crate) mapping: Arc<Mapping<FileData>>,
    /// Which errors of writing back it has been told.
    pub(crate) errors: ErrorCursor,
    pub(crate) is_writer: bool,
    readahead: Readahead,
}

impl File {
    /// Its size in bytes, now. Takes no lock.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inode.core.size()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.close();
    }
}

impl FileSystem {
    /// The file system of an instance, its pages in `cache`, with about `inodes_max` unused inodes
    /// kept in core.
    pub(crate) fn new(
        instance: Instance,
        cache: Arc<PageCache>,
        inodes_max: usize,
        notes: Vec<String>,
    ) -> Self {
        Self {
            instance: Arc::new(instance),
            errors: cache.error_cursor(),
            cache,
            inodes: InodeCache::new(inodes_max),
            stat: Mutex::new(None),
            notes,
        }
    }

    /// What the user should know about how it was opened, a sentence each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The number of an inode that users may reach: the root, or one for files.
    pub(crate) fn user_inode(&self, id: InodeId) -> Result<InodeNo> {
        let superblock = &self.instance.superblock;
        u32::try_from(id.0)
            .ok()
            .map(InodeNo)
            .filter(|&number| number == InodeNo::ROOT || number >= superblock.first_inode())
            .filter(|number| number.0 <= superblock.inodes_count())
            .filter(|&number| !is_own(superblock, number))
            .ok_or(Error::Stale)
    }

    pub(crate) fn inode(&self, id: InodeId) -> Result<Arc<Inode>> {
        let number = self.user_inode(id)?;
        self.inodes.get_or_load(number, || {
            let disk = DiskInode::read(&self.instance, number)?;
            if disk.is_ea_inode() {
                // It belongs to attributes, whatever a directory says.
                return Err(Error::Stale);
            }
            // After the read: what changed it until then is in this transaction or an older one.
            let live = self.instance.live.as_ref();
            let running = live.map_or(0, |live| live.journal.running().0);
            Ok(Inode::loaded(disk, running))
        })
    }

    /// What the disk says of an inode, without bringing it into core.
    pub(crate) fn disk_inode(&self, number: InodeNo) -> Result<Arc<DiskInode>> {
        match self.inodes.get(number) {
            Some(inode) => Ok(inode.disk()),
            None => Ok(Arc::new(DiskInode::read(&self.instance, number)?)),
        }
    }

    /// The attributes of an inode, which stays out of core if it is.
    fn attr_of_inode(&self, number: InodeNo) -> Result<Attr> {
        if let Some(inode) = self.inodes.get(number) {
            return Ok(inode.attr(&self.instance));
        }
        let disk = DiskInode::read(&self.instance, number)?;
        if disk.is_ea_inode() {
            return Err(Error::Stale);
        }
        Ok(disk.attr(&self.instance))
    }

    /// Attributes of an inode that a directory entry names.
    pub(crate) fn attr_by_number(&self, number: InodeNo) -> Result<Attr> {
        let attr = self
            .user_inode(InodeId(u64::from(number.0)))
            .and_then(|number| self.attr_of_inode(number));
        match attr {
            Ok(attr) => Ok(attr),
            Err(Error::Stale) => {
                let what = "a directory entry names an inode that is not in use, or not for files";
                Err(self.instance.damaged(number, None, what))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn dir_inode(&self, id: InodeId) -> Result<Arc<Inode>> {
        let inode = self.inode(id)?;
        if inode.core.kind == FileKind::Directory {
            Ok(inode)
        } else {
            Err(Error::NotDirectory)
        }
    }

    /// See [`pagefence_vfs::FileSystem::extents`]. Takes the inode lock shared, and the block map's
    /// shared, a run at a time: nobody takes blocks of the map away that are about to be read.
    fn extents_of(
        &self,
        inode: &Inode,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<ExtentInfo>> {
        let end = offset.saturating_add(length);
        let mut extents: Vec<ExtentInfo> = Vec::new();
        let mut held = Held::at_entry();
        let (_shared, mut held) = inode.lock.read(&mut held);
        let disk = inode.disk();
        if disk.has_inline_data() {
            if offset < disk.size() && length > 0 && most > 0 {
                extents.push(ExtentInfo {
                    logical: 0,
                    physical: 0,
                    length: disk.size(),
                    state: ExtentState::Inline,
                });
            }
            return Ok(extents);
        }
        let bits = self.instance.superblock.block_size_bits();
        let mut at = offset >> bits;
        while (at << bits) < end && at < u64::from(u32::MAX) && extents.len() < most {
            let block = FileBlock(at as u32);
            let run = {
                let (_map, _held) = inode.core.block_map.read(&mut held);
                self.instance.map_blocks(&inode.disk(), block)?
            };
            let state = match run.target {
                Target::Hole => None,
                Target::Written(start) => Some((start, ExtentState::Written)),
                Target::Unwritten(start) => Some((start, ExtentState::Unwritten)),
            };
            if let Some((start, state)) = state {
                extents.push(ExtentInfo {
                    logical: at << bits,
                    physical: start.0 << bits,
                    length: u64::from(run.len) << bits,
                    state,
                });
            }
            at += u64::from(run.len);
        }
        Ok(extents)
    }
}

/// Whether an inode is the file system's own although its number is one for files.
fn is_own(superblock: &Superblock, number: InodeNo) -> bool {
    let number = Some(number);
    number == superblock.journal_inode()
        || number == superblock.orphan_file_inode()
        || (superblock.has_ro_compat(RoCompat::QUOTA)
            && superblock.quota_inodes().contains(&number))
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // Who wants to know how it went shuts down first.
        if let Err(error) = self.unmount() {
            tracing::error!(%error, "the file system was not closed");
        }
        if let Some(live) = &self.instance.live {
            live.orphans.let_go();
        }
    }
}

impl pagefence_vfs::FileSystem for FileSystem {
    type File = File;
    type Directory = Directory;

    fn root(&self) -> InodeId {
        InodeId(u64::from(InodeNo::ROOT.0))
    }

    fn read_only_because(&self) -> Option<String> {
        let reason = || {
            let notes = self.notes.iter();
            let said = notes.filter_map(|note| note.strip_prefix(READ_ONLY)).next();
            said.unwrap_or("it was opened so").to_owned()
        };
        self.instance.live.is_none().then(reason)
    }

    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Entry> {
        if name.len() > MAX_NAME_LEN {
            return Err(Error::NameTooLong);
        }
        let dir = self.dir_inode(parent)?;
        let mut held = Held::at_entry();
        // While the directory is locked, what it names is not deleted.
        let (_entries, _held) = dir.lock.read(&mut held);
        let number = match name {
            b"." => dir.core.number,
            b".." => self.instance.dot_dot(&dir.disk())?,
            _ => match self.instance.find_entry(&dir, name)? {
                Some(number) => number,
                // Stored names are ciphertext: what is asked for may well be there.
                None if dir.disk().is_encrypted() => return Err(Error::NoKey),
                None => return Err(Error::NotFound),
            },
        };
        Ok(Entry {
            attr: self.attr_by_number(number)?,
        })
    }

    fn attr(&self, id: InodeId) -> Result<Attr> {
        let number = self.user_inode(id)?;
        self.attr_of_inode(number)
    }

    fn read_link(&self, id: InodeId) -> Result<Vec<u8>> {
        let number = self.user_inode(id)?;
        self.instance.link_target(&*self.disk_inode(number)?)
    }

    fn access(&self, id: InodeId, access: Access, who: &Credentials) -> Result<()> {
        let number = self.user_inode(id)?;
        let disk = self.disk_inode(number)?;
        let is_special = !matches!(
            disk.kind,
            FileKind::Regular | FileKind::Directory | FileKind::Symlink
        );
        if access.contains(Access::WRITE) && !is_special {
            self.instance.live()?;
        }
        self.with_xattrs(number, |disk| self.instance.check_access(disk, access, who))
    }

    fn open(&self, id: InodeId, write: bool) -> Result<File> {
        let inode = self.inode(id)?;
        match inode.core.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Error::IsDirectory),
            _ => return Err(Error::InvalidArgument),
        }
        if inode.disk().is_encrypted() {
            return Err(Error::NoKey);
        }
        if write {
            self.instance.live()?;
        }
        let mapping = inode.mapping(&self.instance, &self.cache);
        Ok(File {
            errors: mapping.error_cursor(),
            mapping,
            is_writer: write,
            readahead: Readahead::new(),
            inode,
        })
    }

    fn read(&self, file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut held = Held::at_entry();
        match file
            .mapping
            .read(&mut held, &file.readahead, offset, buffer)
        {
            Ok(read) => {
                self.note_access(&file.inode);
                Ok(read)
            }
            Err(ReadError::Backing(error)) => Err(error.into()),
            Err(_) => Err(Error::OutOfMemory),
        }
    }

    fn read_direct(&self, file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.read_file_direct(file, offset, buffer)
    }

    fn seek(&self, file: &File, offset: u64, whence: Whence) -> Result<u64> {
        self.seek_run(&file.inode, offset, whence)
    }

    fn extents(
        &self,
        id: InodeId,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<ExtentInfo>> {
        let inode = self.inode(id)?;
        match inode.core.kind {
            FileKind::Regular | FileKind::Directory => {
                self.extents_of(&inode, offset, length, most)
            }
            _ => Err(Error::Unsupported("an extent map of what has no blocks")),
        }
    }

    fn open_dir(&self, id: InodeId) -> Result<Directory> {
        let inode = self.dir_inode(id)?;
        if inode.disk().is_encrypted() {
            return Err(Error::NoKey);
        }
        self.directory(inode)
    }

    fn read_dir(
        &self,
        dir: &Directory,
        from: Cookie,
        with_attr: bool,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        self.read_directory(dir, from, with_attr, sink)
    }

    fn stat_fs(&self) -> Result<FileSystemStat> {
        let mut stat = {
            let mut known = self.stat.lock();
            match *known {
                Some(stat) => stat,
                None => *known.insert(self.instance.stat_fs()?),
            }
        };
        if let Some(live) = &self.instance.live {
            let counts = live.allocator.counts();
            stat.blocks_free = counts.blocks_unreserved;
            stat.blocks_available = stat.blocks_free.saturating_sub(self.instance.kept_back());
            stat.inodes_free = counts.inodes;
        }
        Ok(stat)
    }

    fn xattr(&self, id: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        let number = self.user_inode(id)?;
        self.with_xattrs(number, |disk| self.instance.xattr(disk, name))
    }

    fn xattr_names(&self, id: InodeId) -> Result<Vec<XattrName>> {
        let number = self.user_inode(id)?;
        self.with_xattrs(number, |disk| self.instance.xattr_names(disk))
    }

    fn fsxattr(&self, id: InodeId) -> Result<Fsxattr> {
        let number = self.user_inode(id)?;
        let disk = self.disk_inode(number)?;
        let flags = disk.record.flags();
        Ok(Fsxattr {
            xflags: XFLAGS
                .iter()
                .filter(|(_, flag)| flags.contains(*flag))
                .fold(0, |xflags, (bit, _)| xflags | bit),
            extent_size: 0,
            extents: 0,
            project: disk.record.project().unwrap_or(0),
        })
    }

    fn forget(&self, id: InodeId) {
        self.forget_inode(id);
    }

    fn create(
        &self,
        parent: InodeId,
        name: &[u8],
        new: &New<'_>,
        who: &Credentials,
    ) -> Result<Entry> {
        self.create_entry(parent, name, new, who)
    }

    fn link(&self, id: InodeId, parent: InodeId, name: &[u8], who: &Credentials) -> Result<Entry> {
        self.link_entry(id, parent, name, who)
    }

    fn unlink(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        self.unlink_entry(parent, name)
    }

    fn rmdir(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        self.remove_dir(parent, name)
    }

    fn rename(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        self.rename_entry(parent, name, new_parent, new_name, mode)
    }

    fn set_attr(&self, id: InodeId, change: &SetAttr, who: &Credentials) -> Result<Attr> {
        self.change_attr(id, change, who)
    }

    fn write(&self, file: &File, offset: u64, data: &[u8], mode: WriteMode) -> Result<usize> {
        self.write_file(file, offset, data, mode)
    }

    fn allocate(&self, file: &File, offset: u64, length: u64, mode: FallocateMode) -> Result<()> {
        self.fallocate(file, offset, length, mode)
    }

    fn copy_range(
        &self,
        from: &File,
        from_offset: u64,
        to: &File,
        to_offset: u64,
        length: u64,
        mode: WriteMode,
    ) -> Result<u64> {
        self.copy_file_range((from, from_offset), (to, to_offset), length, mode)
    }

    fn exchange_range(
        &self,
        first: &File,
        first_offset: u64,
        second: &File,
        second_offset: u64,
        length: u64,
    ) -> Result<()> {
        self.exchange_files((first, first_offset), (second, second_offset), length)
    }

    fn move_blocks(
        &self,
        file: &File,
        offset: u64,
        donor: &File,
        donor_offset: u64,
        length: u64,
    ) -> Result<u64> {
        self.move_to_donor((file, offset), (donor, donor_offset), length)
    }

    fn sync_file(&self, file: &File, data_only: bool) -> Result<()> {
        self.fsync(file, data_only)
    }

    fn sync_dir(&self, dir: &Directory) -> Result<()> {
        self.fsync_dir(dir)
    }

    fn sync(&self) -> Result<()> {
        self.sync_all()
    }

    fn set_xattr(&self, id: InodeId, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.change_xattr(id, name, Some(value), mode)
    }

    fn remove_xattr(&self, id: InodeId, name: &[u8]) -> Result<()> {
        self.change_xattr(id, name, None, XattrMode::Replace)
    }

    fn set_flags(&self, id: InodeId, flags: u32, who: &Credentials) -> Result<()> {
        self.change_flags(id, flags, who)
    }

    fn set_fsxattr(&self, id: InodeId, attributes: &Fsxattr, who: &Credentials) -> Result<()> {
        self.change_fsxattr(id, attributes, who)
    }

    fn migrate(&self, id: InodeId, to: MapFormat, who: &Credentials) -> Result<()> {
        self.migrate_inode(id, to, who)
    }

    fn trim(&self, offset: u64, length: u64, least: u64) -> Result<u64> {
        self.trim_free_space(offset, length, least)
    }

    fn check(
        &self,
        event: &mut dyn FnMut(CheckEvent<'_>) -> ControlFlow<()>,
    ) -> Result<CheckSummary> {
        self.check_and_tell(event)
    }

    fn poisoned(&self) {
        if let Ok(live) = self.instance.live() {
            live.abort_half_done();
        }
    }

    fn shut_down(&self) -> Result<()> {
        self.unmount()
    }
}
