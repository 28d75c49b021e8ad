//! Reading a directory from a position on.

use std::ops::ControlFlow;

use pagefence_block_io::Buffer;
use pagefence_ext4_format::dir_entry::{DirEntry as DiskEntry, Role};
use pagefence_ext4_format::htree::DirHasher;
use pagefence_ext4_format::{FileBlock, InodeNo};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_vfs::{Attr, Cookie, DirEntry, DirSink, FileKind, InodeId, Result};

use crate::cookie::{HashKey, ORDINAL_MAX, Position};
use crate::dir::{CIRCLES, HASH_BLOCKS_MAX, block_no, kind_of};
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::filesystem::FileSystem;
use crate::inode::Inode;

/// An open directory.
///
/// Owns: the batch of entries that was read last, in hash order. Stays outside: any position; a
/// reader brings its own with each call.
#[derive(Debug)]
pub struct Directory {
    pub(crate) inode: Arc<Inode>,
    order: Order,
    /// Held while a call reads, like a file's position lock; nothing but buffers is taken below.
    batch: Mutex<Batch>,
}

/// In which order the entries come.
#[derive(Debug)]
enum Order {
    /// By hash: what has an index, or may get one.
    Hash(DirHasher),
    /// Block by block.
    Block,
}

/// Entries whose hashes lie in one range, sorted.
#[derive(Debug, Default)]
struct Batch {
    entries: Vec<BatchEntry>,
    names: Vec<u8>,
    /// Hashes covered: from here …
    first: u32,
    /// … to below here; to the end if nothing.
    next: Option<u32>,
    /// Whether anything has been read.
    filled: bool,
    /// The directory's entries, as the inode counts their changes.
    version: u64,
}

#[derive(Debug)]
struct BatchEntry {
    key: HashKey,
    /// How many entries before it have the same key.
    ordinal: u32,
    inode: InodeNo,
    kind: Option<FileKind>,
    name: std::ops::Range<usize>,
}

impl Batch {
    fn covers(&self, major: u32) -> bool {
        self.filled && major >= self.first && self.next.is_none_or(|next| major < next & !1)
    }

    /// Takes an entry whose hash lies in the range; says whether it does.
    fn push(&mut self, hasher: &DirHasher, entry: &DiskEntry<'_>) -> bool {
        let hash = hasher.hash(entry.name);
        if hash.major < self.first {
            return true;
        }
        if self.next.is_some_and(|next| hash.major >= next & !1) {
            return false;
        }
        let start = self.names.len();
        self.names.extend_from_slice(entry.name);
        self.entries.push(BatchEntry {
            key: HashKey::new(hash.major, entry.name),
            ordinal: 0,
            inode: entry.inode,
            kind: entry.kind.map(kind_of),
            name: start..self.names.len(),
        });
        true
    }

    fn name(&self, entry: &BatchEntry) -> &[u8] {
        &self.names[entry.name.clone()]
    }

    /// Sorts the entries; says whether a cookie can tell them apart.
    fn sort(&mut self) -> bool {
        let names = &self.names;
        self.entries.sort_unstable_by(|a, b| {
            (a.key, &names[a.name.clone()]).cmp(&(b.key, &names[b.name.clone()]))
        });
        let mut before: Option<(HashKey, u32)> = None;
        for entry in &mut self.entries {
            entry.ordinal = match before {
                Some((key, ordinal)) if key == entry.key => ordinal + 1,
                _ => 0,
            };
            before = Some((entry.key, entry.ordinal));
        }
        self.entries
            .iter()
            .all(|entry| entry.ordinal <= ORDINAL_MAX)
    }

    /// The cookie of entry `at`, or of what comes after the batch.
    fn cookie(&self, at: usize) -> Cookie {
        match (self.entries.get(at), self.next) {
            (Some(entry), _) => Position::Hash {
                key: entry.key,
                ordinal: entry.ordinal,
            }
            .encode(),
            (None, Some(next)) => Position::Hash {
                key: HashKey::first(next),
                ordinal: 0,
            }
            .encode(),
            (None, None) => Position::END.encode(),
        }
    }

    /// The first entry at or after a position.
    fn seek(&self, key: HashKey, ordinal: u32) -> usize {
        self.entries
            .partition_point(|entry| (entry.key, entry.ordinal) < (key, ordinal))
    }
}

impl FileSystem {
    /// Opens a directory inode.
    pub(crate) fn directory(&self, inode: Arc<Inode>) -> Result<Directory> {
        let order = {
            let mut held = Held::at_entry();
            let (_entries, _held) = inode.lock.read(&mut held);
            self.order_of(&inode.disk())?
        };
        Ok(Directory {
            inode,
            order,
            batch: Mutex::new(Batch::default()),
        })
    }

    fn order_of(&self, disk: &DiskInode) -> Result<Order> {
        let instance = &self.instance;
        if disk.is_encrypted() || disk.is_casefolded() || !instance.has_dir_index() {
            return Ok(Order::Block);
        }
        if disk.has_inline_data() {
            return Ok(self.default_order());
        }
        if disk.has_index() {
            // With a damaged index, which was logged, the blocks are read as they lie.
            return Ok(instance.dx_hasher(disk).map_or(Order::Block, Order::Hash));
        }
        Ok(match instance.dir_blocks(disk)? {
            1 => self.default_order(),
            _ => Order::Block,
        })
    }

    /// The order of a directory that has no index yet, but may get one.
    fn default_order(&self) -> Order {
        self.instance
            .dir_hasher(None)
            .map_or(Order::Block, Order::Hash)
    }

    /// Hands over the entries from `from` on.
    pub(crate) fn read_directory(
        &self,
        dir: &Directory,
        from: Cookie,
        with_attr: bool,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        let hashed = matches!(dir.order, Order::Hash(_));
        let mut position = Position::decode(from, hashed);
        if position == Position::Dot {
            position = Position::DotDot;
            if dot(dir.inode.core.number, b".", position.encode(), sink).is_break() {
                return Ok(());
            }
        }
        if position == Position::DotDot {
            let parent = {
                let mut held = Held::at_entry();
                let (_entries, _held) = dir.inode.lock.read(&mut held);
                self.instance.dot_dot(&dir.inode.disk())?
            };
            position = if hashed {
                Position::FIRST_HASH
            } else {
                Position::Offset(0)
            };
            if dot(parent, b"..", position.encode(), sink).is_break() {
                return Ok(());
            }
        }
        match (&dir.order, position) {
            (Order::Hash(hasher), Position::Hash { key, ordinal }) => {
                self.read_by_hash(dir, hasher, (key, ordinal), with_attr, sink)
            }
            (_, Position::Offset(offset)) => self.read_by_block(dir, offset, with_attr, sink),
            _ => Ok(()),
        }
    }

    fn attr_of(&self, with_attr: bool, inode: InodeNo) -> Option<Attr> {
        // What is wrong with an inode shows when it is looked up; here it must not hide the names.
        // It may be gone meanwhile, too: the directory is not locked.
        let id = InodeId(u64::from(inode.0));
        with_attr
            .then(|| pagefence_vfs::FileSystem::attr(self, id).ok())
            .flatten()
    }

    fn read_by_hash(
        &self,
        dir: &Directory,
        hasher: &DirHasher,
        (mut key, mut ordinal): (HashKey, u32),
        with_attr: bool,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        let mut batch = dir.batch.lock();
        loop {
            if !batch.covers(key.major()) || batch.version != dir.inode.entries_version() {
                *batch = self.gather(&dir.inode, hasher, key.major())?;
                if with_attr {
                    let numbers = batch.entries.iter().map(|entry| entry.inode);
                    self.instance.prefetch_inodes(numbers);
                }
            }
            for at in batch.seek(key, ordinal)..batch.entries.len() {
                let entry = &batch.entries[at];
                let next = batch.cookie(at + 1);
                let taken = sink.entry(&DirEntry {
                    id: InodeId(u64::from(entry.inode.0)),
                    kind: entry.kind,
                    name: batch.name(entry),
                    next,
                    attr: self.attr_of(with_attr, entry.inode),
                });
                if taken.is_break() {
                    return Ok(());
                }
            }
            let Some(next) = batch.next else {
                return Ok(());
            };
            (key, ordinal) = (HashKey::first(next), 0);
        }
    }

    /// Reads the entries of the hashes from `major` on, as far as one block of entries (with an
    /// index) reaches, or all of them.
    fn gather(&self, inode: &Inode, hasher: &DirHasher, major: u32) -> Result<Batch> {
        let mut held = Held::at_entry();
        let (_entries, _held) = inode.lock.read(&mut held);
        let disk = &*inode.disk();
        let instance = &self.instance;
        let mut batch = Batch {
            version: inode.entries_version(),
            first: major,
            filled: true,
            ..Batch::default()
        };
        if disk.has_inline_data() {
            instance.with_inline_dir(disk, |dir| {
                for entry in dir.entries() {
                    let entry = entry.at(&instance.damage, Some(disk.number), None)?;
                    batch.push(hasher, &entry);
                }
                Ok(())
            })?;
        } else if disk.has_index() {
            instance.prefetch_dir_block(disk, FileBlock(0));
            let mut path = instance.dx_probe(disk, major)?;
            for gathered in 1.. {
                let leaf = path.leaf().at(&instance.damage, Some(disk.number), None)?;
                let next = instance.dx_next_hash(disk, &path)?;
                // Names of one hash may go on in the next block: their batch takes all of it.
                let goes_on = next.is_some_and(|next| next & 1 == 1 || next & !1 <= major);
                batch.next = next.filter(|_| !goes_on);
                instance.prefetch_dir_block(disk, leaf);
                let buffer = instance.leaf_block(disk, leaf)?;
                self.gather_block(&mut batch, inode, hasher, leaf, &buffer)?;
                if !goes_on {
                    break;
                }
                if gathered >= HASH_BLOCKS_MAX || !instance.dx_advance(disk, &mut path)? {
                    return Err(instance.damaged(disk.number, None, CIRCLES));
                }
            }
        } else {
            for block in (0..instance.dir_blocks(disk)?).map(FileBlock) {
                let buffer = instance.dir_block(disk, block)?;
                self.gather_block(&mut batch, inode, hasher, block, &buffer)?;
            }
        }
        if !batch.sort() {
            // No two names of a sound directory are equal, and unequal ones hardly ever get the
            // same key: without an end here a reader might go round for ever.
            let what = "more names of one hash than a directory can have";
            return Err(instance.damaged(disk.number, None, what));
        }
        Ok(batch)
    }

    fn gather_block(
        &self,
        batch: &mut Batch,
        inode: &Inode,
        hasher: &DirHasher,
        block: FileBlock,
        buffer: &Buffer,
    ) -> Result<()> {
        let instance = &self.instance;
        let at = block_no(buffer);
        for entry in instance.dir_entries(&inode.disk(), block, buffer).entries() {
            let entry = entry.at(&instance.damage, Some(inode.core.number), Some(at))?;
            if entry.role == Role::Name && !batch.push(hasher, &entry) {
                let what = "a directory entry outside the hashes of its block";
                return Err(instance.damaged(inode.core.number, Some(at), what));
            }
        }
        Ok(())
    }

    fn read_by_block(
        &self,
        dir: &Directory,
        offset: u64,
        with_attr: bool,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        let instance = &self.instance;
        let disk = &*dir.inode.disk();
        if disk.has_inline_data() {
            return instance.with_inline_dir(disk, |inline| {
                for entry in inline.entries() {
                    let entry = entry.at(&instance.damage, Some(disk.number), None)?;
                    if entry.offset as u64 >= offset
                        && self.hand_over(&entry, 0, with_attr, sink).is_break()
                    {
                        break;
                    }
                }
                Ok(())
            });
        }
        let block_size = u64::from(instance.superblock.block_size());
        let blocks = instance.dir_blocks(disk)?;
        let Ok(first) = u32::try_from(offset / block_size) else {
            return Ok(());
        };
        for block in (first..blocks).map(FileBlock) {
            let base = u64::from(block.0) * block_size;
            let buffer = {
                let mut held = Held::at_entry();
                let (_entries, _held) = dir.inode.lock.read(&mut held);
                // Its map may be another one by now.
                let disk = dir.inode.disk();
                instance.prefetch_dir_block(&disk, block);
                instance.dir_block(&disk, block)?
            };
            let entries = || instance.dir_entries(disk, block, &buffer).entries();
            if with_attr {
                instance.prefetch_inodes(entries().flatten().map(|entry| entry.inode));
            }
            for entry in entries() {
                let entry =
                    entry.at(&instance.damage, Some(disk.number), Some(block_no(&buffer)))?;
                if entry.role == Role::Name
                    && base + entry.offset as u64 >= offset
                    && self.hand_over(&entry, base, with_attr, sink).is_break()
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn hand_over(
        &self,
        entry: &DiskEntry<'_>,
        base: u64,
        with_attr: bool,
        sink: &mut dyn DirSink,
    ) -> ControlFlow<()> {
        sink.entry(&DirEntry {
            id: InodeId(u64::from(entry.inode.0)),
            kind: entry.kind.map(kind_of),
            name: entry.name,
            next: Position::Offset(base + entry.offset as u64 + 1).encode(),
            attr: self.attr_of(with_attr, entry.inode),
        })
    }
}

fn dot(inode: InodeNo, name: &[u8], next: Cookie, sink: &mut dyn DirSink) -> ControlFlow<()> {
    sink.entry(&DirEntry {
        id: InodeId(u64::from(inode.0)),
        kind: Some(FileKind::Directory),
        name,
        next,
        attr: None,
    })
}
