//! A file system in memory that can be written to. It deletes an inode without a name when it has
//! been forgotten and closed, never earlier, and counts what reaches it.

use std::ops::ControlFlow;

use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{
    Access, Attr, Cookie, Credentials, DirEntry, DirSink, Entry, Error, ExtentInfo, FallocateMode,
    FileKind, FileSystem, FileSystemStat, Fsxattr, InodeId, New, RenameMode, Result, SetAttr,
    SetTime, Whence, WriteMode, XattrMode, XattrName,
};

pub(crate) use crate::tree::Counters;
use crate::tree::{BLOCK, ROOT, new_node, now};

/// Making a file of this name panics.
pub(crate) const PANIC: &[u8] = b"panic";

/// An entry of this name is listed without attributes.
pub(crate) const BARE: &[u8] = b"bare";

/// A new file of this name can't be opened.
pub(crate) const SHUT: &[u8] = b"shut";

#[derive(Debug)]
pub(crate) struct MemoryFs {
    shared: Arc<Counters>,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct File {
    id: InodeId,
    shared: Arc<Counters>,
}

impl Drop for File {
    fn drop(&mut self) {
        let mut tree = self.shared.tree.lock();
        let node = tree.node(self.id).expect("an open file is there");
        node.opens -= 1;
        tree.settle(self.id);
    }
}

impl MemoryFs {
    /// An empty root directory, in which everyone may make files.
    pub(crate) fn new() -> Self {
        let shared = Arc::new(Counters::default());
        let root = new_node(ROOT, FileKind::Directory, 0o777, ROOT);
        shared.tree.lock().nodes.insert(ROOT.0, root);
        Self { shared }
    }

    /// What reaches it.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared)
    }
}

impl FileSystem for MemoryFs {
    type File = File;
    type Directory = InodeId;

    fn root(&self) -> InodeId {
        ROOT
    }

    fn read_only_because(&self) -> Option<String> {
        None
    }

    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Entry> {
        let mut tree = self.shared.tree.lock();
        let id = match name {
            b".." => tree.node(parent)?.parent,
            _ => tree.find(parent, name)?,
        };
        tree.give(id)
    }

    fn forget(&self, id: InodeId) {
        let mut tree = self.shared.tree.lock();
        *tree.forgotten.entry(id.0).or_default() += 1;
        if let Ok(node) = tree.node(id) {
            node.forgotten = true;
            tree.settle(id);
        }
    }

    fn attr(&self, id: InodeId) -> Result<Attr> {
        Ok(self.shared.tree.lock().node(id)?.attr.clone())
    }

    fn read_link(&self, id: InodeId) -> Result<Vec<u8>> {
        Ok(self.shared.tree.lock().node(id)?.bytes.clone())
    }

    fn access(&self, _: InodeId, _: Access, _: &Credentials) -> Result<()> {
        Ok(())
    }

    fn open(&self, id: InodeId, write: bool) -> Result<File> {
        let mut tree = self.shared.tree.lock();
        if tree.node(ROOT)?.entries.get(SHUT) == Some(&id) {
            return Err(Error::NoKey);
        }
        let node = if write {
            tree.changeable(id)?
        } else {
            tree.node(id)?
        };
        node.opens += 1;
        let shared = Arc::clone(&self.shared);
        Ok(File { id, shared })
    }

    fn read(&self, file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut tree = self.shared.tree.lock();
        let bytes = &tree.node(file.id)?.bytes;
        let from = bytes.len().min(offset as usize);
        let length = (bytes.len() - from).min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[from..from + length]);
        Ok(length)
    }

    fn read_direct(&self, file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.shared.tree.lock().direct_reads += 1;
        self.read(file, offset, buffer)
    }

    fn seek(&self, file: &File, offset: u64, whence: Whence) -> Result<u64> {
        let mut tree = self.shared.tree.lock();
        let node = tree.node(file.id)?;
        let size = node.attr.size;
        if offset >= size {
            return Err(Error::NoData);
        }
        let wanted = |block: &u64| node.blocks.contains(block) == (whence == Whence::Data);
        match (offset / BLOCK..size.div_ceil(BLOCK)).find(wanted) {
            Some(block) => Ok(offset.max(block * BLOCK)),
            None if whence == Whence::Hole => Ok(size),
            None => Err(Error::NoData),
        }
    }

    fn extents(&self, _: InodeId, _: u64, _: u64, _: usize) -> Result<Vec<ExtentInfo>> {
        Err(Error::Unsupported("no test asks for extents here"))
    }

    fn open_dir(&self, id: InodeId) -> Result<InodeId> {
        Ok(self.attr(id)?.id)
    }

    fn read_dir(
        &self,
        dir: &InodeId,
        from: Cookie,
        with_attr: bool,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        let mut tree = self.shared.tree.lock();
        let directory = tree.node(*dir)?;
        let dots: [(Vec<u8>, InodeId); 2] =
            [(b".".to_vec(), *dir), (b"..".to_vec(), directory.parent)];
        let names = directory.entries.clone();
        for (index, (name, id)) in (1..).zip(dots.into_iter().chain(names)) {
            if index <= from {
                continue;
            }
            let attr = tree.node(id)?.attr.clone();
            let entry = DirEntry {
                id,
                kind: Some(attr.kind),
                name: &name,
                next: index,
                attr: (with_attr && index > 2 && name != BARE).then_some(attr),
            };
            if sink.entry(&entry) == ControlFlow::Break(()) {
                break;
            }
            if with_attr && index > 2 {
                tree.give(id)?;
            }
        }
        Ok(())
    }

    fn stat_fs(&self) -> Result<FileSystemStat> {
        Ok(FileSystemStat {
            block_size: BLOCK as u32,
            blocks: 1000,
            blocks_free: 500,
            blocks_available: 500,
            inodes: 1000,
            inodes_free: 500,
            name_length: 255,
        })
    }

    fn xattr(&self, id: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        let mut tree = self.shared.tree.lock();
        let value = tree.node(id)?.xattrs.get(name);
        value.cloned().ok_or(Error::NoAttribute)
    }

    fn xattr_names(&self, id: InodeId) -> Result<Vec<XattrName>> {
        let mut tree = self.shared.tree.lock();
        Ok(tree
            .node(id)?
            .xattrs
            .keys()
            .cloned()
            .map(XattrName)
            .collect())
    }

    fn fsxattr(&self, id: InodeId) -> Result<Fsxattr> {
        Ok(Fsxattr {
            project: self.shared.tree.lock().node(id)?.project,
            ..Fsxattr::default()
        })
    }

    fn create(
        &self,
        parent: InodeId,
        name: &[u8],
        new: &New<'_>,
        who: &Credentials,
    ) -> Result<Entry> {
        assert_ne!(name, PANIC, "a test asked for it");
        let mut tree = self.shared.tree.lock();
        let made = tree.make(parent, name, new, (who.uid, who.gid))?;
        tree.give(made.id)
    }

    fn link(&self, id: InodeId, parent: InodeId, name: &[u8], _: &Credentials) -> Result<Entry> {
        let mut tree = self.shared.tree.lock();
        if tree.directory(parent)?.entries.contains_key(name) {
            return Err(Error::Exists);
        }
        let node = tree.node(id)?;
        node.attr.links += 1;
        node.attr.changed = now();
        tree.enter(parent, name, id);
        tree.give(id)
    }

    fn unlink(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        self.shared.tree.lock().remove(parent, name, false)
    }

    fn rmdir(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        self.shared.tree.lock().remove(parent, name, true)
    }

    fn rename(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let mut tree = self.shared.tree.lock();
        let id = tree.find(parent, name)?;
        tree.directory(new_parent)?;
        let target = tree.find(new_parent, new_name).ok();
        if mode.contains(RenameMode::EXCHANGE) {
            let other = target.ok_or(Error::NotFound)?;
            tree.leave(parent, name);
            tree.leave(new_parent, new_name);
            tree.enter(parent, name, other);
            tree.enter(new_parent, new_name, id);
            return Ok(());
        }
        if let Some(target) = target {
            if mode.contains(RenameMode::NO_REPLACE) {
                return Err(Error::Exists);
            }
            let is_directory = tree.node(target)?.is_directory();
            tree.remove(new_parent, new_name, is_directory)?;
        }
        tree.leave(parent, name);
        tree.enter(new_parent, new_name, id);
        Ok(())
    }

    fn set_attr(&self, id: InodeId, change: &SetAttr, who: &Credentials) -> Result<Attr> {
        let mut tree = self.shared.tree.lock();
        let node = tree.changeable(id)?;
        if let Some(size) = change.size {
            node.resize(size);
            if who.uid != 0 {
                node.attr.permissions &= 0o1777;
            }
        }
        if change.uid.is_some() || change.gid.is_some() {
            node.attr.permissions &= 0o1777;
        }
        let attr = &mut node.attr;
        attr.permissions = change.permissions.unwrap_or(attr.permissions);
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        let time = |asked: Option<SetTime>, old| match asked {
            None => old,
            Some(SetTime::Now) => now(),
            Some(SetTime::To(time)) => time,
        };
        attr.accessed = time(change.accessed, attr.accessed);
        attr.modified = time(change.modified, attr.modified);
        attr.changed = change.changed.unwrap_or_else(now);
        Ok(attr.clone())
    }

    fn write(&self, file: &File, offset: u64, data: &[u8], mode: WriteMode) -> Result<usize> {
        let mut tree = self.shared.tree.lock();
        tree.written |= mode;
        let node = tree.changeable(file.id)?;
        let times = (node.attr.modified, node.attr.changed);
        node.put(offset, data);
        if mode.contains(WriteMode::KILL_PRIVILEGES) {
            node.attr.permissions &= 0o1777;
        }
        if mode.contains(WriteMode::WRITEBACK) {
            (node.attr.modified, node.attr.changed) = times;
        }
        Ok(data.len())
    }

    fn allocate(&self, file: &File, offset: u64, length: u64, mode: FallocateMode) -> Result<()> {
        let mut tree = self.shared.tree.lock();
        let node = tree.changeable(file.id)?;
        let end = offset + length;
        if mode.intersects(FallocateMode::COLLAPSE_RANGE | FallocateMode::INSERT_RANGE) {
            let (from, to) = (offset as usize, end as usize);
            if mode.contains(FallocateMode::COLLAPSE_RANGE) {
                node.bytes.drain(from..to);
            } else {
                let zeros = vec![0; to - from];
                node.bytes.splice(from..from, zeros);
            }
            node.attr.size = node.bytes.len() as u64;
            node.blocks = (0..node.attr.size.div_ceil(BLOCK)).collect();
            node.touch();
            return Ok(());
        }
        if mode.contains(FallocateMode::PUNCH_HOLE) {
            let whole = offset.div_ceil(BLOCK)..end / BLOCK;
            node.blocks.retain(|block| !whole.contains(block));
        } else {
            node.blocks.extend(offset / BLOCK..end.div_ceil(BLOCK));
            if end > node.attr.size && !mode.contains(FallocateMode::KEEP_SIZE) {
                let blocks = node.blocks.clone();
                node.resize(end);
                node.blocks = blocks;
            }
        }
        if mode.intersects(FallocateMode::PUNCH_HOLE | FallocateMode::ZERO_RANGE) {
            let size = node.bytes.len();
            let (from, to) = (size.min(offset as usize), size.min(end as usize));
            node.bytes[from..to].fill(0);
        }
        node.touch();
        Ok(())
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
        let mut data = vec![0; length.min(1 << 20) as usize];
        let got = self.read(from, from_offset, &mut data)?;
        let mut tree = self.shared.tree.lock();
        let node = tree.changeable(to.id)?;
        node.put(to_offset, &data[..got]);
        if mode.contains(WriteMode::KILL_PRIVILEGES) {
            node.attr.permissions &= 0o1777;
        }
        Ok(got as u64)
    }

    fn sync_file(&self, _: &File, data_only: bool) -> Result<()> {
        let mut tree = self.shared.tree.lock();
        tree.syncs.0 += 1;
        tree.syncs.1 += u32::from(data_only);
        Ok(())
    }

    fn sync_dir(&self, _: &InodeId) -> Result<()> {
        self.shared.tree.lock().dir_syncs += 1;
        Ok(())
    }

    fn set_xattr(&self, id: InodeId, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        let mut tree = self.shared.tree.lock();
        let node = tree.changeable(id)?;
        match (mode, node.xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return Err(Error::Exists),
            (XattrMode::Replace, false) => return Err(Error::NoAttribute),
            _ => node.xattrs.insert(name.to_vec(), value.to_vec()),
        };
        Ok(())
    }

    fn remove_xattr(&self, id: InodeId, name: &[u8]) -> Result<()> {
        let mut tree = self.shared.tree.lock();
        let removed = tree.changeable(id)?.xattrs.remove(name);
        removed.map(drop).ok_or(Error::NoAttribute)
    }

    fn set_flags(&self, id: InodeId, flags: u32, _: &Credentials) -> Result<()> {
        self.shared.tree.lock().changeable(id)?.attr.flags = flags;
        Ok(())
    }

    fn set_fsxattr(&self, id: InodeId, attributes: &Fsxattr, _: &Credentials) -> Result<()> {
        self.shared.tree.lock().changeable(id)?.project = attributes.project;
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64, least: u64) -> Result<u64> {
        Ok(length.min(1 << 20) - offset - least)
    }

    fn poisoned(&self) {
        self.shared.tree.lock().read_only = true;
    }

    fn shut_down(&self) -> Result<()> {
        let mut tree = self.shared.tree.lock();
        tree.open_at_the_end = Some(tree.nodes.values().map(|node| node.opens).sum());
        Ok(())
    }
}
