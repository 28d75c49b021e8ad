//! Making room in a hashed directory: a full block of entries is split by hash, a full block of
//! the index in two, and the root gets a level when it is full itself.

use pagefence_ext4_format::dir_entry::{self, EntryName, FileKind};
use pagefence_ext4_format::features::Incompat;
use pagefence_ext4_format::{BlockNo, FileBlock, InodeNo, htree};
use pagefence_vfs::Result;

use crate::change::append_block::append_block;
use crate::change::change_dir::Directory;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::htree::DxPath;

/// Where the entries of the root start.
const ROOT_START: usize = 32;
/// Where the root says how many levels there are below it.
const ROOT_LEVELS: usize = 30;
/// Where the entries of a node start.
const NODE_START: usize = 8;
/// Bytes of an entry; of the tail with the checksum as well.
const ENTRY: usize = 8;

/// The entries of a block of the index. The first has no hash.
struct Index {
    start: usize,
    limit: u16,
    entries: Vec<(u32, FileBlock)>,
}

impl Index {
    /// Those of a block that was checked before.
    fn read(bytes: &[u8], start: usize) -> Self {
        let word = |at: usize| -> u32 {
            bytes
                .get(at..)
                .and_then(|rest| rest.first_chunk())
                .map_or(0, |word| u32::from_le_bytes(*word))
        };
        let head = word(start);
        let count = (head >> 16) as usize;
        let entries = (0..count)
            .map(|at| {
                let place = start + at * ENTRY;
                let hash = if at == 0 { 0 } else { word(place) };
                (hash, FileBlock(word(place + 4)))
            })
            .collect();
        Self {
            start,
            limit: (head & 0xFFFF) as u16,
            entries,
        }
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= usize::from(self.limit)
    }

    /// Writes the entries; there are no more than the limit.
    fn write(&self, bytes: &mut [u8]) {
        let mut put = |at: usize, word: u32| {
            if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
                *place = word.to_le_bytes();
            }
        };
        for (at, (hash, block)) in self.entries.iter().enumerate() {
            let place = self.start + at * ENTRY;
            put(place, *hash);
            put(place + 4, block.0);
        }
        put(
            self.start,
            u32::from(self.limit) | (self.entries.len() as u32) << 16,
        );
    }
}

/// Makes room on the way to the block of entries `leaf`, at the end of `path`: one block is split.
/// The caller looks the way up again.
///
/// # Errors
/// `Corrupt` if the index has no room for more; `Io` (also of the kind `StorageFull`).
pub(crate) fn make_room(
    directory: &mut Directory<'_, '_>,
    disk: &DiskInode,
    path: &DxPath,
    leaf: FileBlock,
) -> Result<()> {
    let instance = directory.transaction.instance;
    let steps: Vec<(BlockNo, usize)> = path.steps().collect();
    let mut indexes = Vec::with_capacity(steps.len());
    for (level, (block, _)) in steps.iter().enumerate() {
        let start = if level == 0 { ROOT_START } else { NODE_START };
        indexes.push(Index::read(&instance.read_block(*block)?, start));
    }
    for level in (0..steps.len()).rev() {
        let (Some(index), Some((block, at))) = (indexes.get(level), steps.get(level)) else {
            break;
        };
        if index.is_full() {
            continue;
        }
        let below = steps.get(level + 1).zip(indexes.get(level + 1));
        let (hash, new) = match below {
            None => split_leaf(directory, disk, leaf)?,
            Some(((below, _), entries)) => split_node(directory, *below, entries)?,
        };
        return add(directory, *block, index.start, at + 1, (hash, new));
    }
    match (steps.first(), indexes.first()) {
        (Some((root, _)), Some(index)) => grow(directory, *root, index, steps.len() - 1),
        _ => Ok(()),
    }
}

/// An entry of a directory, copied out.
struct Owned {
    hash: u32,
    inode: InodeNo,
    name: Vec<u8>,
    kind: Option<FileKind>,
}

/// Moves the upper half of a block's entries, by hash, into a new block. Returns what the index
/// is to say of that.
fn split_leaf(
    directory: &mut Directory<'_, '_>,
    disk: &DiskInode,
    leaf: FileBlock,
) -> Result<(u32, FileBlock)> {
    let instance = directory.transaction.instance;
    let hasher = instance.dx_hasher(disk)?;
    let at = instance.metadata_block(disk, leaf)?;
    let buffer = instance.dir_block(disk, leaf)?;
    let mut entries = instance
        .dir_entries(disk, leaf, &buffer)
        .entries()
        .map(|entry| {
            entry.map(|entry| Owned {
                hash: hasher.hash(entry.name).major,
                inode: entry.inode,
                name: entry.name.to_vec(),
                kind: entry.kind,
            })
        })
        .collect::<std::result::Result<Vec<_>, _>>()
        .at(&instance.damage, Some(disk.number), Some(at))?;
    entries.sort_by_key(|entry| entry.hash);
    let bytes = |entry: &Owned| dir_entry::entry_len(entry.name.len());
    let half = entries.iter().map(bytes).sum::<usize>() / 2;
    let mut sum = 0;
    let mid = entries
        .iter()
        .take_while(|entry| {
            sum += bytes(entry);
            sum <= half
        })
        .count()
        .max(1);
    let (Some(first), Some(before)) = (entries.get(mid), entries.get(mid - 1)) else {
        let what = "a full block of entries can't be split";
        return Err(instance.damaged(disk.number, Some(at), what));
    };
    // Bit 0 says that names of this hash begin in the block before.
    let hash = first.hash | u32::from(first.hash == before.hash);
    let (new, new_at) = append_block(directory.transaction, directory.record)?;
    let right = entries.split_off(mid);
    for (block, entries) in [(at, entries), (new_at, right)] {
        let mut bytes = vec![0; buffer.len()];
        let mut fits = dir_entry::init_block(&mut bytes, &instance.dir_format);
        for entry in &entries {
            let put = EntryName::new(&entry.name).map(|name| {
                dir_entry::insert(
                    &mut bytes,
                    &instance.dir_format,
                    entry.inode,
                    &name,
                    entry.kind,
                )
            });
            fits &= matches!(put, Some(Ok(Some(_))));
        }
        if !fits {
            let what = "a full block of entries can't be split";
            return Err(instance.damaged(disk.number, Some(at), what));
        }
        directory.set_entries(block, &mut bytes)?;
    }
    Ok((hash, new))
}

/// Moves the upper half of a node's entries into a new node.
fn split_node(
    directory: &mut Directory<'_, '_>,
    node: BlockNo,
    index: &Index,
) -> Result<(u32, FileBlock)> {
    let mid = index.entries.len() / 2;
    let (left, right) = index.entries.split_at(mid);
    let hash = right.first().map_or(0, |(hash, _)| *hash);
    let new = new_node(directory, right)?;
    let left = Index {
        entries: left.to_vec(),
        ..*index
    };
    set_index(directory, node, &left, None)?;
    Ok((hash, new))
}

/// Moves the root's entries into a node of their own.
fn grow(
    directory: &mut Directory<'_, '_>,
    root: BlockNo,
    index: &Index,
    levels: usize,
) -> Result<()> {
    let instance = directory.transaction.instance;
    let large = instance.superblock.has_incompat(Incompat::LARGE_DIR);
    if levels >= if large { 2 } else { 1 } {
        return Err(instance.damaged(directory.record.ino(), Some(root), "its index is full"));
    }
    let new = new_node(directory, &index.entries)?;
    let top = Index {
        entries: vec![(0, new)],
        ..*index
    };
    set_index(directory, root, &top, Some(levels as u8 + 1))
}

/// Adds a block with a node of these entries to the directory.
fn new_node(directory: &mut Directory<'_, '_>, entries: &[(u32, FileBlock)]) -> Result<FileBlock> {
    let instance = directory.transaction.instance;
    let (new, block) = append_block(directory.transaction, directory.record)?;
    let size = instance.superblock.block_size() as usize;
    let mut bytes = vec![0; size];
    // An unused entry as long as the block, to those who do not know the index.
    let whole = u16::try_from(size).unwrap_or(u16::MAX);
    if let Some(length) = bytes.get_mut(4..6) {
        length.copy_from_slice(&whole.to_le_bytes());
    }
    let tail = if instance.checksums { ENTRY } else { 0 };
    let index = Index {
        start: NODE_START,
        limit: u16::try_from((size - NODE_START - tail) / ENTRY).unwrap_or(u16::MAX),
        entries: entries.to_vec(),
    };
    index.write(&mut bytes);
    seal(directory, block, &mut bytes)?;
    directory.transaction.set(block, &bytes);
    Ok(new)
}

/// Adds an entry to a block of the index that has room.
fn add(
    directory: &mut Directory<'_, '_>,
    block: BlockNo,
    start: usize,
    at: usize,
    entry: (u32, FileBlock),
) -> Result<()> {
    let bytes = directory.transaction.instance.read_block(block)?;
    let mut index = Index::read(&bytes, start);
    index.entries.insert(at.min(index.entries.len()), entry);
    set_index(directory, block, &index, None)
}

fn set_index(
    directory: &mut Directory<'_, '_>,
    block: BlockNo,
    index: &Index,
    levels: Option<u8>,
) -> Result<()> {
    let mut bytes = directory.transaction.instance.read_block(block)?.to_vec();
    index.write(&mut bytes);
    if let (Some(levels), Some(place)) = (levels, bytes.get_mut(ROOT_LEVELS)) {
        *place = levels;
    }
    seal(directory, block, &mut bytes)?;
    directory.transaction.set(block, &bytes);
    Ok(())
}

fn seal(directory: &Directory<'_, '_>, block: BlockNo, bytes: &mut [u8]) -> Result<()> {
    let instance = directory.transaction.instance;
    if !instance.checksums {
        return Ok(());
    }
    htree::update_checksum(bytes, directory.record.checksum_seed()).at(
        &instance.damage,
        Some(directory.record.ino()),
        Some(block),
    )
}
