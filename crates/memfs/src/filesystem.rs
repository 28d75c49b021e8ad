//! The file system as the interface sees it.

use pagefence_lock_order::OrderedRwLock;
use pagefence_lock_order::levels;
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{Config, PageCache};
use pagefence_posix_acl::{Caller, Owned, permits};
use pagefence_vfs::{
    Access, Attr, Cookie, Credentials, DirSink, Entry, Error, ExtentInfo, FallocateMode, FileKind,
    FileSystem, FileSystemStat, Fsxattr, InodeId, New, RenameMode, Result, SetAttr, Whence,
    WriteMode, XattrMode, XattrName,
};

use crate::clock;
use crate::data::PAGE_BYTES;
use crate::directory::{Directory, OpenDirectory};
use crate::file::File;
use crate::inode::{Body, Identity, Inode, Record};
use crate::inodes::Inodes;
use crate::limits::{INODE_BYTES, Limits};

/// The root's number.
const ROOT: u64 = 1;
/// The longest name, in bytes.
pub(crate) const NAME_MAX: usize = 255;
/// Frames that writers may have in hand beside those of what is written: 4 MiB. With fewer they
/// would wait for each other.
const IN_HAND: u64 = 1024;
/// Pages that are freed before their memory goes back to the operating system: 16 MiB.
const RELEASE_AFTER: u64 = 4096;
/// Inodes at least, so that a small file system holds more than its root.
const LEAST_INODES: u64 = 64;
/// An access time that is older than this is renewed by any access, in seconds.
const OLD: i64 = 24 * 3600;

/// What a file system in memory is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Bytes of data that it may hold, rounded down to whole pages.
    pub size_bytes: u64,
    /// Inodes, and memory for what is no data: 1 KiB for each.
    pub inodes: u64,
    /// The low twelve bits of the root's mode.
    pub permissions: u16,
    /// Owner of the root.
    pub uid: u32,
    /// Group of the root.
    pub gid: u32,
    /// Whether reading leaves the time of access alone.
    pub no_access_times: bool,
}

impl Options {
    /// `size_bytes` of data, an inode for each page of it (as Linux derives both from the memory
    /// there is), and a root that everybody may write to.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            inodes: (size_bytes / PAGE_BYTES).max(LEAST_INODES),
            permissions: 0o1777,
            uid: 0,
            gid: 0,
            no_access_times: false,
        }
    }
}

/// A file system in memory. It is empty when it is made, and gone when it is dropped.
#[derive(Debug)]
pub struct MemFs {
    pub(crate) core: Arc<Core>,
}

/// What the file system and its open files share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) inodes: Inodes,
    /// Held while a directory gets another parent.
    pub(crate) renames: OrderedRwLock<levels::Rename, ()>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) cache: Arc<PageCache>,
    /// Tells these inodes from those that had their numbers in another file system.
    pub(crate) generation: u32,
    no_access_times: bool,
}

impl MemFs {
    /// Makes an empty file system, with a page cache of its own. Memory is taken as it is used, but
    /// for 10 MiB for each 64 GiB of its size.
    ///
    /// # Errors
    /// `InvalidInput` for a size of less than a page or more than 8 TiB, or without an inode for
    /// the root; else the operating system can't reserve addresses.
    pub fn new(options: &Options) -> std::io::Result<Self> {
        let pages = options.size_bytes / PAGE_BYTES;
        if pages == 0 || options.size_bytes > 8 << 40 || options.inodes == 0 {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        Self::with_frames(options, pages, IN_HAND)
    }

    /// The same with `in_hand` frames for those who write.
    pub(crate) fn with_frames(
        options: &Options,
        pages: u64,
        in_hand: u64,
    ) -> std::io::Result<Self> {
        let cache = PageCache::new(Config::for_storage(pages, in_hand))?;
        let limits = Arc::new(Limits::new(pages, options.inodes));
        let no_room = |_| std::io::ErrorKind::InvalidInput;
        limits.take_inode_bytes(INODE_BYTES).map_err(no_room)?;
        let now = clock::now();
        let identity = Identity {
            number: ROOT,
            generation: 0,
            kind: FileKind::Directory,
            device: (0, 0),
        };
        let record = Record {
            permissions: options.permissions & 0o7777,
            uid: options.uid,
            gid: options.gid,
            links: 2,
            accessed: now,
            modified: now,
            changed: now,
            xattrs: std::collections::BTreeMap::new(),
            access_acl: None,
            default_acl: None,
            charged: INODE_BYTES,
        };
        let body = Body::Directory(Directory::new(ROOT));
        let root = Inode::new(&identity, record, body, Arc::clone(&limits));
        let inodes = Inodes::new(ROOT + 1);
        inodes.insert(root);
        let seconds = now.seconds.to_le_bytes();
        let seed = u32::from_le_bytes([seconds[0], seconds[1], seconds[2], seconds[3]]);
        Ok(Self {
            core: Arc::new(Core {
                inodes,
                renames: OrderedRwLock::new(0, ()),
                limits,
                cache,
                generation: seed.rotate_left(16) ^ now.nanoseconds,
                no_access_times: options.no_access_times,
            }),
        })
    }

    /// Somebody read from an inode: its access time becomes now if it is not after the last
    /// change, or is a day old (Linux: relatime).
    pub(crate) fn note_access(&self, inode: &Inode) {
        if self.core.no_access_times {
            return;
        }
        let now = clock::now();
        let is_due = {
            let record = inode.record.read();
            let accessed = record.accessed;
            accessed <= record.modified
                || accessed <= record.changed
                || now.seconds.saturating_sub(accessed.seconds) >= OLD
        };
        if is_due {
            inode.record.write().accessed = now;
        }
    }

    fn check_access(&self, id: InodeId, access: Access, who: &Credentials) -> Result<()> {
        let inode = self.core.inodes.get(id)?;
        let record = inode.record.read();
        let is_granted = if who.uid == 0 {
            // Root may do all but run what nobody may run.
            !access.contains(Access::EXECUTE)
                || inode.is_directory()
                || record.permissions & 0o111 != 0
        } else {
            let caller = Caller {
                uid: who.uid,
                gid: who.gid,
                groups: &who.groups,
            };
            let owned = Owned {
                uid: record.uid,
                gid: record.gid,
                mode: record.permissions,
            };
            permits(record.access_acl.as_ref(), &caller, &owned, access.bits())
        };
        if is_granted {
            Ok(())
        } else {
            Err(Error::PermissionDenied)
        }
    }
}

impl Core {
    /// Takes an inode out of the table that nobody can come by any more. What it holds goes with
    /// the last who has it: with no lock held.
    fn delete(&self, number: u64) {
        drop(self.inodes.remove(number));
        self.release_memory();
    }

    /// Gives memory that is not used any more back to the operating system, now and then. With no
    /// lock held.
    pub(crate) fn release_memory(&self) {
        if self.limits.freed(RELEASE_AFTER) {
            self.cache.shrink(0);
        }
    }
}

/// That somebody has an inode open: it stays in the table until this is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    core: Arc<Core>,
    inode: Arc<Inode>,
}

impl Open {
    /// # Errors
    /// `Stale`.
    pub(crate) fn new(core: &Arc<Core>, inode: Arc<Inode>) -> Result<Self> {
        inode.open()?;
        Ok(Self {
            core: Arc::clone(core),
            inode,
        })
    }

    pub(crate) fn inode(&self) -> &Arc<Inode> {
        &self.inode
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.inode.close() {
            self.core.delete(self.inode.number);
        }
    }
}

/// Gives memory back, if some is due, when it is dropped.
#[derive(Debug)]
pub(crate) struct ReleaseMemory(Arc<Core>);

impl ReleaseMemory {
    pub(crate) fn new(core: &Arc<Core>) -> Self {
        Self(Arc::clone(core))
    }
}

impl Drop for ReleaseMemory {
    fn drop(&mut self) {
        self.0.release_memory();
    }
}

impl FileSystem for MemFs {
    type File = File;
    type Directory = OpenDirectory;

    fn root(&self) -> InodeId {
        InodeId(ROOT)
    }

    fn read_only_because(&self) -> Option<String> {
        None
    }

    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Entry> {
        self.lookup_entry(parent, name)
    }

    fn forget(&self, id: InodeId) {
        if let Ok(inode) = self.core.inodes.get(id)
            && inode.forget()
        {
            self.core.delete(inode.number);
        }
    }

    fn attr(&self, id: InodeId) -> Result<Attr> {
        Ok(self.core.inodes.get(id)?.attr())
    }

    fn read_link(&self, id: InodeId) -> Result<Vec<u8>> {
        let inode = self.core.inodes.get(id)?;
        let Body::Symlink(target) = &inode.body else {
            return Err(Error::InvalidArgument);
        };
        self.note_access(&inode);
        Ok(target.to_vec())
    }

    fn access(&self, id: InodeId, access: Access, who: &Credentials) -> Result<()> {
        self.check_access(id, access, who)
    }

    fn open(&self, id: InodeId, write: bool) -> Result<File> {
        // Nothing is read-only here; what an open file may be used for, whoever serves it checks.
        let _ = write;
        self.open_file(id)
    }

    fn read(&self, file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.read_file(file, offset, buffer)
    }

    fn seek(&self, file: &File, offset: u64, whence: Whence) -> Result<u64> {
        self.seek_file(file, offset, whence)
    }

    fn extents(&self, _: InodeId, _: u64, _: u64, _: usize) -> Result<Vec<ExtentInfo>> {
        Err(Error::Unsupported("an extent map of what is in memory"))
    }

    fn open_dir(&self, id: InodeId) -> Result<OpenDirectory> {
        self.open_directory(id)
    }

    fn read_dir(
        &self,
        dir: &OpenDirectory,
        from: Cookie,
        with_attr: bool,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        self.read_directory(dir, from, with_attr, sink)
    }

    fn stat_fs(&self) -> Result<FileSystemStat> {
        let (blocks, blocks_free) = self.core.limits.pages();
        let (inodes, inodes_free) = self.core.limits.inodes();
        Ok(FileSystemStat {
            block_size: PAGE_BYTES as u32,
            blocks,
            blocks_free,
            blocks_available: blocks_free,
            inodes,
            inodes_free,
            name_length: NAME_MAX as u32,
        })
    }

    fn xattr(&self, id: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.find_xattr(id, name)
    }

    fn xattr_names(&self, id: InodeId) -> Result<Vec<XattrName>> {
        self.list_xattrs(id)
    }

    fn fsxattr(&self, _: InodeId) -> Result<Fsxattr> {
        Err(Error::Unsupported("flags of what is in memory"))
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

    fn link(&self, id: InodeId, parent: InodeId, name: &[u8], _: &Credentials) -> Result<Entry> {
        self.link_entry(id, parent, name)
    }

    fn unlink(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        self.unlink_entry(parent, name)
    }

    fn rmdir(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        self.remove_directory(parent, name)
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

    fn set_xattr(&self, id: InodeId, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.change_xattr(id, name, Some(value), mode)
    }

    fn remove_xattr(&self, id: InodeId, name: &[u8]) -> Result<()> {
        self.change_xattr(id, name, None, XattrMode::Replace)
    }

    fn set_flags(&self, _: InodeId, _: u32, _: &Credentials) -> Result<()> {
        Err(Error::Unsupported("flags of what is in memory"))
    }

    fn set_fsxattr(&self, _: InodeId, _: &Fsxattr, _: &Credentials) -> Result<()> {
        Err(Error::Unsupported("flags of what is in memory"))
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use pagefence_lock_order::primitives::thread;
    use pagefence_vfs::{Credentials, Error, FileSystem as _, New, NewKind, WriteMode};

    use super::{MemFs, Options};
    use crate::data::PAGE_BYTES;

    /// With a single frame for those who write, they wait for each other, and for nothing else.
    #[test]
    fn writers_that_starve_each_other_fill_it_to_the_last_byte() {
        const PAGES: u64 = 700;
        let options = Options::new(PAGES * PAGE_BYTES);
        let fs = MemFs::with_frames(&options, PAGES, 1).expect("memory");
        let fill = |number: u8| -> pagefence_vfs::Result<bool> {
            let who = Credentials {
                uid: 0,
                gid: 0,
                groups: Vec::new(),
            };
            let new = New {
                kind: NewKind::Regular,
                permissions: 0o644,
                umask: 0,
            };
            let id = fs.create(fs.root(), &[number], &new, &who)?.attr.id;
            let file = fs.open(id, true)?;
            // Up to 40 pages at a time, then one byte at a time.
            let (mut size, mut piece) = (0, vec![number; 150_001]);
            loop {
                match fs.write(&file, 0, &piece, WriteMode::APPEND) {
                    Ok(written) => size += written,
                    Err(Error::NoSpace) if piece.len() > 1 => piece.truncate(1),
                    Err(Error::NoSpace) => break,
                    Err(error) => return Err(error),
                }
            }
            let mut bytes = vec![0; size + 1];
            let read = fs.read(&file, 0, &mut bytes)?;
            let is_right = read == size && bytes[..size].iter().all(|byte| *byte == number);
            fs.unlink(fs.root(), &[number])?;
            drop(file);
            fs.forget(id);
            Ok(is_right)
        };
        for round in 0..4_u8 {
            thread::scope(|scope| {
                let numbers = (1..=6).map(|thread| 10 * round + thread);
                let fill = &fill;
                let threads: Vec<_> = numbers
                    .map(|number| scope.spawn(move || fill(number)))
                    .collect();
                for thread in threads {
                    let filled = thread.join().expect("no panic");
                    assert!(filled.expect("no error but a lack of space"));
                }
            });
            assert_eq!(fs.core.limits.pages(), (PAGES, PAGES));
        }
    }
}
