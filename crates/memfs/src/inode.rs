//! Inodes.

use std::collections::BTreeMap;

use pagefence_lock_order::levels::{self, Level};
use pagefence_lock_order::primitives::{Arc, Mutex, RwLock};
use pagefence_lock_order::{After, Held, OrderedRwLock, OrderedWriteGuard, pair};
use pagefence_page_cache::{Backing as _, Mapping};
use pagefence_posix_acl::Acl;
use pagefence_vfs::{Attr, Error, FileKind, InodeId, Result, Timestamp};

use crate::data::{FileData, PAGE_BYTES};
use crate::directory::Directory;
use crate::limits::{INODE_BYTES, Limits};

/// What an entry of a directory adds to its size (Linux: `BOGO_DIRENT_SIZE`).
const ENTRY_BYTES: u64 = 20;
/// Bytes of a sector, the unit of `st_blocks`.
const SECTOR: u64 = 512;

/// An inode: at most one per number, and no number twice.
///
/// - Owns: the inode lock, its record, its data or entries, what it is charged for.
/// - Stays outside: whether the kernel or a library knows its number (whoever serves us counts
///   that, and says when it ends).
/// - Lifecycle: in the table of inodes from its creation until it has no name, nobody has it open
///   and nobody knows it; gone with the last reference, its pages with it.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) number: u64,
    generation: u32,
    pub(crate) kind: FileKind,
    device: (u32, u32),
    created: Timestamp,
    /// The inode lock (Linux: `i_rwsem`): exclusive for changes of data, size, attributes, and of
    /// a directory's entries.
    pub(crate) lock: OrderedRwLock<levels::Inode, ()>,
    /// A leaf: held for moments. Changes happen with the inode lock held exclusively, but for the
    /// time of access.
    pub(crate) record: RwLock<Record>,
    pub(crate) body: Body,
    /// A leaf.
    life: Mutex<Life>,
    limits: Arc<Limits>,
}

/// What an inode holds.
#[derive(Debug)]
pub(crate) enum Body {
    File(Arc<Mapping<FileData>>),
    Directory(Directory),
    Symlink(Box<[u8]>),
    /// A device, a pipe, a socket.
    Special,
}

/// The attributes of an inode.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// The low twelve bits of the mode.
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u32,
    pub(crate) accessed: Timestamp,
    pub(crate) modified: Timestamp,
    pub(crate) changed: Timestamp,
    /// By full name, those of ACLs left out.
    pub(crate) xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    pub(crate) access_acl: Option<Acl>,
    pub(crate) default_acl: Option<Acl>,
    /// Bytes of [`Limits::take_inode_bytes`] that go with the inode.
    pub(crate) charged: u64,
}

/// Who has an inode, and who will.
#[derive(Debug, Default)]
struct Life {
    /// Open files and directories.
    open: u64,
    /// It has no name, and nobody can come by its number any more.
    is_forgotten: bool,
}

/// What does not change in an inode's life.
pub(crate) struct Identity {
    pub(crate) number: u64,
    pub(crate) generation: u32,
    pub(crate) kind: FileKind,
    pub(crate) device: (u32, u32),
}

impl Inode {
    /// An inode that is not in the table yet. `record.charged` is taken already, and given back
    /// when the inode goes.
    pub(crate) fn new(
        identity: &Identity,
        record: Record,
        body: Body,
        limits: Arc<Limits>,
    ) -> Arc<Self> {
        Arc::new(Self {
            number: identity.number,
            generation: identity.generation,
            kind: identity.kind,
            device: identity.device,
            created: record.changed,
            lock: OrderedRwLock::new(identity.number, ()),
            record: RwLock::new(record),
            body,
            life: Mutex::new(Life::default()),
            limits,
        })
    }

    /// Its entries.
    ///
    /// # Errors
    /// `NotDirectory`.
    pub(crate) fn directory(&self) -> Result<&Directory> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Error::NotDirectory),
        }
    }

    /// The pages of its data.
    ///
    /// # Errors
    /// `IsDirectory`, or `InvalidArgument` for what has no data.
    pub(crate) fn mapping(&self) -> Result<&Arc<Mapping<FileData>>> {
        match &self.body {
            Body::File(mapping) => Ok(mapping),
            Body::Directory(_) => Err(Error::IsDirectory),
            Body::Symlink(_) | Body::Special => Err(Error::InvalidArgument),
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// Whether it has a name.
    pub(crate) fn is_linked(&self) -> bool {
        self.record.read().links > 0
    }

    /// Charges `bytes` more to the inode.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn charge(&self, bytes: u64) -> Result<()> {
        self.limits.take_inode_bytes(bytes)?;
        self.record.write().charged += bytes;
        Ok(())
    }

    /// Charges `bytes` less.
    pub(crate) fn discharge(&self, bytes: u64) {
        self.record.write().charged -= bytes;
        self.limits.give_inode_bytes(bytes);
    }

    /// One name less (a directory's last takes its own along); the caller holds the inode lock
    /// exclusively.
    pub(crate) fn drop_name(&self, now: Timestamp) {
        let is_further = {
            let mut record = self.record.write();
            record.changed = now;
            record.links = match self.kind {
                FileKind::Directory => 0,
                _ => record.links.saturating_sub(1),
            };
            record.links > 0
        };
        if is_further {
            self.discharge(INODE_BYTES);
        }
    }

    /// Notes that the data, or the entries, changed.
    pub(crate) fn touch(&self, now: Timestamp) {
        let mut record = self.record.write();
        (record.modified, record.changed) = (now, now);
    }

    /// Somebody opens it.
    ///
    /// # Errors
    /// `Stale` if it is gone.
    pub(crate) fn open(&self) -> Result<()> {
        let mut life = self.life.lock();
        if life.is_forgotten {
            return Err(Error::Stale);
        }
        life.open += 1;
        Ok(())
    }

    /// Somebody closes it; true if it is to leave the table.
    #[must_use]
    pub(crate) fn close(&self) -> bool {
        let mut life = self.life.lock();
        life.open -= 1;
        life.open == 0 && life.is_forgotten
    }

    /// Nobody knows its number; true if it is to leave the table. One with a name stays: it will
    /// be known again. One without never gets one again.
    #[must_use]
    pub(crate) fn forget(&self) -> bool {
        if self.is_linked() {
            return false;
        }
        let mut life = self.life.lock();
        life.is_forgotten = true;
        life.open == 0
    }

    /// Its attributes.
    pub(crate) fn attr(&self) -> Attr {
        let (size, pages) = match &self.body {
            Body::File(mapping) => (mapping.backing().size(), mapping.backing().pages()),
            Body::Directory(directory) => (directory.len() * ENTRY_BYTES, 0),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::Special => (0, 0),
        };
        let record = self.record.read();
        Attr {
            id: InodeId(self.number),
            generation: self.generation,
            kind: self.kind,
            permissions: record.permissions,
            links: record.links,
            uid: record.uid,
            gid: record.gid,
            size,
            blocks_512: pages * (PAGE_BYTES / SECTOR),
            block_size: PAGE_BYTES as u32,
            device_major: self.device.0,
            device_minor: self.device.1,
            accessed: record.accessed,
            modified: record.modified,
            changed: record.changed,
            created: Some(self.created),
            flags: 0,
        }
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        self.limits.give_inode_bytes(self.record.get_mut().charged);
    }
}

/// Locks inodes exclusively, each once, by number.
pub(crate) fn lock_all<'a, P: Level>(
    inodes: &[&'a Inode],
    held: &'a mut Held<'_, P>,
) -> (Vec<OrderedWriteGuard<'a, ()>>, Held<'a, levels::Inode>)
where
    levels::Inode: After<P>,
{
    let locks: Vec<_> = inodes.iter().map(|inode| &inode.lock).collect();
    pair::write_all(&locks, held)
}
