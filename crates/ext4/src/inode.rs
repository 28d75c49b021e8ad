//! Inodes in core.

use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::inode::{self as format, InodeFlags};
use pagefence_lock_order::OrderedRwLock;
use pagefence_lock_order::levels::{self, BlockMap};
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex, RwLock};
use pagefence_page_cache::{Mapping, PageCache};
use pagefence_vfs::{Attr, FileKind, Result};

use crate::backing::FileData;
use crate::change::Transaction;
use crate::delalloc::Delayed;
use crate::disk_inode::DiskInode;
use crate::inode_cache::Idle;
use crate::instance::Instance;
use crate::name_index::KnownNames;

/// An inode in core: at most one per number.
///
/// - Owns: the inode lock; its core; its pages, and for a directory the index of its names, both
///   made when first needed; how often it is open.
/// - Outside: whether the kernel or a library knows its number (whoever serves us counts that).
/// - Lifecycle: loaded by number, kept by the inode cache while it is used or not idle. Without
///   names left it is kept by the list of orphans until it is deleted.
#[derive(Debug)]
pub(crate) struct Inode {
    /// The inode lock (Linux: `i_rwsem`): exclusive for changes of a file's data, size and
    /// attributes and of a directory's entries; shared for finding entries.
    pub(crate) lock: OrderedRwLock<levels::Inode, ()>,
    pub(crate) core: Arc<InodeCore>,
    mapping: Mutex<Option<Arc<Mapping<FileData>>>>,
    pub(crate) names: Mutex<KnownNames>,
    /// Counts changes of a directory's entries.
    entries_version: AtomicU64,
}

/// What an inode and the backing of its pages share.
///
/// Its attributes are a snapshot that is replaced by each change: who reads holds nothing.
#[derive(Debug)]
pub(crate) struct InodeCore {
    pub(crate) number: InodeNo,
    pub(crate) kind: FileKind,
    /// The block map's lock (Linux: `i_data_sem`): shared to look up blocks, exclusive to change
    /// the map, the record's map, its block count and the blocks that are delayed.
    pub(crate) block_map: OrderedRwLock<BlockMap, Delayed>,
    /// Blocks that are delayed, for those who hold no lock.
    pub(crate) delayed_blocks: AtomicU64,
    /// A leaf: held for moments.
    disk: RwLock<Arc<DiskInode>>,
    /// The size as users see it (i_size). The record has the size up to which blocks are mapped
    /// (i_disksize), which is not larger, but for what is between two transactions.
    size: AtomicU64,
    /// Blocks that a truncation failed to take away may lie behind the end. Changes under the
    /// inode lock.
    half_cut: AtomicBool,
    /// The map is being migrated, and nobody has changed it since that began (S2.3). Set and tested
    /// under the block map's lock, cleared under it by whoever changes the map.
    migrating: AtomicBool,
    /// The mutant: whoever changes the map leaves the flag as it is.
    #[cfg(test)]
    pub(crate) keeps_migrating: AtomicBool,
    /// The record says more than the inode table.
    dirty: AtomicBool,
    /// Held from the record's copy until it is in its block, so that copies get there in order.
    writing: Mutex<()>,
    /// The last transaction that changed the inode, and the last that changed what its data needs.
    sync_tid: AtomicU64,
    data_sync_tid: AtomicU64,
}

impl Inode {
    pub(crate) fn new(disk: DiskInode) -> Self {
        let number = disk.number;
        Self {
            lock: OrderedRwLock::new(u64::from(number.0), ()),
            core: Arc::new(InodeCore {
                number,
                kind: disk.kind,
                block_map: OrderedRwLock::new(u64::from(number.0), Delayed::default()),
                delayed_blocks: AtomicU64::new(0),
                size: AtomicU64::new(disk.size()),
                disk: RwLock::new(Arc::new(disk)),
                half_cut: AtomicBool::new(false),
                migrating: AtomicBool::new(false),
                #[cfg(test)]
                keeps_migrating: AtomicBool::new(false),
                dirty: AtomicBool::new(false),
                writing: Mutex::new(()),
                sync_tid: AtomicU64::new(0),
                data_sync_tid: AtomicU64::new(0),
            }),
            mapping: Mutex::new(None),
            names: Mutex::new(KnownNames::default()),
            entries_version: AtomicU64::new(0),
        }
    }

    /// As [`Self::new`], for what was read from the inode table while transaction `running` ran:
    /// that, or one before it, may have what changed it last and is not durable yet.
    pub(crate) fn loaded(disk: DiskInode, running: u64) -> Self {
        let inode = Self::new(disk);
        inode.core.sync_tid.store(running, Ordering::Release);
        inode.core.data_sync_tid.store(running, Ordering::Release);
        inode
    }

    /// What is on record of it now.
    pub(crate) fn disk(&self) -> Arc<DiskInode> {
        self.core.disk()
    }

    /// The pages of its data.
    pub(crate) fn mapping(
        &self,
        instance: &Arc<Instance>,
        cache: &Arc<PageCache>,
    ) -> Arc<Mapping<FileData>> {
        let mut mapping = self.mapping.lock();
        Arc::clone(mapping.get_or_insert_with(|| {
            let cache_again = Arc::downgrade(cache);
            let data = FileData::new(Arc::clone(instance), Arc::clone(&self.core), cache_again);
            Mapping::new(cache, u64::from(self.core.number.0), data)
        }))
    }

    /// The pages of its data, if it has any.
    pub(crate) fn existing_mapping(&self) -> Option<Arc<Mapping<FileData>>> {
        self.mapping.lock().clone()
    }

    /// How often a directory's entries changed. Changes happen under the inode lock.
    pub(crate) fn entries_version(&self) -> u64 {
        self.entries_version.load(Ordering::Acquire)
    }

    /// Counts a change of a directory's entries; the caller holds the inode lock exclusively.
    pub(crate) fn entries_changed(&self) {
        self.entries_version.fetch_add(1, Ordering::AcqRel);
    }

    /// Its attributes.
    pub(crate) fn attr(&self, instance: &Instance) -> Attr {
        self.core.attr(instance)
    }
}

impl Idle for Inode {
    /// Whether nothing is lost if it is dropped: the next load finds the same on disk, and the
    /// same pages are in nobody's hands.
    fn is_idle(&self) -> bool {
        let mapping_is_idle = self
            .mapping
            .lock()
            .as_ref()
            .is_none_or(|mapping| Arc::strong_count(mapping) == 1 && mapping.is_idle());
        mapping_is_idle && !self.core.is_dirty() && Arc::strong_count(&self.core) <= 2
    }
}

impl InodeCore {
    /// What is on record of it now.
    pub(crate) fn disk(&self) -> Arc<DiskInode> {
        Arc::clone(&self.disk.read())
    }

    /// Its size in bytes (i_size).
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Sets its size (i_size); the caller holds the inode lock exclusively.
    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Whether blocks that a truncation failed to take away may lie behind its end: nothing may
    /// make them part of the file.
    pub(crate) fn is_half_cut(&self) -> bool {
        self.half_cut.load(Ordering::Acquire)
    }

    /// Notes whether it is half cut; the caller holds the inode lock exclusively.
    pub(crate) fn set_half_cut(&self, half_cut: bool) {
        self.half_cut.store(half_cut, Ordering::Release);
    }

    /// Its attributes, as users see them.
    pub(crate) fn attr(&self, instance: &Instance) -> Attr {
        let disk = self.disk();
        let mut attr = disk.attr(instance);
        if self.kind == FileKind::Regular {
            attr.size = self.size();
            let delayed = self.delayed_blocks.load(Ordering::Relaxed);
            attr.blocks_512 += delayed * u64::from(attr.block_size / 512);
        }
        attr
    }

    /// Changes the record in core; [`Self::write`] brings it to the inode table. Whoever changes
    /// the block area, the block count or flags that say how blocks are mapped holds the block
    /// map's lock exclusively; other fields need the inode lock.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut format::Inode) -> T) -> T {
        let mut disk = self.disk.write();
        let mut new = DiskInode::clone(&disk);
        let result = change(&mut new.record);
        *disk = Arc::new(new);
        self.dirty.store(true, Ordering::Release);
        result
    }

    /// Takes over into the record in core what changed from `before` to `after`. If that is
    /// anything of the map, the caller holds the block map's lock exclusively.
    pub(crate) fn adopt(&self, before: &format::Inode, after: &format::Inode) {
        if says_of_map(before) != says_of_map(after) {
            self.note_map_change();
        }
        self.update(|record| record.adopt(before, after));
    }

    /// Says that the map is about to be read as a whole, to be replaced; the caller holds the
    /// block map's lock (S2.4).
    pub(crate) fn begin_migration(&self) {
        self.migrating.store(true, Ordering::Release);
    }

    /// Whether nobody has changed the map since [`Self::begin_migration`].
    pub(crate) fn is_migrating(&self) -> bool {
        self.migrating.load(Ordering::Acquire)
    }

    /// Ends a migration; whether nobody has changed the map since it began. Who goes by that holds
    /// the block map's lock exclusively, until the map is replaced (S2.6).
    pub(crate) fn end_migration(&self) -> bool {
        self.migrating.swap(false, Ordering::AcqRel)
    }

    /// Something in the map has another place or state: a migration that has read it must not put
    /// its own in its place (S2.5). The caller holds the block map's lock exclusively.
    /// [`Self::adopt`] calls it for what shows in the record.
    pub(crate) fn note_map_change(&self) {
        #[cfg(test)]
        if self.keeps_migrating.load(Ordering::Acquire) {
            return;
        }
        self.migrating.store(false, Ordering::Release);
    }

    /// Whether the record in core says more than the inode table.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// The same, once who writes it to the table just now is done: it looks clean meanwhile, and is
    /// not if that fails. Called with no handle.
    pub(crate) fn is_dirty_after_writing(&self) -> bool {
        let _written = self.writing.lock();
        self.is_dirty()
    }

    /// Writes the record into the inode table. `data` says that it has what the data needs
    /// (the map, or the size), so that fdatasync waits for this transaction.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn write(&self, transaction: &mut Transaction<'_>, data: bool) -> Result<()> {
        let _in_order = self.writing.lock();
        // Noted before it looks clean: an fsync that finds it so waits for this transaction.
        self.note_transaction(transaction, data);
        self.dirty.store(false, Ordering::Release);
        let mut record = self.disk().record.clone();
        let written = transaction.write_inode(&mut record);
        if written.is_err() {
            self.dirty.store(true, Ordering::Release);
        }
        written
    }

    /// Notes that the transaction changed something that fsync has to wait for.
    pub(crate) fn note_transaction(&self, transaction: &Transaction<'_>, data: bool) {
        let tid = transaction.tid();
        self.sync_tid.fetch_max(tid, Ordering::AcqRel);
        if data {
            self.data_sync_tid.fetch_max(tid, Ordering::AcqRel);
        }
    }

    /// The transaction that must be durable for the inode to be; for its data alone with
    /// `data_only`.
    pub(crate) fn sync_tid(&self, data_only: bool) -> u64 {
        if data_only {
            self.data_sync_tid.load(Ordering::Acquire)
        } else {
            self.sync_tid.load(Ordering::Acquire)
        }
    }
}

/// What a record says of the map: kind, root, and how many blocks there are.
fn says_of_map(record: &format::Inode) -> (InodeFlags, &[u8], u64) {
    let kinds = InodeFlags::EXTENTS | InodeFlags::INLINE_DATA;
    let flags = record.flags().intersection(kinds);
    (flags, record.block_area(), record.sectors())
}
