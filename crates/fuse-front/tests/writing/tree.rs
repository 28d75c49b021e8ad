//! The tree that the file system in memory serves, which tests look at meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use pagefence_lock_order::primitives::Mutex;
use pagefence_vfs::{
    Attr, Entry, Error, FileKind, InodeId, New, NewKind, Result, Timestamp, WriteMode,
};

/// The root directory, numbered as ext4 numbers it.
pub(crate) const ROOT: InodeId = InodeId(2);

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 4096;

/// What the tests look at while it is mounted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) tree: Mutex<Tree>,
}

#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) nodes: BTreeMap<u64, Node>,
    last: u64,
    /// How often each inode was forgotten.
    pub(crate) forgotten: BTreeMap<u64, u32>,
    /// Syncs of files: how many, and how many of their data alone.
    pub(crate) syncs: (u32, u32),
    /// Syncs of directories.
    pub(crate) dir_syncs: u32,
    /// All modes in which something was written.
    pub(crate) written: WriteMode,
    /// Reads that were to go past the cache.
    pub(crate) direct_reads: usize,
    pub(crate) read_only: bool,
    /// Files open when it was shut down.
    pub(crate) open_at_the_end: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) attr: Attr,
    pub(crate) bytes: Vec<u8>,
    pub(crate) blocks: BTreeSet<u64>,
    pub(crate) entries: BTreeMap<Vec<u8>, InodeId>,
    pub(crate) parent: InodeId,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) project: u32,
    pub(crate) opens: u32,
    pub(crate) forgotten: bool,
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.expect("the clock is past 1970");
    Timestamp {
        seconds: since.as_secs() as i64,
        nanoseconds: since.subsec_nanos(),
    }
}

impl Counters {
    /// What `name` in the root names.
    pub(crate) fn named(&self, name: &str) -> Option<InodeId> {
        let mut tree = self.tree.lock();
        let root = tree.node(ROOT).expect("the root is there");
        root.entries.get(name.as_bytes()).copied()
    }

    /// Looks at, or changes, an inode behind the kernel's back.
    pub(crate) fn with<T>(&self, id: InodeId, look: impl FnOnce(&mut Node) -> T) -> T {
        look(self.tree.lock().node(id).expect("the inode is there"))
    }

    /// Makes a file in the root behind the kernel's back.
    pub(crate) fn plant(&self, name: &str, bytes: &[u8]) -> InodeId {
        let new = New {
            kind: NewKind::Regular,
            permissions: 0o644,
            umask: 0,
        };
        let mut tree = self.tree.lock();
        let id = tree.make(ROOT, name.as_bytes(), &new, (0, 0));
        let id = id.expect("the name is free").id;
        tree.node(id).expect("just made").put(0, bytes);
        id
    }
}

impl Node {
    pub(crate) fn put(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        if end > self.attr.size {
            self.resize(end);
        }
        self.bytes[offset as usize..end as usize].copy_from_slice(data);
        self.blocks.extend(offset / BLOCK..end.div_ceil(BLOCK));
        self.touch();
    }

    pub(crate) fn resize(&mut self, size: u64) {
        self.bytes.resize(size as usize, 0);
        self.blocks.split_off(&size.div_ceil(BLOCK));
        self.attr.size = size;
        self.touch();
    }

    pub(crate) fn touch(&mut self) {
        self.attr.blocks_512 = self.blocks.len() as u64 * 8;
        (self.attr.modified, self.attr.changed) = (now(), now());
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.attr.kind == FileKind::Directory
    }
}

impl Tree {
    pub(crate) fn node(&mut self, id: InodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&id.0).ok_or(Error::Stale)
    }

    pub(crate) fn changeable(&mut self, id: InodeId) -> Result<&mut Node> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        self.node(id)
    }

    /// A directory that can take a name.
    pub(crate) fn directory(&mut self, id: InodeId) -> Result<&mut Node> {
        let node = self.changeable(id)?;
        match node.is_directory() {
            true if node.attr.links == 0 => Err(Error::NotFound),
            true => Ok(node),
            false => Err(Error::NotDirectory),
        }
    }

    pub(crate) fn find(&mut self, parent: InodeId, name: &[u8]) -> Result<InodeId> {
        let found = self.node(parent)?.entries.get(name);
        found.copied().ok_or(Error::NotFound)
    }

    pub(crate) fn make(
        &mut self,
        parent: InodeId,
        name: &[u8],
        new: &New<'_>,
        owner: (u32, u32),
    ) -> Result<Attr> {
        if self.directory(parent)?.entries.contains_key(name) {
            return Err(Error::Exists);
        }
        self.last += 1;
        let id = InodeId(self.last + 10);
        let (mut device, mut bytes) = ((0, 0), Vec::new());
        let kind = match new.kind {
            NewKind::Regular => FileKind::Regular,
            NewKind::Directory => FileKind::Directory,
            NewKind::Symlink(target) => {
                bytes = target.to_vec();
                FileKind::Symlink
            }
            NewKind::BlockDevice { major, minor } => {
                device = (major, minor);
                FileKind::BlockDevice
            }
            NewKind::CharDevice { major, minor } => {
                device = (major, minor);
                FileKind::CharDevice
            }
            NewKind::Fifo => FileKind::Fifo,
            NewKind::Socket => FileKind::Socket,
        };
        let permissions = new.permissions & !new.umask;
        let mut node = new_node(id, kind, permissions, parent);
        (node.attr.uid, node.attr.gid) = owner;
        (node.attr.device_major, node.attr.device_minor) = device;
        node.attr.size = bytes.len() as u64;
        node.bytes = bytes;
        let attr = node.attr.clone();
        self.nodes.insert(id.0, node);
        self.enter(parent, name, id);
        Ok(attr)
    }

    /// Gives `id` a name; a directory counts in its parent.
    pub(crate) fn enter(&mut self, parent: InodeId, name: &[u8], id: InodeId) {
        let is_directory = self.nodes[&id.0].is_directory();
        let directory = self.node(parent).expect("checked");
        directory.entries.insert(name.to_vec(), id);
        directory.attr.links += u32::from(is_directory);
        directory.touch();
        self.node(id).expect("checked").parent = parent;
    }

    /// Takes a name away, without looking at what it named.
    pub(crate) fn leave(&mut self, parent: InodeId, name: &[u8]) -> InodeId {
        let directory = self.node(parent).expect("checked");
        let id = directory.entries.remove(name).expect("checked");
        let is_directory = self.nodes[&id.0].is_directory();
        let directory = self.node(parent).expect("checked");
        directory.attr.links -= u32::from(is_directory);
        directory.touch();
        id
    }

    /// Takes a name away, and what it named if that is the last.
    pub(crate) fn remove(&mut self, parent: InodeId, name: &[u8], directory: bool) -> Result<()> {
        self.changeable(parent)?;
        let id = self.find(parent, name)?;
        let node = self.node(id)?;
        match (node.is_directory(), directory) {
            (true, false) => return Err(Error::IsDirectory),
            (false, true) => return Err(Error::NotDirectory),
            (true, true) if !node.entries.is_empty() => return Err(Error::NotEmpty),
            (true, true) => node.attr.links = 0,
            (false, false) => node.attr.links -= 1,
        }
        node.attr.changed = now();
        self.leave(parent, name);
        Ok(())
    }

    /// Deletes what has no name, is not open, and was forgotten.
    pub(crate) fn settle(&mut self, id: InodeId) {
        if self
            .nodes
            .get(&id.0)
            .is_some_and(|node| node.attr.links == 0 && node.opens == 0 && node.forgotten)
        {
            self.nodes.remove(&id.0);
        }
    }

    /// The inode is handed out.
    pub(crate) fn give(&mut self, id: InodeId) -> Result<Entry> {
        let node = self.node(id)?;
        node.forgotten = false;
        Ok(Entry {
            attr: node.attr.clone(),
        })
    }
}

pub(crate) fn new_node(id: InodeId, kind: FileKind, permissions: u16, parent: InodeId) -> Node {
    let attr = Attr {
        id,
        generation: 1000 + id.0 as u32,
        kind,
        permissions,
        links: if kind == FileKind::Directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        size: 0,
        blocks_512: 0,
        block_size: BLOCK as u32,
        device_major: 0,
        device_minor: 0,
        accessed: now(),
        modified: now(),
        changed: now(),
        created: None,
        flags: 0,
    };
    Node {
        attr,
        bytes: Vec::new(),
        blocks: BTreeSet::new(),
        entries: BTreeMap::new(),
        parent,
        xattrs: BTreeMap::new(),
        project: 0,
        opens: 0,
        forgotten: false,
    }
}
