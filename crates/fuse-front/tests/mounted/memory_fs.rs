//! A file system in memory: what the tests mount.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_vfs::{
    Access, Attr, Cookie, Credentials, DirEntry, DirSink, Entry, Error, ExtentInfo, ExtentState,
    FileKind, FileSystem, FileSystemStat, Fsxattr, InodeId, Place, Result, SetAttr, Timestamp,
    Whence, XattrMode, XattrName,
};

/// The root directory, numbered as ext4 numbers it.
pub(crate) const ROOT: InodeId = InodeId(2);

/// Bytes of the data run of a sparse file.
pub(crate) const SPARSE_DATA: std::ops::Range<u64> = 65_536..131_072;

/// Requests that reached the file system, for tests that count them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Lookups of names.
    pub(crate) lookups: AtomicU64,
    /// Lookups of names that do not exist.
    pub(crate) missing: AtomicU64,
    /// Reads of files.
    pub(crate) reads: AtomicU64,
    /// Directories read.
    pub(crate) read_dirs: AtomicU64,
    /// Shut-downs.
    pub(crate) shut_downs: AtomicU64,
    /// Changes that show in the change time of everything, in seconds.
    pub(crate) changes: AtomicU64,
    /// Sectors that everything has besides: they come by themselves.
    pub(crate) sectors: AtomicU64,
    /// Whether who asks for attributes is answered later, with what they are now.
    pub(crate) is_slow: AtomicBool,
    /// Who waits for them meanwhile.
    pub(crate) waiting: AtomicU64,
}

#[derive(Debug)]
enum Content {
    /// `byte(offset)` all the way.
    Pattern,
    /// Data in [`SPARSE_DATA`] alone.
    Sparse,
    Bytes(Vec<u8>),
    /// Reading panics.
    Panic,
    /// Reading finds damage from this byte on; before, it is a pattern.
    Damaged(u64),
    Directory(BTreeMap<Vec<u8>, InodeId>),
    None,
}

#[derive(Debug)]
struct Node {
    attr: Attr,
    content: Content,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The inode can't be read, though an entry names it.
    unreadable: bool,
}

/// The file system.
#[derive(Debug)]
pub(crate) struct MemoryFs {
    nodes: HashMap<u64, Node>,
    counters: Arc<Counters>,
    /// Extended attributes and flags can be set: they are forgotten, and show in the change time.
    pub(crate) is_writable: bool,
}

/// The byte of a pattern file at `offset`.
pub(crate) fn byte(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

impl MemoryFs {
    /// An empty root directory.
    pub(crate) fn new() -> Self {
        let mut fs = Self {
            nodes: HashMap::new(),
            counters: Arc::new(Counters::default()),
            is_writable: false,
        };
        fs.insert(
            ROOT,
            FileKind::Directory,
            Content::Directory(BTreeMap::new()),
        );
        fs
    }

    /// What reached it.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn insert(&mut self, id: InodeId, kind: FileKind, content: Content) {
        let size = match &content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Directory(_) => 4096,
            Content::Sparse => 1 << 20,
            Content::Panic | Content::Damaged(_) => 4096,
            Content::Pattern | Content::None => 0,
        };
        let directory = kind == FileKind::Directory;
        let attr = Attr {
            id,
            generation: 1000 + id.0 as u32,
            kind,
            permissions: if directory { 0o755 } else { 0o644 },
            links: if directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            size,
            blocks_512: size.div_ceil(512),
            block_size: 4096,
            device_major: 0,
            device_minor: 0,
            accessed: Timestamp {
                seconds: 1_000_000_000,
                nanoseconds: 1,
            },
            modified: Timestamp {
                seconds: 5_000_000_000,
                nanoseconds: 123_456_789,
            },
            changed: Timestamp {
                seconds: -1,
                nanoseconds: 500_000_000,
            },
            created: None,
            flags: 0x8_0000,
        };
        let node = Node {
            attr,
            content,
            xattrs: BTreeMap::new(),
            unreadable: false,
        };
        self.nodes.insert(id.0, node);
    }

    fn add(&mut self, parent: InodeId, name: &str, kind: FileKind, content: Content) -> InodeId {
        let id = InodeId(self.nodes.len() as u64 + 10);
        self.insert(id, kind, content);
        self.link(parent, name, id);
        id
    }

    /// A further entry for an inode, which need not exist.
    pub(crate) fn link(&mut self, parent: InodeId, name: &str, id: InodeId) {
        match &mut self
            .nodes
            .get_mut(&parent.0)
            .expect("the parent exists")
            .content
        {
            Content::Directory(entries) => entries.insert(name.into(), id),
            _ => panic!("the parent is a directory"),
        };
    }

    /// A directory.
    pub(crate) fn directory(&mut self, parent: InodeId, name: &str) -> InodeId {
        let empty = Content::Directory(BTreeMap::new());
        self.add(parent, name, FileKind::Directory, empty)
    }

    /// A file that holds `bytes`.
    pub(crate) fn bytes(&mut self, parent: InodeId, name: &str, bytes: &[u8]) -> InodeId {
        self.add(
            parent,
            name,
            FileKind::Regular,
            Content::Bytes(bytes.to_vec()),
        )
    }

    /// A file of `size` bytes, each [`byte`] of its offset.
    pub(crate) fn pattern(&mut self, parent: InodeId, name: &str, size: u64) -> InodeId {
        let id = self.add(parent, name, FileKind::Regular, Content::Pattern);
        self.attr_mut(id).size = size;
        id
    }

    /// A file of 1 MiB with data in [`SPARSE_DATA`].
    pub(crate) fn sparse(&mut self, parent: InodeId, name: &str) -> InodeId {
        self.add(parent, name, FileKind::Regular, Content::Sparse)
    }

    /// A file whose reading panics.
    pub(crate) fn panicking(&mut self, parent: InodeId, name: &str) -> InodeId {
        self.add(parent, name, FileKind::Regular, Content::Panic)
    }

    /// A file whose data is damaged from byte `from` on, with a pattern before.
    pub(crate) fn damaged(&mut self, parent: InodeId, name: &str, from: u64) -> InodeId {
        self.add(parent, name, FileKind::Regular, Content::Damaged(from))
    }

    /// An entry whose inode is damaged.
    pub(crate) fn unreadable(&mut self, parent: InodeId, name: &str) -> InodeId {
        let id = self.add(parent, name, FileKind::Regular, Content::None);
        self.nodes.get_mut(&id.0).expect("just made").unreadable = true;
        id
    }

    /// A symbolic link.
    pub(crate) fn symlink(&mut self, parent: InodeId, name: &str, target: &str) -> InodeId {
        self.add(
            parent,
            name,
            FileKind::Symlink,
            Content::Bytes(target.into()),
        )
    }

    /// A character device.
    pub(crate) fn device(
        &mut self,
        parent: InodeId,
        name: &str,
        major: u32,
        minor: u32,
    ) -> InodeId {
        let id = self.add(parent, name, FileKind::CharDevice, Content::None);
        let attr = self.attr_mut(id);
        (attr.device_major, attr.device_minor) = (major, minor);
        id
    }

    /// Sets an extended attribute.
    pub(crate) fn set_xattr(&mut self, id: InodeId, name: &str, value: &[u8]) {
        let node = self.nodes.get_mut(&id.0).expect("the inode exists");
        node.xattrs.insert(name.into(), value.to_vec());
    }

    /// The attributes, to be changed.
    pub(crate) fn attr_mut(&mut self, id: InodeId) -> &mut Attr {
        &mut self.nodes.get_mut(&id.0).expect("the inode exists").attr
    }

    fn node(&self, id: InodeId) -> Result<&Node> {
        let node = self.nodes.get(&id.0).ok_or(Error::NotFound)?;
        if node.unreadable {
            return Err(damage(id));
        }
        Ok(node)
    }

    fn change(&self, id: InodeId) -> Result<()> {
        if !self.is_writable {
            return Err(Error::ReadOnly);
        }
        self.node(id)?;
        self.counters.changes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn entries(&self, id: InodeId) -> Result<&BTreeMap<Vec<u8>, InodeId>> {
        match &self.node(id)?.content {
            Content::Directory(entries) => Ok(entries),
            _ => Err(Error::NotDirectory),
        }
    }
}

fn damage(id: InodeId) -> Error {
    Error::Corrupt {
        what: "made so by a test".into(),
        place: Place {
            inode: Some(id.0),
            block: None,
        },
    }
}

impl FileSystem for MemoryFs {
    type File = InodeId;
    type Directory = InodeId;

    fn root(&self) -> InodeId {
        ROOT
    }

    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Entry> {
        self.counters.lookups.fetch_add(1, Ordering::Relaxed);
        let Some(&id) = self.entries(parent)?.get(name) else {
            self.counters.missing.fetch_add(1, Ordering::Relaxed);
            return Err(Error::NotFound);
        };
        Ok(Entry {
            attr: self.attr(id)?,
        })
    }

    fn read_only_because(&self) -> Option<String> {
        (!self.is_writable).then(String::new)
    }

    fn attr(&self, id: InodeId) -> Result<Attr> {
        let counters = &self.counters;
        let mut attr = self.node(id)?.attr.clone();
        attr.changed.seconds += counters.changes.load(Ordering::SeqCst) as i64;
        attr.blocks_512 += counters.sectors.load(Ordering::SeqCst);
        if counters.is_slow.load(Ordering::SeqCst) {
            counters.waiting.fetch_add(1, Ordering::SeqCst);
            while counters.is_slow.load(Ordering::SeqCst) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        Ok(attr)
    }

    /// Allows it to the group of the inode, and to root.
    fn set_attr(&self, id: InodeId, _: &SetAttr, who: &Credentials) -> Result<Attr> {
        let gid = self.node(id)?.attr.gid;
        if who.uid != 0 && who.gid != gid && !who.groups.contains(&gid) {
            return Err(Error::NotPermitted);
        }
        self.change(id)?;
        self.attr(id)
    }

    fn set_flags(&self, id: InodeId, _: u32, _: &Credentials) -> Result<()> {
        self.change(id)
    }

    fn set_xattr(&self, id: InodeId, _: &[u8], _: &[u8], _: XattrMode) -> Result<()> {
        self.change(id)
    }

    fn read_link(&self, id: InodeId) -> Result<Vec<u8>> {
        match &self.node(id)?.content {
            Content::Bytes(target) => Ok(target.clone()),
            _ => Err(Error::InvalidArgument),
        }
    }

    fn access(&self, _: InodeId, _: Access, _: &Credentials) -> Result<()> {
        Ok(())
    }

    fn open(&self, id: InodeId, write: bool) -> Result<InodeId> {
        if write {
            return Err(Error::ReadOnly);
        }
        self.node(id).map(|node| node.attr.id)
    }

    fn read(&self, file: &InodeId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        let node = self.node(*file)?;
        let length = node
            .attr
            .size
            .saturating_sub(offset)
            .min(buffer.len() as u64) as usize;
        for (at, out) in (offset..).zip(&mut buffer[..length]) {
            *out = match &node.content {
                Content::Bytes(bytes) => bytes[at as usize],
                Content::Sparse if !SPARSE_DATA.contains(&at) => 0,
                Content::Panic => panic!("a test asked for it"),
                Content::Damaged(from) if at >= *from && at > offset => {
                    return Ok((at - offset) as usize);
                }
                Content::Damaged(from) if at >= *from => return Err(damage(*file)),
                _ => byte(at),
            };
        }
        Ok(length)
    }

    fn seek(&self, file: &InodeId, offset: u64, whence: Whence) -> Result<u64> {
        let node = self.node(*file)?;
        let data = match node.content {
            Content::Sparse => SPARSE_DATA,
            _ => 0..node.attr.size,
        };
        if offset >= node.attr.size {
            return Err(Error::NoData);
        }
        match whence {
            Whence::Data if offset >= data.end => Err(Error::NoData),
            Whence::Data => Ok(offset.max(data.start)),
            Whence::Hole if data.contains(&offset) => Ok(data.end),
            Whence::Hole => Ok(offset),
        }
    }

    fn extents(
        &self,
        id: InodeId,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<ExtentInfo>> {
        let blocks = self.node(id)?.attr.size.div_ceil(4096);
        let first = offset / 4096;
        let end = offset.saturating_add(length).div_ceil(4096).min(blocks);
        // Every other block, so that a file has many extents.
        let extents = (first..end)
            .filter(|block| block % 2 == 0)
            .map(|block| ExtentInfo {
                logical: block * 4096,
                physical: (1 << 30) + block * 4096,
                length: 4096,
                state: ExtentState::Written,
            });
        Ok(extents.take(most).collect())
    }

    fn open_dir(&self, id: InodeId) -> Result<InodeId> {
        self.entries(id).map(|_| id)
    }

    fn read_dir(
        &self,
        dir: &InodeId,
        from: Cookie,
        with_attr: bool,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        self.counters.read_dirs.fetch_add(1, Ordering::Relaxed);
        let dots: [(&[u8], InodeId); 2] = [(b".", *dir), (b"..", ROOT)];
        let names = self
            .entries(*dir)?
            .iter()
            .map(|(name, id)| (name.as_slice(), *id));
        for (index, (name, id)) in (1..).zip(dots.into_iter().chain(names)) {
            if index <= from {
                continue;
            }
            let attr = if with_attr && index > 2 {
                self.attr(id).ok()
            } else {
                None
            };
            // Some directories do not record the kind.
            let kind = self.nodes.get(&id.0).map(|node| node.attr.kind);
            let kind = kind.filter(|_| !name.starts_with(b"nokind"));
            let entry = DirEntry {
                id,
                kind,
                name,
                next: index,
                attr,
            };
            if sink.entry(&entry) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn stat_fs(&self) -> Result<FileSystemStat> {
        Ok(FileSystemStat {
            block_size: 4096,
            blocks: 1000,
            blocks_free: 300,
            blocks_available: 200,
            inodes: 500,
            inodes_free: 400,
            name_length: 255,
        })
    }

    fn xattr(&self, id: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.node(id)?
            .xattrs
            .get(name)
            .cloned()
            .ok_or(Error::NoAttribute)
    }

    fn xattr_names(&self, id: InodeId) -> Result<Vec<XattrName>> {
        Ok(self
            .node(id)?
            .xattrs
            .keys()
            .cloned()
            .map(XattrName)
            .collect())
    }

    fn fsxattr(&self, id: InodeId) -> Result<Fsxattr> {
        self.node(id)?;
        Ok(Fsxattr {
            xflags: 0x10,
            extent_size: 0,
            extents: 3,
            project: 77,
        })
    }

    fn shut_down(&self) -> Result<()> {
        self.counters.shut_downs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
